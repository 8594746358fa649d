// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/controller"
	"github.com/gpupack/gpupack/test/scheduler"
)

// deployment makes a Deployment of halves of GPUs.
func (k *cluster) deployment(t *testing.T, name string, replicas int32, annotations map[string]string) *appsv1.Deployment {
	t.Helper()
	labels := map[string]string{"app": name}
	pod := k.pod(name, shareMilli(500))
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}, Spec: pod.Spec},
		},
	}
	require.NoError(t, k.Create(t.Context(), d))
	return d
}

// replicas waits until exactly so many pods of the Deployment run, and returns them.
func (k *cluster) replicas(t *testing.T, name string, n int) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, k.List(context.Background(), &list, client.InNamespace(k.namespace), client.MatchingLabels{"app": name}))
		require.Len(c, list.Items, n)
		for i := range list.Items {
			require.Equal(c, corev1.PodRunning, list.Items[i].Status.Phase, pendingReason(&list.Items[i]))
		}
	}, eventually, tick)
	return list.Items
}

func (k *cluster) scale(t *testing.T, d *appsv1.Deployment, replicas int32) {
	t.Helper()
	patch := client.MergeFrom(d.DeepCopy())
	d.Spec.Replicas = ptr.To(replicas)
	require.NoError(t, k.Patch(t.Context(), d, patch))
}

func gpusInUse(pods []corev1.Pod) map[string]int {
	used := map[string]int{}
	for i := range pods {
		for _, uuid := range convert.GPUs(&pods[i]) {
			used[uuid]++
		}
	}
	return used
}

// Scale-down leaves whole GPUs free, where the ReplicaSet alone would leave one replica here and one there.
func TestScaleDownFreesGPUs(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(4) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	c := controller.Start(t, k.cp, "--deletion-cost-interval=100ms")
	d := k.deployment(t, "serve", 16, map[string]string{v1alpha1.AnnotationScaleDown: v1alpha1.ScaleDownFreeGPUs})
	pods := k.replicas(t, "serve", 16)
	require.Len(t, gpusInUse(pods), 8)
	k.costsSettle(t, "serve")
	require.Contains(t, c.Metrics(t), "gpupack_controller_deletion_cost_updates_total")

	k.scale(t, d, 6)
	pods = k.replicas(t, "serve", 6)
	require.Len(t, gpusInUse(pods), 3, "6 halves need 3 GPUs")
	nodes := map[string]bool{}
	for i := range pods {
		nodes[pods[i].Spec.NodeName] = true
	}
	require.Len(t, nodes, 1, "one node is empty")
	k.costsSettle(t, "serve")
	k.scale(t, d, 3)
	require.Len(t, gpusInUse(k.replicas(t, "serve", 3)), 2)
}

// Pods of others on a GPU count: emptying it of our replicas would gain nothing.
func TestScaleDownLeavesGPUsOfOthersForLast(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(3) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	controller.Start(t, k.cp, "--deletion-cost-interval=100ms")
	k.create(t, "other", shareMilli(500))
	k.placed(t, "other")
	d := k.deployment(t, "serve", 5, map[string]string{v1alpha1.AnnotationScaleDown: v1alpha1.ScaleDownFreeGPUs})
	require.Len(t, gpusInUse(k.replicas(t, "serve", 5)), 3)
	k.costsSettle(t, "serve")
	k.scale(t, d, 1)
	left := k.replicas(t, "serve", 1)
	require.Equal(t, convert.GPUs(k.get(t, "other")), convert.GPUs(&left[0]), "it stays beside the other pod")
}

// A wrong value is said on the pod, and one that asks for nothing is left alone.
func TestScaleDownOptsIn(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(2) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	controller.Start(t, k.cp, "--deletion-cost-interval=100ms")
	k.deployment(t, "wrong", 1, map[string]string{v1alpha1.AnnotationScaleDown: "all"})
	k.deployment(t, "silent", 1, nil)
	k.deployment(t, "serve", 1, map[string]string{v1alpha1.AnnotationScaleDown: v1alpha1.ScaleDownFreeGPUs})
	k.event(t, "InvalidScaleDown", "wrong")
	k.costsSettle(t, "serve")
	for _, name := range []string{"wrong", "silent"} {
		require.NotContains(t, k.replicas(t, name, 1)[0].Annotations, corev1.PodDeletionCost)
	}
}

// costsSettle waits until each pod of the Deployment has a cost of its own, in the order in which GPUs become free.
func (k *cluster) costsSettle(t *testing.T, name string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var list corev1.PodList
		require.NoError(c, k.List(context.Background(), &list, client.InNamespace(k.namespace), client.MatchingLabels{"app": name}))
		costs := map[int]string{}
		for i := range list.Items {
			cost, err := strconv.Atoi(list.Items[i].Annotations[corev1.PodDeletionCost])
			require.NoError(c, err)
			require.NotContains(c, costs, cost)
			costs[cost] = list.Items[i].Name
		}
	}, eventually, tick)
}
