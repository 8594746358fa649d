// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

func nodes(n int) []Node {
	out := make([]Node, n)
	for i := range out {
		out[i] = Node{Name: fmt.Sprintf("node-%03d", i), CPUMilli: 64_000, MemoryMiB: 1 << 18, GPUs: 2 << (i % 3), Model: []string{"A100", "T4"}[i%2]}
	}
	return out
}

func tasks() []Task {
	var out []Task
	for i := range 60 {
		r := pack.Request{CPUMilli: int64(1+i%7) * 1000, MemoryMiB: int64(1+i%5) << 10}
		switch i % 6 {
		case 0:
			r.GPUs = 1
		case 1:
			r.GPUs = 1 << (i % 4)
		case 2:
			r.Models, r.Milli = []string{"A100"}, 300
		case 3:
			r.Milli = 250
		case 4:
			r.Milli = 610
		}
		out = append(out, Task{Name: fmt.Sprint("task-", i), Request: r})
	}
	return out
}

func TestRunByHand(t *testing.T) {
	in := Input{
		Nodes: []Node{{Name: "a", CPUMilli: 8000, MemoryMiB: 1024, GPUs: 2, Model: "T4"}},
		Tasks: []Task{{Name: "one", Request: pack.Request{CPUMilli: 3000, GPUs: 1}}},
	}
	// Three tasks arrive: two get a GPU each, the third finds none.
	r, err := Run(context.Background(), in, Options{Policy: "best-fit", Seed: 1, Load: 1.5})
	require.NoError(t, err)
	r.Seconds = 0
	assert.Equal(t, Result{Seed: 1, A95: 100, A100: 100, Final: 100, Tasks: 3, Unscheduled: 1}, r)

	in.Nodes[0].CPUMilli = 5999
	r, err = Run(context.Background(), in, Options{Policy: "best-fit", Seed: 1, Load: 1.5})
	require.NoError(t, err)
	assert.InDelta(t, 50, r.Final, 0, "CPU for one task only")
	assert.Equal(t, 2, r.Unscheduled)
}

func TestRunRefuses(t *testing.T) {
	good := Input{Nodes: nodes(2), Tasks: tasks()}
	for name, tc := range map[string]struct {
		change func(*Input, *Options)
		want   string
	}{
		"no GPU":          {func(in *Input, _ *Options) { in.Nodes = []Node{{Name: "a"}} }, "the cluster has no GPUs: give at least one node with a GPU"},
		"no GPU task":     {func(in *Input, _ *Options) { in.Tasks = []Task{{Name: "a"}} }, "no task asks for a GPU: give at least one that does"},
		"share of memory": {func(in *Input, _ *Options) { in.Tasks = []Task{{Name: "a", Request: pack.Request{MiB: 5}}} }, `task "a" asks for a share of GPU memory: give its share of compute instead`},
		"too many GPUs":   {func(in *Input, _ *Options) { in.Nodes[0].GPUs = 33 }, `node "node-000": 33 GPUs, 64000 milli-CPU and 262144 MiB: at most 32 GPUs, and nothing below 0`},
		"load":            {func(_ *Input, o *Options) { o.Load = 0 }, "a load of 0 is not above 0 and at most 100"},
		"budget":          {func(_ *Input, o *Options) { o.DefragBudget = 1.5 }, "a defragmentation budget of 1.5 is not in 0 to 1"},
		"distribution":    {func(_ *Input, o *Options) { o.Distribution = "x" }, `unknown distribution "x": use trace or online`},
	} {
		t.Run(name, func(t *testing.T) {
			in, o := Input{Nodes: slices.Clone(good.Nodes), Tasks: good.Tasks}, Options{Policy: "fgd", Load: 1}
			tc.change(&in, &o)
			_, err := Run(context.Background(), in, o)
			assert.EqualError(t, err, tc.want)
		})
	}
	_, err := Run(context.Background(), good, Options{Policy: "x", Load: 1})
	assert.ErrorContains(t, err, `unknown packing policy "x"`)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = Run(ctx, good, Options{Policy: "fgd", Load: 1})
	assert.ErrorIs(t, err, context.Canceled)
}

// The result depends neither on the number of processors nor on the order of nodes in the input.
func TestDeterministic(t *testing.T) {
	for _, name := range policy.Names() {
		for _, distribution := range []string{DistributionTrace, DistributionOnline} {
			t.Run(name+"/"+distribution, func(t *testing.T) {
				o := Options{Policy: name, Seed: 7, Load: 1.3, Distribution: distribution}
				run := func(in Input) Result {
					r, err := Run(context.Background(), in, o)
					require.NoError(t, err)
					r.Seconds = 0
					return r
				}
				in := Input{Nodes: nodes(24), Tasks: tasks()}
				want := run(in)
				assert.Positive(t, want.Unscheduled)
				old := runtime.GOMAXPROCS(1)
				assert.Equal(t, want, run(in))
				runtime.GOMAXPROCS(old)
				slices.Reverse(in.Nodes)
				assert.Equal(t, want, run(in))
			})
		}
	}
}

