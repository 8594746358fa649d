// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// snapshotOf writes down a cluster.
func snapshotOf(t *testing.T, objects ...client.Object) string {
	t.Helper()
	return written(t, "cluster.yaml", saved(t, objects))
}

// waitingFleet is the small cluster with its pending pods.
func waitingFleet(t *testing.T) string { return snapshotOf(t, append(fleet(), pending()...)...) }

func TestWhatIfGolden(t *testing.T) {
	all := waitingFleet(t)
	some := snapshotOf(t, append(fleet(), slices.DeleteFunc(pending(), func(o client.Object) bool {
		return !strings.HasPrefix(o.GetName(), "vla") && o.GetName() != "big" && o.GetName() != "share"
	})...)...)
	for name, args := range map[string][]string{
		"nothing":   {"--snapshot", all},
		"add-nodes": {"--snapshot", some, "--add-nodes", "2xH100", "--pod-file", "testdata/job.yaml"},
		"drain":     {"--snapshot", snapshotOf(t, fleet()...), "--drain", "gpu-h100-01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("COLUMNS", "100")
			got := invoke(t, nil, append([]string{"simulate"}, args...)...)
			require.Equal(t, exitOK, got.code, got.err)
			assert.Empty(t, got.err)
			golden(t, "whatif-"+name, got.out)
		})
	}
}

// ask runs a what-if and returns its answer and what it says of each pod: "NODE GPUS", or the reason.
func ask(t *testing.T, snapshot string, args ...string) (*WhatIf, map[string]string) {
	t.Helper()
	got := invoke(t, nil, append([]string{"simulate", "--snapshot", snapshot, "-o", "json"}, args...)...)
	require.Equal(t, exitOK, got.code, got.err)
	x := &WhatIf{}
	decoder := json.NewDecoder(strings.NewReader(got.out))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(x))
	said := map[string]string{}
	for _, p := range x.Pods {
		said[p.Name] = p.Reason
		if p.Node != "" {
			said[p.Name] = strings.TrimSuffix(p.Node+" "+placedIndices(p.GPUs), " -")
		}
	}
	return x, said
}

// idle is a cluster of nodes with that many GPUs each and nothing on them.
func idle(gpus ...int) []client.Object {
	var out []client.Object
	for i, n := range gpus {
		name := fmt.Sprintf("node-%d", i)
		out = append(out, node(name, n), gpuNode(name, "A100-SXM4-80GB", n, 81920))
	}
	return out
}

func TestWhatIfObject(t *testing.T) {
	x, said := ask(t, waitingFleet(t), "--add-nodes", "1xH100,1xT4", "--drain", "gpu-a100-01")
	assert.Equal(t, "WhatIf", x.Kind)
	assert.True(t, x.TakenAt.Time.Equal(now))
	assert.Equal(t, "gpupack", x.Policy)
	assert.Equal(t, []AddedNodes{
		{Names: []string{"H100-new-1"}, Like: "gpu-h100-01", Model: "H100-SXM5-80GB", GPUs: 8},
		{Names: []string{"T4-new-1"}, Like: "gpu-t4-01", Model: "T4", GPUs: 4},
	}, x.AddedNodes)
	assert.Equal(t, []string{"gpu-a100-01"}, x.DrainedNodes)
	assert.Equal(t, []int{7, 40}, []int{x.Before.Nodes, x.Before.GPUs})
	assert.Equal(t, []int{8, 40 - 8 + 8 + 4}, []int{x.After.Nodes, x.After.GPUs}, "with what was added, without what was drained")
	assert.InDelta(t, 100*float64(x.After.Milli)/1000/44, x.After.Percent, 1e-9)
	placed := 0
	for _, p := range x.Pods {
		if p.Node != "" {
			placed++
		}
		if p.Name == "llama-worker-0" {
			assert.Equal(t, []any{OriginEvicted, "llama", "8 GPUs"}, []any{p.Origin, p.Gang, p.Request})
		}
		if p.Name == "big" {
			assert.Equal(t, PlacedGPU{"GPU-H100-new-1-0", 0}, p.GPUs[0])
		}
	}
	assert.Equal(t, placed, x.Placed)
	assert.Equal(t, "H100-new-1 0-4", said["big"])

	for _, format := range []string{"yaml", "wide"} {
		got := invoke(t, nil, "simulate", "--snapshot", waitingFleet(t), "-o", format, "--drain", "gpu-h100-01")
		require.Equal(t, exitOK, got.code, got.err)
		assert.Contains(t, got.out, "GPU-gpu-t4-01-1")
	}
	got := invoke(t, nil, "simulate", "--snapshot", snapshotOf(t, idle(1)...))
	assert.Contains(t, got.out, "No pod waits for a place.\n")
}

