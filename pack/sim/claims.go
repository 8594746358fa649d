// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"cmp"
	"slices"

	"github.com/gpupack/gpupack/pack"
)

// claims keep places for those that have waited for long, whatever the policy. A claim closes part of one node to all others, so
// that it becomes free once some of the tasks that run there have left.
type claims struct {
	// after is how long a task waits before a place is kept for it, in seconds; 0 keeps none.
	after float64
	// most is how many GPUs are kept at most, unless one task asks for more.
	most int
	// next is the first visit that has not been asked yet whether it is overdue.
	next int
	// overdue and claimed are how many tasks of each class have waited for so long, and how many places are kept for the class.
	// The places go to the first that wait.
	overdue, claimed []int
	// hopeless are classes for which no node was found since a claim was lifted.
	hopeless []bool
	// owed is how many overdue tasks have no claim.
	owed int
	// gpus is how many are kept.
	gpus int
	// at is the claim on each node, and list all in the order in which they were made.
	at   []*claim
	list []*claim
}

type claim struct {
	class, rank int32
	// gpus are indexes of the node's GPUs. Others get no part of them.
	gpus []int
	// leaving are the visits that must have left before all that is claimed is free.
	leaving []int32
	// work is what was in the way when the claim was looked at last.
	work float64
}

// muchMore is by what factor the work in the way of a claim must have grown for it to be looked at again, and must be above that on
// another node for the claim to go there. The longer a task has run, the longer it is likely to go on.
const muchMore = 2

// mostClaimed is the part of the cluster's GPUs that is kept at most.
const mostClaimed = 0.01

func newClaims(after float64, classes, nodes int, milli int64) claims {
	return claims{
		after: after, most: int(mostClaimed * float64(milli)),
		overdue: make([]int, classes), claimed: make([]int, classes), hopeless: make([]bool, classes), at: make([]*claim, nodes),
	}
}

func (cs *claims) size(r *pack.Request) int { return max(1, r.Count()) }

// claim makes the claims that are due, for the longest wait first.
func (c *churn) claim() {
	cs := &c.claims
	if cs.after == 0 {
		return
	}
	for ; cs.next < c.next; cs.next++ {
		v := &c.visits[cs.next]
		if max(0, v.arrival)+cs.after > c.now {
			break
		}
		if v.started < 0 {
			cs.overdue[c.kinds[v.task]]++
			cs.owed++
		}
	}
	c.review()
	for cs.owed > 0 {
		first, class := int32(-1), int32(-1)
		for id, n := range cs.overdue {
			if have := cs.claimed[id]; have < n && !cs.hopeless[id] && (first < 0 || c.waiting[id][have] < first) {
				first, class = c.waiting[id][have], int32(id)
			}
		}
		if class < 0 || len(cs.list) > 0 && c.idle() > cs.most || len(cs.list) >= 64 {
			return
		}
		if made := c.claimFor(class); made != nil {
			c.stake(made)
		} else {
			cs.hopeless[class] = true
		}
	}
}

// review moves claims behind tasks that turn out to run for long.
func (c *churn) review() {
	for _, cl := range slices.Clone(c.claims.list) {
		work := c.work(cl.leaving)
		if c.claims.at[cl.rank] != cl || work <= muchMore*cl.work {
			continue
		}
		cl.work = work
		if made := c.claimFor(cl.class); made != nil && muchMore*made.work < work {
			c.lift(cl)
			c.stake(made)
			c.show(cl.rank)
			c.retry(cl.rank)
		}
	}
}

// stake makes a claim.
func (c *churn) stake(cl *claim) {
	cs := &c.claims
	cs.list = append(cs.list, cl)
	cs.at[cl.rank] = cl
	cs.claimed[cl.class]++
	cs.owed--
	cs.gpus += cs.size(&c.requests[cl.class])
	c.show(cl.rank)
}

// lift gives up a claim.
func (c *churn) lift(cl *claim) {
	cs := &c.claims
	i := slices.Index(cs.list, cl)
	cs.list = slices.Delete(cs.list, i, i+1)
	cs.at[cl.rank] = nil
	cs.claimed[cl.class]--
	cs.owed++
	cs.gpus -= cs.size(&c.requests[cl.class])
	clear(cs.hopeless)
}

// claimFor finds the node on which least is in the way of a task of the class: what those that must leave hold, in milli-GPU,
// times how long they will run. Nobody knows that, so each is taken to run as long again as it has run.
func (c *churn) claimFor(class int32) *claim {
	r := &c.requests[class]
	var best *claim
	for rank := range c.claims.at {
		total := &c.cluster.states[c.cluster.of[rank]].total
		if c.claims.at[rank] != nil || r.CPUMilli > total.CPUMilli || r.MemoryMiB > total.MemoryMiB || r.Count() > total.GPUs ||
			r.WantsGPU() && !r.Accepts(c.books.nodes[rank].Model) {
			continue
		}
		if cl := c.claimOn(int32(rank), r); best == nil || cl.work < best.work {
			best = cl
		}
	}
	if best != nil {
		best.class = class
	}
	return best
}

