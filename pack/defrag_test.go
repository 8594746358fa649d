// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// resident is a pod on a node.
type resident struct {
	id, node string
	request  Request
	gpus     []int
}

// settled returns copies of the nodes with the residents on them.
func settled(nodes []*Node, residents []resident) []*Node {
	out := clones(nodes)
	for i := range residents {
		r := &residents[i]
		at := slices.IndexFunc(out, func(n *Node) bool { return n.Name == r.node })
		out[at].Place(&r.request, r.id, r.gpus)
	}
	return out
}

// movable are the residents of a node but for those that are pinned.
func movable(node string, residents []resident, pinned ...string) []Movable {
	var out []Movable
	for _, r := range residents {
		if r.node == node && !slices.Contains(pinned, r.id) {
			out = append(out, Movable{ID: r.id, Request: r.request})
		}
	}
	return out
}

func newTestDefrag(c *Chooser, nodes []*Node, residents []resident, pinned ...string) *Defrag {
	d := NewDefrag(c)
	for _, n := range nodes {
		d.Update(n, movable(n.Name, residents, pinned...))
	}
	return d
}

func TestDefragPlan(t *testing.T) {
	share := func(milli int64) Request { return Request{Milli: milli} }
	whole := func(n int) Request { return Request{GPUs: n} }
	for _, tt := range []struct {
		name      string
		nodes     []int
		change    func(nodes []*Node)
		residents []resident
		pinned    []string
		request   Request
		most      int
		least     float64
		// want are the moves as "pod from>to", sorted, and the node; nothing if there is no plan.
		want []string
		node string
	}{
		{
			name: "a share goes where a share is", nodes: []int{1, 1, 1},
			residents: []resident{{"a", "node-0", share(300), []int{0}}, {"b", "node-1", share(400), []int{0}}, {"c", "node-2", share(800), []int{0}}},
			request:   whole(1), most: 1, want: []string{"a node-0>node-1"}, node: "node-0",
		},
		{
			name: "the smallest that will do goes", nodes: []int{1, 1},
			residents: []resident{{"a", "node-0", share(300), []int{0}}, {"b", "node-0", share(400), []int{0}}, {"c", "node-1", share(600), []int{0}}},
			request:   share(550), most: 3, want: []string{"a node-0>node-1"}, node: "node-0",
		},
		{
			name: "a pinned pod stays", nodes: []int{1, 1},
			residents: []resident{{"a", "node-0", share(300), []int{0}}, {"b", "node-1", share(400), []int{0}}}, pinned: []string{"a"},
			request: whole(1), most: 1, want: []string{"b node-1>node-0"}, node: "node-1",
		},
		{
			name: "all are pinned", nodes: []int{1, 1},
			residents: []resident{{"a", "node-0", share(300), []int{0}}, {"b", "node-1", share(400), []int{0}}}, pinned: []string{"a", "b"},
			request: whole(1), most: 9,
		},
		{
			name: "no place for what would have to leave", nodes: []int{1, 1},
			residents: []resident{{"a", "node-0", share(600), []int{0}}, {"b", "node-1", share(600), []int{0}}},
			request:   whole(1), most: 9,
		},
		{
			name: "no move is allowed", nodes: []int{1, 1},
			residents: []resident{{"a", "node-0", share(300), []int{0}}, {"b", "node-1", share(400), []int{0}}},
			request:   whole(1), most: 0,
		},
		{
			name: "a move gains too little", nodes: []int{1, 1},
			residents: []resident{{"a", "node-0", share(300), []int{0}}, {"b", "node-1", share(400), []int{0}}},
			request:   whole(1), most: 1, least: 1001,
		},
		{
			name: "a move gains just enough", nodes: []int{1, 1},
			residents: []resident{{"a", "node-0", share(300), []int{0}}, {"b", "node-1", share(400), []int{0}}},
			request:   whole(1), most: 1, least: 1000, want: []string{"a node-0>node-1"}, node: "node-0",
		},
		{
			name: "only a node without telemetry has room", nodes: []int{1, 1},
			change:    func(nodes []*Node) { nodes[1].Problem = ReasonNoTelemetry },
			residents: []resident{{"a", "node-0", share(300), []int{0}}},
			request:   whole(1), most: 9,
		},
		{
			name: "no share goes where telemetry is stale", nodes: []int{1, 1, 1},
			change:    func(nodes []*Node) { nodes[1].Stale = true },
			residents: []resident{{"a", "node-0", share(300), []int{0}}, {"b", "node-1", share(100), []int{0}}, {"c", "node-2", share(800), []int{0}}},
			request:   whole(1), most: 1, want: []string{"b node-1>node-0"}, node: "node-1",
		},
		{
			name: "three leave a node", nodes: []int{4, 4},
			residents: []resident{
				{"a", "node-0", share(300), []int{0}}, {"b", "node-0", whole(1), []int{1}}, {"c", "node-0", share(300), []int{3}},
				{"d", "node-1", whole(2), []int{0, 1}}, {"e", "node-1", share(400), []int{2}},
			},
			request: whole(4), most: 3, want: []string{"a node-0>node-1", "b node-0>node-1", "c node-0>node-1"}, node: "node-0",
		},
		{
			name: "three would have to leave, two may", nodes: []int{4, 4},
			residents: []resident{
				{"a", "node-0", share(300), []int{0}}, {"b", "node-0", whole(1), []int{1}}, {"c", "node-0", share(300), []int{3}},
				{"d", "node-1", whole(2), []int{0, 1}}, {"e", "node-1", share(400), []int{2}}, {"f", "node-1", share(700), []int{3}},
			},
			request: whole(4), most: 2,
		},
		{
			name: "the GPUs with the fewest pods are cleared", nodes: []int{3, 4},
			residents: []resident{
				{"a", "node-0", share(100), []int{0}}, {"b", "node-0", share(100), []int{0}}, {"c", "node-0", share(500), []int{1}}, {"d", "node-0", share(500), []int{2}},
				{"e", "node-1", share(500), []int{0}}, {"f", "node-1", share(500), []int{1}}, {"g", "node-1", whole(2), []int{2, 3}},
			},
			pinned: []string{"e", "f", "g"}, request: whole(2), most: 9, want: []string{"c node-0>node-1", "d node-0>node-1"}, node: "node-0",
		},
		{
			name: "a pod without GPUs gives its CPU", nodes: []int{1, 1},
			change: func(nodes []*Node) { nodes[0].CPUMilli, nodes[1].CPUMilli = 8000, 8000 },
			residents: []resident{
				{"a", "node-0", Request{CPUMilli: 5000}, nil}, {"b", "node-1", Request{CPUMilli: 1000, GPUs: 1}, []int{0}},
			},
			request: Request{CPUMilli: 4000, GPUs: 1}, most: 1, want: []string{"a node-0>node-1"}, node: "node-0",
		},
		{
			name: "two change places", nodes: []int{1, 1},
			residents: []resident{
				{"a", "node-0", share(500), []int{0}}, {"b", "node-0", share(300), []int{0}},
				{"c", "node-1", share(400), []int{0}}, {"d", "node-1", share(500), []int{0}},
			},
			request: share(300), most: 2, want: []string{"b node-0>node-1", "d node-1>node-0"}, node: "node-1",
		},
		{
			name: "two would have to change places, one may move", nodes: []int{1, 1},
			residents: []resident{
				{"a", "node-0", share(500), []int{0}}, {"b", "node-0", share(300), []int{0}},
				{"c", "node-1", share(400), []int{0}}, {"d", "node-1", share(500), []int{0}},
			},
			request: share(300), most: 1,
		},
		{
			name: "whole GPUs change places for CPU", nodes: []int{2, 2},
			change: func(nodes []*Node) { nodes[0].CPUMilli, nodes[1].CPUMilli = 10_000, 12_000 },
			residents: []resident{
				{"a", "node-0", Request{CPUMilli: 10_000, GPUs: 1}, []int{0}},
				{"b", "node-1", Request{CPUMilli: 1000, GPUs: 1}, []int{0}}, {"c", "node-1", Request{CPUMilli: 1000, GPUs: 1}, []int{1}},
			},
			request: Request{CPUMilli: 4000, GPUs: 1}, most: 2, want: []string{"a node-0>node-1", "b node-1>node-0"}, node: "node-0",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bare := testNodes(tt.nodes...)
			if tt.change != nil {
				tt.change(bare)
			}
			d := newTestDefrag(&Chooser{Policy: indifferent}, settled(bare, tt.residents), tt.residents, tt.pinned...)
			p, ok := d.Plan(&tt.request, tt.most, tt.least)
			if tt.want == nil {
				require.False(t, ok, "%+v", p)
				return
			}
			require.True(t, ok)
			var moves []string
			for _, m := range p.Moves {
				moves = append(moves, fmt.Sprintf("%s %s>%s", m.ID, m.FromNode, m.ToNode))
			}
			slices.Sort(moves)
			assert.Equal(t, tt.want, moves)
			assert.Equal(t, tt.node, p.Node)
			assert.InDelta(t, float64(tt.request.GPUs*WholeMilli)+float64(tt.request.Milli), p.Gain, 0)
		})
	}
}

