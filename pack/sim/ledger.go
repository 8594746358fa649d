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
// as pack.Chooser does. None of the GPUs closed is given.
func (l *ledger) take(at spot, r *pack.Request, closed ...int) []int {
	var gpus []int
	free := pack.WholeMilli
	if r.IsShare() {
		free = int(at.free)
	}
	for g, milli := range l.nodes[at.rank].Milli {
		if len(gpus) == r.Count() {
			break
		}
		if milli == free && !slices.Contains(closed, g) {
			gpus = append(gpus, g)
		}
	}
	l.put(at.rank, r, gpus)
	return gpus
}

// put gives the request those GPUs of the node, and its CPU and memory.
func (l *ledger) put(rank int32, r *pack.Request, gpus []int) { l.free(rank, r, gpus, -1) }

// give takes back what take or put gave.
func (l *ledger) give(rank int32, r *pack.Request, gpus []int) { l.free(rank, r, gpus, 1) }

// free adds so many times what the request asks for to what is free.
func (l *ledger) free(rank int32, r *pack.Request, gpus []int, times int) {
	n := &l.nodes[rank]
	n.FreeCPUMilli += int64(times) * r.CPUMilli
	n.FreeMemoryMiB += int64(times) * r.MemoryMiB
	for _, g := range gpus {
		// Tasks do not ask for GPU memory, so it is the same on each model.
		n.Milli[g] += times * int(r.MilliOn(0))
	}
}

// shape is what a policy sees of the node.
func (l *ledger) shape(rank int32) pack.Shape { return shapeOf(&l.nodes[rank]) }

func shapeOf(n *NodeUse) pack.Shape {
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
