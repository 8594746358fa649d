// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"
	"strings"

	"github.com/gpupack/gpupack/pack"
)

// ledger knows what the cluster's states leave out: which GPU of a node is which. A node is named by its rank, its
// position in Input.Nodes.
type ledger struct {
	nodes []NodeUse
}

func newLedger(nodes []Node) *ledger {
	l := &ledger{nodes: make([]NodeUse, 0, len(nodes))}
	for i := range nodes {
		n := &nodes[i]
		u := NodeUse{
			Name: n.Name, Model: n.Model, CPUMilli: n.CPUMilli, FreeCPUMilli: n.CPUMilli,
			MemoryMiB: n.MemoryMiB, FreeMemoryMiB: n.MemoryMiB, Milli: make([]int, n.GPUs),
		}
		for g := range u.Milli {
			u.Milli[g] = pack.WholeMilli
		}
		l.nodes = append(l.nodes, u)
	}
	return l
}

// take gives the request its part of the node at the spot and returns the indexes of its GPUs: of equal ones the first,
// as pack.Chooser does.
func (l *ledger) take(at spot, r *pack.Request) []int {
	n := &l.nodes[at.rank]
	n.FreeCPUMilli -= r.CPUMilli
	n.FreeMemoryMiB -= r.MemoryMiB
	if !r.WantsGPU() {
		return nil
	}
	gpus := make([]int, 0, r.Count())
	free, milli := pack.WholeMilli, pack.WholeMilli
	if r.IsShare() {
		free, milli = int(at.free), int(r.Milli)
	}
	for g := range n.Milli {
		if len(gpus) == r.Count() {
			break
		}
		if n.Milli[g] == free {
			n.Milli[g] -= milli
			gpus = append(gpus, g)
		}
	}
	return gpus
}

// put gives the request those GPUs of the node, and its CPU and memory.
func (l *ledger) put(rank int32, r *pack.Request, gpus []int) {
	n := &l.nodes[rank]
	n.FreeCPUMilli -= r.CPUMilli
	n.FreeMemoryMiB -= r.MemoryMiB
	milli := pack.WholeMilli
	if r.IsShare() {
		milli = int(r.Milli)
	}
	for _, g := range gpus {
		n.Milli[g] -= milli
	}
}

// give takes back what take or put gave.
func (l *ledger) give(rank int32, r *pack.Request, gpus []int) {
	n := &l.nodes[rank]
	n.FreeCPUMilli += r.CPUMilli
	n.FreeMemoryMiB += r.MemoryMiB
	milli := pack.WholeMilli
	if r.IsShare() {
		milli = int(r.Milli)
	}
	for _, g := range gpus {
		n.Milli[g] += milli
	}
}

// shape is what a policy sees of the node.
func (l *ledger) shape(rank int32) pack.Shape {
	n := &l.nodes[rank]
	s := pack.Shape{CPUMilli: n.FreeCPUMilli, MemoryMiB: n.FreeMemoryMiB, Len: len(n.Milli)}
	if s.Len > 0 {
		s.Model = n.Model
	}
	for g, milli := range n.Milli {
		s.Milli[g] = int16(milli)
	}
	slices.SortFunc(s.Milli[:s.Len], func(a, b int16) int { return int(b) - int(a) })
	return s
}

// use returns a copy of the nodes in the order of their names.
func (l *ledger) use() []NodeUse {
	out := slices.Clone(l.nodes)
	slices.SortStableFunc(out, func(a, b NodeUse) int { return strings.Compare(a.Name, b.Name) })
	for i := range out {
		out[i].Milli = slices.Clone(out[i].Milli)
	}
	return out
}
