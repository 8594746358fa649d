// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
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
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/embedded"
)

const (
	eventually = 30 * time.Second
	tick       = 50 * time.Millisecond
	gib        = 1024
)

// cluster is one test's part of the control plane.
type cluster struct {
	client.Client
	cp        *embedded.ControlPlane
	namespace string
	nodes     []string
	label     string
	// gpus by node name, as published.
	gpus map[string][]v1alpha1.GPU
	mode v1alpha1.Mode
}

func scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(s))
	utilruntime.Must(v1alpha1.AddToScheme(s))
	utilruntime.Must(schedulingv1alpha1.AddToScheme(s))
	return s
}

// newCluster makes nodes that each have those GPUs and publishes fresh telemetry for them. changes are made to the nodes
// before they are created.
func newCluster(t *testing.T, nodes int, gpus func(node int) []v1alpha1.GPU, changes ...func(i int, node *corev1.Node)) *cluster {
	t.Helper()
	cp := controlPlane(t)
	c, err := client.New(cp.Config(), client.Options{Scheme: scheme()})
	require.NoError(t, err)
	// A scheduler of an earlier test may have learned what would move pods in this one.
	require.NoError(t, client.IgnoreNotFound(c.Delete(t.Context(), workloadClasses())))
	k := &cluster{Client: c, cp: cp, namespace: cp.Namespace(t), gpus: map[string][]v1alpha1.GPU{}, mode: v1alpha1.ModeManage}
	for _, node := range cp.Nodes(t, nodes, func(i int, node *corev1.Node) {
		count := *resource.NewQuantity(int64(len(gpus(i))), resource.DecimalSI)
		node.Status.Capacity[v1alpha1.ResourceGPU], node.Status.Allocatable[v1alpha1.ResourceGPU] = count, count
		for _, change := range changes {
			change(i, node)
		}
	}) {
		k.nodes = append(k.nodes, node.Name)
		k.label = node.Labels[embedded.TestLabel]
	}
	for i, name := range k.nodes {
		list := gpus(i)
		for j := range list {
			list[j].UUID = fmt.Sprintf("GPU-%s-%d", name, j)
			list[j].Index = int32(j)
		}
		k.gpus[name] = list
		if len(list) > 0 {
			k.publish(t, name)
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for _, name := range k.nodes {
			_ = c.Delete(ctx, &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	})
	return k
}

// workloadClasses names the ConfigMap in which schedulers keep what they have learned.
func workloadClasses() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.WorkloadClassesConfigMap}}
}

// a100 is an idle, healthy GPU of 80 GiB.
func a100() v1alpha1.GPU {
	return v1alpha1.GPU{Model: "A100", MemoryTotalMiB: 80 * gib, MemoryReservedMiB: 600, Healthy: true}
}

func a100s(n int) []v1alpha1.GPU {
	out := make([]v1alpha1.GPU, n)
	for i := range out {
		out[i] = a100()
	}
	return out
}

// publish writes the node's telemetry as of now.
func (k *cluster) publish(t *testing.T, node string) { k.publishAt(t, node, time.Now()) }

func (k *cluster) publishAt(t *testing.T, node string, observed time.Time) {
	t.Helper()
	var gn v1alpha1.GPUNode
	err := k.Get(t.Context(), client.ObjectKey{Name: node}, &gn)
	if client.IgnoreNotFound(err) == nil && err != nil {
		gn = v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: node}}
		require.NoError(t, k.Create(t.Context(), &gn))
	} else {
		require.NoError(t, err)
	}
	at := metav1.NewMicroTime(observed)
	gn.Status = v1alpha1.GPUNodeStatus{ObservedTime: &at, Source: v1alpha1.SourceSimulated, Mode: k.mode, GPUs: k.gpus[node]}
	require.NoError(t, k.Status().Update(t.Context(), &gn))
}

// podOption changes a pod before it is created.
type podOption func(*corev1.Pod)

func wants(name corev1.ResourceName, quantity string) podOption {
	return func(pod *corev1.Pod) {
		q := resource.MustParse(quantity)
		pod.Spec.Containers[0].Resources.Requests[name] = q
		// The API server wants equal requests and limits of extended resources.
		if name != corev1.ResourceCPU && name != corev1.ResourceMemory {
			pod.Spec.Containers[0].Resources.Limits[name] = q
		}
	}
}

func wholeGPUs(n int) podOption       { return wants(v1alpha1.ResourceGPU, fmt.Sprint(n)) }
func shareMemory(q string) podOption  { return wants(v1alpha1.ResourceGPUMemory, q) }
func shareMilli(n int) podOption      { return wants(v1alpha1.ResourceGPUMilli, fmt.Sprint(n)) }
func annotated(k, v string) podOption { return func(p *corev1.Pod) { p.Annotations[k] = v } }
func inGroup(name string) podOption {
	return func(p *corev1.Pod) { p.Labels[v1alpha1.LabelPodGroup] = name }
}

