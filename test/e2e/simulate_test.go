// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
	"github.com/gpupack/gpupack/test/scheduler"
)

// hardware is what the nodes are made of, in turn.
var hardware = []struct {
	sim.Node
	memoryMiB int64
}{
	{sim.Node{GPUs: 8, Model: "A100", CPUMilli: 96_000, MemoryMiB: 768 << 10}, 80 << 10},
	{sim.Node{GPUs: 2, Model: "T4", CPUMilli: 96_000, MemoryMiB: 384 << 10}, 15 << 10},
	{sim.Node{GPUs: 4, Model: "V100", CPUMilli: 48_000, MemoryMiB: 256 << 10}, 32 << 10},
	{sim.Node{GPUs: 8, Model: "A100", CPUMilli: 64_000, MemoryMiB: 512 << 10}, 80 << 10},
	{sim.Node{CPUMilli: 32_000, MemoryMiB: 128 << 10}, 0},
}

// mixture is what the tasks ask for, and how many of each there are.
var mixture = []struct {
	pack.Request
	tasks int
}{
	{pack.Request{CPUMilli: 2000, MemoryMiB: 4 << 10}, 8},
	{pack.Request{CPUMilli: 12_000, MemoryMiB: 24 << 10}, 4},
	{pack.Request{CPUMilli: 4000, MemoryMiB: 16 << 10, Milli: 250}, 8},
	{pack.Request{CPUMilli: 3000, MemoryMiB: 8 << 10, Milli: 333}, 8},
	{pack.Request{CPUMilli: 6000, MemoryMiB: 12 << 10, Milli: 480}, 6},
	{pack.Request{CPUMilli: 2000, MemoryMiB: 8 << 10, Milli: 700, Models: []string{"T4", "V100"}}, 4},
	{pack.Request{CPUMilli: 8000, MemoryMiB: 32 << 10, Milli: 1000}, 2},
	{pack.Request{CPUMilli: 8000, MemoryMiB: 32 << 10, GPUs: 1}, 12},
	{pack.Request{CPUMilli: 8000, MemoryMiB: 32 << 10, GPUs: 1, Models: []string{"A100"}}, 4},
	{pack.Request{CPUMilli: 4000, MemoryMiB: 32 << 10, GPUs: 1, Models: []string{"V100"}}, 4},
	{pack.Request{CPUMilli: 12_000, MemoryMiB: 64 << 10, GPUs: 2}, 4},
	{pack.Request{CPUMilli: 24_000, MemoryMiB: 128 << 10, GPUs: 4}, 3},
	{pack.Request{CPUMilli: 48_000, MemoryMiB: 256 << 10, GPUs: 8}, 1},
}

