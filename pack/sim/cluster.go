// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// state is what decides which tasks a node can take and how a policy rates them.
type state struct {
	shape pack.Shape
	total pack.Total
	kinds pack.Kinds
}

// cluster counts nodes by state.
type cluster struct {
	policy pack.Policy
	dist   *pack.Distribution
	// byKind is true where the policy looks at Candidate.Kinds, so that states differ by them.
	byKind bool
	// random is true where the scores mean nothing, and a node is drawn instead.
	random   bool
	rng      *rand.Rand
	feasible []int64
	// version of the distribution by which the heaps are sorted.
	version uint64
	// milli is the capacity of all GPUs.
	milli int64
	// free and total are what nodes with GPUs have.
	free, total policy.Capacity
	// aware is the policy where it wants to know of the cluster, and told what it knows.
	aware policy.ClusterAware
	told  policy.Told

	states []state
	// nodes in each state. A node is named by its rank, its position in Input.Nodes, by which ties are broken.
	nodes []ranks
	ids   map[state]int32
	// of is the state of each node, by rank.
	of []int32
	// live is the number of states that have nodes.
	live int
	// born lists states in the order in which they came to have nodes.
	born    []int32
	classes []class
}

// class is a kind of task, and what it knows of the states.
type class struct {
	request pack.Request
	// seen is how many of cluster.born have been looked at.
	seen int
	// queued is true for the states in the heap, by their number.
	queued []bool
	heap   []offer
}

// offer is the best way to put a task of a class on a node in a state.
type offer struct {
	score float64
	state int32
	// gpu is the position in the shape's Milli of the GPU that a share takes.
	gpu int8
}

func newCluster(nodes []Node, requests []pack.Request, p pack.Policy, d *pack.Distribution, seed uint64) *cluster {
	c := &cluster{policy: p, dist: d, ids: map[state]int32{}, version: d.Classes().Version}
	if k, ok := p.(policy.KindAware); ok {
		c.byKind = k.KindAware()
	}
	c.aware, _ = p.(policy.ClusterAware)
	_, c.random = p.(*policy.Random)
	c.rng = rand.New(rand.NewPCG(seed, 0x72616e64))
	for i := range requests {
		c.classes = append(c.classes, class{request: requests[i]})
	}
	c.of = make([]int32, len(nodes))
	for rank := range nodes {
		n := &nodes[rank]
		s := state{
			shape: pack.Shape{CPUMilli: n.CPUMilli, MemoryMiB: n.MemoryMiB, Len: n.GPUs},
			total: pack.Total{CPUMilli: n.CPUMilli, MemoryMiB: n.MemoryMiB, GPUs: n.GPUs},
		}
		if n.GPUs > 0 {
			s.shape.Model = n.Model
		}
		for g := range n.GPUs {
			s.shape.Milli[g] = pack.WholeMilli
		}
		c.add(&s, int32(rank))
		c.total.Add(&s.shape)
		c.milli += int64(n.GPUs) * pack.WholeMilli
	}
	c.free = c.total
	return c
}

// add puts a node into a state.
func (c *cluster) add(s *state, rank int32) {
	id, ok := c.ids[*s]
	if !ok {
		id = int32(len(c.states))
		c.ids[*s] = id
		c.states = append(c.states, *s)
		c.nodes = append(c.nodes, nil)
	}
	c.of[rank] = id
	if c.nodes[id].push(rank); len(c.nodes[id]) == 1 {
		c.live++
		c.born = append(c.born, id)
	}
}

// change puts a node into another state.
func (c *cluster) change(rank int32, s *state) {
	c.free.Remove(&c.states[c.of[rank]].shape)
	c.free.Add(&s.shape)
	from := &c.nodes[c.of[rank]]
	if from.remove(rank); len(*from) == 0 {
		c.live--
	}
	c.add(s, rank)
	if len(c.states)+len(c.born) > 4*c.live+sweepAbove {
		c.sweep()
	}
}

// spot is a place that a task has taken.
type spot struct {
	// rank of the node.
	rank int32
	// free is what was left of the GPU of which a share was taken, in milli-GPU.
	free int16
}

