// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	clocktesting "k8s.io/utils/clock/testing"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/plugins/config"
)

// queueHandle is a framework handle that notes which pods are activated.
type queueHandle struct {
	fwk.Handle
	activated []string
}

func (h *queueHandle) ProfileName() string                    { return v1alpha1.SchedulerName }
func (h *queueHandle) GetWaitingPod(types.UID) fwk.WaitingPod { return nil }
func (h *queueHandle) Activate(_ klog.Logger, m map[string]*corev1.Pod) {
	for _, pod := range m {
		h.activated = append(h.activated, pod.Name)
	}
	slices.Sort(h.activated)
}

var group = types.NamespacedName{Namespace: "ns", Name: "g"}

// withPlan is a plugin with a gang of which the members are planned, on node n, and need must come to Permit.
func withPlan(t *testing.T, need, members int) (*Plugin, *queueHandle, *clocktesting.FakeClock) {
	t.Helper()
	handle, clock := &queueHandle{}, clocktesting.NewFakeClock(time.Now())
	indexer := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{
		cache.NamespaceIndex: cache.MetaNamespaceIndexFunc,
		byGang:               gangOfPod,
	})
	p := &Plugin{
		handle: handle, clock: clock, ledger: newLedger(), groups: &podGroups{}, args: &config.GPUPackArgs{},
		podIndexer: indexer, pods: corelisters.NewPodLister(indexer), preemption: &preemption{},
	}
	p.gangs = newGangs(p)
	p.groups.byKey = map[types.NamespacedName]*schedulingv1alpha1.PodGroup{}
	p.groups.set(&schedulingv1alpha1.PodGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "g", ResourceVersion: "1", Generation: 1},
		Spec:       schedulingv1alpha1.PodGroupSpec{MinMember: int32(need)},
	})
	var uids []types.UID
	var entries []*entry
	for i := range members {
		pod := member(fmt.Sprintf("m%d", i), "")
		require.NoError(t, indexer.Add(pod))
		uids = append(uids, pod.UID)
		entries = append(entries, &entry{uid: pod.UID, node: "n", gpus: []string{fmt.Sprintf("g%d", i)}, phase: planned, gang: group})
	}
	p.gangs.begin(t.Context(), group, need, uids, time.Minute)
	p.ledger.put(entries...)
	return p, handle, clock
}

func member(name, node string) *corev1.Pod {
	pod := gpuPod(name, node, "")
	pod.Labels = map[string]string{v1alpha1.LabelPodGroup: "g"}
	pod.Spec.SchedulerName = v1alpha1.SchedulerName
	return pod
}

// arrive brings members to Permit.
func arrive(p *Plugin, uids ...types.UID) (released bool) {
	for _, uid := range uids {
		e, _ := p.ledger.get(uid)
		e.phase = assumed
		p.ledger.put(&e)
		_, wait, stands := p.gangs.arrive(group, uid)
		released = stands && !wait
	}
	return released
}

func TestPlanIsDroppedWithWhatItWasMadeOf(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, p *Plugin){
		"PodGroup edited":  func(t *testing.T, p *Plugin) { p.gangs.groupChanged(t.Context(), group, "edited") },
		"PodGroup deleted": func(t *testing.T, p *Plugin) { p.gangs.groupChanged(t.Context(), group, "deleted") },
		"member deleted":   func(t *testing.T, p *Plugin) { p.gangs.memberGone(t.Context(), member("m1", "")) },
		"bound member deleted": func(t *testing.T, p *Plugin) {
			p.gangs.memberGone(t.Context(), member("bound", "n"))
		},
		"member deleted while the plan was made": func(t *testing.T, p *Plugin) {
			pod := member("m1", "")
			require.NoError(t, p.podIndexer.Delete(pod))
			g, _ := p.groups.find(group)
			p.gangs.recheck(t.Context(), &gang{name: group, group: g, pending: []*corev1.Pod{member("m0", ""), pod}})
		},
		"PodGroup edited while the plan was made": func(t *testing.T, p *Plugin) {
			old, _ := p.groups.find(group)
			edited := old.DeepCopy()
			edited.ResourceVersion, edited.Generation = "2", 2
			p.groups.set(edited)
			p.gangs.recheck(t.Context(), &gang{name: group, group: old})
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, handle, clock := withPlan(t, 2, 2)
			require.False(t, arrive(p, "m0"))
			change(t, p)
			require.False(t, p.ledger.has("m0"))
			require.False(t, p.ledger.has("m1"))
			require.False(t, p.gangs.underWay(group))
			require.False(t, arrive(p, "m1"), "the plan is gone")

			// The gang tries again by itself.
			require.Empty(t, handle.activated)
			clock.Step(2 * time.Second)
			require.Contains(t, handle.activated, "m0")
		})
	}
}

