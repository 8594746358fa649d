// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/api/convert"
)

// PreFilter reads what the pod asks for. A single pod is confined to the best nodes that suit it, where they can be told without
// looking at all. For the first member of a gang, it plans the whole gang; every member is then
// confined to the node that the plan has for it.
func (p *Plugin) PreFilter(ctx context.Context, state fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	if mark, err := state.Read(planningKey); err == nil {
		if m, ok := mark.(planningMark); ok && m.filter {
			return nil, nil
		}
		return nil, fwk.NewStatus(fwk.Skip)
	}
	if !p.ready() {
		return nil, fwk.AsStatus(fmt.Errorf("GPUNodes and PodGroups have not been listed yet"))
	}
	if err := p.profile(); err != nil {
		return nil, fwk.AsStatus(err)
	}
	p.beginBesidePlans(state)
	pod = p.latest(pod)
	request, err := convert.Request(pod)
	if err != nil {
		decisions.WithLabelValues("invalid").Inc()
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	p.learning.observe(pod, &request)
	x := p.update(nodes)
	p.tellCluster(x)
	p.keepRooms(ctx)
	c := &cycle{request: request, rejected: &rejections{}, choices: &sync.Map{}, ranking: &ranking{}}
	if name := groupOf(pod); name.Name != "" {
		e, status := p.placeOfMember(ctx, pod)
		if status != nil {
			return nil, status
		}
		c.planned = e
		p.forgetNominations(name, e.node)
		state.Write(cycleKey, c)
		return &fwk.PreFilterResult{NodeNames: sets.New(e.node)}, nil
	}
	c.back = p.heldBack(pod)
	state.Write(cycleKey, c)
	if !request.WantsGPU() && !p.ledger.anyPlanned() && c.back == nil {
		return nil, fwk.NewStatus(fwk.Skip)
	}
	// Beside reserved places nodes are worth something else to this pod than to others.
	if c.back == nil {
		c.short = p.shortlist(ctx, c, pod, x)
	}
	if c.short != nil {
		return &fwk.PreFilterResult{NodeNames: c.short.names()}, nil
	}
	return nil, nil
}

// placeOfMember returns the place that a plan holds for a gang's member, after planning the gang if there is no plan.
func (p *Plugin) placeOfMember(ctx context.Context, pod *corev1.Pod) (*entry, *fwk.Status) {
	name := groupOf(pod)
	if e, ok := p.ledger.get(pod.UID); ok && e.phase == planned {
		return &e, nil
	}
	if p.gangs.underWay(name) {
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable,
			fmt.Sprintf("PodGroup %s is being started without this pod, which came later: it is placed once the others are", name.Name))
	}
	g, err := p.gang(name)
	if status := gangIncomplete(g, err); status != nil {
		return nil, status
	}
	if status := p.planGang(ctx, g); status != nil {
		return nil, status
	}
	if e, ok := p.ledger.get(pod.UID); ok && e.phase == planned {
		return &e, nil
	}
	return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable,
		fmt.Sprintf("PodGroup %s starts without this pod, which does not fit beside the others", name.Name))
}

// PreFilterExtensions returns nil: Filter reads everything from the NodeInfo that it is given.
func (p *Plugin) PreFilterExtensions() fwk.PreFilterExtensions { return nil }
