// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package livecache keeps the nodes, GPUNodes and GPU pods of a cluster up to date by watches. Of each object it keeps what is
// shown of it, so that thousands of nodes fit in little memory.
package livecache

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// Options say what to keep.
type Options struct {
	// NodeSelector is which nodes to watch; nil for all.
	NodeSelector labels.Selector
	// NodeLabels are the keys of the labels of nodes that are kept.
	NodeLabels []string
}

// Resource is one of those that a Cache watches.
type Resource int

// Resources.
const (
	Nodes Resource = iota
	GPUNodes
	Pods
	resources
)

func (r Resource) String() string { return [...]string{"nodes", "gpunodes", "pods"}[r] }

// Status is how far the cache is with a resource.
type Status struct {
	// Read counts the objects of the list so far.
	Read int
	// Synced is true once the resource was listed as a whole.
	Synced bool
	// Err is why it cannot be listed or watched now; the cache tries again. nil while all is well.
	Err error
}

// Settled says whether the resource was listed, or cannot be.
func (s Status) Settled() bool { return s.Synced || s.Err != nil }

// Cache is what is known of the cluster. Its methods may be called from everywhere.
type Cache struct {
	client  client.WithWatch
	options Options
	wake    chan struct{}

	mu       sync.Mutex
	nodes    map[string]*corev1.Node
	gpuNodes map[string]*v1alpha1.GPUNode
	pods     map[types.NamespacedName]*Pod
	// byNode has the pods of each node; under the empty name, those that have none.
	byNode map[string][]*Pod
	// specs are the pod specs that pods share, by what they ask for.
	specs   map[string]*corev1.PodSpec
	changed map[string]struct{}
	status  [resources]Status
}

// New returns a cache, which Run fills.
func New(c client.WithWatch, o Options) *Cache {
	return &Cache{
		client: c, options: o, wake: make(chan struct{}, 1),
		nodes: map[string]*corev1.Node{}, gpuNodes: map[string]*v1alpha1.GPUNode{}, pods: map[types.NamespacedName]*Pod{},
		byNode: map[string][]*Pod{}, specs: map[string]*corev1.PodSpec{}, changed: map[string]struct{}{},
	}
}

// Run lists and watches until the context is done.
func (c *Cache) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	for _, s := range c.sources() {
		r := cache.NewReflectorWithOptions(s, s.example, s, cache.ReflectorOptions{
			Name: s.resource.String(), TypeDescription: s.resource.String(),
		})
		running.Go(func() { r.RunWithContext(ctx) })
	}
}

// Changed gets a value when something has changed since the last call of Take.
func (c *Cache) Changed() <-chan struct{} { return c.wake }

// Take returns the names of the nodes that changed since the last call, or whose telemetry or pods did, in any order. The empty
// name stands for the pods without a node.
func (c *Cache) Take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := make([]string, 0, len(c.changed))
	for name := range c.changed {
		names = append(names, name)
	}
	clear(c.changed)
	return names
}

// Status is how far the cache is with a resource.
func (c *Cache) Status(r Resource) Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status[r]
}

// Node returns what is known under that name: the node and its telemetry, nil where there is none, and the pods on it by
// namespace and name. Nobody may change them.
func (c *Cache) Node(name string) (*corev1.Node, *v1alpha1.GPUNode, []*Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pods := slices.Clone(c.byNode[name])
	slices.SortFunc(pods, func(a, b *Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return c.nodes[name], c.gpuNodes[name], pods
}

// touch notes that a node changed. The caller holds the lock.
func (c *Cache) touch(name string) {
	c.changed[name] = struct{}{}
	c.signal()
}

func (c *Cache) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// setStatus changes the status of a resource.
func (c *Cache) setStatus(r Resource, change func(*Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.status[r])
	c.signal()
}

// put keeps an object, trimmed. The caller holds the lock.
func (c *Cache) put(obj any) {
	switch o := obj.(type) {
	case *corev1.Node:
		if old := c.nodes[o.Name]; old == nil || !sameVersion(old, o) {
			c.nodes[o.Name] = o
			c.touch(o.Name)
		}
	case *v1alpha1.GPUNode:
		if old := c.gpuNodes[o.Name]; old == nil || !sameVersion(old, o) {
			c.gpuNodes[o.Name] = o
			c.touch(o.Name)
		}
	case *Pod:
		old := c.pods[o.key()]
		if old != nil && old.same(o) {
			return
		}
		if old != nil {
			c.unplace(old)
		}
		c.pods[o.key()] = o
		c.byNode[o.Node] = append(c.byNode[o.Node], o)
		c.touch(o.Node)
	}
}

func sameVersion(a, b client.Object) bool {
	return a.GetResourceVersion() == b.GetResourceVersion() && a.GetResourceVersion() != ""
}

// remove forgets the object of that key. The caller holds the lock.
func (c *Cache) remove(r Resource, key types.NamespacedName) {
	switch r {
	case Nodes:
		delete(c.nodes, key.Name)
		c.touch(key.Name)
	case GPUNodes:
		delete(c.gpuNodes, key.Name)
		c.touch(key.Name)
	case Pods:
		if old := c.pods[key]; old != nil {
			c.unplace(old)
			delete(c.pods, key)
		}
	}
}

func (c *Cache) unplace(p *Pod) {
	rest := slices.DeleteFunc(c.byNode[p.Node], func(o *Pod) bool { return o == p })
	if len(rest) == 0 {
		delete(c.byNode, p.Node)
	} else {
		c.byNode[p.Node] = rest
	}
	c.touch(p.Node)
}

// keys are those of all objects of a resource. The caller holds the lock.
func (c *Cache) keys(r Resource) []types.NamespacedName {
	var keys []types.NamespacedName
	switch r {
	case Nodes:
		for name := range c.nodes {
			keys = append(keys, types.NamespacedName{Name: name})
		}
	case GPUNodes:
		for name := range c.gpuNodes {
			keys = append(keys, types.NamespacedName{Name: name})
		}
	case Pods:
		for key := range c.pods {
			keys = append(keys, key)
		}
	}
	return keys
}

// describe says of which resource an error is.
func describe(verb string, r Resource, err error) error { return fmt.Errorf("%s %s: %w", verb, r, err) }
