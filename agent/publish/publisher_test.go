// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/embedded"
)

const crd = "../../manifests/base/crds/gpupack.dev_gpunodes.yaml"

func TestMain(m *testing.M) {
	os.Exit(embedded.RunMain(m, embedded.Options{}))
}

func newTestClient(t *testing.T) *Client {
	cp := embedded.Get(t)
	require.NoError(t, cp.InstallCRDs(t.Context(), crd))
	client, err := NewClient(cp.Config())
	require.NoError(t, err)
	return client
}

func (c *Client) get(t *testing.T, name string) *v1alpha1.GPUNode {
	gn := &v1alpha1.GPUNode{}
	require.NoError(t, c.rest.Get().Resource("gpunodes").Name(name).Do(t.Context()).Into(gn))
	return gn
}

func healthyReading(at time.Time) Reading {
	return Reading{
		Time: at, DriverVersion: "570.86.15", Source: v1alpha1.SourceSimulated, Mode: v1alpha1.ModeManage,
		GPUs: []v1alpha1.GPU{
			{UUID: "GPU-0", Index: 0, Model: "A10", MemoryTotalMiB: 24576, MemoryReservedMiB: 400, MemoryUsedMiB: 3000,
				MemoryForeignMiB: 1000, Utilization: 40, Healthy: true,
				Pods: []v1alpha1.GPUPod{{Namespace: "ns", Name: "p", UID: "uid", MemoryUsedMiB: 2000, Utilization: 40}}},
			{UUID: "GPU-1", Index: 1, Model: "A10", MemoryTotalMiB: 24576, Healthy: true},
		},
	}
}

func TestStatus(t *testing.T) {
	r := healthyReading(start)
	status := r.Status(nil)
	require.Equal(t, v1alpha1.GPUNodeSummary{GPUs: "2/2", Model: "A10"}, status.Summary)
	require.Equal(t, []metav1.Condition{{
		Type: "Ready", Status: metav1.ConditionTrue, Reason: ReasonGPUsRead, Message: "all 2 GPUs are read",
		LastTransitionTime: metav1.NewTime(start),
	}}, status.Conditions)

	// A GPU that can be read is not one that can be used.
	r.Time = start.Add(time.Minute)
	r.GPUs[0].Healthy, r.GPUs[0].UnhealthyReason = false, v1alpha1.ReasonXid
	status = r.Status(status.Conditions)
	require.Equal(t, "1/2", status.Summary.GPUs)
	require.Equal(t, metav1.ConditionTrue, status.Conditions[0].Status)
	require.Equal(t, metav1.NewTime(start), status.Conditions[0].LastTransitionTime)

	r.GPUs[1].Model, r.GPUs[1].Healthy, r.GPUs[1].UnhealthyReason = "T4", false, v1alpha1.ReasonLost
	status = r.Status(status.Conditions)
	require.Equal(t, v1alpha1.GPUNodeSummary{GPUs: "0/2", Model: "mixed"}, status.Summary)
	require.Equal(t, []metav1.Condition{{
		Type: "Ready", Status: metav1.ConditionFalse, Reason: ReasonGPULost, Message: "1 of 2 GPUs cannot be read: GPU-1",
		LastTransitionTime: metav1.NewTime(r.Time),
	}}, status.Conditions)
}

func TestOffer(t *testing.T) {
	client := newTestClient(t)
	now := start
	offer := func(p *Publisher, uid types.UID, r Reading) {
		t.Helper()
		wait, err := p.Offer(t.Context(), uid, r)
		require.NoError(t, err)
		require.Positive(t, wait)
	}
	const name = "offer"
	p := NewPublisher(client, name, DefaultThresholds)
	r := healthyReading(now)
	offer(p, "uid-1", r)
	gn := client.get(t, name)
	want := r.Status(nil)
	require.True(t, want.ObservedTime.Equal(gn.Status.ObservedTime))
	want.ObservedTime = gn.Status.ObservedTime
	want.Conditions[0].LastTransitionTime = gn.Status.Conditions[0].LastTransitionTime
	require.Equal(t, want, gn.Status)
	require.Equal(t, []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: "uid-1"}}, gn.OwnerReferences)
	for _, fields := range gn.ManagedFields {
		require.Equal(t, FieldManager, fields.Manager)
		require.Equal(t, metav1.ManagedFieldsOperationApply, fields.Operation)
	}

	// Nothing new, nothing written.
	r.Time = start.Add(3 * time.Second)
	offer(p, "uid-1", r)
	require.Equal(t, gn.ResourceVersion, client.get(t, name).ResourceVersion)

	// The pod is gone, and with it its entry.
	r = healthyReading(start.Add(4 * time.Second))
	r.GPUs[0].Pods = nil
	offer(p, "uid-1", r)
	require.Empty(t, client.get(t, name).Status.GPUs[0].Pods)

	// Another Node of that name gets the GPUNode at once.
	r.Time = start.Add(5 * time.Second)
	offer(p, "uid-2", r)
	gn = client.get(t, name)
	require.Len(t, gn.OwnerReferences, 1)
	require.Equal(t, types.UID("uid-2"), gn.OwnerReferences[0].UID)
	require.True(t, r.Time.Equal(gn.Status.ObservedTime.Time))

	// Somebody deletes the GPUNode.
	require.NoError(t, client.rest.Delete().Resource("gpunodes").Name(name).Do(t.Context()).Error())
	r.Time = start.Add(5 * time.Minute)
	offer(p, "uid-2", r)
	gn = client.get(t, name)
	require.Equal(t, types.UID("uid-2"), gn.OwnerReferences[0].UID)
	require.Len(t, gn.Status.GPUs, 2)

	// An agent that starts anew keeps the time since when the node has been ready.
	ready := gn.Status.Conditions[0].LastTransitionTime
	r.Time = start.Add(10 * time.Minute)
	offer(NewPublisher(client, name, DefaultThresholds), "uid-2", r)
	gn = client.get(t, name)
	require.True(t, ready.Equal(&gn.Status.Conditions[0].LastTransitionTime))
	require.True(t, r.Time.Equal(gn.Status.ObservedTime.Time))
}

