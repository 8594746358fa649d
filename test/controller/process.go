// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Process is a running program.
type Process struct {
	cmd    *exec.Cmd
	log    *logBuffer
	exited chan struct{}
}

func newProcess() *Process { return &Process{log: &logBuffer{}, exited: make(chan struct{})} }

// Launch runs a program with further environment variables. It is killed after the test, and its log shown if that failed.
func Launch(t testing.TB, path string, env []string, args ...string) *Process {
	t.Helper()
	p := newProcess()
	p.launch(t, path, env, args...)
	return p
}

func (p *Process) launch(t testing.TB, path string, env []string, args ...string) {
	t.Helper()
	p.cmd = exec.Command(path, args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = endWithParent()
	p.cmd.Env = append(os.Environ(), env...)
	require.NoError(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.Kill()
		if log := p.Log(); t.Failed() {
			t.Logf("end of the log of %s:\n%s", path, log[max(0, len(log)-8<<10):])
		}
	})
}

// AwaitReady waits until the process serves /readyz at the address.
func (p *Process) AwaitReady(t testing.TB, address string) {
	t.Helper()
	require.Eventually(t, func() bool {
		select {
		case <-p.exited:
			return true
		default:
		}
		return get(address+"/readyz") != nil
	}, time.Minute, 50*time.Millisecond, "%s did not become ready", p.cmd.Path)
	select {
	case <-p.exited:
		require.Fail(t, "the process ended", p.Log())
	default:
	}
}

// Kill ends the process at once, as a crash would.
func (p *Process) Kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.exited
}

// Stop asks the process to end and waits until it has.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		require.Fail(t, "the process goes on after SIGTERM")
	}
}

// Log returns what the process has printed.
func (p *Process) Log() string { return p.log.String() }

// FreeAddress returns an address of the loopback interface at which nobody listens.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
