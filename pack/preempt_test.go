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

// freely lets every class go everywhere, and checks that all that is told is taken back rightly.
type freely struct {
	t      require.TestingT
	placed map[[2]int]int
	gone   map[podRef]bool
	// feasible, where set, sees which pods are gone.
	feasible func(class, node int, gone map[podRef]bool) bool
	hopeless bool
}

func newFreely(t require.TestingT) *freely {
	return &freely{t: t, placed: map[[2]int]int{}, gone: map[podRef]bool{}}
}

func (f *freely) Feasible(class, node int) (bool, string) {
	return f.feasible == nil || f.feasible(class, node, f.gone), "not there"
}
func (f *freely) Hopeless() bool { return f.hopeless }
func (f *freely) Placed(class, node int) bool {
	f.placed[[2]int{class, node}]++
	return false
}

func (f *freely) Removed(class, node int) {
	require.Positive(f.t, f.placed[[2]int{class, node}])
	f.placed[[2]int{class, node}]--
}

func (f *freely) Evicted(victim, pod int) {
	require.False(f.t, f.gone[podRef{victim, pod}], "evicted twice")
	f.gone[podRef{victim, pod}] = true
}

func (f *freely) Restored(victim, pod int) {
	require.True(f.t, f.gone[podRef{victim, pod}], "restored without an eviction")
	delete(f.gone, podRef{victim, pod})
}

// scene is nodes with victims on them.
type scene struct {
	Preemption
}

// victim puts pods of one request on the nodes at those positions and makes a victim of them.
func (s *scene) victim(id string, r Request, priority int32, loss float64, at ...int) *Victim {
	v := Victim{ID: id}
	for i, node := range at {
		p := VictimPod{ID: fmt.Sprintf("%s-%d", id, i), Node: node, Request: r, Priority: priority, Loss: loss}
		choice, _ := testChooser.Choose(s.Nodes[node], &r)
		s.Nodes[node].Place(&r, p.ID, choice.GPUs)
		v.Pods = append(v.Pods, p)
	}
	s.Victims = append(s.Victims, v)
	return &s.Victims[len(s.Victims)-1]
}

func newScene(t require.TestingT, gang Request, members int, gpus ...int) *scene {
	s := &scene{}
	s.Nodes, s.Classes, s.Members, s.Need = testNodes(gpus...), []Request{gang}, membersOf(members), members
	s.Constraints = newFreely(t)
	return s
}

// evicted names what goes.
func (s *scene) evicted(plan *PreemptionPlan) []string {
	var out []string
	for _, e := range plan.Evictions {
		for _, j := range e.Pods {
			out = append(out, s.Victims[e.Victim].Pods[j].ID)
		}
	}
	return out
}

