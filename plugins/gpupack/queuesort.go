// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	fwk "k8s.io/kube-scheduler/framework"
)

// Less orders the queue by priority, then by age, and keeps the members of a gang together: a gang is as old as its
// PodGroup.
func (p *Plugin) Less(a, b fwk.QueuedPodInfo) bool {
	podA, podB := a.GetPodInfo().GetPod(), b.GetPodInfo().GetPod()
	if pa, pb := corev1helpers.PodPriority(podA), corev1helpers.PodPriority(podB); pa != pb {
		return pa > pb
	}
	ageA, keyA := p.queuedSince(podA, a)
	ageB, keyB := p.queuedSince(podB, b)
	if !ageA.Equal(ageB) {
		return ageA.Before(ageB)
	}
	if keyA != keyB {
		return keyA < keyB
	}
	return compareMembers(podA, podB) < 0
}

// queuedSince is the age that counts for a pod, and a key that members of one gang share.
func (p *Plugin) queuedSince(pod *corev1.Pod, info fwk.QueuedPodInfo) (time.Time, string) {
	name := groupOf(pod)
	if name.Name == "" {
		return info.GetTimestamp(), ""
	}
	if group, ok := p.groups.find(name); ok {
		return group.CreationTimestamp.Time, name.String()
	}
	return info.GetTimestamp(), name.String()
}
