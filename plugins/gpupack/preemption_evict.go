// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	schedulermetrics "k8s.io/kubernetes/pkg/scheduler/metrics"

	"github.com/gpupack/gpupack/pack"
)

// makeRoom evicts what the plan says and nominates the unit's pods to the nodes where they are to go. The API is called after
// the scheduling cycle, since there may be many victims.
func (p *Plugin) makeRoom(ctx context.Context, u *unit, pod *corev1.Pod, plan *pack.PreemptionPlan, d *scene) (*fwk.PostFilterResult, *fwk.Status) {
	now := p.clock.Now()
	r := &room{nodes: map[types.UID]string{}, names: map[types.UID]types.NamespacedName{}, awaits: map[types.NamespacedName]types.UID{}, until: d.until}
	for _, pod := range u.pods {
		r.names[pod.UID] = types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	}
	used := map[int]bool{}
	for _, placement := range plan.Placements {
		r.nodes[types.UID(placement.Member.ID)] = d.infos[placement.Node].Node().Name
		used[placement.Node] = true
	}
	await := func(pod *corev1.Pod) {
		r.awaits[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod.UID
	}
	for _, pod := range d.leaving {
		if used[pod.node] {
			await(pod.Pod)
		}
	}
	if len(plan.Evictions) == 0 && len(r.awaits) == 0 {
		// Something has changed since the filters ran. The queue has the event.
		return nil, noPreemption("there is room now")
	}
	var victims []podOnNode
	var gangs []string
	p.preemption.mu.Lock()
	for _, e := range plan.Evictions {
		unit := &d.victims[e.Victim]
		if unit.gang.Name != "" {
			gangs = append(gangs, unit.gang.String())
		}
		for _, j := range e.Pods {
			pod := unit.pods[j]
			victims = append(victims, pod)
			if p.handle.GetWaitingPod(pod.UID) == nil {
				await(pod.Pod)
			}
			until := now.Add(gracePeriod(pod.Pod) + goneSlack)
			if until.After(r.until) {
				r.until = until
			}
			p.preemption.leaving[pod.UID] = until
		}
	}
	p.preemption.rooms[u.key] = r
	p.preemption.mu.Unlock()
	result := p.nominate(ctx, u, pod, r)
	if len(victims) == 0 {
		return result, noPreemption(awaiting(len(r.awaits)))
	}
	schedulermetrics.PreemptionVictims.Observe(float64(len(victims)))
	message := fmt.Sprintf("evicting %s of lower priority", count(len(victims), "pod"))
	if len(gangs) > 0 {
		message += ", among them members of PodGroup " + strings.Join(gangs, ", ")
	}
	p.logger(ctx).V(2).Info("Preempting", "for", u.String(), "victims", len(victims), "gangs", gangs,
		"brokenBudgets", plan.Toll.Breaks, "highestPriority", plan.Toll.Priority, "lostGPUSeconds", plan.Toll.Loss)
	go p.evict(u, pod, victims)
	return result, fwk.NewStatus(fwk.Success, "preemption: "+message)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// awaiting says that evictions are under way.
func awaiting(n int) string { return "waiting for " + count(n, "evicted pod") + " to end" }

func gracePeriod(pod *corev1.Pod) time.Duration {
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// maxEvictionCalls bounds the calls of the API at one time.
const maxEvictionCalls = 16

// evictionBackoff is how a call that fails is tried again, for about 13 s in all.
var evictionBackoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 7}

// evict marks all victims and then deletes them. If the API server lets one not be marked, nobody is deleted. What else fails is
// said in an event of the pod for which room is made, and the unit is tried again.
func (p *Plugin) evict(u *unit, by *corev1.Pod, victims []podOnNode) {
	ctx := p.preemption.ctx
	logger := p.logger(ctx)
	failed := make([]error, len(victims))
	each := func(call func(i int, v podOnNode) error) bool {
		var group errgroup.Group
		group.SetLimit(maxEvictionCalls)
		for i, v := range victims {
			group.Go(func() error {
				failed[i] = call(i, v)
				return failed[i]
			})
		}
		return group.Wait() == nil
	}
	gone, rejected := make([]bool, len(victims)), make([]bool, len(victims))
	marked := each(func(i int, v podOnNode) error {
		if p.handle.GetWaitingPod(v.UID) != nil {
			return nil
		}
		done, err := p.persist(ctx, v.Pod, func() error { return p.mark(ctx, v.Pod, by) })
		gone[i] = done
		return err
	})
	if marked {
		each(func(i int, v podOnNode) error {
			if gone[i] {
				return nil
			}
			if waiting := p.handle.GetWaitingPod(v.UID); waiting != nil {
				waiting.Reject(Name, "preempted")
				rejected[i] = true
			} else if _, err := p.persist(ctx, v.Pod, func() error {
				return p.handle.ClientSet().CoreV1().Pods(v.Namespace).Delete(ctx, v.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(v.UID))})
			}); err != nil {
				return err
			}
			evictions.WithLabelValues("evicted").Inc()
			note := fmt.Sprintf("Preempted by pod %v on node %v", by.UID, v.Spec.NodeName)
			if u.gang != nil {
				note += " for PodGroup " + u.key.gang.String()
			}
			p.handle.EventRecorder().Eventf(v.Pod, by, corev1.EventTypeNormal, "Preempted", "Preempting", "%s", note)
			logger.V(2).Info("Evicted", "victim", klog.KObj(v.Pod), "node", v.Spec.NodeName, "for", u.String())
			return nil
		})
	}
	var first error
	kept := 0
	p.preemption.mu.Lock()
	for i, v := range victims {
		if failed[i] != nil {
			first = fmt.Errorf("pod %s/%s: %w", v.Namespace, v.Name, failed[i])
			kept++
		}
		if failed[i] != nil || !marked || rejected[i] {
			delete(p.preemption.leaving, v.UID)
		}
	}
	if first != nil {
		delete(p.preemption.rooms, u.key)
	}
	p.preemption.mu.Unlock()
	if first == nil {
		return
	}
	evictions.WithLabelValues("failed").Add(float64(kept))
	note := fmt.Sprintf("%d of %d pods could not be evicted to make room, and the others were", kept, len(victims))
	if !marked {
		note = fmt.Sprintf("%d of %d pods could not be evicted to make room, so none was", kept, len(victims))
	}
	logger.Error(first, "Preemption failed", "for", u.String(), "victims", len(victims), "kept", kept)
	p.handle.EventRecorder().Eventf(by, nil, corev1.EventTypeWarning, "PreemptionFailed", "Preempting", "%s; it is tried again: %s", note, first.Error())
	p.retrySoon(u)
}

