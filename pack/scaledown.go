// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"math"
	"slices"
)

// Replica is one of a set of pods of which scale-down removes some.
type Replica struct {
	// ID is that of its tenants.
	ID string
	// Node it runs on; the same pointer for all replicas of a node.
	Node *Node
	// Domains it counts for, one for each of the spreads.
	Domains []string
}

// Spread is a rule by which replicas are spread over domains: the fullest has at most MaxSkew more than the emptiest.
type Spread struct {
	// MaxSkew is 1 or more.
	MaxSkew int
	// Domains are those over which replicas can be spread, also where none is.
	Domains []string
}

// ScaleDownOrder returns the positions of the replicas in the order in which they should be removed so that, however many are, as few
// GPUs as can be remain in use; of equal ones those go first whose node is soonest empty. Replicas on GPUs that others use too go
// last, for nothing is gained by them. A replica whose removal would break a spread, or make one that is broken worse, waits until
// others went. It takes the square of the number of replicas.
//
// For shares it is the best order there is without spreads: GPUs with the fewest replicas are emptied first.
func ScaleDownOrder(replicas []Replica, spreads []Spread) []int {
	s := newScaleDown(replicas, spreads)
	order := make([]int, 0, len(replicas))
	for len(order) < len(replicas) {
		next := s.next()
		s.remove(next)
		order = append(order, next)
	}
	return order
}

type scaleDown struct {
	replicas []Replica
	spreads  []Spread
	// gone replicas have been removed.
	gone []bool
	// gpus that each replica holds, as positions in left, and its node as one in nodes.
	gpus [][]int
	node []int
	// left is how many replicas each GPU still has, or a huge number where others hold it too, so that it cannot become free.
	left []float64
	// nodes has the same of nodes.
	nodes []float64
	// counts of replicas by spread and domain.
	counts []map[string]int
}

func newScaleDown(replicas []Replica, spreads []Spread) *scaleDown {
	s := &scaleDown{
		replicas: replicas, spreads: spreads, gone: make([]bool, len(replicas)), gpus: make([][]int, len(replicas)),
		node: make([]int, len(replicas)), counts: make([]map[string]int, len(spreads)),
	}
	at := make(map[string]int, len(replicas))
	known := map[*Node]int{}
	var nodes []*Node
	for i := range replicas {
		at[replicas[i].ID] = i
		n, ok := known[replicas[i].Node]
		if !ok {
			n = len(nodes)
			known[replicas[i].Node] = n
			nodes, s.nodes = append(nodes, replicas[i].Node), append(s.nodes, 0)
		}
		s.node[i] = n
		s.nodes[n]++
	}
	for position, n := range nodes {
		s.addGPUs(n, position, at)
	}
	for i, spread := range spreads {
		s.counts[i] = map[string]int{}
		for _, domain := range spread.Domains {
			s.counts[i][domain] = 0
		}
		for j := range replicas {
			s.counts[i][replicas[j].Domains[i]]++
		}
	}
	return s
}

// addGPUs adds those of the node that is the one at that position.
func (s *scaleDown) addGPUs(n *Node, position int, at map[string]int) {
	for g := range n.GPUs {
		var count float64
		for _, t := range n.GPUs[g].Tenants {
			if i, ours := at[t.ID]; ours {
				s.gpus[i] = append(s.gpus[i], len(s.left))
				count++
			} else if t.Milli > 0 || t.RequestedMiB > 0 {
				// What is only seen to use memory, of pods that are gone or hold nothing, frees the GPU no less.
				count = math.Inf(1)
				s.nodes[position] = math.Inf(1)
			}
		}
		s.left = append(s.left, count)
	}
}

