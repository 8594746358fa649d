// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/gpupack/gpupack/pack"

// GPUPacking fills GPUs that are shared already, then free GPUs of nodes that are in use, then idle nodes. Source: Weng et
// al., "MLaaS in the wild", NSDI '22, in the form in which the artifact of the FGD paper has it.
type GPUPacking struct{}

// Name implements pack.Policy.
func (GPUPacking) Name() string { return "gpu-packing" }

// Score is 0 to 100, rounded as the artifact rounds it.
func (GPUPacking) Score(c *pack.Candidate) float64 {
	if !c.Request.WantsGPU() {
		return 0
	}
	s := c.Before
	whole := s.Whole()
	if whole == s.Len {
		return float64(max(100/3-whole, whole))
	}
	// The GPUs of which least is left come first.
	need, free, left := c.Request.Count(), 0, int64(0)
	for i := s.Len - 1; i >= 0 && need > 0; i-- {
		milli := int64(s.Milli[i])
		if milli < c.Milli {
			continue
		}
		need--
		left += milli * 100 / pack.WholeMilli
		if milli == pack.WholeMilli {
			free++
		}
	}
	if free > 0 {
		return float64(max(100/2-free, 100/3))
	}
	return float64(max(100-left/10, 100/2))
}
