// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

var now = time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC)

func ago(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }

// member is a pod that runs on node "n" with GPU "GPU-1" since an hour.
func member(name string, changes ...func(*corev1.Pod)) *corev1.Pod {
	start := ago(time.Hour)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID("uid-" + name), CreationTimestamp: start,
			Annotations: map[string]string{v1alpha1.AnnotationGPUs: "GPU-1"},
		},
		Spec:   corev1.PodSpec{NodeName: "n"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &start},
	}
	for _, change := range changes {
		change(pod)
	}
	return pod
}

func owned(kind string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: "owner", Controller: new(true)}}
	}
}

func failed(d time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodFailed
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, LastTransitionTime: ago(d)}}
	}
}

func born(d time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.CreationTimestamp = ago(d) }
}

func unbound(p *corev1.Pod)      { p.Spec.NodeName, p.Status.Phase = "", corev1.PodPending }
func beingDeleted(p *corev1.Pod) { p.DeletionTimestamp = new(ago(-30 * time.Second)) }
func onNode(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeName = name }
}

// newGang is a gang whose nodes are "n", which is well, "bad", which is not ready since a minute, "new", which is not ready
// since ten seconds, and "out", which is out of service. The GPU of "n" is well, "GPU-sick" is not.
func newGang(pods ...*corev1.Pod) *gang {
	node := func(ready corev1.ConditionStatus, since time.Duration) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: ready, LastTransitionTime: ago(since)}}}}
	}
	out := node(corev1.ConditionUnknown, time.Second)
	out.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService}}
	gpu := func(index int32, uuid string, reason v1alpha1.UnhealthyReason) v1alpha1.GPU {
		return v1alpha1.GPU{UUID: uuid, Index: index, MemoryTotalMiB: 1, Healthy: reason == "", UnhealthyReason: reason}
	}
	return &gang{
		group:  &schedulingv1alpha1.PodGroup{ObjectMeta: metav1.ObjectMeta{Name: "train", Annotations: map[string]string{}}, Spec: schedulingv1alpha1.PodGroupSpec{MinMember: int32(len(pods))}},
		policy: v1alpha1.RestartGang,
		pods:   pods,
		nodes: map[string]*corev1.Node{
			"n": node(corev1.ConditionTrue, time.Hour), "bad": node(corev1.ConditionUnknown, time.Minute),
			"new": node(corev1.ConditionFalse, 10*time.Second), "out": out,
		},
		gpus: map[string]*v1alpha1.GPUNode{"n": {Status: v1alpha1.GPUNodeStatus{
			Mode: v1alpha1.ModeManage, ObservedTime: new(metav1.NewMicroTime(now)),
			GPUs: []v1alpha1.GPU{gpu(0, "GPU-1", ""), gpu(1, "GPU-sick", v1alpha1.ReasonXid), gpu(2, "GPU-hot", v1alpha1.ReasonThrottled)},
		}}},
		kept: map[string]*corev1.PodTemplate{},
		o: &Options{NotReadyAfter: 30 * time.Second, BackoffBase: time.Second, BackoffMax: 5 * time.Minute, MaxRestarts: 3,
			ResetAfter: 10 * time.Minute},
		now: now,
	}
}

func withGPUs(gpus string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationGPUs] = gpus }
}

