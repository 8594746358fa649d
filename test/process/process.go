// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package process builds and runs programs for tests, as processes of their own against an embedded control plane. A proxy between a
// process and the API server lets tests hold or fail its requests, and a process can be killed at any moment.
package process

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Process is a program that runs, or is about to.
type Process struct {
	cmd    *exec.Cmd
	log    *logBuffer
	exited chan struct{}
}

// New returns a process that has not been started.
func New() *Process { return &Process{log: &logBuffer{}, exited: make(chan struct{})} }

// Start starts a program with further environment variables. It is killed after the test, and its log shown if that failed.
func (p *Process) Start(t testing.TB, path string, env []string, args ...string) error {
	t.Helper()
	p.cmd = exec.Command(path, args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = endWithParent()
	p.cmd.Env = append(os.Environ(), env...)
	if err := p.cmd.Start(); err != nil {
		return err
	}
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
	return nil
}

// StartOurs is Start for a program of ours, which fails the test too if the race detector found anything or the program panicked.
func (p *Process) StartOurs(t testing.TB, path string, args ...string) error {
	t.Helper()
	if err := p.Start(t, path, []string{"GORACE=halt_on_error=1"}, args...); err != nil {
		return err
	}
	t.Cleanup(func() {
		p.Kill()
		log := p.Log()
		require.NotContains(t, log, "DATA RACE", "the race detector spoke")
		require.NotContains(t, log, "panic: ", "%s panicked", path)
	})
	return nil
}

// AwaitReady waits until the process serves /readyz at the URL, of which the certificate does not matter.
func (p *Process) AwaitReady(t testing.TB, url string) {
	t.Helper()
	require.Eventually(t, func() bool {
		select {
		case <-p.exited:
			return true
		default:
		}
		return Get(url+"/readyz") != nil
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

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ExitCode is that of a process that has ended.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

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

// insecure is for servers of tests, which have certificates of their own making.
var insecure = &http.Client{
	Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
}

// Get returns the body of a good answer, or nil.
func Get(url string) []byte {
	resp, err := insecure.Get(url)
	if err != nil {
		return nil
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil
	}
	return body
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