// claimOn is the claim on a node that is large enough.
func (c *churn) claimOn(rank int32, r *pack.Request) *claim {
	// Those that have just come leave first.
	order := slices.Clone(c.on[rank])
	slices.SortFunc(order, func(a, b int32) int { return cmp.Or(cmp.Compare(c.age(a), c.age(b)), cmp.Compare(a, b)) })
	n := &c.books.nodes[rank]
	free := roomOf(n)
	count := 0
	for !free.fits(r) {
		free.add(c, order[count], 1)
		count++
	}
	leaving := order[:count]
	for i := len(leaving) - 1; i >= 0; i-- {
		free.add(c, leaving[i], -1)
		if free.fits(r) {
			leaving = slices.Delete(leaving, i, i+1)
		} else {
			free.add(c, leaving[i], 1)
		}
	}
	cl := &claim{rank: rank, leaving: leaving}
	// Others can go on to use the GPUs of which more is free.
	for g := range n.Milli {
		if r.WantsGPU() && free.milli[g] >= r.MilliOn(0) {
			cl.gpus = append(cl.gpus, g)
		}
	}
	slices.SortStableFunc(cl.gpus, func(a, b int) int { return cmp.Compare(n.Milli[a], n.Milli[b]) })
	cl.gpus = cl.gpus[:r.Count()]
	slices.Sort(cl.gpus)
	cl.work = c.work(leaving)
	return cl
}

// work is how much those visits have still to do, in milli-GPU seconds. One without GPUs counts as 1 milli-GPU.
func (c *churn) work(leaving []int32) float64 {
	var sum float64
	for _, id := range leaving {
		sum += float64(max(1, asked(&c.tasks[c.visits[id].task].Request))) * max(60, c.age(id))
	}
	return sum
}

// age is how long a visit has run, in seconds.
func (c *churn) age(id int32) float64 {
	v := &c.visits[id]
	if v.arrival < 0 && v.started == 0 {
		return c.now - v.arrival
	}
	return c.now - v.started
}

// nodeRoom is what is free on a node, or would be.
type nodeRoom struct {
	cpu, memory int64
	gpus        int
	milli       [pack.MaxGPUs]int64
}

func roomOf(n *NodeUse) nodeRoom {
	room := nodeRoom{cpu: n.FreeCPUMilli, memory: n.FreeMemoryMiB, gpus: len(n.Milli)}
	for g, milli := range n.Milli {
		room.milli[g] = int64(milli)
	}
	return room
}

// add adds so many times what a visit holds.
func (room *nodeRoom) add(c *churn, id int32, times int64) {
	v := &c.visits[id]
	r := &c.tasks[v.task].Request
	room.cpu += times * r.CPUMilli
	room.memory += times * r.MemoryMiB
	for _, g := range v.gpus {
		room.milli[g] += times * r.MilliOn(0)
	}
}

func (room *nodeRoom) fits(r *pack.Request) bool {
	count := 0
	for g := range room.gpus {
		if room.milli[g] >= r.MilliOn(0) {
			count++
		}
	}
	return r.CPUMilli <= room.cpu && r.MemoryMiB <= room.memory && r.Count() <= count
}

// ready says whether all that is claimed is free.
func (c *churn) ready(cl *claim) bool {
	n, r := &c.books.nodes[cl.rank], &c.requests[cl.class]
	return r.CPUMilli <= n.FreeCPUMilli && r.MemoryMiB <= n.FreeMemoryMiB &&
		!slices.ContainsFunc(cl.gpus, func(g int) bool { return int64(n.Milli[g]) < r.MilliOn(0) })
}

// shape is what of a node is open to those without a claim on it.
func (c *churn) shape(rank int32) pack.Shape {
	cl := c.claims.at[rank]
	if cl == nil {
		return c.books.shape(rank)
	}
	n, r := c.books.nodes[rank], &c.requests[cl.class]
	then := roomOf(&n)
	for _, id := range cl.leaving {
		then.add(c, id, 1)
	}
	n.FreeCPUMilli = min(n.FreeCPUMilli, then.cpu-r.CPUMilli)
	n.FreeMemoryMiB = min(n.FreeMemoryMiB, then.memory-r.MemoryMiB)
	n.Milli = slices.Clone(n.Milli)
	for _, g := range cl.gpus {
		n.Milli[g] = 0
	}
	return shapeOf(&n)
}

// show tells the cluster what of a node is open.
func (c *churn) show(rank int32) {
	next := c.cluster.states[c.cluster.of[rank]]
	next.shape = c.shape(rank)
	if c.cluster.byKind {
		next.kinds = 0
		for _, id := range c.on[rank] {
			next.kinds |= pack.KindOf(&c.tasks[c.visits[id].task].Request)
		}
	}
	c.cluster.change(rank, &next)
}

// idle is how much of the GPUs is free and kept, in milli-GPU.
func (c *churn) idle() int {
	sum := 0
	for _, cl := range c.claims.list {
		for _, g := range cl.gpus {
			sum += c.books.nodes[cl.rank].Milli[g]
		}
	}
	return sum
}
