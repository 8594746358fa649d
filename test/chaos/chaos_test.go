// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/embedded"
	"github.com/gpupack/gpupack/test/process"
	"github.com/gpupack/gpupack/test/scheduler"
)

// Each round is a sequence of actions that follows from its seed; how they meet in time does not. Repeat a round with
// -chaos.seed=SEED.
func TestChaos(t *testing.T) {
	cp := embedded.Get(t)
	require.NoError(t, scheduler.Install(t.Context(), cp))
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	end := time.Now().Add(*duration)
	for round := first; round == first || time.Now().Before(end); round++ {
		if !t.Run(fmt.Sprintf("seed=%d", round), func(t *testing.T) {
			require.NoError(t, flag.Set("rapid.seed", strconv.FormatUint(round, 10)))
			rapid.Check(t, func(rt *rapid.T) { oneRound(t, cp, rt) })
		}) {
			return
		}
	}
}

// oneRound fails t, not rt, at the first thing that is wrong.
func oneRound(t *testing.T, cp *embedded.ControlPlane, rt *rapid.T) {
	w := newWorld(t, cp)
	defer w.report()
	actions := w.actions()
	actions[""] = func(*rapid.T) {
		w.restart()
		require.Empty(t, w.audit.found())
	}
	rt.Repeat(actions)
	w.quiet()
}

// quiet ends all faults and checks what must then be.
func (w *world) quiet() {
	w.did("end all faults")
	for _, s := range w.replicas {
		s.Inject(nil)
	}
	w.restart()
	begin := time.Now()
	s := w.settled()
	w.did("settled after %s, half bound for lack of room: %v", time.Since(begin).Round(time.Millisecond), s.half)
	require.Empty(w.t, w.audit.found())

	// What is half bound is whole as soon as there is room.
	for _, name := range w.nodes {
		w.cordon(name, false)
		clear(w.sick)
		w.publish(name)
	}
	for _, pod := range w.singles {
		w.deletePod(pod)
	}
	w.singles = nil
	for _, g := range append([]*gang(nil), w.gangs...) {
		if len(s.half) == 0 || g.name != s.half[0] {
			w.deleteGang(g)
			w.did("delete gang %s", g.name)
		}
	}
	if s = w.settled(); len(s.half) > 0 {
		// A gang that asks for more than the cluster has cannot be whole.
		w.did("half bound in an empty cluster: %v", s.half)
	}
	for len(w.gangs) > 0 {
		w.deleteGang(w.gangs[0])
	}

	// Nothing has leaked: a gang that needs every GPU finds its place.
	all := &gang{name: "all", gpus: gpusPerNode}
	w.did("create gang all of every GPU")
	w.createGroup(all.name, nodeCount)
	for range nodeCount {
		w.addMember(all)
	}
	w.gangs = []*gang{all}
	w.settled()
	for _, pod := range w.pods()[all.name] {
		require.NotEmpty(w.t, pod.Spec.NodeName, "pod %s", pod.Name)
	}
	for _, s := range w.replicas {
		require.Eventually(w.t, func() bool {
			metrics := s.Metrics(w.t)
			return zero(metrics, "planned") && zero(metrics, "assumed") &&
				strings.Contains(metrics, fmt.Sprintf(`gpupack_scheduler_ledger_entries{phase="bound"} %d`, nodeCount))
		}, settle, tick, "the ledger of a replica keeps what nobody has: %s", later(func() any {
			return ledgerLines(s.Metrics(w.t))
		}))
	}
	require.Empty(w.t, w.audit.found())
	w.did("done")
}

// zero says whether the ledger has nothing in that phase.
func zero(metrics, phase string) bool {
	name := fmt.Sprintf(`gpupack_scheduler_ledger_entries{phase="%s"} `, phase)
	return !strings.Contains(metrics, name) || strings.Contains(metrics, name+"0\n")
}

