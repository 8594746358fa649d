// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// tracker sees when pods are bound.
type tracker struct {
	watcher watch.Interface

	mu sync.Mutex
	// seen are all pods that the watch has told of, and bound those of them that have a node.
	seen, bound map[types.UID]bool
	// groups counts bound members by PodGroup.
	groups map[string]int
	gpus   int64
	// lastSeen is when the last pod came into sight, and lastBound when the last was bound.
	lastSeen, lastBound time.Time
	changed             chan struct{}
	err                 error
}

// track begins with the pods to come. Those that are not bound are told of only where all is true, which costs the API server an
// event for each write.
func (c *cluster) track(ctx context.Context, all bool) (*tracker, error) {
	list, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return nil, err
	}
	selector := "spec.nodeName!="
	if all {
		selector = ""
	}
	w, err := watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return c.client.CoreV1().Pods(namespace).Watch(ctx, o)
		},
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			return nil, fmt.Errorf("nothing to list")
		},
	})
	if err != nil {
		return nil, err
	}
	t := newTracker()
	t.watcher = w
	go func() {
		for e := range w.ResultChan() {
			t.observe(e, time.Now())
		}
	}()
	return t, nil
}

func newTracker() *tracker {
	return &tracker{
		seen: map[types.UID]bool{}, bound: map[types.UID]bool{}, groups: map[string]int{}, changed: make(chan struct{}, 1),
	}
}

func (t *tracker) observe(e watch.Event, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pod, ok := e.Object.(*corev1.Pod)
	switch {
	case e.Type == watch.Error:
		t.err = fmt.Errorf("the watch of pods ended: %v", e.Object)
	case !ok || e.Type == watch.Deleted:
		return
	default:
		if !t.seen[pod.UID] {
			t.seen[pod.UID], t.lastSeen = true, now
		}
		if pod.Spec.NodeName != "" && !t.bound[pod.UID] {
			t.bound[pod.UID], t.lastBound = true, now
			t.groups[pod.Labels[v1alpha1.LabelPodGroup]]++
			for i := range pod.Spec.Containers {
				q := pod.Spec.Containers[i].Resources.Requests[v1alpha1.ResourceGPU]
				t.gpus += q.Value()
			}
		}
	}
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

func (t *tracker) stop() { t.watcher.Stop() }

// counts returns how many pods are known and bound, and when the last of each came.
func (t *tracker) counts() (seen, bound int, lastSeen, lastBound time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.seen), len(t.bound), t.lastSeen, t.lastBound, t.err
}

// until waits for a condition on the counts. It says whether that held before the time was over.
func (t *tracker) until(ctx context.Context, s *scheduler, limit time.Duration, done func(seen, bound int) bool) (bool, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		seen, bound, _, _, err := t.counts()
		switch {
		case err != nil:
			return false, err
		case done(seen, bound):
			return true, nil
		}
		select {
		case <-t.changed:
		case <-tick.C:
			if s == nil {
				continue
			}
			if err := s.died(); err != nil {
				return false, err
			}
		case <-timeout.C:
			return false, nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// quiet waits until no pod has been bound for a while. It says whether that came before the time was over.
func (t *tracker) quiet(ctx context.Context, s *scheduler, while, limit time.Duration) (bool, error) {
	end := time.Now().Add(limit)
	last, since := -1, time.Now()
	for {
		if err := s.died(); err != nil {
			return false, err
		}
		_, bound, _, _, err := t.counts()
		if err != nil {
			return false, err
		}
		now := time.Now()
		if bound != last {
			last, since = bound, now
		}
		switch {
		case now.Sub(since) >= while:
			return true, nil
		case now.After(end):
			return false, nil
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return false, err
		}
	}
}

// halves counts PodGroups of which some members are bound, but less than needed.
func (t *tracker) halves(needed map[string]int) (half, whole int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, n := range needed {
		switch bound := t.groups[name]; {
		case bound >= n:
			whole++
		case bound > 0:
			half++
		}
	}
	return half, whole
}
