// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"cmp"
	"math"
	"slices"

	"github.com/gpupack/gpupack/pack"
)

// Detail tells of a replay what its Result sums up.
type Detail struct {
	// Curve is allocation against arrivals, at most some 400 points, in the order of arrival.
	Curve []Point
	// Placements has one element for each arrival, in the order of arrival.
	Placements []Placement
	// Before is the cluster with nothing on it, in the order of names; with defragmentation, just before the moves.
	Before []NodeUse
	// After is the cluster at the end, in the same order.
	After []NodeUse
	// Unplaced are the classes of which a task found no place, the most frequent first.
	Unplaced []Unplaced
	// Moves are those of defragmentation, in order.
	Moves []Move
}

// Point is one point of a curve: what the arrivals asked for so far and what is allocated, in percent of all GPUs.
type Point struct{ Arrived, Allocated float64 }

// Placement is where one arrival went.
type Placement struct {
	// Task is a position in Input.Tasks.
	Task int
	// Node is empty where the task found no place.
	Node string
	// GPUs are indexes on the node, ascending; empty for a task without GPUs.
	GPUs []int
}

// NodeUse is what a node has and what is free of it.
type NodeUse struct {
	Name, Model              string
	CPUMilli, FreeCPUMilli   int64
	MemoryMiB, FreeMemoryMiB int64
	// Milli is what is free on each GPU by index, 0 to 1000 milli-GPU.
	Milli []int
}

// Unplaced is a class of tasks of which some found no place.
type Unplaced struct {
	Request pack.Request
	// Count is how many.
	Count int
	// Reasons counts nodes by why they could not take the last such task when it came, in the words of
	// pack.Reason.Message.
	Reasons map[string]int
}

// Move is one task moved by defragmentation.
type Move struct {
	// Arrival is a position in Detail.Placements.
	Arrival int
	// From and To are names of nodes.
	From, To string
}

// mostPoints is how long a curve may be.
const mostPoints = 400

// recorder fills a Detail while tasks arrive.
type recorder struct {
	cluster *cluster
	ledger  *ledger
	detail  *Detail
	// arrivals is how many there will be, and step how many from one point of the curve to the next.
	arrivals, step int
	// unplaced counts tasks by class, and reasons are those of the last.
	unplaced map[int32]int
	reasons  map[int32]map[string]int
}

func newRecorder(c *cluster, l *ledger, arrivals int) *recorder {
	return &recorder{
		cluster: c, ledger: l, arrivals: arrivals, step: (arrivals + mostPoints - 1) / mostPoints,
		detail:   &Detail{Placements: make([]Placement, 0, arrivals), Before: l.use()},
		unplaced: map[int32]int{}, reasons: map[int32]map[string]int{},
	}
}

// placed records that the next arrival, a position in Input.Tasks, has a place. The ledger knows of it already.
func (rec *recorder) placed(task int, rank int32, gpus []int) {
	rec.detail.Placements = append(rec.detail.Placements, Placement{Task: task, Node: rec.ledger.nodes[rank].Name, GPUs: gpus})
}

// failed records that the next arrival, of that class, has none.
func (rec *recorder) failed(task int, class int32) {
	rec.detail.Placements = append(rec.detail.Placements, Placement{Task: task})
	rec.unplaced[class]++
	rec.reasons[class] = rec.cluster.reasons(class)
}

// point records a point of the curve after each step-th arrival, and after the last.
func (rec *recorder) point(arrived, allocated float64) {
	if n := len(rec.detail.Placements); n%rec.step == 0 || n == rec.arrivals {
		rec.detail.Curve = append(rec.detail.Curve, Point{Arrived: arrived, Allocated: allocated})
	}
}

// finish returns what was recorded.
func (rec *recorder) finish() *Detail {
	rec.detail.After = rec.ledger.use()
	classes := make([]int32, 0, len(rec.unplaced))
	for id := range rec.unplaced {
		classes = append(classes, id)
	}
	// Classes are numbered in the order of Input.Tasks.
	slices.SortFunc(classes, func(a, b int32) int { return cmp.Or(rec.unplaced[b]-rec.unplaced[a], int(a-b)) })
	for _, id := range classes {
		rec.detail.Unplaced = append(rec.detail.Unplaced, Unplaced{
			Request: rec.cluster.classes[id].request, Count: rec.unplaced[id], Reasons: rec.reasons[id],
		})
	}
	return rec.detail
}

// reasons counts the nodes by why they cannot take a task of the class.
func (c *cluster) reasons(class int32) map[string]int {
	r := &c.classes[class].request
	var count [math.MaxUint8 + 1]int
	for at, ranks := range c.nodes {
		if len(ranks) > 0 {
			count[obstacle(&c.states[at].shape, r)] += len(ranks)
		}
	}
	out := map[string]int{}
	for reason, n := range count {
		if n > 0 {
			out[pack.Reason(reason).Message()] = n
		}
	}
	return out
}

// obstacle is why a node of the shape cannot take the request: of several reasons, the one that is hardest to mend, in the
// order of pack's reasons.
func obstacle(s *pack.Shape, r *pack.Request) pack.Reason {
	switch {
	case s.Len < r.Count():
		return pack.ReasonTooFewGPUs
	case r.WantsGPU() && !r.Accepts(s.Model):
		return pack.ReasonModel
	case s.Whole() < r.GPUs:
		return pack.ReasonOccupied
	case r.IsShare() && int64(s.Milli[0]) < r.Milli:
		return pack.ReasonCompute
	case r.CPUMilli > s.CPUMilli:
		return pack.ReasonCPU
	case r.MemoryMiB > s.MemoryMiB:
		return pack.ReasonHostMemory
	}
	return pack.ReasonFits
}
