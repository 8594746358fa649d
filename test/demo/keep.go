// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A cluster that is kept belongs to a process in the background, the keeper, whose files are in this folder. It holds a
// lock on its pid file as long as it lives, so a pid that has become another process's is never mistaken for it.
const (
	keptFolder     = ".cache/demo"
	keptPID        = keptFolder + "/pid"
	keptLog        = keptFolder + "/log"
	keptKubeconfig = keptFolder + "/kubeconfig"
)

var errKept = errors.New("a demo is running already: make demo-down ends it")

// keep starts the keeper, which writes to our terminal until it is up, and returns then.
func keep(ctx context.Context, opts options) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	args := []string{"--keeper"}
	if opts.short {
		args = append(args, "--short")
	}
	if opts.screenshot != "" {
		args = append(args, "--screenshot", opts.screenshot)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{write}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // outlives this terminal
	if err := cmd.Start(); err != nil {
		return err
	}
	write.Close()
	// The keeper writes a byte when it is up, and the pipe ends without one if it ends before.
	up := make(chan bool, 1)
	go func() {
		n, _ := read.Read(make([]byte, 1))
		up <- n == 1
	}()
	select {
	case ok := <-up:
		if ok {
			return nil
		}
	case <-ctx.Done():
		_ = cmd.Process.Signal(os.Interrupt)
	}
	if err := cmd.Wait(); err != nil && ctx.Err() == nil {
		os.Exit(cmd.ProcessState.ExitCode()) // it has said why
	}
	return context.Cause(ctx)
}

// beKeeper runs the demo and keeps its cluster until a signal.
func beKeeper(ctx context.Context, opts options) error {
	if err := os.MkdirAll(keptFolder, 0o755); err != nil {
		return err
	}
	pidFile, err := os.OpenFile(keptPID, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(pidFile.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pidFile.Close()
		return errKept
	}
	defer pidFile.Close() // and with it the lock, after all that follows is undone
	crashed := false
	defer func() {
		if crashed { // the log says why
			os.Remove(keptPID)
			os.Remove(keptKubeconfig)
			return
		}
		os.RemoveAll(keptFolder)
	}()
	if err := errors.Join(pidFile.Truncate(0), writeString(pidFile, strconv.Itoa(os.Getpid()))); err != nil {
		return err
	}

	d := &demo{options: opts}
	defer d.stop()
	if err := d.run(ctx); err != nil {
		return err
	}
	data, err := os.ReadFile(d.controlPlane.Kubeconfig())
	if err != nil {
		return err
	}
	if err := os.WriteFile(keptKubeconfig, data, 0o600); err != nil {
		return err
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	fmt.Printf(`
The cluster stays up until make demo-down. To look at it with your own kubectl:

  export KUBECONFIG=%s
  export PATH=%s:$PATH
  kubectl gpupack top -l %s
  kubectl gpupack top pods -n %s
  kubectl gpupack top gpus -n %s
  kubectl get gpunodes
`, filepath.Join(root, keptKubeconfig), filepath.Join(root, "bin"), gpupackPool.selector(), gpupackPool.namespace, gpupackPool.namespace)

	// From here on the terminal is no longer ours.
	log, err := os.OpenFile(keptLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	for _, fd := range []int{int(os.Stdout.Fd()), int(os.Stderr.Fd())} {
		if err := unix.Dup2(int(log.Fd()), fd); err != nil {
			return err
		}
	}
	up := os.NewFile(3, "up")
	if _, err := up.Write([]byte{1}); err != nil {
		return err
	}
	up.Close()
	err = d.watch(ctx)
	crashed = err != nil
	return err
}

// down ends the keeper, if there is one, and returns when it has ended.
func down(ctx context.Context) error {
	f, err := os.Open(keptPID)
	if errors.Is(err, os.ErrNotExist) {
		fmt.Println("no demo is running")
		if _, err := os.Stat(keptLog); err == nil {
			fmt.Printf("the last one ended by itself; %s says why\n", keptLog)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	signalled := false
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			if err := os.RemoveAll(keptFolder); err != nil {
				return err
			}
			if signalled {
				fmt.Println("the demo has ended")
			} else {
				fmt.Println("no demo is running")
			}
			return nil
		}
		if !signalled {
			data, err := io.ReadAll(f)
			if err != nil {
				return err
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
			if err != nil || pid <= 1 {
				return fmt.Errorf("%s does not hold the id of a process, but %q", keptPID, data)
			}
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
				return fmt.Errorf("end process %d: %w", pid, err)
			}
			signalled = true
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("the demo has not ended within a minute; its log is %s", keptLog)
}

func writeString(w io.Writer, s string) error {
	_, err := io.WriteString(w, s)
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
