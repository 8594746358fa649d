// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// gpuState is what Fit and Choose look at of a GPU.
type gpuState struct {
	model                                     string
	usableMiB, foreignMiB, freeMiB, freeMilli int64
	utilization                               int
	unhealthy, cordoned, held                 bool
}

// State is a key of nodes: those with equal keys fit the same requests, for the same reasons, and Choose gives them the same
// score, although it may choose other GPUs of them. It does not hold for requests with a MaxUtilization, which depend on how busy
// GPUs are of which nothing is left.
func (n *Node) State() string {
	gpus := make([]gpuState, len(n.GPUs), MaxGPUs)
	for i := range n.GPUs {
		g := &n.GPUs[i]
		s := gpuState{
			model: g.Model, usableMiB: g.UsableMiB(), foreignMiB: g.ForeignMiB, freeMiB: g.FreeMiB(), freeMilli: g.FreeMilli(),
			unhealthy: g.Unhealthy != "", cordoned: g.Cordoned, held: len(g.Tenants) > 0,
		}
		if s.freeMilli > 0 && !s.unhealthy {
			s.utilization = g.Utilization
		}
		gpus[i] = s
	}
	b := make([]byte, 0, 48+32*len(gpus))
	number := func(v int64) { b = binary.AppendVarint(b, v) }
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	flags := func(f ...bool) {
		var bits byte
		for i := range f {
			if f[i] {
				bits |= 1 << i
			}
		}
		b = append(b, bits)
	}
	b = append(b, byte(n.Problem))
	flags(n.Stale, n.Observe)
	number(n.CPUMilli)
	number(n.MemoryMiB)
	number(n.Total.CPUMilli)
	number(n.Total.MemoryMiB)
	number(int64(n.Total.GPUs))
	number(int64(n.Kinds()))
	if len(gpus) > 0 {
		// A shape has the model and the memory of the first.
		text(gpus[0].model)
		number(gpus[0].usableMiB)
	}
	slices.SortFunc(gpus, func(a, b gpuState) int {
		return cmp.Or(
			cmp.Compare(a.freeMilli, b.freeMilli), cmp.Compare(a.freeMiB, b.freeMiB), cmp.Compare(a.utilization, b.utilization),
			cmp.Compare(a.foreignMiB, b.foreignMiB), cmp.Compare(a.usableMiB, b.usableMiB), cmp.Compare(a.model, b.model),
			compareBool(a.unhealthy, b.unhealthy), compareBool(a.cordoned, b.cordoned), compareBool(a.held, b.held),
		)
	})
	for i := range gpus {
		s := &gpus[i]
		if i > 0 && *s == gpus[i-1] {
			// One byte for one more of the same.
			flags(true)
			continue
		}
		flags(false, s.unhealthy, s.held, s.cordoned)
		text(s.model)
		number(s.usableMiB)
		number(s.foreignMiB)
		number(s.freeMiB)
		number(s.freeMilli)
		number(int64(s.utilization))
	}
	return string(b)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}