func TestLoss(t *testing.T) {
	for name, tt := range map[string]struct {
		pod    *corev1.Pod
		change func(*gang)
		want   string
		again  time.Duration
	}{
		"well":                         {pod: member("a")},
		"node gone":                    {pod: member("a", onNode("gone")), want: causeNodeGone},
		"node out of service":          {pod: member("a", onNode("out")), want: causeNodeGone},
		"node not ready":               {pod: member("a", onNode("bad")), want: causeNodeNotReady},
		"node not ready yet":           {pod: member("a", onNode("new")), again: 20 * time.Second},
		"GPU sick":                     {pod: member("a", withGPUs("GPU-1,GPU-sick")), want: causeGPUUnhealthy},
		"GPU throttled":                {pod: member("a", withGPUs("GPU-hot"))},
		"GPU gone":                     {pod: member("a", withGPUs("GPU-9")), want: causeGPUGone},
		"no GPU":                       {pod: member("a", withGPUs(""))},
		"no telemetry":                 {pod: member("a"), change: func(g *gang) { g.gpus = nil }},
		"stale telemetry":              {pod: member("a", withGPUs("GPU-9")), change: func(g *gang) { g.now = now.Add(time.Hour) }},
		"telemetry older than the pod": {pod: member("a", withGPUs("GPU-9"), born(-time.Second))},
		"failed":                       {pod: member("a", failed(time.Second)), want: causePodFailed},
		"failed long ago":              {pod: member("a", failed(time.Hour))},
		"failed, of a Job":             {pod: member("a", failed(time.Second), owned("Job")), want: causePodFailed},
		"failed, of a Job, to replace": {pod: member("a", failed(time.Second), owned("Job")), change: func(g *gang) { g.policy = v1alpha1.ReplaceMember }},
		"failed before the last repair": {pod: member("a", failed(time.Second), owned("Job")), change: func(g *gang) {
			g.repair = &convert.Repair{State: convert.RepairDone, Policy: v1alpha1.RestartGang, Born: ago(time.Minute)}
		}},
		"failed after the last repair": {pod: member("a", failed(time.Second), owned("Job")), want: causePodFailed, change: func(g *gang) {
			g.repair = &convert.Repair{State: convert.RepairDone, Policy: v1alpha1.RestartGang, Born: ago(2 * time.Hour)}
		}},
		"succeeded":     {pod: member("a", onNode("gone"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })},
		"being deleted": {pod: member("a", onNode("gone"), beingDeleted)},
		"not placed":    {pod: member("a", unbound)},
		"what the agent sees counts on an observed node": {pod: member("a", withGPUs("GPU-1")), want: causeGPUUnhealthy, change: func(g *gang) {
			g.gpus["n"].Status.Mode = v1alpha1.ModeObserve
			g.gpus["n"].Status.GPUs[1].Pods = []v1alpha1.GPUPod{{UID: "uid-a"}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGang(tt.pod)
			if tt.change != nil {
				tt.change(g)
			}
			l, again := g.loss(tt.pod)
			require.Equal(t, tt.again, again)
			if tt.want == "" {
				require.Nil(t, l)
				return
			}
			require.NotNil(t, l)
			require.Equal(t, tt.want, l.cause)
			require.NotEmpty(t, l.message)
		})
	}
}

// record writes a decision to the gang as apply does.
func (g *gang) record(d decision) {
	if d.repair != nil {
		g.repair = d.repair
	}
	if d.restarts >= 0 {
		text, _ := json.Marshal(d.restarts)
		g.group.Annotations[v1alpha1.AnnotationRestarts] = string(text)
	}
}

func TestRestart(t *testing.T) {
	g := newGang(member("a"), member("b", onNode("bad")), member("c", unbound))
	d := g.decide()
	require.Equal(t, convert.RepairWaiting, d.repair.State)
	require.Equal(t, "b", d.repair.Member)
	require.Len(t, d.keep, 1, "the lost one, before anybody deletes it")
	g.record(d)

	d = g.decide()
	require.Nil(t, d.repair)
	require.Equal(t, time.Second, d.again)

	g.now = now.Add(time.Second)
	d = g.decide()
	require.Equal(t, convert.RepairEnding, d.repair.State)
	require.Equal(t, 1, d.restarts)
	g.record(d)
	require.Equal(t, []*corev1.Pod{g.pods[0], g.pods[1]}, g.toEnd(), "one that has no node holds nothing")
	require.Nil(t, g.decide().repair)

	beingDeleted(g.pods[0])
	beingDeleted(g.pods[1])
	d = g.decide()
	require.Equal(t, convert.RepairPlacing, d.repair.State)
	g.record(d)

	g.pods = []*corev1.Pod{member("a", born(-2*time.Second)), member("b", born(-2*time.Second)), member("c", func(p *corev1.Pod) { p.Status.StartTime = new(metav1.NewTime(now.Add(9 * time.Second))) })}
	g.now = now.Add(10 * time.Second)
	d = g.decide()
	require.Equal(t, convert.RepairDone, d.repair.State)
	require.Equal(t, 10*time.Second, d.recovered)
	g.record(d)
	require.Equal(t, 1, g.restarts())

	g.now = g.now.Add(10 * time.Minute)
	require.Equal(t, 0, g.decide().restarts, "it has run well for long enough")
}

func TestWaitingEndsWithoutRestart(t *testing.T) {
	waiting := func(pods ...*corev1.Pod) *gang {
		g := newGang(pods...)
		g.repair = &convert.Repair{State: convert.RepairWaiting, Policy: v1alpha1.RestartGang, Member: "b", UID: "uid-b", Born: ago(time.Minute), NotBefore: ago(0)}
		return g
	}
	for name, g := range map[string]*gang{
		"the owner was faster": waiting(member("a", born(time.Second)), member("b2", born(time.Second)), member("b", failed(0), owned("Job"))),
		"the node is back":     waiting(member("a"), member("b")),
		"the policy has changed": func() *gang {
			g := waiting(member("a"), member("b", onNode("bad")))
			g.policy = v1alpha1.IgnoreLoss
			return g
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			d := g.decide()
			require.Equal(t, convert.RepairDone, d.repair.State)
			require.Equal(t, -1, d.restarts)
		})
	}
	t.Run("not where somebody deleted the lost one alone", func(t *testing.T) {
		require.Equal(t, convert.RepairEnding, waiting(member("a")).decide().repair.State)
	})
	t.Run("nor where it was the only one and is kept", func(t *testing.T) {
		g := waiting()
		g.kept["uid-b"] = &corev1.PodTemplate{}
		require.Equal(t, convert.RepairEnding, g.decide().repair.State)
	})
}

