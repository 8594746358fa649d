// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/scheduler"
)

// Priority classes of the tests, and their values.
var priorities = map[string]int32{"test-low": 10, "test-middle": 100, "test-high": 1000, "test-patient": 2000}

func (k *cluster) priorityClasses(t *testing.T) {
	t.Helper()
	for name, value := range priorities {
		class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}
		if name == "test-patient" {
			class.PreemptionPolicy = ptr.To(corev1.PreemptNever)
		}
		require.NoError(t, client.IgnoreAlreadyExists(k.Create(t.Context(), class)))
	}
}

func priority(class string) podOption {
	return func(p *corev1.Pod) { p.Spec.PriorityClassName = class }
}

func labelled(key, value string) podOption { return func(p *corev1.Pod) { p.Labels[key] = value } }

// lingering pods stay on their node until let go of, however long ago they were deleted.
func lingering(p *corev1.Pod) { p.Finalizers = []string{"example.com/lingers"} }

func (k *cluster) letGo(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
		require.NoError(t, k.Patch(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: name}}, patch))
	}
}

// on puts the pod on the node at that position.
func (k *cluster) on(node int) podOption {
	return func(p *corev1.Pod) { p.Spec.NodeSelector[corev1.LabelHostname] = k.nodes[node] }
}

// running waits until the pods run.
func (k *cluster) running(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		require.Eventually(t, func() bool { return k.get(t, name).Status.Phase == corev1.PodRunning }, eventually, tick, "pod %s does not run: %s",
			name, lazy(func() string { return pendingReason(k.get(t, name)) }))
	}
}

// left names the pods that are neither gone nor going.
func (k *cluster) left(t testing.TB) []string {
	t.Helper()
	var list corev1.PodList
	require.NoError(t, k.List(context.Background(), &list, client.InNamespace(k.namespace)))
	var out []string
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			out = append(out, list.Items[i].Name)
		}
	}
	slices.Sort(out)
	return out
}

// events returns the notes of the events with that reason.
func (k *cluster) events(t testing.TB, reason string) []string {
	t.Helper()
	var list corev1.EventList
	require.NoError(t, k.List(context.Background(), &list, client.InNamespace(k.namespace)))
	var out []string
	for i := range list.Items {
		if list.Items[i].Reason == reason {
			out = append(out, list.Items[i].InvolvedObject.Name+": "+list.Items[i].Message)
		}
	}
	return out
}

func preemptionCluster(t *testing.T, nodes int) (*cluster, *scheduler.Scheduler) {
	t.Helper()
	k := newCluster(t, nodes, func(int) []v1alpha1.GPU { return a100s(8) }, func(_ int, node *corev1.Node) {
		node.Labels[corev1.LabelHostname] = node.Name
	})
	k.priorityClasses(t)
	return k, scheduler.Start(t, k.cp, scheduler.Options{})
}

func TestGangPreemptsPods(t *testing.T) {
	k, s := preemptionCluster(t, 3)
	for i := range 3 {
		k.create(t, fmt.Sprintf("low-%d", i), k.on(i), wholeGPUs(4), priority("test-low"))
		k.create(t, fmt.Sprintf("low-%d-too", i), k.on(i), wholeGPUs(4), priority("test-low"))
	}
	k.running(t, "low-0", "low-0-too", "low-1", "low-1-too", "low-2", "low-2-too")
	k.group(t, "train", 2)
	k.gang(t, "train", 2, wholeGPUs(8), priority("test-high"))
	require.Len(t, k.gangPlaced(t, "train", 2), 2)
	k.requireNoDoubleBooking(t)
	// One node was enough to spare, and nothing on it was touched.
	left := slices.DeleteFunc(k.left(t), func(name string) bool { return !strings.HasPrefix(name, "low") })
	require.Len(t, left, 2, "%v", left)
	require.Equal(t, left[0]+"-too", left[1])
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.Len(c, k.events(t, "Preempted"), 4) }, eventually, tick)
	require.Contains(t, k.events(t, "Preempted")[0], "for PodGroup "+k.namespace+"/train")
	require.Contains(t, s.Metrics(t), `gpupack_scheduler_evictions_total{result="evicted"} 4`)
}

// Volcano #4607: pods are evicted for a gang that cannot start all the same.
func TestGangThatWouldNotFitAnywayEvictsNobody(t *testing.T) {
	k, _ := preemptionCluster(t, 2)
	k.create(t, "low-0", k.on(0), wholeGPUs(8), priority("test-low"))
	k.create(t, "low-1", k.on(1), wholeGPUs(8), priority("test-low"))
	k.running(t, "low-0", "low-1")
	k.group(t, "train", 3)
	k.gang(t, "train", 3, wholeGPUs(8), priority("test-high"))
	for i := range 3 {
		k.pendingFor(t, fmt.Sprintf("train-%d", i), "preemption: no eviction of pods of lower priority would make room", "2 of the 3 members needed fit")
	}
	require.Subset(t, k.left(t), []string{"low-0", "low-1"})
	// A pod that fits in place of one of them is another matter.
	k.create(t, "alone", wholeGPUs(8), priority("test-middle"))
	k.placed(t, "alone")
}