// next is the replica that should be removed now.
func (s *scaleDown) next() int {
	keeps := make([]map[string]bool, len(s.spreads))
	for i := range s.spreads {
		keeps[i] = s.keep(i)
	}
	best, bestFrees, bestBreaks := -1, 0.0, false
	for i := range s.replicas {
		if s.gone[i] {
			continue
		}
		breaks := false
		for j := range s.spreads {
			breaks = breaks || keeps[j][s.replicas[i].Domains[j]]
		}
		frees := s.frees(i)
		if best >= 0 {
			c := cmp.Or(
				compareBool(breaks, bestBreaks),
				cmp.Compare(bestFrees, frees),
				cmp.Compare(s.nodes[s.node[i]], s.nodes[s.node[best]]),
				cmp.Compare(s.replicas[i].Node.Name, s.replicas[best].Node.Name),
				cmp.Compare(s.firstGPU(i), s.firstGPU(best)),
				cmp.Compare(s.replicas[i].ID, s.replicas[best].ID),
			)
			if c >= 0 {
				continue
			}
		}
		best, bestFrees, bestBreaks = i, frees, breaks
	}
	return best
}

// frees is how many GPUs one removal of this kind sets free: a GPU with three replicas counts a third for each.
func (s *scaleDown) frees(i int) (sum float64) {
	for _, g := range s.gpus[i] {
		sum += 1 / s.left[g]
	}
	return sum
}

func (s *scaleDown) firstGPU(i int) int {
	if len(s.gpus[i]) == 0 {
		return -1
	}
	return s.gpus[i][0]
}

// keep returns the domains of a spread that must not lose a replica now.
func (s *scaleDown) keep(spread int) map[string]bool {
	counts := s.counts[spread]
	least, most := math.MaxInt, 0
	for _, n := range counts {
		least, most = min(least, n), max(most, n)
	}
	kept := map[string]bool{}
	for domain, n := range counts {
		// Taking from another than the emptiest never widens the skew.
		if n-1 < least && most-(n-1) > s.spreads[spread].MaxSkew && len(counts) > 1 {
			kept[domain] = true
		}
	}
	return kept
}

func (s *scaleDown) remove(i int) {
	s.gone[i] = true
	for _, g := range s.gpus[i] {
		s.left[g]--
	}
	s.nodes[s.node[i]]--
	for j := range s.spreads {
		s.counts[j][s.replicas[i].Domains[j]]--
	}
}

// Renumber returns a cost for each element of a sequence, rising from the first to the last, and changes as few of the costs that
// there are as can be; nil stands for none yet. If there is no room between two that stay, all are numbered anew.
func Renumber(current []*int32) []int32 {
	stay := longestRise(current)
	out := make([]int32, len(current))
	from, low := 0, int64(0)
	for k := 0; k <= len(stay); k++ {
		to, high := len(current), int64(math.MaxInt64)
		if k < len(stay) {
			to, high = stay[k], int64(*current[stay[k]])
		}
		n := int64(to - from)
		step := int64(costStep)
		switch {
		case k == 0 && k < len(stay):
			low = high - (n+1)*step
		case k < len(stay):
			step = (high - low) / (n + 1)
		}
		if step == 0 || low+n*step > math.MaxInt32 || low < math.MinInt32 {
			return evenly(len(current))
		}
		for i := from; i < to; i++ {
			low += step
			out[i] = int32(low)
		}
		if k < len(stay) {
			out[to], low, from = *current[to], high, to+1
		}
	}
	return out
}

// costStep is between costs that are numbered anew, so that others find room there.
const costStep = 1 << 10

func evenly(n int) []int32 {
	out := make([]int32, n)
	step := min(int64(costStep), math.MaxInt32/int64(n+1))
	for i := range out {
		out[i] = int32(int64(i+1) * step)
	}
	return out
}

// longestRise returns the positions of a longest strictly rising subsequence of what is not nil.
func longestRise(list []*int32) []int {
	// ends has the position where a rise of each length ends lowest, and before where it came from.
	var ends []int
	before := make([]int, len(list))
	for i, v := range list {
		if v == nil {
			continue
		}
		at, _ := slices.BinarySearchFunc(ends, *v, func(j int, v int32) int { return cmp.Compare(*list[j], v) })
		before[i] = -1
		if at > 0 {
			before[i] = ends[at-1]
		}
		if at == len(ends) {
			ends = append(ends, i)
		} else {
			ends[at] = i
		}
	}
	if len(ends) == 0 {
		return nil
	}
	rise := make([]int, len(ends))
	for k, i := len(ends)-1, ends[len(ends)-1]; k >= 0; k, i = k-1, before[i] {
		rise[k] = i
	}
	return rise
}
