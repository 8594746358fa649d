// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"
)

// Permit holds a gang's members until enough are here, and then lets all of them go.
func (p *Plugin) Permit(_ context.Context, state fwk.CycleState, pod *corev1.Pod, _ string) (*fwk.Status, time.Duration) {
	c := cycleOf(state)
	if c == nil || c.planned == nil {
		return nil, 0
	}
	name := c.planned.gang
	release, wait, stands := p.gangs.arrive(name, pod.UID)
	switch {
	case !stands:
		return fwk.NewStatus(fwk.Unschedulable, fmt.Sprintf("the plan of PodGroup %s was dropped meanwhile", name.Name)), 0
	case wait:
		timeout := p.args.GangTimeout.Duration
		if group, ok := p.groups.find(name); ok {
			timeout = p.gangTimeout(group)
		}
		return fwk.NewStatus(fwk.Wait), timeout
	}
	for _, uid := range release {
		if waiting := p.handle.GetWaitingPod(uid); waiting != nil {
			waiting.Allow(Name)
		}
	}
	return nil, 0
}
