// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/scheduler"
)

// Each test here is a failure that users of another gang scheduler reported. gpupack must do the right thing. coscheduling is run
// through the same, and what it does is logged: docs/benchmarks/gang-peers.md has it. It is not asserted, for much of it is a race.

// permit is how long coscheduling lets members wait for the others; its default is a minute.
const permit = 10 * time.Second

// watched is for how long coscheduling is watched.
const watched = permit + 5*time.Second

// bothSchedulers runs a scenario with gpupack and with coscheduling, each on nodes of its own. by makes a pod the scheduler's.
func bothSchedulers(t *testing.T, nodes, gpusEach int, scenario func(t *testing.T, k *cluster, by podOption, ours bool)) {
	t.Run("gpupack", func(t *testing.T) {
		k := newCluster(t, nodes, func(int) []v1alpha1.GPU { return a100s(gpusEach) })
		scheduler.Start(t, k.cp, scheduler.Options{})
		scenario(t, k, func(*corev1.Pod) {}, true)
		k.requireNoDoubleBooking(t)
	})
	t.Run("coscheduling", func(t *testing.T) {
		if testing.Short() {
			t.Skip("what coscheduling does is watched for some time")
		}
		k := newCluster(t, nodes, func(int) []v1alpha1.GPU { return a100s(gpusEach) })
		scheduler.StartCoscheduling(t, k.cp, permit)
		scenario(t, k, func(p *corev1.Pod) { p.Spec.SchedulerName = scheduler.Coscheduling }, false)
	})
}

// took waits until the condition holds, for as long as coscheduling is watched, and says after how long it did.
func took(t *testing.T, condition func() bool) string {
	t.Helper()
	begin := time.Now()
	err := wait.PollUntilContextTimeout(t.Context(), tick, watched, true, func(context.Context) (bool, error) { return condition(), nil })
	if err != nil {
		return fmt.Sprintf("not within %s", watched)
	}
	return fmt.Sprintf("after %.1f s", time.Since(begin).Seconds())
}

// boundOf counts the bound ones of pods by name.
func (k *cluster) boundOf(t *testing.T, format string, n int) int {
	t.Helper()
	count := 0
	bound := map[string]bool{}
	for _, pod := range k.bound(t) {
		bound[pod.Name] = true
	}
	for i := range n {
		if bound[fmt.Sprintf(format, i)] {
			count++
		}
	}
	return count
}

// scheduler-plugins #713: nine of ten members find a place and keep it while they wait for the tenth, which has none, and pods
// that would fit beside a gang that cannot start wait with them.
func TestPeersPendingGangStarvesOthers(t *testing.T) {
	bothSchedulers(t, 3, 4, func(t *testing.T, k *cluster, by podOption, ours bool) {
		k.create(t, "squatter", wholeGPUs(3), by)
		k.placed(t, "squatter")
		k.group(t, "gang", 10)
		k.gang(t, "gang", 10, wholeGPUs(1), by)
		if ours {
			k.pendingFor(t, "gang-0", "PodGroup gang waits", "9 of the 10 members needed fit")
		} else {
			k.pendingFor(t, "gang-9", "Insufficient nvidia.com/gpu")
		}
		for i := range 3 {
			k.create(t, fmt.Sprintf("single-%d", i), wholeGPUs(1), by)
		}
		when := took(t, func() bool { return k.boundOf(t, "single-%d", 3) == 3 })
		if ours {
			require.Equal(t, 3, k.boundOf(t, "single-%d", 3))
			require.Zero(t, k.membersBound(t, "gang"))
		}
		t.Logf("#713: 3 pods that fit are placed %s; %d members of the gang are bound", when, k.membersBound(t, "gang"))
	})
}

// scheduler-plugins #930: a group starts with a part of its members. Here pods of an earlier run, which are complete, are still
// there; of the new run's three members one has a place.
func TestPeersGangAdmittedInPart(t *testing.T) {
	bothSchedulers(t, 3, 1, func(t *testing.T, k *cluster, by podOption, ours bool) {
		k.group(t, "job", 3)
		for i := range 3 {
			k.create(t, fmt.Sprintf("first-%d", i), inGroup("job"), wholeGPUs(1), by)
		}
		for i := range 3 {
			k.placed(t, fmt.Sprintf("first-%d", i))
			k.complete(t, fmt.Sprintf("first-%d", i))
		}
		for i := range 2 {
			k.create(t, fmt.Sprintf("other-%d", i), wholeGPUs(1), by)
			k.placed(t, fmt.Sprintf("other-%d", i))
		}
		for i := range 3 {
			k.create(t, fmt.Sprintf("second-%d", i), inGroup("job"), wholeGPUs(1), by)
		}
		part := func() bool { return k.boundOf(t, "second-%d", 3) > 0 }
		if ours {
			k.pendingFor(t, "second-0", "PodGroup job waits", "1 of the 3 members needed fit")
			require.False(t, part())
			for i := range 2 {
				k.delete(t, fmt.Sprintf("other-%d", i))
			}
			require.Eventually(t, func() bool { return k.boundOf(t, "second-%d", 3) == 3 }, eventually, tick)
			return
		}
		when := took(t, part)
		t.Logf("#930: a gang of 3 is started in part %s: %d members of it are bound", when, k.boundOf(t, "second-%d", 3))
	})
}