func TestPreempt(t *testing.T) {
	one, whole := Request{GPUs: 1}, Request{GPUs: 8}
	tests := []struct {
		name string
		// members that want gang each, on nodes of 8 GPUs.
		gang    Request
		members int
		nodes   int
		victims func(s *scene)
		want    []string
		failure string
	}{
		{"there is room", whole, 2, 2, func(*scene) {}, nil, ""},
		{"what is in the way and no more", whole, 1, 3, func(s *scene) {
			s.victim("a", one, 0, 5, 0)
			s.victim("b", one, 0, 4, 1)
			s.victim("c", one, 0, 6, 2)
		}, []string{"b-0"}, ""},
		{"the lowest priority, whatever is lost", whole, 1, 2, func(s *scene) {
			s.victim("high", one, 2, 0, 0)
			s.victim("low", whole, 1, 1e6, 1)
		}, []string{"low-0"}, ""},
		{"the highest of several counts", whole, 1, 2, func(s *scene) {
			s.victim("high", one, 2, 0, 0)
			s.victim("low", one, 0, 0, 0)
			s.victim("middle", one, 1, 7, 1)
			s.victim("other", one, 1, 7, 1)
		}, []string{"middle-0", "other-0"}, ""},
		{"a gang that would not fit anyway evicts nobody", whole, 3, 3, func(s *scene) {
			s.victim("a", one, 0, 1, 0)
			s.victim("b", one, 0, 1, 1)
			s.Nodes[2].Place(&one, "stays", []int{0})
		}, nil, "2 of the 3 members needed fit at once; no node for another that asks for 8 GPUs: 3 too few GPUs are free as a whole"},
		{"a gang goes whole", whole, 1, 2, func(s *scene) {
			s.victim("gang", Request{GPUs: 4}, 0, 1, 0, 1)
			s.Nodes[1].Place(&one, "stays", []int{7})
		}, []string{"gang-0", "gang-1"}, ""},
		{"a gang has as much to lose as all of it", whole, 1, 3, func(s *scene) {
			s.victim("gang", Request{GPUs: 8}, 0, 10, 0, 2)
			s.victim("pod", whole, 0, 15, 1)
		}, []string{"pod-0"}, ""},
		{"elastic members go first", whole, 1, 3, func(s *scene) {
			s.victim("gang", whole, 0, 10, 0, 1, 2).Elastic = 1
		}, []string{"gang-2"}, ""},
		{"an elastic member anywhere", Request{CPUMilli: 1, GPUs: 8}, 1, 3, func(s *scene) {
			s.victim("gang", whole, 0, 10, 0, 1, 2).Elastic = 1
			s.Nodes[1].CPUMilli, s.Nodes[2].CPUMilli = 0, 0
		}, []string{"gang-0"}, ""},
		{"no more than the elastic members of a pinned gang", whole, 2, 2, func(s *scene) {
			v := s.victim("gang", whole, 0, 10, 0, 1)
			v.Elastic, v.Pinned = 1, true
		}, nil, "1 of the 2 members needed fit at once; no node for another that asks for 8 GPUs: 2 too few GPUs are free as a whole"},
		{"all of a gang where more than its elastic members are in the way", whole, 2, 3, func(s *scene) {
			s.victim("gang", whole, 0, 10, 0, 1, 2).Elastic = 1
			s.Nodes[2].CPUMilli = -1
		}, []string{"gang-0", "gang-1", "gang-2"}, ""},
		{"one gang rather than many pods that lose more", whole, 2, 4, func(s *scene) {
			s.victim("gang", whole, 0, 5, 0, 1)
			s.victim("a", whole, 0, 6, 2)
			s.victim("b", whole, 0, 6, 3)
		}, []string{"gang-0", "gang-1"}, ""},
		{"few pods of equal loss", whole, 1, 2, func(s *scene) {
			s.victim("a", one, 0, 0, 0)
			s.victim("b", one, 0, 0, 0)
			s.victim("c", one, 0, 0, 1)
		}, []string{"c-0"}, ""},
		{"budgets before priority", whole, 1, 2, func(s *scene) {
			s.Budgets = []int{0}
			s.victim("kept", one, 0, 1, 0).Pods[0].Budgets = []int{0}
			s.victim("other", one, 5, 1, 1)
		}, []string{"other-0"}, ""},
		{"a budget lets one go", whole, 1, 2, func(s *scene) {
			s.Budgets = []int{1}
			s.victim("kept", one, 0, 1, 0).Pods[0].Budgets = []int{0}
			s.victim("other", one, 5, 1, 1)
		}, []string{"kept-0"}, ""},
		{"a budget lets one go, not two", whole, 2, 3, func(s *scene) {
			s.Budgets = []int{1}
			s.victim("a", one, 0, 1, 0).Pods[0].Budgets = []int{0}
			s.victim("b", one, 0, 1, 1).Pods[0].Budgets = []int{0}
			s.victim("other", one, 5, 1, 2)
		}, []string{"a-0", "other-0"}, ""},
		{"a budget is broken where there is no other way", whole, 2, 3, func(s *scene) {
			s.Budgets = []int{0}
			s.victim("kept", one, 0, 1, 0).Pods[0].Budgets = []int{0}
			s.victim("other", one, 5, 1, 1)
			s.Nodes[2].CPUMilli = -1
		}, []string{"kept-0", "other-0"}, ""},
		{"a share", Request{Milli: 500}, 1, 1, func(s *scene) {
			for i := range 8 {
				s.victim(fmt.Sprint("v", i), Request{Milli: 700}, 0, float64(10-i), 0)
			}
		}, []string{"v7-0"}, ""},
		{"CPU", Request{CPUMilli: 34000}, 1, 1, func(s *scene) {
			s.victim("a", Request{CPUMilli: 30000}, 0, 2, 0)
			s.victim("b", Request{CPUMilli: 30000}, 0, 1, 0)
		}, []string{"b-0"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, tt.gang, tt.members, slices.Repeat([]int{8}, tt.nodes)...)
			tt.victims(s)
			before := clones(s.Nodes)
			plan, failure := testChooser.Preempt(&s.Preemption)
			assert.Equal(t, before, clones(s.Nodes), "nodes are not changed")
			if tt.failure != "" {
				require.NotNil(t, failure)
				assert.EqualError(t, failure, tt.failure)
				return
			}
			require.Nil(t, failure)
			assert.Equal(t, tt.want, s.evicted(plan))
			assert.Len(t, plan.Placements, tt.members)
		})
	}
}

