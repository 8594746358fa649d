// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// anywhere lets every class go everywhere.
type anywhere struct{}

func (anywhere) Feasible(int, int) (bool, string) { return true, "" }
func (anywhere) Placed(int, int) bool             { return false }
func (anywhere) Removed(int, int)                 {}

// rules are constraints for tests.
type rules struct {
	feasible func(class, node int) (bool, string)
	placed   func(class, node int) bool
	removed  func(class, node int)
}

func (r rules) Feasible(class, node int) (bool, string) { return r.feasible(class, node) }
func (r rules) Placed(class, node int) bool             { return r.placed(class, node) }
func (r rules) Removed(class, node int)                 { r.removed(class, node) }

func testNodes(gpus ...int) []*Node {
	nodes := make([]*Node, len(gpus))
	for i, n := range gpus {
		nodes[i] = testNode(n)
		nodes[i].Name = fmt.Sprintf("node-%d", i)
	}
	return nodes
}

func clones(nodes []*Node) []*Node {
	out := make([]*Node, len(nodes))
	for i := range nodes {
		out[i] = nodes[i].Clone()
	}
	return out
}

// membersOf makes count members of each class.
func membersOf(counts ...int) []Member {
	var out []Member
	for class, n := range counts {
		for i := range n {
			out = append(out, Member{ID: fmt.Sprintf("c%d-%d", class, i), Class: class})
		}
	}
	return out
}

// apply places a plan on copies of the nodes and fails where a placement does not fit.
func apply(t require.TestingT, nodes []*Node, classes []Request, plan []Placement) []*Node {
	nodes = clones(nodes)
	for _, p := range plan {
		r := &classes[p.Member.Class]
		require.Equal(t, ReasonFits, limits.FitHost(nodes[p.Node], r), "%s on %s", p.Member.ID, nodes[p.Node].Name)
		for _, at := range p.GPUs {
			require.Equal(t, ReasonFits, limits.gpuReason(&nodes[p.Node].GPUs[at], r), "%s on GPU %d of %s", p.Member.ID, at, nodes[p.Node].Name)
		}
		require.Len(t, p.GPUs, r.Count())
		nodes[p.Node].Place(r, p.Member.ID, p.GPUs)
	}
	return nodes
}

func TestPlanGang(t *testing.T) {
	worker := Request{CPUMilli: 8000, MemoryMiB: 32 << 10, GPUs: 8}
	launcher := Request{CPUMilli: 1000, MemoryMiB: 1024}
	half := Request{CPUMilli: 1000, MemoryMiB: 1024, Milli: 500}
	tests := []struct {
		name    string
		nodes   []*Node
		classes []Request
		members []Member
		need    int
		placed  int
		failure string
	}{
		{"whole", testNodes(8, 8, 8, 8), []Request{worker}, membersOf(4), 4, 4, ""},
		{"one node too few", testNodes(8, 8, 8, 4), []Request{worker}, membersOf(4), 4, 0,
			"3 of the 4 members needed fit at once; no node for another that asks for 8 GPUs: " +
				"3 too few GPUs are free as a whole, 1 the node has fewer GPUs than requested"},
		{"elastic members as far as they fit", testNodes(8, 8, 8), []Request{worker}, membersOf(5), 2, 3, ""},
		{"the hardest class first", testNodes(8, 1), []Request{{Milli: 500}, {GPUs: 8}}, membersOf(2, 1), 3, 3, ""},
		{"launcher without GPU", testNodes(8, 8), []Request{launcher, worker}, membersOf(1, 2), 3, 3, ""},
		{"two shares on a GPU", testNodes(1, 1), []Request{half}, membersOf(4), 4, 4, ""},
		{"a class that fits nowhere, but is not needed", testNodes(8), []Request{worker, {GPUs: 9}}, membersOf(1, 1), 1, 1, ""},
		{"a class that fits nowhere, and is needed", testNodes(8), []Request{worker, {GPUs: 9}}, membersOf(1, 1), 2, 0,
			"1 of the 2 members needed fit at once; no node for another that asks for 9 GPUs: 1 the node has fewer GPUs than requested"},
		{"CPU", testNodes(8, 8), []Request{{CPUMilli: 40000, GPUs: 1}}, membersOf(3), 3, 0,
			"2 of the 3 members needed fit at once; no node for another that asks for 1 GPU: 2 insufficient cpu"},
		{"fewer members than needed", testNodes(8, 8), []Request{worker}, membersOf(1), 2, 0, "1 of the 2 members needed fit at once"},
		{"no nodes", nil, []Request{worker}, membersOf(1), 1, 0, "0 of the 1 members needed fit at once"},
		{"nothing needed, nothing fits", testNodes(1), []Request{worker}, membersOf(3), 0, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Chooser{Limits: limits, Policy: somePolicy}
			before := clones(tt.nodes)
			plan, failure := c.PlanGang(tt.nodes, tt.classes, tt.members, tt.need, anywhere{})
			if len(tt.nodes) > 0 {
				assert.Equal(t, before, tt.nodes, "planning changes no node")
			}
			if tt.failure != "" {
				require.NotNil(t, failure)
				assert.Empty(t, plan)
				assert.EqualError(t, failure, tt.failure)
				return
			}
			require.Nil(t, failure)
			assert.Len(t, plan, tt.placed)
			apply(t, tt.nodes, tt.classes, plan)
		})
	}
}

