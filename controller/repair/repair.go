// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package repair makes gangs whole again that have lost a member: by the policy of the PodGroup it restarts the gang, replaces
// the member, or does nothing.
//
// What it is about to do it writes to the PodGroup first, under the lock of its resourceVersion, and it goes by what it finds
// there, so that it can be ended at any moment. Pods that no owner makes anew are kept in PodTemplates from before their deletion
// until their successors exist.
package repair

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/log"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/controller/members"
)

// Reasons of events.
const (
	eventMemberLost    = "MemberLost"
	eventGangRestarted = "GangRestarted"
	eventReplaced      = "MemberReplaced"
	eventRecovered     = "GangRecovered"
	eventLimitReached  = "RestartLimitReached"
	eventInvalid       = "InvalidPodGroup"
	eventNotAnew       = "MemberNotRecreated"
)

// Options say when and how often gangs are repaired.
type Options struct {
	// NotReadyAfter is how long a node must not be ready until its pods are lost.
	NotReadyAfter time.Duration
	// BackoffBase is how long the first repair waits after the loss was seen. Each further one waits twice as long, up
	// to BackoffMax.
	BackoffBase, BackoffMax time.Duration
	// MaxRestarts is how many repairs there are at most where the PodGroup does not say.
	MaxRestarts int
	// ResetAfter is how long a gang must run whole until its repairs are forgotten. Pods that failed longer ago are history.
	ResetAfter time.Duration
}

// Reconciler repairs gangs.
type Reconciler struct {
	client.Client
	// Live reads from the API server rather than the cache.
	Live   client.Reader
	Events record.EventRecorder
	Clock  clock.PassiveClock
	// Schedulers are those whose pods are repaired.
	Schedulers []string
	Workers    int
	Options    Options

	failures failures
	// ended has the UIDs of pods that are deleted, until the cache shows it.
	ended sync.Map
}

// SetupWithManager makes the manager run it. The manager's cache must be indexed by package members.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("repair").
		For(&schedulingv1alpha1.PodGroup{}).
		Watches(&corev1.Pod{}, r.podHandler()).
		Watches(&corev1.Node{}, r.groupsOnNode(), builder.WithPredicates(nodeChanged())).
		Watches(&v1alpha1.GPUNode{}, r.groupsOnNode(), builder.WithPredicates(healthChanged())).
		Watches(&corev1.PodTemplate{}, groupOfKept()).
		WithOptions(controller.Options{MaxConcurrentReconciles: r.Workers}).
		Complete(r)
}

