// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// terminal returns a terminal and what is written to it.
func terminal(t *testing.T) (*os.File, func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	var mu sync.Mutex
	var text strings.Builder
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			mu.Lock()
			text.Write(buffer[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return slave, func() string {
		mu.Lock()
		defer mu.Unlock()
		return text.String()
	}
}

func TestProgressOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	tty, shown := terminal(t)
	p := newProgress(tty, 2, 0)
	p.of(0)(1, 1)
	require.Eventually(t, func() bool { return strings.Contains(shown(), " 50 %  1 of 2 runs") }, 10*time.Second, 10*time.Millisecond)
	p.stop()
	require.Eventually(t, func() bool { return strings.HasSuffix(shown(), "left\r\x1b[K") }, 10*time.Second, 10*time.Millisecond,
		"nothing is left of the line")

	quick := newProgress(tty, 1, time.Hour)
	before := shown()
	quick.stop()
	t.Setenv("TERM", "dumb")
	dumb := newProgress(tty, 1, 0)
	dumb.of(0)(1, 1)
	dumb.stop()
	assert.Equal(t, before, shown())
}

func TestNoPageOnATerminal(t *testing.T) {
	tty, _ := terminal(t)
	streams, _, _, errOut := genericiooptions.NewTestIOStreams()
	streams.Out = tty
	e := &env{IOStreams: streams, config: genericclioptions.NewConfigFlags(true), now: time.Now}
	code := run(t.Context(), e.command(), streams, []string{"simulate", "--nodes", nodesCSV, "--pods", tasksCSV, "-o", "html"})
	assert.Equal(t, exitUsage, code)
	assert.Contains(t, errOut.String(), "-o html is a page for a browser: give --out FILE, or send the output elsewhere")
}
