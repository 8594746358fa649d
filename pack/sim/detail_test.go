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

func TestDetailByHand(t *testing.T) {
	in := Input{
		Nodes: []Node{{Name: "b", CPUMilli: 8000, MemoryMiB: 1024, GPUs: 2, Model: "T4"}, {Name: "a", CPUMilli: 500, MemoryMiB: 64}},
		Tasks: []Task{{Name: "one", Request: pack.Request{CPUMilli: 1000, MemoryMiB: 100, Milli: 600}}},
	}
	var progress [][2]int
	r, err := Run(context.Background(), in, Options{
		Policy: "best-fit", Seed: 1, Load: 0.9, Detail: true,
		Progress: func(done, total int) { progress = append(progress, [2]int{done, total}) },
	})
	require.NoError(t, err)
	assert.Equal(t, [][2]int{{0, 3}, {3, 3}}, progress)
	assert.Equal(t, &Detail{
		Curve:      []Point{{30, 30}, {60, 60}, {90, 60}},
		Placements: []Placement{{0, "b", []int{0}}, {0, "b", []int{1}}, {Task: 0}},
		Before: []NodeUse{
			{Name: "a", CPUMilli: 500, FreeCPUMilli: 500, MemoryMiB: 64, FreeMemoryMiB: 64, Milli: []int{}},
			{Name: "b", Model: "T4", CPUMilli: 8000, FreeCPUMilli: 8000, MemoryMiB: 1024, FreeMemoryMiB: 1024, Milli: []int{1000, 1000}},
		},
		After: []NodeUse{
			{Name: "a", CPUMilli: 500, FreeCPUMilli: 500, MemoryMiB: 64, FreeMemoryMiB: 64, Milli: []int{}},
			{Name: "b", Model: "T4", CPUMilli: 8000, FreeCPUMilli: 6000, MemoryMiB: 1024, FreeMemoryMiB: 824, Milli: []int{400, 400}},
		},
		Unplaced: []Unplaced{{Request: in.Tasks[0].Request, Count: 1, Reasons: map[string]int{
			pack.ReasonTooFewGPUs.Message(): 1, pack.ReasonCompute.Message(): 1,
		}}},
	}, r.Detail)
}

func TestObstacle(t *testing.T) {
	s := pack.Shape{Model: "T4", CPUMilli: 1000, MemoryMiB: 1024, Len: 2, Milli: [pack.MaxGPUs]int16{1000, 300}}
	for want, r := range map[pack.Reason]pack.Request{
		pack.ReasonFits:       {CPUMilli: 1000, MemoryMiB: 1024, GPUs: 1},
		pack.ReasonTooFewGPUs: {GPUs: 3, Models: []string{"A100"}},
		pack.ReasonModel:      {Milli: 100, Models: []string{"A100"}, CPUMilli: 2000},
		pack.ReasonOccupied:   {GPUs: 2, CPUMilli: 2000},
		pack.ReasonCPU:        {Milli: 400, CPUMilli: 1001, MemoryMiB: 1025},
		pack.ReasonHostMemory: {MemoryMiB: 1025},
	} {
		assert.Equal(t, want, obstacle(&s, &r))
	}
	s.Milli[0] = 400
	assert.Equal(t, pack.ReasonCompute, obstacle(&s, &pack.Request{Milli: 401, CPUMilli: 2000}))
}

// Of equal GPUs, the first; and what is given back is as it was.
func TestLedger(t *testing.T) {
	l := newLedger([]Node{{Name: "a", CPUMilli: 8000, MemoryMiB: 1024, GPUs: 5}})
	for _, share := range []struct {
		free  int16
		milli int64
		want  int
	}{{1000, 300, 0}, {1000, 600, 1}, {700, 100, 0}, {400, 50, 1}, {1000, 650, 2}, {350, 350, 1}, {350, 1, 2}} {
		r := pack.Request{CPUMilli: 10, MemoryMiB: 1, Milli: share.milli}
		assert.Equal(t, []int{share.want}, l.take(spot{free: share.free}, &r))
	}
	r := pack.Request{CPUMilli: 1000, MemoryMiB: 100, GPUs: 2}
	before := l.use()
	assert.Equal(t, []int{3, 4}, l.take(spot{free: 1000}, &r))
	assert.Equal(t, []int{600, 0, 349, 0, 0}, l.nodes[0].Milli)
	assert.Equal(t, pack.Shape{CPUMilli: 6930, MemoryMiB: 917, Len: 5, Milli: [pack.MaxGPUs]int16{600, 349}}, l.shape(0))
	l.give(0, &r, []int{3, 4})
	assert.Equal(t, before, l.use())
	assert.Empty(t, l.take(spot{}, &pack.Request{CPUMilli: 1}))
}

