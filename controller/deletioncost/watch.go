// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package deletioncost

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/controller/members"
)

// byOwner is the index of pods that ask for costs, by the name of their ReplicaSet.
const byOwner = "replicaSet"

// delay is how long events of pods are collected before costs are looked at.
const delay = time.Second

// Index makes the cache find pods that ask for costs by their ReplicaSet.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	return indexer.IndexField(ctx, &corev1.Pod{}, byOwner, func(obj client.Object) []string {
		if owner, ok := ownerOf(obj); ok {
			return []string{owner.Name}
		}
		return nil
	})
}

// ownerOf returns the ReplicaSet of a pod that asks for costs. Other controllers do not go by them.
func ownerOf(pod client.Object) (types.NamespacedName, bool) {
	owner := metav1.GetControllerOf(pod)
	if _, asks := pod.GetAnnotations()[v1alpha1.AnnotationScaleDown]; !asks || owner == nil || owner.Kind != "ReplicaSet" {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: pod.GetNamespace(), Name: owner.Name}, true
}

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// podHandler enqueues the ReplicaSets whose order a pod's coming or going changes: its own, and those with pods on its node.
func (r *Reconciler) podHandler() handler.EventHandler {
	enqueue := func(ctx context.Context, q queue, obj client.Object) {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return
		}
		pods := []*corev1.Pod{pod}
		if pod.Spec.NodeName != "" && convert.AsksForGPU(pod) {
			beside, err := members.PodsOnNode(ctx, r, pod.Spec.NodeName)
			if err != nil {
				log.FromContext(ctx).Error(err, "List the pods on a node", "node", pod.Spec.NodeName)
			}
			pods = append(pods, beside...)
		}
		for _, pod := range pods {
			if owner, ok := ownerOf(pod); ok {
				q.AddAfter(reconcile.Request{NamespacedName: owner}, delay)
			}
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { enqueue(ctx, q, e.Object) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			if changed(e.ObjectOld, e.ObjectNew) {
				enqueue(ctx, q, e.ObjectNew)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { enqueue(ctx, q, e.Object) },
	}
}

// changed says whether an update of a pod can change an order.
func changed(before, after client.Object) bool {
	a, _ := before.(*corev1.Pod)
	b, _ := after.(*corev1.Pod)
	return a == nil || b == nil || a.Spec.NodeName != b.Spec.NodeName || convert.IsTerminal(a) != convert.IsTerminal(b) ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) ||
		a.Annotations[v1alpha1.AnnotationGPUs] != b.Annotations[v1alpha1.AnnotationGPUs] ||
		a.Annotations[v1alpha1.AnnotationScaleDown] != b.Annotations[v1alpha1.AnnotationScaleDown] ||
		a.Annotations[corev1.PodDeletionCost] != b.Annotations[corev1.PodDeletionCost]
}
