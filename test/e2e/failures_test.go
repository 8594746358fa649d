// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/process"
	"github.com/gpupack/gpupack/test/scheduler"
)

// requireNothingHeld waits until the scheduler promises GPUs to nobody but pods that are bound.
func requireNothingHeld(t *testing.T, s *scheduler.Scheduler) {
	t.Helper()
	require.Eventually(t, func() bool {
		metrics := s.Metrics(t)
		for _, phase := range []string{"planned", "assumed"} {
			name := fmt.Sprintf(`gpupack_scheduler_ledger_entries{phase="%s"} `, phase)
			if strings.Contains(metrics, name) && !strings.Contains(metrics, name+"0\n") {
				return false
			}
		}
		return true
	}, eventually, tick)
}

// gate holds requests until it is opened, and counts them.
type gate struct {
	held atomic.Int32
	open chan struct{}
}

func newGate() *gate { return &gate{open: make(chan struct{})} }

// hold makes the scheduler's requests wait at the gate, and then befall them what then says.
func (g *gate) hold(s *scheduler.Scheduler, match func(*http.Request) bool, then process.Fault) {
	then.Until = g.open
	s.Inject(func(r *http.Request) *process.Fault {
		select {
		case <-g.open:
			return nil
		default:
		}
		if !match(r) {
			return nil
		}
		g.held.Add(1)
		return &then
	})
}

// The scheduler is killed at each request of a gang's way to its nodes; the next one makes the gang whole.
func TestGangWhoseSchedulerIsKilledAtEachRequest(t *testing.T) {
	for after := range int32(6) {
		t.Run(fmt.Sprintf("after %d requests", after), func(t *testing.T) {
			k := newCluster(t, 3, func(int) []v1alpha1.GPU { return a100s(2) })
			first := scheduler.Start(t, k.cp, scheduler.Options{})
			var seen, held atomic.Int32
			first.Hold(func(r *http.Request) bool {
				if !process.IsBinding(r) || seen.Add(1) <= after {
					return false
				}
				held.Add(1)
				return true
			})
			k.group(t, "g", 3)
			k.gang(t, "g", 3, wholeGPUs(2))
			require.Eventually(t, func() bool { return held.Load() > 0 || k.membersBound(t, "g") == 3 }, eventually, tick)
			first.Kill()
			second := scheduler.Start(t, k.cp, scheduler.Options{})
			require.Len(t, k.gangPlaced(t, "g", 3), 3)
			k.requireNoDoubleBooking(t)
			requireNothingHeld(t, second)
		})
	}
}

// Of two replicas the one that schedules is killed while a gang is half bound; the other makes it whole.
func TestGangWhoseLeaderIsKilled(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(4) })
	leader := scheduler.Start(t, k.cp, scheduler.Options{LeaderElection: true})
	require.Eventually(t, leader.Leads, eventually, tick)
	other := scheduler.Start(t, k.cp, scheduler.Options{LeaderElection: true})
	var bindings, held atomic.Int32
	leader.Hold(func(r *http.Request) bool {
		if !process.IsBinding(r) || bindings.Add(1) <= 3 {
			return false
		}
		held.Add(1)
		return true
	})
	k.group(t, "g", 8)
	k.gang(t, "g", 8, wholeGPUs(1))
	require.Eventually(t, func() bool { return held.Load() > 0 && k.membersBound(t, "g") == 3 }, eventually, tick)
	leader.Kill()
	k.gangPlaced(t, "g", 8)
	k.requireNoDoubleBooking(t)
	requireNothingHeld(t, other)
}

// The API server fails some of the requests that bind a gang; the gang is whole soon after all the same.
func TestGangWhileTheAPIServerFails(t *testing.T) {
	for name, fault := range map[string]process.Fault{
		"conflict":                  {Status: http.StatusConflict},
		"too many requests":         {Status: http.StatusTooManyRequests},
		"internal error":            {Status: http.StatusInternalServerError},
		"slow":                      {Delay: 2 * time.Second},
		"no answer":                 {Delay: time.Second, Cut: true},
		"done but no answer":        {Cut: true, Applied: true},
		"done late, but no answer":  {Delay: time.Second, Cut: true, Applied: true},
		"slow, then internal error": {Delay: time.Second, Status: http.StatusInternalServerError},
	} {
		t.Run(name, func(t *testing.T) {
			k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(4) })
			s := scheduler.Start(t, k.cp, scheduler.Options{})
			var seen atomic.Int32
			s.Inject(func(r *http.Request) *process.Fault {
				if !process.IsBinding(r) || seen.Add(1) > 5 {
					return nil
				}
				return &fault
			})
			k.group(t, "g", 4)
			k.gang(t, "g", 4, wholeGPUs(2))
			k.gangPlaced(t, "g", 4)
			require.GreaterOrEqual(t, seen.Load(), int32(4))
			k.requireNoDoubleBooking(t)
			requireNothingHeld(t, s)
		})
	}
}