// place puts a task of the class where the policy likes it best, and says whether there was a place.
func (c *cluster) place(id int32) (spot, bool) {
	cl := &c.classes[id]
	var o offer
	var rank int32
	var ok bool
	if c.random {
		o, rank, ok = c.draw(&cl.request)
	} else {
		if v := c.dist.Classes().Version; v != c.version {
			c.version = v
			c.forget()
		}
		c.tell()
		if o, ok = c.best(id); ok {
			rank = c.nodes[o.state][0]
		}
	}
	if !ok {
		return spot{}, false
	}
	next := c.states[o.state]
	free := next.shape.Milli[o.gpu]
	next.shape.Take(&cl.request, int(o.gpu))
	if c.byKind {
		next.kinds |= pack.KindOf(&cl.request)
	}
	c.change(rank, &next)
	return spot{rank: rank, free: free}, true
}

// tell lets the policy know of the cluster where enough has changed.
func (c *cluster) tell() {
	if c.aware == nil {
		return
	}
	changed := c.told.Tell(c.aware, c.free, c.total, c.stock)
	if changed == nil {
		return
	}
	for id := range c.states {
		if len(c.nodes[id]) > 0 && changed(&c.states[id].shape) {
			c.renew(int32(id))
		}
	}
}

// renew gives a state another number, under which it has not been rated yet.
func (c *cluster) renew(id int32) {
	next := int32(len(c.states))
	c.states = append(c.states, c.states[id])
	c.nodes = append(c.nodes, c.nodes[id])
	c.nodes[id] = nil
	c.ids[c.states[next]] = next
	for _, rank := range c.nodes[next] {
		c.of[rank] = next
	}
	c.born = append(c.born, next)
}

// stock yields the states that there are, with the number of nodes in each.
func (c *cluster) stock(yield func(*pack.Shape, int) bool) {
	for id, nodes := range c.nodes {
		if len(nodes) > 0 && !yield(&c.states[id].shape, len(nodes)) {
			return
		}
	}
}

// forget drops all scores.
func (c *cluster) forget() {
	c.born = c.born[:0]
	for id, n := range c.nodes {
		if len(n) > 0 {
			c.born = append(c.born, int32(id))
		}
	}
	for i := range c.classes {
		cl := &c.classes[i]
		cl.seen, cl.heap = 0, cl.heap[:0]
		clear(cl.queued)
	}
}

// sweepAbove is how many entries that count no more are worth a sweep in a small cluster.
const sweepAbove = 4096

// sweep forgets states without nodes, so that memory follows the states that there are and not those that there were.
func (c *cluster) sweep() {
	// Of the states with nodes, those keep their order of birth, and each is born once.
	latest := make([]int, len(c.states))
	for i, id := range c.born {
		latest[id] = i
	}
	renamed := make([]int32, len(c.states))
	for id := range renamed {
		renamed[id] = -1
	}
	// kept[i] is how many of the first i births are kept.
	kept := make([]int, len(c.born)+1)
	states, nodes := make([]state, 0, c.live), make([]ranks, 0, c.live)
	for i, id := range c.born {
		kept[i+1] = kept[i]
		if len(c.nodes[id]) > 0 && latest[id] == i {
			renamed[id] = int32(len(states))
			states, nodes = append(states, c.states[id]), append(nodes, c.nodes[id])
			kept[i+1]++
		}
	}
	c.states, c.nodes = states, nodes
	c.ids = make(map[state]int32, len(states))
	c.born = make([]int32, len(states))
	for id := range states {
		c.ids[states[id]] = int32(id)
		c.born[id] = int32(id)
		for _, rank := range nodes[id] {
			c.of[rank] = int32(id)
		}
	}
	for i := range c.classes {
		c.classes[i].rename(renamed, kept, len(states))
	}
}

// rename drops what the class knows of states that are gone.
func (cl *class) rename(renamed []int32, kept []int, states int) {
	cl.seen = kept[cl.seen]
	cl.queued = make([]bool, states)
	live := cl.heap[:0]
	for _, o := range cl.heap {
		if o.state = renamed[o.state]; o.state >= 0 {
			cl.queued[o.state] = true
			live = append(live, o)
		}
	}
	cl.heap = live
	heapInit(cl.heap, better)
}

