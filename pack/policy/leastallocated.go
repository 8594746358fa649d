// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/gpupack/gpupack/pack"

// LeastAllocated is kube-scheduler's default, NodeResourcesFit with the scoring strategy LeastAllocated, over cpu, memory
// and nvidia.com/gpu, of equal weight.
type LeastAllocated struct{}

// Name implements pack.Policy.
func (LeastAllocated) Name() string { return "least-allocated" }

// Score is 0 to 100: the mean part of the node that would be left, in percent, rounded as kube-scheduler rounds it.
func (LeastAllocated) Score(c *pack.Candidate) float64 { return allocated(c, true) }
