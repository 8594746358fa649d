// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	schedulinghelper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// obstacle is why a pod cannot go to a node.
type obstacle struct {
	// reason is one CamelCase word.
	reason string
	// message has no figures of the node, so that nodes can be counted by it.
	message string
	// figures are those of the node; can be empty.
	figures string
	// effort orders obstacles from those that are easiest to mend, by waiting, to those that are hardest.
	effort int
}

// Efforts of the obstacles that are not pack's; those of pack come between them in pack's own order.
const (
	effortResources = iota
	effortGPU
	effortTaint    = effortGPU + 100
	effortCordoned = effortTaint + 1
	effortAffinity = effortTaint + 2
	effortNoGPU    = effortTaint + 3
)

// requests sums what pods on nodes request.
type requests map[string]corev1.ResourceList

// add counts a pod on its node.
func (r requests) add(pod *corev1.Pod) { r.addTo(pod.Spec.NodeName, pod) }

// addTo counts a pod on that node.
func (r requests) addTo(node string, pod *corev1.Pod) {
	list := r[node]
	if list == nil {
		list = corev1.ResourceList{}
		r[node] = list
	}
	for name, quantity := range podRequests(pod) {
		sum := list[name]
		sum.Add(quantity)
		list[name] = sum
	}
}

// podRequests is what NodeResourcesFit counts of a pod: a pod more, and what it requests, without gpupack's own resources.
func podRequests(pod *corev1.Pod) corev1.ResourceList {
	list := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{UseStatusResources: true})
	maps.DeleteFunc(list, func(name corev1.ResourceName, q resource.Quantity) bool {
		return q.IsZero() || strings.HasPrefix(string(name), v1alpha1.GroupName+"/")
	})
	list[corev1.ResourcePods] = *resource.NewQuantity(1, resource.DecimalSI)
	return list
}

// hasRoom says whether the node has what is wanted beside what each of taken has.
func hasRoom(node *corev1.Node, wanted corev1.ResourceList, taken ...corev1.ResourceList) bool {
	for name, want := range wanted {
		free := node.Status.Allocatable[name].DeepCopy()
		for _, list := range taken {
			free.Sub(list[name])
		}
		if want.Cmp(free) > 0 {
			return false
		}
	}
	return true
}

// shortages is which resources the node has too little of for the pod, beside those that taken already has.
func shortages(node *corev1.Node, taken, wanted corev1.ResourceList) []obstacle {
	if hasRoom(node, wanted, taken) {
		return nil
	}
	var out []obstacle
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		free := node.Status.Allocatable[name].DeepCopy()
		free.Sub(taken[name])
		if want := wanted[name]; want.Cmp(free) > 0 {
			out = append(out, obstacle{
				reason: "InsufficientResources", message: fmt.Sprintf("insufficient %s", name), effort: effortResources,
				figures: fmt.Sprintf("%s of %s free, needs %s", readable(name, free), readable(name, node.Status.Allocatable[name]),
					readable(name, want)),
			})
		}
	}
	return out
}

// readable writes a quantity as a person would.
func readable(name corev1.ResourceName, q resource.Quantity) string {
	if name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage {
		return gib(q.Value() >> 20)
	}
	return q.String()
}

// rules is what a pod demands of nodes beside GPUs and resources. Pod affinity, spread, volumes and ports are left to the
// scheduler, which says so itself.
type rules struct {
	pod      *corev1.Pod
	affinity nodeaffinity.RequiredNodeAffinity
}

func rulesOf(pod *corev1.Pod) rules { return rules{pod, nodeaffinity.GetRequiredNodeAffinity(pod)} }

func (r *rules) check(node *corev1.Node) []obstacle {
	var out []obstacle
	if ok, err := r.affinity.Match(node); err != nil || !ok {
		out = append(out, obstacle{reason: "NodeAffinity", effort: effortAffinity,
			message: "the node does not match the pod's node selector or affinity"})
	}
	cordon := corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
	if node.Spec.Unschedulable && !schedulinghelper.TolerationsTolerateTaint(klog.Background(), r.pod.Spec.Tolerations, &cordon, false) {
		out = append(out, obstacle{reason: "Cordoned", message: "the node is cordoned", effort: effortCordoned})
	}
	taint, untolerated := schedulinghelper.FindMatchingUntoleratedTaint(klog.Background(), node.Spec.Taints, r.pod.Spec.Tolerations,
		func(t *corev1.Taint) bool {
			return (t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute) &&
				t.Key != corev1.TaintNodeUnschedulable
		}, false)
	if untolerated {
		out = append(out, obstacle{reason: "Taint", effort: effortTaint,
			message: fmt.Sprintf("the pod does not tolerate the taint %s", taint.ToString())})
	}
	return out
}

// gpuObstacle is what pack says of the node's GPUs; nil where they fit.
func gpuObstacle(limits *pack.Limits, state *pack.Node, request *pack.Request) *obstacle {
	reason := limits.Fit(state, request)
	switch {
	case reason == pack.ReasonFits:
		return nil
	case reason == pack.ReasonTooFewGPUs && len(state.GPUs) == 0:
		return &obstacle{reason: "NoGPU", message: "the node has no GPU", effort: effortNoGPU}
	}
	return &obstacle{reason: reason.String(), message: reason.Message(), effort: effortTaint - 1 - int(reason)}
}

// checkNode is everything that keeps a pod off a node, the hardest to mend first.
func checkNode(limits *pack.Limits, r *rules, request *pack.Request, node *corev1.Node, state *pack.Node,
	taken corev1.ResourceList) []obstacle {
	out := r.check(node)
	gpu := gpuObstacle(limits, state, request)
	if gpu != nil {
		out = append(out, *gpu)
	}
	for _, o := range shortages(node, taken, podRequests(r.pod)) {
		// Too few GPUs have been told of already, and better.
		if gpu == nil || o.message != fmt.Sprintf("insufficient %s", v1alpha1.ResourceGPU) {
			out = append(out, o)
		}
	}
	slices.SortStableFunc(out, func(a, b obstacle) int { return b.effort - a.effort })
	return out
}
