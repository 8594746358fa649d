// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// Two shares on two GPUs leave no room for a whole one unless one of them moves.
func TestDefragByHand(t *testing.T) {
	in := Input{
		Nodes: []Node{{Name: "a", CPUMilli: 8000, MemoryMiB: 1024, GPUs: 1, Model: "T4"}, {Name: "b", CPUMilli: 8000, MemoryMiB: 1024, GPUs: 1, Model: "T4"}},
		Tasks: []Task{{Name: "small", Request: pack.Request{CPUMilli: 100, Milli: 300}}, {Name: "middle", Request: pack.Request{CPUMilli: 200, Milli: 500}}, {Name: "large", Request: pack.Request{GPUs: 1}}},
	}
	moved := 0
	for seed := range uint64(20) {
		o := Options{Policy: "least-allocated", Seed: seed, Load: 0.9, TiesByName: true, Detail: true, DefragBudget: 0.34}
		r, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		assert.Zero(t, r.Unscheduled)
		assert.InDelta(t, 90, r.Final, 1e-9)
		assert.Equal(t, r.Moved, len(r.Detail.Moves))
		o.DefragBudget = 0
		without, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		assert.Equal(t, r.Moved, without.Unscheduled, "what has no place without is what needs a move")
		if r.Moved == 0 {
			assert.Equal(t, without.Detail, r.Detail)
			continue
		}
		moved++
		p := r.Detail.Placements
		require.Equal(t, 2, p[2].Task)
		goes := slices.IndexFunc(p, func(first Placement) bool { return first.Node == p[2].Node })
		assert.Equal(t, []Move{{Arrival: goes, From: p[2].Node, To: p[1-goes].Node}}, r.Detail.Moves)
		free := func(uses []NodeUse) []int { return []int{uses[0].Milli[0], uses[1].Milli[0]} }
		assert.ElementsMatch(t, []int{700, 500}, free(r.Detail.Before))
		assert.ElementsMatch(t, []int{0, 200}, free(r.Detail.After))
	}
	assert.Positive(t, moved)

	r, err := Run(context.Background(), in, Options{Policy: "least-allocated", Load: 0.9, DefragBudget: 0.33})
	require.NoError(t, err)
	assert.Zero(t, r.Moved, "a third of three tasks is less than one")
}

func drawDefragOptions(t *rapid.T) Options {
	return Options{
		Policy: rapid.SampledFrom(policy.Names()).Draw(t, "policy"), Seed: rapid.Uint64().Draw(t, "seed"),
		Load:         rapid.Float64Range(0.5, 3).Draw(t, "load"),
		DefragBudget: rapid.SampledFrom([]float64{0.01, 0.1, 0.5, 1}).Draw(t, "budget"),
		Distribution: rapid.SampledFrom([]string{DistributionTrace, DistributionOnline}).Draw(t, "distribution"),
	}
}

// After each arrival, each task that ever had a place has one, no node has too much on it, no more have been moved than the
// budget allows, and books and states agree.
func TestDefragHolds(t *testing.T) {
	moved := 0
	rapid.Check(t, func(t *rapid.T) {
		in, o := drawInput(t), drawDefragOptions(t)
		in.Nodes = ranked(in.Nodes, true, 0)
		re, err := newReplay(&in, o.Policy, o.Distribution, o.Seed)
		require.NoError(t, err)
		books := newLedger(in.Nodes)
		d := newDefragger(re.cluster, books, o.DefragBudget)
		placed := map[int]int32{}
		for i, task := range Arrivals(in.Tasks, re.cluster.milli, o.Load, o.Seed) {
			class := re.kinds[task]
			r := &in.Tasks[task].Request
			re.dist.Observe(r)
			spot, ok := re.cluster.place(class)
			rank, gpus := spot.rank, []int(nil)
			if ok {
				gpus = books.take(spot, r)
				d.arrived(i, class, rank, gpus)
			} else {
				rank, gpus, ok = d.makeRoom(i, class)
			}
			if ok {
				placed[i] = class
				require.Len(t, gpus, r.Count())
				require.Contains(t, d.residents[rank], resident{i, fmt.Sprint(i), class, gpus})
			}
			require.LessOrEqual(t, float64(len(d.moves)), o.DefragBudget*float64(i+1))
			requireBooksRight(t, in.Nodes, d, placed)
		}
		for _, m := range d.moves {
			require.Contains(t, placed, m.Arrival)
			require.NotEqual(t, m.From, m.To)
		}
		moved += len(d.moves)
	})
	// The test would say nothing if nothing was moved.
	require.Positive(t, moved)
}

