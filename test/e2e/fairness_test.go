// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/scheduler"
)

// impatient reserves places after a second.
func impatient(more ...any) scheduler.Options {
	args := map[string]any{"reserveAfter": "1s"}
	for i := 0; i < len(more); i += 2 {
		args[more[i].(string)] = more[i+1]
	}
	return scheduler.Options{Args: args}
}

func deadline(d time.Duration) podOption {
	return func(p *corev1.Pod) {
		p.Spec.ActiveDeadlineSeconds = ptr.To(int64(d.Seconds()))
		p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](0)
	}
}

// reserved waits until that many reservations have been made.
func reserved(t *testing.T, s *scheduler.Scheduler, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		return strings.Contains(s.Metrics(t), fmt.Sprintf("gpupack_scheduler_reservations{profile=%q} %d\n", v1alpha1.SchedulerName, n))
	}, eventually, tick)
}

// fill puts count pods of one GPU on the cluster and waits until they are placed.
func (k *cluster) fill(t *testing.T, name string, count int, options ...podOption) {
	t.Helper()
	for i := range count {
		k.create(t, fmt.Sprintf("%s-%d", name, i), append([]podOption{wholeGPUs(1)}, options...)...)
	}
	for i := range count {
		k.placed(t, fmt.Sprintf("%s-%d", name, i))
	}
}

func (k *cluster) eventReasons(t *testing.T, kind, name string) []string {
	var list corev1.EventList
	require.NoError(t, k.List(t.Context(), &list, client.InNamespace(k.namespace)))
	var out []string
	for i := range list.Items {
		if e := &list.Items[i]; e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name {
			out = append(out, e.Reason)
		}
	}
	return out
}

// Small pods come without end, and each GPU that gets free is taken by the next. A gang that needs eight at once gets in with a
// reservation, and without one it never does.
func TestSmallPodsDoNotStarveAGang(t *testing.T) {
	for name, after := range map[string]string{"with a reservation": "1s", "without": "0s"} {
		t.Run(name, func(t *testing.T) {
			k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(8) })
			s := scheduler.Start(t, k.cp, impatient("reserveAfter", after))
			k.fill(t, "first", 8)
			k.group(t, "train", 2)
			k.gang(t, "train", 2, wholeGPUs(4))
			k.pendingFor(t, "train-0", "PodGroup train waits")
			for i := range 8 {
				k.create(t, fmt.Sprintf("next-%d", i), wholeGPUs(1))
			}
			if after == "0s" {
				for i := range 8 {
					k.delete(t, fmt.Sprintf("first-%d", i))
					require.Eventually(t, func() bool { return len(k.bound(t)) == 8 }, eventually, tick)
				}
				require.Zero(t, k.membersBound(t, "train"))
				return
			}
			reserved(t, s, 1)
			require.Eventually(t, func() bool { return slices.Contains(k.eventReasons(t, "PodGroup", "train"), "Reserved") }, eventually, tick)
			for i := range 8 {
				k.delete(t, fmt.Sprintf("first-%d", i))
				if i < 7 {
					k.create(t, fmt.Sprintf("late-%d", i), wholeGPUs(1))
					k.pendingFor(t, fmt.Sprintf("late-%d", i), "reserved for PodGroup train, which has waited")
				}
			}
			k.gangPlaced(t, "train", 2)
			require.Len(t, k.bound(t), 2)
			k.requireNoDoubleBooking(t)

			// What it does not need any more goes to the others.
			k.delete(t, "train-0")
			k.delete(t, "train-1")
			require.Eventually(t, func() bool { return len(k.bound(t)) == 8 }, eventually, tick)
		})
	}
}

// A pod that ends before the gang can start is let in; one that lasts longer, or that does not say, is not.
func TestBackfillByDeadline(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(8) })
	s := scheduler.Start(t, k.cp, impatient())
	k.create(t, "running", wholeGPUs(4), deadline(10*time.Minute))
	k.placed(t, "running")
	k.group(t, "train", 1)
	k.gang(t, "train", 1, wholeGPUs(8))
	k.pendingFor(t, "train-0", "PodGroup train waits")
	reserved(t, s, 1)
	k.create(t, "long", wholeGPUs(1), deadline(20*time.Minute))
	k.create(t, "endless", wholeGPUs(1))
	k.create(t, "no-gpu", wants(corev1.ResourceCPU, "1"))
	k.pendingFor(t, "long", "reserved for PodGroup train")
	k.pendingFor(t, "endless", "reserved for PodGroup train")
	k.create(t, "short", wholeGPUs(1), deadline(time.Minute))
	k.placed(t, "short")
	k.placed(t, "no-gpu")
	k.group(t, "short-gang", 2)
	k.gang(t, "short-gang", 2, wholeGPUs(1), deadline(time.Minute))
	k.gangPlaced(t, "short-gang", 2)
	k.group(t, "long-gang", 1)
	k.gang(t, "long-gang", 1, wholeGPUs(1))
	k.pendingFor(t, "long-gang-0", "reserved for a pod or gang that has waited longer")

	for _, name := range []string{"short", "short-gang-0", "short-gang-1", "running"} {
		k.delete(t, name)
	}
	k.placed(t, "train-0")
	require.Empty(t, k.get(t, "long").Spec.NodeName)
}

