// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package podgroup

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

var now = metav1.NewTime(time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC))

// pods of one letter each: . pending, b bound, r running, s succeeded, f failed, x running but being deleted.
func pods(letters string) []*corev1.Pod {
	out := make([]*corev1.Pod, len(letters))
	for i, letter := range letters {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint(i)}, Status: corev1.PodStatus{Phase: corev1.PodPending}}
		if letter != '.' {
			pod.Spec.NodeName = "node"
		}
		switch letter {
		case 'x':
			pod.DeletionTimestamp = &now
			pod.Status.Phase = corev1.PodRunning
		case 'r':
			pod.Status.Phase = corev1.PodRunning
		case 's':
			pod.Status.Phase = corev1.PodSucceeded
		case 'f':
			pod.Status.Phase = corev1.PodFailed
		}
		out[i] = pod
	}
	return out
}

func group(minMember int32) *schedulingv1alpha1.PodGroup {
	return &schedulingv1alpha1.PodGroup{Spec: schedulingv1alpha1.PodGroupSpec{MinMember: minMember}}
}

func TestPhase(t *testing.T) {
	for name, tt := range map[string]struct {
		minMember                  int32
		pods                       string
		want                       schedulingv1alpha1.PodGroupPhase
		running, succeeded, failed int32
	}{
		"no pod":                         {2, "", schedulingv1alpha1.PodGroupPending, 0, 0, 0},
		"too few":                        {3, "..", schedulingv1alpha1.PodGroupPending, 0, 0, 0},
		"complete":                       {2, "..", schedulingv1alpha1.PodGroupPending, 0, 0, 0},
		"some bound":                     {3, "b..", schedulingv1alpha1.PodGroupUnknown, 0, 0, 0},
		"enough bound":                   {2, "bb.", schedulingv1alpha1.PodGroupScheduling, 0, 0, 0},
		"some run":                       {2, "rb", schedulingv1alpha1.PodGroupScheduling, 1, 0, 0},
		"enough run":                     {2, "rrb.", schedulingv1alpha1.PodGroupRunning, 2, 0, 0},
		"one is being deleted":           {3, "rrx", schedulingv1alpha1.PodGroupUnknown, 2, 0, 0},
		"one has ended":                  {3, "rrs", schedulingv1alpha1.PodGroupRunning, 2, 1, 0},
		"enough have ended":              {2, "ssr", schedulingv1alpha1.PodGroupFinished, 1, 2, 0},
		"one has failed":                 {3, "rrf", schedulingv1alpha1.PodGroupFailed, 2, 0, 1},
		"one has failed and is replaced": {3, "rrfr", schedulingv1alpha1.PodGroupRunning, 3, 0, 1},
		"an elastic one has failed":      {2, "rrf", schedulingv1alpha1.PodGroupRunning, 2, 0, 1},
		"minMember of 0 is 1":            {0, "", schedulingv1alpha1.PodGroupPending, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := status(group(tt.minMember), pods(tt.pods), now)
			require.Equal(t, tt.want, s.Phase)
			require.Equal(t, []int32{tt.running, tt.succeeded, tt.failed}, []int32{s.Running, s.Succeeded, s.Failed})
		})
	}
}

func TestStatusIsStable(t *testing.T) {
	for _, letters := range []string{"", "..", "b.", "bb", "rr", "ss", "rf", "rx"} {
		g := group(2)
		g.Status = status(g, pods(letters), now)
		later := metav1.NewTime(now.Add(time.Hour))
		require.Equal(t, g.Status, status(g, pods(letters), later), letters)
	}
}

func TestScheduleStartTime(t *testing.T) {
	g := group(2)
	step := func(letters string, after time.Duration) metav1.Time {
		g.Status = status(g, pods(letters), metav1.NewTime(now.Add(after)))
		return g.Status.ScheduleStartTime
	}
	at := func(after time.Duration) metav1.Time { return metav1.NewTime(now.Add(after)) }
	require.Zero(t, step(".", 0))
	require.Equal(t, at(1), step("..", 1), "from when it is complete")
	require.Equal(t, at(1), step("b.", 2))
	require.Equal(t, at(1), step("rr", 3))
	require.Equal(t, at(4), step("..", 4), "anew when it is restarted")
	require.Equal(t, at(4), step("rr", 5))
	require.Zero(t, step("", 6))
}

func TestFinishedStays(t *testing.T) {
	g := group(2)
	g.Status = status(g, pods("ss"), now)
	require.Equal(t, g.Status, status(g, pods("s"), now), "its pods are cleaned up")
	require.Equal(t, g.Status, status(g, nil, now))
	require.Equal(t, schedulingv1alpha1.PodGroupPending, status(g, pods(".."), now).Phase, "it is used again")
}

func TestGivenUp(t *testing.T) {
	g := group(3)
	g.Annotations = map[string]string{v1alpha1.AnnotationRepair: `{"state":"LimitReached"}`}
	require.Equal(t, schedulingv1alpha1.PodGroupFailed, status(g, pods("rr"), now).Phase)
	require.Equal(t, schedulingv1alpha1.PodGroupFinished, status(g, pods("sss"), now).Phase)
}

func TestOccupiedBy(t *testing.T) {
	members := pods("....")
	for i, owner := range []string{"b", "a", "a"} {
		members[i].OwnerReferences = []metav1.OwnerReference{{Name: owner, Controller: new(true)}}
	}
	g := group(1)
	g.Status = status(g, members, now)
	require.Equal(t, "ns/a,ns/b", g.Status.OccupiedBy)
	require.Equal(t, "ns/a,ns/b", status(g, nil, now).OccupiedBy)
}