// requireBooksRight counts the books again from the tasks on the nodes, which must be those that were placed.
func requireBooksRight(t *rapid.T, nodes []Node, d *defragger, placed map[int]int32) {
	count := newLedger(nodes)
	found := map[int]int32{}
	for rank, here := range d.residents {
		n := &count.nodes[rank]
		for _, r := range here {
			require.NotContains(t, found, r.arrival)
			found[r.arrival] = r.class
			count.put(int32(rank), &d.cluster.classes[r.class].request, r.gpus)
		}
		require.GreaterOrEqual(t, n.FreeCPUMilli, int64(0))
		require.GreaterOrEqual(t, n.FreeMemoryMiB, int64(0))
		for _, milli := range n.Milli {
			require.GreaterOrEqual(t, milli, 0)
		}
		s := &d.cluster.states[d.cluster.of[rank]]
		require.Equal(t, d.books.shape(int32(rank)), s.shape)
		if d.cluster.byKind {
			var kinds pack.Kinds
			for _, r := range here {
				kinds |= pack.KindOf(&d.cluster.classes[r.class].request)
			}
			require.Equal(t, kinds, s.kinds)
		}
	}
	require.Equal(t, placed, found)
	require.Equal(t, count.use(), d.books.use())
}

// A replay with moves is the same again, with the nodes in any order, and whether details are wanted or not.
func TestDefragIsDeterministic(t *testing.T) {
	moved := 0
	rapid.Check(t, func(t *rapid.T) {
		in, o := drawInput(t), drawDefragOptions(t)
		o.TiesByName, o.Detail = rapid.Bool().Draw(t, "by name"), true
		res, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		in.Nodes = rapid.Permutation(in.Nodes).Draw(t, "other order")
		again, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		o.Detail = false
		plain, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		res.Seconds, again.Seconds, plain.Seconds = 0, 0, 0
		require.Equal(t, res, again)
		require.Len(t, res.Detail.Moves, res.Moved)
		moved += res.Moved
		res.Detail = nil
		require.Equal(t, res, plain)
	})
	// The test would say nothing if nothing was moved.
	require.Positive(t, moved)
}

// Whatever is moved, each task that had a place has one in the end, and no node has more on it than it can hold.
func TestDefragKeepsEveryPlacement(t *testing.T) {
	moved := 0
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		o := Options{
			Policy: rapid.SampledFrom([]string{"gpupack", "fgd", "best-fit", "least-allocated", "gpu-clustering", "random"}).Draw(t, "policy"),
			Seed:   rapid.Uint64().Draw(t, "seed"), Load: rapid.Float64Range(0.5, 3).Draw(t, "load"), Detail: true,
			DefragBudget: rapid.SampledFrom([]float64{0.05, 0.3, 1}).Draw(t, "budget"),
		}
		res, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		moved += res.Moved
		require.LessOrEqual(t, float64(res.Moved), o.DefragBudget*float64(res.Tasks))
		require.Len(t, res.Detail.Moves, res.Moved)

		at := map[int]string{}
		unplaced := 0
		for i, p := range res.Detail.Placements {
			if p.Node == "" {
				unplaced++
			} else {
				at[i] = p.Node
			}
		}
		require.Equal(t, res.Unscheduled, unplaced)
		for _, m := range res.Detail.Moves {
			require.Equal(t, m.From, at[m.Arrival], "a task leaves from where it is")
			at[m.Arrival] = m.To
		}
		used := map[string]*NodeUse{}
		for i := range res.Detail.After {
			used[res.Detail.After[i].Name] = &NodeUse{}
		}
		milli := map[string]int{}
		for i, node := range at {
			r := &in.Tasks[res.Detail.Placements[i].Task].Request
			used[node].CPUMilli += r.CPUMilli
			used[node].MemoryMiB += r.MemoryMiB
			milli[node] += int(asked(r))
		}
		for i := range res.Detail.After {
			n := &res.Detail.After[i]
			free := 0
			for _, m := range n.Milli {
				require.GreaterOrEqual(t, m, 0)
				free += m
			}
			require.GreaterOrEqual(t, n.FreeCPUMilli, int64(0))
			require.GreaterOrEqual(t, n.FreeMemoryMiB, int64(0))
			require.Equal(t, n.CPUMilli-used[n.Name].CPUMilli, n.FreeCPUMilli, n.Name)
			require.Equal(t, n.MemoryMiB-used[n.Name].MemoryMiB, n.FreeMemoryMiB, n.Name)
			require.Equal(t, len(n.Milli)*pack.WholeMilli-milli[n.Name], free, n.Name)
		}

		o.Detail = false
		again, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		again.Detail, again.Seconds, res.Detail, res.Seconds = nil, 0, nil, 0
		require.Equal(t, fmt.Sprintf("%+v", res), fmt.Sprintf("%+v", again), "deterministic, and detail changes nothing")
	})
	require.Positive(t, moved, "nothing was ever moved, so that nothing was checked")
}
