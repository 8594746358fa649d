// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package deletioncost tells ReplicaSets which of their pods to remove first when they are scaled down: those whose loss sets whole GPUs
// and nodes free. It keeps the annotation controller.kubernetes.io/pod-deletion-cost true on pods whose template asks for that.
package deletioncost

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/controller/members"
	"github.com/gpupack/gpupack/pack"
)

const eventInvalid = "InvalidScaleDown"

// Reconciler orders the pods of ReplicaSets.
type Reconciler struct {
	client.Client
	Events  record.EventRecorder
	Clock   clock.PassiveClock
	Workers int
	// Interval is how often the costs of one ReplicaSet's pods change at most.
	Interval time.Duration

	// written has when costs of a ReplicaSet were last changed.
	written sync.Map
}

// SetupWithManager makes the manager run it. The manager's cache must be indexed by Index and by package members, and have all
// pods that hold GPUs.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	// Its requests are names of ReplicaSets, which it need not read.
	return ctrl.NewControllerManagedBy(mgr).
		Named("deletioncost").
		Watches(&corev1.Pod{}, r.podHandler()).
		WithOptions(controller.Options{MaxConcurrentReconciles: r.Workers}).
		Complete(r)
}

// Reconcile brings the costs of one ReplicaSet's pods up to date.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	pods, err := replicas(ctx, r, req.NamespacedName)
	if err != nil || len(pods) == 0 {
		r.written.Delete(req.NamespacedName)
		return ctrl.Result{}, err
	}
	if err := optsIn(pods[0]); err != nil {
		r.Events.Event(pods[0], corev1.EventTypeWarning, eventInvalid, err.Error())
		return ctrl.Result{}, nil
	}
	if last, ok := r.written.Load(req.NamespacedName); ok {
		if wait := last.(time.Time).Add(r.Interval).Sub(r.Clock.Now()); wait > 0 {
			return ctrl.Result{RequeueAfter: wait}, nil
		}
	}
	ordered, err := r.order(ctx, pods)
	if err != nil {
		return ctrl.Result{}, err
	}
	current := make([]*int32, len(ordered))
	for i, pod := range ordered {
		current[i] = costOf(pod)
	}
	for i, cost := range pack.Renumber(current) {
		if current[i] != nil && *current[i] == cost {
			continue
		}
		r.written.Store(req.NamespacedName, r.Clock.Now())
		if err := r.set(ctx, ordered[i], cost); err != nil {
			return ctrl.Result{}, err
		}
	}
	return ctrl.Result{}, nil
}

// optsIn says what is wrong with the annotation by which a pod asks for costs.
func optsIn(pod *corev1.Pod) error {
	if mode := pod.Annotations[v1alpha1.AnnotationScaleDown]; mode != v1alpha1.ScaleDownFreeGPUs {
		return fmt.Errorf("annotation %s is %q: write %q, or remove it from the pod's template",
			v1alpha1.AnnotationScaleDown, mode, v1alpha1.ScaleDownFreeGPUs)
	}
	return nil
}

// costOf is the pod's cost, nil where it has none that the ReplicaSet would go by.
func costOf(pod *corev1.Pod) *int32 {
	cost, err := strconv.ParseInt(pod.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return nil
	}
	c := int32(cost)
	return &c
}

func (r *Reconciler) set(ctx context.Context, pod *corev1.Pod, cost int32) error {
	changed := pod.DeepCopy()
	changed.Annotations[corev1.PodDeletionCost] = strconv.FormatInt(int64(cost), 10)
	err := r.Patch(ctx, changed, client.MergeFrom(pod))
	if client.IgnoreNotFound(err) == nil {
		updates.Inc()
		return nil
	}
	return err
}

