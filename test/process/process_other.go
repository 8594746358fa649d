// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package process

import "syscall"

func endWithParent() *syscall.SysProcAttr { return nil }
