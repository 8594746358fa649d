// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import "syscall"

// componentAttr makes the kernel kill the component when the thread that started it ends, which is at the latest when this
// process ends, in whatever way. The process group is its own: Ctrl-C is for us, and we end the components in order.
func componentAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