// drawInput is a small cluster with few resources to spare, its nodes in any order, and tasks of all kinds.
func drawInput(t *rapid.T) Input {
	var in Input
	for i := range rapid.IntRange(1, 8).Draw(t, "nodes") {
		in.Nodes = append(in.Nodes, Node{
			Name: fmt.Sprintf("node-%d", i), CPUMilli: rapid.Int64Range(1, 20).Draw(t, "cpu") * 1000, MemoryMiB: rapid.Int64Range(1, 20).Draw(t, "memory") << 10,
			GPUs: rapid.IntRange(0, 4).Draw(t, "gpus"), Model: rapid.SampledFrom([]string{"A100", "T4"}).Draw(t, "model"),
		})
	}
	in.Nodes = append(in.Nodes, Node{Name: "node-8", CPUMilli: 16_000, MemoryMiB: 16 << 10, GPUs: 2, Model: "T4"})
	in.Nodes = rapid.Permutation(in.Nodes).Draw(t, "order")
	for i := range rapid.IntRange(1, 12).Draw(t, "tasks") {
		r := pack.Request{CPUMilli: rapid.Int64Range(0, 6).Draw(t, "cpuAsked") * 1000, MemoryMiB: rapid.Int64Range(0, 6).Draw(t, "memoryAsked") << 10}
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			r.GPUs = rapid.IntRange(1, 4).Draw(t, "whole")
		case 1, 2:
			r.Milli = rapid.Int64Range(1, 1000).Draw(t, "share")
		}
		if rapid.IntRange(0, 4).Draw(t, "picky") == 0 {
			r.Models = []string{"A100"}
		}
		in.Tasks = append(in.Tasks, Task{
			Name: fmt.Sprintf("task-%d", i), Request: r,
			Arrival: rapid.Int64Range(0, 1000).Draw(t, "arrival"), Duration: rapid.Int64Range(1, 1000).Draw(t, "duration"),
		})
	}
	in.Tasks = append(in.Tasks, Task{Name: "last", Request: pack.Request{CPUMilli: 500, GPUs: 1}, Arrival: 100, Duration: 50})
	return in
}

// gpuMiB is the memory of a GPU in these tests: large, and such that a milli-GPU is a whole number of MiB.
const gpuMiB = 40_000

// packNodes are the nodes as the scheduler sees them, by name.
func packNodes(in *Input) []*pack.Node {
	var out []*pack.Node
	for _, n := range ranked(in.Nodes, true, 0) {
		p := &pack.Node{Name: n.Name, CPUMilli: n.CPUMilli, MemoryMiB: n.MemoryMiB, Total: pack.Total{CPUMilli: n.CPUMilli, MemoryMiB: n.MemoryMiB, GPUs: n.GPUs}}
		for g := range n.GPUs {
			p.GPUs = append(p.GPUs, pack.GPU{UUID: fmt.Sprint(g), Index: g, Model: n.Model, TotalMiB: gpuMiB})
		}
		out = append(out, p)
	}
	return out
}

