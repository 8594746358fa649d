// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/utils/ptr"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack/policy"
)

func TestEndOf(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	started := now.Add(-time.Minute)
	tests := []struct {
		name   string
		change func(*corev1.Pod)
		want   time.Time
	}{
		{"nothing known", func(*corev1.Pod) {}, time.Time{}},
		{"a deadline", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr.To[int64](600) }, started.Add(630 * time.Second)},
		{"a deadline and a grace period", func(p *corev1.Pod) {
			p.Spec.ActiveDeadlineSeconds, p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](600), ptr.To[int64](5)
		}, started.Add(605 * time.Second)},
		{"being deleted", func(p *corev1.Pod) {
			p.Spec.ActiveDeadlineSeconds = ptr.To[int64](600)
			p.DeletionTimestamp = ptr.To(metav1.NewTime(now.Add(20 * time.Second)))
		}, now.Add(20 * time.Second)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var pod corev1.Pod
			tt.change(&pod)
			assert.Equal(t, tt.want, endOf(&pod, started))
		})
	}
}

func TestOccupancy(t *testing.T) {
	p, infos := withNodes(t, 1, policy.BestFit{})
	now := p.clock.Now()
	add := func(name string, change func(*corev1.Pod)) {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))},
			Spec: corev1.PodSpec{NodeName: infos[0].Node().Name, Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{v1alpha1.ResourceGPU: resource.MustParse("1"), corev1.ResourceCPU: resource.MustParse("1")},
			}}}},
		}
		change(pod)
		info, err := framework.NewPodInfo(pod)
		require.NoError(t, err)
		infos[0].AddPodInfo(info)
	}
	started := metav1.NewTime(now.Add(-30 * time.Minute).Truncate(time.Second))
	add("service", func(p *corev1.Pod) { p.Status.StartTime = &started })
	add("batch", func(p *corev1.Pod) { p.Status.StartTime, p.Spec.ActiveDeadlineSeconds = &started, ptr.To[int64](3600) })
	add("late", func(p *corev1.Pod) { p.Status.StartTime, p.Spec.ActiveDeadlineSeconds = &started, ptr.To[int64](600) })
	add("not-started", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr.To[int64](600) })
	add("agent", func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "DaemonSet", Name: "agent", Controller: ptr.To(true)}}
	})
	o := p.occupancy(infos[0], now)
	require.Len(t, o.Holdings, 4, "a DaemonSet's pod is not waited for")
	ends := map[string]time.Time{}
	for _, h := range o.Holdings {
		ends[h.ID] = h.Ends
		assert.Equal(t, 1, h.Request.GPUs)
	}
	assert.Equal(t, map[string]time.Time{
		"service":     {},
		"batch":       started.Add(3630 * time.Second),
		"late":        {},
		"not-started": now.Add(630 * time.Second),
	}, ends)
	assert.Equal(t, started.Time, o.Holdings[0].Since)
}

func TestMinutes(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 12*time.Minute + 40*time.Second: "12m", 90 * time.Minute: "1h30m", 50 * time.Hour: "50h0m",
	} {
		assert.Equal(t, want, minutes(d))
	}
}
