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
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// explained runs explain on the first pod of objects that has no node.
func explained(t *testing.T, objects []client.Object) Explanation {
	t.Helper()
	waits := objects[slices.IndexFunc(objects, func(o client.Object) bool {
		p, ok := o.(*corev1.Pod)
		return ok && p.Spec.NodeName == ""
	})]
	got := invoke(t, cluster(t, objects), "explain", "-n", waits.GetNamespace(), waits.GetName(), "-o", "json")
	require.Equal(t, exitOK, got.code, got.err)
	var x Explanation
	require.NoError(t, json.Unmarshal([]byte(got.out), &x))
	return x
}

func holds(name, node string, gpus []int, mutate ...func(*corev1.Pod)) *corev1.Pod {
	return pod("default", name, append([]func(*corev1.Pod){asks(v1alpha1.ResourceGPU, fmt.Sprint(len(gpus))), on(node, "", gpus...)}, mutate...)...)
}

func prioritised(value int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Priority = &value }
}

// What is said to let a pod in does so, and nothing less than that.
func TestFixesLetThePodIn(t *testing.T) {
	whole := func(n string, mutate ...func(*corev1.Pod)) *corev1.Pod {
		return pod("default", "waits", append([]func(*corev1.Pod){asks(v1alpha1.ResourceGPU, n)}, mutate...)...)
	}
	share := func(q string) *corev1.Pod { return pod("default", "waits", asks(v1alpha1.ResourceGPUMemory, q)) }
	cordoned := func(gn *v1alpha1.GPUNode) {
		gn.Spec.CordonedGPUs = []v1alpha1.CordonedGPU{{UUID: gpuUUID(gn.Name, 0), Reason: "fan is loud", By: "ada"}}
	}
	stale := func(gn *v1alpha1.GPUNode) {
		at := metav1.NewMicroTime(now.Add(-5 * time.Minute))
		gn.Status.ObservedTime = &at
	}
	foreign := func(gn *v1alpha1.GPUNode) {
		gn.Status.GPUs[0].MemoryUsedMiB, gn.Status.GPUs[0].MemoryForeignMiB = 12000, 12000
	}
	each := func(objects []client.Object, change func(client.Object)) {
		for _, o := range objects {
			change(o)
		}
	}
	gpuNodes := func(change func(*v1alpha1.GPUNode)) func([]client.Object, *Fix) []client.Object {
		return func(objects []client.Object, _ *Fix) []client.Object {
			each(objects, func(o client.Object) {
				if gn, ok := o.(*v1alpha1.GPUNode); ok {
					change(gn)
				}
			})
			return objects
		}
	}
	waiting := func(change func(*corev1.Pod)) func([]client.Object, *Fix) []client.Object {
		return func(objects []client.Object, _ *Fix) []client.Object {
			each(objects, func(o client.Object) {
				if p, ok := o.(*corev1.Pod); ok && p.Spec.NodeName == "" {
					change(p)
				}
			})
			return objects
		}
	}
	evict := func(objects []client.Object, fix *Fix) []client.Object {
		return slices.DeleteFunc(objects, func(o client.Object) bool {
			return slices.Contains(fix.Evict, o.GetNamespace()+"/"+o.GetName())
		})
	}
	for name, tt := range map[string]struct {
		objects       []client.Object
		kind          FixKind
		message, cost string
		apply         func([]client.Object, *Fix) []client.Object
	}{
		"uncordon a GPU": {[]client.Object{node("n", 1), gpuNode("n", "T4", 1, 15360, cordoned), whole("1")},
			FixUncordonGPU, "uncordon GPU 0 of n", "it is cordoned by ada: fan is loud",
			gpuNodes(func(gn *v1alpha1.GPUNode) { gn.Spec.CordonedGPUs = nil })},
		"uncordon a node": {[]client.Object{node("n", 1, func(n *corev1.Node) { n.Spec.Unschedulable = true }), gpuNode("n", "T4", 1, 15360), whole("1")},
			FixUncordonNodes, "uncordon n", "none, if the node is fit for use",
			func(objects []client.Object, _ *Fix) []client.Object {
				objects[0].(*corev1.Node).Spec.Unschedulable = false
				return objects
			}},
		"telemetry": {[]client.Object{node("n", 1), gpuNode("n", "T4", 1, 15360, stale), share("1Gi")},
			FixTelemetry, "get gpupack-agent on n to report again", "none: it reported last 5m ago",
			gpuNodes(func(gn *v1alpha1.GPUNode) {
				at := metav1.NewMicroTime(now)
				gn.Status.ObservedTime = &at
			})},
		"less memory": {[]client.Object{node("n", 1), gpuNode("n", "T4", 1, 15360), share("20Gi")},
			FixAskForLess, "ask for 15240 MiB of a GPU", "5.1Gi less",
			waiting(func(p *corev1.Pod) { asks(v1alpha1.ResourceGPUMemory, "15240Mi")(p) })},
		"fewer GPUs": {[]client.Object{node("n", 4), gpuNode("n", "T4", 4, 15360), holds("a", "n", []int{0}, prioritised(9)), whole("4")},
			FixAskForLess, "ask for 3 GPUs", "1 GPU less", waiting(asks(v1alpha1.ResourceGPU, "3"))},
		"less cpu": {[]client.Object{node("n", 1), gpuNode("n", "T4", 1, 15360), whole("1", asks(corev1.ResourceCPU, "65"))},
			FixAskForLess, "ask for 64 CPUs", "1 CPUs less", waiting(asks(corev1.ResourceCPU, "64"))},
		"another model": {[]client.Object{node("n", 1), gpuNode("n", "T4", 1, 15360), whole("1", annotated(v1alpha1.AnnotationGPUModel, "H100"))},
			FixAcceptModel, "accept T4 too, in the annotation gpupack.dev/gpu-model", "another model of GPU",
			waiting(annotated(v1alpha1.AnnotationGPUModel, "H100,T4"))},
		"a taint": {[]client.Object{node("n", 1, func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "team", Value: "vision", Effect: corev1.TaintEffectNoSchedule}}
		}), gpuNode("n", "T4", 1, 15360), whole("1")},
			FixTolerate, "tolerate the taint team=vision:NoSchedule", "nodes that are meant for others",
			waiting(func(p *corev1.Pod) {
				p.Spec.Tolerations = []corev1.Toleration{{Key: "team", Value: "vision", Effect: corev1.TaintEffectNoSchedule}}
			})},
		"foreign memory": {[]client.Object{node("n", 1), gpuNode("n", "T4", 1, 15360, foreign), whole("1")},
			FixForeignMemory, "end what runs outside any pod on GPU 0 of n", "whatever that does with the 12Gi that it uses",
			gpuNodes(func(gn *v1alpha1.GPUNode) { gn.Status.GPUs[0].MemoryUsedMiB, gn.Status.GPUs[0].MemoryForeignMiB = 0, 0 })},
		"a sick GPU": {[]client.Object{node("n", 1), gpuNode("n", "T4", 1, 15360, func(gn *v1alpha1.GPUNode) {
			gn.Status.GPUs[0].Healthy, gn.Status.GPUs[0].UnhealthyReason = false, v1alpha1.ReasonECC
		}), whole("1")}, FixRepairGPU, "repair GPU 0 of n", "a reset or another GPU: ECC",
			gpuNodes(func(gn *v1alpha1.GPUNode) { gn.Status.GPUs[0].Healthy = true })},
		"evict one that fits elsewhere": {[]client.Object{node("m", 1), gpuNode("m", "A10", 1, 15360), node("n", 1), gpuNode("n", "T4", 1, 15360),
			holds("a", "n", []int{0}), whole("1", annotated(v1alpha1.AnnotationGPUModel, "T4"), func(p *corev1.Pod) {
				p.Annotations[v1alpha1.AnnotationGPUModel] = "T4"
				p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n"}
			})},
			FixEvict, "evict default/a", "1 pod with 1 GPU; then there is room for it on m", evict},
		"evict the least": {[]client.Object{node("n", 2), gpuNode("n", "T4", 2, 15360), holds("a", "n", []int{0}),
			pod("default", "b", asks(v1alpha1.ResourceGPUMemory, "1Gi"), on("n", "", 1)), whole("1")},
			FixEvict, "evict default/b", "1 pod with 0.1 of a GPU; no room for it elsewhere", evict},
		"evict several of a node": {[]client.Object{node("m", 2), gpuNode("m", "T4", 2, 15360), holds("c", "m", []int{0}), holds("d", "m", []int{1}),
			node("n", 2), gpuNode("n", "T4", 2, 15360), holds("a", "n", []int{0}),
			pod("default", "b", asks(v1alpha1.ResourceGPUMilli, "300"), on("n", "", 1)), whole("2")},
			FixEvict, "evict default/b, default/a", "2 pods with 1.3 GPUs; no room for them elsewhere", evict},
		"a gang goes whole": {[]client.Object{node("m", 1), gpuNode("m", "T4", 1, 15360), node("n", 1), gpuNode("n", "T4", 1, 15360),
			holds("g-0", "m", []int{0}, inGang("g")), holds("g-1", "n", []int{0}, inGang("g")), whole("1")},
			FixEvict, "evict default/g-0, default/g-1", "2 pods with 2 GPUs, the whole gang g; room elsewhere for 1 of them", evict},
		"nobody of higher priority": {[]client.Object{node("n", 1), gpuNode("n", "T4", 1, 15360), holds("a", "n", []int{0}, prioritised(1)), whole("1")},
			FixAddNodes, "add 1 node like n", "1 x T4", func(objects []client.Object, _ *Fix) []client.Object {
				return append(objects, node("n-new-1", 1), gpuNode("n-new-1", "T4", 1, 15360))
			}},
	} {
		t.Run(name, func(t *testing.T) {
			x := explained(t, tt.objects)
			require.NotEmpty(t, x.Fixes)
			at := slices.IndexFunc(x.Fixes, func(f Fix) bool { return f.Kind == tt.kind })
			require.GreaterOrEqual(t, at, 0, "%v", x.Fixes)
			fix := &x.Fixes[at]
			assert.Equal(t, []string{tt.message, tt.cost}, []string{fix.Message, fix.Cost})
			after := explained(t, tt.apply(tt.objects, fix))
			assert.Positive(t, after.Nodes.Fitting)
			assert.Empty(t, after.Fixes)
		})
	}
}

