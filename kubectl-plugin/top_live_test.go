// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/kubectl-plugin/livecache"
)

func liveFleet() []client.Object {
	objects := fleet()
	for _, o := range objects {
		if n, ok := o.(*corev1.Node); ok && strings.Contains(n.Name, "a100") {
			n.Labels[poolLabels[0]] = "training"
		}
	}
	return append(objects, pod("research", "big", asks(v1alpha1.ResourceGPU, "5"), inGang("large")))
}

// liveOf returns the live view of these objects, settled, and what ends its watches.
func liveOf(t *testing.T, r client.Reader, columns, lines int) *liveModel {
	t.Helper()
	streams, _, _, _ := genericiooptions.NewTestIOStreams()
	e := &env{IOStreams: streams, config: genericclioptions.NewConfigFlags(true), now: func() time.Time { return now }}
	e.command() // sets the defaults of flags
	e.reader = func() (client.Reader, error) { return r, nil }
	ctx, cancel := context.WithCancel(t.Context())
	cache := livecache.New(r.(client.WithWatch), livecache.Options{NodeLabels: append([]string{productLabel}, poolLabels...)})
	m := newLiveModel(newLiveData(e.view, false))
	m.feed = &liveFeed{ctx: ctx, env: e, reader: r, cache: cache}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cache.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	m.Init()
	m.Update(tea.WindowSizeMsg{Width: columns, Height: lines})
	require.Eventually(t, func() bool {
		m.Update(newsMsg{})
		return m.feed.settled
	}, 10*time.Second, time.Millisecond)
	return m
}

// press presses keys by their names.
func press(t *testing.T, m *liveModel, keys ...string) {
	t.Helper()
	special := map[string]rune{"up": tea.KeyUp, "down": tea.KeyDown, "left": tea.KeyLeft, "right": tea.KeyRight, "enter": tea.KeyEnter,
		"esc": tea.KeyEscape, "end": tea.KeyEnd, "home": tea.KeyHome, "pgdown": tea.KeyPgDown, "backspace": tea.KeyBackspace}
	for _, key := range keys {
		msg := tea.KeyPressMsg{Code: []rune(key)[0], Text: key}
		if code, ok := special[key]; ok {
			msg = tea.KeyPressMsg{Code: code}
		}
		require.Equal(t, key, msg.String())
		if _, cmd := m.Update(msg); cmd != nil {
			m.Update(cmd())
		}
	}
}

func chosen(m *liveModel) string { return strings.TrimSpace(strings.Fields(m.rowLineOfCursor())[1]) }

func (m *liveModel) rowLineOfCursor() string {
	c := m.liveColumns()
	return strings.NewReplacer("▸", "", "▾", "", ">", "> ").Replace(m.rowLine(&c, m.cursor))
}

func TestLiveScreens(t *testing.T) {
	for name, keys := range map[string][]string{
		"nodes":     nil,
		"all":       {"e"},
		"pools":     {"g", "e", "s", "end"},
		"gangs":     {"g", "g", "g", "g", "e"},
		"filter":    {"/", "c", "h", "a", "t"},
		"nothing":   {"/", "z", "z", "z", "enter"},
		"explained": {"/", "l", "l", "a", "m", "a", "-", "w", "enter", "end", "enter"},
		"help":      {"?"},
	} {
		for _, columns := range []int{80, 100, 160} {
			name := "top-live-" + name + "-" + strconv.Itoa(columns)
			t.Run(name, func(t *testing.T) {
				m := liveOf(t, cluster(t, liveFleet()), columns, 22)
				press(t, m, keys...)
				got := m.render()
				assert.Len(t, strings.Split(got, "\n"), 22)
				for line := range strings.Lines(got) {
					line = strings.TrimSuffix(line, "\n")
					assert.LessOrEqual(t, utf8.RuneCountInString(line), columns, line)
					assert.Equal(t, strings.TrimRight(line, " "), line)
				}
				assert.NotContains(t, got, "\x1b", "colour where there is none")
				golden(t, name, got)
			})
		}
	}
}