// order returns the pods in the order in which they should be removed. Those whose node is gone are left out, as they go anyway.
func (r *Reconciler) order(ctx context.Context, pods []*corev1.Pod) ([]*corev1.Pod, error) {
	type place struct {
		state   *pack.Node
		domains []string
	}
	places := map[string]*place{}
	var list []pack.Replica
	var known []*corev1.Pod
	for _, pod := range pods {
		at := places[pod.Spec.NodeName]
		if at == nil {
			node, state, err := r.node(ctx, pod.Spec.NodeName)
			if err != nil {
				return nil, err
			}
			at = &place{state: state}
			for i := range pods[0].Spec.TopologySpreadConstraints {
				at.domains = append(at.domains, node.Labels[pods[0].Spec.TopologySpreadConstraints[i].TopologyKey])
			}
			places[pod.Spec.NodeName] = at
		}
		if at.state != nil {
			list, known = append(list, pack.Replica{ID: string(pod.UID), Node: at.state, Domains: at.domains}), append(known, pod)
		}
	}
	spreads, err := r.spreads(ctx, pods[0])
	if err != nil {
		return nil, err
	}
	ordered := make([]*corev1.Pod, 0, len(known))
	for _, i := range pack.ScaleDownOrder(list, spreads) {
		ordered = append(ordered, known[i])
	}
	return ordered, nil
}

// node returns a node and its state; where there is none of that name, an empty one and nil.
func (r *Reconciler) node(ctx context.Context, name string) (*corev1.Node, *pack.Node, error) {
	var node corev1.Node
	if err := r.Get(ctx, types.NamespacedName{Name: name}, &node); err != nil {
		return &node, nil, client.IgnoreNotFound(err)
	}
	gn := &v1alpha1.GPUNode{}
	if err := r.Get(ctx, types.NamespacedName{Name: name}, gn); err != nil {
		if client.IgnoreNotFound(err) != nil {
			return nil, nil, err
		}
		gn = nil
	}
	on, err := members.PodsOnNode(ctx, r, name)
	if err != nil {
		return nil, nil, err
	}
	var pods []convert.Pod
	for _, pod := range on {
		if !convert.IsTerminal(pod) {
			pods = append(pods, convert.Pod{Pod: pod, GPUs: convert.GPUs(pod)})
		}
	}
	return &node, convert.Node(&node, gn, pods, convert.Options{
		StaleAfter: convert.DefaultStaleAfter, StalePolicy: convert.StaleTrustRequests, Now: r.Clock.Now(),
	}), nil
}

// spreads are the pod's topology spread constraints, over the domains that its node selector and affinity let it go to.
func (r *Reconciler) spreads(ctx context.Context, pod *corev1.Pod) ([]pack.Spread, error) {
	constraints := pod.Spec.TopologySpreadConstraints
	if len(constraints) == 0 {
		return nil, nil
	}
	var list corev1.NodeList
	if err := r.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	affinity := nodeaffinity.GetRequiredNodeAffinity(pod)
	domains := make([]sets.Set[string], len(constraints))
	for i := range domains {
		domains[i] = sets.New[string]()
	}
	for i := range list.Items {
		node := &list.Items[i]
		if match, err := affinity.Match(node); err != nil || !match {
			continue
		}
		for j := range constraints {
			if domain, ok := node.Labels[constraints[j].TopologyKey]; ok {
				domains[j].Insert(domain)
			}
		}
	}
	spreads := make([]pack.Spread, len(constraints))
	for i := range constraints {
		spreads[i] = pack.Spread{MaxSkew: int(constraints[i].MaxSkew), Domains: sets.List(domains[i])}
	}
	return spreads, nil
}

// replicas are the pods of a ReplicaSet that ask for costs, have a node and go on, by name. They are the cache's own and must not
// be changed.
func replicas(ctx context.Context, reader client.Reader, owner types.NamespacedName) ([]*corev1.Pod, error) {
	var list corev1.PodList
	err := reader.List(ctx, &list, client.InNamespace(owner.Namespace), client.MatchingFields{byOwner: owner.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, err
	}
	var pods []*corev1.Pod
	for i := range list.Items {
		if pod := &list.Items[i]; pod.Spec.NodeName != "" && pod.DeletionTimestamp == nil && !convert.IsTerminal(pod) {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods, nil
}
