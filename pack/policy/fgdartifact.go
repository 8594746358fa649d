// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math"

	"github.com/gpupack/gpupack/pack"
)

// FGDArtifact is FGD as the artifact of its paper computes it, to compare with: the score goes through a sigmoid and is
// rounded down to a whole number of 0 to 100, so that placements which differ by less than some 40 milli-GPU are equal, and
// host memory does not count. The ties that this makes are broken by name, which keeps idle nodes idle; without the
// rounding, FGD allocates about half a point less on the openb trace.
type FGDArtifact struct{ FGD }

// NewFGDArtifact returns the policy for a distribution of workload classes.
func NewFGDArtifact(d *pack.Distribution) *FGDArtifact {
	return &FGDArtifact{FGD{distribution: d, fragment: artifactFragment}}
}

// Score is a whole number of 0 to 100; 50 where the expected fragment stays as it is.
func (f *FGDArtifact) Score(c *pack.Candidate) float64 {
	return math.Floor(100 / (1 + math.Exp(-f.FGD.Score(c)/pack.WholeMilli)))
}

// artifactFragment is expectedFragment on a node that never lacks host memory.
func artifactFragment(s *pack.Shape, classes []pack.Class) float64 {
	roomy := *s
	roomy.MemoryMiB = math.MaxInt64
	return expectedFragment(&roomy, classes)
}
