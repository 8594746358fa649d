// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
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
	"github.com/gpupack/gpupack/test/scheduler"
)

const (
	nodeCount   = 6
	gpusPerNode = 4
	totalMiB    = 80 << 10
	reservedMiB = 600
	usableMiB   = totalMiB - reservedMiB
	shareMiB    = 30 << 10

	tick = 50 * time.Millisecond
	// settle is within which everything must have found its place once nothing goes wrong any more. A gang whose plans were
	// dropped several times waits half a minute by itself.
	settle = 90 * time.Second
)

// gang is what the test knows of a gang.
type gang struct {
	name string
	// gpus of each member.
	gpus int
	// next is the number of the next member.
	next int
}

// world is a control plane with two schedulers, and what the test has done to it.
type world struct {
	client.Client
	t         *testing.T
	cp        *embedded.ControlPlane
	namespace string
	label     string
	nodes     []string
	sick      map[string]bool
	audit     *audit
	replicas  [2]*scheduler.Scheduler
	all       []*scheduler.Scheduler
	gangs     []*gang
	singles   []string
	counter   int
	started   time.Time
	log       []string
}

func newWorld(t *testing.T, cp *embedded.ControlPlane) *world {
	t.Helper()
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	utilruntime.Must(schedulingv1alpha1.AddToScheme(scheme))
	c, err := client.New(cp.Config(), client.Options{Scheme: scheme})
	require.NoError(t, err)
	w := &world{Client: c, t: t, cp: cp, namespace: cp.Namespace(t), sick: map[string]bool{}, started: time.Now()}
	for _, node := range cp.Nodes(t, nodeCount, func(_ int, node *corev1.Node) {
		count := *resource.NewQuantity(gpusPerNode, resource.DecimalSI)
		node.Status.Capacity[v1alpha1.ResourceGPU], node.Status.Allocatable[v1alpha1.ResourceGPU] = count, count
	}) {
		w.nodes = append(w.nodes, node.Name)
		w.label = node.Labels[embedded.TestLabel]
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for _, name := range w.nodes {
			_ = c.Delete(ctx, &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	})
	for _, node := range w.nodes {
		require.NoError(t, c.Create(t.Context(), &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: node}}))
		w.publish(node)
	}
	w.audit = newAudit(t, cp, w.namespace)
	for i := range w.replicas {
		w.start(i)
	}
	return w
}

// did notes an action, so that a failure can be understood and repeated.
func (w *world) did(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%7.3fs ", time.Since(w.started).Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) start(replica int) {
	w.did("start replica %d", replica)
	w.replicas[replica] = scheduler.Start(w.t, w.cp, scheduler.Options{
		LeaderElection: true,
		Args:           map[string]any{"gangTimeout": "15s"},
	})
	w.all = append(w.all, w.replicas[replica])
}

func (w *world) kill(replica int) {
	w.did("kill replica %d", replica)
	w.replicas[replica].Kill()
}

func (w *world) runs(replica int) bool {
	select {
	case <-w.replicas[replica].Exited():
		return false
	default:
		return true
	}
}

// leader is the replica that schedules, or -1.
func (w *world) leader() int {
	for i, s := range w.replicas {
		if w.runs(i) && s.Leads() {
			return i
		}
	}
	return -1
}

// publish writes fresh telemetry of a node.
func (w *world) publish(node string) {
	var gn v1alpha1.GPUNode
	require.NoError(w.t, w.Get(w.t.Context(), client.ObjectKey{Name: node}, &gn))
	at := metav1.NewMicroTime(time.Now())
	gn.Status = v1alpha1.GPUNodeStatus{ObservedTime: &at, Source: v1alpha1.SourceSimulated, Mode: v1alpha1.ModeManage}
	for i := range gpusPerNode {
		gpu := v1alpha1.GPU{
			UUID: gpuName(node, i), Index: int32(i), Model: "A100", MemoryTotalMiB: totalMiB, MemoryReservedMiB: reservedMiB,
			Healthy: !w.sick[gpuName(node, i)],
		}
		if !gpu.Healthy {
			gpu.UnhealthyReason = "Xid 79"
		}
		gn.Status.GPUs = append(gn.Status.GPUs, gpu)
	}
	require.NoError(w.t, w.Status().Update(w.t.Context(), &gn))
}

func gpuName(node string, i int) string { return fmt.Sprintf("GPU-%s-%d", node, i) }

