// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/nvml/simulated"
	"github.com/gpupack/gpupack/test/embedded"
)

const (
	crd = "../../manifests/base/crds/gpupack.dev_gpunodes.yaml"

	eventually = time.Minute
	tick       = 50 * time.Millisecond
)

func TestMain(m *testing.M) {
	os.Exit(embedded.RunMain(m, embedded.Options{ControllerManager: true, Kwok: true}))
}

// cluster is the control plane as a test looks at it.
type cluster struct {
	*embedded.ControlPlane
	kube      kubernetes.Interface
	gpuNodes  dynamic.ResourceInterface
	namespace string
}

func newCluster(t *testing.T, cp *embedded.ControlPlane) *cluster {
	require.NoError(t, cp.InstallCRDs(t.Context(), crd))
	kube, err := kubernetes.NewForConfig(cp.Config())
	require.NoError(t, err)
	client, err := dynamic.NewForConfig(cp.Config())
	require.NoError(t, err)
	return &cluster{ControlPlane: cp, kube: kube, gpuNodes: client.Resource(v1alpha1.GPUNodeGVR), namespace: cp.Namespace(t)}
}

// gpuNode returns the GPUNode with that name; nil if there is none.
func (c *cluster) gpuNode(t require.TestingT, name string) *v1alpha1.GPUNode {
	obj, err := c.gpuNodes.Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(t, err)
	gn := &v1alpha1.GPUNode{}
	require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(obj.Object, gn))
	return gn
}

func (c *cluster) node(t require.TestingT, name string) *corev1.Node {
	node, err := c.kube.CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{})
	require.NoError(t, err)
	return node
}

func (c *cluster) deleteNode(t require.TestingT, name string) {
	err := c.kube.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{})
	if !apierrors.IsNotFound(err) {
		require.NoError(t, err)
	}
}

// run runs a fleet until the end of the test.
func (c *cluster) run(t *testing.T, cfg *rest.Config, s *simulated.Scenario, o Options) *Fleet {
	f, err := New(cfg, s, o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
		for i := range s.Nodes {
			c.deleteNode(t, s.Nodes[i].Name)
		}
	})
	return f
}

// start creates the nodes, runs the fleet and waits until it has published every node.
func (c *cluster) start(t *testing.T, s *simulated.Scenario, o Options) *Fleet {
	if o.MinInterval == 0 {
		o.MinInterval = 100 * time.Millisecond
	}
	f := c.run(t, c.Config(), s, o)
	require.NoError(t, f.CreateNodes(t.Context()))
	c.waitPublished(t, f)
	return f
}

func (c *cluster) waitPublished(t *testing.T, f *Fleet) {
	ctx, cancel := context.WithTimeout(t.Context(), eventually)
	defer cancel()
	require.NoError(t, f.WaitPublished(ctx))
}

// eventuallyGPUs waits until the GPUs of the node are as the check wants them.
func (c *cluster) eventuallyGPUs(t *testing.T, node string, check func(t *assert.CollectT, gpus []v1alpha1.GPU)) {
	t.Helper()
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		gn := c.gpuNode(collect, node)
		require.NotNil(collect, gn)
		assert.NoError(collect, convert.CheckTelemetry(gn))
		check(collect, gn.Status.GPUs)
	}, eventually, tick)
}

func (c *cluster) eventuallyAllocatable(t *testing.T, node string, capacity, allocatable int64) {
	t.Helper()
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		status := c.node(collect, node).Status
		assert.Equal(collect, capacity, count(status.Capacity))
		assert.Equal(collect, allocatable, count(status.Allocatable))
	}, eventually, tick)
}

func count(list corev1.ResourceList) int64 {
	q := list[v1alpha1.ResourceGPU]
	return q.Value()
}

func (c *cluster) createPod(t *testing.T, name, node string, annotations map[string]string, requests map[corev1.ResourceName]string) *corev1.Pod {
	t.Helper()
	limits := corev1.ResourceList{}
	for name, quantity := range requests {
		limits[name] = resource.MustParse(quantity)
	}
	pod, err := c.kube.CoreV1().Pods(c.namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}, Annotations: annotations},
		Spec: corev1.PodSpec{
			NodeName: node,
			Containers: []corev1.Container{{
				Name: "main", Image: "none", Resources: corev1.ResourceRequirements{Limits: limits, Requests: limits},
			}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	return pod
}

func (c *cluster) deletePod(t *testing.T, name string) {
	require.NoError(t, c.kube.CoreV1().Pods(c.namespace).Delete(t.Context(), name,
		metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}))
}

