// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/backend/queue"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
	"github.com/gpupack/gpupack/plugins/config"
	_ "github.com/gpupack/gpupack/plugins/config/scheme"
)

// profile is a plugin within the shipped profile, with nodes of eight GPUs each and no API server.
type profile struct {
	p     *Plugin
	fw    framework.Framework
	infos []fwk.NodeInfo
	clock *clocktesting.FakeClock
	// read is the number of readings so far.
	read int
}

func newProfile(t testing.TB, nodes int, chosen pack.Policy, changes ...func(i int, node *corev1.Node)) *profile {
	metrics.Register()
	ctx := t.Context()
	var list []*corev1.Node
	for i := range nodes {
		resources := corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("512Gi"),
			corev1.ResourcePods: resource.MustParse("110"), v1alpha1.ResourceGPU: resource.MustParse("8"),
		}
		name := fmt.Sprintf("node-%04d", i)
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
			Status:     corev1.NodeStatus{Capacity: resources, Allocatable: resources},
		}
		for _, change := range changes {
			change(i, node)
		}
		list = append(list, node)
	}
	snapshot := cache.NewSnapshot(nil, list)
	f := &profile{clock: clocktesting.NewFakeClock(time.Now())}
	client := fake.NewClientset()
	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Lister()
	distribution := pack.NewDistribution(pack.DefaultClasses())
	if chosen == nil {
		var err error
		chosen, err = policy.New("gpupack", distribution)
		require.NoError(t, err)
	}
	f.p = &Plugin{
		preemption: &preemption{},
		args:       &config.GPUPackArgs{StaleAfter: metav1.Duration{Duration: time.Hour}}, clock: f.clock,
		chooser: pack.Chooser{Policy: chosen, Limits: pack.Limits{WholeForeignMiB: 512}, LoadWeight: 0.5},
		ledger:  newLedger(), telemetry: newTelemetry(chosen), groups: &podGroups{}, pods: pods,
		learning: newLearning(distribution, client, pods, "ns", "gpupack"),
		profile:  func() error { return nil },
	}
	f.p.gangs, f.p.reservations = newGangs(f.p), newReservations(f.p)
	f.p.telemetry.byKey = map[types.NamespacedName]*v1alpha1.GPUNode{}
	f.p.telemetry.synced = func() bool { return true }
	f.p.groups.synced = f.p.telemetry.synced

	registry := plugins.NewInTreeRegistry()
	require.NoError(t, registry.Register(Name, func(_ context.Context, _ runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
		f.p.handle = handle
		return f.p, nil
	}))
	file := "../../manifests/base/scheduler-config.yaml"
	_, err := os.Stat(file)
	require.NoError(t, err)
	cfg, err := options.LoadConfigFromFile(klog.Background(), file)
	require.NoError(t, err)
	f.fw, err = frameworkruntime.NewFramework(ctx, registry, &cfg.Profiles[0],
		frameworkruntime.WithSnapshotSharedLister(snapshot), frameworkruntime.WithInformerFactory(factory),
		frameworkruntime.WithClientSet(client), frameworkruntime.WithPodNominator(queue.NewTestQueue(ctx, f.p.Less)))
	require.NoError(t, err)
	f.infos, err = snapshot.NodeInfos().List()
	require.NoError(t, err)
	for _, info := range f.infos {
		f.publish(info.Node().Name, func(*v1alpha1.GPU) {})
	}
	return f
}

// publish gives a node a new reading.
func (f *profile) publish(node string, change func(*v1alpha1.GPU)) {
	f.read++
	gn := reading(node, 1, "A100", "A100", "A100", "A100", "A100", "A100", "A100", "A100")
	now := metav1.NewMicroTime(f.clock.Now())
	gn.ResourceVersion, gn.Status.ObservedTime, gn.Status.Mode = strconv.Itoa(f.read), &now, v1alpha1.ModeManage
	for i := range gn.Status.GPUs {
		gn.Status.GPUs[i].MemoryTotalMiB = 81920
		change(&gn.Status.GPUs[i])
	}
	f.p.telemetry.set(gn)
}

