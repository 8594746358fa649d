// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/process"
	"github.com/gpupack/gpupack/test/scheduler"
)

func (k *cluster) gang(t *testing.T, name string, members int, options ...podOption) {
	t.Helper()
	for i := range members {
		k.create(t, fmt.Sprintf("%s-%d", name, i), append([]podOption{inGroup(name)}, options...)...)
	}
}

func (k *cluster) gangPlaced(t *testing.T, name string, members int) map[string]int {
	t.Helper()
	byNode := map[string]int{}
	for i := range members {
		byNode[k.placed(t, fmt.Sprintf("%s-%d", name, i)).Spec.NodeName]++
	}
	return byNode
}

func (k *cluster) membersBound(t *testing.T, name string) int {
	n := 0
	for _, pod := range k.bound(t) {
		if pod.Labels[v1alpha1.LabelPodGroup] == name {
			n++
		}
	}
	return n
}

func TestGangWholeOrNotAtAll(t *testing.T) {
	k := newCluster(t, 4, func(int) []v1alpha1.GPU { return a100s(8) })
	scheduler.Start(t, k.cp, scheduler.Options{})

	// One GPU of one node is taken, so only three of four members have room.
	k.create(t, "squatter", wholeGPUs(1))
	k.placed(t, "squatter")
	k.group(t, "train", 4)
	k.gang(t, "train", 4, wholeGPUs(8))
	k.pendingFor(t, "train-0", "PodGroup train waits", "3 of the 4 members needed fit")
	require.Zero(t, k.membersBound(t, "train"))

	// It holds nothing while it waits: the three free nodes take other pods.
	k.create(t, "other", wholeGPUs(8))
	k.placed(t, "other")
	k.delete(t, "other")

	k.delete(t, "squatter")
	require.Len(t, k.gangPlaced(t, "train", 4), 4)
	k.requireNoDoubleBooking(t)
}

func TestGangWaitsForItsMembers(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(4) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	// The pods come before their PodGroup.
	k.gang(t, "late", 2, wholeGPUs(2))
	k.create(t, "single", wholeGPUs(1))
	k.placed(t, "single")
	require.Zero(t, k.membersBound(t, "late"))
	k.group(t, "late", 3)
	require.Zero(t, k.membersBound(t, "late"))
	k.create(t, "late-2", inGroup("late"), wholeGPUs(2))
	k.gangPlaced(t, "late", 3)
	k.requireNoDoubleBooking(t)
}

func TestGangElasticMembers(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(4) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.group(t, "elastic", 2)
	k.gang(t, "elastic", 6, wholeGPUs(1))
	require.Eventually(t, func() bool { return k.membersBound(t, "elastic") == 4 }, eventually, tick)
	for _, pod := range k.bound(t) {
		k.delete(t, pod.Name)
	}
	// Their room goes to the two that did not fit.
	require.Eventually(t, func() bool { return k.membersBound(t, "elastic") == 2 }, eventually, tick)
}

