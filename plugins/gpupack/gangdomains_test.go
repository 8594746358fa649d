// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	fwk "k8s.io/kube-scheduler/framework"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

func gangOf(minMember int32, minResources corev1.ResourceList) *gang {
	return &gang{
		name:  types.NamespacedName{Namespace: "ns", Name: "g"},
		group: &schedulingv1alpha1.PodGroup{Spec: schedulingv1alpha1.PodGroupSpec{MinMember: minMember, MinResources: minResources}},
	}
}

func TestGangDomains(t *testing.T) {
	p, infos := withNodes(t, 5, policy.BestFit{})
	p.args.TopologyDomains = map[string]string{"rack": "example.com/rack", "zone": "example.com/zone"}
	for i, rack := range []string{"r10", "r9", "", "r9", "r10"} {
		if rack != "" {
			infos[i].Node().Labels = map[string]string{"example.com/rack": rack}
		}
	}
	on := func(nodes ...string) []holder {
		var out []holder
		for _, node := range nodes {
			out = append(out, holder{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "on-" + node}}, node})
		}
		return out
	}
	rack := func(required bool, held ...int) *pack.Domains {
		return &pack.Domains{Kind: "rack", Names: []string{"r9", "r10"}, Of: []int{1, 0, -1, 0, 1}, Required: required, Held: held}
	}
	tests := []struct {
		name    string
		spec    convert.GangSpec
		holders []holder
		want    *pack.Domains
		err     string
	}{
		{"none", convert.GangSpec{}, nil, nil, ""},
		{"preferred", convert.GangSpec{Topology: "rack"}, nil, rack(false), ""},
		{"required", convert.GangSpec{Topology: "rack", TopologyRequired: true}, nil, rack(true), ""},
		{"members are there", convert.GangSpec{Topology: "rack", TopologyRequired: true}, on("node-1", "node-3"), rack(true, 0), ""},
		{"members in two", convert.GangSpec{Topology: "rack"}, on("node-0", "node-1", "node-2", "gone"), rack(false, 0, 1), ""},
		{"members in two though one is required", convert.GangSpec{Topology: "rack", TopologyRequired: true}, on("node-0", "node-1"), nil,
			"PodGroup g must be in one rack, but members are in 2 of them already (r9, r10): delete those in all but one"},
		{"a member in none though one is required", convert.GangSpec{Topology: "rack", TopologyRequired: true}, on("node-2"), nil,
			"PodGroup g must be in one rack, but its member on-node-2 has node node-2 without the label example.com/rack: label the node, or delete that member"},
		{"no labels, preferred", convert.GangSpec{Topology: "zone"}, nil, &pack.Domains{Kind: "zone", Of: []int{-1, -1, -1, -1, -1}}, ""},
		{"no labels, required", convert.GangSpec{Topology: "zone", TopologyRequired: true}, nil, nil,
			"PodGroup g must be in one zone, but no node has the label example.com/zone that tells its zone: label the nodes"},
		{"unknown", convert.GangSpec{Topology: "row"}, nil, nil,
			`PodGroup g has annotation gpupack.dev/topology of "row", a kind of domain that this scheduler does not know: write one of rack, zone`},
		{"unknown, required", convert.GangSpec{Topology: "row", TopologyRequired: true}, nil, nil,
			`PodGroup g has annotation gpupack.dev/topology-required of "row", a kind of domain that this scheduler does not know: write one of rack, zone`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := p.gangDomains(gangOf(1, nil), &tt.spec, infos, tt.holders)
			if tt.err != "" {
				require.EqualError(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			if d != nil && len(d.Names) == 0 {
				d.Names = nil
			}
			if d != nil && len(d.Held) == 0 {
				d.Held = nil
			}
			assert.Equal(t, tt.want, d)
		})
	}
	t.Run("none known", func(t *testing.T) {
		p.args.TopologyDomains = nil
		_, err := p.gangDomains(gangOf(1, nil), &convert.GangSpec{Topology: "rack"}, infos, nil)
		require.EqualError(t, err,
			`PodGroup g has annotation gpupack.dev/topology of "rack", but this scheduler knows no kind of domain: set topologyDomains in its configuration`)
	})
}

func TestRanks(t *testing.T) {
	named := func(name string, labels ...string) *corev1.Pod {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		for i := 0; i < len(labels); i += 2 {
			pod.Labels[labels[i]] = labels[i+1]
		}
		return pod
	}
	const index = "batch.kubernetes.io/job-completion-index"
	annotated := named("b")
	annotated.Annotations = map[string]string{index: "1"}
	jobSet := func(name, part, job, completion string) *corev1.Pod {
		return named(name, jobSetReplicatedJob, part, jobSetJobIndex, job, index, completion)
	}
	tests := []struct {
		name string
		pods []*corev1.Pod
	}{
		{"by name", []*corev1.Pod{named("w-0"), named("w-9"), named("w-10")}},
		{"Indexed Job", []*corev1.Pod{named("z", index, "0"), annotated, named("a", index, "2"), named("y", index, "10")}},
		{"JobSet", []*corev1.Pod{jobSet("z", "w", "0", "0"), jobSet("y", "w", "0", "1"), jobSet("x", "w", "1", "0"), jobSet("w", "x", "0", "0")}},
		{"Kubeflow", []*corev1.Pod{
			named("z", kubeflowReplicaIndex, "0", kubeflowReplicaType, "master"),
			named("y", kubeflowReplicaIndex, "0", kubeflowReplicaType, "worker"),
			named("x", kubeflowReplicaIndex, "1", kubeflowReplicaType, "worker"),
		}},
		{"numbers that are none come last", []*corev1.Pod{named("z", index, "7"), named("a", index, "-1"), named("b", index, "x"), named("c")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := slices.Clone(tt.pods)
			slices.Reverse(got)
			slices.SortFunc(got, compareRanks)
			assert.Equal(t, tt.pods, got)
		})
	}
}

