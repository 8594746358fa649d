// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// Causes of a loss.
const (
	causeNodeGone     = "NodeGone"
	causeNodeNotReady = "NodeNotReady"
	causeGPUUnhealthy = "GPUUnhealthy"
	causeGPUGone      = "GPUGone"
	causePodFailed    = "PodFailed"
)

// loss is a member that the gang cannot go on with.
type loss struct {
	pod   *corev1.Pod
	cause string
	// message is a clause that goes on after the pod's name, such as "its node n1 is gone".
	message string
}

// gang is all that a decision depends on.
type gang struct {
	group  *schedulingv1alpha1.PodGroup
	policy v1alpha1.MemberLossPolicy
	repair *convert.Repair
	// pods by name.
	pods []*corev1.Pod
	// vanished have failed, and exist no more.
	vanished []*corev1.Pod
	// nodes of the pods; one that does not exist is not there.
	nodes map[string]*corev1.Node
	gpus  map[string]*v1alpha1.GPUNode
	// kept are the pods that are to be made anew, by the UID of the old one.
	kept map[string]*corev1.PodTemplate

	o   *Options
	now time.Time
}

// nodeLost says whether nothing runs on a node any more, as far as anybody can know, and else when to ask again: 0 for never.
func (g *gang) nodeLost(name string) (cause, message string, again time.Duration) {
	node, ok := g.nodes[name]
	if !ok {
		return causeNodeGone, fmt.Sprintf("its node %s is gone", name), 0
	}
	for _, t := range node.Spec.Taints {
		if t.Key == corev1.TaintNodeOutOfService {
			return causeNodeGone, fmt.Sprintf("its node %s is out of service", name), 0
		}
	}
	for _, c := range node.Status.Conditions {
		if c.Type != corev1.NodeReady || c.Status == corev1.ConditionTrue {
			continue
		}
		if rest := g.o.NotReadyAfter - g.now.Sub(c.LastTransitionTime.Time); rest > 0 {
			return "", "", rest
		}
		return causeNodeNotReady, fmt.Sprintf("its node %s is not ready for more than %s", name, g.o.NotReadyAfter), 0
	}
	return "", "", 0
}

// sick are the reasons for which a GPU cannot go on with what it has begun. Of the others, throttled GPUs go on slowly, and a
// row is remapped at the next reset.
func sick(reason v1alpha1.UnhealthyReason) bool {
	return reason != v1alpha1.ReasonThrottled && reason != v1alpha1.ReasonRowRemapPending
}

// gpuLost says whether a GPU of the pod has failed. That an agent is silent is no loss; the last that it said of a GPU's health
// stands.
func (g *gang) gpuLost(pod *corev1.Pod) (cause, message string) {
	gn := g.gpus[pod.Spec.NodeName]
	if gn == nil || gn.Status.ObservedTime == nil || convert.CheckTelemetry(gn) != nil {
		return "", ""
	}
	var missing string
	for _, uuid := range gpusOf(pod, gn) {
		i := slices.IndexFunc(gn.Status.GPUs, func(gpu v1alpha1.GPU) bool { return gpu.UUID == uuid })
		switch {
		case i < 0:
			missing = uuid
		case !gn.Status.GPUs[i].Healthy && sick(gn.Status.GPUs[i].UnhealthyReason):
			gpu := &gn.Status.GPUs[i]
			return causeGPUUnhealthy, fmt.Sprintf("its GPU %s on node %s is unhealthy: %s", uuid, gn.Name,
				strings.TrimSpace(string(gpu.UnhealthyReason)+" "+gpu.UnhealthyMessage))
		}
	}
	stale := convert.IsStale(gn, &convert.Options{StaleAfter: convert.DefaultStaleAfter, Now: g.now})
	// A reading from before the pod had its GPUs tells nothing of them.
	if missing == "" || stale || gn.Status.ObservedTime.Time.Before(pod.CreationTimestamp.Time) {
		return "", ""
	}
	return causeGPUGone, fmt.Sprintf("its GPU %s is no longer on node %s", missing, gn.Name)
}

// gpusOf returns the GPUs that the pod has: on a node where the device plugin decides, those on which the agent sees it.
func gpusOf(pod *corev1.Pod, gn *v1alpha1.GPUNode) []string {
	if gn.Status.Mode != v1alpha1.ModeManage {
		var seen []string
		for i := range gn.Status.GPUs {
			gpu := &gn.Status.GPUs[i]
			if slices.ContainsFunc(gpu.Pods, func(p v1alpha1.GPUPod) bool { return p.UID == pod.UID }) {
				seen = append(seen, gpu.UUID)
			}
		}
		if len(seen) > 0 {
			return seen
		}
	}
	if text := pod.Annotations[v1alpha1.AnnotationGPUs]; text != "" {
		return strings.Split(text, ",")
	}
	return nil
}

