// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// EventsToRegister says which changes can help a pod that the plugin rejected.
func (p *Plugin) EventsToRegister(context.Context) ([]fwk.ClusterEventWithHint, error) {
	gpuNode := fwk.EventResource("gpunodes.v1alpha1." + v1alpha1.GroupName)
	podGroup := fwk.EventResource("podgroups.v1alpha1." + schedulingv1alpha1.SchemeGroupVersion.Group)
	return []fwk.ClusterEventWithHint{
		{
			Event:          fwk.ClusterEvent{Resource: gpuNode, ActionType: fwk.Add | fwk.Update},
			QueueingHintFn: p.gpuNodeHint,
		},
		{
			Event:          fwk.ClusterEvent{Resource: podGroup, ActionType: fwk.Add | fwk.Update},
			QueueingHintFn: p.podGroupHint,
		},
		{
			Event: fwk.ClusterEvent{Resource: fwk.Pod, ActionType: fwk.Add | fwk.Delete | fwk.UpdatePodLabel |
				fwk.UpdatePodScaleDown | fwk.UpdatePodSchedulingGatesEliminated},
			QueueingHintFn: p.podHint,
		},
		{
			Event: fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.Add | fwk.UpdateNodeAllocatable | fwk.UpdateNodeLabel |
				fwk.UpdateNodeTaint},
			QueueingHintFn: p.nodeHint,
		},
	}, nil
}

// gpuNodeHint wakes a pod if some GPU that it accepts has come, has recovered, or has more left than before.
func (p *Plugin) gpuNodeHint(_ klog.Logger, pod *corev1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	g, err := p.gains.of(p, oldObj, newObj)
	if err != nil || g == nil {
		return fwk.Queue, err
	}
	if !g.any() {
		return fwk.QueueSkip, nil
	}
	request, err := convert.Request(p.latest(pod))
	if err != nil {
		return fwk.QueueSkip, nil
	}
	if g.helps(&request) {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// gains remembers what the last event on a GPUNode gives, since the queue asks that for each pod that waits.
type gains struct {
	mu       sync.Mutex
	old, new any
	gain     *gain
}

// of returns what a change of a GPUNode gives; nil where the GPUNode is gone.
func (s *gains) of(p *Plugin, oldObj, newObj any) (*gain, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gain != nil && s.old == oldObj && s.new == newObj {
		return s.gain, nil
	}
	before, err := decode[v1alpha1.GPUNode](oldObj)
	if err != nil {
		return nil, err
	}
	after, err := decode[v1alpha1.GPUNode](newObj)
	if err != nil || after == nil {
		return nil, err
	}
	p.telemetry.set(after)
	options := p.convertOptions(p.clock.Now())
	s.old, s.new, s.gain = oldObj, newObj, gainOf(before, after, &options)
	return s.gain, nil
}

// gain is what new telemetry of a node gives to pods that wait.
type gain struct {
	// all is true where the node can be used as it could not before.
	all bool
	// models of healthy GPUs that have more left than before.
	models []string
	// calmer are healthy GPUs that are less busy than before.
	calmer []calmerGPU
}

type calmerGPU struct {
	model string
	// was and now are utilisations, percent.
	was, now int
}

func gainOf(before, after *v1alpha1.GPUNode, o *convert.Options) *gain {
	g := &gain{}
	if convert.CheckTelemetry(after) != nil {
		return g
	}
	if before == nil || convert.CheckTelemetry(before) != nil || before.Status.Mode != after.Status.Mode ||
		convert.IsStale(before, o) {
		g.all = true
		return g
	}
	known := make(map[string]*v1alpha1.GPU, len(before.Status.GPUs))
	for i := range before.Status.GPUs {
		known[before.Status.GPUs[i].UUID] = &before.Status.GPUs[i]
	}
	for i := range after.Status.GPUs {
		now := &after.Status.GPUs[i]
		if !convert.TakesPods(after, now) {
			continue
		}
		was, ok := known[now.UUID]
		switch {
		case !ok || !convert.TakesPods(before, was) || was.Model != now.Model ||
			now.MemoryUsedMiB < was.MemoryUsedMiB ||
			now.MemoryForeignMiB < was.MemoryForeignMiB ||
			now.MemoryTotalMiB-now.MemoryReservedMiB > was.MemoryTotalMiB-was.MemoryReservedMiB:
			if !slices.Contains(g.models, now.Model) {
				g.models = append(g.models, now.Model)
			}
		case now.Utilization < was.Utilization:
			g.calmer = append(g.calmer, calmerGPU{now.Model, int(was.Utilization), int(now.Utilization)})
		}
	}
	return g
}

// any says whether there is a request that the gain could let in.
func (g *gain) any() bool { return g.all || len(g.models) > 0 || len(g.calmer) > 0 }

// helps says whether the gain could let the request in.
func (g *gain) helps(r *pack.Request) bool {
	return r.WantsGPU() && (g.all || slices.ContainsFunc(g.models, r.Accepts) || slices.ContainsFunc(g.calmer, func(c calmerGPU) bool {
		return r.MaxUtilization > 0 && c.was > r.MaxUtilization && c.now <= r.MaxUtilization && r.Accepts(c.model)
	}))
}

// podGroupHint wakes the members of the PodGroup that changed.
func (p *Plugin) podGroupHint(_ klog.Logger, pod *corev1.Pod, _, newObj any) (fwk.QueueingHint, error) {
	group, err := decode[schedulingv1alpha1.PodGroup](newObj)
	if err != nil || group == nil {
		return fwk.Queue, err
	}
	p.groups.set(group)
	if name := groupOf(pod); name.Namespace == group.Namespace && name.Name == group.Name {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// podHint wakes a pod when another gives resources back, when one joins its gang, and when its own request changed.
func (p *Plugin) podHint(_ klog.Logger, pod *corev1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	before, _ := oldObj.(*corev1.Pod)
	after, _ := newObj.(*corev1.Pod)
	mine := groupOf(pod)
	switch {
	case after == nil && before == nil:
		return fwk.Queue, fmt.Errorf("unexpected objects %T and %T in a pod event", oldObj, newObj)
	case after == nil:
		// A gang's member can wait for CPU, ports or anything else that the pod gives back.
		if before.Spec.NodeName != "" && (mine.Name != "" || convert.AsksForGPU(before)) {
			return fwk.Queue, nil
		}
		return fwk.QueueSkip, nil
	case after.UID == pod.UID:
		return fwk.Queue, nil
	case mine.Name != "" && groupOf(after) == mine:
		return fwk.Queue, nil
	case before != nil && mine.Name != "" && after.Spec.NodeName != "":
		// Another pod was scaled down, or its labels no longer repel.
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// nodeHint wakes a pod when a node comes. A gang is planned with all other plugins' filters, so its members also wait for
// changes that those would wait for.
func (p *Plugin) nodeHint(_ klog.Logger, pod *corev1.Pod, oldObj, _ any) (fwk.QueueingHint, error) {
	if oldObj == nil || groupOf(pod).Name != "" {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// decode turns the queue's object into a typed one; nil stays nil.
func decode[T any, P interface {
	*T
	metav1.Object
}](obj any) (P, error) {
	switch o := obj.(type) {
	case nil:
		return nil, nil
	case P:
		return o, nil
	case *unstructured.Unstructured:
		out := P(new(T))
		return out, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, out)
	}
	return nil, fmt.Errorf("unexpected %T in an event of %T", obj, P(nil))
}