func scenario(nodes ...simulated.Node) *simulated.Scenario {
	for i := range nodes {
		nodes[i].CPUMilli, nodes[i].MemoryMiB = 64000, 256<<10
		if nodes[i].GPUs == nil {
			nodes[i].GPUs = []simulated.GPUGroup{{Model: "A10", Count: 4, MemoryMiB: 24576, ReservedMiB: 576}}
		}
	}
	return &simulated.Scenario{Nodes: nodes, Workloads: []simulated.Workload{{MemoryFraction: 0.5, Utilization: ptr.To[int32](40)}}}
}

func TestFleet(t *testing.T) {
	c := newCluster(t, embedded.Get(t))
	s := scenario(
		simulated.Node{Name: "fleet-plain", Labels: map[string]string{"rack": "r1"},
			Taints: []corev1.Taint{{Key: "example.com/t", Effect: corev1.TaintEffectPreferNoSchedule}}},
		simulated.Node{Name: "fleet-sick", Mode: v1alpha1.ModeObserve, DriverVersion: "550.1",
			GPUs:      []simulated.GPUGroup{{Model: "A10", Count: 1, MemoryMiB: 24576}, {Model: "T4", Count: 2, MemoryMiB: 15360}},
			Processes: []simulated.Process{{GPU: 0, MemoryMiB: 20000, Utilization: 30}},
			Events:    []simulated.Event{{GPU: 1, Kind: simulated.EventXid, Code: 79}}},
	)
	f := c.start(t, s, Options{})

	node := c.node(t, "fleet-plain")
	for label, want := range map[string]string{"rack": "r1", "kubernetes.io/hostname": "fleet-plain",
		"nvidia.com/gpu.product": "A10", "nvidia.com/gpu.count": "4", "nvidia.com/gpu.memory": "24576"} {
		require.Equal(t, want, node.Labels[label], label)
	}
	require.Contains(t, node.Spec.Taints, corev1.Taint{Key: "example.com/t", Effect: corev1.TaintEffectPreferNoSchedule})
	require.Equal(t, "64", node.Status.Allocatable.Cpu().String())
	require.Equal(t, "256Gi", node.Status.Allocatable.Memory().String())
	require.Equal(t, "110", node.Status.Allocatable.Pods().String())
	c.eventuallyAllocatable(t, "fleet-plain", 4, 4)

	gn := c.gpuNode(t, "fleet-plain")
	require.Equal(t, node.UID, gn.OwnerReferences[0].UID)
	require.Equal(t, v1alpha1.SourceSimulated, gn.Status.Source)
	require.Equal(t, v1alpha1.ModeManage, gn.Status.Mode)
	require.Equal(t, simulated.DefaultDriverVersion, gn.Status.DriverVersion)
	require.Equal(t, v1alpha1.GPUNodeSummary{GPUs: "4/4", Model: "A10"}, gn.Status.Summary)
	require.Equal(t, v1alpha1.GPU{UUID: simulated.UUID("fleet-plain", 2), Index: 2, Model: "A10",
		MemoryTotalMiB: 24576, MemoryReservedMiB: 576, Healthy: true}, gn.Status.GPUs[2])

	require.NotContains(t, c.node(t, "fleet-sick").Labels, "nvidia.com/gpu.product", "there are two")
	c.eventuallyAllocatable(t, "fleet-sick", 3, 2)
	gn = c.gpuNode(t, "fleet-sick")
	require.Equal(t, v1alpha1.ModeObserve, gn.Status.Mode)
	require.Equal(t, "550.1", gn.Status.DriverVersion)
	require.Equal(t, v1alpha1.GPUNodeSummary{GPUs: "2/3", Model: "mixed"}, gn.Status.Summary)
	require.Equal(t, int64(20000), gn.Status.GPUs[0].MemoryForeignMiB)
	require.Equal(t, int64(20000), gn.Status.GPUs[0].MemoryUsedMiB)
	require.Equal(t, int32(30), gn.Status.GPUs[0].Utilization)
	require.False(t, gn.Status.GPUs[1].Healthy)
	require.Equal(t, "Xid 79: GPU has fallen off the bus", gn.Status.GPUs[1].UnhealthyMessage)

	// To create them again changes nothing.
	require.NoError(t, f.CreateNodes(t.Context()))

	// With its Node goes the GPUNode; a new Node of that name gets a new one.
	c.deleteNode(t, "fleet-plain")
	require.Eventually(t, func() bool { return c.gpuNode(t, "fleet-plain") == nil }, 2*time.Minute, tick,
		"the garbage collector looks for new kinds of objects every 30 seconds")
	require.NoError(t, f.CreateNodes(t.Context()))
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		gn := c.gpuNode(collect, "fleet-plain")
		require.NotNil(collect, gn)
		require.Equal(collect, c.node(collect, "fleet-plain").UID, gn.OwnerReferences[0].UID)
		require.Len(collect, gn.Status.GPUs, 4)
	}, eventually, tick)
}