// loss says whether a member is lost, and else when to ask again: 0 for when something changes.
func (g *gang) loss(pod *corev1.Pod) (l *loss, again time.Duration) {
	switch {
	case pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded:
		return nil, 0
	case pod.Status.Phase == corev1.PodFailed:
		if g.failureHandled(pod) {
			return nil, 0
		}
		why := "it failed"
		if pod.Status.Reason != "" {
			why += ": " + pod.Status.Reason
		}
		return &loss{pod, causePodFailed, why}, 0
	case pod.Spec.NodeName == "":
		return nil, 0
	}
	cause, message, again := g.nodeLost(pod.Spec.NodeName)
	if cause == "" {
		cause, message = g.gpuLost(pod)
	}
	if cause == "" {
		return nil, again
	}
	return &loss{pod, cause, message}, 0
}

// failureHandled says whether a failed pod is history. Owners leave failed pods where they are, for their logs.
func (g *gang) failureHandled(pod *corev1.Pod) bool {
	if !isBare(pod) {
		// The owner itself makes another.
		if g.policy == v1alpha1.ReplaceMember {
			return true
		}
		// Of the gang before the last restart.
		if r := g.repair; r != nil && r.Policy == v1alpha1.RestartGang && g.isOld(pod) && r.State != convert.RepairWaiting && r.State != convert.RepairEnding {
			return true
		}
	}
	ended := endedAt(pod)
	return !ended.IsZero() && g.now.Sub(ended) > g.o.ResetAfter
}

// endedAt is when a failed pod ended, zero where it does not say.
func endedAt(pod *corev1.Pod) time.Time {
	var last time.Time
	for _, c := range pod.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.LastTransitionTime.After(last) {
			last = c.LastTransitionTime.Time
		}
	}
	return last
}

// losses are the lost members by name, and when to look again.
func (g *gang) losses() (lost []*loss, again time.Duration) {
	for _, pod := range g.pods {
		l, in := g.loss(pod)
		if l != nil {
			lost = append(lost, l)
		}
		again = sooner(again, in)
	}
	for _, pod := range g.vanished {
		if l, _ := g.loss(pod); l != nil {
			lost = append(lost, l)
		}
	}
	return lost, again
}

// isOld says whether the member is of the gang that the last repair found broken.
func (g *gang) isOld(pod *corev1.Pod) bool {
	return !pod.CreationTimestamp.After(g.repair.Born.Time)
}

// toEnd are the members to delete in the repair under way.
func (g *gang) toEnd() []*corev1.Pod {
	var out []*corev1.Pod
	for _, pod := range g.pods {
		if pod.DeletionTimestamp != nil {
			continue
		}
		if g.repair.Policy == v1alpha1.RestartGang {
			running := !convert.IsTerminal(pod) && pod.Spec.NodeName != ""
			failed := pod.Status.Phase == corev1.PodFailed && isBare(pod) && (g.kept[string(pod.UID)] != nil || !g.failureHandled(pod))
			if g.isOld(pod) && (running || failed) {
				out = append(out, pod)
			}
		} else if l, _ := g.loss(pod); l != nil {
			out = append(out, pod)
		}
	}
	return out
}

// youngest is when the youngest member was created.
func (g *gang) youngest() time.Time {
	var last time.Time
	for _, pod := range g.pods {
		if pod.CreationTimestamp.After(last) {
			last = pod.CreationTimestamp.Time
		}
	}
	return last
}

// whole says whether enough members run, and since when.
func (g *gang) whole() (since time.Time, ok bool) {
	running := 0
	for _, pod := range g.pods {
		if pod.Status.Phase != corev1.PodRunning || pod.DeletionTimestamp != nil {
			continue
		}
		running++
		if pod.Status.StartTime != nil && pod.Status.StartTime.After(since) {
			since = pod.Status.StartTime.Time
		}
	}
	return since, running >= max(1, int(g.group.Spec.MinMember))
}

// isBare says whether nobody but gpupack would make the pod anew.
func isBare(pod *corev1.Pod) bool {
	owner := metav1.GetControllerOf(pod)
	return owner == nil || owner.Kind == "PodGroup" && strings.HasPrefix(owner.APIVersion, schedulingv1alpha1.SchemeGroupVersion.Group+"/")
}

// sooner is the lesser of two delays of which 0 means never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// backoff is how long to wait before the repair after so many others.
func (o *Options) backoff(restarts int) time.Duration {
	d := o.BackoffBase
	for ; restarts > 0 && d < o.BackoffMax; restarts-- {
		d *= 2
	}
	return min(d, o.BackoffMax)
}
