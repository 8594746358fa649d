// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/scheduler"
)

func TestSharesAndWholeGPUsArePacked(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(2) })
	s := scheduler.Start(t, k.cp, scheduler.Options{})

	for i := range 4 {
		k.create(t, fmt.Sprintf("share-%d", i), shareMemory("16Gi"))
	}
	used := map[string]bool{}
	for i := range 4 {
		pod := k.placed(t, fmt.Sprintf("share-%d", i))
		require.Len(t, gpusOf(pod), 1)
		used[gpusOf(pod)[0]] = true
		d := decisionOf(t, pod)
		require.Equal(t, "gpupack", d.Policy)
	}
	require.Len(t, used, 1, "four shares of 16 GiB fit on one GPU of 80 GiB")

	k.create(t, "whole-2", wholeGPUs(2))
	k.create(t, "whole-1", wholeGPUs(1))
	require.Len(t, gpusOf(k.placed(t, "whole-2")), 2)
	require.Len(t, gpusOf(k.placed(t, "whole-1")), 1)
	k.create(t, "whole-too-many", wholeGPUs(1))
	k.pendingFor(t, "whole-too-many", "too few GPUs are free as a whole")
	k.requireNoDoubleBooking(t)

	metrics := s.Metrics(t)
	require.Contains(t, metrics, `gpupack_scheduler_decisions_total{result="placed"} 6`)
	require.Contains(t, metrics, "scheduler_schedule_attempts_total")

	// What a pod gives back wakes the one that waits for it.
	k.delete(t, "whole-1")
	k.placed(t, "whole-too-many")
	k.requireNoDoubleBooking(t)
}

// A GPU that is cordoned gets no new pods from that moment on, and those that wait for it are woken when it is given back.
func TestCordonedGPUs(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(2) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.create(t, "first", shareMemory("16Gi"))
	held := gpusOf(k.placed(t, "first"))[0]
	cordon := func(uuids ...string) {
		t.Helper()
		gn := &v1alpha1.GPUNode{}
		require.NoError(t, k.Get(t.Context(), client.ObjectKey{Name: k.nodes[0]}, gn))
		before := client.MergeFrom(gn.DeepCopy())
		gn.Spec.CordonedGPUs = nil
		for _, uuid := range uuids {
			gn.Spec.CordonedGPUs = append(gn.Spec.CordonedGPUs, v1alpha1.CordonedGPU{UUID: uuid, Reason: "fan is loud"})
		}
		require.NoError(t, k.Patch(t.Context(), gn, before))
	}
	cordon(held)
	k.create(t, "second", shareMemory("16Gi"))
	other := gpusOf(k.placed(t, "second"))[0]
	require.NotEqual(t, held, other, "the GPU with the first share would be the better one")
	require.Equal(t, held, gpusOf(k.placed(t, "first"))[0], "nothing is evicted")

	cordon(held, other)
	k.create(t, "third", shareMemory("16Gi"))
	k.pendingFor(t, "third", "too few GPUs that are not cordoned")
	// Telemetry leaves the cordons alone.
	k.publish(t, k.nodes[0])
	k.pendingFor(t, "third", "too few GPUs that are not cordoned")
	cordon(held)
	require.Equal(t, other, gpusOf(k.placed(t, "third"))[0])
	k.requireNoDoubleBooking(t)
}

func TestComputeShares(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(1) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.create(t, "a", shareMilli(600))
	k.placed(t, "a")
	k.create(t, "b", shareMilli(500))
	k.pendingFor(t, "b", "no GPU has enough free memory")
	// 600 milli-GPU imply as much memory, so less memory than that share leaves room, but compute does not.
	k.create(t, "c", shareMilli(500), shareMemory("1Gi"))
	k.pendingFor(t, "c", "no GPU has enough free compute")
	k.create(t, "d", shareMilli(400))
	k.placed(t, "d")
	k.requireNoDoubleBooking(t)
}