func ledgerLines(metrics string) (out []string) {
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "gpupack_scheduler_ledger_entries") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// report says what was done, if the round failed.
func (w *world) report() {
	if !w.t.Failed() {
		w.t.Logf("%d actions, %d bindings, %d schedulers; %s", len(w.log), w.audit.bindings, len(w.all), w.settling())
		return
	}
	w.t.Logf("what was done:\n%s", strings.Join(w.log, "\n"))
	for _, g := range w.gangs {
		if group := w.group(g.name); group != nil {
			w.t.Logf("PodGroup %s needs %d", group.Name, group.Spec.MinMember)
		}
	}
	for _, pods := range w.pods() {
		for i := range pods {
			w.t.Logf("pod %s on %q: %s", pods[i].Name, pods[i].Spec.NodeName, reason(&pods[i]))
		}
	}
	w.t.Logf("room: %+v", w.rooms())
	if *logs == "" {
		return
	}
	for i, s := range w.all {
		path := filepath.Join(*logs, fmt.Sprintf("scheduler-%d.log", i))
		if err := os.WriteFile(path, []byte(s.Log()), 0o644); err != nil {
			w.t.Logf("writing a log: %v", err)
		}
	}
}

func (w *world) settling() string {
	for _, line := range w.log {
		if _, text, ok := strings.Cut(line, "settled after "); ok {
			return "settled after " + text
		}
	}
	return ""
}

func (w *world) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"create gang": func(rt *rapid.T) { w.drawGang(rt) },
		"create gang and kill the leader": func(rt *rapid.T) {
			leader := w.leader()
			if leader < 0 {
				rt.Skip()
			}
			after := int32(rapid.IntRange(0, 8).Draw(rt, "requests before the kill"))
			var seen atomic.Int32
			reached := make(chan struct{})
			once := sync.OnceFunc(func() { close(reached) })
			w.did("kill replica %d at the request %d that binds", leader, after)
			w.replicas[leader].Inject(func(r *http.Request) *process.Fault {
				if !process.IsBinding(r) || seen.Add(1) <= after {
					return nil
				}
				once()
				return &process.Fault{Hold: true}
			})
			w.drawGang(rt)
			select {
			case <-reached:
			case <-time.After(2 * time.Second):
			}
			w.kill(leader)
		},
		"create single pod": func(rt *rapid.T) {
			if len(w.singles) > 9 {
				rt.Skip()
			}
			requests := gpus(rapid.IntRange(0, 2).Draw(rt, "GPUs, 0 for a share"))
			if _, whole := requests[v1alpha1.ResourceGPU]; !whole {
				requests[v1alpha1.ResourceGPUMemory] = *resource.NewQuantity(shareMiB<<20, resource.BinarySI)
			}
			name := fmt.Sprintf("single-%d", w.counter)
			w.counter++
			w.did("create pod %s %v", name, requests)
			w.createPod(name, "", requests)
			w.singles = append(w.singles, name)
		},
		"delete single pod": func(rt *rapid.T) {
			if len(w.singles) == 0 {
				rt.Skip()
			}
			i := rapid.IntRange(0, len(w.singles)-1).Draw(rt, "single pod")
			w.did("delete pod %s", w.singles[i])
			w.deletePod(w.singles[i])
			w.singles = append(w.singles[:i], w.singles[i+1:]...)
		},
		"delete member": func(rt *rapid.T) {
			g := w.anyGang(rt)
			name := fmt.Sprintf("%s-%d", g.name, rapid.IntRange(0, max(0, g.next-1)).Draw(rt, "member"))
			w.did("delete pod %s", name)
			w.deletePod(name)
		},
		"add member": func(rt *rapid.T) {
			g := w.anyGang(rt)
			if g.next > 14 {
				rt.Skip()
			}
			w.did("add member %s-%d", g.name, g.next)
			w.addMember(g)
		},
		"edit PodGroup": func(rt *rapid.T) {
			g := w.anyGang(rt)
			need := rapid.Int32Range(1, int32(g.next)+1).Draw(rt, "minMember")
			if group := w.group(g.name); group != nil {
				w.did("PodGroup %s needs %d instead of %d", g.name, need, group.Spec.MinMember)
				group.Spec.MinMember = need
				require.NoError(w.t, w.Update(w.t.Context(), group))
			}
		},
		"delete or create PodGroup": func(rt *rapid.T) {
			g := w.anyGang(rt)
			if w.group(g.name) != nil {
				w.did("delete PodGroup %s", g.name)
				w.deleteGroup(g.name)
				return
			}
			need := rapid.IntRange(1, g.next).Draw(rt, "minMember")
			w.did("create PodGroup %s, which needs %d", g.name, need)
			w.createGroup(g.name, need)
		},
		"delete gang": func(rt *rapid.T) {
			g := w.anyGang(rt)
			w.did("delete gang %s", g.name)
			w.deleteGang(g)
		},
		"cordon or uncordon": func(rt *rapid.T) {
			node := rapid.SampledFrom(w.nodes).Draw(rt, "node")
			on := rapid.Bool().Draw(rt, "cordon")
			w.did("cordon %s: %v", node, on)
			w.cordon(node, on)
		},
		"GPU falls sick or recovers": func(rt *rapid.T) {
			node := rapid.SampledFrom(w.nodes).Draw(rt, "node")
			gpu := gpuName(node, rapid.IntRange(0, gpusPerNode-1).Draw(rt, "GPU"))
			w.sick[gpu] = !w.sick[gpu]
			w.did("%s is sick: %v", gpu, w.sick[gpu])
			w.publish(node)
		},
		"kill a scheduler": func(rt *rapid.T) {
			w.kill(rapid.IntRange(0, 1).Draw(rt, "replica"))
		},
		"cut connections": func(rt *rapid.T) {
			replica := rapid.IntRange(0, 1).Draw(rt, "replica")
			w.did("cut the connections of replica %d", replica)
			w.replicas[replica].CutConnections()
		},
		"inject faults":    w.inject,
		"inject faults 2":  w.inject,
		"wait for binding": func(rt *rapid.T) { w.awaitBindings(rapid.IntRange(1, 4).Draw(rt, "pods")) },
	}
}