func TestPodsUseGPUs(t *testing.T) {
	c := newCluster(t, embedded.Get(t))
	const node = "pods"
	s := scenario(simulated.Node{Name: node, Events: []simulated.Event{{GPU: 1, Kind: simulated.EventXid, Code: 48}}})
	c.start(t, s, Options{Interval: 100 * time.Millisecond})

	annotated := func(indices ...int) map[string]string {
		var uuids []string
		for _, i := range indices {
			uuids = append(uuids, simulated.UUID(node, i))
		}
		return map[string]string{v1alpha1.AnnotationGPUs: strings.Join(uuids, ",")}
	}
	whole := func(n string) map[corev1.ResourceName]string {
		return map[corev1.ResourceName]string{v1alpha1.ResourceGPU: n}
	}
	// expect waits until the pods have these GPUs, one line for each use.
	expect := func(want ...string) {
		t.Helper()
		c.eventuallyGPUs(t, node, func(collect *assert.CollectT, gpus []v1alpha1.GPU) {
			var got []string
			for _, g := range gpus {
				for _, p := range g.Pods {
					got = append(got, fmt.Sprintf("%d: %s %d MiB %d%%", g.Index, p.Name, p.MemoryUsedMiB, p.Utilization))
				}
			}
			assert.ElementsMatch(collect, want, got)
		})
	}

	// The scheduler's choice counts, for a share and for whole GPUs.
	share := c.createPod(t, "share", node, annotated(2), map[corev1.ResourceName]string{v1alpha1.ResourceGPUMemory: "8Gi"})
	expect("2: share 4096 MiB 40%")
	gpu := c.gpuNode(t, node).Status.GPUs[2]
	require.Equal(t, share.UID, gpu.Pods[0].UID)
	require.Equal(t, c.namespace, gpu.Pods[0].Namespace)
	require.Equal(t, int64(4096), gpu.MemoryUsedMiB)
	require.Zero(t, gpu.MemoryForeignMiB)

	// Without one, the lowest free GPU that is healthy.
	c.createPod(t, "other", node, nil, whole("2"))
	expect("2: share 4096 MiB 40%", "0: other 12000 MiB 40%", "3: other 12000 MiB 40%")

	// A second share of the same GPU uses more than it asked for; annotations say how much.
	greedy := annotated(2)
	greedy[simulated.AnnotationMemory] = "12Gi"
	greedy[simulated.AnnotationUtilization] = "60"
	c.createPod(t, "greedy", node, greedy, map[corev1.ResourceName]string{v1alpha1.ResourceGPUMilli: "250"})
	expect("2: share 4096 MiB 40%", "2: greedy 12288 MiB 60%", "0: other 12000 MiB 40%", "3: other 12000 MiB 40%")

	// One pod that nobody can serve, and one that says nonsense, use nothing and harm nobody.
	c.createPod(t, "none-left", node, nil, whole("1"))
	both := whole("1")
	both[v1alpha1.ResourceGPUMilli] = "100"
	c.createPod(t, "nonsense", node, annotated(2), both)
	c.createPod(t, "unknown", node, map[string]string{v1alpha1.AnnotationGPUs: "GPU-unknown"}, whole("1"))
	c.createPod(t, "no-gpu", node, nil, nil)

	// What is freed goes to who waits, who then keeps it.
	c.deletePod(t, "other")
	expect("2: share 4096 MiB 40%", "2: greedy 12288 MiB 60%", "0: none-left 12000 MiB 40%")
	c.deletePod(t, "share")
	expect("2: greedy 12288 MiB 60%", "0: none-left 12000 MiB 40%")

	// A pod that has ended uses nothing.
	_, err := c.kube.CoreV1().Pods(c.namespace).Patch(t.Context(), "greedy", "application/merge-patch+json",
		[]byte(`{"status":{"phase":"Succeeded"}}`), metav1.PatchOptions{}, "status")
	require.NoError(t, err)
	expect("0: none-left 12000 MiB 40%")
	c.deletePod(t, "none-left")
	expect()
}