func TestPlanGangGoesWherePolicyLikes(t *testing.T) {
	nodes := testNodes(8, 8)
	nodes[1].Place(&Request{GPUs: 4}, "there", []int{0, 1, 2, 3})
	fullest := policyFunc(func(c *Candidate) float64 { return -float64(c.Before.Free()) })
	c := Chooser{Policy: fullest}
	plan, failure := c.PlanGang(nodes, []Request{{GPUs: 2}}, membersOf(3), 3, anywhere{})
	require.Nil(t, failure)
	require.Len(t, plan, 3)
	// Ranks walk through the nodes in their order.
	assert.Equal(t, Placement{Member: Member{ID: "c0-0"}, Node: 0, GPUs: []int{0, 1}, Score: -8000}, plan[0])
	assert.Equal(t, Placement{Member: Member{ID: "c0-1"}, Node: 1, GPUs: []int{4, 5}, Score: -4000}, plan[1])
	assert.Equal(t, Placement{Member: Member{ID: "c0-2"}, Node: 1, GPUs: []int{6, 7}, Score: -2000}, plan[2])
}

func TestPlanGangConstraints(t *testing.T) {
	c := Chooser{Limits: limits, Policy: somePolicy}
	classes := []Request{{GPUs: 1}, {CPUMilli: 1}}

	t.Run("reasons are counted", func(t *testing.T) {
		_, failure := c.PlanGang(testNodes(8, 8, 8, 0), classes, membersOf(2), 2, rules{
			feasible: func(_, node int) (bool, string) {
				return node == 9, []string{"tainted", "cordoned", "tainted", ""}[node]
			},
		})
		require.NotNil(t, failure)
		assert.Equal(t, map[string]int{"tainted": 2, "cordoned": 1, ReasonTooFewGPUs.Message(): 1}, failure.Rejected)
		assert.EqualError(t, failure, "0 of the 2 members needed fit at once; no node for another that asks for 1 GPU: "+
			"2 tainted, 1 cordoned, 1 the node has fewer GPUs than requested")
	})
	t.Run("a placed member is asked about on its node", func(t *testing.T) {
		var on [3]int
		plan, failure := c.PlanGang(testNodes(8, 8, 8), classes, membersOf(3), 3, rules{
			feasible: func(_, node int) (bool, string) { return on[node] == 0, "one a node" },
			placed:   func(_, node int) bool { on[node]++; return false },
		})
		require.Nil(t, failure)
		require.Len(t, plan, 3)
		assert.Equal(t, [3]int{1, 1, 1}, on)
	})
	t.Run("a placed member can rule out other nodes", func(t *testing.T) {
		rack := -1 // nodes 0 and 1 are one rack, 2 and 3 another
		plan, failure := c.PlanGang(testNodes(1, 1, 1, 1), classes, membersOf(3), 2, rules{
			feasible: func(_, node int) (bool, string) { return rack < 0 || node/2 == rack, "another rack" },
			placed:   func(_, node int) bool { rack = node / 2; return true },
		})
		require.Nil(t, failure)
		require.Len(t, plan, 2)
		assert.Equal(t, plan[0].Node/2, plan[1].Node/2)
	})
	t.Run("a placed member can make room for a harder class", func(t *testing.T) {
		launcher := -1
		plan, failure := c.PlanGang(testNodes(2, 2), classes, membersOf(2, 1), 3, rules{
			feasible: func(class, node int) (bool, string) { return class == 1 || node == launcher, "no launcher there" },
			placed: func(class, node int) bool {
				if class == 1 {
					launcher = node
				}
				return true
			},
		})
		require.Nil(t, failure)
		require.Len(t, plan, 3)
		for _, p := range plan {
			assert.Equal(t, launcher, p.Node)
		}
	})
}

