// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package artifact

import (
	"context"
	"math/rand"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gpupack/gpupack/kubectl-plugin/trace"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
)

func slice(t *testing.T) sim.Input {
	t.Helper()
	nodes, err := trace.ReadNodes("../../fixtures/openb/nodes.csv")
	require.NoError(t, err)
	tasks, err := trace.ReadTasks("../../fixtures/openb/tasks.csv")
	require.NoError(t, err)
	return trace.Input(nodes, tasks)
}

// The simulator, which goes by states of nodes, places each task on the node, and leaves as much on each of its GPUs, as
// looking at every node does.
func TestSimulatorPlacesAsTheArtifact(t *testing.T) {
	in := slice(t)
	for _, name := range Policies() {
		if name == "random" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(5) {
				r, err := sim.Run(context.Background(), in, sim.Options{Policy: name, Seed: seed, Load: 1.3, TiesByName: true, Detail: true})
				require.NoError(t, err)
				require.Positive(t, r.Unscheduled)
				c, err := New(&in, name, nil)
				require.NoError(t, err)
				c.Tight()
				for i, want := range r.Detail.Placements {
					node := ""
					at, gpus := c.Place(&in.Tasks[want.Task].Request)
					if at >= 0 {
						node = in.Nodes[at].Name
					}
					require.Equal(t, want.Node, node, "seed %d, arrival %d", seed, i)
					require.Len(t, gpus, len(want.GPUs))
				}
			}
		})
	}
}

func TestReplay(t *testing.T) {
	in := slice(t)
	for _, name := range Policies() {
		a95, a100, final, err := Replay(in, name, 42)
		require.NoError(t, err)
		assert.Greater(t, a95, 80.0, name)
		assert.GreaterOrEqual(t, a100, a95, name)
		assert.GreaterOrEqual(t, final, a100, name)
		assert.LessOrEqual(t, final, 100.0, name)
		again := [3]float64{}
		again[0], again[1], again[2], err = Replay(in, name, 42)
		require.NoError(t, err)
		assert.Equal(t, [3]float64{a95, a100, final}, again, name)
	}
	_, _, _, err := Replay(in, "x", 42)
	assert.EqualError(t, err, `the artifact has no policy "x": use one of random, dot-product, gpu-clustering, gpu-packing, best-fit, fgd`)
}

// Remembering changes nothing.
func TestRemember(t *testing.T) {
	in := slice(t)
	plain, err := New(&in, "fgd", rand.New(rand.NewSource(1)))
	require.NoError(t, err)
	other, err := New(&in, "fgd", rand.New(rand.NewSource(1)))
	require.NoError(t, err)
	other.Remember()
	for i := range in.Tasks {
		at, gpus := plain.Place(&in.Tasks[i].Request)
		at2, gpus2 := other.Place(&in.Tasks[i].Request)
		require.Equal(t, at, at2)
		require.Equal(t, gpus, gpus2)
	}
	assert.NotEmpty(t, other.fragments)
}

// On one GPU of which 400 are left, beside one that is whole: of 100 tasks, 60 want 500 of a GPU, 36 want two GPUs, and
// 4, which do not count, want none.
func TestFragment(t *testing.T) {
	var tasks []sim.Task
	for i := range 100 {
		r := pack.Request{CPUMilli: 1000}
		switch {
		case i < 60:
			r.Milli = 500
		case i < 96:
			r.GPUs = 2
		}
		tasks = append(tasks, sim.Task{Request: r})
	}
	c, err := New(&sim.Input{Tasks: tasks}, "fgd", nil)
	require.NoError(t, err)
	assert.InDelta(t, (60*400+36*1400)/96.0, c.fragment(1000, []int64{400, 1000}, "T4"), 1e-9)
	assert.InDelta(t, 1400, c.fragment(999, []int64{400, 1000}, "T4"), 1e-9)
}

func TestPublished(t *testing.T) {
	_, _, final, ok := Published("default", "gpu-packing")
	assert.True(t, ok)
	assert.InDelta(t, 92.0, final, 0.005)
	a95, a100, final, ok := Published("gpuspec33", "fgd")
	assert.True(t, ok)
	assert.InDelta(t, 84.25, a95, 0.005)
	assert.InDelta(t, 87.84, a100, 0.005)
	assert.InDelta(t, 94.55, final, 0.005)
	_, _, _, ok = Published("default", "gpupack")
	assert.False(t, ok)
	for line := range strings.Lines(published) {
		cells := strings.Split(line, ",")
		if cells[0] != "trace" {
			_, _, _, ok := Published(cells[0], cells[1])
			assert.True(t, ok, line)
		}
	}
}