// Of equal nodes, the first by name is taken or one that the seed decides on.
func TestTies(t *testing.T) {
	in := Input{Tasks: []Task{{Name: "one", Request: pack.Request{GPUs: 1}}}}
	for _, name := range []string{"d", "b", "a", "c"} {
		in.Nodes = append(in.Nodes, Node{Name: name, GPUs: 1, Model: "T4"})
	}
	first := func(seed uint64, byName bool) string {
		r, err := Run(context.Background(), in, Options{Policy: "fgd", Seed: seed, Load: 0.25, TiesByName: byName, Detail: true})
		require.NoError(t, err)
		require.Len(t, r.Detail.Placements, 1)
		return r.Detail.Placements[0].Node
	}
	chosen := map[string]bool{}
	for seed := range uint64(40) {
		assert.Equal(t, "a", first(seed, true))
		assert.Equal(t, first(seed, false), first(seed, false))
		chosen[first(seed, false)] = true
	}
	assert.Len(t, chosen, 4)
}

func TestArrivals(t *testing.T) {
	in := tasks()
	order := Arrivals(in, 60_000, 1.3, 3)
	var sum int64
	count := make([]int, len(in))
	for _, at := range order {
		sum += asked(&in[at].Request)
		count[at]++
	}
	assert.GreaterOrEqual(t, sum, int64(78_000))
	assert.Less(t, sum, int64(78_000+8*pack.WholeMilli))
	assert.Positive(t, slices.Min(count), "each task arrives at least once")
	assert.Equal(t, order, Arrivals(in, 60_000, 1.3, 3))
	assert.NotEqual(t, order, Arrivals(in, 60_000, 1.3, 4))

	sum = 0
	for _, at := range Arrivals(in, 10_000, 1, 3) {
		sum += asked(&in[at].Request)
	}
	assert.GreaterOrEqual(t, sum, int64(10_000), "and where all are too many, some stay away")
	assert.Less(t, sum, int64(10_000+8*pack.WholeMilli))
}

// The heaps choose what looking at every state chooses, and no node gives more than it has.
func TestPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom(policy.Names()).Draw(t, "policy")
		in := Input{Nodes: nodes(rapid.IntRange(1, 12).Draw(t, "nodes")), Tasks: tasks()}
		kinds, requests := classify(in.Tasks)
		d := distribution(kinds, requests, DistributionTrace)
		p, err := policy.Simulated(name, d)
		require.NoError(t, err)
		c := newCluster(in.Nodes, requests, p, d, 1)
		var asks int64
		for _, at := range rapid.SliceOfN(rapid.IntRange(0, len(in.Tasks)-1), 1, 120).Draw(t, "arrivals") {
			r := &in.Tasks[at].Request
			best, any := 0.0, false
			for id := range c.states {
				if len(c.nodes[id]) == 0 {
					continue
				}
				if o, ok := c.rate(r, int32(id)); ok && (!any || o.score > best) {
					best, any = o.score, true
				}
			}
			if !c.random && any {
				o, ok := c.best(kinds[at])
				require.True(t, ok)
				require.InDelta(t, best, o.score, 1e-9)
			}
			_, placed := c.place(kinds[at])
			require.Equal(t, any, placed)
			if placed {
				asks += asked(r)
			}
			if rapid.IntRange(0, 9).Draw(t, "sweep") == 0 {
				c.sweep()
				require.Len(t, c.states, c.live)
				require.Len(t, c.ids, c.live)
				for j := range c.classes {
					h := c.classes[j].heap
					for i := 1; i < len(h); i++ {
						require.False(t, better(h[i], h[(i-1)/2]), "a heap")
					}
				}
			}
			for rank, id := range c.of {
				require.Contains(t, c.nodes[id], int32(rank))
				require.Equal(t, id, c.ids[c.states[id]])
			}
			var free int64
			count, live := 0, 0
			for id := range c.states {
				s := &c.states[id].shape
				n := len(c.nodes[id])
				count += n
				free += int64(n) * s.Free()
				if n > 0 {
					live++
					require.GreaterOrEqual(t, s.CPUMilli, int64(0))
					require.GreaterOrEqual(t, s.MemoryMiB, int64(0))
					require.True(t, slices.IsSortedFunc(s.Milli[:s.Len], func(a, b int16) int { return int(b) - int(a) }))
					require.GreaterOrEqual(t, s.Milli[s.Len-1], int16(0))
				}
			}
			require.Equal(t, len(in.Nodes), count)
			require.Equal(t, c.live, live)
			require.Equal(t, c.milli-asks, free)
		}
	})
}

func TestRanks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h ranks
		in := map[int32]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			rank := rapid.Int32Range(0, 30).Draw(t, "rank")
			if in[rank] {
				h.remove(rank)
				delete(in, rank)
			} else {
				h.push(rank)
				in[rank] = true
			}
			require.Len(t, h, len(in))
			if len(h) > 0 {
				require.Equal(t, slices.Min(h), h[0])
			}
		}
	})
}
