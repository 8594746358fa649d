// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/utils/ptr"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func TestQueueOrder(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	p := &Plugin{groups: &podGroups{}}
	p.groups.byKey = map[types.NamespacedName]*schedulingv1alpha1.PodGroup{}
	for name, created := range map[string]int{"old": 5, "twin": 5, "new": 50} {
		p.groups.set(&schedulingv1alpha1.PodGroup{ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, ResourceVersion: "1", CreationTimestamp: metav1.NewTime(at(created)),
		}})
	}
	// queued is when the pod came to the queue for this attempt, first when it came for the first.
	pod := func(name, group string, priority int32, created, first, queued int) *framework.QueuedPodInfo {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, CreationTimestamp: metav1.NewTime(at(created))},
			Spec:       corev1.PodSpec{Priority: &priority},
		}
		if group != "" {
			pod.Labels = map[string]string{v1alpha1.LabelPodGroup: group}
		}
		info, err := framework.NewPodInfo(pod)
		require.NoError(t, err)
		return &framework.QueuedPodInfo{PodInfo: info, Timestamp: at(queued), InitialAttemptTimestamp: ptr.To(at(first))}
	}
	line := []*framework.QueuedPodInfo{
		pod("urgent", "", 10, 60, 60, 60),
		pod("tried-often", "", 0, 1, 1, 90),
		pod("came-after", "", 0, 2, 2, 2),
		pod("w-9", "old", 0, 70, 70, 70),
		pod("w-10", "old", 0, 30, 30, 95),
		pod("w-1", "twin", 0, 5, 5, 5),
		pod("w-2", "twin", 0, 5, 9, 9),
		pod("same-second-b", "", 0, 5, 6, 99),
		pod("same-second-a", "", 0, 5, 7, 7),
		pod("without-group", "gone", 0, 6, 6, 6),
		pod("younger", "", 0, 40, 40, 40),
		pod("w-0", "new", 0, 50, 50, 50),
		pod("humble", "", -1, 0, 0, 0),
	}
	for i := range line {
		for j := range line {
			assert.Equal(t, i < j, p.Less(line[i], line[j]), "%s before %s", line[i].Pod.Name, line[j].Pod.Name)
		}
	}
	mixed := slices.Clone(line)
	slices.Reverse(mixed)
	slices.SortFunc(mixed, func(a, b *framework.QueuedPodInfo) int {
		if p.Less(a, b) {
			return -1
		}
		return 1
	})
	assert.Equal(t, line, mixed)
}
