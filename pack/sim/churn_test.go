// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

func TestChurnByHand(t *testing.T) {
	in := Input{
		Nodes: []Node{{Name: "a", CPUMilli: 8000, MemoryMiB: 1024, GPUs: 2, Model: "T4"}},
		Tasks: []Task{{Name: "one", Request: pack.Request{CPUMilli: 3000, GPUs: 1}, Arrival: 7, Duration: 3600}},
	}
	t.Run("one follows the other on one of two GPUs", func(t *testing.T) {
		r, err := Churn(context.Background(), in, ChurnOptions{Policy: "best-fit", Seed: 3, Load: 0.5, Passes: 10})
		require.NoError(t, err)
		assert.Positive(t, r.Seconds)
		assert.InDelta(t, 8, r.Hours, 1e-9, "ten passes less the first fifth")
		assert.InDelta(t, 50, r.Offered, 1e-9)
		assert.InDelta(t, 50, r.Allocated, 1e-9)
		assert.InDelta(t, 0, r.Fragmented, 1e-9, "such a task can use the other GPU")
		assert.Equal(t, Delays{Tasks: 8}, r.All)
		assert.Equal(t, Delays{Tasks: 8}, r.Large, "there are no larger ones")
	})
	t.Run("the same without CPU for a second one", func(t *testing.T) {
		in := Input{Nodes: slices.Clone(in.Nodes), Tasks: in.Tasks}
		in.Nodes[0].CPUMilli = 5000
		r, err := Churn(context.Background(), in, ChurnOptions{Policy: "best-fit", Seed: 3, Load: 0.5, Passes: 10})
		require.NoError(t, err)
		assert.InDelta(t, 50, r.Fragmented, 1e-9)
		assert.InDelta(t, 100, r.Fragmentation, 1e-9)
	})
	t.Run("a third more than there is", func(t *testing.T) {
		// Four copies on three GPUs' worth of arrivals: each comes every 80 minutes, shifted by 20, and stays for 60.
		in := Input{Nodes: []Node{{Name: "a", CPUMilli: 8000, GPUs: 1, Model: "T4"}, {Name: "b", CPUMilli: 8000, GPUs: 2, Model: "T4"}}, Tasks: in.Tasks}
		r, err := Churn(context.Background(), in, ChurnOptions{Policy: "best-fit", Seed: 3, Load: 4. / 3, TimeScale: 1, Passes: 30})
		require.NoError(t, err)
		assert.InDelta(t, 100, r.Allocated, 1e-9)
		assert.InDelta(t, 0, r.Fragmentation, 0, "nothing is free")
		assert.InDelta(t, 400./3, r.Offered, 5)
		assert.Positive(t, r.All.Waiting)
		assert.Greater(t, r.All.P99, r.All.P50)
		assert.GreaterOrEqual(t, r.All.Max, r.All.P99)
	})
}

