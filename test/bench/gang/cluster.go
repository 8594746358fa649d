// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	pgv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/embedded"
)

const (
	gpusPerNode = 8
	// creators is how many requests of ours are under way at once.
	creators  = 16
	namespace = "bench"
)

// cluster is the control plane and what is in it. Nodes are objects that nobody runs: there is no kwok, nor a controller that
// would miss a heartbeat.
type cluster struct {
	cp      *embedded.ControlPlane
	client  kubernetes.Interface
	dynamic dynamic.Interface
	nodes   int
	out     io.Writer
}

var (
	podGroups = pgv1alpha1.SchemeGroupVersion.WithResource("podgroups")
	gpuNodes  = v1alpha1.SchemeGroupVersion.WithResource("gpunodes")
)

func startCluster(ctx context.Context, out io.Writer) (*cluster, error) {
	cp, err := embedded.Start(ctx, embedded.Options{
		ControllerManager: true,
		// Taints of nodes that are not ready go with the node controllers, which do not run.
		APIServerArgs: []string{"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition"},
		ControllerManagerArgs: []string{
			"--controllers=job-controller,serviceaccount-controller",
			"--concurrent-job-syncs=32",
			"--kube-api-qps=5000", "--kube-api-burst=5000",
		},
		Progress: out,
	})
	if err != nil {
		return nil, err
	}
	c := &cluster{cp: cp, out: out}
	if err := c.prepare(ctx); err != nil {
		cp.Stop()
		return nil, err
	}
	return c, nil
}

func (c *cluster) prepare(ctx context.Context) error {
	// Only Jobs need it, and it would take its part of the processors from everybody.
	if err := c.cp.StopComponent(embedded.ControllerManager); err != nil {
		return err
	}
	config := c.cp.Config()
	config.UserAgent = "bench-gang"
	var err error
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	config = rest.CopyConfig(config)
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	if c.client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	crds, err := filepath.Glob("manifests/base/crds/*.yaml")
	if err != nil {
		return err
	}
	if err := c.cp.InstallCRDs(ctx, crds...); err != nil {
		return err
	}
	if err := c.cp.Apply(ctx, "manifests/base/namespace.yaml"); err != nil {
		return err
	}
	_, err = c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	return err
}

func (c *cluster) stop() { c.cp.Stop() }

// pid of a component of the control plane.
func (c *cluster) pid(component string) (int, error) {
	data, err := os.ReadFile(filepath.Join(c.cp.Dir(), component+".pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// cpuOf is the processor time that a component has used, or 0 where that cannot be told.
func (c *cluster) cpuOf(component string) float64 {
	pid, err := c.pid(component)
	if err != nil {
		return 0
	}
	seconds, _ := cpuSeconds(pid)
	return seconds
}

// each runs do for 0 to n-1, some at once.
func each(ctx context.Context, n, atOnce int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(n, atOnce) {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := do(ctx, i); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// grow adds nodes until there are n.
func (c *cluster) grow(ctx context.Context, n int) error {
	if n <= c.nodes {
		return nil
	}
	first := c.nodes
	fmt.Fprintf(c.out, "creating %d nodes\n", n-first)
	err := each(ctx, n-first, creators, func(ctx context.Context, i int) error {
		node, err := c.client.CoreV1().Nodes().Create(ctx, newNode(first+i), metav1.CreateOptions{})
		if err != nil {
			return err
		}
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(newGPUNode(node))
		if err != nil {
			return err
		}
		created, err := c.dynamic.Resource(gpuNodes).Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		created.Object["status"] = object["status"]
		_, err = c.dynamic.Resource(gpuNodes).UpdateStatus(ctx, created, metav1.UpdateOptions{})
		return err
	})
	if err == nil {
		c.nodes = n
	}
	return err
}

func nodeName(i int) string { return fmt.Sprintf("node-%05d", i) }

func newNode(i int) *corev1.Node {
	resources := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("128"),
		corev1.ResourceMemory: resource.MustParse("1Ti"),
		corev1.ResourcePods:   resource.MustParse("110"),
		v1alpha1.ResourceGPU:  *resource.NewQuantity(gpusPerNode, resource.DecimalSI),
	}
	now := metav1.Now()
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:   nodeName(i),
			Labels: map[string]string{corev1.LabelHostname: nodeName(i), corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"},
		},
		Status: corev1.NodeStatus{
			Capacity:    resources,
			Allocatable: resources.DeepCopy(),
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
				LastHeartbeatTime: now, LastTransitionTime: now,
			}},
			NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64", KubeletVersion: "v1.35.4"},
		},
	}
}

// ahead is how much later than now telemetry says that it was read, so that none is stale before the benchmark ends, though
// nobody writes heartbeats. What writes of telemetry cost is measured where that is said.
const ahead = 24 * time.Hour

func newGPUNode(node *corev1.Node) *v1alpha1.GPUNode {
	gn := &v1alpha1.GPUNode{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: "GPUNode"},
		ObjectMeta: metav1.ObjectMeta{
			Name: node.Name,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: ptr.To(true),
			}},
		},
		Status: v1alpha1.GPUNodeStatus{
			ObservedTime:  ptr.To(metav1.NewMicroTime(time.Now().Add(ahead))),
			DriverVersion: "580.95.05",
			Source:        v1alpha1.SourceSimulated,
			Mode:          v1alpha1.ModeManage,
			Summary:       v1alpha1.GPUNodeSummary{GPUs: fmt.Sprintf("%d/%d", gpusPerNode, gpusPerNode), Model: "H100-SXM5-80GB"},
			Conditions: []metav1.Condition{{
				Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Read", LastTransitionTime: metav1.Now(),
			}},
		},
	}
	for i := range gpusPerNode {
		gn.Status.GPUs = append(gn.Status.GPUs, v1alpha1.GPU{
			UUID:  fmt.Sprintf("GPU-%s-%d", node.Name, i),
			Index: int32(i), Model: "H100-SXM5-80GB",
			MemoryTotalMiB: 81559, MemoryReservedMiB: 600,
			PowerMilliwatts: 70_000, TemperatureCelsius: 30, Healthy: true,
		})
	}
	return gn
}