func (w *world) cordon(name string, on bool) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"unschedulable":%v}}`, on))
	require.NoError(w.t, w.Patch(w.t.Context(), node, patch))
}

func (w *world) createPod(name, group string, requests corev1.ResourceList) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name, Labels: map[string]string{}},
		Spec: corev1.PodSpec{
			SchedulerName: v1alpha1.SchedulerName,
			NodeSelector:  map[string]string{embedded.TestLabel: w.label},
			Containers: []corev1.Container{{
				Name: "main", Image: "none", Resources: corev1.ResourceRequirements{Requests: requests, Limits: requests},
			}},
		},
	}
	if group != "" {
		pod.Labels[v1alpha1.LabelPodGroup] = group
	}
	require.NoError(w.t, w.Create(w.t.Context(), pod))
}

func gpus(n int) corev1.ResourceList {
	list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	if n > 0 {
		list[v1alpha1.ResourceGPU] = *resource.NewQuantity(int64(n), resource.DecimalSI)
	}
	return list
}

func (w *world) createGroup(name string, minMember int) {
	require.NoError(w.t, w.Create(w.t.Context(), &schedulingv1alpha1.PodGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name},
		Spec:       schedulingv1alpha1.PodGroupSpec{MinMember: int32(minMember)},
	}))
}

// group returns a PodGroup, or nil where there is none.
func (w *world) group(name string) *schedulingv1alpha1.PodGroup {
	group := &schedulingv1alpha1.PodGroup{}
	err := w.Get(w.t.Context(), client.ObjectKey{Namespace: w.namespace, Name: name}, group)
	require.NoError(w.t, client.IgnoreNotFound(err))
	if err != nil {
		return nil
	}
	return group
}

func (w *world) deletePod(name string) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name}}
	require.NoError(w.t, client.IgnoreNotFound(w.Delete(w.t.Context(), pod, client.GracePeriodSeconds(0))))
}

func (w *world) deleteGroup(name string) {
	group := &schedulingv1alpha1.PodGroup{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name}}
	require.NoError(w.t, client.IgnoreNotFound(w.Delete(w.t.Context(), group)))
}

func (w *world) addMember(g *gang) {
	w.createPod(fmt.Sprintf("%s-%d", g.name, g.next), g.name, gpus(g.gpus))
	g.next++
}

func (w *world) deleteGang(g *gang) {
	for _, pod := range w.pods()[g.name] {
		w.deletePod(pod.Name)
	}
	w.deleteGroup(g.name)
	w.gangs = slices.DeleteFunc(w.gangs, func(other *gang) bool { return other == g })
}

// pods lists those that are not terminal by their gang; those of none are under "".
func (w *world) pods() map[string][]corev1.Pod {
	var list corev1.PodList
	require.NoError(w.t, w.List(w.t.Context(), &list, client.InNamespace(w.namespace)))
	out := map[string][]corev1.Pod{}
	for i := range list.Items {
		if pod := &list.Items[i]; !convert.IsTerminal(pod) {
			out[pod.Labels[v1alpha1.LabelPodGroup]] = append(out[pod.Labels[v1alpha1.LabelPodGroup]], *pod)
		}
	}
	return out
}

// room is what is left on a node that takes pods.
type room struct {
	// whole counts GPUs of which nothing is taken.
	whole int
	// share is the largest part of a GPU that a share may have, in MiB.
	share int64
}

func (w *world) rooms() []room {
	var nodes corev1.NodeList
	require.NoError(w.t, w.List(w.t.Context(), &nodes, client.MatchingLabels{embedded.TestLabel: w.label}))
	taken := map[string]int64{}
	for _, pods := range w.pods() {
		for i := range pods {
			if pods[i].Spec.NodeName == "" {
				continue
			}
			_, memory := asks(&pods[i])
			for _, gpu := range convert.GPUs(&pods[i]) {
				taken[gpu] += memory
			}
		}
	}
	var out []room
	for i := range nodes.Items {
		if nodes.Items[i].Spec.Unschedulable {
			continue
		}
		var r room
		for j := range gpusPerNode {
			gpu := gpuName(nodes.Items[i].Name, j)
			if w.sick[gpu] {
				continue
			}
			r.share = max(r.share, usableMiB-taken[gpu])
			if taken[gpu] == 0 {
				r.whole++
			}
		}
		out = append(out, r)
	}
	return out
}

// status is where the gangs and single pods of the world stand.
type status struct {
	// fits says of what waits although it fits.
	fits []string
	// half are gangs of which some members are bound, yet fewer than needed, though enough of them exist.
	half []string
}

// look compares what waits to the room that there is. A pod that a reservation for another keeps back, by its own words, does
// not count as one that fits.
func (w *world) look() status {
	var s status
	rooms := w.rooms()
	pods := w.pods()
	for _, pod := range pods[""] {
		if pod.Spec.NodeName != "" || keptBack(&pod) {
			continue
		}
		whole := pod.Spec.Containers[0].Resources.Requests[v1alpha1.ResourceGPU]
		if n := int(whole.Value()); slices.ContainsFunc(rooms, func(r room) bool {
			return n > 0 && r.whole >= n || n == 0 && r.share >= shareMiB
		}) {
			s.fits = append(s.fits, fmt.Sprintf("pod %s: %s", pod.Name, reason(&pod)))
		}
	}
	for _, g := range w.gangs {
		group := w.group(g.name)
		if group == nil {
			continue
		}
		var bound int
		var pending []corev1.Pod
		for _, pod := range pods[g.name] {
			if pod.Spec.NodeName != "" {
				bound++
			} else {
				pending = append(pending, pod)
			}
		}
		need := max(1, int(group.Spec.MinMember)-bound)
		if len(pending) < need {
			continue
		}
		if bound > 0 && bound < int(group.Spec.MinMember) {
			s.half = append(s.half, g.name)
		}
		fit := 0
		for _, r := range rooms {
			if g.gpus == 0 {
				fit = need
				break
			}
			fit += r.whole / g.gpus
		}
		if fit >= need && !slices.ContainsFunc(pending, func(p corev1.Pod) bool { return keptBack(&p) }) {
			s.fits = append(s.fits, fmt.Sprintf("gang %s of %d bound and %d pending members, of which %d are needed: %s",
				g.name, bound, len(pending), need, reason(&pending[0])))
		}
	}
	return s
}

func keptBack(pod *corev1.Pod) bool { return strings.Contains(strings.ToLower(reason(pod)), "reserv") }

func reason(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c.Message
		}
	}
	return "nothing was said of it yet"
}

// settled waits until nothing waits that fits.
func (w *world) settled() status {
	var s status
	require.Eventually(w.t, func() bool {
		w.restart()
		s = w.look()
		return len(s.fits) == 0
	}, settle, 4*tick, "what fits is not placed: %v", later(func() any { return s.fits }))
	return s
}

// restart starts replicas that have ended, as a Deployment does. One that has lost its lease ends by itself.
func (w *world) restart() {
	for i := range w.replicas {
		if !w.runs(i) {
			w.start(i)
		}
	}
}

type later func() any

func (l later) String() string { return fmt.Sprint(l()) }