func TestChurnRefuses(t *testing.T) {
	good := Input{Nodes: nodes(2), Tasks: tasks()}
	for i := range good.Tasks {
		good.Tasks[i].Arrival, good.Tasks[i].Duration = int64(i)*1000, 1
	}
	for name, tc := range map[string]struct {
		change func(*Input, *ChurnOptions)
		want   string
	}{
		"no duration": {func(in *Input, _ *ChurnOptions) { in.Tasks[3].Duration = 0 }, `task "task-3" does not say when it comes and how long it runs, which a replay with departures must know of every task`},
		"no GPU":      {func(in *Input, _ *ChurnOptions) { in.Nodes = nil }, "the cluster has no GPUs: give at least one node with a GPU"},
		"load":        {func(_ *Input, o *ChurnOptions) { o.Load = math.NaN() }, "a load of NaN is not above 0 and at most 100"},
		"time scale":  {func(_ *Input, o *ChurnOptions) { o.TimeScale = -1 }, "a time scale of -1 is not above 0 and at most 1000"},
		"reserve":     {func(_ *Input, o *ChurnOptions) { o.ReserveAfter = -1 }, "keeping places after -1 seconds: give 0 or more"},
		"passes":      {func(_ *Input, o *ChurnOptions) { o.Passes = 1001 }, "a number of 1001 passes is not above 0 and at most 1000"},
		"arrivals": {func(in *Input, o *ChurnOptions) { in.Tasks, o.Passes = slices.Repeat(in.Tasks, 200), 1000 },
			"1000 passes of 12000 tasks are more than 1e+07 arrivals: give fewer passes"},
		"distribution": {func(_ *Input, o *ChurnOptions) { o.Distribution = "x" }, `unknown distribution "x": use trace or online`},
		"policy":       {func(_ *Input, o *ChurnOptions) { o.Policy = "x" }, `unknown packing policy "x"`},
		"too many":     {func(in *Input, o *ChurnOptions) { in.Tasks[0].Arrival, o.Load = 1<<40, 1 }, "copies of the trace: give a time scale below 1"},
	} {
		t.Run(name, func(t *testing.T) {
			in, o := Input{Nodes: good.Nodes, Tasks: slices.Clone(good.Tasks)}, ChurnOptions{Policy: "fgd", Load: 1}
			tc.change(&in, &o)
			_, err := Churn(context.Background(), in, o)
			assert.ErrorContains(t, err, tc.want)
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Churn(ctx, good, ChurnOptions{Policy: "fgd", Load: 1})
	assert.ErrorIs(t, err, context.Canceled)
}

// The result depends neither on the number of processors nor on the order of nodes in the input.
func TestChurnDeterministic(t *testing.T) {
	in := Input{Nodes: nodes(12), Tasks: tasks()}
	for i := range in.Tasks {
		in.Tasks[i].Arrival, in.Tasks[i].Duration = int64(i)*97, int64(1+i%9)*401
	}
	for _, name := range policy.Names() {
		for _, distribution := range []string{DistributionTrace, DistributionOnline} {
			t.Run(name+"/"+distribution, func(t *testing.T) {
				o := ChurnOptions{Policy: name, Seed: 7, Load: 1.1, Passes: 5, Distribution: distribution, ReserveAfter: 500}
				var progress []int
				o.Progress = func(done, total int) { progress = append(progress, done, total) }
				run := func(nodes []Node) ChurnResult {
					r, err := Churn(context.Background(), Input{Nodes: nodes, Tasks: in.Tasks}, o)
					require.NoError(t, err)
					r.Seconds = 0
					return r
				}
				want := run(in.Nodes)
				assert.Equal(t, progress[len(progress)-1], progress[len(progress)-2])
				assert.Positive(t, want.All.P99)
				assert.InDelta(t, 110, want.Offered, 10)
				old := runtime.GOMAXPROCS(1)
				assert.Equal(t, want, run(in.Nodes))
				runtime.GOMAXPROCS(old)
				reversed := slices.Clone(in.Nodes)
				slices.Reverse(reversed)
				assert.Equal(t, want, run(reversed))
				o.Seed++
				assert.NotEqual(t, want, run(in.Nodes))
			})
		}
	}
}

// At any moment, the cluster's states, the books and a naive sum over the tasks that run agree, nothing is given twice,
// nobody waits for what is free, and once all have left the cluster is as it was before.
func TestChurnConserves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		in.Nodes = ranked(in.Nodes, true, 0)
		o := ChurnOptions{
			Policy: rapid.SampledFrom(policy.Names()).Draw(t, "policy"), Seed: rapid.Uint64().Draw(t, "seed"),
			Load: rapid.Float64Range(0.1, 1.5).Draw(t, "load"), TimeScale: rapid.Float64Range(0.3, 3).Draw(t, "scale"), Passes: 3,
			ReserveAfter: rapid.SampledFrom([]float64{0, 1, 100, 1e9}).Draw(t, "reserve"),
		}
		require.NoError(t, validateChurn(&in, &o))
		c, err := newChurn(&in, &o)
		require.NoError(t, err)
		empty := c.books.use()
		require.True(t, slices.IsSortedFunc(c.visits, func(a, b visit) int { return int(math.Copysign(1, a.arrival-b.arrival)) }))
		now := c.now
		for c.step(math.Inf(1)) {
			require.GreaterOrEqual(t, c.now, now)
			now = c.now
			check(t, c, &in, empty)
			if rapid.IntRange(0, 19).Draw(t, "sweep") == 0 {
				c.cluster.sweep()
			}
		}
		require.Equal(t, empty, c.books.use(), "the cluster is empty again")
		require.Zero(t, c.allocated)
		require.Empty(t, c.claims.list)
		require.Equal(t, c.cluster.milli, c.cluster.free.GPUMilli)
		for rank := range in.Nodes {
			require.Zero(t, c.cluster.states[c.cluster.of[rank]].kinds)
		}
		for i := range c.visits {
			v := &c.visits[i]
			possible := slices.ContainsFunc(packNodes(&in), func(n *pack.Node) bool {
				return new(pack.Limits).FitHost(n, &in.Tasks[v.task].Request) == pack.ReasonFits
			})
			require.Equal(t, possible, v.started >= max(0, v.arrival), "each that fits on an empty node had its turn")
		}
	})
}

