// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// racks puts each node in the rack of that number; -1 for none.
func racks(required bool, of ...int) *Domains {
	d := &Domains{Kind: "rack", Of: of, Required: required}
	for i := range max(0, slices.Max(append(of, -1))+1) {
		d.Names = append(d.Names, fmt.Sprintf("r%d", i))
	}
	return d
}

func TestPlanGangInDomains(t *testing.T) {
	full, two, launcher := Request{GPUs: 8}, Request{GPUs: 2}, Request{CPUMilli: 1000}
	tests := []struct {
		name    string
		nodes   []*Node
		domains *Domains
		held    []int
		classes []Request
		members []Member
		need    int
		// nodes of the members in their order.
		want    []int
		failure string
	}{
		{"required, in the only rack with room", testNodes(8, 4, 8, 8, 8), racks(true, 0, 0, 1, 1, 0), nil,
			[]Request{full}, membersOf(2), 2, []int{0, 4}, ""},
		{"required, none has room", testNodes(8, 8, 8, 8, 4, 8), racks(true, 0, 0, 1, 1, 1, -1), nil,
			[]Request{full}, membersOf(3), 3, nil,
			"no rack takes the whole gang: rack r0 has room for 2 of the 3 members needed; no node there for another that " +
				"asks for 8 GPUs: 2 too few GPUs are free as a whole"},
		{"required, elastic members stay", testNodes(8, 8, 8, 8), racks(true, 0, 1, 1, -1), nil,
			[]Request{full}, membersOf(4), 1, []int{1, 2}, ""},
		{"required, the rack of members that are there", testNodes(8, 8, 8, 8), racks(true, 0, 1, 1, -1), []int{0},
			[]Request{full}, membersOf(2), 1, []int{0}, ""},
		{"required, no room beside members that are there", testNodes(8, 8, 8, 8), racks(true, 0, 1, 1, -1), []int{0},
			[]Request{full}, membersOf(2), 2, nil,
			"rack r0, where its other members are, has room for 1 of the 2 members needed; no node there for another that " +
				"asks for 8 GPUs: 1 too few GPUs are free as a whole"},
		{"required, no racks", testNodes(8), racks(true, -1), nil, []Request{full}, membersOf(1), 1, nil,
			"no node is in a rack, of which one must take the whole gang"},
		{"required, none needed and no racks", testNodes(8), racks(true, -1), nil, []Request{full}, membersOf(1), 0, nil, ""},
		{"required, with a launcher", testNodes(8, 8, 8), racks(true, 0, 1, 1), nil,
			[]Request{launcher, full}, membersOf(1, 2), 3, []int{1, 1, 2}, ""},
		{"preferred, one rack", testNodes(8, 8, 8, 8), racks(false, 0, 1, 0, 1), nil, []Request{full}, membersOf(2), 2, []int{0, 2}, ""},
		{"preferred, the fewest racks", testNodes(8, 8, 8, 8, 8, 8, 8), racks(false, 0, 1, 2, 2, 3, 3, 3), nil,
			[]Request{full}, membersOf(5), 5, []int{2, 3, 4, 5, 6}, ""},
		{"preferred, racks that have members first", testNodes(8, 8, 8, 8), racks(false, 0, 1, 1, 1), []int{0},
			[]Request{full}, membersOf(3), 3, []int{0, 1, 2}, ""},
		{"preferred, nodes of no rack last", testNodes(8, 8, 8), racks(false, -1, 0, 1), nil,
			[]Request{full}, membersOf(3), 3, []int{1, 2, 0}, ""},
		{"preferred, no racks", testNodes(8, 8), racks(false, -1, -1), nil, []Request{full}, membersOf(2), 2, []int{0, 1}, ""},
		{"preferred, no room", testNodes(8, 8), racks(false, 0, 1), nil, []Request{full}, membersOf(3), 3, nil,
			"2 of the 3 members needed fit at once; no node for another that asks for 8 GPUs: 2 too few GPUs are free as a whole"},
		{"neighbours in rank beside each other", testNodes(4, 4, 4, 4), racks(false, 1, 0, 1, 0), nil,
			[]Request{two}, membersOf(8), 8, []int{1, 1, 3, 3, 0, 0, 2, 2}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Chooser{Limits: limits, Policy: somePolicy}
			tt.domains.Held = tt.held
			before := clones(tt.nodes)
			plan, failure := c.PlanGangIn(tt.nodes, &Gang{tt.classes, tt.members, tt.need, tt.domains}, anywhere{})
			assert.Equal(t, before, tt.nodes, "planning changes no node")
			if tt.failure != "" {
				require.NotNil(t, failure)
				assert.EqualError(t, failure, tt.failure)
				return
			}
			require.Nil(t, failure)
			var at []int
			for _, p := range plan {
				at = append(at, p.Node)
			}
			assert.Equal(t, tt.want, at)
			apply(t, tt.nodes, tt.classes, plan)
		})
	}
}