func TestPreemptAsksTheConstraints(t *testing.T) {
	whole := Request{GPUs: 8}
	t.Run("what the packing does not see", func(t *testing.T) {
		// The second pod has the port that the gang wants.
		s := newScene(t, Request{GPUs: 1}, 1, 8)
		s.victim("a", Request{GPUs: 1}, 0, 1, 0)
		s.victim("b", Request{GPUs: 1}, 0, 9, 0)
		f := newFreely(t)
		f.feasible = func(_, _ int, gone map[podRef]bool) bool { return gone[podRef{1, 0}] }
		s.Constraints = f
		plan, failure := testChooser.Preempt(&s.Preemption)
		require.Nil(t, failure)
		assert.Equal(t, []string{"b-0"}, s.evicted(plan))
	})
	t.Run("a node that no eviction makes suit", func(t *testing.T) {
		s := newScene(t, whole, 1, 8, 8)
		s.victim("a", whole, 0, 1, 0)
		s.victim("b", whole, 0, 9, 1)
		f := newFreely(t)
		f.feasible = func(_, node int, _ map[podRef]bool) bool { return node == 1 }
		f.hopeless = true
		s.Constraints = f
		plan, failure := testChooser.Preempt(&s.Preemption)
		require.Nil(t, failure)
		assert.Equal(t, []string{"b-0"}, s.evicted(plan))
	})
}

