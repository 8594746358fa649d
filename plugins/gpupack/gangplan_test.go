// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clientcache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	schedulerconfig "k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/testing/defaults"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/backend/queue"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// inTree makes a framework with kube-scheduler's own plugins on those nodes.
func inTree(t testing.TB, infos []fwk.NodeInfo) framework.Framework {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var nodes []*corev1.Node
	for _, info := range infos {
		nodes = append(nodes, info.Node())
	}
	metrics.Register()
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	fw, err := runtime.NewFramework(ctx, plugins.NewInTreeRegistry(), &schedulerconfig.KubeSchedulerProfile{
		SchedulerName: "gpupack", Plugins: defaults.ExpandedPluginsV1, PluginConfig: defaults.PluginConfigsV1,
	}, runtime.WithInformerFactory(factory), runtime.WithClientSet(fake.NewClientset()),
		runtime.WithSnapshotSharedLister(cache.NewSnapshot(nil, nodes)),
		runtime.WithPodNominator(queue.NewSchedulingQueue(nil, factory)))
	require.NoError(t, err)
	return fw
}

// idle is a profile that wakes nobody.
type idle struct{ framework.Framework }

func (idle) Activate(klog.Logger, map[string]*corev1.Pod) {}

// The scheduler's list has nodes in the order in which they came. Where a gang goes does not depend on it.
func TestGangsGoByTheNamesOfNodes(t *testing.T) {
	f := newProfile(t, 4, nil, func(i int, node *corev1.Node) { node.Name = fmt.Sprintf("node-%04d", 3-i) })
	f.p.handle = idle{f.fw}
	informer := f.fw.SharedInformerFactory().Core().V1().Pods().Informer()
	require.NoError(t, informer.AddIndexers(clientcache.Indexers{byGang: gangOfPod}))
	f.p.podIndexer = informer.GetIndexer()
	group := &schedulingv1alpha1.PodGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "g"}, Spec: schedulingv1alpha1.PodGroupSpec{MinMember: 3},
	}
	f.p.groups.byKey = map[types.NamespacedName]*schedulingv1alpha1.PodGroup{}
	f.p.groups.set(group)
	for i := range 3 {
		pod := asks(fmt.Sprintf("g-%d", i), map[corev1.ResourceName]string{v1alpha1.ResourceGPU: "8"})
		pod.Labels = map[string]string{v1alpha1.LabelPodGroup: "g"}
		require.NoError(t, f.p.podIndexer.Add(pod))
	}
	g, err := f.p.gang(types.NamespacedName{Namespace: "ns", Name: "g"})
	require.NoError(t, err)
	require.Nil(t, f.p.planGang(t.Context(), g))
	for _, pod := range g.pending {
		e, ok := f.p.ledger.get(pod.UID)
		require.True(t, ok)
		require.Equal(t, "node-000"+strings.TrimPrefix(pod.Name, "g-"), e.node)
	}
}

func BenchmarkPlanGang(b *testing.B) {
	const size, members = 5000, 1024
	p, infos := withNodes(b, size, policy.NewGPUPack(pack.NewDistribution(pack.DefaultClasses())))
	for i, info := range infos {
		info.Node().Labels = map[string]string{corev1.LabelHostname: info.Node().Name, "rack": fmt.Sprint(i / 16), "zone": fmt.Sprint(i % 3)}
		info.Node().Status.Allocatable[corev1.ResourcePods] = resource.MustParse("110")
		info.SetNode(info.Node())
	}
	fw := inTree(b, infos)
	nodes := p.states(infos)
	apart := func(pod *corev1.Pod) {
		pod.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
				LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"job": "g"}}, TopologyKey: corev1.LabelHostname,
			}},
		}}
	}
	spread := func(pod *corev1.Pod) {
		pod.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"job": "g"}},
		}}
	}
	for _, bb := range []struct {
		name   string
		spec   convert.GangSpec
		change func(*corev1.Pod)
	}{
		{"Anywhere", convert.GangSpec{}, nil},
		{"PreferredRack", convert.GangSpec{Topology: "rack"}, nil},
		{"RequiredZone", convert.GangSpec{Topology: "zone", TopologyRequired: true}, nil},
		{"AntiAffinity", convert.GangSpec{}, apart},
		{"Spread", convert.GangSpec{}, spread},
	} {
		b.Run(bb.name, func(b *testing.B) {
			p.args.TopologyDomains = map[string]string{"rack": "rack", "zone": "zone"}
			pending := make([]*corev1.Pod, members)
			for i := range pending {
				pending[i] = gpuPod(fmt.Sprintf("g-%d", i), "", "")
				pending[i].UID, pending[i].Labels = types.UID(pending[i].Name), map[string]string{"job": "g"}
				if bb.change != nil {
					bb.change(pending[i])
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				domains, err := p.gangDomains(gangOf(members, nil), &bb.spec, infos, nil)
				require.NoError(b, err)
				c, err := newGangConstraints(b.Context(), fw, infos, pending)
				require.NoError(b, err)
				placements, failure := p.chooser.PlanGangIn(nodes, &pack.Gang{Classes: c.requests, Members: c.members, Need: members, Domains: domains}, c)
				require.Nil(b, failure)
				require.Len(b, placements, members)
			}
		})
	}
}
