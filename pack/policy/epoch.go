// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/gpupack/gpupack/pack"

// Epoch returns something comparable that changes whenever the policy may give a candidate another score than before, so that a
// caller can remember scores. ok is false for policies whose scores cannot be remembered, such as random.
func Epoch(p pack.Policy) (epoch any, ok bool) {
	switch p := p.(type) {
	case *GPUPack:
		o := p.outlook()
		return gpuPackEpoch{o, o.scarce.Load()}, true
	case *FGD:
		return p.distribution.Classes(), true
	case BestFit, DotProduct, GPUClustering, GPUPacking, LeastAllocated, MostAllocated:
		return nil, true
	}
	return nil, false
}

type gpuPackEpoch struct {
	outlook *outlook
	scarce  *[]room
}