func TestPreemptInOneDomain(t *testing.T) {
	whole := Request{GPUs: 8}
	racks := func(held ...int) *Domains {
		return &Domains{Kind: "rack", Names: []string{"a", "b", "c"}, Of: []int{0, 0, 1, 1, 2, -1}, Required: true, Held: held}
	}
	tests := []struct {
		name    string
		domains *Domains
		victims func(s *scene)
		want    []string
		failure string
	}{
		// Anywhere, the nodes to take would be 0 and 2.
		{"the domain that costs least as a whole", racks(), func(s *scene) {
			for at, loss := range []float64{1, 10, 2, 8, 0, 0} {
				s.victim(fmt.Sprint("v", at), whole, 0, loss, at)
			}
		}, []string{"v2-0", "v3-0"}, ""},
		{"a budget before all else", racks(), func(s *scene) {
			s.Budgets = []int{0}
			for at, priority := range []int32{1, 1, 0, 0, 0, 0} {
				s.victim(fmt.Sprint("v", at), whole, priority, 1, at)
			}
			s.Victims[2].Pods[0].Budgets = []int{0}
		}, []string{"v0-0", "v1-0"}, ""},
		{"the domain of those that have their place", racks(0), func(s *scene) {
			for at, loss := range []float64{10, 10, 1, 1, 0, 0} {
				s.victim(fmt.Sprint("v", at), whole, 0, loss, at)
			}
		}, []string{"v0-0", "v1-0"}, ""},
		{"a gang across domains", racks(), func(s *scene) {
			s.victim("gang", whole, 0, 1, 0, 2, 3)
			s.victim("stays", whole, 0, 10, 1)
		}, []string{"gang-0", "gang-1", "gang-2"}, ""},
		{"elastic members in the domain", racks(), func(s *scene) {
			v := s.victim("gang", whole, 0, 1, 2, 3, 0, 1)
			v.Elastic, v.Pinned = 2, true
		}, []string{"gang-2", "gang-3"}, ""},
		{"none takes the gang", racks(), func(s *scene) {
			s.victim("v", whole, 0, 1, 0)
			s.Nodes[1].Place(&whole, "stays", []int{0})
			s.Nodes[3].Place(&whole, "stays", []int{0})
		}, nil, "no rack takes the whole gang: rack a has room for 1 of the 2 members needed; " +
			"no node there for another that asks for 8 GPUs: 2 too few GPUs are free as a whole"},
		{"a domain that is preferred decides nothing", &Domains{Kind: "rack", Names: []string{"a", "b"}, Of: []int{0, 0, 1, 1, -1, -1}}, func(s *scene) {
			for at, loss := range []float64{1, 10, 2, 8, 20, 20} {
				s.victim(fmt.Sprint("v", at), whole, 0, loss, at)
			}
		}, []string{"v0-0", "v2-0"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, whole, 2, 8, 8, 8, 8, 8, 8)
			s.Domains = tt.domains
			tt.victims(s)
			plan, failure := testChooser.Preempt(&s.Preemption)
			if tt.failure != "" {
				require.NotNil(t, failure)
				assert.EqualError(t, failure, tt.failure)
				return
			}
			require.Nil(t, failure)
			assert.ElementsMatch(t, tt.want, s.evicted(plan))
			assert.Len(t, plan.Placements, 2)
			if tt.domains.Required {
				assert.Equal(t, tt.domains.Of[plan.Placements[0].Node], tt.domains.Of[plan.Placements[1].Node])
			}
		})
	}
}

