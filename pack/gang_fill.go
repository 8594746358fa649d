// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// gangPlan is a plan in the making.
type gangPlan struct {
	gang        *Gang
	constraints Constraints
	states      gangStates
	// state of each node as planned so far.
	state []int32
	// rest counts members that have no place yet, by class, and left is their sum.
	rest []int
	left int
	// order has the classes from the hardest to place to the easiest.
	order []int
	// places so far, in the order in which they were taken.
	places []place
	// interplay is true once a placement has changed what is feasible elsewhere.
	interplay bool
	// explain asks fill to keep, in failure, why the first class that is left over is.
	explain bool
	failure GangFailure

	// Space that fill uses again.
	heap  candidateHeap
	aside []rejected
}

// place is where a member of a class goes.
type place struct {
	class int
	node  int32
	// before is the state of the node without the member.
	before int32
	choice *Choice
	// told is true where the constraints know of it.
	told bool
}

type rejected struct {
	candidate
	why string
}

func newGangPlan(c *Chooser, nodes []*Node, g *Gang, constraints Constraints) *gangPlan {
	p := &gangPlan{
		gang: g, constraints: constraints,
		states: newGangStates(c, g.Classes),
		state:  make([]int32, len(nodes)),
		rest:   make([]int, len(g.Classes)),
		order:  make([]int, len(g.Classes)),
		left:   len(g.Members),
		places: make([]place, 0, len(g.Members)),
	}
	for at, n := range nodes {
		p.state[at] = p.states.of(n)
	}
	for _, m := range g.Members {
		p.rest[m.Class]++
	}
	for i := range p.order {
		p.order[i] = i
	}
	slices.SortStableFunc(p.order, func(a, b int) int { return compareSize(&g.Classes[a], &g.Classes[b]) })
	return p
}

// fill places as many of the rest as fit on the nodes at those positions. Without asking, it ignores the constraints.
func (p *gangPlan) fill(nodes []int32, ask bool) (score float64) {
	for again := true; again && p.left > 0; {
		again = false
		p.failure = GangFailure{}
		explained := !p.explain
		for _, class := range p.order {
			if p.rest[class] == 0 {
				continue
			}
			sum, elsewhere := p.fillClass(class, nodes, ask)
			score += sum
			// A member may need another beside it that is easier to place, as a worker its launcher by pod affinity.
			again = again || elsewhere
			if p.rest[class] > 0 && !explained {
				explained = true
				p.failure = GangFailure{Request: p.gang.Classes[class], Rejected: p.reasons(class, nodes)}
			}
		}
	}
	return score
}

// fillClass places members of the class one by one where the policy likes it best, on the first of equal nodes. The
// constraints are asked of a node only when its turn comes.
func (p *gangPlan) fillClass(class int, nodes []int32, ask bool) (score float64, elsewhere bool) {
	h := p.heap[:0]
	p.aside = p.aside[:0]
	for _, at := range nodes {
		if m := p.states.move(p.state[at], class); m.reason == ReasonFits {
			h = append(h, candidate{m.choice.Score, at})
		}
	}
	h.init()
	for p.rest[class] > 0 && len(h) > 0 {
		at := h[0].at
		if ask {
			if ok, why := p.constraints.Feasible(class, int(at)); !ok {
				p.aside = append(p.aside, rejected{h[0], why})
				h.drop()
				continue
			}
		}
		before := p.state[at]
		next, choice := p.states.take(before, class)
		p.state[at] = next
		p.places = append(p.places, place{class, at, before, choice, ask})
		p.rest[class]--
		p.left--
		score += choice.Score
		if m := p.states.move(next, class); m.reason == ReasonFits {
			h[0].score = m.choice.Score
			h.down(0)
		} else {
			h.drop()
		}
		if ask && p.constraints.Placed(class, int(at)) {
			elsewhere, p.interplay = true, true
			for _, r := range p.aside {
				h = append(h, r.candidate)
			}
			if len(p.aside) > 0 {
				p.aside = p.aside[:0]
				h.init()
			}
		}
	}
	p.heap = h
	return score, elsewhere
}

// reasons counts the nodes by why they take no other member of the class. fillClass has just tried them all.
func (p *gangPlan) reasons(class int, nodes []int32) map[string]int {
	out := map[string]int{}
	for _, at := range nodes {
		if m := p.states.move(p.state[at], class); m.reason != ReasonFits {
			out[m.reason.Message()]++
		}
	}
	for i := range p.aside {
		out[p.aside[i].why]++
	}
	return out
}

