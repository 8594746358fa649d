// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"

	"github.com/gpupack/gpupack/pack"
)

// FGDArtifact is FGD as the artifact of its paper computes it, to compare with: the score goes through a sigmoid and is
// rounded down to a whole number of 0 to 100, so that placements which differ by less than some 40 milli-GPU are equal; host
// memory does not count, nor do the rarest classes. The ties that the rounding makes go to the first node in an order of all,
// which keeps idle nodes idle; without the rounding, FGD allocates about half a point less on the openb trace.
type FGDArtifact struct {
	distribution *pack.Distribution
	typical      atomic.Pointer[pack.Classes]
	memo         memo
}

// typicalPart is how many of the tasks the classes that count stand for.
const typicalPart = 0.95

// NewFGDArtifact returns the policy for a distribution of workload classes.
func NewFGDArtifact(d *pack.Distribution) *FGDArtifact { return &FGDArtifact{distribution: d} }

// Name implements pack.Policy.
func (f *FGDArtifact) Name() string { return "fgd" }

// Score is a whole number of 0 to 100; 50 where the expected fragment stays as it is.
func (f *FGDArtifact) Score(c *pack.Candidate) float64 {
	all := f.distribution.Classes()
	classes := f.typical.Load()
	if classes == nil || classes.Version != all.Version {
		classes = typical(all)
		f.typical.Store(classes)
	}
	fragment := func(s *pack.Shape) float64 {
		roomy := *s
		roomy.MemoryMiB = math.MaxInt64
		return f.memo.get(&roomy, classes, expectedFragment)
	}
	return math.Floor(100 / (1 + math.Exp((fragment(c.After)-fragment(c.Before))/pack.WholeMilli)))
}

// typical returns the most frequent classes, without regard to host memory, as many as it takes for typicalPart.
func typical(all *pack.Classes) *pack.Classes {
	at := map[pack.RequestKey]int{}
	var merged []pack.Class
	for i := range all.List {
		c := all.List[i]
		c.Request.MemoryMiB, c.Request.MaxUtilization = 0, 0
		k := c.Request.Key()
		if n, ok := at[k]; ok {
			merged[n].Weight += c.Weight
			continue
		}
		at[k] = len(merged)
		merged = append(merged, c)
	}
	// Of equal weight, the artifact counts the one that asks for most.
	slices.SortFunc(merged, func(a, b pack.Class) int {
		return cmp.Or(
			cmp.Compare(b.Weight, a.Weight),
			cmp.Compare(b.Request.CPUMilli, a.Request.CPUMilli),
			cmp.Compare(b.Request.MilliOn(0), a.Request.MilliOn(0)),
			cmp.Compare(b.Request.GPUs, a.Request.GPUs),
			slices.Compare(b.Request.Models, a.Request.Models),
		)
	})
	var sum float64
	n := 0
	// The weights are sums of fractions, so that theirs may be off by a little.
	for n < len(merged) && sum < typicalPart-1e-9 {
		sum += merged[n].Weight
		n++
	}
	merged = merged[:n]
	for i := range merged {
		merged[i].Weight /= sum
	}
	return &pack.Classes{Version: all.Version, List: merged}
}