// pod makes a pod that gpupack places on the cluster's nodes.
func (k *cluster) pod(name string, options ...podOption) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: name, Annotations: map[string]string{}, Labels: map[string]string{}},
		Spec: corev1.PodSpec{
			SchedulerName: v1alpha1.SchedulerName,
			NodeSelector:  map[string]string{embedded.TestLabel: k.label},
			Containers: []corev1.Container{{
				Name: "main", Image: "none",
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi")},
					Limits:   corev1.ResourceList{},
				},
			}},
		},
	}
	for _, o := range options {
		o(pod)
	}
	return pod
}

func (k *cluster) create(t *testing.T, name string, options ...podOption) *corev1.Pod {
	t.Helper()
	pod := k.pod(name, options...)
	require.NoError(t, k.Create(t.Context(), pod))
	return pod
}

func (k *cluster) get(t testing.TB, name string) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	require.NoError(t, k.Get(context.Background(), client.ObjectKey{Namespace: k.namespace, Name: name}, &pod))
	return &pod
}

func (k *cluster) delete(t *testing.T, name string) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: name}}
	require.NoError(t, k.Delete(t.Context(), pod, client.GracePeriodSeconds(0)))
}

// placed waits until the pod is bound, and returns it.
func (k *cluster) placed(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	require.Eventually(t, func() bool {
		pod = k.get(t, name)
		return pod.Spec.NodeName != ""
	}, eventually, tick, "pod %s is not placed: %s", name, lazy(func() string { return pendingReason(k.get(t, name)) }))
	return pod
}

// pendingFor waits until the scheduler has said that the pod cannot be placed, in words that contain all of those.
func (k *cluster) pendingFor(t *testing.T, name string, words ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		pod := k.get(t, name)
		require.Empty(c, pod.Spec.NodeName, "pod %s is placed", name)
		for _, w := range words {
			require.Contains(c, pendingReason(pod), w)
		}
	}, eventually, tick)
}

type lazy func() string

func (l lazy) String() string { return l() }

func pendingReason(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c.Message
		}
	}
	return ""
}

func gpusOf(pod *corev1.Pod) []string {
	if text := pod.Annotations[v1alpha1.AnnotationGPUs]; text != "" {
		return strings.Split(text, ",")
	}
	return nil
}

func decisionOf(t *testing.T, pod *corev1.Pod) v1alpha1.Decision {
	t.Helper()
	var d v1alpha1.Decision
	require.NoError(t, json.Unmarshal([]byte(pod.Annotations[v1alpha1.AnnotationDecision]), &d))
	return d
}

// bound lists the pods that have a node.
func (k *cluster) bound(t testing.TB) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	require.NoError(t, k.List(context.Background(), &list, client.InNamespace(k.namespace)))
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.Spec.NodeName == "" })
}

// requireNoDoubleBooking checks that no GPU is promised beyond what it has.
func (k *cluster) requireNoDoubleBooking(t *testing.T) {
	t.Helper()
	memory, milli := map[string]int64{}, map[string]int64{}
	for _, pod := range k.bound(t) {
		if convert.IsTerminal(&pod) {
			continue
		}
		requests := pod.Spec.Containers[0].Resources.Requests
		whole := requests[v1alpha1.ResourceGPU]
		gpus := gpusOf(&pod)
		if whole.Value() > 0 {
			require.Len(t, gpus, int(whole.Value()), "pod %s", pod.Name)
		}
		for _, uuid := range gpus {
			require.True(t, strings.HasPrefix(uuid, "GPU-"+pod.Spec.NodeName+"-"), "pod %s on node %s has %s", pod.Name, pod.Spec.NodeName, uuid)
			if whole.Value() > 0 {
				milli[uuid] += 1000
				continue
			}
			share, mem := requests[v1alpha1.ResourceGPUMilli], requests[v1alpha1.ResourceGPUMemory]
			milli[uuid] += share.Value()
			memory[uuid] += mem.Value() >> 20
		}
	}
	for uuid, m := range milli {
		require.LessOrEqual(t, m, int64(1000), "compute of %s", uuid)
	}
	for _, gpus := range k.gpus {
		for _, g := range gpus {
			require.LessOrEqual(t, memory[g.UUID], g.MemoryTotalMiB-g.MemoryReservedMiB-g.MemoryForeignMiB, "memory of %s", g.UUID)
		}
	}
}

// group makes a PodGroup.
func (k *cluster) group(t *testing.T, name string, minMember int32) *schedulingv1alpha1.PodGroup {
	t.Helper()
	g := &schedulingv1alpha1.PodGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: name},
		Spec:       schedulingv1alpha1.PodGroupSpec{MinMember: minMember},
	}
	require.NoError(t, k.Create(t.Context(), g))
	return g
}

// priority makes a PriorityClass of that value and returns the option that gives it to a pod.
func (k *cluster) priority(t *testing.T, value int32) podOption {
	t.Helper()
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", k.namespace, value)}, Value: value}
	require.NoError(t, k.Create(t.Context(), class))
	t.Cleanup(func() { _ = k.Delete(context.Background(), class) })
	return func(p *corev1.Pod) { p.Spec.PriorityClassName = class.Name }
}
