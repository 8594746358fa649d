// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import "syscall"

// endWithParent has the kernel end the process when the thread that started it ends.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