// A member that is deleted while its gang is being bound leaves the others bound, and the one that replaces it completes them.
func TestGangMemberDeletedWhileBinding(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(2) })
	s := scheduler.Start(t, k.cp, scheduler.Options{})
	gate := newGate()
	gate.hold(s, process.IsBinding, process.Fault{})
	k.group(t, "g", 2)
	k.gang(t, "g", 2, wholeGPUs(2))
	require.Eventually(t, func() bool { return gate.held.Load() == 2 }, eventually, tick)
	k.delete(t, "g-1")
	close(gate.open)
	k.placed(t, "g-0")
	requireNothingHeld(t, s)
	k.create(t, "other", wholeGPUs(2))
	k.placed(t, "other")
	k.create(t, "g-2", inGroup("g"), wholeGPUs(2))
	k.pendingFor(t, "g-2", "PodGroup g waits", "0 of the 1 members needed fit")
	k.delete(t, "other")
	k.placed(t, "g-2")
	k.requireNoDoubleBooking(t)
}

// A member that comes while its gang is being bound has its place afterwards.
func TestGangMemberAddedWhileBinding(t *testing.T) {
	k := newCluster(t, 2, func(int) []v1alpha1.GPU { return a100s(2) })
	s := scheduler.Start(t, k.cp, scheduler.Options{})
	gate := newGate()
	gate.hold(s, process.IsBinding, process.Fault{})
	k.group(t, "g", 2)
	k.gang(t, "g", 2, wholeGPUs(1))
	require.Eventually(t, func() bool { return gate.held.Load() == 2 }, eventually, tick)
	k.create(t, "g-2", inGroup("g"), wholeGPUs(1))
	k.pendingFor(t, "g-2", "is being started without this pod")
	close(gate.open)
	k.gangPlaced(t, "g", 3)
	requireNothingHeld(t, s)
}

// The PodGroup is edited or deleted while its members are being bound, which is then too late to stop.
func TestPodGroupChangedWhileBinding(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, k *cluster, group *schedulingv1alpha1.PodGroup){
		"edited": func(t *testing.T, k *cluster, group *schedulingv1alpha1.PodGroup) {
			group.Spec.MinMember = 3
			require.NoError(t, k.Update(t.Context(), group))
		},
		"deleted": func(t *testing.T, k *cluster, group *schedulingv1alpha1.PodGroup) {
			require.NoError(t, k.Delete(t.Context(), group))
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newCluster(t, 3, func(int) []v1alpha1.GPU { return a100s(2) })
			s := scheduler.Start(t, k.cp, scheduler.Options{})
			gate := newGate()
			gate.hold(s, process.IsBinding, process.Fault{})
			group := k.group(t, "g", 2)
			k.gang(t, "g", 2, wholeGPUs(2))
			require.Eventually(t, func() bool { return gate.held.Load() == 2 }, eventually, tick)
			change(t, k, group)
			close(gate.open)
			k.gangPlaced(t, "g", 2)
			requireNothingHeld(t, s)
			if name == "deleted" {
				k.group(t, "g", 3)
			}
			k.create(t, "g-2", inGroup("g"), wholeGPUs(2))
			k.placed(t, "g-2")
			k.requireNoDoubleBooking(t)
		})
	}
}

// bindingTarget reads from a request the node to which it binds a pod.
func bindingTarget(r *http.Request) string {
	body, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err != nil {
		return ""
	}
	object, _, err := clientgoscheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if binding, ok := object.(*corev1.Binding); ok && err == nil {
		return binding.Target.Name
	}
	return ""
}

