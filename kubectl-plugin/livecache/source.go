// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package livecache

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// pageSize is how many objects one list request returns, as kubectl does it.
const pageSize = 500

// source lists and watches a resource, and is the store that its reflector fills.
type source struct {
	*Cache
	resource Resource
	example  client.Object
	newList  func() client.ObjectList
	options  []client.ListOption
}

func (c *Cache) sources() []*source {
	nodes := &source{Cache: c, resource: Nodes, example: &corev1.Node{},
		newList: func() client.ObjectList { return &corev1.NodeList{} }}
	if c.options.NodeSelector != nil {
		nodes.options = append(nodes.options, client.MatchingLabelsSelector{Selector: c.options.NodeSelector})
	}
	running := fields.AndSelectors(
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)))
	return []*source{
		nodes,
		{Cache: c, resource: GPUNodes, example: &v1alpha1.GPUNode{},
			newList: func() client.ObjectList { return &v1alpha1.GPUNodeList{} }},
		{Cache: c, resource: Pods, example: &corev1.Pod{},
			newList: func() client.ObjectList { return &corev1.PodList{} },
			options: []client.ListOption{client.MatchingFieldsSelector{Selector: running}}},
	}
}

// trimmedList is a list of what is kept of objects.
type trimmedList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []runtime.Object
}

// DeepCopyObject makes it a list.
func (l *trimmedList) DeepCopyObject() runtime.Object {
	out := *l
	return &out
}

// ListWithContext reads all pages, and trims each before it reads the next. It takes no notice of the options: a page from the
// watch cache is as good as any, and a relist must be no older than what is known.
func (s *source) ListWithContext(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
	list, err := s.list(ctx)
	if err != nil && ctx.Err() == nil {
		s.setStatus(s.resource, func(st *Status) { st.Err = describe("list", s.resource, err) })
	}
	return list, err
}

func (s *source) list(ctx context.Context) (*trimmedList, error) {
	out := &trimmedList{}
	next := ""
	for {
		page := s.newList()
		err := s.client.List(ctx, page, append([]client.ListOption{client.Limit(pageSize), client.Continue(next)}, s.options...)...)
		if apierrors.IsResourceExpired(err) && next != "" {
			// The list grew too old while its pages were read.
			out, next = &trimmedList{}, ""
			continue
		}
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		err = meta.EachListItem(page, func(obj runtime.Object) error {
			s.status[s.resource].Read++
			if trimmed := s.trim(obj); trimmed != nil {
				out.Items = append(out.Items, trimmed)
			}
			return nil
		})
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		s.signal()
		out.ResourceVersion = page.GetResourceVersion()
		if next = page.GetContinue(); next == "" {
			return out, nil
		}
	}
}

// IsWatchListSemanticsUnSupported says that the reflector must list by pages: a stream would hold whole objects until its end.
func (s *source) IsWatchListSemanticsUnSupported() bool { return true }

// List is ListWithContext for those who have no context, which the reflector has.
func (s *source) List(o metav1.ListOptions) (runtime.Object, error) {
	return s.ListWithContext(context.Background(), o)
}

// Watch is WatchWithContext for those who have no context, which the reflector has.
func (s *source) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return s.WatchWithContext(context.Background(), o)
}

// WatchWithContext watches from where the list ended.
func (s *source) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := s.client.Watch(ctx, s.newList(), append([]client.ListOption{&client.ListOptions{Raw: &o}}, s.options...)...)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		s.setStatus(s.resource, func(st *Status) { st.Err = nil })
	case !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err):
		s.setStatus(s.resource, func(st *Status) { st.Err = describe("watch", s.resource, err) })
	}
	return w, err
}

// trim returns what is kept of an object; nil for nothing. The caller holds the lock.
func (s *source) trim(obj any) runtime.Object {
	switch o := obj.(type) {
	case *corev1.Node:
		return s.trimNode(o)
	case *v1alpha1.GPUNode:
		return trimGPUNode(o)
	case *corev1.Pod:
		if p := s.trimPod(o); p != nil {
			return p
		}
	}
	return nil
}

// Add keeps an object that a watch told of.
func (s *source) Add(obj any) error {
	key, err := keyOf(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if trimmed := s.trim(obj); trimmed != nil {
		s.put(trimmed)
	} else {
		s.remove(s.resource, key)
	}
	return nil
}

// Update is Add.
func (s *source) Update(obj any) error { return s.Add(obj) }

// Delete forgets an object.
func (s *source) Delete(obj any) error {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	key, err := keyOf(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(s.resource, key)
	return nil
}

// Replace takes the objects of a list, trimmed, for all there are.
func (s *source) Replace(list []any, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	listed := make(map[types.NamespacedName]struct{}, len(list))
	for _, obj := range list {
		key, err := keyOf(obj)
		if err != nil {
			return err
		}
		listed[key] = struct{}{}
	}
	for _, key := range s.keys(s.resource) {
		if _, ok := listed[key]; !ok {
			s.remove(s.resource, key)
		}
	}
	for _, obj := range list {
		s.put(obj)
	}
	s.status[s.resource] = Status{Read: len(list), Synced: true}
	s.signal()
	return nil
}

// Resync does nothing.
func (s *source) Resync() error { return nil }

func keyOf(obj any) (types.NamespacedName, error) {
	switch o := obj.(type) {
	case *Pod:
		return o.key(), nil
	case client.Object:
		return client.ObjectKeyFromObject(o), nil
	}
	return types.NamespacedName{}, fmt.Errorf("not an object of the API: %T", obj)
}
