// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package podgroup keeps the status of PodGroups true.
package podgroup

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/controller/members"
)

// delay is how long events of pods are collected: the status of a gang that starts is written twice a second.
const delay = 500 * time.Millisecond

// Reconciler writes the status of PodGroups.
type Reconciler struct {
	client.Client
	Clock clock.PassiveClock
	// Schedulers are those whose pods count. Groups of others have their own controller.
	Schedulers []string
	Workers    int
}

// SetupWithManager makes the manager run it. The manager's cache must be indexed by package members.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("podgroup").
		For(&schedulingv1alpha1.PodGroup{}).
		Watches(&corev1.Pod{}, members.Handler(delay)).
		WithOptions(controller.Options{MaxConcurrentReconciles: r.Workers}).
		Complete(r)
}

// Reconcile writes the status of one group if it has changed.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var group schedulingv1alpha1.PodGroup
	if err := r.Get(ctx, req.NamespacedName, &group); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	pods, foreign, err := members.List(ctx, r, req.NamespacedName, r.Schedulers)
	if err != nil || foreign {
		return ctrl.Result{}, err
	}
	// The API keeps seconds.
	now := metav1.NewTime(r.Clock.Now()).Rfc3339Copy()
	want := status(&group, pods, now)
	if equality.Semantic.DeepEqual(want, group.Status) {
		return ctrl.Result{}, nil
	}
	// The lock keeps a cache that lags behind from undoing what was just written.
	patch := client.MergeFromWithOptions(group.DeepCopy(), client.MergeFromWithOptimisticLock{})
	group.Status = want
	err = r.Status().Patch(ctx, &group, patch)
	if apierrors.IsConflict(err) {
		return ctrl.Result{RequeueAfter: delay}, nil
	}
	return ctrl.Result{}, client.IgnoreNotFound(err)
}
