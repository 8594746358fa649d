// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func newPod(name, nodeName string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       podSpec(nodeName),
	}
}

func podSpec(nodeName string) corev1.PodSpec {
	return corev1.PodSpec{
		NodeName:      nodeName,
		RestartPolicy: corev1.RestartPolicyNever,
		Containers:    []corev1.Container{{Name: "main", Image: "none"}},
	}
}

// eventuallyPods waits until the namespace has n pods, all in the phase.
func (cp *ControlPlane) eventuallyPods(t *testing.T, namespace string, n int, phase corev1.PodPhase) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		pods, err := cp.client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
		require.NoError(c, err)
		require.Len(c, pods.Items, n)
		for _, pod := range pods.Items {
			require.Equal(c, phase, pod.Status.Phase, pod.Name)
		}
	}, eventually, tick)
}

func TestDeploymentRunsOnNode(t *testing.T) {
	cp := Get(t)
	namespace := cp.Namespace(t)
	node := cp.Nodes(t, 1, nil)[0]

	spec := podSpec(node.Name)
	spec.RestartPolicy = corev1.RestartPolicyAlways
	labels := map[string]string{"app": "web"}
	deployments := cp.client.AppsV1().Deployments(namespace)
	_, err := deployments.Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](3),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	cp.eventuallyPods(t, namespace, 3, corev1.PodRunning)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		deployment, err := deployments.Get(t.Context(), "web", metav1.GetOptions{})
		require.NoError(c, err)
		require.EqualValues(c, 3, deployment.Status.AvailableReplicas)
	}, eventually, tick)

	require.NoError(t, deployments.Delete(t.Context(), "web", metav1.DeleteOptions{}))
	cp.eventuallyPods(t, namespace, 0, "")
}

func TestNodes(t *testing.T) {
	cp := Get(t)
	nodes := cp.Nodes(t, 3, func(i int, node *corev1.Node) {
		node.Labels["zone"] = string(rune('a' + i))
		node.Status.Capacity["nvidia.com/gpu"] = resource.MustParse("8")
		node.Status.Allocatable["nvidia.com/gpu"] = resource.MustParse("8")
	})
	others := cp.Nodes(t, 1, nil)
	require.NotEqual(t, nodes[0].Labels[TestLabel], others[0].Labels[TestLabel])
	for i, node := range nodes {
		require.True(t, nodeReady(node))
		require.Equal(t, nodes[0].Labels[TestLabel], node.Labels[TestLabel])
		require.Equal(t, string(rune('a'+i)), node.Labels["zone"])
		require.EqualValues(t, 8, ptr.To(node.Status.Allocatable["nvidia.com/gpu"]).Value())
		require.Empty(t, node.Spec.Taints)
	}
}

func TestNodesAreDeletedAfterTheTest(t *testing.T) {
	cp := Get(t)
	var name, namespace string
	t.Run("test", func(t *testing.T) {
		namespace = cp.Namespace(t)
		name = cp.Nodes(t, 1, nil)[0].Name
		_, err := cp.client.CoreV1().Pods(namespace).Create(t.Context(), newPod("pod", name), metav1.CreateOptions{})
		require.NoError(t, err)
	})
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		nodes, err := cp.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		require.NoError(c, err)
		require.Empty(c, nodes.Items)
		namespaces, err := cp.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + namespace})
		require.NoError(c, err)
		require.Empty(c, namespaces.Items)
	}, eventually, tick)
}

// A pod that says how long it runs completes; one that does not stays, also if its Job would like it to complete.
func TestPodsCompleteOnRequest(t *testing.T) {
	cp := Get(t)
	namespace := cp.Namespace(t)
	node := cp.Nodes(t, 1, nil)[0]
	create := func(name string, annotations map[string]string) {
		_, err := cp.client.BatchV1().Jobs(namespace).Create(t.Context(), &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Annotations: annotations},
				Spec:       podSpec(node.Name),
			}},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	succeeded := func(name string) int32 {
		job, err := cp.client.BatchV1().Jobs(namespace).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		return job.Status.Succeeded
	}

	create("stays", nil)
	cp.eventuallyPods(t, namespace, 1, corev1.PodRunning)
	create("completes", map[string]string{KwokCompleteDelayAnnotation: "100ms"})
	require.Eventually(t, func() bool { return succeeded("completes") == 1 }, eventually, tick)
	require.Zero(t, succeeded("stays"))
}

func TestNodeNotReady(t *testing.T) {
	cp := Get(t)
	// With all its nodes down, a cluster rather suspects its network, and evicts no pods.
	node := cp.Nodes(t, 3, nil)[0]
	nodes := cp.client.CoreV1().Nodes()
	patch := func(label string) {
		_, err := nodes.Patch(t.Context(), node.Name, types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"`+KwokNotReadyLabel+`":`+label+`}}}`), metav1.PatchOptions{})
		require.NoError(t, err)
	}
	eventuallyTainted := func(want bool) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			node, err := nodes.Get(t.Context(), node.Name, metav1.GetOptions{})
			require.NoError(c, err)
			tainted := false
			for _, taint := range node.Spec.Taints {
				tainted = tainted || taint.Key == corev1.TaintNodeNotReady && taint.Effect == corev1.TaintEffectNoExecute
			}
			require.Equal(c, want, tainted)
			require.Equal(c, !want, nodeReady(node))
		}, eventually, tick)
	}
	patch(`"true"`)
	eventuallyTainted(true)
	patch(`null`)
	eventuallyTainted(false)
}

func TestKwokRestarts(t *testing.T) {
	cp := Get(t)
	namespace := cp.Namespace(t)
	node := cp.Nodes(t, 1, nil)[0]
	require.NoError(t, cp.StopComponent(Kwok))
	_, err := cp.client.CoreV1().Pods(namespace).Create(t.Context(), newPod("pod", node.Name), metav1.CreateOptions{})
	require.NoError(t, err)
	cp.eventuallyPods(t, namespace, 1, corev1.PodPending)
	require.NoError(t, cp.StartComponent(t.Context(), Kwok))
	cp.eventuallyPods(t, namespace, 1, corev1.PodRunning)
}