// churn changes the telemetry of a part of the nodes each second.
type churn struct {
	cancel  context.CancelFunc
	ended   chan error
	started time.Time
	written atomic.Int64
}

// churn starts to write the utilisation of all GPUs of that many nodes a second, as well as that can be done.
func (c *cluster) churn(ctx context.Context, perSecond int) *churn {
	ctx, cancel := context.WithCancel(ctx)
	w := &churn{cancel: cancel, ended: make(chan error, 1), started: time.Now()}
	limiter := rate.NewLimiter(rate.Limit(perSecond), 1)
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range creators {
		group.Go(func() error {
			for limiter.Wait(ctx) == nil {
				i := int(next.Add(1))
				patch, err := json.Marshal(reading(i))
				if err != nil {
					return err
				}
				_, err = c.dynamic.Resource(gpuNodes).Patch(ctx, nodeName(i%c.nodes), types.JSONPatchType, patch, metav1.PatchOptions{}, "status")
				if ctx.Err() != nil {
					return nil
				}
				if err != nil {
					return err
				}
				w.written.Add(1)
			}
			return nil
		})
	}
	go func() { w.ended <- group.Wait() }()
	return w
}

// reading is a JSON patch with another utilisation of each GPU.
func reading(i int) []map[string]any {
	patch := []map[string]any{
		{"op": "replace", "path": "/status/observedTime", "value": metav1.NewMicroTime(time.Now().Add(ahead))},
	}
	for g := range gpusPerNode {
		patch = append(patch, map[string]any{
			"op": "replace", "path": fmt.Sprintf("/status/gpus/%d/utilization", g), "value": (i*31 + g*7) % 101,
		})
	}
	return patch
}

// stop returns how many nodes were written a second.
func (w *churn) stop() (float64, error) {
	w.cancel()
	err := <-w.ended
	return float64(w.written.Load()) / time.Since(w.started).Seconds(), err
}

// clear deletes all pods, PodGroups and Jobs and returns when they are gone.
func (c *cluster) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, fmt.Errorf("the pods of the last run are not gone after 5 minutes"))
	defer cancel()
	now := metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)}
	for {
		gone, err := c.deleteAll(ctx, now)
		switch {
		case ctx.Err() != nil:
			return errors.Join(context.Cause(ctx), err)
		case gone && err == nil:
			return nil
		}
		// The API server gives up on a collection that takes it more than a minute, and has deleted a part by then.
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

// deleteAll deletes what it can and says whether no pods are left.
func (c *cluster) deleteAll(ctx context.Context, how metav1.DeleteOptions) (gone bool, err error) {
	if err := c.client.BatchV1().Jobs(namespace).DeleteCollection(ctx, how, metav1.ListOptions{}); err != nil {
		return false, err
	}
	if err := c.dynamic.Resource(podGroups).Namespace(namespace).DeleteCollection(ctx, how, metav1.ListOptions{}); err != nil {
		return false, err
	}
	if err := c.client.CoreV1().Pods(namespace).DeleteCollection(ctx, how, metav1.ListOptions{}); err != nil {
		return false, err
	}
	list, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{Limit: 1})
	return err == nil && len(list.Items) == 0, err
}

// requests are those of the API server for pods, their bindings, events and PodGroups, which a scheduler makes.
func (c *cluster) requests(ctx context.Context) (metrics, error) {
	data, err := c.client.CoreV1().RESTClient().Get().AbsPath("/metrics").SetHeader("Accept", "text/plain").Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	return parseMetrics(data, "apiserver_request_total"), nil
}
