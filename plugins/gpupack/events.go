// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"

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
	before, err := decode[v1alpha1.GPUNode](oldObj)
	if err != nil {
		return fwk.Queue, err
	}
	after, err := decode[v1alpha1.GPUNode](newObj)
	if err != nil || after == nil {
		return fwk.Queue, err
	}
	p.telemetry.set(after)
	request, err := convert.Request(p.latest(pod))
	if err != nil {
		return fwk.QueueSkip, nil
	}
	options := p.convertOptions(p.clock.Now())
	if helps(before, after, &request, &options) {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// helps says whether a node's new telemetry could let the request in where the old did not.
func helps(before, after *v1alpha1.GPUNode, r *pack.Request, o *convert.Options) bool {
	if !r.WantsGPU() || convert.CheckTelemetry(after) != nil {
		return false
	}
	if before == nil || convert.CheckTelemetry(before) != nil || before.Status.Mode != after.Status.Mode ||
		convert.IsStale(before, o) {
		return true
	}
	known := make(map[string]*v1alpha1.GPU, len(before.Status.GPUs))
	for i := range before.Status.GPUs {
		known[before.Status.GPUs[i].UUID] = &before.Status.GPUs[i]
	}
	for i := range after.Status.GPUs {
		now := &after.Status.GPUs[i]
		if !now.Healthy || !r.Accepts(now.Model) {
			continue
		}
		was, ok := known[now.UUID]
		if !ok || !was.Healthy || was.Model != now.Model ||
			now.MemoryUsedMiB < was.MemoryUsedMiB ||
			now.MemoryForeignMiB < was.MemoryForeignMiB ||
			now.MemoryTotalMiB-now.MemoryReservedMiB > was.MemoryTotalMiB-was.MemoryReservedMiB ||
			r.MaxUtilization > 0 && int(was.Utilization) > r.MaxUtilization && int(now.Utilization) <= r.MaxUtilization {
			return true
		}
	}
	return false
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