// A node is cordoned between the plan and a binding that then fails: the member goes elsewhere.
func TestNodeCordonedBetweenPlanAndBinding(t *testing.T) {
	k := newCluster(t, 3, func(int) []v1alpha1.GPU { return a100s(2) })
	s := scheduler.Start(t, k.cp, scheduler.Options{})
	gate := newGate()
	var node atomic.Value
	node.Store("")
	gate.hold(s, func(r *http.Request) bool {
		if !process.IsBinding(r) || !strings.Contains(r.URL.Path, "/pods/g-1/") {
			return false
		}
		node.Store(bindingTarget(r))
		return true
	}, process.Fault{Status: http.StatusInternalServerError})
	k.group(t, "g", 2)
	k.gang(t, "g", 2, wholeGPUs(2))
	taken := k.placed(t, "g-0").Spec.NodeName
	require.Eventually(t, func() bool { return gate.held.Load() == 1 }, eventually, tick)
	cordoned := node.Load().(string)
	require.NotEmpty(t, cordoned)
	require.NotEqual(t, taken, cordoned)
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"unschedulable":true}}`))
	require.NoError(t, k.Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: cordoned}}, patch))
	// A pod that comes later and is placed shows that the scheduler knows.
	k.create(t, "probe")
	k.placed(t, "probe")
	close(gate.open)
	require.NotContains(t, []string{taken, cordoned}, k.placed(t, "g-1").Spec.NodeName)
	requireNothingHeld(t, s)
}

// A gang is half bound when its scheduler is killed, and what is left of the cluster cannot take the rest. The rest waits, says why,
// and holds nothing; it is placed as soon as there is room.
func TestGangHalfBoundWithoutRoomForTheRest(t *testing.T) {
	k := newCluster(t, 3, func(int) []v1alpha1.GPU { return a100s(2) })
	first := scheduler.Start(t, k.cp, scheduler.Options{})
	var bindings, held atomic.Int32
	first.Hold(func(r *http.Request) bool {
		if !process.IsBinding(r) || bindings.Add(1) <= 1 {
			return false
		}
		held.Add(1)
		return true
	})
	k.group(t, "g", 3)
	k.gang(t, "g", 3, wholeGPUs(2))
	require.Eventually(t, func() bool { return held.Load() == 2 && k.membersBound(t, "g") == 1 }, eventually, tick)
	first.Kill()
	taken := k.bound(t)[0].Spec.NodeName
	var lost string
	for _, node := range k.nodes {
		if node != taken {
			lost = node
		}
	}
	for i := range k.gpus[lost] {
		k.gpus[lost][i].Healthy, k.gpus[lost][i].UnhealthyReason = false, "Xid 79"
	}
	k.publish(t, lost)

	second := scheduler.Start(t, k.cp, scheduler.Options{})
	waiting := "g-1"
	if k.get(t, waiting).Spec.NodeName != "" {
		waiting = "g-0"
	}
	k.pendingFor(t, waiting, "PodGroup g waits", "1 of the 2 members needed fit")
	require.Equal(t, 1, k.membersBound(t, "g"))
	k.create(t, "other", wholeGPUs(2))
	k.placed(t, "other")
	requireNothingHeld(t, second)

	for i := range k.gpus[lost] {
		k.gpus[lost][i].Healthy, k.gpus[lost][i].UnhealthyReason = true, ""
	}
	k.publish(t, lost)
	k.delete(t, "other")
	k.gangPlaced(t, "g", 3)
	k.requireNoDoubleBooking(t)
}

// Members that terminate still have their GPUs. They must not count for those that replace them, of which one alone has room.
func TestGangReplacedWhileItTerminates(t *testing.T) {
	k := newCluster(t, 3, func(int) []v1alpha1.GPU { return a100s(2) })
	scheduler.Start(t, k.cp, scheduler.Options{})
	k.group(t, "g", 2)
	slow := func(p *corev1.Pod) { p.Finalizers = []string{"example.com/slow"} }
	k.gang(t, "g", 2, wholeGPUs(2), slow)
	k.gangPlaced(t, "g", 2)
	for i := range 2 {
		k.delete(t, fmt.Sprintf("g-%d", i))
	}
	for i := 2; i < 4; i++ {
		k.create(t, fmt.Sprintf("g-%d", i), inGroup("g"), wholeGPUs(2))
	}
	k.pendingFor(t, "g-2", "PodGroup g waits", "1 of the 2 members needed fit")
	k.pendingFor(t, "g-3", "PodGroup g waits")
	for i := range 2 {
		pod := k.get(t, fmt.Sprintf("g-%d", i))
		pod.Finalizers = nil
		require.NoError(t, k.Update(t.Context(), pod))
	}
	k.placed(t, "g-2")
	k.placed(t, "g-3")
}

// The scheduler's queue and the plugin watch PodGroups apart. Whichever sees the PodGroup later, after the pods, the gang starts.
func TestPodGroupSeenAfterItsPods(t *testing.T) {
	for _, first := range []int{0, 1} {
		t.Run(fmt.Sprintf("watch %d is ahead", first), func(t *testing.T) {
			k := newCluster(t, 1, func(int) []v1alpha1.GPU { return a100s(4) })
			s := scheduler.Start(t, k.cp, scheduler.Options{})
			open := []chan struct{}{make(chan struct{}), make(chan struct{})}
			var watches atomic.Int32
			s.Inject(func(r *http.Request) *process.Fault {
				if !process.Watches("podgroups")(r) {
					return nil
				}
				if n := watches.Add(1); int(n) <= len(open) {
					return &process.Fault{Until: open[n-1]}
				}
				return nil
			})
			s.CutConnections()
			require.Eventually(t, func() bool { return watches.Load() == 2 }, eventually, tick)
			k.group(t, "g", 2)
			close(open[first])
			k.create(t, "before", wholeGPUs(1))
			k.placed(t, "before")
			k.gang(t, "g", 2, wholeGPUs(1))
			k.create(t, "after", wholeGPUs(1))
			k.placed(t, "after")
			close(open[1-first])
			k.gangPlaced(t, "g", 2)
		})
	}
}