// Whatever is evicted: all of it is worth less, the gang fits afterwards, and nothing of it could have stayed.
func TestPreemptIsSparing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &scene{}
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			s.Nodes = append(s.Nodes, drawNode(t, fmt.Sprintf("node-%d", i)))
		}
		for range rapid.IntRange(0, 2).Draw(t, "budgets") {
			s.Budgets = append(s.Budgets, rapid.IntRange(0, 2).Draw(t, "allowed"))
		}
		for i := range rapid.IntRange(0, 6).Draw(t, "victims") {
			id := fmt.Sprintf("v%d", i)
			r := drawRequest(t, id)
			v := Victim{ID: id}
			for range rapid.IntRange(1, 3).Draw(t, id+".pods") {
				p := VictimPod{
					ID: fmt.Sprintf("%s-%d", id, len(v.Pods)), Request: r,
					Node:     rapid.IntRange(0, len(s.Nodes)-1).Draw(t, "node"),
					Priority: rapid.Int32Range(-1, 2).Draw(t, "priority"),
					Loss:     float64(rapid.IntRange(0, 5).Draw(t, "loss")),
				}
				choice, reason := testChooser.Choose(s.Nodes[p.Node], &r)
				if reason != ReasonFits {
					continue
				}
				if len(s.Budgets) > 0 && rapid.Bool().Draw(t, "budget") {
					p.Budgets = []int{rapid.IntRange(0, len(s.Budgets)-1).Draw(t, "which")}
				}
				s.Nodes[p.Node].Place(&r, p.ID, choice.GPUs)
				v.Pods = append(v.Pods, p)
			}
			if len(v.Pods) > 0 {
				v.Elastic = rapid.IntRange(0, len(v.Pods)-1).Draw(t, id+".elastic")
				v.Pinned = rapid.Bool().Draw(t, id+".pinned")
				s.Victims = append(s.Victims, v)
			}
		}
		for i := range rapid.IntRange(1, 2).Draw(t, "classes") {
			s.Classes = append(s.Classes, drawRequest(t, fmt.Sprintf("class-%d", i)))
			for j := range rapid.IntRange(0, 4).Draw(t, "count") {
				s.Members = append(s.Members, Member{ID: fmt.Sprintf("%d/%d", i, j), Class: i})
			}
		}
		s.Need = rapid.IntRange(1, max(1, len(s.Members))).Draw(t, "need")
		constraints := newFreely(t)
		s.Constraints = constraints

		before := clones(s.Nodes)
		plan, failure := testChooser.Preempt(&s.Preemption)
		require.Equal(t, before, clones(s.Nodes), "nodes are not changed")
		again, failureAgain := testChooser.Preempt(&Preemption{
			Nodes: s.Nodes, Classes: s.Classes, Members: s.Members, Need: s.Need, Victims: s.Victims, Budgets: s.Budgets, Constraints: newFreely(t),
		})
		require.Equal(t, plan, again, "the same again")
		require.Equal(t, failure, failureAgain, "the same again")
		direct, _ := testChooser.PlanGang(s.Nodes, s.Classes, s.Members, s.Need, anywhere{})
		if failure != nil {
			require.Nil(t, plan)
			require.Nil(t, direct)
			require.NotEmpty(t, failure.Error())
			return
		}
		if direct != nil {
			require.Empty(t, plan.Evictions, "there was room")
		}
		for at, n := range constraints.placed {
			require.Zero(t, n, "class %d on node %d", at[0], at[1])
		}
		gone := map[string]bool{}
		for _, e := range plan.Evictions {
			v := &s.Victims[e.Victim]
			require.True(t, len(e.Pods) <= v.Elastic || len(e.Pods) == len(v.Pods) && !v.Pinned, "%v of %+v go", e.Pods, v)
			for _, j := range e.Pods {
				gone[v.Pods[j].ID] = true
			}
		}
		after := func(stays map[string]bool) []*Node {
			nodes := clones(s.Nodes)
			for i := range s.Victims {
				for j := range s.Victims[i].Pods {
					if p := &s.Victims[i].Pods[j]; gone[p.ID] && !stays[p.ID] {
						nodes[p.Node].Remove(&p.Request, p.ID)
					}
				}
			}
			return nodes
		}
		require.GreaterOrEqual(t, len(plan.Placements), s.Need)
		apply(t, after(nil), s.Classes, plan.Placements)
		// stands says whether the members needed can keep their nodes where those pods stay.
		stands := func(stays map[string]bool) bool {
			nodes := after(stays)
			for _, p := range plan.Placements[:s.Need] {
				r := &s.Classes[p.Member.Class]
				if limits.FitHost(nodes[p.Node], r) != ReasonFits {
					return false
				}
				choice, _ := testChooser.Choose(nodes[p.Node], r)
				nodes[p.Node].Place(r, p.Member.ID, choice.GPUs)
			}
			return true
		}
		for _, e := range plan.Evictions {
			v := &s.Victims[e.Victim]
			whole := map[string]bool{}
			for _, j := range e.Pods {
				whole[v.Pods[j].ID] = true
				if len(e.Pods) <= v.Elastic {
					require.False(t, stands(map[string]bool{v.Pods[j].ID: true}), "%s need not go", v.Pods[j].ID)
				}
			}
			require.False(t, stands(whole), "%s need not go", v.ID)
		}
	})
}