// TestTimePasses moves the clock itself.
func TestTimePasses(t *testing.T) {
	c := newCluster(t, embedded.Get(t))
	const node = "time"
	s := scenario(simulated.Node{Name: node,
		Processes: []simulated.Process{{GPU: 3, MemoryMiB: 9000, From: 30 * time.Second, Until: 40 * time.Second}},
		Events: []simulated.Event{
			{GPU: 0, At: 10 * time.Second, Kind: simulated.EventXid, Code: 79},
			{GPU: 0, At: 20 * time.Second, Kind: simulated.EventRecover},
		}})
	s.Workloads = []simulated.Workload{{MemoryFraction: 0.5, GrowthMiBPerMinute: 6000, Utilization: ptr.To[int32](1)}}
	begin := time.Now().Truncate(time.Microsecond) // as precise as a GPUNode
	clock := clocktesting.NewFakeClock(begin)
	c.start(t, s, Options{Clock: clock, MinInterval: 2 * time.Second})
	until := func(seconds int) { clock.SetTime(begin.Add(time.Duration(seconds) * time.Second)) }

	until(5)
	require.Equal(t, "4/4", c.gpuNode(t, node).Status.Summary.GPUs)
	until(10)
	c.eventuallyGPUs(t, node, func(t *assert.CollectT, gpus []v1alpha1.GPU) {
		assert.False(t, gpus[0].Healthy)
		assert.Equal(t, v1alpha1.ReasonXid, gpus[0].UnhealthyReason)
	})
	c.eventuallyAllocatable(t, node, 4, 3)
	until(20)
	c.eventuallyGPUs(t, node, func(t *assert.CollectT, gpus []v1alpha1.GPU) {
		assert.True(t, gpus[0].Healthy)
		assert.Empty(t, gpus[0].UnhealthyReason)
	})
	c.eventuallyAllocatable(t, node, 4, 4)
	until(30)
	c.eventuallyGPUs(t, node, func(t *assert.CollectT, gpus []v1alpha1.GPU) {
		assert.Equal(t, int64(9000), gpus[3].MemoryForeignMiB)
	})
	until(40)
	c.eventuallyGPUs(t, node, func(t *assert.CollectT, gpus []v1alpha1.GPU) { assert.Zero(t, gpus[3].MemoryForeignMiB) })

	// A heartbeat, though nothing happens.
	until(120)
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		assert.True(collect, begin.Add(120*time.Second).Equal(c.gpuNode(collect, node).Status.ObservedTime.Time))
	}, eventually, tick)

	// A pod whose memory grows from when it is bound.
	until(123)
	c.createPod(t, "leaky", node, map[string]string{v1alpha1.AnnotationGPUs: simulated.UUID(node, 1)},
		map[corev1.ResourceName]string{v1alpha1.ResourceGPUMemory: "2000Mi"})
	used := func(want int64) {
		t.Helper()
		c.eventuallyGPUs(t, node, func(t *assert.CollectT, gpus []v1alpha1.GPU) { assert.Equal(t, want, gpus[1].MemoryUsedMiB) })
	}
	used(1000)
	until(153)
	used(4000)
}

func TestNewRefuses(t *testing.T) {
	s := scenario(simulated.Node{Name: "a"})
	_, err := New(&rest.Config{}, s, Options{Nodes: []string{"b"}})
	require.EqualError(t, err, `the scenario has no node "b": choose one of its 1 nodes`)
	s.Nodes[0].GPUs[0].MemoryMiB = -1
	_, err = New(&rest.Config{}, s, Options{})
	require.ErrorContains(t, err, "invalid scenario: nodes[0].gpus[0].memory: Invalid value: -1")
}

