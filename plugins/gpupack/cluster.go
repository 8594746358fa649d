// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// tellCluster lets a policy that looks at the whole cluster know what is free in it, if enough has changed. Only scheduling cycles
// call it, of which there is one at a time.
func (p *Plugin) tellCluster(infos []fwk.NodeInfo) {
	aware, ok := p.chooser.Policy.(policy.ClusterAware)
	if !ok {
		return
	}
	var free, total policy.Capacity
	for _, info := range infos {
		s := p.state(info)
		free.Add(&s.shape)
		total.AddTotal(s.node)
	}
	p.told.Tell(aware, free, total, p.chooser.Shapes(func(yield func(*pack.Node) bool) {
		for _, info := range infos {
			if !yield(p.node(info)) {
				return
			}
		}
	}))
}
