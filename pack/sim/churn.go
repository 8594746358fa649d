// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// ChurnOptions say how to replay a trace with departures.
type ChurnOptions struct {
	// Policy is one of policy.Names().
	Policy string
	// Seed decides by how much the copies of the trace are shifted, which of equal nodes is taken, and what the policy random
	// draws.
	Seed uint64
	// Load is the part of the cluster's GPUs that would be in use in the mean if each task started when it came. From about
	// 0.9 tasks have to wait, and above 1 ever more do for as long as the replay lasts.
	Load float64
	// TimeScale multiplies the time from one arrival of the trace to the next, but not how long tasks run; 0 means 1. The
	// load does not change: with longer gaps, more copies of the trace run at once.
	TimeScale float64
	// Passes is how often each task of the trace arrives in the mean; 0 means DefaultPasses. Nothing is measured in the first
	// fifth of the time that this takes.
	Passes float64
	// Distribution is DistributionTrace (also if empty) or DistributionOnline.
	Distribution string
	// ReserveAfter is how long a task waits, in seconds, before a place is kept for it; 0 keeps none.
	ReserveAfter float64
	// Progress, unless nil, is called now and then with the number of arrivals that are dealt with and of all.
	Progress func(done, total int)
}

// DefaultPasses is what ChurnOptions.Passes is where it is 0. In a tenth of that, room that small tasks have broken up for good
// does not show yet.
const DefaultPasses = 50

// mostArrivals bounds the memory that a replay takes, to about 1 GiB.
const mostArrivals = 1e7

// ChurnResult is what became of a replay with departures. Means are over time.
type ChurnResult struct {
	Seed uint64
	// Hours is how long was measured, in the time of the trace.
	Hours float64
	// Offered is what would be in use if each task started when it came, Allocated is what is, in mean percent of all GPUs.
	Offered, Allocated float64
	// Fragmented is what the expected workload cannot use of the free GPUs, in mean percent of all GPUs: the fragment of
	// pack/policy.FGD, over the trace's tasks that ask for GPUs. Fragmentation is the same in percent of the free GPUs. It
	// tends to 100 as a cluster fills, so that a policy which leaves less free looks worse by it.
	Fragmented, Fragmentation float64
	// All is about the tasks that came while it was measured, Large about those of them that ask for four GPUs or more;
	// where the trace has none, for as much as the largest twentieth of its tasks with GPUs.
	All, Large Delays
	// Seconds is how long the replay took.
	Seconds float64
}

// Delays are how long tasks waited for a place.
type Delays struct {
	Tasks int
	// Waiting had found no place at the end. Their delay counts until then, less than it would have become.
	Waiting int
	// P50, P99 and Max are in seconds.
	P50, P99, Max float64
}

// Churn replays a cluster in which tasks come and go, after Task.Arrival and Task.Duration.
//
// A trace need not hold as much as the cluster, so copies of it run at once, as many as the load takes. Each goes round in
// a circle, so that its first task comes again when its last has left, and they are spread evenly over the circle, but for
// what the seed adds. The load is then the same at any time. The replay starts with the tasks that would be running, in the
// order in which they came.
//
// Tasks that find no place wait. When one leaves, those that fit now are placed, first come first served, but a task that
// still does not fit holds nobody up, as in kube-scheduler, unless ChurnOptions.ReserveAfter says when it does.
func Churn(ctx context.Context, in Input, o ChurnOptions) (ChurnResult, error) {
	o.TimeScale, o.Passes = cmp.Or(o.TimeScale, 1), cmp.Or(o.Passes, DefaultPasses)
	if err := validateChurn(&in, &o); err != nil {
		return ChurnResult{}, err
	}
	start := time.Now()
	in.Nodes = ranked(in.Nodes, false, o.Seed)
	c, err := newChurn(&in, &o)
	if err != nil {
		return ChurnResult{}, err
	}
	for i := 0; c.step(c.until); i++ {
		if i%256 != 0 {
			continue
		}
		if ctx.Err() != nil {
			return ChurnResult{}, ctx.Err()
		}
		if o.Progress != nil {
			o.Progress(c.next, len(c.visits))
		}
	}
	if o.Progress != nil {
		o.Progress(len(c.visits), len(c.visits))
	}
	res := c.result()
	res.Seed, res.Seconds = o.Seed, time.Since(start).Seconds()
	return res, nil
}

