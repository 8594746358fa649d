// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/pack"
)

// Filter says whether the node's GPUs can take the pod, and whether its CPU and memory can beside what gang plans hold there.
func (p *Plugin) Filter(_ context.Context, state fwk.CycleState, _ *corev1.Pod, info fwk.NodeInfo) *fwk.Status {
	c := cycleOf(state)
	if c == nil {
		return nil
	}
	if c.planned != nil {
		return p.filterPlanned(c.planned, info)
	}
	fit := p.chooser.Limits.Fit
	if p.ledger.anyPlanned() {
		// NodeResourcesFit does not know what plans hold.
		fit = p.chooser.Limits.FitHost
	}
	reason := fit(p.nodeIn(c, info), &c.request)
	if reason == pack.ReasonFits {
		return c.back.refuse(p, c, info)
	}
	c.rejected[reason].Add(1)
	if reason.Unresolvable() {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reason.Message())
	}
	return fwk.NewStatus(fwk.Unschedulable, reason.Message())
}

// nodeIn is node, as it was when the cycle began where the cycle looks at a few nodes only.
func (p *Plugin) nodeIn(c *cycle, info fwk.NodeInfo) *pack.Node {
	if c.short != nil {
		if s := c.short.states[info.Node().Name]; s != nil && s.generation == info.GetGeneration() {
			return s.node
		}
	}
	return p.node(info)
}

// filterPlanned says whether a gang's member can still have the place that the plan holds for it. The node's free resources say
// nothing of that, since the place is not among them.
func (p *Plugin) filterPlanned(e *entry, info fwk.NodeInfo) *fwk.Status {
	if e.node != info.Node().Name {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "the gang's plan has another node for this pod")
	}
	n := p.node(info)
	at := positions(n, e.gpus)
	if n.Problem != pack.ReasonFits || len(at) < len(e.gpus) {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "a GPU of the gang's plan is no longer there")
	}
	for _, i := range at {
		if reason := n.GPUs[i].Closed(); reason != pack.ReasonFits {
			return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reason.Message())
		}
	}
	return nil
}