// cycle does what a scheduling cycle does until the pod is reserved; node is empty where none suits it. looked is how many nodes
// were filtered.
func (f *profile) cycle(t testing.TB, pod *corev1.Pod) (node string, d *decision, looked int) {
	ctx, state := t.Context(), framework.NewCycleState()
	only, status, _ := f.fw.RunPreFilterPlugins(ctx, state, pod)
	require.True(t, status.IsSuccess(), "%v", status)
	nodes := f.infos
	if !only.AllNodes() {
		nodes = nil
		for name := range only.NodeNames {
			info, err := f.fw.SnapshotSharedLister().NodeInfos().Get(name)
			require.NoError(t, err)
			nodes = append(nodes, info)
		}
	}
	feasible := make([]fwk.NodeInfo, len(nodes))
	f.fw.Parallelizer().Until(ctx, len(nodes), func(i int) {
		if f.fw.RunFilterPluginsWithNominatedPods(ctx, state, pod, nodes[i]).IsSuccess() {
			feasible[i] = nodes[i]
		}
	}, "Filter")
	n := 0
	for _, info := range feasible {
		if info != nil {
			feasible[n], n = info, n+1
		}
	}
	switch feasible = feasible[:n]; n {
	case 0:
		return "", nil, len(nodes)
	case 1:
		node = feasible[0].Node().Name
	default:
		require.True(t, f.fw.RunPreScorePlugins(ctx, state, pod, feasible).IsSuccess())
		scores, status := f.fw.RunScorePlugins(ctx, state, pod, feasible)
		require.True(t, status.IsSuccess(), "%v", status)
		best := int64(-1)
		for _, s := range scores {
			if s.TotalScore > best {
				node, best = s.Name, s.TotalScore
			}
		}
	}
	require.True(t, f.p.Reserve(ctx, state, pod, node).IsSuccess())
	return node, decisionOf(state), len(nodes)
}

// assume puts the pod on the node, as the framework does before Reserve.
func (f *profile) assume(t testing.TB, pod *corev1.Pod, node string) {
	pod.Spec.NodeName = node
	podInfo, err := framework.NewPodInfo(pod)
	require.NoError(t, err)
	info, err := f.fw.SnapshotSharedLister().NodeInfos().Get(node)
	require.NoError(t, err)
	info.AddPodInfo(podInfo)
}

func asks(name string, requests map[corev1.ResourceName]string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Annotations: map[string]string{}, Labels: map[string]string{}},
		Spec:       corev1.PodSpec{SchedulerName: "gpupack", Containers: []corev1.Container{{Name: "main"}}},
	}
	list := corev1.ResourceList{}
	for name, q := range requests {
		list[name] = resource.MustParse(q)
	}
	pod.Spec.Containers[0].Resources.Requests = list
	return pod
}