// Reconcile brings one gang's repair forward.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	failed := r.failures.of(req.NamespacedName)
	g, err := r.read(ctx, req)
	if g == nil && client.IgnoreNotFound(err) == nil {
		r.failures.forget(req.NamespacedName, failed)
	}
	if err != nil || g == nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	for _, pod := range failed {
		if !slices.ContainsFunc(g.pods, func(p *corev1.Pod) bool { return p.UID == pod.UID }) {
			g.vanished = append(g.vanished, pod)
		}
	}
	// What was kept is made anew whatever the policy says now.
	again, err := r.settle(ctx, g)
	if err != nil {
		return ctrl.Result{}, err
	}
	if g.repair != nil && g.repair.State == convert.RepairEnding {
		if err := r.end(ctx, g); err != nil {
			return ctrl.Result{}, err
		}
		// Its members' events bring it back here, unless it had none to end.
		again = sooner(again, time.Second)
	}
	d := g.decide()
	if err := r.apply(ctx, g, &d); err != nil {
		if apierrors.IsConflict(err) {
			return ctrl.Result{RequeueAfter: members.Delay}, nil
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !d.unsettled {
		r.failures.forget(req.NamespacedName, failed)
	}
	return ctrl.Result{RequeueAfter: sooner(again, d.again)}, nil
}

// read collects what a decision depends on. It returns nil where the gang is none of ours.
func (r *Reconciler) read(ctx context.Context, req ctrl.Request) (*gang, error) {
	var group schedulingv1alpha1.PodGroup
	if err := r.Get(ctx, req.NamespacedName, &group); err != nil {
		return nil, err
	}
	if group.DeletionTimestamp != nil {
		return nil, nil
	}
	repair, err := convert.LastRepair(&group)
	if err != nil {
		log.FromContext(ctx).Error(err, "Ignored the record of the last repair")
	}
	if repair != nil && repair.State == convert.RepairEnding {
		// Going by an old record could end members of the gang made anew.
		group = schedulingv1alpha1.PodGroup{}
		if err := r.Live.Get(ctx, req.NamespacedName, &group); err != nil {
			return nil, err
		}
		repair, _ = convert.LastRepair(&group)
	}
	g := &gang{
		group: &group, policy: v1alpha1.IgnoreLoss, repair: repair, o: &r.Options, now: r.Clock.Now(),
		nodes: map[string]*corev1.Node{}, gpus: map[string]*v1alpha1.GPUNode{}, kept: map[string]*corev1.PodTemplate{},
	}
	var foreign bool
	if g.pods, foreign, err = members.List(ctx, r, req.NamespacedName, r.Schedulers); err != nil || foreign {
		return nil, err
	}
	// The scheduler does not place a gang whose PodGroup is wrong, so it must not be ended either.
	if spec, err := convert.Gang(&group); err == nil {
		g.policy = spec.OnMemberLoss
	} else {
		r.Events.Event(&group, corev1.EventTypeWarning, eventInvalid, "Lost members are left as they are: "+err.Error())
	}
	for _, pod := range g.pods {
		if err := r.readNode(ctx, g, pod.Spec.NodeName); err != nil {
			return nil, err
		}
	}
	var kept corev1.PodTemplateList
	err = r.List(ctx, &kept, client.InNamespace(group.Namespace), client.MatchingLabels{v1alpha1.LabelRepairOf: group.Name})
	if err != nil {
		return nil, err
	}
	for i := range kept.Items {
		g.kept[keptUID(&kept.Items[i])] = &kept.Items[i]
	}
	return g, nil
}

func (r *Reconciler) readNode(ctx context.Context, g *gang, name string) error {
	if _, ok := g.nodes[name]; ok || name == "" {
		return nil
	}
	var node corev1.Node
	err := r.Get(ctx, client.ObjectKey{Name: name}, &node)
	if apierrors.IsNotFound(err) {
		// The cache of nodes may lag behind that of pods.
		err = r.Live.Get(ctx, client.ObjectKey{Name: name}, &node)
		if apierrors.IsNotFound(err) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	g.nodes[name] = &node
	var gpus v1alpha1.GPUNode
	if err := r.Get(ctx, client.ObjectKey{Name: name}, &gpus); err != nil {
		return client.IgnoreNotFound(err)
	}
	g.gpus[name] = &gpus
	return nil
}

// apply writes the decision and then tells of it.
func (r *Reconciler) apply(ctx context.Context, g *gang, d *decision) error {
	if d.repair == nil && d.restarts < 0 {
		return nil
	}
	for _, l := range d.keep {
		if err := r.keep(ctx, g, l.pod); err != nil {
			return err
		}
	}
	group := g.group.DeepCopy()
	if group.Annotations == nil {
		group.Annotations = map[string]string{}
	}
	if d.repair != nil {
		text, err := json.Marshal(d.repair)
		if err != nil {
			return fmt.Errorf("encode the record of a repair: %w", err)
		}
		group.Annotations[v1alpha1.AnnotationRepair] = string(text)
	}
	switch {
	case d.restarts > 0:
		group.Annotations[v1alpha1.AnnotationRestarts] = strconv.Itoa(d.restarts)
	case d.restarts == 0:
		delete(group.Annotations, v1alpha1.AnnotationRestarts)
	}
	if err := r.Patch(ctx, group, client.MergeFromWithOptions(g.group, client.MergeFromWithOptimisticLock{})); err != nil {
		return err
	}
	if d.repair != nil {
		r.tell(ctx, g, d)
	}
	return nil
}

func (r *Reconciler) tell(ctx context.Context, g *gang, d *decision) {
	now := d.repair
	log.FromContext(ctx).Info("Repair of a gang", "state", now.State, "policy", now.Policy, "cause", now.Cause, "message", now.Message,
		"restarts", g.restarts())
	switch now.State {
	case convert.RepairWaiting:
		r.Events.Eventf(g.group, corev1.EventTypeWarning, eventMemberLost, "In %s, by policy %s: %s",
			now.NotBefore.Sub(g.now).Round(time.Second), now.Policy, now.Message)
	case convert.RepairPlacing:
		repairs.WithLabelValues(string(now.Policy), now.Cause).Inc()
		reason, what := eventGangRestarted, "Ended the gang, so that it starts anew"
		if now.Policy == v1alpha1.ReplaceMember {
			reason, what = eventReplaced, "Replaced what was lost"
		}
		r.Events.Eventf(g.group, corev1.EventTypeWarning, reason, "%s (%d of at most %d times): %s", what, g.restarts(), g.maxRestarts(), now.Message)
	case convert.RepairDone:
		if d.recovered > 0 {
			duration.Observe(d.recovered.Seconds())
			r.Events.Eventf(g.group, corev1.EventTypeNormal, eventRecovered, "Runs whole again, %s after member %s was lost",
				d.recovered.Round(time.Second), now.Member)
		}
	case convert.RepairLimitReached:
		limitReached.Inc()
		r.Events.Eventf(g.group, corev1.EventTypeWarning, eventLimitReached,
			"Left as it is after %d repairs; remove annotation %s or raise %s to let it be repaired again: %s",
			g.restarts(), v1alpha1.AnnotationRestarts, v1alpha1.AnnotationMaxRestarts, now.Message)
	}
}