func TestPlanGangInTheRackThatThePolicyLikes(t *testing.T) {
	fullest := policyFunc(func(c *Candidate) float64 { return -float64(c.Before.Free()) })
	for _, required := range []bool{true, false} {
		nodes := testNodes(8, 8, 8, 8, 8, 8)
		nodes[3].Place(&Request{GPUs: 4}, "there", []int{0, 1, 2, 3})
		c := Chooser{Policy: fullest}
		plan, failure := c.PlanGangIn(nodes, &Gang{[]Request{{GPUs: 4}}, membersOf(3), 3, racks(required, 0, 0, 1, 1, 2, 2)}, anywhere{})
		require.Nil(t, failure)
		assert.Equal(t, []int{2, 2, 3}, []int{plan[0].Node, plan[1].Node, plan[2].Node})
	}
}

// ledgerRules are constraints that keep account of what they were told.
type ledgerRules struct {
	t require.TestingT
	// closed nodes by class.
	closed map[[2]int]bool
	// most members on a node; 0 for any number.
	most int
	// together, where set, wants members of class 1 to go only to nodes of the same parity as some member of class 0.
	together bool
	on       map[[2]int]int
	asked    int
}

func (l *ledgerRules) Feasible(class, node int) (bool, string) {
	l.asked++
	if l.closed[[2]int{class, node}] {
		return false, "closed"
	}
	sum, near := 0, false
	for at, n := range l.on {
		if n > 0 && at[1] == node {
			sum += n
		}
		near = near || n > 0 && at[0] == 0 && at[1]%2 == node%2
	}
	if l.most > 0 && sum >= l.most {
		return false, "enough there"
	}
	return !l.together || class == 0 || near, "far from the launcher"
}

func (l *ledgerRules) Placed(class, node int) bool {
	l.on[[2]int{class, node}]++
	return l.together
}

func (l *ledgerRules) Removed(class, node int) {
	l.on[[2]int{class, node}]--
	require.GreaterOrEqual(l.t, l.on[[2]int{class, node}], 0, "more was taken back than told")
}

// gangCase is a drawn cluster and gang.
type gangCase struct {
	nodes []*Node
	gang  *Gang
	rules *ledgerRules
}

func drawGang(t *rapid.T, classes int, required bool) gangCase {
	g := gangCase{gang: &Gang{}, rules: &ledgerRules{t: t, closed: map[[2]int]bool{}, on: map[[2]int]int{}}}
	d := &Domains{Kind: "rack", Required: required}
	for i := range rapid.IntRange(1, 5).Draw(t, "racks") {
		d.Names = append(d.Names, fmt.Sprintf("r%d", i))
	}
	for i := range rapid.IntRange(1, 9).Draw(t, "nodes") {
		n := drawNode(t, fmt.Sprintf("node-%d", i))
		if rapid.Bool().Draw(t, "roomy") {
			n = testNode(rapid.IntRange(1, 8).Draw(t, "gpus"))
			n.Name = fmt.Sprintf("node-%d", i)
		}
		g.nodes = append(g.nodes, n)
		d.Of = append(d.Of, rapid.IntRange(-1, len(d.Names)-1).Draw(t, "rack"))
	}
	for i := range rapid.IntRange(1, classes).Draw(t, "classes") {
		g.gang.Classes = append(g.gang.Classes, drawRequest(t, fmt.Sprintf("class-%d", i)))
		for j := range rapid.IntRange(0, 8).Draw(t, "count") {
			g.gang.Members = append(g.gang.Members, Member{ID: fmt.Sprintf("%d/%d", i, j), Class: i})
		}
		for at := range g.nodes {
			if rapid.IntRange(0, 4).Draw(t, "closed") == 0 {
				g.rules.closed[[2]int{i, at}] = true
			}
		}
	}
	g.gang.Need = rapid.IntRange(0, len(g.gang.Members)).Draw(t, "need")
	g.rules.most = rapid.IntRange(0, 3).Draw(t, "most")
	g.gang.Domains = d
	return g
}

