// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/process"
	"github.com/gpupack/gpupack/test/scheduler"
)

// The scheduler is killed at a point of a pod's way, started again, and must neither book a GPU twice nor lose one.
func TestSchedulerKilled(t *testing.T) {
	for name, tc := range map[string]struct {
		at    func(*scheduler.Scheduler, func(*http.Request) bool)
		bound int
	}{
		"after assume, before the binding":           {(*scheduler.Scheduler).Hold, 1},
		"after the binding, before it knows of that": {(*scheduler.Scheduler).LoseAnswers, 5},
	} {
		t.Run(name, func(t *testing.T) {
			k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(4) })
			first := scheduler.Start(t, k.cp, scheduler.Options{})
			k.create(t, "settled", wholeGPUs(1))
			k.placed(t, "settled")

			var sent atomic.Int32
			tc.at(first, func(r *http.Request) bool {
				if process.IsBinding(r) {
					sent.Add(1)
					return true
				}
				return false
			})
			for i := range 2 {
				k.create(t, fmt.Sprintf("whole-%d", i), wholeGPUs(1))
				k.create(t, fmt.Sprintf("share-%d", i), shareMemory("30Gi"))
			}
			require.Eventually(t, func() bool { return sent.Load() == 4 && len(k.bound(t)) == tc.bound }, eventually, tick)
			var pods corev1.PodList
			require.NoError(t, k.List(t.Context(), &pods, client.InNamespace(k.namespace)))
			for _, pod := range pods.Items {
				require.Equal(t, pod.Spec.NodeName != "", len(gpusOf(&pod)) > 0, "pod %s has a node or GPUs, and not both", pod.Name)
			}
			first.Kill()

			second := scheduler.Start(t, k.cp, scheduler.Options{})
			for i := range 2 {
				k.placed(t, fmt.Sprintf("whole-%d", i))
				k.placed(t, fmt.Sprintf("share-%d", i))
			}
			k.requireNoDoubleBooking(t)

			// Nothing leaked: what is left is exactly what can still be placed.
			k.create(t, "rest", shareMemory("19Gi"))
			k.placed(t, "rest")
			k.create(t, "too-much", shareMemory("19Gi"))
			k.pendingFor(t, "too-much", "no GPU has enough free memory")
			require.Contains(t, second.Metrics(t), `gpupack_scheduler_ledger_entries{phase="bound"} 6`)
			require.Contains(t, second.Metrics(t), `gpupack_scheduler_ledger_entries{phase="assumed"} 0`)
		})
	}
}

// What the scheduler has learned of workloads survives its end, with the rights that it has; what others wrote in its place
// does not trouble it.
func TestLearnedClassesSurviveARestart(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(8) })
	key := v1alpha1.SchedulerName + ".json"
	stored := func() string {
		cm := workloadClasses()
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(cm), cm))
		return cm.Data[key]
	}
	first := scheduler.Start(t, k.cp, scheduler.Options{})
	k.create(t, "three", wholeGPUs(3))
	k.placed(t, "three")
	k.create(t, "six", wholeGPUs(6))
	k.pendingFor(t, "six", "Insufficient nvidia.com/gpu")
	first.Stop(t)
	learned := stored()
	require.Contains(t, learned, `{"gpus":3,`)
	require.Contains(t, learned, `{"gpus":6,`, "a pod without a place is learned of too")

	second := scheduler.Start(t, k.cp, scheduler.Options{})
	require.Contains(t, second.Log(), "Read what was learned of workloads")
	k.create(t, "five", wholeGPUs(5))
	k.placed(t, "five")
	second.Stop(t)
	require.Contains(t, stored(), `{"gpus":3,`)
	require.Contains(t, stored(), `{"gpus":5,`)

	cm := workloadClasses()
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(cm), cm))
	cm.Data[key] = "mine now"
	require.NoError(t, k.Update(t.Context(), cm))
	third := scheduler.Start(t, k.cp, scheduler.Options{})
	require.Contains(t, third.Log(), "is ignored, since gpupack.json does not hold workload classes: invalid character")
	k.delete(t, "five")
	k.create(t, "four", wholeGPUs(4))
	k.placed(t, "four")
	third.Stop(t)
	require.Contains(t, stored(), `{"gpus":4,`)
}
