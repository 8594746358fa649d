// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package livecache

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func pod(name, node, gpus string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name),
		Labels:      map[string]string{v1alpha1.LabelPodGroup: "gang"},
		Annotations: map[string]string{v1alpha1.AnnotationGPUs: "GPU-a,GPU-b", "big": "data"}}}
	p.Spec.NodeName = node
	requests := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")}
	if gpus != "" {
		requests[v1alpha1.ResourceGPU] = resource.MustParse(gpus)
	}
	p.Spec.Containers = []corev1.Container{{Name: "main", Image: "image", Resources: corev1.ResourceRequirements{Requests: requests}}}
	return p
}

// start runs a cache of these objects. Kinds that end with refused cannot be listed.
func start(t *testing.T, refused error, objects ...client.Object) (*Cache, client.Client) {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, corev1.AddToScheme(scheme))
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if _, ok := list.(*v1alpha1.GPUNodeList); ok && refused != nil {
				return refused
			}
			var all client.ListOptions
			all.ApplyOptions(opts)
			all.FieldSelector = nil // The fake client knows equality of indexed fields alone.
			return c.List(ctx, list, &all)
		},
	}).Build()
	cache := New(c, Options{NodeLabels: []string{"pool"}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		cache.Run(ctx)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	for _, r := range []Resource{Nodes, GPUNodes, Pods} {
		require.Eventually(t, func() bool { return cache.Status(r).Settled() }, 10*time.Second, time.Millisecond)
	}
	return cache, c
}

func TestCacheFollowsTheCluster(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "gpu-01", Labels: map[string]string{"pool": "a", "other": "b"}}}
	node.Status.Capacity = corev1.ResourceList{v1alpha1.ResourceGPU: resource.MustParse("8"), corev1.ResourceCPU: resource.MustParse("64")}
	gn := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: "gpu-01"}}
	gn.Spec.CordonedGPUs = []v1alpha1.CordonedGPU{{UUID: "GPU-a", Reason: "fan is loud"}}
	gn.Status.GPUs = []v1alpha1.GPU{{UUID: "GPU-a", Model: "T4", NVLinkPeers: []string{"GPU-b"}}}
	ended := pod("ended", "gpu-01", "1")
	ended.Status.Phase = corev1.PodSucceeded
	cache, c := start(t, nil, node, gn, pod("train", "gpu-01", "2"), pod("waits", "", "1"), pod("web", "gpu-01", ""), ended)

	names := cache.Take()
	slices.Sort(names)
	assert.Equal(t, []string{"", "gpu-01"}, names)
	assert.Empty(t, cache.Take())
	gotNode, gotGPUs, pods := cache.Node("gpu-01")
	assert.Equal(t, map[string]string{"pool": "a"}, gotNode.Labels)
	assert.Len(t, gotNode.Status.Capacity, 1)
	assert.Equal(t, "GPU-a", gotGPUs.Status.GPUs[0].UUID)
	assert.Nil(t, gotGPUs.Status.GPUs[0].NVLinkPeers)
	assert.Equal(t, gn.Spec, gotGPUs.Spec, "cordons are shown")
	require.Len(t, pods, 1, "a pod without a GPU and one that has ended are not kept")
	object := pods[0].Object()
	assert.Equal(t, []string{"GPU-a", "GPU-b"}, pods[0].GPUs)
	assert.Equal(t, "gang", object.Labels[v1alpha1.LabelPodGroup])
	assert.Equal(t, "gpu-01", object.Spec.NodeName)
	gpus := object.Spec.Containers[0].Resources.Requests[v1alpha1.ResourceGPU]
	assert.EqualValues(t, 2, gpus.Value())
	_, _, pending := cache.Node("")
	assert.Len(t, pending, 1)

	waits := pod("waits", "", "1")
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(waits), waits))
	waits.Spec.NodeName = "gpu-01"
	require.NoError(t, c.Update(t.Context(), waits))
	require.NoError(t, c.Delete(t.Context(), pod("train", "", "")))
	require.NoError(t, c.Delete(t.Context(), gn))
	require.Eventually(t, func() bool {
		_, gn, pods := cache.Node("gpu-01")
		_, _, pending := cache.Node("")
		return gn == nil && len(pods) == 1 && pods[0].Name == "waits" && len(pending) == 0
	}, 10*time.Second, time.Millisecond)
	assert.Contains(t, cache.Take(), "gpu-01")
}

func TestPodsThatAskForTheSameShareASpec(t *testing.T) {
	cache, _ := start(t, nil, pod("a", "n", "1"), pod("b", "n", "1"), pod("c", "n", "2"))
	_, _, pods := cache.Node("n")
	require.Len(t, pods, 3)
	assert.Same(t, pods[0].spec, pods[1].spec)
	assert.NotSame(t, pods[0].spec, pods[2].spec)
}

func TestWhatCannotBeListedIsSaid(t *testing.T) {
	refused := apierrors.NewForbidden(v1alpha1.SchemeGroupVersion.WithResource("gpunodes").GroupResource(), "", nil)
	cache, _ := start(t, refused, pod("a", "n", "1"))
	status := cache.Status(GPUNodes)
	assert.False(t, status.Synced)
	assert.ErrorContains(t, status.Err, "list gpunodes: ")
	assert.True(t, apierrors.IsForbidden(status.Err))
	assert.Equal(t, Status{Read: 1, Synced: true}, cache.Status(Pods))
}