func TestLiveViewOfAnySize(t *testing.T) {
	m := liveOf(t, cluster(t, liveFleet(), "GPUNode"), 100, 30)
	press(t, m, "e")
	for columns := range 60 {
		for lines := range 15 {
			m.Update(tea.WindowSizeMsg{Width: columns, Height: lines})
			for _, keys := range []string{"", "down", "up", "?", "esc", "end", "home"} {
				if keys != "" {
					press(t, m, keys)
				}
				got := strings.Split(m.render(), "\n")
				assert.LessOrEqual(t, len(got), max(1, lines))
			}
		}
	}
}

func TestLiveKeys(t *testing.T) {
	m := liveOf(t, cluster(t, liveFleet()), 120, 14)
	assert.Equal(t, "pending", chosen(m))
	press(t, m, "down", "down")
	assert.Equal(t, "gpu-a100-01", chosen(m))
	press(t, m, "right", "down", "right", "down")
	assert.Contains(t, m.rowLineOfCursor(), "research/llama-worker-0")
	press(t, m, "left", "left", "left", "left")
	assert.Equal(t, "gpu-a100-01", chosen(m), "closing what is open, and leaving for what a row is in")
	rows := len(m.rows)
	press(t, m, "s")
	assert.Equal(t, "gpu-a100-01", chosen(m), "the cursor stays on its row")
	assert.Len(t, m.rows, rows)
	assert.Contains(t, m.render(), "sorted by used descending")
	press(t, m, "r", "S")
	assert.Contains(t, m.render(), "sorted by name descending")

	press(t, m, "/", "-", "t", "4", "x", "backspace", "enter")
	assert.Equal(t, []string{"n/gpu-t4-01"}, keysOf(m))
	press(t, m, "esc")
	assert.Len(t, m.rows, rows)
	press(t, m, "end", "home")
	assert.Equal(t, 0, m.cursor)

	_, cmd := m.Update(tea.KeyPressMsg{Code: 'q', Text: "q"})
	require.NotNil(t, cmd)
	assert.Equal(t, tea.QuitMsg{}, cmd())
}

func keysOf(m *liveModel) []string {
	var keys []string
	for i := range m.rows {
		keys = append(keys, m.rows[i].key())
	}
	return keys
}

func TestLiveMouse(t *testing.T) {
	m := liveOf(t, cluster(t, liveFleet()), 120, 12)
	press(t, m, "e")
	m.Update(tea.MouseWheelMsg{Button: tea.MouseWheelDown})
	assert.Equal(t, []int{3, 3}, []int{m.top, m.cursor})
	m.Update(tea.MouseWheelMsg{Button: tea.MouseWheelUp})
	m.Update(tea.MouseWheelMsg{Button: tea.MouseWheelUp})
	assert.Equal(t, 0, m.top)
	m.Update(tea.MouseClickMsg{Button: tea.MouseLeft, Y: linesAbove + 1})
	assert.Equal(t, 1, m.cursor)
	assert.Contains(t, m.rowLineOfCursor(), "research/big")
	_, cmd := m.Update(tea.MouseClickMsg{Button: tea.MouseLeft, Y: linesAbove + 1})
	require.NotNil(t, cmd, "a click on the chosen pod explains it")
	m.Update(cmd())
	assert.Contains(t, m.render(), "Pod research/big (Pending")
	press(t, m, "esc")
	m.Update(tea.MouseClickMsg{Button: tea.MouseLeft, Y: 0})
	assert.Equal(t, 1, m.cursor, "the titles are no row")
}

func TestLiveViewFollowsTheCluster(t *testing.T) {
	r := cluster(t, liveFleet())
	m := liveOf(t, r, 120, 30)
	press(t, m, "down", "down")
	c := r.(client.WithWatch)
	gn := &v1alpha1.GPUNode{}
	require.NoError(t, c.Get(t.Context(), client.ObjectKey{Name: "gpu-a100-01"}, gn))
	gn.Status.GPUs[3].Utilization = 0
	require.NoError(t, c.Update(t.Context(), gn))
	require.NoError(t, c.Delete(t.Context(), pod("research", "big")))
	require.Eventually(t, func() bool {
		m.Update(newsMsg{})
		return strings.Contains(m.rowLineOfCursor(), " 81%") && len(m.data.pending) == 0
	}, 10*time.Second, 5*time.Millisecond)
	assert.Equal(t, "gpu-a100-01", chosen(m), "the cursor stays on its row while others come and go")
	m.Update(sampleMsg{})
	assert.Contains(t, m.rowLineOfCursor(), "█▇")
}

