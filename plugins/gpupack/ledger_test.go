// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func gpuPod(uid, node, gpus string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid), Annotations: map[string]string{}},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{v1alpha1.ResourceGPU: resource.MustParse("1")},
		}}}},
	}
	if gpus != "" {
		pod.Annotations[v1alpha1.AnnotationGPUs] = gpus
	}
	return pod
}

func TestLedgerFollowsThePodThroughItsLife(t *testing.T) {
	l := newLedger()
	l.put(&entry{uid: "a", node: "n", gpus: []string{"g0"}, phase: assumed})
	require.True(t, l.has("a"))
	before := l.nodeVersion("n")

	// The informer shows the annotation before the binding: no promise of the API's yet.
	l.observe(gpuPod("a", "", "g0"))
	e, _ := l.get("a")
	require.Equal(t, assumed, e.phase)
	require.Equal(t, before, l.nodeVersion("n"))

	l.observe(gpuPod("a", "n", "g0"))
	e, _ = l.get("a")
	require.Equal(t, bound, e.phase)
	require.Greater(t, l.nodeVersion("n"), before)

	// A binding that the scheduler took for failed, but that the API has, stays.
	l.dropUnbound("a")
	require.True(t, l.has("a"))

	again := l.nodeVersion("n")
	l.observe(gpuPod("a", "n", "g0"))
	require.Equal(t, again, l.nodeVersion("n"), "an update that changes nothing invalidates nothing")

	done := gpuPod("a", "n", "g0")
	done.Status.Phase = corev1.PodSucceeded
	l.observe(done)
	require.False(t, l.has("a"))
}

func TestLedgerIsRebuiltFromAnnotations(t *testing.T) {
	l := newLedger()
	l.observe(gpuPod("bound", "n", "g0"))
	l.observe(gpuPod("annotated-only", "", "g1"))
	entries, _ := l.onNode("n")
	require.Len(t, entries, 1)
	require.Equal(t, []string{"g0"}, entries["bound"].gpus)
	require.False(t, l.has("annotated-only"))
}

// The indexes agree with each other after any sequence of writes, and every change of a node's entries changes its version.
func TestLedgerIndexesAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger()
		uid := rapid.SampledFrom([]types.UID{"a", "b", "c", "d"})
		node := rapid.SampledFrom([]string{"n1", "n2"})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				n := node.Draw(t, "node")
				before := l.nodeVersion(n)
				l.put(&entry{uid: uid.Draw(t, "uid"), node: n, phase: rapid.SampledFrom([]phase{planned, assumed, bound}).Draw(t, "phase")})
				require.Greater(t, l.nodeVersion(n), before)
			},
			"drop":        func(t *rapid.T) { l.drop(uid.Draw(t, "uid")) },
			"dropUnbound": func(t *rapid.T) { l.dropUnbound(uid.Draw(t, "uid")) },
			"": func(t *rapid.T) {
				total, plannedCount := 0, 0
				for n, entries := range l.byNode {
					require.NotEmpty(t, entries)
					total += len(entries)
					for id, e := range entries {
						require.Equal(t, n, e.node)
						require.Same(t, e, l.byUID[id], fmt.Sprint(id))
						if e.phase == planned {
							plannedCount++
						}
					}
				}
				require.Len(t, l.byUID, total)
				require.Equal(t, plannedCount > 0, l.anyPlanned())
			},
		})
	})
}
