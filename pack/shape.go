// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import "slices"

// MaxGPUs is the largest number of GPUs on one node.
const MaxGPUs = 32

// Shape is what a policy sees of a node: its free resources in canonical order. Two nodes that can take the same pods
// have equal shapes, so a Shape serves as the key under which a score is remembered.
type Shape struct {
	// Model of the GPUs. Where a node mixes models, that of its first GPU.
	Model string
	// CPUMilli and MemoryMiB are free on the node. Negative values are cut to 0.
	CPUMilli, MemoryMiB int64
	// UsableMiB is the memory of one GPU of the node that pods can have. It turns memory shares into milli-GPU.
	UsableMiB int64
	// Len is the number of GPUs.
	Len int
	// Milli is what is left of each GPU, 0 to 1000 milli-GPU, highest first; entries from Len on are 0. Of compute and
	// memory, it is the one of which less is left.
	Milli [MaxGPUs]int16
}

// Shape returns the node's canonical form where no memory may be taken on a GPU that is given away whole. GPUs beyond
// MaxGPUs are left out.
func (n *Node) Shape() Shape {
	var strict Limits
	return strict.shape(n)
}

func (l *Limits) shape(n *Node) Shape {
	s := Shape{CPUMilli: max(0, n.CPUMilli), MemoryMiB: max(0, n.MemoryMiB), Len: min(len(n.GPUs), MaxGPUs)}
	for i := range s.Len {
		s.Milli[i] = int16(l.left(&n.GPUs[i]))
	}
	if s.Len > 0 {
		s.Model = n.GPUs[0].Model
		s.UsableMiB = n.GPUs[0].UsableMiB()
	}
	slices.SortFunc(s.Milli[:s.Len], func(a, b int16) int { return int(b) - int(a) })
	return s
}

// Free is the sum of Milli.
func (s *Shape) Free() int64 {
	var sum int64
	for _, m := range s.Milli[:s.Len] {
		sum += int64(m)
	}
	return sum
}

// Fits says whether a node of the shape has room for the request. Where compute and memory of a GPU are not taken in the same
// proportion, it may say no although there is room.
func (s *Shape) Fits(r *Request) bool {
	if r.CPUMilli > s.CPUMilli || r.MemoryMiB > s.MemoryMiB {
		return false
	}
	switch {
	case r.GPUs > 0:
		return r.GPUs <= s.Len && s.Milli[r.GPUs-1] == WholeMilli && r.Accepts(s.Model)
	case r.IsShare():
		return s.Len > 0 && int64(s.Milli[0]) >= max(1, r.MilliOn(s.UsableMiB)) && r.Accepts(s.Model)
	default:
		return true
	}
}

// Take gives the request, which fits, its part of the shape; a share that of the GPU at that position of Milli.
func (s *Shape) Take(r *Request, gpu int) {
	s.CPUMilli -= r.CPUMilli
	s.MemoryMiB -= r.MemoryMiB
	switch {
	case r.GPUs > 0:
		// The whole GPUs are in front.
		copy(s.Milli[:s.Len], s.Milli[r.GPUs:s.Len])
		clear(s.Milli[s.Len-r.GPUs : s.Len])
	case r.IsShare():
		s.Milli[gpu] -= int16(r.MilliOn(s.UsableMiB))
		s.sink(gpu)
	}
}

// sink restores the descending order of Milli after the entry at that position has become less.
func (s *Shape) sink(gpu int) {
	for ; gpu+1 < s.Len && s.Milli[gpu] < s.Milli[gpu+1]; gpu++ {
		s.Milli[gpu], s.Milli[gpu+1] = s.Milli[gpu+1], s.Milli[gpu]
	}
}

// left is what is left of the GPU in the resource of which least is left, compute or memory, in milli-GPU. It is 1000 only
// for a GPU that can be given away whole, and 0 for an unhealthy one.
func (l *Limits) left(g *GPU) int64 {
	usable := g.UsableMiB()
	switch {
	case g.Unhealthy != "" || usable == 0:
		return 0
	case len(g.Tenants) == 0 && g.ForeignMiB <= l.WholeForeignMiB:
		return WholeMilli
	}
	return min(g.FreeMilli(), g.FreeMiB()*WholeMilli/usable, WholeMilli-1)
}

// leftWith is what left would be once the request, which fits, has the GPU or its share of it.
func (l *Limits) leftWith(g *GPU, r *Request) int64 {
	usable := g.UsableMiB()
	if r.GPUs > 0 || usable == 0 {
		return 0
	}
	return max(0, min(g.FreeMilli()-r.Milli, (g.FreeMiB()-r.MiBOn(usable))*WholeMilli/usable, WholeMilli-1))
}

// Whole is the number of GPUs that are free as a whole.
func (s *Shape) Whole() int {
	n := 0
	for n < s.Len && s.Milli[n] == WholeMilli {
		n++
	}
	return n
}
