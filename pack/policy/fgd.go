// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"sync"

	"github.com/gpupack/gpupack/pack"
)

// FGD is fragmentation gradient descent: it puts a request where it makes the expected fragment grow least.
//
// The fragment of a node for a class of workload is the part of its free GPUs that a pod of the class cannot use: all of
// it where the pod does not fit on the node, else the GPUs on which less is left than the pod takes of each. The expected
// fragment is the mean over a distribution of classes. Source: Weng et al., "Beware of Fragmentation: Scheduling
// GPU-Sharing Workloads with Fragmentation Gradient Descent", USENIX ATC '23, section 3.
type FGD struct {
	distribution *pack.Distribution
	memo         memo
}

// NewFGD returns the policy for a distribution of workload classes.
func NewFGD(d *pack.Distribution) *FGD { return &FGD{distribution: d} }

// Name implements pack.Policy.
func (f *FGD) Name() string { return "fgd" }

// Score is the expected fragment before less the one after, in milli-GPU.
func (f *FGD) Score(c *pack.Candidate) float64 {
	classes := f.distribution.Classes()
	return f.memo.get(c.Before, classes, expectedFragment) - f.memo.get(c.After, classes, expectedFragment)
}

// expectedFragment is the mean of fragment over the classes, in milli-GPU.
func expectedFragment(s *pack.Shape, classes []pack.Class) float64 {
	free := s.Free()
	var sum float64
	for i := range classes {
		sum += classes[i].Weight * float64(fragment(s, &classes[i].Request, free))
	}
	return sum
}

// fragment is the part of the shape's free GPUs that a pod asking for r cannot use, in milli-GPU. free is s.Free().
func fragment(s *pack.Shape, r *pack.Request, free int64) int64 {
	// A class that wants no GPU can use none, so all that is free is lost on it.
	if !r.WantsGPU() || r.CPUMilli > s.CPUMilli || r.MemoryMiB > s.MemoryMiB || !r.Accepts(s.Model) {
		return free
	}
	need := r.MilliOn(s.UsableMiB)
	var usable int64
	count := 0
	for _, left := range s.Milli[:s.Len] {
		if int64(left) < need {
			break
		}
		usable += int64(left)
		count++
	}
	if count < r.Count() {
		return free
	}
	return free - usable
}

// memo remembers one figure per shape, for one version of the distribution.
type memo struct {
	mu      sync.RWMutex
	version uint64
	byShape map[pack.Shape]float64
}

// mostRemembered bounds the memo; a cluster has far fewer distinct shapes at a time.
const mostRemembered = 1 << 16

func (m *memo) get(s *pack.Shape, classes *pack.Classes, compute func(*pack.Shape, []pack.Class) float64) float64 {
	m.mu.RLock()
	v, ok := m.byShape[*s]
	ok = ok && m.version == classes.Version
	m.mu.RUnlock()
	if ok {
		return v
	}
	v = compute(s, classes.List)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.version != classes.Version || m.byShape == nil || len(m.byShape) >= mostRemembered {
		m.version, m.byShape = classes.Version, map[pack.Shape]float64{}
	}
	m.byShape[*s] = v
	return v
}