// KAI-Scheduler #416 and #2212: through rounding, and without the driver's reserve, too many pods landed on one GPU.
func TestReserveAndRoundingAreRespected(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU {
		return []v1alpha1.GPU{{Model: "L40S", MemoryTotalMiB: 46068, MemoryReservedMiB: 600, Healthy: true}}
	})
	scheduler.Start(t, k.cp, scheduler.Options{})
	for i := range 24 {
		k.create(t, fmt.Sprintf("p%d", i), shareMemory("2000Mi"))
	}
	// (46068 - 600) / 2000 = 22.7
	require.Eventually(t, func() bool { return len(k.bound(t)) == 22 }, eventually, tick)
	k.requireNoDoubleBooking(t)
	waiting := 0
	for i := range 24 {
		if pod := k.get(t, fmt.Sprintf("p%d", i)); pod.Spec.NodeName == "" {
			waiting++
			k.pendingFor(t, pod.Name, "no GPU has enough free memory")
		}
	}
	require.Equal(t, 2, waiting)
}

func TestLiveTelemetryDecides(t *testing.T) {
	t.Run("foreign memory", func(t *testing.T) {
		k := newCluster(t, 1, func(int) []v1alpha1.GPU {
			g := a100()
			g.MemoryUsedMiB, g.MemoryForeignMiB = 60*gib, 60*gib
			return []v1alpha1.GPU{g}
		})
		scheduler.Start(t, k.cp, scheduler.Options{})
		k.create(t, "whole", wholeGPUs(1))
		k.create(t, "large", shareMemory("24Gi"))
		k.create(t, "small", shareMemory("12Gi"))
		k.placed(t, "small")
		for _, name := range []string{"whole", "large"} {
			k.pendingFor(t, name, "GPU memory is taken by processes outside any pod")
		}
		// The foreign process ends.
		gpu := &k.gpus[k.nodes[0]][0]
		gpu.MemoryUsedMiB, gpu.MemoryForeignMiB = 0, 0
		k.publish(t, k.nodes[0])
		k.placed(t, "large")
		k.requireNoDoubleBooking(t)
	})
	t.Run("a pod that uses more than it asked for", func(t *testing.T) {
		k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(1) })
		scheduler.Start(t, k.cp, scheduler.Options{})
		k.create(t, "glutton", shareMemory("8Gi"))
		pod := k.placed(t, "glutton")
		gpu := &k.gpus[k.nodes[0]][0]
		gpu.MemoryUsedMiB = 70 * gib
		gpu.Pods = []v1alpha1.GPUPod{{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, MemoryUsedMiB: 70 * gib}}
		k.publish(t, k.nodes[0])
		k.awaitTelemetry(t)
		k.create(t, "next", shareMemory("16Gi"))
		k.pendingFor(t, "next", "no GPU has enough free memory")
	})
	t.Run("sick GPU", func(t *testing.T) {
		k := newCluster(t, 1, func(int) []v1alpha1.GPU {
			gpus := a100s(2)
			gpus[0].Healthy, gpus[0].UnhealthyReason = false, v1alpha1.ReasonXid
			return gpus
		})
		scheduler.Start(t, k.cp, scheduler.Options{})
		k.create(t, "share", shareMemory("8Gi"))
		require.Equal(t, []string{k.gpus[k.nodes[0]][1].UUID}, gpusOf(k.placed(t, "share")))
		k.create(t, "whole", wholeGPUs(1))
		k.pendingFor(t, "whole", "too few GPUs are free as a whole")
		k.gpus[k.nodes[0]][0].Healthy = true
		k.publish(t, k.nodes[0])
		require.Equal(t, []string{k.gpus[k.nodes[0]][0].UUID}, gpusOf(k.placed(t, "whole")))
	})
	t.Run("busy GPU", func(t *testing.T) {
		k := newCluster(t, 1, func(int) []v1alpha1.GPU {
			gpus := a100s(2)
			gpus[0].Utilization, gpus[1].Utilization = 95, 70
			return gpus
		})
		scheduler.Start(t, k.cp, scheduler.Options{})
		k.create(t, "picky", shareMemory("8Gi"), annotated(v1alpha1.AnnotationMaxLiveUtilization, "60"))
		k.pendingFor(t, "picky", "busier than the pod accepts")
		k.gpus[k.nodes[0]][1].Utilization = 40
		k.publish(t, k.nodes[0])
		require.Equal(t, []string{k.gpus[k.nodes[0]][1].UUID}, gpusOf(k.placed(t, "picky")))
	})
}

