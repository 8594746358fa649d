// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/controller"
	"github.com/gpupack/gpupack/test/embedded"
	"github.com/gpupack/gpupack/test/scheduler"
)

// repairSoon makes the controller wait for nothing longer than a test would.
var repairSoon = []string{"--node-not-ready-after=1s", "--repair-backoff=1s", "--repair-backoff-max=2s"}

// runningGang makes a cluster and a gang of bare pods, each of which takes all GPUs of a node.
func runningGang(t *testing.T, nodes, members int, annotations map[string]string) *cluster {
	t.Helper()
	k := newCluster(t, nodes, func(int) []v1alpha1.GPU { return a100s(4) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	g := k.group(t, "train", int32(members))
	g.Annotations = annotations
	require.NoError(t, k.Update(t.Context(), g))
	k.gang(t, "train", members, wholeGPUs(4))
	return k
}

// members are the pods of a group that are not being deleted and have not ended, by name.
func (k *cluster) members(t testing.TB, group string) map[string]*corev1.Pod {
	t.Helper()
	var list corev1.PodList
	require.NoError(t, k.List(context.Background(), &list, client.InNamespace(k.namespace), client.MatchingLabels{v1alpha1.LabelPodGroup: group}))
	out := map[string]*corev1.Pod{}
	for i := range list.Items {
		if pod := &list.Items[i]; pod.DeletionTimestamp == nil && !convert.IsTerminal(pod) {
			out[pod.Name] = pod
		}
	}
	return out
}

func uidsOf(pods map[string]*corev1.Pod) map[types.UID]bool {
	uids := map[types.UID]bool{}
	for _, pod := range pods {
		uids[pod.UID] = true
	}
	return uids
}

// runs waits until exactly so many members run, and returns them.
func (k *cluster) runs(t *testing.T, group string, n int) map[string]*corev1.Pod {
	t.Helper()
	var pods map[string]*corev1.Pod
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		pods = k.members(t, group)
		require.Len(c, pods, n)
		for _, pod := range pods {
			require.Equal(c, corev1.PodRunning, pod.Status.Phase, "%s: %s", pod.Name, pendingReason(pod))
		}
	}, eventually, tick)
	return pods
}

// restarted waits until so many members run of which none is one of the old, and returns them.
func (k *cluster) restarted(t *testing.T, group string, old map[string]*corev1.Pod) map[string]*corev1.Pod {
	t.Helper()
	before := uidsOf(old)
	var pods map[string]*corev1.Pod
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		pods = k.members(t, group)
		require.Len(c, pods, len(old))
		for _, pod := range pods {
			require.False(c, before[pod.UID], "%s is the old one", pod.Name)
			require.Equal(c, corev1.PodRunning, pod.Status.Phase, "%s: %s", pod.Name, pendingReason(pod))
		}
	}, eventually, tick, "%s", lazy(func() string { return k.podGroup(t, group).Annotations[v1alpha1.AnnotationRepair] }))
	return pods
}

func (k *cluster) podGroup(t testing.TB, name string) *schedulingv1alpha1.PodGroup {
	t.Helper()
	var g schedulingv1alpha1.PodGroup
	require.NoError(t, k.Get(context.Background(), client.ObjectKey{Namespace: k.namespace, Name: name}, &g))
	return &g
}

// phase waits until the status of the PodGroup says so.
func (k *cluster) phase(t *testing.T, name string, want schedulingv1alpha1.PodGroupPhase) *schedulingv1alpha1.PodGroup {
	t.Helper()
	var g *schedulingv1alpha1.PodGroup
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		g = k.podGroup(t, name)
		require.Equal(c, want, g.Status.Phase, "%+v", g.Status)
	}, eventually, tick)
	return g
}

func (k *cluster) event(t *testing.T, reason, object string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var list corev1.EventList
		require.NoError(c, k.List(t.Context(), &list, client.InNamespace(k.namespace)))
		for i := range list.Items {
			if e := &list.Items[i]; e.Reason == reason && strings.HasPrefix(e.InvolvedObject.Name, object) {
				return
			}
		}
		require.Fail(c, "no event", "%s of %s", reason, object)
	}, eventually, tick)
}