// within plans the gang on nodes of those racks alone, and says how many members that places.
func (g *gangCase) within(racks func(rack int) bool) int {
	rules := &ledgerRules{t: g.rules.t, closed: g.rules.closed, most: g.rules.most, on: map[[2]int]int{}}
	only := &inRacks{Constraints: rules, racks: racks, of: g.gang.Domains.Of}
	plan, _ := testChooser.PlanGang(g.nodes, g.gang.Classes, g.gang.Members, 0, only)
	return len(plan)
}

type inRacks struct {
	Constraints
	racks func(int) bool
	of    []int
}

func (w *inRacks) Feasible(class, node int) (bool, string) {
	if !w.racks(w.of[node]) {
		return false, "not there"
	}
	return w.Constraints.Feasible(class, node)
}

// check plans the gang and checks what holds for every plan.
func (g *gangCase) check(t *rapid.T) ([]Placement, *GangFailure) {
	before := clones(g.nodes)
	plan, failure := testChooser.PlanGangIn(g.nodes, g.gang, g.rules)
	require.Equal(t, before, clones(g.nodes), "planning changes no node")
	told := map[[2]int]int{}
	for _, p := range plan {
		told[[2]int{p.Member.Class, p.Node}]++
		require.False(t, g.rules.closed[[2]int{p.Member.Class, p.Node}], "%s is on a closed node", p.Member.ID)
	}
	if failure != nil {
		require.Empty(t, plan)
		require.Less(t, failure.Placed, g.gang.Need)
		require.NotEmpty(t, failure.Error())
	} else {
		require.GreaterOrEqual(t, len(plan), g.gang.Need)
		for at, n := range g.rules.on {
			require.Equal(t, told[at], n, "the constraints know of other members than the plan has")
		}
	}
	apply(t, g.nodes, g.gang.Classes, plan)
	g.requireRanks(t, plan)

	again := &ledgerRules{t: t, closed: g.rules.closed, most: g.rules.most, together: g.rules.together, on: map[[2]int]int{}}
	second, _ := testChooser.PlanGangIn(g.nodes, g.gang, again)
	require.Equal(t, plan, second, "the same plan each time")
	return plan, failure
}

// requireRanks checks that the members of each class, in their order, come to each rack and to each node once.
func (g *gangCase) requireRanks(t *rapid.T, plan []Placement) {
	for class := range g.gang.Classes {
		lastRack, lastNode := -1, -1
		seenRacks, seenNodes := map[int]bool{}, map[int]bool{}
		for _, p := range plan {
			if p.Member.Class != class {
				continue
			}
			if p.Node != lastNode {
				require.False(t, seenNodes[p.Node], "ranks come to node %d twice", p.Node)
				seenNodes[p.Node], lastNode = true, p.Node
			}
			if rack := g.gang.Domains.Of[p.Node]; !seenRacks[rack] || rack != lastRack {
				require.False(t, seenRacks[rack], "ranks come to rack %d twice", rack)
				seenRacks[rack], lastRack = true, rack
			}
		}
	}
}

func (g *gangCase) racksOf(plan []Placement) map[int]bool {
	out := map[int]bool{}
	for _, p := range plan {
		out[g.gang.Domains.Of[p.Node]] = true
	}
	return out
}

