// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestNothingIsLeftBehind ends a process that has a control plane in every way a process can end.
func TestNothingIsLeftBehind(t *testing.T) {
	tests := map[string]struct {
		how    string         // what the child does when its control plane is ready
		signal syscall.Signal // what it gets then
		early  bool           // whether it gets the signal while its control plane starts
	}{
		"SIGINT":                  {signal: syscall.SIGINT},
		"SIGTERM":                 {signal: syscall.SIGTERM},
		"SIGKILL":                 {signal: syscall.SIGKILL},
		"SIGKILL while it starts": {signal: syscall.SIGKILL, early: true},
		"panic":                   {how: "panic"},
		"os.Exit":                 {how: "exit"},
	}
	executable, err := os.Executable()
	require.NoError(t, err)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tmp := shortTempDir(t)
			cmd := exec.Command(executable)
			if tt.how == "" {
				tt.how = "wait"
			}
			cmd.Env = append(os.Environ(), childEnv+"="+tt.how)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill() })

			if tt.early {
				require.Eventually(t, func() bool {
					pidFiles, err := filepath.Glob(filepath.Join(tmp, "*", APIServer+".pid"))
					return err == nil && len(pidFiles) == 1
				}, eventually, tick)
			} else {
				dir, err := bufio.NewReader(stdout).ReadString('\n')
				require.NoError(t, err, "the child's standard error: %s", &stderr)
				require.Equal(t, tmp, filepath.Dir(strings.TrimSpace(dir)))
			}
			if tt.signal != 0 {
				require.NotEmpty(t, processesOf(t, tmp+"/"))
				require.NoError(t, cmd.Process.Signal(tt.signal))
			}
			require.Error(t, cmd.Wait())
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				assert.Empty(c, processesOf(t, tmp+"/"))
				entries, err := os.ReadDir(tmp)
				assert.NoError(c, err)
				assert.Empty(c, entries)
			}, eventually, tick)
		})
	}
}

// TestNothingIsLeftOfABuild kills a process while it builds, of which a go command and its children are to end too.
func TestNothingIsLeftOfABuild(t *testing.T) {
	fakeGo(t, `sh -c 'sleep 1000; :' "$out" & wait`)
	cache := os.Getenv(cacheEnv)
	executable, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(executable)
	cmd.Env = append(os.Environ(), childEnv+"=wait")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	require.Eventually(t, func() bool {
		return len(processesOf(t, cache)) == 3 // the reaper, the go command and its child
	}, eventually, tick)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		assert.Empty(c, processesOf(t, cache))
		leftovers, err := filepath.Glob(filepath.Join(cache, "embedded", "*", "*"))
		assert.NoError(c, err)
		assert.Empty(c, leftovers)
	}, eventually, tick)
}

func TestProcessesOf(t *testing.T) {
	running := processesOf(t, Get(t).Dir())
	require.Len(t, running, 5, "etcd, API server, controller manager, kwok and the reaper, got %q", running)
}

// processesOf returns the command lines that mention the folder.
func processesOf(t *testing.T, dir string) []string {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var found []string
	for _, file := range files {
		cmdline, err := os.ReadFile(file)
		if err == nil && bytes.Contains(cmdline, []byte(dir)) { // a process may end at any time
			found = append(found, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}
