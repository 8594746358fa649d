// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fleet is the agent of many simulated nodes in one process: it publishes a GPUNode for every node of a scenario,
// and lets the pods on these nodes use the GPUs that they were given.
package fleet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/gpupack/gpupack/agent/publish"
	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/nvml/simulated"
)

const (
	// workers is how many nodes are published at a time. Most of a publication is waiting for the API server.
	workers = 16
	// A node whose publication fails is tried again after these times, doubling.
	minBackoff = 500 * time.Millisecond
	maxBackoff = 30 * time.Second

	byNode = "node"
)

// Options of a Fleet.
type Options struct {
	// Clock is the time of the simulation; nil is the true time.
	Clock clock.WithTicker
	// Interval is how often a GPU in use is read; 0 means a second.
	Interval time.Duration
	// MinInterval is the shortest time between two writes of a GPUNode; 0 means that of publish.DefaultThresholds.
	MinInterval time.Duration
	// Nodes limits the fleet to the nodes with these names; nil takes all of the scenario.
	Nodes []string
}

// Fleet is the simulation of a scenario's nodes.
type Fleet struct {
	options  Options
	client   kubernetes.Interface
	nodes    map[string]*node
	queue    workqueue.TypedRateLimitingInterface[string]
	warnings *warnings

	podInformer  cache.SharedIndexInformer
	nodeInformer cache.SharedIndexInformer
	start        time.Time

	mu          sync.Mutex
	unpublished map[string]bool
	published   chan struct{} // closed when unpublished is empty
}

// New returns a fleet of the scenario's nodes, which Run starts.
func New(cfg *rest.Config, s *simulated.Scenario, o Options) (*Fleet, error) {
	if errs := s.Validate(); len(errs) > 0 {
		return nil, fmt.Errorf("invalid scenario: %w", errs.ToAggregate())
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	cfg = rest.CopyConfig(cfg)
	if cfg.QPS == 0 {
		// client-go's default of 5 requests a second is for one agent, not for thousands.
		cfg.QPS, cfg.Burst = 1000, 2000
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	gpuNodes, err := publish.NewClient(cfg)
	if err != nil {
		return nil, err
	}
	f := &Fleet{
		options: o,
		client:  client,
		nodes:   map[string]*node{},
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](minBackoff, maxBackoff),
			workqueue.TypedRateLimitingQueueConfig[string]{Clock: o.Clock}),
		warnings:    newWarnings(o.Clock),
		unpublished: map[string]bool{},
		published:   make(chan struct{}),
	}
	thresholds := publish.DefaultThresholds
	if o.MinInterval > 0 {
		thresholds.MinInterval = o.MinInterval
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if o.Nodes != nil && !slices.Contains(o.Nodes, n.Name) {
			continue
		}
		f.nodes[n.Name] = newNode(n, s.Workloads, publish.NewPublisher(gpuNodes, n.Name, thresholds))
		f.unpublished[n.Name] = true
	}
	for _, name := range o.Nodes {
		if f.nodes[name] == nil {
			return nil, fmt.Errorf("the scenario has no node %q: choose one of its %d nodes", name, len(s.Nodes))
		}
	}
	return f, f.addInformers()
}

func (f *Fleet) addInformers() error {
	podSelector := []fields.Selector{
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
	}
	nodeSelector := fields.Everything()
	if len(f.nodes) == 1 {
		for name := range f.nodes {
			podSelector = append(podSelector, fields.OneTermEqualSelector("spec.nodeName", name))
			nodeSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name)
		}
	} else {
		podSelector = append(podSelector, fields.OneTermNotEqualSelector("spec.nodeName", ""))
	}
	f.podInformer = coreinformers.NewFilteredPodInformer(f.client, metav1.NamespaceAll, 0,
		cache.Indexers{byNode: nodeOfPod},
		func(o *metav1.ListOptions) { o.FieldSelector = fields.AndSelectors(podSelector...).String() })
	f.nodeInformer = coreinformers.NewFilteredNodeInformer(f.client, 0, cache.Indexers{},
		func(o *metav1.ListOptions) { o.FieldSelector = nodeSelector.String() })

	for informer, part := range map[cache.SharedIndexInformer]struct {
		what      string
		transform cache.TransformFunc
		enqueue   func(obj any)
	}{
		f.podInformer:  {"pods", trimPod, f.enqueueNodeOfPod},
		f.nodeInformer: {"nodes", trimNode, f.enqueueNode},
	} {
		if err := informer.SetTransform(part.transform); err != nil {
			return err
		}
		// client-go itself waits longer and longer before it tries again, but would log each time.
		err := informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
				return // The list that follows is business as usual.
			}
			f.warnings.error(ctx, "watch "+part.what, err, "Cannot watch "+part.what+", will try again")
		})
		if err != nil {
			return err
		}
		_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    part.enqueue,
			UpdateFunc: func(_, obj any) { part.enqueue(obj) },
			DeleteFunc: part.enqueue,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) enqueueNode(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	if node, ok := obj.(*corev1.Node); ok {
		f.enqueue(node.Name)
	}
}

func (f *Fleet) enqueueNodeOfPod(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	if pod, ok := obj.(*corev1.Pod); ok && convert.AsksForGPU(pod) {
		f.enqueue(pod.Spec.NodeName)
	}
}

func (f *Fleet) enqueue(name string) {
	if f.nodes[name] != nil {
		f.queue.Add(name)
	}
}