// What the policy says of the nodes before and after counts.
func TestDefragGain(t *testing.T) {
	residents := []resident{
		{"a", "node-0", Request{Milli: 300}, []int{0}}, {"b", "node-1", Request{Milli: 300}, []int{0}}, {"c", "node-2", Request{Milli: 500}, []int{0}},
	}
	nodes := settled(testNodes(1, 1, 2), residents)
	// A node on which much is free is worth the square of it.
	square := policyFunc(func(c *Candidate) float64 {
		before, after := float64(c.Before.Free()), float64(c.After.Free())
		return (after*after - before*before) / 1000
	})
	p, ok := newTestDefrag(&Chooser{Policy: square}, nodes, residents).Plan(&Request{GPUs: 2}, 2, math.Inf(-1))
	require.True(t, ok)
	require.Len(t, p.Moves, 1)
	assert.Equal(t, "c", p.Moves[0].ID)
	assert.Equal(t, []int{0, 1}, p.GPUs)
	// The node of two GPUs had 1500 free and has nothing, the one that c went to had 700 and has 200.
	assert.InDelta(t, 2000-2250-490+40, p.Gain, 1e-9)
}

// drawCluster draws nodes on which little is free, pods on them, and which of those stay where they are.
func drawCluster(t *rapid.T) (bare []*Node, residents []resident, pinned []string) {
	// Sizes of which few fit together by chance, or any.
	round := rapid.Bool().Draw(t, "round")
	for i := range rapid.IntRange(1, 5).Draw(t, "nodes") {
		name := fmt.Sprintf("node-%d", i)
		if !round {
			bare = append(bare, drawNode(t, name))
			continue
		}
		n := testNode(rapid.IntRange(1, 3).Draw(t, name+".gpus"))
		n.Name, n.CPUMilli = name, rapid.Int64Range(2, 12).Draw(t, name+".cpu")*1000
		bare = append(bare, n)
	}
	nodes := clones(bare)
	for i := range rapid.IntRange(0, 30).Draw(t, "pods") {
		id := fmt.Sprintf("pod-%02d", i)
		r := drawPod(t, id, round)
		n := rapid.SampledFrom(nodes).Draw(t, id+".node")
		if testChooser.Limits.FitHost(n, &r) != ReasonFits {
			continue
		}
		choice, _ := testChooser.Choose(n, &r)
		n.Place(&r, id, choice.GPUs)
		residents = append(residents, resident{id, n.Name, r, choice.GPUs})
		if rapid.IntRange(0, 4).Draw(t, id+".pinned") == 0 {
			pinned = append(pinned, id)
		}
	}
	return bare, residents, pinned
}