// The least toll is found in nearly all cases that are small enough to try every choice; a way is found whenever there is one.
func TestPreemptAgainstAllChoices(t *testing.T) {
	var cases, needless, budgets, priorities, losses int
	rapid.Check(t, func(t *rapid.T) {
		s := &scene{}
		for i := range rapid.IntRange(1, 3).Draw(t, "nodes") {
			n := testNode(rapid.IntRange(1, 4).Draw(t, "gpus"))
			n.Name = fmt.Sprintf("node-%d", i)
			s.Nodes = append(s.Nodes, n)
		}
		s.Budgets = []int{rapid.IntRange(0, 2).Draw(t, "allowed")}
		whole := func(label string) Request { return Request{GPUs: rapid.IntRange(1, 3).Draw(t, label)} }
		for i := range rapid.IntRange(1, 6).Draw(t, "victims") {
			id := fmt.Sprintf("v%d", i)
			r := whole(id)
			v := Victim{ID: id}
			for range rapid.IntRange(1, 2).Draw(t, id+".pods") {
				p := VictimPod{
					ID: fmt.Sprintf("%s-%d", id, len(v.Pods)), Request: r,
					Node:     rapid.IntRange(0, len(s.Nodes)-1).Draw(t, "node"),
					Priority: rapid.Int32Range(0, 1).Draw(t, "priority"),
					Loss:     float64(rapid.IntRange(0, 5).Draw(t, "loss")),
				}
				choice, reason := testChooser.Choose(s.Nodes[p.Node], &r)
				if reason != ReasonFits {
					continue
				}
				if rapid.Bool().Draw(t, "budget") {
					p.Budgets = []int{0}
				}
				s.Nodes[p.Node].Place(&r, p.ID, choice.GPUs)
				v.Pods = append(v.Pods, p)
			}
			if len(v.Pods) > 0 {
				s.Victims = append(s.Victims, v)
			}
		}
		s.Classes = []Request{whole("gang")}
		s.Members = membersOf(rapid.IntRange(1, 3).Draw(t, "members"))
		s.Need = len(s.Members)

		var best *Toll
		for set := range 1 << len(s.Victims) {
			s.Constraints = newFreely(t)
			e := newEvictor(&testChooser, &s.Preemption)
			var pods []podRef
			for v := range s.Victims {
				for j := range s.Victims[v].Pods {
					if set&(1<<v) != 0 {
						pods = append(pods, podRef{v, j})
					}
				}
			}
			toll, _ := e.toll(pods, nil)
			e.evict(pods)
			if _, failure := testChooser.PlanGang(e.nodes, s.Classes, s.Members, s.Need, anywhere{}); failure == nil && (best == nil || toll.compare(*best) < 0) {
				best = &toll
			}
		}
		s.Constraints = newFreely(t)
		plan, failure := testChooser.Preempt(&s.Preemption)
		require.Equal(t, best == nil, failure != nil)
		if best == nil {
			return
		}
		cases++
		switch {
		case best.Breaks == 0 && plan.Toll.Breaks > 0:
			needless++
		case plan.Toll.Breaks > best.Breaks:
			budgets++
		case plan.Toll.Priority > best.Priority:
			priorities++
		case plan.Toll.Loss > best.Loss:
			losses++
		}
	})
	t.Logf("of %d cases, %d broke a budget without need, %d more budgets than the least, %d took a higher priority, %d lost more work",
		cases, needless, budgets, priorities, losses)
	require.LessOrEqual(t, needless, cases/100)
	require.LessOrEqual(t, needless+budgets+priorities+losses, cases/10)
}

func BenchmarkPreempt(b *testing.B) {
	for _, members := range []int{1, 256} {
		b.Run(fmt.Sprintf("members=%d", members), func(b *testing.B) {
			s := newScene(b, Request{CPUMilli: 8000, GPUs: 8}, members, slices.Repeat([]int{8}, 5000)...)
			for at := range s.Nodes {
				for i := range 8 {
					s.victim(fmt.Sprintf("v%d-%d", at, i), Request{CPUMilli: 4000, GPUs: 1}, int32(at%3), float64((at*7+i*13)%101), at)
				}
			}
			for b.Loop() {
				plan, failure := testChooser.Preempt(&s.Preemption)
				require.Nil(b, failure)
				require.Equal(b, int32(0), plan.Toll.Priority)
			}
		})
	}
}