func (c *cluster) best(id int32) (offer, bool) {
	cl := &c.classes[id]
	if n := len(c.states) - len(cl.queued); n > 0 {
		cl.queued = append(cl.queued, make([]bool, n)...)
	}
	for ; cl.seen < len(c.born); cl.seen++ {
		at := c.born[cl.seen]
		if cl.queued[at] || len(c.nodes[at]) == 0 {
			continue
		}
		if o, ok := c.rate(&cl.request, at); ok {
			cl.push(o)
			cl.queued[at] = true
		}
	}
	for len(cl.heap) > 0 {
		top := cl.heap[0]
		if len(c.nodes[top.state]) > 0 {
			return c.tied(cl, 0, top), true
		}
		cl.queued[top.state] = false
		cl.pop()
	}
	return offer{}, false
}

// tied returns, of the offers from i on that are as good as the heap's top, and best, the one whose node has the first name.
// In a heap, equals of the top hang together.
func (c *cluster) tied(cl *class, i int, best offer) offer {
	if i >= len(cl.heap) || cl.heap[i].score != best.score {
		return best
	}
	if ranks := c.nodes[cl.heap[i].state]; len(ranks) > 0 && ranks[0] < c.nodes[best.state][0] {
		best = cl.heap[i]
	}
	return c.tied(cl, 2*i+2, c.tied(cl, 2*i+1, best))
}

// rate finds the best way to put the request on a node in the state.
func (c *cluster) rate(r *pack.Request, at int32) (offer, bool) {
	s := &c.states[at]
	if !s.shape.Fits(r) {
		return offer{}, false
	}
	best := offer{score: math.Inf(-1), state: at}
	cand := pack.Candidate{Request: r, Before: &s.shape, Total: &s.total, Kinds: s.kinds, Milli: pack.WholeMilli}
	if !r.IsShare() {
		if r.GPUs == 0 {
			cand.Milli = 0
		}
		next := s.shape
		next.Take(r, 0)
		cand.After = &next
		best.score = c.policy.Score(&cand)
		return best, true
	}
	cand.Milli = r.Milli
	// From the fullest GPU to the emptiest: the first of equals is the one of which least is left.
	for g := s.shape.Len - 1; g >= 0; g-- {
		if int64(s.shape.Milli[g]) < r.Milli || g+1 < s.shape.Len && s.shape.Milli[g] == s.shape.Milli[g+1] {
			continue
		}
		next := s.shape
		next.Take(r, g)
		cand.After = &next
		if score := c.policy.Score(&cand); score > best.score {
			best.score, best.gpu = score, int8(g)
		}
	}
	return best, true
}

func better(a, b offer) bool { return a.score > b.score }

func (cl *class) push(o offer) { cl.heap = heapPush(cl.heap, o, better) }

func (cl *class) pop() { cl.heap = heapRemove(cl.heap, 0, better) }

// draw picks a node at random, each feasible one with the same chance, and for a share one of its feasible GPUs.
func (c *cluster) draw(r *pack.Request) (o offer, rank int32, ok bool) {
	c.feasible = c.feasible[:0]
	for at, ranks := range c.nodes {
		if len(ranks) > 0 && c.states[at].shape.Fits(r) {
			for _, rank := range ranks {
				c.feasible = append(c.feasible, int64(rank)<<32|int64(at))
			}
		}
	}
	if len(c.feasible) == 0 {
		return offer{}, 0, false
	}
	slices.Sort(c.feasible)
	drawn := c.feasible[c.rng.IntN(len(c.feasible))]
	o.state = int32(drawn)
	if r.IsShare() {
		s := &c.states[o.state].shape
		n := 0
		for n < s.Len && int64(s.Milli[n]) >= r.Milli {
			n++
		}
		o.gpu = int8(c.rng.IntN(n))
	}
	return o, int32(drawn >> 32), true
}

// ranks is a heap of nodes, the first on top.
type ranks []int32

func first(a, b int32) bool { return a < b }

func (h *ranks) push(rank int32) { *h = heapPush(*h, rank, first) }

// remove takes out one node, which is on top but for random draws.
func (h *ranks) remove(rank int32) {
	i := 0
	if (*h)[0] != rank {
		i = slices.Index(*h, rank)
	}
	*h = heapRemove(*h, i, first)
}