func TestOfferWithoutRights(t *testing.T) {
	newTestClient(t)
	cp := embedded.Get(t)
	client, err := NewClient(cp.ConfigFor("nobody"))
	require.NoError(t, err)
	_, err = NewPublisher(client, "forbidden", DefaultThresholds).Offer(t.Context(), "uid", healthyReading(start))
	require.True(t, apierrors.IsForbidden(err), "got %v", err)
	require.ErrorContains(t, err, `publish GPUNode forbidden: gpunodes.gpupack.dev "forbidden" is forbidden: User "nobody" cannot patch`)
}

// TestImpossibleFigures checks that the API refuses what no GPU can read, and says what is wrong with it.
func TestImpossibleFigures(t *testing.T) {
	client := newTestClient(t)
	cp := embedded.Get(t)
	kube, err := kubernetes.NewForConfig(cp.Config())
	require.NoError(t, err)
	node, err := kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "impossible"}}, metav1.CreateOptions{})
	require.NoError(t, err)

	p := NewPublisher(client, node.Name, DefaultThresholds)
	_, err = p.Offer(t.Context(), node.UID, healthyReading(start))
	require.NoError(t, err)
	before := client.get(t, node.Name)

	tests := map[string]struct {
		change func(gpus []v1alpha1.GPU)
		want   string
	}{
		"used above total":         {func(g []v1alpha1.GPU) { g[0].MemoryUsedMiB = 24577 }, "status.gpus[0]: Invalid value: memoryUsedMiB is above memoryTotalMiB"},
		"reserved above total":     {func(g []v1alpha1.GPU) { g[1].MemoryReservedMiB = 24577 }, "status.gpus[1]: Invalid value: memoryReservedMiB is above memoryTotalMiB"},
		"foreign above used":       {func(g []v1alpha1.GPU) { g[0].MemoryForeignMiB = 3001 }, "status.gpus[0]: Invalid value: memoryForeignMiB is above memoryUsedMiB"},
		"negative memory":          {func(g []v1alpha1.GPU) { g[0].MemoryUsedMiB = -1 }, "status.gpus[0].memoryUsedMiB: Invalid value: -1: gpus[0].memoryUsedMiB in body should be greater than or equal to 0"},
		"no memory":                {func(g []v1alpha1.GPU) { g[1].MemoryTotalMiB = 0 }, "status.gpus[1].memoryTotalMiB: Invalid value: 0: gpus[1].memoryTotalMiB in body should be greater than or equal to 1"},
		"negative utilisation":     {func(g []v1alpha1.GPU) { g[0].Utilization = -1 }, "status.gpus[0].utilization: Invalid value: -1"},
		"utilisation above 100":    {func(g []v1alpha1.GPU) { g[0].Utilization = 101 }, "status.gpus[0].utilization: Invalid value: 101"},
		"pod with negative memory": {func(g []v1alpha1.GPU) { g[0].Pods[0].MemoryUsedMiB = -1 }, "status.gpus[0].pods[0].memoryUsedMiB: Invalid value: -1"},
		"uuid twice":               {func(g []v1alpha1.GPU) { g[1].UUID = g[0].UUID }, `duplicate entries for key [uuid="GPU-0"]`},
		"index twice":              {func(g []v1alpha1.GPU) { g[1].Index = 0 }, "status.gpus: Invalid value: two GPUs have the same index"},
		"no uuid":                  {func(g []v1alpha1.GPU) { g[1].UUID = "" }, "status.gpus[1].uuid"},
		"unhealthy for no reason":  {func(g []v1alpha1.GPU) { g[1].Healthy = false }, "status.gpus[1]: Invalid value: an unhealthy GPU needs an unhealthyReason"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := healthyReading(start.Add(time.Hour))
			tt.change(r.GPUs)
			_, err := p.Offer(t.Context(), node.UID, r)
			require.ErrorContains(t, err, "publish GPUNode impossible: ")
			require.ErrorContains(t, err, tt.want)
			require.Equal(t, before.ResourceVersion, client.get(t, node.Name).ResourceVersion)
		})
	}

	// What was refused does not stand in the way of what is possible.
	r := healthyReading(start.Add(time.Hour))
	_, err = p.Offer(t.Context(), node.UID, r)
	require.NoError(t, err)
	require.True(t, r.Time.Equal(client.get(t, node.Name).Status.ObservedTime.Time))
}