func TestYoungGangWaits(t *testing.T) {
	g := newGang(member("a", born(0)), member("b", onNode("bad")))
	d := g.decide()
	require.Nil(t, d.repair)
	require.Equal(t, time.Second, d.again)
}

// Operators delete a failed pod at once, and make another.
func TestVanishedFailure(t *testing.T) {
	g := newGang(member("a"), member("b"))
	g.vanished = []*corev1.Pod{member("c", failed(time.Second))}
	d := g.decide()
	require.Equal(t, convert.RepairWaiting, d.repair.State)
	require.Equal(t, "c", d.repair.Member)
	require.Empty(t, d.keep, "somebody has deleted it")
	g.pods[0].CreationTimestamp = ago(0)
	d = g.decide()
	require.Nil(t, d.repair)
	require.True(t, d.unsettled, "it must be remembered")
}

func TestFailures(t *testing.T) {
	var f failures
	a, b := member("a"), member("b")
	for _, pod := range []*corev1.Pod{b, a} {
		pod.Labels = map[string]string{v1alpha1.LabelPodGroup: "train"}
		f.add(pod)
		f.add(pod)
	}
	group := types.NamespacedName{Name: "train"}
	require.Equal(t, []*corev1.Pod{a, b}, f.of(group))
	f.forget(group, []*corev1.Pod{a})
	require.Equal(t, []*corev1.Pod{b}, f.of(group))
	f.forget(group, []*corev1.Pod{b})
	require.Empty(t, f.byGroup)
}

func TestLimit(t *testing.T) {
	g := newGang(member("a"), member("b", onNode("bad")))
	g.group.Annotations[v1alpha1.AnnotationRestarts] = "3"
	d := g.decide()
	require.Equal(t, convert.RepairLimitReached, d.repair.State)
	require.Empty(t, d.keep)
	g.record(d)
	require.Nil(t, g.decide().repair, "once")

	g.group.Annotations[v1alpha1.AnnotationMaxRestarts] = "4"
	require.Equal(t, convert.RepairWaiting, g.decide().repair.State, "the limit was raised")
	g.group.Annotations[v1alpha1.AnnotationMaxRestarts] = "many"
	require.Nil(t, g.decide().repair, "what is no number is no limit")

	g.pods = []*corev1.Pod{member("a", born(time.Second)), member("b", born(time.Second))}
	require.Equal(t, convert.RepairDone, g.decide().repair.State, "it was made anew")
}

func TestReplace(t *testing.T) {
	g := newGang(member("a"), member("b", onNode("bad")), member("c", onNode("gone"), owned("Job")))
	g.policy = v1alpha1.ReplaceMember
	g.record(g.decide())
	g.now = now.Add(time.Second)
	d := g.decide()
	require.Equal(t, convert.RepairEnding, d.repair.State)
	g.record(d)
	require.Equal(t, []*corev1.Pod{g.pods[1], g.pods[2]}, g.toEnd())
	require.False(t, convert.IsEnding(g.group))
}

func TestIgnore(t *testing.T) {
	g := newGang(member("a", onNode("gone")))
	g.policy = v1alpha1.IgnoreLoss
	require.Nil(t, g.decide().repair)
}

