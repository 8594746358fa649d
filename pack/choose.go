// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"iter"
	"slices"
)

// DefaultLoadWeight is what 100 times Chooser.LoadWeight is where the operator did not choose.
const DefaultLoadWeight = 50

// Chooser picks GPUs by a policy.
type Chooser struct {
	Limits Limits
	Policy Policy
	// LoadWeight says how much a busy GPU counts against a share: a GPU at 100 % utilisation costs LoadWeight times what
	// the share takes. 0 ignores utilisation.
	LoadWeight float64
}

// Choice is the best way to put a request on one node.
type Choice struct {
	// GPUs are positions in Node.GPUs, ascending; empty for a request without GPUs.
	GPUs []int
	// Score is the policy's, less the load term, in milli-GPU. Higher is better.
	Score float64
}

// Shape returns the node's canonical form as the policy sees it.
func (c *Chooser) Shape(n *Node) Shape { return c.Limits.shape(n) }

// Shapes yields the distinct shapes of nodes as the policy sees them, and how many nodes are in each, in any order.
func (c *Chooser) Shapes(nodes iter.Seq[*Node]) iter.Seq2[*Shape, int] {
	return func(yield func(*Shape, int) bool) {
		count := map[Shape]int{}
		for n := range nodes {
			count[c.Shape(n)]++
		}
		for shape, n := range count {
			if !yield(&shape, n) {
				return
			}
		}
	}
}

// Choose returns the GPUs that the request should have on the node, or why it does not fit.
func (c *Chooser) Choose(n *Node, r *Request) (Choice, Reason) {
	if reason := c.Limits.Fit(n, r); reason != ReasonFits {
		return Choice{}, reason
	}
	before := c.Limits.shape(n)
	candidate := Candidate{Request: r, Before: &before, Total: &n.Total, Kinds: n.Kinds()}
	switch {
	case r.IsShare():
		return c.chooseShare(n, candidate), ReasonFits
	case r.GPUs > 0:
		gpus := c.freeWhole(n, r)
		return Choice{GPUs: gpus, Score: c.score(n, candidate, gpus, WholeMilli)}, ReasonFits
	default:
		return Choice{Score: c.score(n, candidate, nil, 0)}, ReasonFits
	}
}

// chooseShare tries each GPU once per distinct state. Among equal scores it takes the GPU of which least is left, then
// the idlest, then the lowest index.
func (c *Chooser) chooseShare(n *Node, candidate Candidate) Choice {
	r := candidate.Request
	type option struct {
		at          int
		left        int64
		utilization int
		score       float64
	}
	var options []option
	// What the policy sees of an option: what is left of the GPU without and with the request, and what that takes.
	type sight struct{ left, leftWith, milli int64 }
	scored := make(map[sight]float64, len(n.GPUs))
	for at := range n.GPUs {
		g := &n.GPUs[at]
		if c.Limits.gpuReason(g, r) != ReasonFits {
			continue
		}
		milli := r.MilliOn(g.UsableMiB())
		key := sight{c.Limits.left(g), c.Limits.leftWith(g, r), milli}
		base, ok := scored[key]
		if !ok {
			base = c.score(n, candidate, []int{at}, milli)
			scored[key] = base
		}
		options = append(options, option{
			at: at, left: key.left, utilization: g.Utilization,
			score: base - c.LoadWeight*float64(milli)*float64(g.Utilization)/100,
		})
	}
	best := slices.MinFunc(options, func(a, b option) int {
		return cmp.Or(
			cmp.Compare(b.score, a.score),
			cmp.Compare(a.left, b.left),
			cmp.Compare(a.utilization, b.utilization),
			cmp.Compare(a.at, b.at),
		)
	})
	return Choice{GPUs: []int{best.at}, Score: best.score}
}

// freeWhole returns the first GPUs that are free as a whole. Fit has made sure that there are enough.
func (c *Chooser) freeWhole(n *Node, r *Request) []int {
	gpus := make([]int, 0, r.GPUs)
	for at := range n.GPUs {
		if len(gpus) == r.GPUs {
			break
		}
		if c.Limits.gpuReason(&n.GPUs[at], r) == ReasonFits {
			gpus = append(gpus, at)
		}
	}
	return gpus
}

// score rates the candidate, of which After and Milli are missing, with those GPUs.
func (c *Chooser) score(n *Node, candidate Candidate, gpus []int, milli int64) float64 {
	after := c.Limits.place(candidate.Before, n, candidate.Request, gpus)
	candidate.After, candidate.Milli = &after, milli
	return c.Policy.Score(&candidate)
}

// place returns the shape of the node once the request has its part of those GPUs. s is the node's shape before.
func (l *Limits) place(s *Shape, n *Node, r *Request, gpus []int) Shape {
	after := *s
	after.CPUMilli = max(0, n.CPUMilli-r.CPUMilli)
	after.MemoryMiB = max(0, n.MemoryMiB-r.MemoryMiB)
	if len(gpus) == 0 {
		return after
	}
	// The positions of gpus are the node's, and after.Milli is sorted: take the entries of equal value.
	for _, at := range gpus {
		g := &n.GPUs[at]
		if i := slices.Index(after.Milli[:after.Len], int16(l.left(g))); i >= 0 {
			after.Milli[i] = int16(l.leftWith(g, r))
			after.sink(i)
		}
	}
	return after
}

// Squeeze returns the GPUs on which to count a pod that is on the node already though nobody recorded on which GPUs: for
// a share the healthy one with the least room that is enough, for whole GPUs healthy ones that nobody has, and where there
// is not enough room, the emptiest.
func Squeeze(n *Node, r *Request) []int {
	var strict Limits
	order := make([]int, len(n.GPUs))
	for i := range order {
		order[i] = i
	}
	roomy := func(at int) bool {
		g := &n.GPUs[at]
		if g.Unhealthy != "" || !r.Accepts(g.Model) {
			return false
		}
		if r.GPUs > 0 {
			return len(g.Tenants) == 0
		}
		return g.FreeMiB() >= r.MiBOn(g.UsableMiB()) && g.FreeMilli() >= max(1, r.Milli)
	}
	slices.SortStableFunc(order, func(a, b int) int {
		fits, other := roomy(a), roomy(b)
		switch {
		case fits && !other:
			return -1
		case !fits && other:
			return 1
		case fits && r.IsShare():
			return cmp.Compare(strict.left(&n.GPUs[a]), strict.left(&n.GPUs[b]))
		default:
			return cmp.Compare(strict.left(&n.GPUs[b]), strict.left(&n.GPUs[a]))
		}
	})
	order = order[:min(r.Count(), len(order))]
	slices.Sort(order)
	return order
}