func TestReleasedPlanOutlivesChanges(t *testing.T) {
	p, _, _ := withPlan(t, 2, 3)
	require.True(t, arrive(p, "m0", "m1"))
	p.gangs.groupChanged(t.Context(), group, "edited")
	p.gangs.memberGone(t.Context(), member("bound", "n"))
	require.True(t, arrive(p, "m2"))
}

// A pod that comes to a gang which is being bound waits until that is done, so that no second plan forgets the places of the first.
func TestLatePodIsWokenWhenThePlanEnds(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, p *Plugin, clock *clocktesting.FakeClock){
		"bound": func(t *testing.T, p *Plugin, _ *clocktesting.FakeClock) {
			p.gangs.done(t.Context(), group, "m0")
			p.gangs.done(t.Context(), group, "m1")
		},
		"bound without an answer": func(t *testing.T, p *Plugin, _ *clocktesting.FakeClock) {
			p.gangs.done(t.Context(), group, "m0")
			p.gangs.failed(t.Context(), group, "m1", true, "no answer")
			p.ledger.observe(member("m1", "n"))
			p.gangs.done(t.Context(), group, "m1")
		},
		"expired": func(t *testing.T, p *Plugin, clock *clocktesting.FakeClock) {
			p.gangs.done(t.Context(), group, "m0")
			p.gangs.failed(t.Context(), group, "m1", true, "no answer")
			require.True(t, p.ledger.has("m1"), "its place is kept for another try")
			clock.Step(time.Minute)
			require.False(t, p.ledger.has("m1"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, handle, clock := withPlan(t, 2, 2)
			require.True(t, arrive(p, "m0", "m1"))
			require.NoError(t, p.podIndexer.Add(member("late", "")))
			require.True(t, p.gangs.underWay(group))
			require.Empty(t, handle.activated)
			end(t, p, clock)
			require.Contains(t, handle.activated, "late")
			require.False(t, p.gangs.underWay(group))
		})
	}
}

// A pod that found no node beside a plan's places is tried again when the plan is dropped, also where that happens in the midst of
// its cycle.
func TestPodsBlockedByAPlanAreWoken(t *testing.T) {
	for name, midst := range map[string]bool{"before the drop": false, "in the midst of it": true} {
		t.Run(name, func(t *testing.T) {
			p, handle, _ := withPlan(t, 2, 2)
			single := gpuPod("single", "", "")
			require.NoError(t, p.podIndexer.Add(single))
			state := framework.NewCycleState()
			p.beginBesidePlans(state)
			drop := func() { p.gangs.groupChanged(t.Context(), group, "deleted") }
			if midst {
				drop()
			}
			p.block(t.Context(), state, single)
			if !midst {
				require.Empty(t, handle.activated)
				drop()
			}
			require.Equal(t, []string{"single"}, handle.activated)

			// Without a plan it waits for events as ever.
			handle.activated = nil
			state = framework.NewCycleState()
			p.beginBesidePlans(state)
			p.block(t.Context(), state, single)
			p.gaveBack(t.Context(), group)
			require.Empty(t, handle.activated)
		})
	}
}

func TestLostPlaceIsTriedAgain(t *testing.T) {
	p, handle, clock := withPlan(t, 2, 2)
	require.True(t, arrive(p, "m0", "m1"))
	p.gangs.failed(t.Context(), group, "m1", false, "its node was cordoned")
	require.False(t, p.ledger.has("m1"))
	require.Empty(t, handle.activated)
	clock.Step(2 * time.Second)
	require.Contains(t, handle.activated, "m1")
}

func TestMembersThatTerminateAreNotHeld(t *testing.T) {
	p, _, _ := withPlan(t, 2, 1)
	leaving := member("leaving", "n")
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	for _, pod := range []*corev1.Pod{leaving, member("running", "n"), member("new", "")} {
		require.NoError(t, p.podIndexer.Add(pod))
	}
	g, err := p.gang(group)
	require.NoError(t, err)
	require.Equal(t, 2, g.held, "running, and m0 by its plan")
	require.Len(t, g.pending, 1)
	require.Equal(t, "new", g.pending[0].Name)
}