// Every placement is what a scheduler does that asks pack.Chooser about every node: the node of the best score, of equals
// the first by name, and there the same GPUs; where it finds none, neither does the simulator. So nothing is ever given
// twice, and the books are right.
func TestPlacementsAreTheChoosers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		name := rapid.SampledFrom(policy.Names()).Draw(t, "policy")
		o := Options{Policy: name, TiesByName: true, Seed: rapid.Uint64().Draw(t, "seed"), Load: rapid.Float64Range(0.1, 3).Draw(t, "load"), Detail: true}
		res, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		d := res.Detail
		require.Len(t, d.Placements, res.Tasks)

		kinds, requests := classify(in.Tasks)
		p, err := policy.Simulated(name, distribution(kinds, requests, DistributionTrace))
		require.NoError(t, err)
		if aware, ok := p.(policy.SupplyAware); ok {
			aware.SetSupply(supply(in.Nodes))
		}
		aware, _ := p.(policy.ClusterAware)
		var told policy.Told
		chooser := pack.Chooser{Policy: p}
		cluster := packNodes(&in)
		total := capacity(cluster)
		require.Equal(t, uses(&in, cluster), d.Before)
		unplaced := 0
		for i, placement := range d.Placements {
			r := &in.Tasks[placement.Task].Request
			if aware != nil {
				told.Tell(aware, capacity(cluster), total, chooser.Shapes(slices.Values(cluster)))
			}
			var best *pack.Node
			var choice pack.Choice
			for _, n := range cluster {
				if chooser.Limits.FitHost(n, r) != pack.ReasonFits {
					continue
				}
				if c, _ := chooser.Choose(n, r); best == nil || c.Score > choice.Score {
					best, choice = n, c
				}
			}
			if best == nil {
				unplaced++
				require.Equal(t, Placement{Task: placement.Task}, placement)
				continue
			}
			if name == "random" {
				at := slices.IndexFunc(cluster, func(n *pack.Node) bool { return n.Name == placement.Node })
				require.GreaterOrEqual(t, at, 0)
				best, choice.GPUs = cluster[at], placement.GPUs
				require.Equal(t, pack.ReasonFits, chooser.Limits.FitHost(best, r))
			}
			require.Equal(t, Placement{placement.Task, best.Name, choice.GPUs}, placement, "arrival %d of %+v", i, r)
			best.Place(r, fmt.Sprint(i), choice.GPUs)
			for g := range best.GPUs {
				require.GreaterOrEqual(t, best.GPUs[g].FreeMilli(), int64(0))
			}
		}
		require.Equal(t, res.Unscheduled, unplaced)
		require.Equal(t, uses(&in, cluster), d.After)

		count := 0
		for i := range d.Unplaced {
			u := &d.Unplaced[i]
			nodes := 0
			for reason, n := range u.Reasons {
				require.NotEqual(t, pack.ReasonFits.Message(), reason)
				nodes += n
			}
			require.Equal(t, len(in.Nodes), nodes)
			require.True(t, i == 0 || u.Count <= d.Unplaced[i-1].Count)
			count += u.Count
		}
		require.Equal(t, unplaced, count)

		require.LessOrEqual(t, len(d.Curve), mostPoints)
		require.True(t, slices.IsSortedFunc(d.Curve, func(a, b Point) int { return int(a.Arrived - b.Arrived) }))
		last := d.Curve[len(d.Curve)-1]
		require.InDelta(t, res.Final, last.Allocated, 0)

		o.Detail = false
		plain, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		res.Detail, res.Seconds, plain.Seconds = nil, 0, 0
		require.Equal(t, plain, res)
	})
}

// capacity is what is free on nodes with GPUs.
func capacity(cluster []*pack.Node) policy.Capacity {
	var free policy.Capacity
	for _, n := range cluster {
		s := n.Shape()
		free.Add(&s)
	}
	return free
}

// uses is NodeUse of each node.
func uses(in *Input, cluster []*pack.Node) []NodeUse {
	var out []NodeUse
	for i, n := range ranked(in.Nodes, true, 0) {
		p := cluster[i]
		u := NodeUse{
			Name: n.Name, Model: n.Model, CPUMilli: n.CPUMilli, FreeCPUMilli: p.CPUMilli,
			MemoryMiB: n.MemoryMiB, FreeMemoryMiB: p.MemoryMiB, Milli: make([]int, n.GPUs),
		}
		for g := range u.Milli {
			u.Milli[g] = int(p.GPUs[g].FreeMilli())
		}
		out = append(out, u)
	}
	return out
}