// What a pod waits for is what explain says of it on the cluster itself.
func TestWhatIfAgreesWithExplain(t *testing.T) {
	objects := slices.DeleteFunc(append(fleet(), pending()...), func(o client.Object) bool {
		// These would find a place before the others are looked at.
		return o.GetName() == "fits" || o.GetName() == "share"
	})
	x, _ := ask(t, snapshotOf(t, objects...), "--policy", "best-fit")
	checked := 0
	for _, p := range x.Pods {
		if p.Name != "big" && p.Name != "hungry" && p.Gang != "vla" {
			continue
		}
		got := invoke(t, cluster(t, objects), "explain", "-n", p.Namespace, p.Name, "-o", "json")
		var e Explanation
		require.NoError(t, json.Unmarshal([]byte(got.out), &e))
		if p.Gang == "vla" {
			_, why, _ := strings.Cut(p.Reason, "waits: ")
			assert.Contains(t, e.Summary, why)
		} else {
			assert.Equal(t, e.Reasons, p.Reasons)
		}
		checked++
	}
	assert.Equal(t, 5, checked)
}

func TestWhatIfOrder(t *testing.T) {
	old := func(age time.Duration) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.CreationTimestamp = before(age) }
	}
	priority := func(n int32) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.Priority = &n } }
	gpu := asks(v1alpha1.ResourceGPU, "1")
	objects := append(idle(4, 4),
		pod("a", "young", gpu, old(time.Minute)), pod("a", "old", gpu, old(time.Hour)), pod("a", "urgent", gpu, old(time.Second), priority(10)),
		pod("a", "evicted", gpu, on("node-1", "", 0)),
		&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 5},
		&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "usual"}, Value: 1, GlobalDefault: true},
	)
	file := func(name, class string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec: {priorityClassName: " + class + ", " + template[1:] + "\n---\n"
	}
	pods := written(t, "pods.yaml", file("new", "high")+file("usual", `""`)+file("system", "system-node-critical"))
	x, _ := ask(t, snapshotOf(t, objects...), "--drain", "node-1", "--pod-file", pods, "-n", "a")
	var order []string
	for _, p := range x.Pods {
		order = append(order, fmt.Sprintf("%s %d", p.Name, p.Priority))
	}
	assert.Equal(t, []string{"system 2000001000", "urgent 10", "new 5", "usual 1", "old 0", "young 0", "evicted 0"}, order)
	assert.Equal(t, 4, x.Placed, "of four GPUs that are left")
	assert.Empty(t, x.Pods[4].Node)

	got := invoke(t, nil, "simulate", "--snapshot", snapshotOf(t, objects...), "--pod-file", written(t, "pods.yaml", file("p", "nope")))
	assert.Equal(t, result{exitError, "", "error: pod default/p: the snapshot has no PriorityClass \"nope\"\n"}, got)
}

