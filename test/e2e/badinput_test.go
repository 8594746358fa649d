// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/scheduler"
)

func TestMalformedPodsStayPendingWithTheReason(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(4) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	for name, tc := range map[string]struct {
		options []podOption
		reason  []string
	}{
		"share-above-one-gpu": {[]podOption{shareMilli(1500)}, []string{"gpupack.dev/gpu-milli", "above one GPU"}},
		"share-too-large":     {[]podOption{shareMemory("100Gi")}, []string{"larger than the memory"}},
		"both-kinds":          {[]podOption{wholeGPUs(1), shareMemory("1Gi")}, []string{"ask for one kind"}},
		"bad-utilization": {
			[]podOption{shareMemory("1Gi"), annotated(v1alpha1.AnnotationMaxLiveUtilization, "sixty")},
			[]string{"gpupack.dev/max-live-utilization", "sixty", "1 to 100"},
		},
		"bad-model":     {[]podOption{wholeGPUs(1), annotated(v1alpha1.AnnotationGPUModel, "A100,,")}, []string{"gpupack.dev/gpu-model"}},
		"unknown-model": {[]podOption{wholeGPUs(1), annotated(v1alpha1.AnnotationGPUModel, "Z999")}, []string{"too few GPUs of an accepted model"}},
	} {
		t.Run(name, func(t *testing.T) {
			k.create(t, name, tc.options...)
			k.pendingFor(t, name, tc.reason...)
		})
	}
	k.create(t, "good", wholeGPUs(1))
	k.placed(t, "good")

	// Mending the annotation is enough.
	pod := k.get(t, "bad-utilization")
	patch := client.MergeFrom(pod.DeepCopy())
	pod.Annotations[v1alpha1.AnnotationMaxLiveUtilization] = "60"
	require.NoError(t, k.Patch(t.Context(), pod, patch))
	k.placed(t, "bad-utilization")
}

func TestImpossibleTelemetryIsRefused(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(2) })
	for name, tc := range map[string]struct {
		change  func([]v1alpha1.GPU) []v1alpha1.GPU
		message string
	}{
		"used above total": {func(g []v1alpha1.GPU) []v1alpha1.GPU { g[0].MemoryUsedMiB = 90 * gib; return g }, "memoryUsedMiB is above memoryTotalMiB"},
		"negative":         {func(g []v1alpha1.GPU) []v1alpha1.GPU { g[0].MemoryUsedMiB = -1; return g }, "should be greater than or equal to 0"},
		"duplicate uuid":   {func(g []v1alpha1.GPU) []v1alpha1.GPU { g[1].UUID = g[0].UUID; return g }, "Duplicate value"},
		"sick, no reason":  {func(g []v1alpha1.GPU) []v1alpha1.GPU { g[0].Healthy = false; return g }, "unhealthyReason"},
	} {
		t.Run(name, func(t *testing.T) {
			var gn v1alpha1.GPUNode
			require.NoError(t, k.Get(t.Context(), client.ObjectKey{Name: k.nodes[0]}, &gn))
			gn.Status.GPUs = tc.change(gn.Status.GPUs)
			err := k.Status().Update(t.Context(), &gn)
			require.True(t, apierrors.IsInvalid(err), "%v", err)
			require.ErrorContains(t, err, tc.message)
		})
	}
}

// A GPUNode whose node does not exist is no place for a pod, and troubles nobody.
func TestGPUNodeWithoutNode(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(1) })
	orphan := k.namespace + "-orphan"
	k.gpus[orphan] = []v1alpha1.GPU{a100()}
	k.gpus[orphan][0].UUID = "GPU-" + orphan + "-0"
	k.publish(t, orphan)
	t.Cleanup(func() {
		// t.Context has ended by now.
		_ = k.Delete(context.Background(), &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: orphan}})
	})
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.create(t, "a", wholeGPUs(1))
	require.Equal(t, k.nodes[0], k.placed(t, "a").Spec.NodeName)
	k.create(t, "b", wholeGPUs(1))
	k.pendingFor(t, "b", "Insufficient nvidia.com/gpu")
	require.Eventually(t, func() bool {
		var events eventsv1.EventList
		require.NoError(t, k.List(t.Context(), &events))
		return slices.ContainsFunc(events.Items, func(e eventsv1.Event) bool {
			return e.Regarding.Name == orphan && e.Reason == "NodeNotFound"
		})
	}, eventually, tick)
}

func TestNodeWithoutTelemetry(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(1) })
	require.NoError(t, k.Delete(t.Context(), &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: k.nodes[0]}}))
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.create(t, "a", wholeGPUs(1))
	k.pendingFor(t, "a", "is gpupack-agent running there?")
	k.publish(t, k.nodes[0])
	k.placed(t, "a")
}

func TestWrongArgumentsEndTheScheduler(t *testing.T) {
	cp := controlPlane(t)
	for name, tc := range map[string]struct {
		args map[string]any
		want string
	}{
		"weight":        {map[string]any{"loadWeight": -1}, "loadWeight"},
		"policy":        {map[string]any{"policy": "best"}, "policy"},
		"unknown field": {map[string]any{"loadWait": 1}, "loadWait"},
		"stale policy":  {map[string]any{"stalePolicy": "Guess", "staleAfter": time.Minute.String()}, "stalePolicy"},
	} {
		t.Run(name, func(t *testing.T) {
			code, output := scheduler.StartExpectingExit(t, cp, scheduler.Options{Args: tc.args})
			require.Equal(t, 1, code)
			require.Contains(t, output, tc.want)
		})
	}
}