func check(t *rapid.T, c *churn, in *Input, empty []NodeUse) {
	want := slices.Clone(empty)
	for i := range want {
		want[i].Milli = slices.Clone(want[i].Milli)
	}
	kinds := make([]pack.Kinds, len(want))
	var allocated int64
	for i := range c.visits[:c.next] {
		v := &c.visits[i]
		if v.started < 0 || !slices.ContainsFunc(c.departures, func(d departure) bool { return d.visit == int32(i) }) {
			continue
		}
		r := &in.Tasks[v.task].Request
		n := &want[v.rank]
		n.FreeCPUMilli -= r.CPUMilli
		n.FreeMemoryMiB -= r.MemoryMiB
		require.Len(t, v.gpus, r.Count())
		for _, g := range v.gpus {
			n.Milli[g] -= int(asked(r)) / r.Count()
			require.GreaterOrEqual(t, n.Milli[g], 0)
		}
		require.GreaterOrEqual(t, n.FreeCPUMilli, int64(0))
		require.GreaterOrEqual(t, n.FreeMemoryMiB, int64(0))
		require.True(t, r.Accepts(n.Model) || !r.WantsGPU())
		kinds[v.rank] |= pack.KindOf(r)
		allocated += asked(r)
	}
	require.Equal(t, want, c.books.use())
	require.Equal(t, allocated, c.allocated)
	closed := checkClaims(t, c)
	require.Equal(t, c.cluster.milli-allocated-closed, c.cluster.free.GPUMilli)
	var fragmented float64
	for rank := range want {
		s := c.cluster.states[c.cluster.of[rank]]
		require.Equal(t, c.shape(int32(rank)), s.shape)
		if c.cluster.byKind {
			require.Equal(t, kinds[rank], s.kinds)
		}
		free := c.books.shape(int32(rank))
		fragmented += c.fragment.Score(&pack.Candidate{Before: &free, After: &pack.Shape{}})
		for class, ids := range c.waiting {
			require.False(t, len(ids) > 0 && s.shape.Fits(&c.requests[class]), "a task waits that would fit")
		}
	}
	require.InDelta(t, fragmented, c.fragmented, 1e-6)
	require.LessOrEqual(t, c.fragmented, float64(c.cluster.milli-allocated)+1e-6)
}

// checkClaims sees to it that each claim comes true once those leave that it waits for, whatever others have been given, and returns
// what is closed of the free GPUs.
func checkClaims(t *rapid.T, c *churn) int64 {
	cs := &c.claims
	claimed, gpus, owed := make([]int, len(cs.claimed)), 0, 0
	var closed int64
	for _, cl := range cs.list {
		r := &c.requests[cl.class]
		claimed[cl.class]++
		gpus += cs.size(r)
		require.Same(t, cl, cs.at[cl.rank], "one claim a node")
		require.Len(t, cl.gpus, r.Count())
		n := &c.books.nodes[cl.rank]
		require.True(t, !r.WantsGPU() || r.Accepts(n.Model))
		then := roomOf(n)
		for _, id := range cl.leaving {
			require.Contains(t, c.on[cl.rank], id)
			then.add(c, id, 1)
		}
		require.GreaterOrEqual(t, then.cpu, r.CPUMilli)
		require.GreaterOrEqual(t, then.memory, r.MemoryMiB)
		for _, g := range cl.gpus {
			require.GreaterOrEqual(t, then.milli[g], r.MilliOn(0))
			closed += int64(n.Milli[g])
		}
		require.False(t, c.ready(cl) && len(cl.leaving) == 0, "what is free is not kept")
	}
	require.Equal(t, claimed, cs.claimed)
	require.Equal(t, gpus, cs.gpus)
	require.True(t, len(cs.list) < 2 || gpus <= cs.most)
	for class, n := range cs.overdue {
		require.LessOrEqual(t, cs.claimed[class], n)
		overdue := 0
		for _, id := range c.waiting[class] {
			if int(id) < cs.next {
				overdue++
			}
		}
		require.Equal(t, overdue, n)
		owed += n - cs.claimed[class]
	}
	require.Equal(t, owed, cs.owed)
	return closed
}

// Tasks of one class start in the order in which they came.
func TestChurnFirstComeFirstServed(t *testing.T) {
	in := Input{Nodes: nodes(3), Tasks: tasks()}
	for i := range in.Tasks {
		in.Tasks[i].Arrival, in.Tasks[i].Duration = int64(i)*97, int64(1+i%9)*401
	}
	c, err := newChurn(&in, &ChurnOptions{Policy: "fgd", Seed: 1, Load: 1.2, TimeScale: 1, Passes: 5})
	require.NoError(t, err)
	for c.step(math.Inf(1)) {
	}
	last := make([]float64, len(c.requests))
	waited := 0
	for i := range c.visits {
		v := &c.visits[i]
		class := c.kinds[v.task]
		require.GreaterOrEqual(t, v.started, last[class])
		last[class] = v.started
		if v.started > max(0, v.arrival) {
			waited++
		}
	}
	assert.Positive(t, waited)
}