func TestWhatIfGangs(t *testing.T) {
	member := func(name, gang string, gpus string, mutate ...func(*corev1.Pod)) client.Object {
		return pod("a", name, append([]func(*corev1.Pod){asks(v1alpha1.ResourceGPU, gpus), inGang(gang)}, mutate...)...)
	}
	for name, tt := range map[string]struct {
		objects []client.Object
		want    map[string]string
	}{
		"whole": {
			[]client.Object{podGroup("a", "g", 2), member("g-0", "g", "2"), member("g-1", "g", "2")},
			map[string]string{"g-0": "node-0 0,1", "g-1": "node-0 2,3"},
		},
		"not at all, so that others keep the room": {
			[]client.Object{podGroup("a", "g", 3), member("g-0", "g", "4"), member("g-1", "g", "4"), member("g-2", "g", "4"),
				pod("a", "z", asks(v1alpha1.ResourceGPU, "4"))},
			map[string]string{
				"g-0": "PodGroup g waits: 1 of the 3 members needed fit at once; no node for another that asks for 4 GPUs: 2 too few GPUs are free as a whole",
				"z":   "node-0 0-3",
			},
		},
		"the elastic rest": {
			[]client.Object{podGroup("a", "g", 2), member("g-0", "g", "4"), member("g-1", "g", "4"), member("g-2", "g", "4")},
			map[string]string{"g-0": "node-0 0-3", "g-1": "node-1 0-3", "g-2": "none of 2 nodes fits"},
		},
		"beside members that run": {
			[]client.Object{podGroup("a", "g", 2), member("g-0", "g", "4", on("node-0", "", 0, 1, 2, 3)), member("g-1", "g", "4")},
			map[string]string{"g-1": "node-1 0-3"},
		},
		"too few members": {
			[]client.Object{podGroup("a", "g", 3), member("g-0", "g", "1"), member("g-1", "g", "1")},
			map[string]string{"g-0": "PodGroup g waits for 1 more pods: it needs 3 and has 2"},
		},
		"one is gated": {
			[]client.Object{podGroup("a", "g", 2), member("g-0", "g", "1"), member("g-1", "g", "1", func(p *corev1.Pod) {
				p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "quota"}}
			})},
			map[string]string{"g-0": "PodGroup g waits for 1 more pods: it needs 2 and has 1", "g-1": "it is held back by the scheduling gate quota"},
		},
		"no PodGroup": {
			[]client.Object{member("g-0", "g", "1")},
			map[string]string{"g-0": "PodGroup g does not exist in namespace a"},
		},
		"by CPU": {
			[]client.Object{podGroup("a", "g", 3), member("g-0", "g", "1", asks(corev1.ResourceCPU, "40")),
				member("g-1", "g", "1", asks(corev1.ResourceCPU, "40")), member("g-2", "g", "1", asks(corev1.ResourceCPU, "40"))},
			map[string]string{"g-0": "PodGroup g waits: 2 of the 3 members needed fit at once; no node for another that asks for 1 GPU: 2 insufficient cpu"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, said := ask(t, snapshotOf(t, append(idle(4, 4), tt.objects...)...))
			for pod, want := range tt.want {
				assert.Equal(t, want, said[pod], pod)
			}
		})
	}
}

func TestWhatIfGangsInRacks(t *testing.T) {
	for name, tt := range map[string]struct {
		annotation, kind string
		want             map[string]string
	}{
		"required": {v1alpha1.AnnotationTopologyRequired, "rack", map[string]string{
			"g-0": "PodGroup g waits: no rack takes the whole gang: rack a has room for 2 of the 3 members needed; no node there " +
				"for another that asks for 4 GPUs: 2 too few GPUs are free as a whole",
		}},
		"preferred": {v1alpha1.AnnotationTopology, "rack", map[string]string{"g-0": "node-0 0-3", "g-1": "node-2 0-3", "g-2": "node-1 0-3"}},
		"no labels": {v1alpha1.AnnotationTopologyRequired, "zone", map[string]string{
			"g-0": "PodGroup g must be in one zone, but no node has the label topology.kubernetes.io/zone that tells its zone: label the nodes",
		}},
		"a kind of the operator's": {v1alpha1.AnnotationTopology, "row", map[string]string{"g-0": "node-0 0-3", "g-1": "node-1 0-3", "g-2": "node-2 0-3"}},
	} {
		t.Run(name, func(t *testing.T) {
			objects := idle(4, 4, 4, 4)
			for _, o := range objects {
				if rack, ok := map[string]string{"node-0": "a", "node-1": "b", "node-2": "a", "node-3": "b"}[o.GetName()]; ok {
					if node, ok := o.(*corev1.Node); ok {
						node.Labels["topology.kubernetes.io/rack"] = rack
					}
				}
			}
			group := podGroup("a", "g", 3)
			group.Annotations = map[string]string{tt.annotation: tt.kind}
			objects = append(objects, group)
			for i := range 3 {
				objects = append(objects, pod("a", fmt.Sprintf("g-%d", i), asks(v1alpha1.ResourceGPU, "4"), inGang("g")))
			}
			_, said := ask(t, snapshotOf(t, objects...))
			for pod, want := range tt.want {
				assert.Equal(t, want, said[pod], pod)
			}
		})
	}
}

