// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import "syscall"

// endWithParent makes the kernel kill the scheduler when a test binary ends without its cleanups, as at a timeout.
func endWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