// What leaves goes to the first who came, of whatever class, and to a later one that fits where the first does not.
func TestChurnQueue(t *testing.T) {
	// The order of tasks is that in which classes are numbered, which must not matter.
	for _, order := range [][]int32{{0, 1, 2}, {1, 0, 2}, {2, 1, 0}} {
		tasks := make([]Task, 3)
		for i, r := range []pack.Request{{CPUMilli: 1000, GPUs: 1}, {CPUMilli: 2000, GPUs: 1}, {CPUMilli: 1000, GPUs: 2}} {
			tasks[order[i]] = Task{Request: r, Duration: 10}
		}
		in := Input{Nodes: []Node{{Name: "a", CPUMilli: 8000, GPUs: 2, Model: "T4"}}, Tasks: tasks}
		c, err := newChurn(&in, &ChurnOptions{Policy: "best-fit", Load: 1, TimeScale: 1, Passes: 1})
		require.NoError(t, err)
		c.visits = nil
		visit := func(task int, arrival, remaining float64) {
			c.visits = append(c.visits, visit{task: order[task], arrival: arrival, remaining: remaining, started: -1})
		}
		visit(0, -5, 10)
		visit(0, 0, 31)
		visit(2, 1, 5) // both GPUs
		visit(1, 2, 20)
		visit(0, 3, 5)
		visit(0, 25, 1)
		for c.step(math.Inf(1)) {
		}
		var started []float64
		for i := range c.visits {
			started = append(started, c.visits[i].started)
		}
		assert.Equal(t, []float64{0, 0, 35, 10, 30, 31}, started)
	}
}

// A task that has waited for long gets the node that empties soonest, and what would delay it stays out.
func TestChurnKeepsAPlace(t *testing.T) {
	share := pack.Request{CPUMilli: 1000, GPUs: 1}
	in := Input{
		Nodes: []Node{{Name: "a", CPUMilli: 8000, GPUs: 2, Model: "T4"}, {Name: "b", CPUMilli: 8000, GPUs: 2, Model: "T4"}},
		Tasks: []Task{{Request: share, Duration: 10}, {Request: pack.Request{CPUMilli: 1000, GPUs: 2}, Duration: 10}},
	}
	started := func(after float64) []float64 {
		c, err := newChurn(&in, &ChurnOptions{Policy: "best-fit", Load: 1, TimeScale: 1, Passes: 1, ReserveAfter: after})
		require.NoError(t, err)
		c.visits = nil
		visit := func(task int32, arrival, remaining float64) {
			c.visits = append(c.visits, visit{task: task, arrival: arrival, remaining: remaining, started: -1})
		}
		// One node is held for long, the other by two that leave one after the other.
		visit(0, -500, 1000)
		visit(0, -500, 1000)
		visit(0, 0, 100)
		visit(0, 0, 200)
		visit(1, 1, 10)
		for at := range 9 {
			visit(0, 50+float64(at)*50, 120)
		}
		for c.step(math.Inf(1)) {
		}
		var out []float64
		for i := range c.visits {
			out = append(out, c.visits[i].started)
		}
		return out
	}
	kept, open := started(60), started(0)
	assert.Equal(t, 200.0, kept[4], "when both have left")
	assert.Equal(t, 210.0, kept[5], "what came before it was late enough waits for it")
	assert.Greater(t, open[4], 400.0, "small ones follow upon each other")
	assert.Equal(t, 100.0, open[5])
}

func TestLargeMilli(t *testing.T) {
	task := func(gpus int, milli int64) Task { return Task{Request: pack.Request{GPUs: gpus, Milli: milli}} }
	assert.Equal(t, int64(4000), largeMilli([]Task{task(8, 0), task(1, 0), task(0, 500)}))
	assert.Equal(t, int64(3000), largeMilli([]Task{task(0, 0), task(3, 0), task(0, 500), task(0, 0)}))
	many := []Task{task(2, 0)}
	for range 19 {
		many = append(many, task(0, 100))
	}
	assert.Equal(t, int64(2000), largeMilli(many))
}

func TestDelays(t *testing.T) {
	var d Delays
	d.fill(nil)
	assert.Equal(t, Delays{}, d)
	delays := make([]float64, 200)
	for i := range delays {
		delays[i] = float64(200 - i)
	}
	d.fill(delays)
	assert.Equal(t, Delays{Tasks: 200, P50: 100, P99: 198, Max: 200}, d)
	d.fill([]float64{3})
	assert.Equal(t, Delays{Tasks: 1, P50: 3, P99: 3, Max: 3}, d)
}
