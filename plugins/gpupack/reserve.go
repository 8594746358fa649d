// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// decisionKey is where Reserve leaves the decision record for Bind.
const decisionKey fwk.StateKey = Name + "/decision"

type decision struct {
	gpus   []string
	record v1alpha1.Decision
}

// Clone implements fwk.StateData.
func (d *decision) Clone() fwk.StateData { return d }

// Reserve picks the GPUs and enters them in the ledger.
func (p *Plugin) Reserve(_ context.Context, state fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	c := cycleOf(state)
	if c == nil {
		return nil
	}
	if c.planned != nil {
		e, ok := p.ledger.get(pod.UID)
		if !ok || e.phase != planned || e.node != nodeName {
			return fwk.NewStatus(fwk.Unschedulable, fmt.Sprintf("the plan of PodGroup %s was dropped meanwhile", c.planned.gang.Name))
		}
		e.phase = assumed
		p.ledger.put(&e)
		state.Write(decisionKey, &decision{gpus: e.gpus, record: p.record(c, nodeName)})
		return nil
	}
	if !c.request.WantsGPU() {
		return nil
	}
	info, err := p.handle.SnapshotSharedLister().NodeInfos().Get(nodeName)
	if err != nil {
		return fwk.AsStatus(err)
	}
	n := c.back.node(p, info)
	choice, ok := p.choice(c, n)
	if !ok {
		return fwk.NewStatus(fwk.Unschedulable, fmt.Sprintf("the GPUs of node %s were taken meanwhile", nodeName))
	}
	gpus := uuids(n, choice.GPUs)
	p.ledger.put(&entry{
		uid:   pod.UID,
		name:  types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name},
		node:  nodeName,
		gpus:  gpus,
		phase: assumed,
	})
	state.Write(decisionKey, &decision{gpus: gpus, record: p.record(c, nodeName)})
	return nil
}

// choice returns the GPUs that Score chose on the node, or chooses them where Score had nothing to compare.
func (p *Plugin) choice(c *cycle, n *pack.Node) (pack.Choice, bool) {
	if v, ok := c.choices.Load(n.Name); ok {
		return v.(pack.Choice), true
	}
	choice, reason := p.chooser.Choose(n, &c.request)
	return choice, reason == pack.ReasonFits
}

func (p *Plugin) record(c *cycle, node string) v1alpha1.Decision {
	d := v1alpha1.Decision{
		Policy:   p.chooser.Policy.Name(),
		Score:    c.ranking.of(node),
		Feasible: max(1, len(c.ranking.scores)),
		Rejected: c.rejected.counts(),
	}
	if c.short != nil {
		d.Feasible = c.short.feasible
	}
	if c.planned != nil {
		d.Gang = c.planned.gang.Name
		return d
	}
	if len(c.ranking.scores) < 2 {
		return d
	}
	// Where other plugins' scores outweighed the policy's, its own favourite is the runner-up.
	other := &c.ranking.scores[c.ranking.best]
	if other.Name == node {
		other = &c.ranking.scores[c.ranking.second]
	}
	d.RunnerUp, d.RunnerUpScore = other.Name, other.Score
	return d
}

// Unreserve gives the pod's GPUs back, and drops the plan of its gang if that has not been released.
func (p *Plugin) Unreserve(ctx context.Context, _ fwk.CycleState, pod *corev1.Pod, _ string) {
	if e, ok := p.ledger.get(pod.UID); ok && e.gang.Name != "" && e.phase == assumed {
		p.gangs.failed(ctx, e.gang, pod.UID, true, fmt.Sprintf("member %s could not be bound", pod.Name))
		return
	}
	p.ledger.dropUnbound(pod.UID)
}
