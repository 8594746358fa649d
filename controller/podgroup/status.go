// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package podgroup

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
)

// maxOwners bounds how many owners are named in OccupiedBy.
const maxOwners = 10

// status is what is true of a group with those members now. Pods that are being deleted are members no more.
func status(group *schedulingv1alpha1.PodGroup, pods []*corev1.Pod, now metav1.Time) schedulingv1alpha1.PodGroupStatus {
	need := max(1, group.Spec.MinMember)
	old := &group.Status
	var s schedulingv1alpha1.PodGroupStatus
	var live, bound int32
	for _, pod := range pods {
		switch {
		case pod.Status.Phase == corev1.PodSucceeded:
			s.Succeeded++
		case pod.Status.Phase == corev1.PodFailed:
			s.Failed++
		case pod.DeletionTimestamp != nil:
		default:
			live++
			if pod.Spec.NodeName != "" {
				bound++
			}
			if pod.Status.Phase == corev1.PodRunning {
				s.Running++
			}
		}
	}
	if old.Phase == schedulingv1alpha1.PodGroupFinished && live == 0 && s.Succeeded < need {
		// Pods that have ended are cleaned up; that does not undo what they did.
		return *old
	}
	s.OccupiedBy = owners(pods)
	if s.OccupiedBy == "" {
		s.OccupiedBy = old.OccupiedBy
	}
	repair, _ := convert.LastRepair(group)
	switch {
	case s.Succeeded >= need:
		s.Phase = schedulingv1alpha1.PodGroupFinished
	case repair != nil && repair.State == convert.RepairLimitReached:
		s.Phase = schedulingv1alpha1.PodGroupFailed
	case s.Failed > 0 && live+s.Succeeded < need:
		s.Phase = schedulingv1alpha1.PodGroupFailed
	case s.Running+s.Succeeded >= need:
		s.Phase = schedulingv1alpha1.PodGroupRunning
	case bound+s.Succeeded >= need:
		s.Phase = schedulingv1alpha1.PodGroupScheduling
	case bound > 0:
		s.Phase = schedulingv1alpha1.PodGroupUnknown
	default:
		s.Phase = schedulingv1alpha1.PodGroupPending
	}

	s.ScheduleStartTime = old.ScheduleStartTime
	if s.Phase == schedulingv1alpha1.PodGroupPending {
		switch {
		case live+s.Succeeded < need:
			s.ScheduleStartTime = metav1.Time{}
		case s.ScheduleStartTime.IsZero() || old.Phase != schedulingv1alpha1.PodGroupPending:
			s.ScheduleStartTime = now
		}
	} else if s.ScheduleStartTime.IsZero() && live > 0 {
		s.ScheduleStartTime = now
	}
	return s
}

// owners names the controllers of the pods as scheduler-plugins does: NAMESPACE/NAME, separated by commas.
func owners(pods []*corev1.Pod) string {
	var names []string
	for _, pod := range pods {
		if owner := metav1.GetControllerOf(pod); owner != nil {
			names = append(names, pod.Namespace+"/"+owner.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return strings.Join(names[:min(len(names), maxOwners)], ",")
}