func TestFixesOfGangs(t *testing.T) {
	gang := func() []client.Object {
		objects := []client.Object{podGroup("default", "train", 2)}
		for i := range 2 {
			objects = append(objects, pod("default", fmt.Sprintf("train-%d", i), asks(v1alpha1.ResourceGPU, "2"), inGang("train")))
		}
		for _, name := range []string{"l", "m", "n"} {
			objects = append(objects, node(name, 2), gpuNode(name, "T4", 2, 15360))
		}
		return objects
	}
	// The gang needs two nodes: those of small pods, not those of the large one.
	objects := append(gang(), holds("large", "l", []int{0, 1}),
		pod("default", "small-0", asks(v1alpha1.ResourceGPUMilli, "100"), on("m", "", 0)),
		pod("default", "small-1", asks(v1alpha1.ResourceGPUMilli, "100"), on("n", "", 1)),
		pod("default", "small-2", asks(v1alpha1.ResourceGPUMilli, "100"), on("n", "", 0)))
	x := explained(t, objects)
	require.Len(t, x.Fixes, 2)
	assert.Equal(t, []string{"default/small-0", "default/small-1", "default/small-2"}, x.Fixes[0].Evict)
	assert.Equal(t, "add 2 nodes like l", x.Fixes[1].Message)
	assert.Contains(t, explained(t, slices.DeleteFunc(objects, func(o client.Object) bool { return strings.HasPrefix(o.GetName(), "small") })).Summary,
		"would fit")

	// Half of it is placed, in a domain with no room for the rest.
	objects = append(gang(), holds("large", "m", []int{0, 1}))
	for _, o := range objects {
		switch o := o.(type) {
		case *podgroupv1alpha1.PodGroup:
			o.Annotations = map[string]string{v1alpha1.AnnotationTopologyRequired: "rack"}
		case *corev1.Node:
			o.Labels["topology.kubernetes.io/rack"] = map[string]string{"l": "r1", "m": "r1", "n": "r2"}[o.Name]
		case *corev1.Pod:
			if o.Name == "train-1" {
				on("l", "", 0, 1)(o)
			}
		}
	}
	x = explained(t, objects)
	require.NotEmpty(t, x.Fixes)
	assert.Equal(t, Fix{Kind: FixEvict, Message: "evict default/large", Cost: "1 pod with 2 GPUs; then there is room for it on n",
		Evict: []string{"default/large"}}, x.Fixes[0])

	got := invoke(t, cluster(t, objects), "explain", "podgroup/train", "-o", "json")
	require.Equal(t, exitOK, got.code, got.err)
	var g GangExplanation
	require.NoError(t, json.Unmarshal([]byte(got.out), &g))
	assert.Equal(t, x.Fixes, g.NearestFixes, "a gang and its member are told the same")
	assert.Equal(t, []any{"l", 2}, []any{g.MemberPods[1].Placement.Node, len(g.MemberPods[1].Placement.GPUs)})
}