func TestWhatIfNewPods(t *testing.T) {
	objects := append(idle(4), pod("a", "w-0", asks(v1alpha1.ResourceGPU, "1"), on("node-0", "", 0)))
	stateful := written(t, "w.yaml", "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: w, namespace: a}\n"+
		"spec: {replicas: 2, serviceName: w, selector: {}, template: {spec: "+template+"}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: w}\n")
	got := invoke(t, nil, "simulate", "--snapshot", snapshotOf(t, objects...), "--pod-file", stateful, "-o", "json")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Equal(t, "Left out, since it brings no pods: Service w.\n1 pod of --pod-file left out, since the snapshot has it already.\n", got.err)
	var x WhatIf
	require.NoError(t, json.Unmarshal([]byte(got.out), &x))
	require.Len(t, x.Pods, 1)
	assert.Equal(t, []any{"w-1", OriginNew, "node-0"}, []any{x.Pods[0].Name, x.Pods[0].Origin, x.Pods[0].Node})

	other := written(t, "p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: a}]}\n")
	_, said := ask(t, snapshotOf(t, objects...), "--pod-file", other)
	assert.Equal(t, `it is left to scheduler "default-scheduler": gpupack places pods with schedulerName: gpupack`, said["p"])
}

func TestWhatIfDrain(t *testing.T) {
	gpu := asks(v1alpha1.ResourceGPU, "1")
	owned := func(kind string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: "o", UID: "o", Controller: ptr.To(true)}}
		}
	}
	objects := append(idle(4, 4),
		pod("a", "own", gpu, on("node-0", "", 0)), pod("a", "daemon", gpu, on("node-0", "", 1), owned("DaemonSet")),
		pod("a", "static", gpu, on("node-0", "", 2), owned("Node")),
		pod("a", "set", gpu, on("node-0", "", 3), owned("ReplicaSet"), func(p *corev1.Pod) { p.Spec.SchedulerName = "default-scheduler" }),
		pod("a", "leaving", asks(corev1.ResourceCPU, "1"), on("node-0", ""), func(p *corev1.Pod) {
			p.DeletionTimestamp, p.Finalizers = ptr.To(before(time.Minute)), []string{"example.com/x"}
		}),
		pod("a", "there", gpu, on("node-1", "", 0)),
	)
	x, said := ask(t, snapshotOf(t, objects...), "--drain", "node-0")
	assert.Equal(t, map[string]string{"own": "node-1 1", "set": "node-1 2"}, said)
	assert.Equal(t, []int{4, 3}, []int{x.Before.FreeWhole - 3 + 4, x.After.GPUs - x.After.FreeWhole}, "what is left on the other node")

	got := invoke(t, nil, "simulate", "--snapshot", snapshotOf(t, objects...), "--drain", "node-0,node-9")
	assert.Equal(t, result{exitError, "", "error: node \"node-9\" to drain is not in the snapshot\n"}, got)
}