func drawPod(t *rapid.T, label string, round bool) Request {
	if !round {
		return drawRequest(t, label)
	}
	r := Request{CPUMilli: rapid.Int64Range(0, 3).Draw(t, label+".cpu") * 1000}
	if r.Milli = rapid.Int64Range(0, 10).Draw(t, label+".milli") * 100; r.Milli == WholeMilli {
		r.GPUs, r.Milli = rapid.IntRange(1, 2).Draw(t, label+".whole"), 0
	}
	return r
}

// A plan never makes a pod unplaced, keeps to its budget, moves nothing that is pinned, and promises no more than there is.
// It depends neither on the order of the nodes nor on how the planner came to know them, and changes none of them.
func TestDefragPlansHold(t *testing.T) {
	plans := map[int]int{}
	rapid.Check(t, func(t *rapid.T) {
		bare, residents, pinned := drawCluster(t)
		nodes := settled(bare, residents)
		given := clones(nodes)
		most := rapid.IntRange(0, 5).Draw(t, "most")
		least := rapid.SampledFrom([]float64{math.Inf(-1), -500, 0, 500}).Draw(t, "least")
		d := newTestDefrag(&testChooser, nodes, residents, pinned...)
		other := NewDefrag(&testChooser)
		for _, n := range bare {
			if rapid.Bool().Draw(t, "known before") {
				other.Update(n, nil)
				_, _ = other.Plan(&Request{GPUs: 1}, most, least)
			}
		}
		for _, n := range rapid.Permutation(nodes).Draw(t, "order") {
			other.Update(n, movable(n.Name, rapid.Permutation(residents).Draw(t, "residents"), pinned...))
		}
		requests := []Request{drawRequest(t, "request"), {GPUs: 1}, {GPUs: 2}}
		for milli := range int64(9) {
			requests = append(requests, Request{Milli: 100 + milli*100})
		}
		for i := range requests {
			r := &requests[i]
			p, ok := d.Plan(r, most, least)
			require.Equal(t, given, nodes)
			again, okAgain := d.Plan(r, most, least)
			require.Equal(t, p, again)
			require.Equal(t, ok, okAgain)
			again, okAgain = other.Plan(r, most, least)
			require.Equal(t, p, again)
			require.Equal(t, ok, okAgain)
			if !ok {
				continue
			}
			plans[len(p.Moves)]++
			require.NotEmpty(t, p.Moves)
			require.LessOrEqual(t, len(p.Moves), most)
			require.GreaterOrEqual(t, p.Gain, least*float64(len(p.Moves)))
			requireHolds(t, bare, residents, pinned, r, &p)
		}
	})
	// The test would say nothing if there were no plans.
	require.Positive(t, plans[1])
	require.Positive(t, plans[2])
}

