// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/gpupack/gpupack/pack"

// KindAware is implemented by policies that look at Candidate.Kinds.
type KindAware interface {
	KindAware() bool
}

// GPUClustering puts tasks of one kind together: shares with shares, tasks of two GPUs with such. Source: Xiao et al.,
// "Gandiva", OSDI '18, in the form in which the artifact of the FGD paper has it.
type GPUClustering struct{}

// Name implements pack.Policy.
func (GPUClustering) Name() string { return "gpu-clustering" }

// KindAware implements KindAware.
func (GPUClustering) KindAware() bool { return true }

// Score is 0 to 100: 75 and more beside tasks of the same kind only, 50 beside some of the same kind, 25 on an idle node;
// within each, fuller nodes first. Rounded as the artifact rounds it.
func (GPUClustering) Score(c *pack.Candidate) float64 {
	kind := pack.KindOf(c.Request)
	if kind == 0 {
		return 0
	}
	tier := int64(0)
	switch {
	case c.Kinds == kind:
		tier = 3
	case c.Kinds&kind != 0:
		tier = 2
	case c.Kinds == 0:
		tier = 1
	}
	full := max(0, mostGPUMilli-c.Before.Free())
	return float64(100/4*full/mostGPUMilli + 100/4*tier)
}
