// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/api/convert"
)

// PreEnqueue keeps a gang's members out of the queue until there are enough of them to start.
func (p *Plugin) PreEnqueue(_ context.Context, pod *corev1.Pod) *fwk.Status {
	name := groupOf(pod)
	// Until the first list of PodGroups is complete, nothing is known of the gang; PreFilter asks again.
	if name.Name == "" || !p.ready() {
		return nil
	}
	return gangIncomplete(p.gang(name))
}

// gangIncomplete is why a gang cannot start yet, or nil.
func gangIncomplete(g *gang, err error) *fwk.Status {
	if err != nil {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	if convert.IsEnding(g.group) {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, fmt.Sprintf("PodGroup %s waits until gpupack-controller has ended those of its "+
			"members that still run, since one of them was lost", g.name.Name))
	}
	if n := g.missing(); n > 0 {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, fmt.Sprintf("PodGroup %s waits for %d more pods: it needs %d and has %d",
			g.name.Name, n, g.group.Spec.MinMember, g.held+len(g.pending)))
	}
	return nil
}