func TestOneNode(t *testing.T) {
	c := newCluster(t, embedded.Get(t))
	s := scenario(simulated.Node{Name: "one"}, simulated.Node{Name: "two"})
	c.start(t, s, Options{Nodes: []string{"two"}})
	require.NotNil(t, c.gpuNode(t, "two"))
	require.Nil(t, c.gpuNode(t, "one"))
	_, err := c.kube.CoreV1().Nodes().Get(t.Context(), "one", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "got %v", err)
}

// logSink keeps what was logged as an error.
type logSink struct {
	mu    sync.Mutex
	lines []string
}

func (s *logSink) context(ctx context.Context) context.Context {
	logger := funcr.New(func(_, args string) {
		if strings.Contains(args, `"error"=`) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.lines = append(s.lines, args)
		}
	}, funcr.Options{})
	return klog.NewContext(ctx, logger)
}

func (s *logSink) errors() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

// TestWithoutRights starts an agent that may do nothing, and then gives it its rights, one by one.
func TestWithoutRights(t *testing.T) {
	c := newCluster(t, embedded.Get(t))
	s := scenario(simulated.Node{Name: "rights-0"}, simulated.Node{Name: "rights-1"})
	f, err := New(c.ConfigFor("agent"), s, Options{})
	require.NoError(t, err)
	t.Cleanup(func() { c.deleteNode(t, "rights-0"); c.deleteNode(t, "rights-1") })
	require.ErrorContains(t, f.CreateNodes(t.Context()), `User "agent" cannot create resource "nodes"`)
	admin, err := New(c.Config(), s, Options{})
	require.NoError(t, err)
	require.NoError(t, admin.CreateNodes(t.Context()))

	var log logSink
	ctx, cancel := context.WithCancel(log.context(t.Context()))
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	require.Eventually(t, func() bool { return len(log.errors()) == 2 }, eventually, tick)
	lines := strings.Join(log.errors(), "\n")
	require.Contains(t, lines, `"msg"="Cannot watch pods, will try again"`)
	require.Contains(t, lines, `"msg"="Cannot watch nodes, will try again"`)
	require.Contains(t, lines, `User \"agent\" cannot list resource \"nodes\"`)
	expired, stop := context.WithCancel(t.Context())
	stop()
	require.EqualError(t, f.WaitPublished(expired), "2 of 2 nodes have published no reading, such as rights-0, rights-1 "+
		"(is there a Node of that name?): context canceled")

	grant := func(name string, rules ...rbacv1.PolicyRule) {
		_, err := c.kube.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}, metav1.CreateOptions{})
		require.NoError(t, err)
		_, err = c.kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "agent"}},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	grant("agent-reads", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods", "nodes"}, Verbs: []string{"list", "watch"}})
	require.Eventually(t, func() bool { return len(log.errors()) == 3 }, eventually, tick)
	require.Contains(t, log.errors()[2], `"msg"="Cannot publish a node's GPUs, will try again"`)
	require.Contains(t, log.errors()[2], `cannot patch resource \"gpunodes\"`)

	grant("agent-writes", rbacv1.PolicyRule{APIGroups: []string{v1alpha1.GroupName},
		Resources: []string{"gpunodes", "gpunodes/status"}, Verbs: []string{"create", "patch"}})
	c.waitPublished(t, f)
	require.Len(t, log.errors(), 3, "many attempts, one line of a kind in a minute")
}

// TestAPIServerRestarts has a control plane of its own.
func TestAPIServerRestarts(t *testing.T) {
	cp, err := embedded.Start(t.Context(), embedded.Options{})
	require.NoError(t, err)
	t.Cleanup(cp.Stop)
	c := newCluster(t, cp)
	const node = "restart"
	c.start(t, scenario(simulated.Node{Name: node}), Options{Interval: 100 * time.Millisecond})

	require.NoError(t, cp.StopComponent(embedded.APIServer))
	require.NoError(t, cp.StartComponent(t.Context(), embedded.APIServer))
	c.createPod(t, "after", node, map[string]string{v1alpha1.AnnotationGPUs: simulated.UUID(node, 3)},
		map[corev1.ResourceName]string{v1alpha1.ResourceGPU: "1"})
	c.eventuallyGPUs(t, node, func(t *assert.CollectT, gpus []v1alpha1.GPU) {
		require.Len(t, gpus[3].Pods, 1)
		assert.Equal(t, "after", gpus[3].Pods[0].Name)
	})
}
