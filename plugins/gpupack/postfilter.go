// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/pack"
)

// PostFilter counts why a pod found no node, and makes room for it, or for the gang of which it is a member, by preemption. A
// member that could not keep its planned place takes the plan with it instead. No other plugin is asked after this one: one that
// knows no gangs would break some.
func (p *Plugin) PostFilter(ctx context.Context, state fwk.CycleState, pod *corev1.Pod, nodes fwk.NodeToStatusReader) (*fwk.PostFilterResult, *fwk.Status) {
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
	if name := groupOf(pod); name.Name != "" && c != nil && c.planned != nil {
		p.gangs.failed(ctx, name, pod.UID, false, "node "+c.planned.node+" no longer suits member "+pod.Name)
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "the gang is planned anew")
	}
	return p.preempt(ctx, p.latest(pod), nodes)
}
