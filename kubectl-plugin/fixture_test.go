// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var now = time.Date(2026, 3, 14, 9, 26, 53, 0, time.UTC)

func before(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }

// result is what a run of the plugin did.
type result struct {
	code     int
	out, err string
}

// invoke runs the plugin on a cluster of these objects. A nil reader is a cluster that must not be asked.
func invoke(t *testing.T, r client.Reader, args ...string) result {
	t.Helper()
	// Neither the home of who runs the tests nor a pod's service account counts.
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	streams, _, out, errOut := genericiooptions.NewTestIOStreams()
	e := &env{IOStreams: streams, config: genericclioptions.NewConfigFlags(true), now: func() time.Time { return now }}
	e.reader = func() (client.Reader, error) {
		require.NotNil(t, r, "the cluster must not be asked")
		return r, nil
	}
	e.writer = func() (client.Client, error) {
		require.NotNil(t, r, "the cluster must not be asked")
		return r.(client.Client), nil
	}
	code := run(t.Context(), e.command(), streams, args)
	return result{code, out.String(), errOut.String()}
}

// cluster serves objects, as an API server would. missing are kinds that it does not know.
func cluster(t *testing.T, objects []client.Object, missing ...string) client.Reader {
	t.Helper()
	scheme, err := newScheme()
	require.NoError(t, err)
	builder := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...)
	return builder.WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			for _, kind := range missing {
				if strings.HasSuffix(fmt.Sprintf("%T", list), "."+kind+"List") {
					return apierrors.NewNotFound(v1alpha1.SchemeGroupVersion.WithResource(strings.ToLower(kind)).GroupResource(), "")
				}
			}
			var all client.ListOptions
			all.ApplyOptions(opts)
			selector := all.FieldSelector
			// The fake client knows equality of indexed fields alone.
			all.FieldSelector = nil
			if err := c.List(ctx, list, &all); err != nil {
				return err
			}
			if pods, ok := list.(*corev1.PodList); ok && selector != nil {
				var kept []corev1.Pod
				for i := range pods.Items {
					p := &pods.Items[i]
					if selector.Matches(fieldsOf(p)) {
						kept = append(kept, *p)
					}
				}
				pods.Items = kept
			}
			if events, ok := list.(*corev1.EventList); ok && selector != nil {
				var kept []corev1.Event
				for i := range events.Items {
					ev := &events.Items[i]
					if selector.Matches(eventFields(ev)) {
						kept = append(kept, *ev)
					}
				}
				events.Items = kept
			}
			return nil
		},
	}).Build()
}

// golden compares with a file of testdata, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run the tests with -update to write it")
	require.Equal(t, string(bytes.TrimRight(want, "\n")), strings.TrimRight(got, "\n"))
}

type fieldSet map[string]string

func (f fieldSet) Has(field string) bool   { _, ok := f[field]; return ok }
func (f fieldSet) Get(field string) string { return f[field] }

func fieldsOf(p *corev1.Pod) fieldSet {
	return fieldSet{"spec.nodeName": p.Spec.NodeName, "status.phase": string(p.Status.Phase), "metadata.name": p.Name}
}

func eventFields(e *corev1.Event) fieldSet {
	return fieldSet{"involvedObject.uid": string(e.InvolvedObject.UID), "involvedObject.name": e.InvolvedObject.Name,
		"reason": e.Reason}
}

func node(name string, gpus int, mutate ...func(*corev1.Node)) *corev1.Node {
	resources := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("64"),
		corev1.ResourceMemory: resource.MustParse("512Gi"),
		corev1.ResourcePods:   resource.MustParse("110"),
	}
	if gpus > 0 {
		resources[v1alpha1.ResourceGPU] = *resource.NewQuantity(int64(gpus), resource.DecimalSI)
	}
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{
			Capacity: resources, Allocatable: resources.DeepCopy(),
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, m := range mutate {
		m(n)
	}
	return n
}

// gpuNode is telemetry of n idle GPUs, read 12 s ago, which mutate changes.
func gpuNode(name, model string, n int, totalMiB int64, mutate ...func(*v1alpha1.GPUNode)) *v1alpha1.GPUNode {
	observed := metav1.NewMicroTime(now.Add(-12 * time.Second))
	gn := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: name}}
	gn.Status = v1alpha1.GPUNodeStatus{
		ObservedTime: &observed, DriverVersion: "570.86.15", Source: v1alpha1.SourceSimulated, Mode: v1alpha1.ModeManage,
	}
	for i := range n {
		gn.Status.GPUs = append(gn.Status.GPUs, v1alpha1.GPU{
			UUID: gpuUUID(name, i), Index: int32(i), Model: model, MemoryTotalMiB: totalMiB, MemoryReservedMiB: totalMiB / 128,
			Healthy: true, PowerMilliwatts: 61_400, TemperatureCelsius: 31,
		})
	}
	for _, m := range mutate {
		m(gn)
	}
	return gn
}

func gpuUUID(node string, i int) string { return fmt.Sprintf("GPU-%s-%d", node, i) }

// uses adds a pod's use to a GPU.
func uses(gn *v1alpha1.GPUNode, gpu int, pod *corev1.Pod, mib int64, utilization int32) {
	g := &gn.Status.GPUs[gpu]
	g.Pods = append(g.Pods, v1alpha1.GPUPod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, MemoryUsedMiB: mib,
		Utilization: utilization})
	g.MemoryUsedMiB += mib
	g.Utilization = min(100, g.Utilization+utilization)
	g.PowerMilliwatts += int64(utilization) * 3_000
	g.TemperatureCelsius += utilization / 3
}