func validateChurn(in *Input, o *ChurnOptions) error {
	if err := validate(in, &Options{Load: o.Load, Distribution: o.Distribution}); err != nil {
		return err
	}
	for i := range in.Tasks {
		if t := &in.Tasks[i]; t.Arrival < 0 || t.Duration <= 0 {
			return fmt.Errorf("task %q does not say when it comes and how long it runs, which a replay with departures must know of every task", t.Name)
		}
	}
	switch {
	case !(o.TimeScale > 0 && o.TimeScale <= 1000):
		return fmt.Errorf("a time scale of %g is not above 0 and at most 1000", o.TimeScale)
	case !(o.ReserveAfter >= 0):
		return fmt.Errorf("keeping places after %g seconds: give 0 or more", o.ReserveAfter)
	case !(o.Passes > 0 && o.Passes <= 1000):
		return fmt.Errorf("a number of %g passes is not above 0 and at most 1000", o.Passes)
	case o.Passes*float64(len(in.Tasks)) > mostArrivals:
		return fmt.Errorf("%g passes of %d tasks are more than %g arrivals: give fewer passes", o.Passes, len(in.Tasks), mostArrivals)
	}
	return nil
}

// visit is one task that comes and goes. Times are in seconds from the start of the replay.
type visit struct {
	task int32
	// arrival is negative for a task that would be running at the start.
	arrival float64
	// remaining is how long it runs once it has a place.
	remaining float64
	// started is when it got a place; negative while it has none.
	started float64
	rank    int32
	gpus    []int
}

// mostCopied bounds the copies of the trace times its tasks, to what takes some seconds to look at.
const mostCopied = 1e9