// undo takes back all places from that one on.
func (p *gangPlan) undo(from int) {
	for i := len(p.places) - 1; i >= from; i-- {
		at := &p.places[i]
		p.state[at.node] = at.before
		p.rest[at.class]++
		p.left++
		if at.told {
			p.constraints.Removed(at.class, int(at.node))
		}
	}
	p.places = p.places[:from]
}

// gangStates knows what a member of each class gets on each distinct state of a node.
type gangStates struct {
	chooser *Chooser
	classes []Request
	// like has, for each class, the first with an equal request.
	like []int
	// busy says whether utilisation matters.
	busy bool
	ids  map[string]int32
	list []nodeState
	key  []byte
}

type nodeState struct {
	// node is one in that state.
	node *Node
	// moves by class.
	moves []move
}

// move is what a member of a class gets on a node in one state.
type move struct {
	known bool
	// taken is true once next is known.
	taken  bool
	reason Reason
	choice Choice
	// next is the state of the node with the member.
	next int32
}

func newGangStates(c *Chooser, classes []Request) gangStates {
	s := gangStates{chooser: c, classes: classes, like: make([]int, len(classes)), ids: map[string]int32{}}
	first := map[RequestKey]int{}
	for i := range classes {
		key := classes[i].Key()
		if _, ok := first[key]; !ok {
			first[key] = i
		}
		s.like[i] = first[key]
		s.busy = s.busy || classes[i].IsShare()
	}
	return s
}

// of returns the state of a node: equal for nodes on which the chooser does the same for every class.
func (s *gangStates) of(n *Node) int32 {
	key := s.key[:0]
	number := func(v int64) { key = binary.AppendVarint(key, v) }
	flag := func(v bool) {
		if v {
			key = append(key, 1)
		} else {
			key = append(key, 0)
		}
	}
	number(n.CPUMilli)
	number(n.MemoryMiB)
	number(n.Total.CPUMilli)
	number(n.Total.MemoryMiB)
	number(int64(n.Total.GPUs))
	number(int64(n.Problem))
	number(int64(n.Kinds()))
	flag(n.Stale)
	flag(n.Observe)
	for i := range n.GPUs {
		g := &n.GPUs[i]
		number(int64(len(g.Model)))
		key = append(key, g.Model...)
		number(g.TotalMiB)
		number(g.ReservedMiB)
		number(g.ForeignMiB)
		number(g.FreeMiB())
		number(g.FreeMilli())
		flag(len(g.Tenants) > 0)
		flag(g.Unhealthy != "")
		flag(g.Cordoned)
		if s.busy {
			number(int64(g.Utilization))
		}
	}
	s.key = key
	id, ok := s.ids[string(key)]
	if !ok {
		id = int32(len(s.list))
		s.ids[string(key)] = id
		s.list = append(s.list, nodeState{n, make([]move, len(s.classes))})
	}
	return id
}

// move returns what a member of the class gets on a node in that state.
func (s *gangStates) move(state int32, class int) *move {
	class = s.like[class]
	m := &s.list[state].moves[class]
	if !m.known {
		m.known = true
		n, r := s.list[state].node, &s.classes[class]
		if m.reason = s.chooser.Limits.FitHost(n, r); m.reason == ReasonFits {
			m.choice, m.reason = s.chooser.Choose(n, r)
		}
	}
	return m
}

// take returns the state of a node once a member of the class, which fits, has what it gets there.
func (s *gangStates) take(state int32, class int) (int32, *Choice) {
	m := s.move(state, class)
	if !m.taken {
		n := s.list[state].node.Clone()
		n.Place(&s.classes[class], "", m.choice.GPUs)
		// of can move the list, but not the moves of a state.
		m.next, m.taken = s.of(n), true
	}
	return m.next, &m.choice
}

// candidate is a node that a member could have.
type candidate struct {
	score float64
	at    int32
}

// before says whether a is better than b: by score, then by position.
func (a candidate) before(b candidate) bool {
	if c := cmp.Compare(a.score, b.score); c != 0 {
		return c > 0
	}
	return a.at < b.at
}

// candidateHeap has the best candidate in front.
type candidateHeap []candidate

func (h candidateHeap) init() {
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.down(i)
	}
}

// down restores the order after the candidate at i has become worse.
func (h candidateHeap) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if right := child + 1; right < len(h) && h[right].before(h[child]) {
			child = right
		}
		if !h[child].before(h[i]) {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

// drop removes the candidate in front.
func (h *candidateHeap) drop() {
	last := len(*h) - 1
	(*h)[0] = (*h)[last]
	*h = (*h)[:last]
	h.down(0)
}