// mark says in the victim's status why it ends, as kube-scheduler's own preemption does.
func (p *Plugin) mark(ctx context.Context, victim, by *corev1.Pod) error {
	condition := corev1.PodCondition{
		Type:               corev1.DisruptionTarget,
		Status:             corev1.ConditionTrue,
		Reason:             corev1.PodReasonPreemptionByScheduler,
		ObservedGeneration: podutil.CalculatePodConditionObservedGeneration(&victim.Status, victim.Generation, corev1.DisruptionTarget),
		Message:            by.Spec.SchedulerName + ": preempting to accommodate a higher priority pod",
		LastTransitionTime: metav1.Time{Time: p.clock.Now()},
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": victim.UID},
		"status":   map[string]any{"conditions": []corev1.PodCondition{condition}},
	})
	if err != nil {
		return err
	}
	_, err = p.handle.ClientSet().CoreV1().Pods(victim.Namespace).Patch(ctx, victim.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// persist calls the API until it agrees, refuses for good, or has had time enough. It says whether the pod is no longer there.
func (p *Plugin) persist(ctx context.Context, pod *corev1.Pod, call func() error) (gone bool, err error) {
	_ = wait.ExponentialBackoffWithContext(ctx, p.preemption.backoff, func(ctx context.Context) (bool, error) {
		err = call()
		switch {
		case err == nil:
			return true, nil
		case apierrors.IsNotFound(err):
			gone, err = true, nil
			return true, nil
		case apierrors.IsConflict(err):
			// A pod of that name which came later is another pod.
			now, why := p.handle.ClientSet().CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
			if apierrors.IsNotFound(why) || why == nil && now.UID != pod.UID {
				gone, err = true, nil
				return true, nil
			}
			return false, nil
		case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
			return true, nil
		}
		return false, nil
	})
	return gone, err
}

// retrySoon tries the unit again in a moment, when what was in the way may have changed without an event.
func (p *Plugin) retrySoon(u *unit) {
	m := p.preemption
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.retrying[u.key] {
		return
	}
	m.retrying[u.key] = true
	p.clock.AfterFunc(time.Second, func() {
		m.mu.Lock()
		delete(m.retrying, u.key)
		m.mu.Unlock()
		if u.gang != nil {
			p.activate(m.ctx, u.key.gang)
			return
		}
		pod := u.pods[0]
		p.handle.Activate(p.logger(m.ctx), map[string]*corev1.Pod{pod.Namespace + "/" + pod.Name: pod})
	})
}