func pod(namespace, name string, mutate ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name),
			CreationTimestamp: before(26 * time.Minute), Labels: map[string]string{}, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{SchedulerName: v1alpha1.SchedulerName, Containers: []corev1.Container{{
			Name: "main", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	for _, m := range mutate {
		m(p)
	}
	return p
}

func asks(name corev1.ResourceName, quantity string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests[name] = resource.MustParse(quantity) }
}

func inGang(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels[v1alpha1.LabelPodGroup] = name }
}

func annotated(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[key] = value }
}

// on binds a pod, as gpupack does.
func on(node, decision string, gpus ...int) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.NodeName = node
		p.Status.Phase = corev1.PodRunning
		var uuids []string
		for _, i := range gpus {
			uuids = append(uuids, gpuUUID(node, i))
		}
		p.Annotations[v1alpha1.AnnotationGPUs] = strings.Join(uuids, ",")
		if decision != "" {
			p.Annotations[v1alpha1.AnnotationDecision] = decision
		}
	}
}

const decision = `{"policy":"gpupack","score":87,"runnerUp":"gpu-a100-02","runnerUpScore":64,"feasible":3,` +
	`"rejected":{"Occupied":2,"Unhealthy":1}}`

// fleet is a small cluster in which something of each kind is the matter.
func fleet() []client.Object {
	all := []int{0, 1, 2, 3, 4, 5, 6, 7}
	gang := `{"policy":"gpupack","score":92,"feasible":2,"gang":"llama"}`
	train0 := pod("research", "llama-worker-0", asks(v1alpha1.ResourceGPU, "8"), inGang("llama"), on("gpu-a100-01", gang, all...))
	train1 := pod("research", "llama-worker-1", asks(v1alpha1.ResourceGPU, "8"), inGang("llama"), on("gpu-a100-02", gang, all...))
	chat := pod("serving", "chat-7d9c6b5f4-x8k2p", asks(v1alpha1.ResourceGPUMemory, "16Gi"), on("gpu-h100-01", decision, 0))
	chat2 := pod("serving", "chat-7d9c6b5f4-m4wzq", asks(v1alpha1.ResourceGPUMemory, "16Gi"), on("gpu-h100-01", decision, 0))
	embed := pod("serving", "embedder-5f4c9d8b7-qq2vt", asks(v1alpha1.ResourceGPUMilli, "250"),
		asks(v1alpha1.ResourceGPUMemory, "8Gi"), on("gpu-h100-01", decision, 0))
	notebook := pod("default", "notebook-ada", asks(v1alpha1.ResourceGPU, "1"), on("gpu-h100-01", decision, 1))
	vision := pod("default", "vision", asks(v1alpha1.ResourceGPUMilli, "500"), on("gpu-t4-01", decision, 0))
	legacy := pod("default", "legacy", asks(v1alpha1.ResourceGPU, "1"), func(p *corev1.Pod) {
		p.Spec.SchedulerName, p.Spec.NodeName, p.Status.Phase = "default-scheduler", "gpu-new-01", corev1.PodRunning
	})
	long := "gke-production-europe-west4-a100-pool-7-1b2c3d4e-x9zk"
	return []client.Object{
		node("cpu-01", 0), node("gpu-a100-01", 8), node("gpu-a100-02", 8), node("gpu-h100-01", 8), node("gpu-t4-01", 4),
		node("gpu-new-01", 4), node(long, 8, func(n *corev1.Node) { n.Spec.Unschedulable = true }),
		gpuNode("gpu-a100-01", "A100-SXM4-80GB", 8, 81920, func(gn *v1alpha1.GPUNode) {
			for i := range all {
				uses(gn, i, train0, 71000, 93)
			}
		}),
		gpuNode("gpu-a100-02", "A100-SXM4-80GB", 8, 81920, func(gn *v1alpha1.GPUNode) {
			for i := range all {
				uses(gn, i, train1, 68000, 88)
			}
		}),
		gpuNode("gpu-h100-01", "H100-SXM5-80GB", 8, 81559, func(gn *v1alpha1.GPUNode) {
			uses(gn, 0, chat, 15900, 21)
			uses(gn, 0, chat2, 20100, 30)
			uses(gn, 0, embed, 2048, 4)
			uses(gn, 1, notebook, 512, 0)
			g := &gn.Status.GPUs[5]
			g.Healthy, g.UnhealthyReason, g.UnhealthyMessage = false, v1alpha1.ReasonXid, "Xid 79: GPU has fallen off the bus"
			g = &gn.Status.GPUs[7]
			g.MemoryUsedMiB, g.MemoryForeignMiB, g.Utilization = 61440, 61440, 37
		}),
		gpuNode("gpu-t4-01", "T4", 4, 15360, func(gn *v1alpha1.GPUNode) {
			observed := metav1.NewMicroTime(now.Add(-5 * time.Minute))
			gn.Status.ObservedTime = &observed
			uses(gn, 0, vision, 6000, 44)
		}),
		gpuNode(long, "A100-SXM4-80GB", 8, 81920),
		gpuNode("gpu-retired", "V100-SXM2-32GB", 8, 32768),
		train0, train1, chat, chat2, embed, notebook, vision, legacy,
		&podgroupv1alpha1.PodGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "research", Name: "llama"},
			Spec: podgroupv1alpha1.PodGroupSpec{MinMember: 2}},
	}
}