func (k *cluster) fail(t *testing.T, name string) {
	t.Helper()
	pod := k.get(t, name)
	pod.Status.Phase = corev1.PodFailed
	require.NoError(t, k.Status().Update(t.Context(), pod))
}

func (k *cluster) deleteNode(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, k.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}))
}

func (k *cluster) sicken(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	g := &k.gpus[pod.Spec.NodeName][0]
	g.Healthy, g.UnhealthyReason, g.UnhealthyMessage = false, v1alpha1.ReasonXid, "Xid 48: double bit ECC error"
	k.publish(t, pod.Spec.NodeName)
}

// A member is lost under a gang, which then comes back whole, elsewhere.
func TestGangComesBackWhole(t *testing.T) {
	for cause, lose := range map[string]func(t *testing.T, k *cluster, pod *corev1.Pod){
		"NodeGone": func(t *testing.T, k *cluster, pod *corev1.Pod) { k.deleteNode(t, pod.Spec.NodeName) },
		"NodeNotReady": func(t *testing.T, k *cluster, pod *corev1.Pod) {
			patch := fmt.Sprintf(`{"metadata":{"labels":{%q:"true"}}}`, embedded.KwokNotReadyLabel)
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: pod.Spec.NodeName}}
			require.NoError(t, k.Patch(t.Context(), node, client.RawPatch(types.MergePatchType, []byte(patch))))
		},
		"GPUUnhealthy": func(t *testing.T, k *cluster, pod *corev1.Pod) { k.sicken(t, pod) },
		"GPUGone": func(t *testing.T, k *cluster, pod *corev1.Pod) {
			k.gpus[pod.Spec.NodeName] = k.gpus[pod.Spec.NodeName][1:]
			k.publish(t, pod.Spec.NodeName)
		},
	} {
		t.Run(cause, func(t *testing.T) {
			k := runningGang(t, 4, 3, nil)
			c := controller.Start(t, k.cp, repairSoon...)
			old := k.runs(t, "train", 3)
			k.phase(t, "train", schedulingv1alpha1.PodGroupRunning)
			lost := old["train-1"]
			lose(t, k, lost)

			now := k.restarted(t, "train", old)
			require.NotContains(t, []string{now["train-0"].Spec.NodeName, now["train-1"].Spec.NodeName, now["train-2"].Spec.NodeName}, lost.Spec.NodeName)
			require.Equal(t, string(lost.UID), now["train-1"].Annotations[v1alpha1.AnnotationReplaces])
			k.requireNoDoubleBooking(t)
			g := k.phase(t, "train", schedulingv1alpha1.PodGroupRunning)
			require.Equal(t, "1", g.Annotations[v1alpha1.AnnotationRestarts])
			require.EqualValues(t, 3, g.Status.Running)
			k.event(t, "MemberLost", "train")
			k.event(t, "GangRestarted", "train")
			k.event(t, "GangRestarted", "train-0")
			k.event(t, "GangRecovered", "train")
			require.Contains(t, c.Metrics(t), fmt.Sprintf(`gpupack_controller_gang_repairs_total{cause=%q,policy="restart-gang"} 1`, cause))
			require.Contains(t, c.Metrics(t), `gpupack_controller_gang_repair_duration_seconds_count 1`)
			k.nothingKept(t)
		})
	}
}

// nothingKept checks that nothing is left of a repair.
func (k *cluster) nothingKept(t *testing.T) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var list corev1.PodTemplateList
		require.NoError(c, k.List(t.Context(), &list, client.InNamespace(k.namespace)))
		require.Empty(c, list.Items)
	}, eventually, tick)
}

func TestMemberFailed(t *testing.T) {
	k := runningGang(t, 3, 3, nil)
	controller.Start(t, k.cp, repairSoon...)
	old := k.runs(t, "train", 3)
	k.fail(t, "train-2")
	k.restarted(t, "train", old)
	k.nothingKept(t)
}