func TestAddNodes(t *testing.T) {
	sick := func(gn *v1alpha1.GPUNode) {
		g := &gn.Status.GPUs[0]
		g.Healthy, g.UnhealthyReason, g.MemoryUsedMiB, g.MemoryForeignMiB, g.Utilization = false, v1alpha1.ReasonXid, 900, 900, 80
	}
	s := &snapshot{now: now}
	for _, o := range []client.Object{
		node("small", 2), gpuNode("small", "A100-SXM4-80GB", 2, 81920),
		node("large", 8, func(n *corev1.Node) {
			n.UID, n.Spec.Unschedulable = "x", true
			n.Spec.Taints = []corev1.Taint{{Key: "node.kubernetes.io/unschedulable", Effect: corev1.TaintEffectNoSchedule}, {Key: "pool", Effect: corev1.TaintEffectNoSchedule}}
			n.Status.Allocatable[v1alpha1.ResourceGPU] = *ptr.To(n.Status.Allocatable[v1alpha1.ResourceGPU].DeepCopy())
		}),
		gpuNode("large", "A100-SXM4-80GB", 8, 81920, sick), node("pcie", 4), gpuNode("pcie", "A100-PCIE-40GB", 4, 40960),
		node("80GB-new-1", 0), node("h", 1), gpuNode("h", "H100", 1, 81559), gpuNode("gone", "V100", 9, 81559),
	} {
		switch o := o.(type) {
		case *corev1.Node:
			s.nodes = append(s.nodes, *o)
		case *v1alpha1.GPUNode:
			s.gpuNodes = append(s.gpuNodes, *o)
		}
	}
	s.sort()
	added, err := s.addNodes([]moreNodes{{2, "80gb"}, {1, "H100"}})
	require.NoError(t, err)
	assert.Equal(t, []AddedNodes{
		{Names: []string{"80gb-new-1", "80gb-new-2"}, Like: "large", Model: "A100-SXM4-80GB", GPUs: 8},
		{Names: []string{"H100-new-1"}, Like: "h", Model: "H100", GPUs: 1},
	}, added)
	n := s.nodes[slices.IndexFunc(s.nodes, func(n corev1.Node) bool { return n.Name == "80gb-new-2" })]
	assert.False(t, n.Spec.Unschedulable)
	assert.Empty(t, n.UID)
	assert.Equal(t, []corev1.Taint{{Key: "pool", Effect: corev1.TaintEffectNoSchedule}}, n.Spec.Taints)
	assert.Equal(t, "80gb-new-2", n.Labels[corev1.LabelHostname])
	gn := s.gpuNode("80gb-new-2")
	require.Len(t, gn.Status.GPUs, 8)
	assert.Equal(t, v1alpha1.GPU{UUID: "GPU-80gb-new-2-0", Model: "A100-SXM4-80GB", MemoryTotalMiB: 81920, MemoryReservedMiB: 640, Healthy: true},
		gn.Status.GPUs[0])

	more, err := s.addNodes([]moreNodes{{1, "80GB"}})
	require.NoError(t, err)
	assert.Equal(t, []string{"80GB-new-2"}, more[0].Names, "the snapshot has a node of the first name")

	for model, want := range map[string]string{
		"A100": `"A100" is in the names of several GPU models: write one of A100-PCIE-40GB, A100-SXM4-80GB`,
		"L40S": `there is no node with GPUs of model "L40S" to copy: the snapshot has A100-PCIE-40GB, A100-SXM4-80GB, H100, V100`,
		"V100": "no node has GPUs of model V100 alone, so that there is none to copy",
	} {
		_, err := s.addNodes([]moreNodes{{1, model}})
		assert.EqualError(t, err, want)
	}
	_, err = (&snapshot{}).addNodes([]moreNodes{{1, "L40S"}})
	assert.EqualError(t, err, `there is no node with GPUs of model "L40S" to copy: the snapshot has no GPUs`)

	got, err := parseMoreNodes("4xA100, 2xRTX 6000 x2")
	require.NoError(t, err)
	assert.Equal(t, []moreNodes{{4, "A100"}, {2, "RTX 6000 x2"}}, got)
}

func TestWhatIfSaysWhatItDoesNotCheck(t *testing.T) {
	demanding := pod("a", "p", asks(v1alpha1.ResourceGPU, "1"), func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{}}
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{}}
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 1, HostPort: 1}}
		p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "c"}}
	})
	x, _ := ask(t, snapshotOf(t, append(idle(2), demanding, pod("a", "q", asks(v1alpha1.ResourceGPU, "1")))...))
	assert.Equal(t, []Unchecked{{"pod affinity", 1}, {"topology spread", 1}, {"volumes", 1}, {"host ports", 1}, {"resource claims", 1}}, x.Unchecked)
	got := invoke(t, nil, "simulate", "--snapshot", snapshotOf(t, append(idle(2), demanding)...))
	assert.Contains(t, got.out, "Not checked: topology spread of 1 pod.\n")
}

// What the scheduler has learned of the pods to come is in the snapshot, and counts.
func TestWhatIfKnowsWhatTheSchedulerLearned(t *testing.T) {
	classes := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.WorkloadClassesConfigMap},
		Data: map[string]string{workloadClassesKey: `{"classes":[{"gpus":3,"weight":7}]}`}}
	s, err := loadSnapshot(snapshotOf(t, append(idle(2), classes)...))
	require.NoError(t, err)
	d, err := s.expected()
	require.NoError(t, err)
	require.Len(t, d.Classes().List, 1)
	assert.Equal(t, 3, d.Classes().List[0].Request.GPUs)

	classes.Data[workloadClassesKey] = "{}"
	got := invoke(t, nil, "simulate", "--snapshot", snapshotOf(t, append(idle(2), classes)...))
	assert.Equal(t, result{exitError, "", "error: gpupack.json of ConfigMap gpupack-system/gpupack-workload-classes: it has no classes\n"}, got)
}
