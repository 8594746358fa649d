// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"maps"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack/policy"
)

// supply counts the healthy GPUs of all GPUNodes by model, and tells the policy when a count changes. Most telemetry changes
// none, and the policy has to rate the whole cluster anew for each other supply.
type supply struct {
	policy policy.SupplyAware
	total  policy.Supply
}

func newSupply(p policy.SupplyAware) *supply { return &supply{policy: p, total: policy.Supply{}} }

// changed takes a GPUNode that has come, changed or gone; nil is none. It is not safe for concurrent use.
func (s *supply) changed(before, after *v1alpha1.GPUNode) {
	was, is := convert.HealthyGPUs(before), convert.HealthyGPUs(after)
	if maps.Equal(was, is) {
		return
	}
	for model, n := range is {
		s.total[model] += n
	}
	for model, n := range was {
		if s.total[model] -= n; s.total[model] == 0 {
			delete(s.total, model)
		}
	}
	s.policy.SetSupply(maps.Clone(s.total))
}