func TestClassesOfMembers(t *testing.T) {
	member := func(index, role string, change func(*corev1.Pod)) *corev1.Pod {
		pod := gpuPod("a-"+index, "", "")
		pod.Labels = map[string]string{"batch.kubernetes.io/job-completion-index": index, "role": role}
		if change != nil {
			change(pod)
		}
		return pod
	}
	apart := func(key, topology string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			pod.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
					LabelSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOpExists}}},
					TopologyKey:   topology,
				}},
			}}
		}
	}
	classes := func(pods ...*corev1.Pod) int {
		selected, keys := selectedLabels(pods), sets.New[string]()
		for _, pod := range pods {
			keys.Insert(classKey(pod, selected))
		}
		return keys.Len()
	}
	assert.Equal(t, 1, classes(member("0", "w", nil), member("1", "w", nil)))
	assert.Equal(t, 2, classes(member("0", "w", nil), member("1", "launcher", nil)), "another pod may repel one of them")
	assert.Equal(t, 1, classes(member("0", "w", apart("role", corev1.LabelHostname)), member("1", "w", apart("role", corev1.LabelHostname))))
	index := apart("batch.kubernetes.io/job-completion-index", corev1.LabelHostname)
	assert.Equal(t, 2, classes(member("0", "w", index), member("1", "w", index)))

	plain, host, zone := member("0", "w", nil), member("0", "w", apart("role", corev1.LabelHostname)), member("0", "w", apart("role", corev1.LabelTopologyZone))
	spread := member("0", "w", func(pod *corev1.Pod) {
		pod.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{WhenUnsatisfiable: corev1.DoNotSchedule}}
	})
	assert.Equal(t, []bool{false, true, true, true}, []bool{interacts(plain), interacts(host), interacts(zone), interacts(spread)})
	assert.Equal(t, []bool{false, false, true, true},
		[]bool{reachesElsewhere(plain), reachesElsewhere(host), reachesElsewhere(zone), reachesElsewhere(spread)})
}

func TestMinResources(t *testing.T) {
	p, infos := withNodes(t, 2, policy.BestFit{})
	infos[1].Node().Spec.Unschedulable = true
	var pods []*corev1.Pod
	for i := range 4 {
		pods = append(pods, gpuPod(fmt.Sprint(i), "", ""))
		pods[i].Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("4")
	}
	list := func(name corev1.ResourceName, q string) corev1.ResourceList {
		return corev1.ResourceList{name: resource.MustParse(q)}
	}
	tests := []struct {
		name         string
		want         corev1.ResourceList
		held, placed int
		err          string
	}{
		{"not set", nil, 0, 1, ""},
		{"met", list("nvidia.com/gpu", "2"), 0, 2, ""},
		{"met with members that are there", list("nvidia.com/gpu", "2"), 1, 1, ""},
		{"elastic members are needed", list("nvidia.com/gpu", "3"), 0, 2,
			"its minResources want 3 of nvidia.com/gpu, and the members that fit at once ask for 2"},
		{"pods", list("pods", "3"), 0, 2, "its minResources want 3 of pods, and the members that fit at once ask for 2"},
		{"more than members ask for, and there is room", list("cpu", "60"), 0, 4, ""},
		{"more than members ask for, and there is no room", list("cpu", "65"), 0, 4,
			"its minResources want 65 of cpu, more than its members ask for (16), and the cluster has room for 64"},
		{"GPUs", list("nvidia.com/gpu", "9"), 0, 4,
			"its minResources want 9 of nvidia.com/gpu, more than its members ask for (4), and the cluster has room for 8"},
		{"shares", list("gpupack.dev/gpu-milli", "9000"), 0, 4,
			"its minResources want 9k of gpupack.dev/gpu-milli, more than its members ask for (0), and the cluster has room for 8k"},
		{"memory", list("memory", "65Gi"), 0, 4,
			"its minResources want 65Gi of memory, more than its members ask for (0), and the cluster has room for 64Gi"},
		{"nobody has it", list("example.com/x", "1"), 0, 4,
			"its minResources want 1 of example.com/x, more than its members ask for (0), and the cluster has room for 0"},
		{"a gang that has started may grow", list("nvidia.com/gpu", "9"), 2, 1, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := gangOf(2, tt.want)
			g.held, g.pending = tt.held, pods[tt.held:]
			var holders []holder
			for _, pod := range pods[:tt.held] {
				holders = append(holders, holder{pod, "node-0"})
			}
			err := g.checkMinResources(pods[tt.held:tt.held+tt.placed], holders, infos, p.states(infos))
			if tt.err == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, tt.err)
		})
	}
}

// states are the packing states of nodes.
func (p *Plugin) states(infos []fwk.NodeInfo) []*pack.Node {
	out := make([]*pack.Node, len(infos))
	for i := range infos {
		out[i] = p.node(infos[i])
	}
	return out
}
