// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package members finds pods in the controller's cache: those of a gang, and those of a node.
package members

import (
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// Indices of pods.
const (
	byGroup = "podGroup"
	byNode  = "node"
)

// Delay is how long events of pods are collected before their gang is looked at, so that a gang of a thousand members that
// start together is looked at a few times rather than thousands.
const Delay = 200 * time.Millisecond

// Index makes the cache find pods by PodGroup and by node.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	for name, value := range map[string]func(*corev1.Pod) string{
		byGroup: func(pod *corev1.Pod) string { return pod.Labels[v1alpha1.LabelPodGroup] },
		byNode:  func(pod *corev1.Pod) string { return pod.Spec.NodeName },
	} {
		err := indexer.IndexField(ctx, &corev1.Pod{}, name, func(obj client.Object) []string {
			if v := value(obj.(*corev1.Pod)); v != "" {
				return []string{v}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// List returns the pods of a PodGroup by name that name one of the schedulers, and whether the group is another's: it has pods,
// but none of these. The pods are the cache's own and must not be changed.
func List(ctx context.Context, reader client.Reader, group types.NamespacedName, schedulers []string) (pods []*corev1.Pod, foreign bool, err error) {
	var list corev1.PodList
	err = reader.List(ctx, &list, client.InNamespace(group.Namespace), client.MatchingFields{byGroup: group.Name},
		client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, false, err
	}
	for i := range list.Items {
		if slices.Contains(schedulers, list.Items[i].Spec.SchedulerName) {
			pods = append(pods, &list.Items[i])
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods, len(pods) == 0 && len(list.Items) > 0, nil
}

// GroupOf returns the PodGroup of a pod, without a name where it has none.
func GroupOf(pod client.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.GetNamespace(), Name: pod.GetLabels()[v1alpha1.LabelPodGroup]}
}

// OnNode returns the PodGroups that have pods on a node.
func OnNode(ctx context.Context, reader client.Reader, node string) ([]types.NamespacedName, error) {
	pods, err := PodsOnNode(ctx, reader, node)
	if err != nil {
		return nil, err
	}
	groups := sets.New[types.NamespacedName]()
	for _, pod := range pods {
		if group := GroupOf(pod); group.Name != "" {
			groups.Insert(group)
		}
	}
	return groups.UnsortedList(), nil
}

// PodsOnNode returns all pods on a node. They are the cache's own and must not be changed.
func PodsOnNode(ctx context.Context, reader client.Reader, node string) ([]*corev1.Pod, error) {
	var list corev1.PodList
	if err := reader.List(ctx, &list, client.MatchingFields{byNode: node}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	pods := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[i] = &list.Items[i]
	}
	return pods, nil
}

// Handler enqueues the PodGroup of a pod after the delay.
func Handler(delay time.Duration) handler.Funcs {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	enqueue := func(q queue, obj client.Object) {
		if group := GroupOf(obj); group.Name != "" {
			q.AddAfter(reconcile.Request{NamespacedName: group}, delay)
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { enqueue(q, e.Object) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
			enqueue(q, e.ObjectNew)
			if GroupOf(e.ObjectOld) != GroupOf(e.ObjectNew) {
				enqueue(q, e.ObjectOld)
			}
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { enqueue(q, e.Object) },
	}
}