// Run simulates the fleet until the context is done. The time of the scenario starts here. A Fleet runs once.
func (f *Fleet) Run(ctx context.Context) error {
	f.start = f.options.Clock.Now()
	klog.FromContext(ctx).Info("Simulating the GPUs of nodes", "nodes", len(f.nodes))

	var running sync.WaitGroup
	defer running.Wait()
	defer f.queue.ShutDown()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { f.podInformer.RunWithContext(ctx) })
	running.Go(func() { f.nodeInformer.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), f.podInformer.HasSynced, f.nodeInformer.HasSynced) {
		return nil
	}
	for name := range f.nodes {
		f.queue.Add(name)
	}
	for range workers {
		running.Go(func() { wait.UntilWithContext(ctx, f.work, 0) })
	}
	<-ctx.Done()
	return nil
}

func (f *Fleet) work(ctx context.Context) {
	for {
		name, shutdown := f.queue.Get()
		if shutdown {
			return
		}
		due, err := f.sync(ctx, name)
		switch {
		case err == nil:
			f.queue.Forget(name)
			if !due.IsZero() {
				f.queue.AddAfter(name, due.Sub(f.options.Clock.Now()))
			}
		case ctx.Err() == nil:
			f.warnings.error(ctx, "publish", err, "Cannot publish a node's GPUs, will try again", "node", name)
			f.queue.AddRateLimited(name)
		}
		f.queue.Done(name)
	}
}

// sync reads and publishes the GPUs of one node. It returns when that must be done again, if nothing happens in between;
// the zero time if not at all.
func (f *Fleet) sync(ctx context.Context, name string) (due time.Time, err error) {
	obj, exists, err := f.nodeInformer.GetIndexer().GetByKey(name)
	if err != nil || !exists {
		return time.Time{}, err // The GPUNode goes with its Node.
	}
	kubeNode := obj.(*corev1.Node)
	pods, err := f.podInformer.GetIndexer().ByIndex(byNode, name)
	if err != nil {
		return time.Time{}, err
	}

	n := f.nodes[name]
	now := f.options.Clock.Now()
	elapsed := now.Sub(f.start)
	tenants, problems := n.tenants(pods, elapsed)
	for _, problem := range problems {
		f.warnings.error(ctx, "pod", problem, "Cannot simulate a pod as it asks to be", "node", name)
	}
	gpus := n.devices.Read(elapsed, tenants)
	if err := f.setAllocatable(ctx, kubeNode, gpus); err != nil {
		return time.Time{}, err
	}
	next, err := n.publisher.Offer(ctx, kubeNode.UID, publish.Reading{
		Time:          now,
		DriverVersion: cmp.Or(n.scenario.DriverVersion, simulated.DefaultDriverVersion),
		Source:        v1alpha1.SourceSimulated,
		Mode:          cmp.Or(n.scenario.Mode, v1alpha1.ModeManage),
		GPUs:          gpus,
	})
	if err != nil {
		return time.Time{}, err
	}
	f.setPublished(name)
	if inUse(gpus) {
		next = min(next, f.options.Interval)
	}
	if change, ok := n.devices.NextChange(elapsed); ok {
		next = min(next, change-elapsed)
	}
	return now.Add(next), nil
}

func inUse(gpus []v1alpha1.GPU) bool {
	return slices.ContainsFunc(gpus, func(g v1alpha1.GPU) bool { return len(g.Pods) > 0 })
}

// setAllocatable makes the node's nvidia.com/gpu what the kubelet makes it with NVIDIA's device plugin: all GPUs are its
// capacity, the healthy ones are allocatable.
func (f *Fleet) setAllocatable(ctx context.Context, node *corev1.Node, gpus []v1alpha1.GPU) error {
	healthy := 0
	for i := range gpus {
		if gpus[i].Healthy {
			healthy++
		}
	}
	is := func(list corev1.ResourceList, want int) bool {
		q, ok := list[v1alpha1.ResourceGPU]
		return ok && q.Value() == int64(want)
	}
	if is(node.Status.Capacity, len(gpus)) && is(node.Status.Allocatable, healthy) {
		return nil
	}
	patch := fmt.Sprintf(`{"status":{"capacity":{%[1]q:"%[2]d"},"allocatable":{%[1]q:"%[3]d"}}}`,
		v1alpha1.ResourceGPU, len(gpus), healthy)
	_, err := f.client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{FieldManager: publish.FieldManager}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set %s of node %s to %d: %w", v1alpha1.ResourceGPU, node.Name, healthy, err)
	}
	return nil
}

func (f *Fleet) setPublished(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unpublished[name] {
		delete(f.unpublished, name)
		if len(f.unpublished) == 0 {
			close(f.published)
		}
	}
}

// WaitPublished waits until Run has published a reading of every node.
func (f *Fleet) WaitPublished(ctx context.Context) error {
	select {
	case <-f.published:
		return nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.unpublished) == 0 {
		return nil
	}
	names := slices.Sorted(maps.Keys(f.unpublished))
	return fmt.Errorf("%d of %d nodes have published no reading, such as %s (is there a Node of that name?): %w",
		len(names), len(f.nodes), strings.Join(names[:min(3, len(names))], ", "), context.Cause(ctx))
}

func nodeOfPod(obj any) ([]string, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" || !convert.AsksForGPU(pod) {
		return nil, nil
	}
	return []string{pod.Spec.NodeName}, nil
}
