// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/gpupack/gpupack/pack"

// MostAllocated is kube-scheduler's NodeResourcesFit with the scoring strategy MostAllocated over cpu, memory and
// nvidia.com/gpu, of equal weight.
type MostAllocated struct{}

// Name implements pack.Policy.
func (MostAllocated) Name() string { return "most-allocated" }

// Score is 0 to 100: the mean part of the node that would be allocated, in percent, rounded as kube-scheduler rounds it.
func (MostAllocated) Score(c *pack.Candidate) float64 { return allocated(c, false) }

// allocated is the mean part of the node's resources that would be allocated, or with inverse that would be left, in percent.
// A request without GPUs is not scored by them, as in kube-scheduler.
func allocated(c *pack.Candidate, inverse bool) float64 {
	if c.Total == nil {
		return 0
	}
	var sum, n int64
	add := func(left, total int64) {
		if total <= 0 {
			return
		}
		n++
		if inverse {
			sum += left * 100 / total
		} else {
			sum += (total - left) * 100 / total
		}
	}
	add(c.After.CPUMilli, c.Total.CPUMilli)
	add(c.After.MemoryMiB, c.Total.MemoryMiB)
	if c.Request.WantsGPU() {
		add(c.After.Free(), int64(c.Total.GPUs)*pack.WholeMilli)
	}
	if n == 0 {
		return 0
	}
	return float64(sum / n)
}