// Whatever the cluster looks like, the few nodes that a cycle looks at are those that looking at all would have led to.
func TestShortlistLeadsToTheSamePlace(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	var tainted corev1.Taint
	f := newProfile(t, 60, nil, func(i int, node *corev1.Node) {
		node.Labels["pool"] = fmt.Sprint(i % 7)
		switch i % 10 {
		case 3:
			tainted = corev1.Taint{Key: "rack", Value: "hot", Effect: corev1.TaintEffectPreferNoSchedule}
			node.Spec.Taints = []corev1.Taint{tainted}
		case 4:
			node.Spec.Taints = []corev1.Taint{{Key: "team", Value: "x", Effect: corev1.TaintEffectNoSchedule}}
		case 5:
			node.Status.Allocatable = node.Status.Allocatable.DeepCopy()
			node.Status.Allocatable[corev1.ResourceCPU] = resource.MustParse("10")
		case 6:
			node.Spec.Unschedulable = true
		}
	})
	short, placed := 0, 0
	type gone struct {
		pod  *corev1.Pod
		node string
	}
	var there []gone
	for i := range 700 {
		for range rng.IntN(3) {
			f.publish(fmt.Sprintf("node-%04d", rng.IntN(60)), func(g *v1alpha1.GPU) {
				g.Utilization = int32(rng.IntN(100))
				g.Healthy = rng.IntN(50) > 0
				if rng.IntN(20) == 0 {
					g.MemoryForeignMiB, g.MemoryUsedMiB = 20000, 20000
				}
			})
		}
		if rng.IntN(100) == 0 {
			f.clock.Step(20 * time.Minute)
		}
		requests := map[corev1.ResourceName]string{corev1.ResourceCPU: pick("100m", "1", "5", "16"), corev1.ResourceMemory: pick("100M", "1Gi", "60Gi")}
		switch rng.IntN(3) {
		case 0:
			requests[v1alpha1.ResourceGPU] = pick("1", "2", "4", "8")
		case 1:
			requests[v1alpha1.ResourceGPUMemory] = pick("10Gi", "30Gi", "70Gi")
		case 2:
			requests[v1alpha1.ResourceGPUMilli] = pick("200", "500", "900")
		}
		pod := asks(fmt.Sprintf("pod-%03d", i), requests)
		if rng.IntN(4) == 0 {
			pod.Spec.NodeSelector = map[string]string{"pool": fmt.Sprint(rng.IntN(7))}
		}
		if rng.IntN(6) == 0 {
			pod.Annotations[v1alpha1.AnnotationMaxLiveUtilization] = "40"
		}
		if rng.IntN(10) == 0 {
			pod.Labels["app"] = "lonely"
			pod.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
				LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "lonely"}}, TopologyKey: corev1.LabelHostname,
			}}}}
		}
		if rng.IntN(10) == 0 {
			// A plan holds a place.
			f.p.ledger.put(&entry{
				uid: types.UID(fmt.Sprint("planned-", i)), node: fmt.Sprintf("node-%04d", rng.IntN(60)), phase: planned,
				request: pack.Request{CPUMilli: 20000, MemoryMiB: 1 << 10},
			})
		} else if rng.IntN(10) == 0 {
			for uid, e := range f.p.ledger.byUID {
				if e.phase == planned {
					f.p.ledger.drop(uid)
				}
			}
		}

		// A nominated pod is tried everywhere where its node does not suit it; here there is no such node.
		everywhere := pod.DeepCopy()
		everywhere.Status.NominatedNodeName = "none"
		wantNode, want, all := f.cycle(t, everywhere)
		require.Equal(t, 60, all)
		f.p.ledger.drop(pod.UID)
		node, got, looked := f.cycle(t, pod)
		require.Equal(t, wantNode, node, "pod %d asks for %v", i, requests)
		if looked < all {
			short++
		}
		if node == "" {
			if len(there) > 0 {
				at := rng.IntN(len(there))
				info, err := f.fw.SnapshotSharedLister().NodeInfos().Get(there[at].node)
				require.NoError(t, err)
				require.NoError(t, info.RemovePod(klog.Background(), there[at].pod))
				f.p.ledger.drop(there[at].pod.UID)
				there = append(there[:at], there[at+1:]...)
			}
			continue
		}
		placed++
		require.Equal(t, want.gpus, got.gpus, "pod %d", i)
		require.Equal(t, want.record.Score, got.record.Score)
		require.Equal(t, want.record.RunnerUp, got.record.RunnerUp)
		require.GreaterOrEqual(t, got.record.Feasible, want.record.Feasible)
		f.assume(t, pod, node)
		there = append(there, gone{pod, node})
	}
	t.Logf("%d placed, %d by a shortlist", placed, short)
	require.Greater(t, short, placed/2)
}

func BenchmarkCycle(b *testing.B) {
	for name, telemetry := range map[string]int{"still": 0, "telemetry": 1} {
		for kind, requests := range map[string]map[corev1.ResourceName]string{
			"whole": {corev1.ResourceCPU: "1", v1alpha1.ResourceGPU: "1"},
			"share": {corev1.ResourceCPU: "1", v1alpha1.ResourceGPUMemory: "10Gi"},
		} {
			for _, all := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/%s/all=%v", kind, name, all), func(b *testing.B) {
					f := newProfile(b, 5000, nil)
					f.p.update(f.infos)
					i := 0
					b.ReportAllocs()
					for b.Loop() {
						for range telemetry {
							f.publish(fmt.Sprintf("node-%04d", rand.IntN(5000)), func(g *v1alpha1.GPU) { g.Utilization = int32(rand.IntN(100)) })
						}
						pod := asks(fmt.Sprintf("pod-%d", i), requests)
						if all {
							pod.Status.NominatedNodeName = "none"
						}
						node, _, _ := f.cycle(b, pod)
						f.assume(b, pod, node)
						i++
					}
				})
			}
		}
	}
}

