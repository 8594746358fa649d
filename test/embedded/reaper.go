// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// reaperScript creates the folder, waits until its standard input ends, kills the process groups that have a pid file in
// the folder, and removes it. It retries, because a process that was killed may write for another moment.
const reaperScript = `
trap '' HUP INT TERM PIPE
mkdir -m 700 "$1" || exit 1
echo ready
while read -r _; do :; done
for pidfile in "$1"/*.pid; do
	[ -e "$pidfile" ] && kill -s KILL -- "-$(cat "$pidfile")"
done
tries=0
until rm -rf "$1" || [ $tries -ge 100 ]; do
	tries=$((tries + 1))
	sleep 0.1
done
`

// reaper is a shell whose standard input is a pipe from this process. However this process ends, the pipe ends with it.
type reaper struct {
	cmd  *exec.Cmd
	pipe io.Closer
}

// startReaper creates dir and a reaper for it. There is no moment at which dir exists without its reaper.
func startReaper(dir string) (*reaper, error) {
	cmd := exec.Command("/bin/sh", "-c", reaperScript, "gpupack-reaper", dir)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // out of reach of what is sent to our process group
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the reaper: %w", err)
	}
	r := &reaper{cmd: cmd, pipe: stdin}
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		r.reap()
		return nil, fmt.Errorf("create folder: %s", strings.TrimSpace(stderr.String()))
	}
	return r, nil
}

// reap returns when the folder is gone.
func (r *reaper) reap() {
	_ = r.pipe.Close()
	_ = r.cmd.Wait()
}

// writePIDFile makes the reaper of dir kill the process group. The name is for those who look into the folder.
func writePIDFile(dir, name string, group int) error {
	return os.WriteFile(pidFile(dir, name), []byte(strconv.Itoa(group)), 0o644)
}

// removePIDFile is called when the process group is gone, after which its number may be that of another.
func removePIDFile(dir, name string) { _ = os.Remove(pidFile(dir, name)) }

func pidFile(dir, name string) string { return filepath.Join(dir, name+".pid") }

func killGroup(group int) error { return syscall.Kill(-group, syscall.SIGKILL) }

// randomSuffix makes the name of a folder unique.
func randomSuffix() string { return strings.ToLower(rand.Text()[:10]) }