// A single pod that needs a whole node waits in line as a gang does. Beside what it needs there is room for others.
func TestReservationForAPod(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(8) })
	s := scheduler.Start(t, k.cp, impatient())
	k.create(t, "running", wholeGPUs(5), deadline(10*time.Minute))
	k.placed(t, "running")
	k.create(t, "large", wholeGPUs(6))
	k.pendingFor(t, "large", "Insufficient nvidia.com/gpu")
	reserved(t, s, 1)
	require.Eventually(t, func() bool { return slices.Contains(k.eventReasons(t, "Pod", "large"), "Reserved") }, eventually, tick)
	// In ten minutes eight GPUs are free, of which it needs six.
	k.create(t, "three", wholeGPUs(3))
	k.pendingFor(t, "three", "reserved for pod large, which has waited")
	k.create(t, "two", wholeGPUs(2))
	k.placed(t, "two")
	k.delete(t, "running")
	k.placed(t, "large")
	k.requireNoDoubleBooking(t)
}

// Who goes before the owner of a reservation is not kept out by it; who goes behind it is, though older.
func TestReservationsGoByPriority(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(8) })
	high, low := k.priority(t, 1000), k.priority(t, -10)
	s := scheduler.Start(t, k.cp, impatient("maxReservations", 1))
	k.fill(t, "first", 8, high)
	k.create(t, "humble", wholeGPUs(2), low)
	k.pendingFor(t, "humble", "Insufficient nvidia.com/gpu")
	reserved(t, s, 1)
	k.group(t, "train", 1)
	k.gang(t, "train", 1, wholeGPUs(8))
	k.pendingFor(t, "train-0", "PodGroup train waits")
	require.Eventually(t, func() bool { return slices.Contains(k.eventReasons(t, "PodGroup", "train"), "Reserved") }, eventually, tick)
	k.delete(t, "first-0")
	k.delete(t, "first-1")
	k.pendingFor(t, "humble", "reserved for PodGroup train")
	k.create(t, "urgent", wholeGPUs(1), high)
	k.placed(t, "urgent")
	k.delete(t, "urgent")
	for i := 2; i < 8; i++ {
		k.delete(t, fmt.Sprintf("first-%d", i))
	}
	k.placed(t, "train-0")
	require.Empty(t, k.get(t, "humble").Spec.NodeName)
}

// The scheduler that comes after a crash finds in the API who has waited, and keeps the places.
func TestReservationSurvivesARestart(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(8) })
	first := scheduler.Start(t, k.cp, impatient())
	k.fill(t, "first", 8)
	k.group(t, "train", 1)
	k.gang(t, "train", 1, wholeGPUs(8))
	k.pendingFor(t, "train-0", "PodGroup train waits")
	reserved(t, first, 1)
	first.Kill()
	k.delete(t, "first-0")
	for i := range 3 {
		k.create(t, fmt.Sprintf("next-%d", i), wholeGPUs(1))
	}
	second := scheduler.Start(t, k.cp, impatient())
	for i := range 3 {
		k.pendingFor(t, fmt.Sprintf("next-%d", i), "reserved for PodGroup train")
	}
	reserved(t, second, 1)
	for i := 1; i < 8; i++ {
		k.delete(t, fmt.Sprintf("first-%d", i))
	}
	k.placed(t, "train-0")
}

// A gang that fits nowhere, whoever leaves, blocks nobody; nor does one that is gone.
func TestWhoCannotStartBlocksNobody(t *testing.T) {
	k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(8) })
	s := scheduler.Start(t, k.cp, impatient("maxReservations", 1))
	k.group(t, "huge", 2)
	k.gang(t, "huge", 2, wholeGPUs(8))
	k.pendingFor(t, "huge-0", "1 of the 2 members needed fit")
	k.fill(t, "first", 2)
	k.group(t, "train", 1)
	k.gang(t, "train", 1, wholeGPUs(8))
	k.pendingFor(t, "train-0", "PodGroup train waits")
	reserved(t, s, 1)
	require.NotContains(t, k.eventReasons(t, "PodGroup", "huge"), "Reserved")
	k.create(t, "small", wholeGPUs(1))
	k.pendingFor(t, "small", "reserved for PodGroup train")
	k.delete(t, "train-0")
	k.placed(t, "small")

	k.create(t, "train-1", inGroup("train"), wholeGPUs(8))
	k.pendingFor(t, "train-1", "PodGroup train waits")
	reserved(t, s, 1)
	k.create(t, "another", wholeGPUs(1))
	k.pendingFor(t, "another", "reserved for PodGroup train")
	// A node on which a GPU fell sick can have the gang no more.
	k.gpus[k.nodes[0]][7].Healthy = false
	k.gpus[k.nodes[0]][7].UnhealthyReason = v1alpha1.ReasonXid
	k.publish(t, k.nodes[0])
	k.placed(t, "another")
}

// While a gang waits for one node, whatever fits runs on the others.
func TestOthersRunWhereNothingIsReserved(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(8) })
	s := scheduler.Start(t, k.cp, impatient())
	for i, node := range k.nodes {
		k.fill(t, fmt.Sprintf("on-%d", i), 1, func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node} })
	}
	k.group(t, "train", 2)
	k.gang(t, "train", 2, wholeGPUs(4))
	k.gangPlaced(t, "train", 2)
	k.group(t, "next", 1)
	k.gang(t, "next", 1, wholeGPUs(8))
	k.pendingFor(t, "next-0", "PodGroup next waits")
	reserved(t, s, 1)
	k.fill(t, "small", 3)
	on := map[string]bool{}
	for i := range 3 {
		on[k.get(t, fmt.Sprintf("small-%d", i)).Spec.NodeName] = true
	}
	require.Len(t, on, 1, "three GPUs are free on each node, and those of one are reserved")
	k.create(t, "one-more", wholeGPUs(1))
	k.pendingFor(t, "one-more", "reserved for PodGroup next")
}