// visits returns the tasks that come in the course of a replay, in order, and how long it lasts.
func visits(tasks []Task, milli int64, o *ChurnOptions) (all []visit, until float64, err error) {
	first, last := int64(math.MaxInt64), int64(0)
	var work float64
	for i := range tasks {
		t := &tasks[i]
		first, last = min(first, t.Arrival), max(last, t.Arrival+t.Duration)
		work += float64(asked(&t.Request)) * float64(t.Duration)
	}
	// One copy has work/round milli-GPU in use in the mean. The number of copies is rounded, and round put right for it.
	round := float64(last-first) * o.TimeScale
	target := o.Load * float64(milli)
	copies := max(1, math.Round(target*round/work))
	if copies*float64(len(tasks)) > mostCopied {
		return nil, 0, fmt.Errorf("a load of %g takes %.0f copies of the trace: give a time scale below %g", o.Load, copies, o.TimeScale)
	}
	scale := copies * work / target / float64(last-first)
	round = float64(last-first) * scale
	until = round * o.Passes / copies

	rng := rand.New(rand.NewPCG(o.Seed, 0x636875726e))
	for n := range int(copies) {
		shift := (float64(n) + rng.Float64()) / copies * round
		for i := range tasks {
			t := &tasks[i]
			at := math.Mod(float64(t.Arrival-first)*scale+shift, round)
			duration := float64(t.Duration)
			for before := at - round; before+duration > 0; before -= round {
				all = append(all, visit{task: int32(i), arrival: before, remaining: before + duration, started: -1})
			}
			for ; at < until; at += round {
				all = append(all, visit{task: int32(i), arrival: at, remaining: duration, started: -1})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b visit) int { return cmp.Compare(a.arrival, b.arrival) })
	return all, until, nil
}

// churn is a replay with departures.
type churn struct {
	*replay
	tasks  []Task
	books  *ledger
	visits []visit
	// next is the first visit that is still to come.
	next       int
	departures []departure
	// waiting are the visits of each class that have no place, in order. As long as nothing leaves, no node can take any.
	waiting [][]int32
	// on are the visits on each node.
	on     [][]int32
	claims claims
	// now is what has passed, from and until the time that is measured, in seconds.
	now, from, until float64

	fragment *policy.FGD
	// fragments of each node.
	fragments []float64
	// allocated and fragmented now, in milli-GPU.
	allocated  int64
	fragmented float64
	// Sums over the time measured, in milli-GPU seconds; that of the fragmented part of what is free, in seconds.
	allocatedSum, fragmentedSum, fragmentationSum float64
}

type departure struct {
	at    float64
	visit int32
}

func sooner(a, b departure) bool { return a.at < b.at || a.at == b.at && a.visit < b.visit }

func newChurn(in *Input, o *ChurnOptions) (*churn, error) {
	re, err := newReplay(in, o.Policy, o.Distribution, o.Seed)
	if err != nil {
		return nil, err
	}
	re.expectTurnover()
	c := &churn{
		replay: re, tasks: in.Tasks, books: newLedger(in.Nodes),
		waiting: make([][]int32, len(re.requests)), on: make([][]int32, len(in.Nodes)), fragments: make([]float64, len(in.Nodes)),
		claims: newClaims(o.ReserveAfter, len(re.requests), len(in.Nodes), re.cluster.milli),
	}
	if c.visits, c.until, err = visits(in.Tasks, re.cluster.milli, o); err != nil {
		return nil, err
	}
	c.from = c.until / 5
	var weights []pack.Class
	for _, class := range distribution(re.kinds, re.requests, DistributionTrace).Classes().List {
		if class.Request.WantsGPU() {
			weights = append(weights, class)
		}
	}
	c.fragment = policy.NewFGD(pack.FixedDistribution(weights))
	for rank := range c.fragments {
		c.look(int32(rank))
	}
	return c, nil
}

// step moves on to the next arrival or departure before the end, and says whether there was one.
func (c *churn) step(end float64) bool {
	next := end
	leaves := len(c.departures) > 0 && c.departures[0].at < next
	if leaves {
		next = c.departures[0].at
	}
	// Who leaves at the moment at which another comes makes room for it.
	if c.next < len(c.visits) && max(0, c.visits[c.next].arrival) < next {
		c.pass(max(0, c.visits[c.next].arrival))
		c.arrive()
		return true
	}
	c.pass(next)
	if leaves {
		c.leave()
	}
	return leaves
}

// pass lets time pass and measures.
func (c *churn) pass(now float64) {
	if d := min(now, c.until) - max(c.now, c.from); d > 0 {
		c.allocatedSum += d * float64(c.allocated)
		c.fragmentedSum += d * c.fragmented
		if free := c.cluster.milli - c.allocated; free > 0 {
			c.fragmentationSum += d * c.fragmented / float64(free)
		}
	}
	c.now = now
}

func (c *churn) arrive() {
	c.claim()
	id := int32(c.next)
	c.next++
	task := c.visits[id].task
	class := c.kinds[task]
	c.dist.Observe(&c.tasks[task].Request)
	if len(c.waiting[class]) > 0 || !c.start(id) {
		c.waiting[class] = append(c.waiting[class], id)
		c.dist.Wait(&c.tasks[task].Request)
	}
}

// start gives a visit a place if there is one.
func (c *churn) start(id int32) bool {
	v := &c.visits[id]
	at, ok := c.cluster.place(c.kinds[v.task])
	if !ok {
		return false
	}
	var closed []int
	if cl := c.claims.at[at.rank]; cl != nil {
		closed = cl.gpus
	}
	c.begin(id, at.rank, c.books.take(at, &c.tasks[v.task].Request, closed...))
	return true
}

// begin lets a visit run on what it has been given.
func (c *churn) begin(id, rank int32, gpus []int) {
	v := &c.visits[id]
	v.started, v.rank, v.gpus = c.now, rank, gpus
	c.on[rank] = append(c.on[rank], id)
	c.allocated += asked(&c.tasks[v.task].Request)
	c.departures = heapPush(c.departures, departure{c.now + v.remaining, id}, sooner)
	c.look(rank)
}

// leave lets the next task depart and gives what it leaves to those that wait.
func (c *churn) leave() {
	c.claim()
	id := c.departures[0].visit
	v := &c.visits[id]
	c.departures = heapRemove(c.departures, 0, sooner)
	r := &c.tasks[v.task].Request
	c.books.give(v.rank, r, v.gpus)
	v.gpus = nil
	c.on[v.rank] = without(c.on[v.rank], id)
	c.allocated -= asked(r)
	cl := c.claims.at[v.rank]
	if cl != nil {
		cl.leaving = without(cl.leaving, id)
	}
	c.show(v.rank)
	c.look(v.rank)
	if cl != nil && c.ready(cl) {
		c.redeem(cl)
	}
	c.retry(v.rank)
}

// redeem gives what was claimed to the first of the class.
func (c *churn) redeem(cl *claim) {
	c.lift(cl)
	id := c.unqueue(cl.class)
	c.books.put(cl.rank, &c.requests[cl.class], cl.gpus)
	c.begin(id, cl.rank, cl.gpus)
	c.show(cl.rank)
}

// unqueue takes the first of a class out of the queue.
func (c *churn) unqueue(class int32) int32 {
	id := c.waiting[class][0]
	c.waiting[class] = c.waiting[class][1:]
	c.dist.Settle(&c.requests[class])
	if int(id) < c.claims.next {
		c.claims.overdue[class]--
		c.claims.owed--
	}
	return id
}

// retry places the visits that fit on the node now, first come first served. Nothing else has room for one.
func (c *churn) retry(rank int32) {
	for {
		first, class := int32(-1), int32(-1)
		shape := &c.cluster.states[c.cluster.of[rank]].shape
		for id, ids := range c.waiting {
			if len(ids) > 0 && (first < 0 || ids[0] < first) && shape.Fits(&c.requests[id]) {
				first, class = ids[0], int32(id)
			}
		}
		if first < 0 {
			return
		}
		c.start(c.unqueue(class))
		if c.claims.claimed[class] > c.claims.overdue[class] {
			c.release(class)
		}
	}
}

// release gives up the last claim of a class of which fewer wait now.
func (c *churn) release(class int32) {
	for _, cl := range slices.Backward(c.claims.list) {
		if cl.class == class {
			c.lift(cl)
			c.show(cl.rank)
			c.retry(cl.rank)
			return
		}
	}
}

func without(ids []int32, id int32) []int32 {
	if i := slices.Index(ids, id); i >= 0 {
		return slices.Delete(ids, i, i+1)
	}
	return ids
}

// look keeps the sum of fragments right for a node that has changed.
func (c *churn) look(rank int32) {
	shape := c.books.shape(rank)
	// What FGD gains where all that the node has goes.
	fragment := c.fragment.Score(&pack.Candidate{Before: &shape, After: &pack.Shape{}})
	c.fragmented += fragment - c.fragments[rank]
	c.fragments[rank] = fragment
}

func (c *churn) result() ChurnResult {
	seconds := c.until - c.from
	percent := func(sum float64) float64 { return 100 * sum / seconds / float64(c.cluster.milli) }
	res := ChurnResult{
		Hours: seconds / 3600, Allocated: percent(c.allocatedSum), Fragmented: percent(c.fragmentedSum),
		Fragmentation: 100 * c.fragmentationSum / seconds,
	}
	large := largeMilli(c.tasks)
	var offered float64
	var all, big []float64
	for i := range c.visits {
		v := &c.visits[i]
		r := &c.tasks[v.task].Request
		begin := max(0, v.arrival)
		offered += float64(asked(r)) * max(0, min(begin+v.remaining, c.until)-max(begin, c.from))
		if v.arrival < c.from {
			continue
		}
		delay := v.started - v.arrival
		if v.started < 0 {
			delay = c.until - v.arrival
			res.All.Waiting++
		}
		all = append(all, delay)
		if asked(r) >= large {
			big = append(big, delay)
			if v.started < 0 {
				res.Large.Waiting++
			}
		}
	}
	res.Offered = percent(offered)
	res.All.fill(all)
	res.Large.fill(big)
	return res
}

// largeMilli is from how many milli-GPU on a task is large.
func largeMilli(tasks []Task) int64 {
	var sizes []int64
	for i := range tasks {
		if milli := asked(&tasks[i].Request); milli > 0 {
			sizes = append(sizes, milli)
		}
	}
	slices.Sort(sizes)
	if most := sizes[len(sizes)-1]; most >= 4*pack.WholeMilli {
		return 4 * pack.WholeMilli
	}
	return sizes[len(sizes)*19/20]
}

// fill sets all but Waiting.
func (d *Delays) fill(delays []float64) {
	slices.Sort(delays)
	d.Tasks = len(delays)
	if len(delays) == 0 {
		return
	}
	// The nearest rank: the least delay that so many per cent of the tasks do not exceed.
	rank := func(percent int) float64 { return delays[max(0, (len(delays)*percent+99)/100-1)] }
	d.P50, d.P99, d.Max = rank(50), rank(99), delays[len(delays)-1]
}