func TestMemberReplaced(t *testing.T) {
	k := runningGang(t, 4, 3, map[string]string{v1alpha1.AnnotationOnMemberLoss: string(v1alpha1.ReplaceMember)})
	c := controller.Start(t, k.cp, repairSoon...)
	old := k.runs(t, "train", 3)
	k.sicken(t, old["train-1"])
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		now := k.members(t, "train")
		require.Len(c, now, 3)
		require.NotEqual(c, old["train-1"].UID, now["train-1"].UID)
		require.Equal(c, corev1.PodRunning, now["train-1"].Status.Phase)
	}, eventually, tick)
	now := k.members(t, "train")
	require.Equal(t, old["train-0"].UID, now["train-0"].UID)
	require.Equal(t, old["train-2"].UID, now["train-2"].UID)
	require.NotEqual(t, old["train-1"].Spec.NodeName, now["train-1"].Spec.NodeName)
	k.event(t, "MemberReplaced", "train")
	require.Contains(t, c.Metrics(t), `gpupack_controller_gang_repairs_total{cause="GPUUnhealthy",policy="replace-member"} 1`)
	k.nothingKept(t)
}

func TestLossIgnored(t *testing.T) {
	k := runningGang(t, 4, 3, map[string]string{v1alpha1.AnnotationOnMemberLoss: string(v1alpha1.IgnoreLoss)})
	controller.Start(t, k.cp, repairSoon...)
	old := k.runs(t, "train", 3)
	k.sicken(t, old["train-1"])
	k.fail(t, "train-0")
	g := k.phase(t, "train", schedulingv1alpha1.PodGroupFailed)
	require.EqualValues(t, 1, g.Status.Failed)
	require.EqualValues(t, 2, g.Status.Running)
	// Long enough for a repair.
	require.Never(t, func() bool {
		return k.podGroup(t, "train").Annotations[v1alpha1.AnnotationRepair] != "" || len(k.members(t, "train")) != 2
	}, 3*time.Second, 10*tick)
	require.Equal(t, old["train-1"].UID, k.get(t, "train-1").UID)
}

// A gang that fails again and again is given up, and taken up again when its user says so.
func TestRestartLimit(t *testing.T) {
	k := runningGang(t, 3, 3, map[string]string{v1alpha1.AnnotationMaxRestarts: "1"})
	controller.Start(t, k.cp, repairSoon...)
	old := k.runs(t, "train", 3)
	k.fail(t, "train-0")
	old = k.restarted(t, "train", old)
	k.fail(t, "train-0")
	k.event(t, "RestartLimitReached", "train")
	k.phase(t, "train", schedulingv1alpha1.PodGroupFailed)
	require.Len(t, k.members(t, "train"), 2, "it is left as it is")

	g := k.podGroup(t, "train")
	g.Annotations[v1alpha1.AnnotationMaxRestarts] = "2"
	require.NoError(t, k.Update(t.Context(), g))
	k.restarted(t, "train", old)
	k.phase(t, "train", schedulingv1alpha1.PodGroupRunning)
}

// A gang that cannot be placed again holds nothing while it waits.
func TestBrokenGangHoldsNothing(t *testing.T) {
	k := runningGang(t, 3, 3, nil)
	controller.Start(t, k.cp, repairSoon...)
	old := k.runs(t, "train", 3)
	k.sicken(t, old["train-1"])
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		now := k.members(t, "train")
		require.Len(c, now, 3)
		for name, pod := range now {
			require.NotEqual(c, old[name].UID, pod.UID)
			require.Empty(c, pod.Spec.NodeName)
		}
	}, eventually, tick)
	k.pendingFor(t, "train-0", "PodGroup train waits", "2 of the 3 members needed fit")
	k.phase(t, "train", schedulingv1alpha1.PodGroupPending)
	for i := range 2 {
		k.create(t, fmt.Sprintf("other-%d", i), wholeGPUs(4))
		k.placed(t, fmt.Sprintf("other-%d", i))
	}
	require.Zero(t, k.membersBound(t, "train"))
}