func TestGangIsPreemptedWhole(t *testing.T) {
	k, _ := preemptionCluster(t, 3)
	k.group(t, "old", 2)
	k.gang(t, "old", 2, wholeGPUs(8), priority("test-low"))
	k.running(t, "old-0", "old-1")
	k.create(t, "middle", wholeGPUs(8), priority("test-middle"))
	k.running(t, "middle")
	k.create(t, "high", wholeGPUs(8), priority("test-high"))
	k.placed(t, "high")
	require.Equal(t, []string{"high", "middle"}, k.left(t))
}

// Two gangs that want room at once do not evict for the same room, nor more than there is to gain.
func TestTwoGangsPreempt(t *testing.T) {
	k, _ := preemptionCluster(t, 5)
	k.group(t, "old", 2)
	k.gang(t, "old", 2, wholeGPUs(8), priority("test-low"))
	for _, name := range []string{"low-0", "low-1", "middle"} {
		k.create(t, name, wholeGPUs(8), priority("test-"+strings.Split(name, "-")[0]), lingering)
	}
	k.running(t, "old-0", "old-1", "low-0", "low-1", "middle")
	for _, name := range []string{"red", "blue", "green"} {
		k.group(t, name, 2)
		k.gang(t, name, 2, wholeGPUs(8), priority("test-high"))
	}
	evicted := func() bool {
		left := k.left(t)
		return !slices.ContainsFunc([]string{"old-0", "old-1", "low-0", "low-1"}, func(name string) bool { return slices.Contains(left, name) })
	}
	require.Eventually(t, evicted, eventually, tick)
	k.letGo(t, "low-0")
	k.letGo(t, "low-1")
	require.Eventually(t, func() bool { return k.membersBound(t, "red")+k.membersBound(t, "blue")+k.membersBound(t, "green") == 4 }, eventually, tick)
	for _, name := range []string{"red", "blue", "green"} {
		require.NotEqual(t, 1, k.membersBound(t, name), "gang %s is half placed", name)
	}
	require.Contains(t, k.left(t), "middle", "one node is no room for the third gang")
	k.requireNoDoubleBooking(t)
}

func TestPodsWithoutGPUsPreempt(t *testing.T) {
	k, _ := preemptionCluster(t, 1)
	// The node has 64 CPUs.
	k.create(t, "idle", wholeGPUs(1), priority("test-low"))
	k.create(t, "low", wants(corev1.ResourceCPU, "40"), priority("test-low"))
	k.running(t, "idle", "low")
	k.create(t, "high", wants(corev1.ResourceCPU, "60"), priority("test-high"))
	k.placed(t, "high")
	require.Equal(t, []string{"high", "idle"}, k.left(t))
}

func TestSinglePodIsPreferredToGangThatLosesMore(t *testing.T) {
	k, _ := preemptionCluster(t, 3)
	k.group(t, "old", 2)
	k.gang(t, "old", 2, wholeGPUs(8), priority("test-low"))
	k.create(t, "single", wholeGPUs(8), priority("test-low"))
	k.running(t, "old-0", "old-1", "single")
	k.create(t, "high", wholeGPUs(8), priority("test-high"))
	k.placed(t, "high")
	require.Equal(t, []string{"high", "old-0", "old-1"}, k.left(t))
}

func TestElasticMembersGoFirst(t *testing.T) {
	k, _ := preemptionCluster(t, 3)
	k.group(t, "old", 2)
	k.gang(t, "old", 3, wholeGPUs(8), priority("test-low"))
	k.running(t, "old-0", "old-1", "old-2")
	k.create(t, "high", wholeGPUs(8), priority("test-high"))
	k.placed(t, "high")
	require.Equal(t, []string{"high", "old-0", "old-1"}, k.left(t))
	// Nothing is evicted for members of a gang beyond its minimum either.
	k.group(t, "new", 1)
	k.gang(t, "new", 3, wholeGPUs(8), priority("test-middle"))
	require.Eventually(t, func() bool { return k.membersBound(t, "new") == 2 }, eventually, tick)
	require.Equal(t, []string{"high", "new-0", "new-1", "new-2"}, k.left(t))
}