func TestBackoff(t *testing.T) {
	o := &Options{BackoffBase: time.Second, BackoffMax: time.Minute}
	for restarts, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 1 << 30: time.Minute} {
		require.Equal(t, want, o.backoff(restarts))
	}
}

func TestMayForce(t *testing.T) {
	g := newGang()
	deleted := func(d time.Duration, changes ...func(*corev1.Pod)) *corev1.Pod {
		return member("a", append(changes, func(p *corev1.Pod) { p.DeletionTimestamp = new(ago(d)) })...)
	}
	for name, tt := range map[string]struct {
		pod   *corev1.Pod
		now   bool
		again time.Duration
	}{
		"node well":                      {pod: deleted(time.Hour)},
		"node gone":                      {pod: deleted(-30*time.Second, onNode("gone")), now: true},
		"out of service":                 {pod: deleted(-30*time.Second, onNode("out"), owned("StatefulSet")), now: true},
		"not ready, in its grace period": {pod: deleted(-30*time.Second, onNode("bad")), again: 30 * time.Second},
		"not ready, after":               {pod: deleted(0, onNode("bad")), now: true},
		"not ready, of a StatefulSet":    {pod: deleted(0, onNode("bad"), owned("StatefulSet"))},
		"not ready yet":                  {pod: deleted(0, onNode("new")), again: 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			now, again := g.mayForce(tt.pod)
			require.Equal(t, tt.now, now)
			require.Equal(t, tt.again, again)
		})
	}
}

func TestAnew(t *testing.T) {
	token := corev1.VolumeMount{Name: tokenVolumePrefix + "abcde", MountPath: tokenMountPath}
	own := corev1.VolumeMount{Name: "data", MountPath: "/data"}
	pod := member("a", func(p *corev1.Pod) {
		p.Namespace, p.ResourceVersion, p.Finalizers = "ns", "7", []string{"example.com/x"}
		p.Labels = map[string]string{v1alpha1.LabelPodGroup: "train", "mine": "yes"}
		p.Annotations[v1alpha1.AnnotationDecision] = "{}"
		p.Annotations["mine"] = "yes"
		p.Spec.Priority = new(int32(5))
		p.Spec.PriorityClassName = "high"
		p.Spec.Hostname = "rank-0"
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}}
		p.Spec.Volumes = []corev1.Volume{
			{Name: token.Name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}},
			{Name: "data"},
		}
		p.Spec.InitContainers = []corev1.Container{{VolumeMounts: []corev1.VolumeMount{token}}}
		p.Spec.Containers = []corev1.Container{{VolumeMounts: []corev1.VolumeMount{own, token}}}
	})
	before := pod.DeepCopy()
	kept := keep(newGang().group, pod)
	require.Equal(t, before, pod, "the cache's pod is not changed")
	require.Equal(t, "uid-a", keptUID(kept))
	require.Equal(t, map[string]string{v1alpha1.LabelRepairOf: "train"}, kept.Labels)
	require.Equal(t, "PodGroup", kept.OwnerReferences[0].Kind)

	got := fromKept(kept)
	require.Equal(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "a", Labels: map[string]string{v1alpha1.LabelPodGroup: "train", "mine": "yes"},
			Annotations: map[string]string{"mine": "yes", v1alpha1.AnnotationReplaces: "uid-a"},
		},
		Spec: corev1.PodSpec{
			PriorityClassName: "high", Hostname: "rank-0",
			SchedulingGates: []corev1.PodSchedulingGate{{Name: "example.com/wait"}},
			Volumes:         []corev1.Volume{{Name: "data"}},
			InitContainers:  []corev1.Container{{VolumeMounts: []corev1.VolumeMount{}}},
			Containers:      []corev1.Container{{VolumeMounts: []corev1.VolumeMount{own}}},
		},
	}, got)
}

func TestIsBare(t *testing.T) {
	require.True(t, isBare(member("a")))
	require.False(t, isBare(member("a", owned("Job"))))
	require.True(t, isBare(member("a", func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "Namespace"}}
	})), "it goes with its owner, which does not make it anew")
	require.True(t, isBare(member("a", owned("PodGroup"), func(p *corev1.Pod) {
		p.OwnerReferences[0].APIVersion = schedulingv1alpha1.SchemeGroupVersion.String()
	})))
}