// requireHolds carries the plan out.
func requireHolds(t *rapid.T, bare []*Node, residents []resident, pinned []string, r *Request, p *DefragPlan) {
	after := slices.Clone(residents)
	moved := map[string]bool{}
	for _, m := range p.Moves {
		at := slices.IndexFunc(after, func(r resident) bool { return r.id == m.ID })
		require.GreaterOrEqual(t, at, 0)
		require.False(t, moved[m.ID], "%s moves twice", m.ID)
		require.NotContains(t, pinned, m.ID)
		require.Equal(t, after[at].node, m.FromNode)
		require.NotEqual(t, m.FromNode, m.ToNode)
		require.ElementsMatch(t, after[at].gpus, m.FromGPUs)
		after[at].node, after[at].gpus = m.ToNode, m.ToGPUs
		moved[m.ID] = true
	}
	// What stays is there first, then come the others as the plan has placed them: the hardest to place first.
	stay := slices.DeleteFunc(slices.Clone(after), func(r resident) bool { return moved[r.id] })
	come := slices.DeleteFunc(after, func(r resident) bool { return !moved[r.id] })
	come = append(come, resident{"request", p.Node, *r, p.GPUs})
	slices.SortStableFunc(come, func(a, b resident) int { return compareSize(&a.request, &b.request) })
	now := settled(bare, stay)
	for i := range come {
		c := &come[i].request
		n := now[slices.IndexFunc(now, func(n *Node) bool { return n.Name == come[i].node })]
		require.Equal(t, ReasonFits, testChooser.Limits.FitHost(n, c))
		require.Len(t, come[i].gpus, c.Count())
		for _, g := range come[i].gpus {
			require.Equal(t, ReasonFits, testChooser.Limits.gpuReason(&n.GPUs[g], c))
		}
		n.Place(c, come[i].id, come[i].gpus)
	}
}