// What simulate says is what happens: one sequence of pods goes to the same nodes and the same GPUs through the scheduler as
// through the simulator, task by task, with a mix of workloads that is learned on the way.
func TestSchedulerPlacesAsTheSimulator(t *testing.T) {
	for _, tc := range []struct {
		policy       string
		distribution string
		nodes        int
	}{
		{"gpupack", sim.DistributionOnline, 30},
		// These look at what a node has in all and at the kinds of pods on it.
		{"most-allocated", sim.DistributionTrace, 20},
		{"gpu-clustering", sim.DistributionTrace, 20},
	} {
		t.Run(tc.policy, func(t *testing.T) {
			var in sim.Input
			for i := range tc.nodes {
				in.Nodes = append(in.Nodes, hardware[i%len(hardware)].Node)
			}
			for _, m := range mixture {
				for range m.tasks {
					in.Tasks = append(in.Tasks, sim.Task{Request: m.Request})
				}
			}
			k := clusterOf(t, in.Nodes)
			for i, name := range k.nodes {
				in.Nodes[i].Name = name
			}
			result, err := sim.Run(t.Context(), in, sim.Options{
				Policy: tc.policy, Seed: 42, Load: 1.3, TiesByName: true, Turnover: true, Distribution: tc.distribution, Detail: true,
			})
			require.NoError(t, err)

			scheduler.Start(t, k.cp, scheduler.Options{Args: map[string]any{
				"policy": tc.policy,
				// Nobody publishes telemetry meanwhile.
				"staleAfter": "1h",
			}})
			placed := map[pack.Kinds]int{}
			for i, want := range result.Detail.Placements {
				r := &in.Tasks[want.Task].Request
				name := fmt.Sprintf("task-%03d", i)
				k.create(t, name, asking(r)...)
				node, gpus := k.outcome(t, name)
				require.Equal(t, want.Node, node, "arrival %d of %d, which asks for %s", i, result.Tasks, r)
				require.Equal(t, want.GPUs, gpus, "arrival %d of %d, which asks for %s, on node %s", i, result.Tasks, r, node)
				if node != "" {
					placed[pack.KindOf(r)]++
				}
			}
			t.Logf("%d of %d arrivals had no place", result.Unscheduled, result.Tasks)
			for _, m := range mixture {
				require.Positive(t, placed[pack.KindOf(&m.Request)], "no pod that asks for %s was placed", &m.Request)
			}
			require.Positive(t, result.Unscheduled, "the cluster must be full in the end")
		})
	}
}

// clusterOf makes nodes of the hardware that nodes are of.
func clusterOf(t *testing.T, nodes []sim.Node) *cluster {
	t.Helper()
	return newCluster(t, len(nodes), func(i int) []v1alpha1.GPU {
		gpus := make([]v1alpha1.GPU, nodes[i].GPUs)
		for g := range gpus {
			gpus[g] = v1alpha1.GPU{
				Model: nodes[i].Model, MemoryTotalMiB: hardware[i%len(hardware)].memoryMiB, MemoryReservedMiB: 450, Healthy: true,
			}
		}
		return gpus
	}, func(i int, node *corev1.Node) {
		for _, list := range []corev1.ResourceList{node.Status.Capacity, node.Status.Allocatable} {
			list[corev1.ResourceCPU] = *resource.NewMilliQuantity(nodes[i].CPUMilli, resource.DecimalSI)
			list[corev1.ResourceMemory] = *resource.NewQuantity(nodes[i].MemoryMiB<<20, resource.BinarySI)
		}
	})
}

// asking makes a pod ask for what the request says.
func asking(r *pack.Request) []podOption {
	options := []podOption{
		wants(corev1.ResourceCPU, fmt.Sprintf("%dm", r.CPUMilli)), wants(corev1.ResourceMemory, fmt.Sprintf("%dMi", r.MemoryMiB)),
	}
	if r.GPUs > 0 {
		options = append(options, wholeGPUs(r.GPUs))
	}
	if r.Milli > 0 {
		options = append(options, shareMilli(int(r.Milli)))
	}
	if len(r.Models) > 0 {
		options = append(options, annotated(v1alpha1.AnnotationGPUModel, strings.Join(r.Models, ",")))
	}
	return options
}

// outcome waits until the scheduler has decided on the pod, and returns its node, empty if none fits, and its GPUs by index.
func (k *cluster) outcome(t *testing.T, name string) (node string, gpus []int) {
	t.Helper()
	var pod *corev1.Pod
	require.Eventually(t, func() bool {
		pod = k.get(t, name)
		return pod.Spec.NodeName != "" || pendingReason(pod) != ""
	}, eventually, tick/10, "the scheduler has not tried pod %s", name)
	for _, uuid := range gpusOf(pod) {
		index, err := strconv.Atoi(strings.TrimPrefix(uuid, "GPU-"+pod.Spec.NodeName+"-"))
		require.NoError(t, err, "pod %s on node %s has %s", name, pod.Spec.NodeName, uuid)
		gpus = append(gpus, index)
	}
	return pod.Spec.NodeName, gpus
}