func TestPreemptionSparesBudgets(t *testing.T) {
	k, _ := preemptionCluster(t, 2)
	require.NoError(t, k.Create(t.Context(), &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: "kept"},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: ptr.To(intstr.FromInt32(1)),
			Selector:     &metav1.LabelSelector{MatchLabels: map[string]string{"app": "kept"}},
		},
	}))
	k.create(t, "kept", wholeGPUs(8), priority("test-low"), labelled("app", "kept"))
	k.create(t, "other", wholeGPUs(8), priority("test-middle"))
	k.running(t, "kept", "other")
	require.Eventually(t, func() bool {
		var pdb policyv1.PodDisruptionBudget
		return k.Get(t.Context(), client.ObjectKey{Namespace: k.namespace, Name: "kept"}, &pdb) == nil && pdb.Status.CurrentHealthy == 1
	}, eventually, tick)
	k.group(t, "train", 1)
	k.gang(t, "train", 1, wholeGPUs(8), priority("test-high"))
	k.gangPlaced(t, "train", 1)
	require.Equal(t, []string{"kept", "train-0"}, k.left(t))
	// Where there is no other way, priority counts more.
	k.create(t, "second", wholeGPUs(8), priority("test-high"))
	k.placed(t, "second")
	require.Equal(t, []string{"second", "train-0"}, k.left(t))
}

func TestPreemptionPolicyNever(t *testing.T) {
	k, _ := preemptionCluster(t, 2)
	k.create(t, "low-0", k.on(0), wholeGPUs(8), priority("test-low"))
	k.create(t, "low-1", k.on(1), wholeGPUs(8), priority("test-low"))
	k.running(t, "low-0", "low-1")
	k.group(t, "patient", 2)
	k.create(t, "patient-0", inGroup("patient"), wholeGPUs(8), priority("test-high"))
	k.create(t, "patient-1", inGroup("patient"), wholeGPUs(8), priority("test-patient"))
	k.pendingFor(t, "patient-0", "pod patient-1 has preemptionPolicy Never")
	k.pendingFor(t, "patient-1", "pod patient-1 has preemptionPolicy Never")
	require.Subset(t, k.left(t), []string{"low-0", "low-1"})
}

func TestLossDecidesAmongEquals(t *testing.T) {
	k, _ := preemptionCluster(t, 3)
	now := time.Now().UTC().Add(time.Hour).Format(time.RFC3339)
	// All have run for as long; of the two that run on all GPUs of a node, one has saved its work.
	k.create(t, "saved", k.on(0), wholeGPUs(8), priority("test-low"), annotated(v1alpha1.AnnotationLastCheckpoint, now))
	k.create(t, "unsaved", k.on(1), wholeGPUs(8), priority("test-low"), annotated(v1alpha1.AnnotationLastCheckpoint, "yesterday"))
	k.create(t, "small", k.on(2), wholeGPUs(1), priority("test-low"))
	k.running(t, "saved", "unsaved", "small")
	k.create(t, "first", wholeGPUs(8), priority("test-high"))
	k.placed(t, "first")
	require.Equal(t, []string{"first", "small", "unsaved"}, k.left(t))
	k.create(t, "second", wholeGPUs(8), priority("test-high"))
	k.placed(t, "second")
	require.Equal(t, []string{"first", "second", "unsaved"}, k.left(t))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		events := k.events(t, "InvalidCheckpoint")
		require.Len(c, events, 1)
		require.Contains(c, events[0], `unsaved: annotation gpupack.dev/last-checkpoint is "yesterday": write a time such as`)
	}, eventually, tick)
}

// The room that an eviction makes is the gang's, though it becomes free bit by bit; and while it does, nobody else is evicted.
func TestRoomIsKeptForTheGang(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%t", restart), func(t *testing.T) {
			k, s := preemptionCluster(t, 3)
			for i := range 2 {
				k.create(t, fmt.Sprintf("low-%d", i), k.on(i), wholeGPUs(8), priority("test-low"), lingering)
			}
			k.create(t, "middle", k.on(2), wholeGPUs(8), priority("test-middle"))
			k.running(t, "low-0", "low-1", "middle")
			k.group(t, "train", 2)
			k.gang(t, "train", 2, wholeGPUs(8), priority("test-high"))
			require.Eventually(t, func() bool { return slices.Equal(k.left(t), []string{"middle", "train-0", "train-1"}) }, eventually, tick)
			for i := range 2 {
				require.Eventually(t, func() bool { return k.get(t, fmt.Sprintf("train-%d", i)).Status.NominatedNodeName != "" }, eventually, tick)
			}
			if restart {
				s.Kill()
				scheduler.Start(t, k.cp, scheduler.Options{})
			}
			k.create(t, "thief", wholeGPUs(8), priority("test-low"))
			k.create(t, "small-thief", shareMilli(500), priority("test-low"))
			k.letGo(t, "low-0")
			k.pendingFor(t, "thief")
			k.pendingFor(t, "small-thief", "no GPU has enough free memory")
			require.Zero(t, k.membersBound(t, "train"))
			require.Contains(t, k.left(t), "middle")
			k.letGo(t, "low-1")
			require.Len(t, k.gangPlaced(t, "train", 2), 2)
			require.Contains(t, k.left(t), "middle")
		})
	}
}
