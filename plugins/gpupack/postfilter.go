// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	"github.com/gpupack/gpupack/pack"
)

// PostFilter counts why a pod found no node. For a gang's member it also drops the plan, since the place that it had no longer
// suits it, and ends preemption: evicting pods for one member would gain nothing.
func (p *Plugin) PostFilter(ctx context.Context, state fwk.CycleState, pod *corev1.Pod, _ fwk.NodeToStatusReader) (*fwk.PostFilterResult, *fwk.Status) {
	decisions.WithLabelValues("unschedulable").Inc()
	p.reservations.failed(ctx, pod)
	p.block(ctx, state, pod)
	c := cycleOf(state)
	if c != nil {
		for reason := range c.rejected {
			if n := c.rejected[reason].Load(); n > 0 {
				nodeRejections.WithLabelValues(pack.Reason(reason).String()).Add(float64(n))
			}
		}
	}
	if c != nil && c.short != nil {
		// A pod that preemption made way for takes the place, or a node changed within the cycle. Other nodes have not been asked.
		p.clock.AfterFunc(time.Second, func() {
			p.handle.Activate(p.logger(ctx), map[string]*corev1.Pod{pod.Namespace + "/" + pod.Name: pod})
		})
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "the nodes chosen have changed meanwhile, so others are tried")
	}
	name := groupOf(pod)
	if name.Name == "" {
		return nil, fwk.NewStatus(fwk.Unschedulable)
	}
	if c != nil && c.planned != nil {
		p.gangs.failed(ctx, name, pod.UID, false, "node "+c.planned.node+" no longer suits member "+pod.Name)
	}
	// A nomination keeps its node's room from pods of the same priority or a lower one. That of a scheduler which was killed while
	// it bound the gang would do so for as long as the gang waits.
	return framework.NewPostFilterResultWithNominatedNode(""),
		fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "preemption does not help a member of a gang alone")
}