// awaitTelemetry waits until the scheduler has seen what was published so far: a probe pod that fits only on a GPU that is
// published now gets placed.
func (k *cluster) awaitTelemetry(t *testing.T) {
	t.Helper()
	node := k.nodes[0]
	before := k.gpus[node]
	probe := v1alpha1.GPU{UUID: "GPU-" + node + "-probe", Index: 31, Model: "Probe", MemoryTotalMiB: 2 * gib, Healthy: true}
	k.gpus[node] = append(append([]v1alpha1.GPU{}, before...), probe)
	k.publish(t, node)
	k.create(t, "probe", shareMemory("1Gi"), annotated(v1alpha1.AnnotationGPUModel, "Probe"))
	k.placed(t, "probe")
	k.delete(t, "probe")
}

func TestStaleTelemetry(t *testing.T) {
	old := time.Now().Add(-time.Hour)
	for _, tc := range []struct {
		policy       string
		whole, share string
	}{
		{"TrustRequests", "", "GPU telemetry is stale, so no new pod may share a GPU"},
		{"Reject", "GPU telemetry is stale", "GPU telemetry is stale"},
		{"TrustTelemetry", "", ""},
	} {
		t.Run(tc.policy, func(t *testing.T) {
			k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(2) })
			k.publishAt(t, k.nodes[0], old)
			scheduler.Start(t, k.cp, scheduler.Options{Args: map[string]any{"stalePolicy": tc.policy}})
			k.create(t, "whole", wholeGPUs(1))
			k.create(t, "share", shareMemory("8Gi"))
			for name, reason := range map[string]string{"whole": tc.whole, "share": tc.share} {
				if reason == "" {
					k.placed(t, name)
					continue
				}
				k.pendingFor(t, name, reason)
			}
			k.publish(t, k.nodes[0])
			k.placed(t, "whole")
			k.placed(t, "share")
		})
	}
}

func TestObserveMode(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(2) })
	k.mode = v1alpha1.ModeObserve
	k.publish(t, k.nodes[0])
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.create(t, "share", shareMemory("8Gi"))
	k.pendingFor(t, "share", "observe mode, in which GPUs cannot be shared")
	k.create(t, "whole", wholeGPUs(1))
	k.placed(t, "whole")
}

func TestOtherPluginsStillDecide(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(2) })
	scheduler.Start(t, k.cp, scheduler.Options{})

	node := &corev1.Node{}
	require.NoError(t, k.Get(t.Context(), client.ObjectKey{Name: k.nodes[0]}, node))
	node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: "reserved", Effect: corev1.TaintEffectNoSchedule})
	require.NoError(t, k.Update(t.Context(), node))
	k.create(t, "cpu-hungry", shareMemory("1Gi"), func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("100")
	})
	k.pendingFor(t, "cpu-hungry", "Insufficient cpu")
	k.create(t, "untolerating", wholeGPUs(2))
	require.Equal(t, k.nodes[1], k.placed(t, "untolerating").Spec.NodeName)
	k.create(t, "model", shareMemory("1Gi"), annotated(v1alpha1.AnnotationGPUModel, "H100"))
	k.pendingFor(t, "model", "too few GPUs of an accepted model", "untolerated taint")
	k.create(t, "no-gpu")
	k.placed(t, "no-gpu")
	require.Empty(t, gpusOf(k.get(t, "no-gpu")))
}

// A GPU that the default scheduler gave away is not given away again.
func TestPodsOfOtherSchedulersCount(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(2) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.create(t, "stranger", wholeGPUs(1), func(p *corev1.Pod) {
		p.Spec.SchedulerName, p.Spec.NodeSelector, p.Spec.NodeName = "other", nil, k.nodes[0]
	})
	k.create(t, "two", wholeGPUs(2))
	k.pendingFor(t, "two", "Insufficient nvidia.com/gpu")
	k.create(t, "one", wholeGPUs(1))
	k.placed(t, "one")
	k.create(t, "share", shareMemory("1Gi"))
	k.pendingFor(t, "share", "no GPU has enough free memory")
}

func TestPreemptionFreesGPUs(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(1) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.create(t, "low", shareMemory("60Gi"))
	k.placed(t, "low")
	k.create(t, "high", shareMemory("60Gi"), func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-cluster-critical" })
	k.placed(t, "high")
	k.requireNoDoubleBooking(t)
}