func (w *world) anyGang(rt *rapid.T) *gang {
	if len(w.gangs) == 0 {
		rt.Skip()
	}
	return w.gangs[rapid.IntRange(0, len(w.gangs)-1).Draw(rt, "gang")]
}

// drawGang creates a gang, its PodGroup before its members or after them.
func (w *world) drawGang(rt *rapid.T) {
	members := rapid.IntRange(1, 10).Draw(rt, "members")
	need := rapid.IntRange(1, members).Draw(rt, "minMember")
	each := rapid.SampledFrom([]int{0, 1, 1, 2, 2, 4}).Draw(rt, "GPUs of each")
	early := rapid.Bool().Draw(rt, "PodGroup first")
	if len(w.gangs) > 5 {
		w.did("delete gang %s", w.gangs[0].name)
		w.deleteGang(w.gangs[0])
	}
	g := &gang{name: fmt.Sprintf("gang-%d", w.counter), gpus: each}
	w.counter++
	w.did("create gang %s of %d members, needs %d, %d GPUs each, PodGroup first %v", g.name, members, need, each, early)
	if early {
		w.createGroup(g.name, need)
	}
	for range members {
		w.addMember(g)
	}
	if !early {
		w.createGroup(g.name, need)
	}
	w.gangs = append(w.gangs, g)
}

// inject draws what goes wrong with which requests of a replica, and for how many of them.
func (w *world) inject(rt *rapid.T) {
	replica := rapid.IntRange(0, 1).Draw(rt, "replica")
	which := rapid.SampledFrom([]string{"binds", "binds", "writes", "reads and writes"}).Draw(rt, "requests")
	fault := rapid.SampledFrom([]process.Fault{
		{Status: http.StatusConflict}, {Status: http.StatusTooManyRequests}, {Status: http.StatusInternalServerError},
		{Delay: 300 * time.Millisecond}, {Delay: 3 * time.Second}, {Cut: true}, {Cut: true, Applied: true},
		{Delay: time.Second, Cut: true}, {Delay: 500 * time.Millisecond, Cut: true, Applied: true},
	}).Draw(rt, "fault")
	every := rapid.Int32Range(1, 3).Draw(rt, "every")
	times := rapid.Int32Range(1, 20).Draw(rt, "times")
	w.did("%+v befalls each %d. of those that %s of replica %d, %d times", fault, every, which, replica, times)
	var seen, done atomic.Int32
	w.replicas[replica].Inject(func(r *http.Request) *process.Fault {
		var matches bool
		switch which {
		case "binds":
			matches = process.IsBinding(r)
		case "writes":
			matches = r.Method != http.MethodGet
		default:
			matches = true
		}
		if !matches || seen.Add(1)%every != 0 || done.Add(1) > times {
			return nil
		}
		f := fault
		return &f
	})
}

// awaitBindings waits until so many more pods are bound, for a second at most.
func (w *world) awaitBindings(more int) {
	a := w.audit
	over := false
	timer := time.AfterFunc(time.Second, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		over = true
		a.bound.Broadcast()
	})
	defer timer.Stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	for goal := a.bindings + more; a.bindings < goal && !over; {
		a.bound.Wait()
	}
}