// A plan has all that is needed, each member once and in its place; or there is none, and nothing has changed.
func TestPlanGangIsAllOrNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []*Node
		for i := range rapid.IntRange(0, 5).Draw(t, "nodes") {
			nodes = append(nodes, drawNode(t, fmt.Sprintf("node-%d", i)))
		}
		var classes []Request
		var members []Member
		for i := range rapid.IntRange(1, 3).Draw(t, "classes") {
			classes = append(classes, drawRequest(t, fmt.Sprintf("class-%d", i)))
			for j := range rapid.IntRange(0, 5).Draw(t, "count") {
				members = append(members, Member{ID: fmt.Sprintf("%d/%d", i, j), Class: i})
			}
		}
		need := rapid.IntRange(0, len(members)).Draw(t, "need")
		before := clones(nodes)
		plan, failure := testChooser.PlanGang(nodes, classes, members, need, anywhere{})
		require.Equal(t, before, clones(nodes), "planning changes no node")
		if failure != nil {
			require.Empty(t, plan)
			require.Less(t, failure.Placed, need)
			require.Equal(t, need, failure.Need)
			total := 0
			for _, n := range failure.Rejected {
				total += n
			}
			require.Equal(t, len(nodes), total, "each node has a reason")
			require.NotEmpty(t, failure.Error())
			return
		}
		require.GreaterOrEqual(t, len(plan), need)
		seen := map[string]bool{}
		for _, p := range plan {
			require.Contains(t, members, p.Member)
			require.False(t, seen[p.Member.ID], "%s is placed twice", p.Member.ID)
			seen[p.Member.ID] = true
		}
		after := apply(t, nodes, classes, plan)
		for _, m := range members {
			if seen[m.ID] {
				continue
			}
			for _, n := range after {
				require.NotEqual(t, ReasonFits, limits.FitHost(n, &classes[m.Class]), "%s was left out though it fits", m.ID)
			}
		}
	})
}

func TestOrderOfNodesChangesNoTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []*Node
		for i := range rapid.IntRange(1, 5).Draw(t, "nodes") {
			nodes = append(nodes, drawNode(t, fmt.Sprintf("node-%d", i)))
		}
		classes := []Request{drawRequest(t, "class")}
		members := membersOf(rapid.IntRange(1, 10).Draw(t, "members"))
		a, failureA := testChooser.PlanGang(nodes, classes, members, 1, anywhere{})
		b, failureB := testChooser.PlanGang(rapid.Permutation(nodes).Draw(t, "order"), classes, members, 1, anywhere{})
		require.Equal(t, failureA == nil, failureB == nil)
		require.Len(t, b, len(a))
		var scoreA, scoreB float64
		for i := range a {
			scoreA += a[i].Score
			scoreB += b[i].Score
		}
		require.InDelta(t, scoreA, scoreB, 1e-6)
		if failureA != nil {
			require.Equal(t, failureA.Rejected, failureB.Rejected)
		}
	})
}