// Five thousand nodes are looked at within seconds.
func TestFixesInALargeCluster(t *testing.T) {
	s := &snapshot{now: now}
	quantity := resource.MustParse("64")
	for i := range 5000 {
		name := fmt.Sprintf("n%04d", i)
		n := node(name, 8)
		n.Status.Allocatable[corev1.ResourceCPU] = quantity
		s.nodes, s.gpuNodes = append(s.nodes, *n), append(s.gpuNodes, *gpuNode(name, "H100", 8, 81920))
		for g := range 8 {
			s.pods = append(s.pods, *holds(fmt.Sprintf("p%04d-%d", i, g), name, []int{g}))
		}
	}
	s.sort()
	view := viewOptions{staleAfter: time.Minute, wholeForeignMiB: 512}
	chooser, _, err := newChooser(schedulerPolicy, s, view)
	require.NoError(t, err)
	c := newCandidates(s, s.requests(), chooser, view)
	start := time.Now()
	fixes, err := (&fixer{s: s, c: c, view: view, waiting: []*corev1.Pod{pod("default", "waits", asks(v1alpha1.ResourceGPU, "8"))}}).nearest(t.Context())
	require.NoError(t, err)
	t.Logf("%v: %+v", time.Since(start), fixes)
	require.Len(t, fixes, 2)
	assert.Len(t, fixes[0].Evict, 8)
	assert.Equal(t, FixAddNodes, fixes[1].Kind)
}