func TestLiveViewSaysWhatIsMissing(t *testing.T) {
	m := liveOf(t, cluster(t, liveFleet(), "GPUNode"), 100, 30)
	got := m.render()
	assert.Contains(t, got, "This cluster has no GPUNode resource")
	assert.Contains(t, got, "gpu-a100-01", "what still works is shown")
	assert.Contains(t, got, "no telemetry")

	refused := interceptor.NewClient(cluster(t, liveFleet()).(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if _, ok := list.(*corev1.NodeList); ok {
				return errors.New("nodes is forbidden")
			}
			return c.List(ctx, list, opts...)
		},
	})
	m = liveOf(t, refused, 100, 30)
	assert.Contains(t, m.render(), "A part is missing: list nodes: nodes is forbidden.")
	assert.Contains(t, m.render(), "gpu-a100-01")
}

// syncBuffer is what a program wrote so far.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func runProgram(t *testing.T, r client.Reader) (in *io.PipeWriter, out *syncBuffer, ended chan error) {
	t.Helper()
	streams, _, _, _ := genericiooptions.NewTestIOStreams()
	e := &env{IOStreams: streams, config: genericclioptions.NewConfigFlags(true), now: func() time.Time { return now }}
	e.command()
	m := newLiveModel(newLiveData(e.view, false))
	m.feed = &liveFeed{ctx: t.Context(), env: e, reader: r, cache: livecache.New(r.(client.WithWatch), livecache.Options{})}
	read, write := io.Pipe()
	out, ended = &syncBuffer{}, make(chan error, 1)
	go func() {
		ended <- runLive(t.Context(), m, tea.WithInput(read), tea.WithOutput(out), tea.WithWindowSize(100, 24), tea.WithoutSignals(),
			tea.WithEnvironment([]string{"TERM=xterm-256color"}))
	}()
	return write, out, ended
}

func ends(t *testing.T, ended chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(20 * time.Second):
		require.Fail(t, "the program does not end")
		return nil
	}
}

func TestLiveProgramOpensAndQuits(t *testing.T) {
	in, out, ended := runProgram(t, cluster(t, liveFleet()))
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "gpu-h100-01") }, 20*time.Second, 5*time.Millisecond)
	assert.Contains(t, out.String(), "\x1b[?1049h", "the live view has a screen of its own")
	_, err := in.Write([]byte("q"))
	require.NoError(t, err)
	require.NoError(t, ends(t, ended))
	assert.Contains(t, out.String(), "\x1b[?1049l", "the screen is as it was")
}

func TestLiveProgramGivesUpWithoutACluster(t *testing.T) {
	_, out, ended := runProgram(t, interceptor.NewClient(cluster(t, nil).(client.WithWatch), interceptor.Funcs{
		List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
			return errors.New("connection refused")
		},
	}))
	require.EqualError(t, ends(t, ended), "list nodes: connection refused")
	assert.Equal(t, strings.Count(out.String(), "\x1b[?1049h"), strings.Count(out.String(), "\x1b[?1049l"))
}

func TestWatchWithoutATerminal(t *testing.T) {
	got := invoke(t, nil, "top", "--watch")
	assert.Equal(t, result{exitUsage, "", "error: --watch needs a terminal: leave it out to print the table once\n" +
		"See 'kubectl gpupack top --help'.\n"}, got)
	got = invoke(t, nil, "top", "--watch", "-o", "json")
	assert.Equal(t, exitUsage, got.code)
	assert.Contains(t, got.err, "--watch shows a live view, which has no -o")
	got = invoke(t, cluster(t, fleet()), "top", "--watch=false", "--no-headers")
	assert.Equal(t, exitOK, got.code, got.err)
	assert.Contains(t, got.out, "gpu-t4-01")
}

// What the reference shows of the live view must be what it draws.
func TestLiveReferenceIsTrue(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "docs", "kubectl.md"))
	require.NoError(t, err)
	for _, name := range []string{"filter", "gangs", "help"} {
		want, err := os.ReadFile(filepath.Join("testdata", "top-live-"+name+"-100.golden"))
		require.NoError(t, err)
		assert.Contains(t, string(doc), string(want), "docs/kubectl.md does not show testdata/top-live-%s-100.golden", name)
	}
}
