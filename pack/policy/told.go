// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"iter"

	"github.com/gpupack/gpupack/pack"
)

// Capacity is GPUs, and CPU beside them.
type Capacity struct{ GPUMilli, CPUMilli int64 }

// Add counts what a node in that state has free, if it has GPUs at all.
func (c *Capacity) Add(s *pack.Shape) {
	if s.Len > 0 {
		c.GPUMilli += s.Free()
		c.CPUMilli += s.CPUMilli
	}
}

// Remove undoes Add.
func (c *Capacity) Remove(s *pack.Shape) {
	if s.Len > 0 {
		c.GPUMilli -= s.Free()
		c.CPUMilli -= s.CPUMilli
	}
}

// AddTotal counts what a node has, free or not, if it has GPUs at all.
func (c *Capacity) AddTotal(n *pack.Node) {
	if len(n.GPUs) > 0 {
		c.GPUMilli += int64(len(n.GPUs)) * pack.WholeMilli
		c.CPUMilli += n.Total.CPUMilli
	}
}

// RemoveTotal undoes AddTotal.
func (c *Capacity) RemoveTotal(n *pack.Node) {
	if len(n.GPUs) > 0 {
		c.GPUMilli -= int64(len(n.GPUs)) * pack.WholeMilli
		c.CPUMilli -= n.Total.CPUMilli
	}
}

// Told is what a ClusterAware policy was told last; the zero value, if it was told nothing yet.
type Told struct {
	once bool
	free Capacity
}

// Tell lets the policy know of the cluster if enough has changed since it was told last, and returns what SetCluster does. free
// and total are what nodes with GPUs have free and in all. states is not looked at if nothing is told.
func (t *Told) Tell(p ClusterAware, free, total Capacity, states iter.Seq2[*pack.Shape, int]) (changed func(*pack.Shape) bool) {
	if t.once && !much(free.GPUMilli-t.free.GPUMilli, total.GPUMilli) && !much(free.CPUMilli-t.free.CPUMilli, total.CPUMilli) {
		return nil
	}
	t.once, t.free = true, free
	return p.SetCluster(states)
}

func much(change, total int64) bool {
	return change != 0 && float64(max(change, -change)) >= ClusterStep*float64(total)
}