// Telemetry that comes within a cycle does not rule out the few nodes that it looks at: the others would not be asked.
func TestShortlistHoldsThroughTheCycle(t *testing.T) {
	f := newProfile(t, 4, nil)
	pod := asks("p", map[corev1.ResourceName]string{v1alpha1.ResourceGPU: "1"})
	state := framework.NewCycleState()
	only, status, _ := f.fw.RunPreFilterPlugins(t.Context(), state, pod)
	require.True(t, status.IsSuccess())
	require.Len(t, only.NodeNames, 2)
	for _, info := range f.infos {
		f.publish(info.Node().Name, func(g *v1alpha1.GPU) { g.Healthy = false })
	}
	for _, info := range f.infos {
		got := f.fw.RunFilterPluginsWithNominatedPods(t.Context(), state, pod, info)
		require.Equal(t, only.NodeNames.Has(info.Node().Name), got.IsSuccess(), info.Node().Name)
	}
	// The next cycle knows.
	node, _, looked := f.cycle(t, asks("q", map[corev1.ResourceName]string{v1alpha1.ResourceGPU: "1"}))
	require.Empty(t, node)
	require.Equal(t, 4, looked, "so that the reasons are those of all nodes")
}

// What makes other plugins tell nodes apart makes the cycle look at all of them.
func TestNoShortlistWhereOthersCount(t *testing.T) {
	term := corev1.PodAffinityTerm{LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}, TopologyKey: corev1.LabelHostname}
	for name, change := range map[string]func(*corev1.Pod){
		"preferred nodes": func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{
				{Weight: 1, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "x", Operator: corev1.NodeSelectorOpExists}}}},
			}}}
		},
		"preferred neighbours": func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 1, PodAffinityTerm: term}}}}
		},
		"avoided neighbours": func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 1, PodAffinityTerm: term}}}}
		},
		"soft spreading": func(p *corev1.Pod) {
			p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
				MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: term.LabelSelector,
			}}
		},
		"nominated": func(p *corev1.Pod) { p.Status.NominatedNodeName = "node-0001" },
		"no GPU":    func(p *corev1.Pod) { delete(p.Spec.Containers[0].Resources.Requests, v1alpha1.ResourceGPU) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newProfile(t, 10, nil)
			pod := asks("p", map[corev1.ResourceName]string{v1alpha1.ResourceGPU: "1", corev1.ResourceCPU: "1"})
			change(pod)
			_, _, looked := f.cycle(t, pod)
			require.Equal(t, 10, looked)
		})
	}
	t.Run("the best node is to be avoided", func(t *testing.T) {
		f := newProfile(t, 10, nil, func(_ int, node *corev1.Node) {
			if node.Name == "node-0000" {
				node.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectPreferNoSchedule}}
			}
		})
		_, _, looked := f.cycle(t, asks("p", map[corev1.ResourceName]string{v1alpha1.ResourceGPU: "1"}))
		require.Equal(t, 10, looked)
	})
	t.Run("random policy", func(t *testing.T) {
		f := newProfile(t, 10, &policy.Random{})
		_, _, looked := f.cycle(t, asks("p", map[corev1.ResourceName]string{v1alpha1.ResourceGPU: "1"}))
		require.Equal(t, 10, looked)
	})
}

// activations is a handle that notes which pods the plugin wakes.
type activations struct {
	fwk.Handle
	pods []string
}

func (a *activations) Activate(_ klog.Logger, pods map[string]*corev1.Pod) {
	for name := range pods {
		a.pods = append(a.pods, name)
	}
}

// Where none of the few nodes takes the pod in the end, it is tried again soon, and nothing is evicted for it.
func TestShortlistThatFailsIsTriedAgain(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Now())
	handle := &activations{}
	p := &Plugin{handle: handle, clock: clock, args: &config.GPUPackArgs{}}
	p.reservations = newReservations(p)
	state := framework.NewCycleState()
	state.Write(cycleKey, &cycle{rejected: &rejections{}, short: &shortlist{}})
	_, status := p.PostFilter(t.Context(), state, asks("p", nil), nil)
	require.Equal(t, fwk.UnschedulableAndUnresolvable, status.Code())
	require.Empty(t, handle.pods)
	clock.Step(time.Second)
	require.Equal(t, []string{"ns/p"}, handle.pods)
}
