// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/controller/members"
)

// groupsOnNode enqueues the gangs that have members on the node of that name.
func (r *Reconciler) groupsOnNode() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, obj client.Object) []reconcile.Request {
		groups, err := members.OnNode(ctx, r, obj.GetName())
		if err != nil {
			log.FromContext(ctx).Error(err, "List the gangs on a node", "node", obj.GetName())
		}
		requests := make([]reconcile.Request, len(groups))
		for i, name := range groups {
			requests[i].NamespacedName = name
		}
		return requests
	})
}

// podHandler enqueues the gang of a pod. It remembers pods that fail, since their owners may delete them at once, and forgets
// those that it now sees end.
func (r *Reconciler) podHandler() handler.EventHandler {
	funcs := members.Handler(members.Delay)
	update := funcs.UpdateFunc
	funcs.UpdateFunc = func(ctx context.Context, e event.UpdateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		before, _ := e.ObjectOld.(*corev1.Pod)
		after, _ := e.ObjectNew.(*corev1.Pod)
		if before != nil && after != nil && before.Status.Phase != corev1.PodFailed && after.Status.Phase == corev1.PodFailed &&
			after.DeletionTimestamp == nil && slices.Contains(r.Schedulers, after.Spec.SchedulerName) {
			r.failures.add(after)
		}
		if after != nil && after.DeletionTimestamp != nil {
			r.ended.Delete(after.UID)
		}
		update(ctx, e, q)
	}
	remove := funcs.DeleteFunc
	funcs.DeleteFunc = func(ctx context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		r.ended.Delete(e.Object.GetUID())
		remove(ctx, e, q)
	}
	return funcs
}

// groupOfKept enqueues the gang whose member a PodTemplate keeps.
func groupOfKept() handler.EventHandler {
	enqueue := func(q workqueue.TypedRateLimitingInterface[reconcile.Request], obj client.Object) {
		q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{
			Namespace: obj.GetNamespace(), Name: obj.GetLabels()[v1alpha1.LabelRepairOf]}}, members.Delay)
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			enqueue(q, e.Object)
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			enqueue(q, e.Object)
		},
	}
}

// nodeChanged passes changes of what nodeLost reads.
func nodeChanged() predicate.Predicate {
	type fact struct {
		ready        corev1.ConditionStatus
		outOfService bool
	}
	read := func(obj client.Object) (f fact) {
		node, ok := obj.(*corev1.Node)
		if !ok {
			return f
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady {
				f.ready = c.Status
			}
		}
		f.outOfService = slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
		return f
	}
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool { return read(e.ObjectOld) != read(e.ObjectNew) }}
}

// healthChanged passes changes of what gpuLost reads, of which a node's load is no part.
func healthChanged() predicate.Predicate {
	read := func(obj client.Object) map[string]v1alpha1.UnhealthyReason {
		gn, ok := obj.(*v1alpha1.GPUNode)
		if !ok {
			return nil
		}
		health := make(map[string]v1alpha1.UnhealthyReason, len(gn.Status.GPUs))
		for i := range gn.Status.GPUs {
			gpu := &gn.Status.GPUs[i]
			health[gpu.UUID] = gpu.UnhealthyReason
			if gpu.Healthy {
				health[gpu.UUID] = ""
			}
		}
		return health
	}
	return predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool { return !maps.Equal(read(e.ObjectOld), read(e.ObjectNew)) },
		DeleteFunc: func(event.DeleteEvent) bool { return false },
	}
}