// A Job makes its pods anew by itself, at once, and counts no failure, of which it could have none.
func TestIndexedJobComesBackWhole(t *testing.T) {
	k := newCluster(t, 4, func(int) []v1alpha1.GPU { return a100s(4) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	controller.Start(t, k.cp, repairSoon...)
	k.group(t, "train", 3)
	pod := k.pod("", inGroup("train"), wholeGPUs(4))
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: "train"},
		Spec: batchv1.JobSpec{
			Completions: ptr.To[int32](3), Parallelism: ptr.To[int32](3), BackoffLimit: ptr.To[int32](0),
			CompletionMode: ptr.To(batchv1.IndexedCompletion),
			Template:       corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
		},
	}
	require.NoError(t, k.Create(t.Context(), job))
	old := k.runs(t, "train", 3)
	require.Equal(t, k.namespace+"/train", k.phase(t, "train", schedulingv1alpha1.PodGroupRunning).Status.OccupiedBy)
	for _, pod := range old {
		k.deleteNode(t, pod.Spec.NodeName)
		break
	}
	k.restarted(t, "train", old)
	k.requireNoDoubleBooking(t)
	k.phase(t, "train", schedulingv1alpha1.PodGroupRunning)
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(job), job))
	require.Zero(t, job.Status.Failed)
	require.Equal(t, "1", k.podGroup(t, "train").Annotations[v1alpha1.AnnotationRestarts])
}

// The controller is killed at a point of a repair and another goes on: every member is there once, and none is lost.
func TestControllerKilled(t *testing.T) {
	isPod := func(r *http.Request, method string) bool {
		return r.Method == method && strings.Contains(r.URL.Path, "/pods")
	}
	for name, at := range map[string]func(*http.Request) bool{
		"before the first deletion": func(r *http.Request) bool { return isPod(r, http.MethodDelete) },
		"half deleted": func() func(*http.Request) bool {
			var n atomic.Int32
			return func(r *http.Request) bool { return isPod(r, http.MethodDelete) && n.Add(1) > 2 }
		}(),
		"between deletion and creation": func(r *http.Request) bool { return isPod(r, http.MethodPost) },
		"half created": func() func(*http.Request) bool {
			var n atomic.Int32
			return func(r *http.Request) bool { return isPod(r, http.MethodPost) && n.Add(1) > 2 }
		}(),
		"created but still kept": func(r *http.Request) bool {
			return r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "/podtemplates/")
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := runningGang(t, 5, 4, nil)
			first := controller.Start(t, k.cp, repairSoon...)
			old := k.runs(t, "train", 4)
			var held atomic.Int32
			first.Hold(func(r *http.Request) bool {
				if at(r) {
					held.Add(1)
					return true
				}
				return false
			})
			k.sicken(t, old["train-1"])
			require.Eventually(t, func() bool { return held.Load() > 0 }, eventually, tick)
			first.Kill()
			controller.Start(t, k.cp, repairSoon...)
			k.restarted(t, "train", old)
			k.requireNoDoubleBooking(t)
			k.phase(t, "train", schedulingv1alpha1.PodGroupRunning)
			k.nothingKept(t)
			require.Equal(t, "1", k.podGroup(t, "train").Annotations[v1alpha1.AnnotationRestarts])
		})
	}
}

// Of two replicas one works, and the other goes on when that ends.
func TestControllerTakesOver(t *testing.T) {
	k := runningGang(t, 4, 3, nil)
	args := append([]string{"--leader-elect=true"}, repairSoon...)
	first := controller.Start(t, k.cp, args...)
	k.phase(t, "train", schedulingv1alpha1.PodGroupRunning)
	controller.Start(t, k.cp, args...)
	old := k.runs(t, "train", 3)
	first.Stop(t)
	k.sicken(t, old["train-1"])
	k.restarted(t, "train", old)
	require.Equal(t, "1", k.phase(t, "train", schedulingv1alpha1.PodGroupRunning).Annotations[v1alpha1.AnnotationRestarts])
}

// While a gang is being ended, no member of it is placed beside those that still run.
func TestEndingGangIsNotPlaced(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(4) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	g := k.group(t, "train", 1)
	k.create(t, "train-0", inGroup("train"), wholeGPUs(4))
	k.placed(t, "train-0")
	g.Annotations = map[string]string{v1alpha1.AnnotationRepair: `{"state":"Ending","policy":"restart-gang"}`}
	require.NoError(t, k.Update(t.Context(), g))
	k.create(t, "train-1", inGroup("train"), wholeGPUs(4))
	require.Never(t, func() bool { return k.get(t, "train-1").Spec.NodeName != "" }, 3*time.Second, tick)
	g.Annotations = nil
	require.NoError(t, k.Update(t.Context(), g))
	k.placed(t, "train-1")
}
