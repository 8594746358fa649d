// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import "github.com/gpupack/gpupack/pack/policy"

// tellCluster lets a policy that looks at the whole cluster know what is free in it, if enough has changed. Only scheduling cycles
// call it, of which there is one at a time.
func (p *Plugin) tellCluster(x *index) {
	if aware, ok := p.chooser.Policy.(policy.ClusterAware); ok {
		p.told.Tell(aware, x.free, x.total, x.eachShape)
	}
}