// Two gangs of which one fits: scheduler-plugins #117 saw them take half each and stay so.
func TestTwoGangsDoNotInterleave(t *testing.T) {
	k := newCluster(t, 4, func(int) []v1alpha1.GPU { return a100s(1) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	for _, name := range []string{"red", "blue"} {
		k.group(t, name, 3)
	}
	for i := range 3 {
		for _, name := range []string{"red", "blue"} {
			k.create(t, fmt.Sprintf("%s-%d", name, i), inGroup(name), wholeGPUs(1))
		}
	}
	require.Eventually(t, func() bool {
		red, blue := k.membersBound(t, "red"), k.membersBound(t, "blue")
		return red == 3 && blue == 0 || red == 0 && blue == 3
	}, eventually, tick)
	winner, loser := "red", "blue"
	if k.membersBound(t, "blue") == 3 {
		winner, loser = loser, winner
	}
	k.pendingFor(t, loser+"-0", "PodGroup "+loser+" waits")
	for i := range 3 {
		k.delete(t, fmt.Sprintf("%s-%d", winner, i))
	}
	k.gangPlaced(t, loser, 3)
}

func TestGangRespectsOtherPlugins(t *testing.T) {
	t.Run("anti-affinity between members", func(t *testing.T) {
		k := newCluster(t, 3, func(int) []v1alpha1.GPU { return a100s(8) })
		scheduler.Start(t, k.cp, scheduler.Options{})
		apart := func(p *corev1.Pod) {
			p.Labels["job"] = "apart"
			p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
					LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"job": "apart"}},
					TopologyKey:   corev1.LabelHostname,
				}},
			}}
		}
		k.group(t, "apart", 3)
		k.gang(t, "apart", 3, wholeGPUs(1), apart)
		require.Len(t, k.gangPlaced(t, "apart", 3), 3)
		k.group(t, "four", 4)
		k.gang(t, "four", 4, wholeGPUs(1), apart, func(p *corev1.Pod) { p.Namespace = k.namespace })
		k.pendingFor(t, "four-0", "PodGroup four waits", "anti-affinity")
		require.Zero(t, k.membersBound(t, "four"))
	})
	t.Run("host ports", func(t *testing.T) {
		k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(8) })
		scheduler.Start(t, k.cp, scheduler.Options{})
		port := func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 29500, HostPort: 29500}}
		}
		k.group(t, "ports", 2)
		k.gang(t, "ports", 2, wholeGPUs(1), port)
		require.Len(t, k.gangPlaced(t, "ports", 2), 2)
	})
	t.Run("launcher without GPU", func(t *testing.T) {
		k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(4) })
		scheduler.Start(t, k.cp, scheduler.Options{})
		k.group(t, "mpi", 3)
		k.create(t, "mpi-0", inGroup("mpi"))
		k.create(t, "mpi-1", inGroup("mpi"), wholeGPUs(4))
		k.create(t, "mpi-2", inGroup("mpi"), wholeGPUs(4))
		k.gangPlaced(t, "mpi", 3)
		require.Empty(t, gpusOf(k.get(t, "mpi-0")))
		k.requireNoDoubleBooking(t)
	})
}

// The scheduler is killed while a gang is half bound; the next one makes it whole on GPUs that are still free.
func TestGangHalfBoundWhenSchedulerIsKilled(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(4) })
	first := scheduler.Start(t, k.cp, scheduler.Options{})
	k.group(t, "half", 4)
	var bindings, held atomic.Int32
	first.Hold(func(r *http.Request) bool {
		if process.IsBinding(r) && bindings.Add(1) > 2 {
			held.Add(1)
			return true
		}
		return false
	})
	k.gang(t, "half", 4, wholeGPUs(2))
	require.Eventually(t, func() bool { return held.Load() == 2 && k.membersBound(t, "half") == 2 }, eventually, tick)
	first.Kill()
	// kube-scheduler can write where it means to put a pod (NominatedNodeNameForExpectation). The next scheduler must not count
	// that beside its own plan.
	room := map[string]int{}
	for _, node := range k.nodes {
		room[node] = 2
	}
	for _, pod := range k.bound(t) {
		room[pod.Spec.NodeName]--
	}
	for i := range 4 {
		pod := k.get(t, fmt.Sprintf("half-%d", i))
		if pod.Spec.NodeName != "" {
			continue
		}
		at := slices.IndexFunc(k.nodes, func(node string) bool { return room[node] > 0 })
		room[k.nodes[at]]--
		pod.Status.NominatedNodeName = k.nodes[at]
		require.NoError(t, k.Status().Update(t.Context(), pod))
	}
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.gangPlaced(t, "half", 4)
	k.requireNoDoubleBooking(t)
}

// A member that is deleted while the others wait for it takes the plan with it, and leaves nothing held.
func TestGangMemberDeletedWhileOthersWait(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(4) })
	s := scheduler.Start(t, k.cp, scheduler.Options{})
	k.group(t, "g", 2)
	k.create(t, "g-0", inGroup("g"), wholeGPUs(2))
	k.create(t, "g-1", inGroup("g"), wholeGPUs(2), func(p *corev1.Pod) {
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}}
	})
	k.create(t, "single", wholeGPUs(4))
	k.placed(t, "single")
	require.Zero(t, k.membersBound(t, "g"))
	k.delete(t, "g-1")
	k.delete(t, "single")
	k.create(t, "again", wholeGPUs(4))
	k.placed(t, "again")
	require.Contains(t, s.Metrics(t), `gpupack_scheduler_ledger_entries{phase="bound"} 1`)
}
