// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// readyTimeout is how long a component may take to become ready. It takes seconds, but test machines can be very busy.
const readyTimeout = 2 * time.Minute

// launcher starts processes from one OS thread that lives until close. The kernel ends the processes with that thread,
// see componentAttr.
type launcher struct {
	starts chan func()
}

func newLauncher() *launcher {
	l := &launcher{starts: make(chan func())}
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		for start := range l.starts {
			start()
		}
	}()
	return l
}

func (l *launcher) start(cmd *exec.Cmd) error {
	err := make(chan error)
	l.starts <- func() { err <- cmd.Start() }
	return <-err
}

func (l *launcher) close() { close(l.starts) }

// component is one program of a control plane.
type component struct {
	name string
	path string
	args []string
	dir  string // working and home directory
	log  string
	// ready returns nil when the component serves. Nil if there is nothing to wait for.
	ready func(context.Context) error

	pid    int
	exited chan struct{} // closed when the process has ended; nil when it was not started, or was stopped
}

// start starts the component and waits until it is ready. If that fails, the component does not run.
func (c *component) start(ctx context.Context, l *launcher) error {
	if c.exited != nil {
		return fmt.Errorf("%s is started already", c.name)
	}
	err := c.launch(l)
	if err == nil {
		err = c.waitReady(ctx)
	}
	if err != nil {
		c.stop()
	}
	return err
}

func (c *component) launch(l *launcher) error {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", c.name, err)
	}
	defer log.Close()

	cmd := exec.Command(c.path, c.args...)
	cmd.Dir = c.dir
	// Nothing of the caller's environment, such as a proxy or a kwok configuration, may change what is started.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "TMPDIR=" + c.dir}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = componentAttr()
	if err := l.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	c.pid = cmd.Process.Pid
	exited := make(chan struct{})
	c.exited = exited
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(exited)
	}()
	if err := writePIDFile(c.dir, c.name, c.pid); err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	return nil
}

func (c *component) waitReady(ctx context.Context) error {
	if c.ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready within %v", readyTimeout))
	defer cancel()
	var last error
	err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		if err := c.died(); err != nil {
			return false, err
		}
		if err := c.ready(ctx); err != nil {
			last = err
			return false, nil
		}
		return true, nil
	})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("wait for %s: %w (last: %v); end of its log:\n%s", c.name, context.Cause(ctx), last, c.logTail())
	}
	return err
}

// stop kills the component, as a crash would, and waits until it is gone. Its data survive, since they are in the page
// cache at the latest.
func (c *component) stop() {
	if c.exited == nil {
		return
	}
	_ = killGroup(c.pid) // fails only if it has ended by itself
	<-c.exited
	c.exited = nil
	removePIDFile(c.dir, c.name)
}

// died returns an error if the component ended without being stopped.
func (c *component) died() error {
	if c.exited == nil {
		return nil
	}
	select {
	case <-c.exited:
		return fmt.Errorf("%s has ended; end of its log:\n%s", c.name, c.logTail())
	default:
		return nil
	}
}

func (c *component) logTail() string {
	data, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	return lastLines(data, 20)
}

func lastLines(data []byte, n int) string {
	lines := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}