// scheduler-plugins #930 again: the cluster has enough GPUs in sum, but not where the members could use them.
func TestPeersGangThatFitsInSumAlone(t *testing.T) {
	bothSchedulers(t, 2, 3, func(t *testing.T, k *cluster, by podOption, ours bool) {
		group := k.group(t, "sum", 3)
		group.Spec.MinResources = corev1.ResourceList{v1alpha1.ResourceGPU: *resource.NewQuantity(6, resource.DecimalSI)}
		require.NoError(t, k.Update(t.Context(), group))
		k.gang(t, "sum", 3, wholeGPUs(2), by)
		if ours {
			k.pendingFor(t, "sum-0", "PodGroup sum waits", "2 of the 3 members needed fit")
		}
		k.create(t, "other", wholeGPUs(3), by)
		when := took(t, func() bool { return k.get(t, "other").Spec.NodeName != "" })
		if ours {
			require.NotEmpty(t, k.get(t, "other").Spec.NodeName)
			require.Zero(t, k.membersBound(t, "sum"))
		}
		t.Logf("#930: a pod that fits beside a gang that does not is placed %s; %d members of the gang are bound", when, k.membersBound(t, "sum"))
	})
}

// scheduler-plugins #117: of two gangs of three either fits alone. Their members come to the queue in turn.
func TestPeersTwoGangsInterleave(t *testing.T) {
	bothSchedulers(t, 4, 1, func(t *testing.T, k *cluster, by podOption, ours bool) {
		for _, name := range []string{"red", "blue"} {
			k.group(t, name, 3)
		}
		for i := range 3 {
			for _, name := range []string{"red", "blue"} {
				// Pods of PodGroups of one age are ordered by their names.
				k.create(t, fmt.Sprintf("%d-%s", i, name), inGroup(name), wholeGPUs(1), by)
			}
		}
		when := took(t, func() bool { return max(k.membersBound(t, "red"), k.membersBound(t, "blue")) == 3 })
		if ours {
			require.Equal(t, 3, max(k.membersBound(t, "red"), k.membersBound(t, "blue")))
			require.Zero(t, min(k.membersBound(t, "red"), k.membersBound(t, "blue")))
		}
		t.Logf("#117: one of two gangs is whole %s: %d and %d members are bound", when, k.membersBound(t, "red"), k.membersBound(t, "blue"))
	})
}

// Volcano #4607: a gang of high priority that can never fit evicts members of a running gang one by one; the one is broken, the
// other gains nothing.
func TestPeersPreemptionWithoutGain(t *testing.T) {
	bothSchedulers(t, 2, 2, func(t *testing.T, k *cluster, by podOption, ours bool) {
		high := k.priority(t, 1000)
		k.group(t, "low", 4)
		k.gang(t, "low", 4, wholeGPUs(1), by)
		k.gangPlaced(t, "low", 4)
		k.group(t, "high", 3)
		k.gang(t, "high", 3, wholeGPUs(2), high, by)
		if ours {
			k.pendingFor(t, "high-0", "PodGroup high waits")
			require.Equal(t, 4, k.membersBound(t, "low"), "a gang was broken for one that does not fit even so")
			require.Zero(t, k.membersBound(t, "high"))
			return
		}
		when := took(t, func() bool { return k.membersBound(t, "low") < 4 })
		more := took(t, func() bool { return k.membersBound(t, "low") == 0 })
		t.Logf("#4607: the running gang is broken %s and gone %s: of its 4 members %d are left; %d of 3 members of the other are bound",
			when, more, k.membersBound(t, "low"), k.membersBound(t, "high"))
	})
}

// Where eviction gains a whole gang, a gang is evicted whole or not at all.
func TestPreemptionLeavesNoGangInPart(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(2) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	high := k.priority(t, 1000)
	k.group(t, "low", 4)
	k.gang(t, "low", 4, wholeGPUs(1))
	k.gangPlaced(t, "low", 4)
	k.group(t, "high", 2)
	k.gang(t, "high", 2, wholeGPUs(2), high)
	require.Eventually(t, func() bool {
		low, placed := k.membersBound(t, "low"), k.membersBound(t, "high")
		return placed == 2 && low == 0 || placed == 0 && low == 4 && pendingReason(k.get(t, "high-0")) != ""
	}, eventually, tick)
}

// complete makes a pod end well.
func (k *cluster) complete(t *testing.T, name string) {
	t.Helper()
	// kwok, which runs the pod, writes its status too.
	require.Eventually(t, func() bool {
		pod := k.get(t, name)
		pod.Status.Phase = corev1.PodSucceeded
		return pod.Status.StartTime != nil && k.Status().Update(t.Context(), pod) == nil
	}, eventually, tick)
}
