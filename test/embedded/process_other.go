// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix && !linux

package embedded

import "syscall"

// componentAttr puts the component into a process group of its own: Ctrl-C is for us, and we end the components in order.
// When this process ends without doing so, the reaper kills the group, as the kernel can not.
func componentAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