func (g *gangCase) racksWithNodes() map[int]bool {
	out := map[int]bool{}
	for _, rack := range g.gang.Domains.Of {
		if rack >= 0 {
			out[rack] = true
		}
	}
	return out
}

func TestRequiredDomainIsNeverLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGang(t, 3, true)
		if rapid.IntRange(0, 3).Draw(t, "held") == 0 {
			g.gang.Domains.Held = []int{rapid.IntRange(0, len(g.gang.Domains.Names)-1).Draw(t, "rack of others")}
		}
		plan, failure := g.check(t)
		used := g.racksOf(plan)
		require.LessOrEqual(t, len(used), 1)
		require.False(t, used[-1])
		most := 0
		for rack := range g.gang.Domains.Names {
			if len(g.gang.Domains.Held) > 0 && rack != g.gang.Domains.Held[0] {
				require.False(t, used[rack])
				continue
			}
			most = max(most, g.within(func(r int) bool { return r == rack }))
		}
		switch {
		case failure == nil:
			require.Len(t, plan, most)
		case failure.Domain == "":
			require.Empty(t, g.racksWithNodes())
		default:
			require.Equal(t, most, failure.Placed)
		}
	})
}

// For a gang of one class, brute force over all sets of racks finds none that is smaller and takes as many members.
func TestPreferredDomainsAreFewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGang(t, 1, false)
		plan, failure := g.check(t)
		most := g.within(func(int) bool { return true })
		if failure != nil {
			require.Equal(t, most, failure.Placed)
			return
		}
		require.Len(t, plan, most)
		used := g.racksOf(plan)
		racked := g.within(func(r int) bool { return r >= 0 })
		if racked == most {
			require.False(t, used[-1], "nodes of no rack are used though those of racks do")
		}
		delete(used, -1)
		for set := range 1 << len(g.gang.Domains.Names) {
			n := 0
			for rack := range g.gang.Domains.Names {
				n += set >> rack & 1
			}
			if n < len(used) {
				require.Less(t, g.within(func(r int) bool { return r >= 0 && set>>r&1 == 1 }), racked, "%d racks do", n)
			}
		}
	})
}

// With several classes, one rack is found where one does, and preferring racks keeps no gang out.
func TestPreferredDomainsOfSeveralClasses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGang(t, 3, false)
		plan, failure := g.check(t)
		if failure != nil {
			require.Less(t, g.within(func(int) bool { return true }), g.gang.Need)
			return
		}
		if len(plan) < len(g.gang.Members) {
			return
		}
		for rack := range g.gang.Domains.Names {
			if g.within(func(r int) bool { return r == rack }) == len(g.gang.Members) {
				require.Len(t, g.racksOf(plan), min(1, len(plan)))
			}
		}
	})
}

// Members that constrain each other are placed whole or not at all as well.
func TestPlanGangWithInterplay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGang(t, 3, rapid.Bool().Draw(t, "required"))
		g.rules.together = true
		plan, _ := g.check(t)
		near := map[int]bool{}
		for _, p := range plan {
			if p.Member.Class == 0 {
				near[p.Node%2] = true
			}
		}
		for _, p := range plan {
			require.True(t, p.Member.Class == 0 || near[p.Node%2], "%s is far from the launcher", p.Member.ID)
		}
		if g.gang.Domains.Required {
			require.LessOrEqual(t, len(g.racksOf(plan)), 1)
		}
	})
}

// Constraints are asked about as many nodes as there are members, where they allow all.
func TestPlanGangAsksLittle(t *testing.T) {
	var gpus, of []int
	for i := range 200 {
		gpus, of = append(gpus, 8), append(of, i/10)
	}
	for _, domains := range []*Domains{nil, racks(true, of...), racks(false, of...)} {
		rules := &ledgerRules{t: t, on: map[[2]int]int{}}
		plan, failure := testChooser.PlanGangIn(testNodes(gpus...), &Gang{[]Request{{GPUs: 4}}, membersOf(20), 20, domains}, rules)
		require.Nil(t, failure)
		require.Len(t, plan, 20)
		assert.LessOrEqual(t, rules.asked, 2*len(plan))
	}
}
