// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// reservePort returns a free port of 127.0.0.1 that stays ours until release. Its socket is bound but does not listen, and
// shares the port (SO_REUSEPORT), so that the API server can listen there with --permit-port-sharing, also after a restart,
// while the kernel gives the port to nobody else.
func reservePort() (port int, release func(), err error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return 0, nil, fmt.Errorf("reserve a port: %w", err)
	}
	release = func() { _ = unix.Close(fd) }
	if port, err = bindShared(fd); err != nil {
		release()
		return 0, nil, fmt.Errorf("reserve a port of 127.0.0.1: %w", err)
	}
	return port, release, nil
}

func bindShared(fd int) (int, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, err
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	return addr.(*unix.SockaddrInet4).Port, nil
}
