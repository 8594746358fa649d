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
// PodGroup, and a pod as the API says, however often it was tried since.
func (p *Plugin) Less(a, b fwk.QueuedPodInfo) bool {
	podA, podB := a.GetPodInfo().GetPod(), b.GetPodInfo().GetPod()
	if pa, pb := corev1helpers.PodPriority(podA), corev1helpers.PodPriority(podB); pa != pb {
		return pa > pb
	}
	ageA, keyA := p.inLineSince(podA)
	ageB, keyB := p.inLineSince(podB)
	if d := ageA.Compare(ageB); d != 0 {
		return d < 0
	}
	// The API counts in seconds.
	if d := firstSeen(a, keyA).Compare(firstSeen(b, keyB)); d != 0 {
		return d < 0
	}
	if keyA != keyB {
		return keyA < keyB
	}
	return compareMembers(podA, podB) < 0
}

// inLineSince is the age that counts for a pod, and a key that members of one gang share; "" for a pod of no gang.
func (p *Plugin) inLineSince(pod *corev1.Pod) (time.Time, string) {
	name := groupOf(pod)
	if name.Name == "" {
		return pod.CreationTimestamp.Time, ""
	}
	if group, ok := p.groups.find(name); ok {
		return group.CreationTimestamp.Time, name.String()
	}
	return pod.CreationTimestamp.Time, name.String()
}

// firstSeen is when a pod of no gang came to the queue first. Members of a gang have none, since that would part them.
func firstSeen(info fwk.QueuedPodInfo, key string) time.Time {
	if first := info.GetInitialAttemptTimestamp(); key == "" && first != nil {
		return *first
	}
	return time.Time{}
}
