// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// reasonRepair is the reason of the condition DisruptionTarget that pods get before they are deleted.
const reasonRepair = "GangRepair"

// parallel bounds how many pods of one gang are written at once.
const parallel = 16

// settleAgain is when to look again at a pod that takes its time to end; its events come before.
const settleAgain = 5 * time.Second

// end deletes the members that the repair under way ends, each once, however long the cache takes to show it.
func (r *Reconciler) end(ctx context.Context, g *gang) error {
	return each(g.toEnd(), func(pod *corev1.Pod) error {
		// Before the deletion, whose events take it out again.
		if _, done := r.ended.LoadOrStore(pod.UID, nil); done {
			return nil
		}
		if isBare(pod) {
			if err := r.keep(ctx, g, pod); err != nil {
				r.ended.Delete(pod.UID)
				return err
			}
		}
		if err := r.remove(ctx, g, pod); err != nil {
			r.ended.Delete(pod.UID)
			return err
		}
		reason := eventGangRestarted
		if g.repair.Policy == v1alpha1.ReplaceMember {
			reason = eventReplaced
		}
		r.Events.Eventf(pod, corev1.EventTypeWarning, reason, "Deleted to repair PodGroup %s: %s", g.group.Name, g.repair.Message)
		return nil
	})
}

// keep stores the pod, so that it can be made anew by whoever comes after.
func (r *Reconciler) keep(ctx context.Context, g *gang, pod *corev1.Pod) error {
	if g.kept[string(pod.UID)] != nil {
		return nil
	}
	if err := r.Create(ctx, keep(g.group, pod)); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("keep pod %s, to make it anew: %w", pod.Name, err)
	}
	return nil
}

// remove deletes a pod. One whose node is gone goes at once, as the pod garbage collector would have it.
func (r *Reconciler) remove(ctx context.Context, g *gang, pod *corev1.Pod) error {
	cause, _, _ := g.nodeLost(pod.Spec.NodeName)
	if cause == causeNodeGone {
		return r.force(ctx, g, pod)
	}
	if !convert.IsTerminal(pod) {
		if err := r.mark(ctx, g, pod, false); err != nil {
			return gone(err)
		}
	}
	return gone(r.Delete(ctx, pod.DeepCopy(), client.Preconditions{UID: &pod.UID}))
}

// force deletes a pod without a kubelet's help. It fails first, so that its owner sees it ended.
func (r *Reconciler) force(ctx context.Context, g *gang, pod *corev1.Pod) error {
	if !convert.IsTerminal(pod) {
		if err := r.mark(ctx, g, pod, true); err != nil {
			return gone(err)
		}
	}
	return gone(r.Delete(ctx, pod.DeepCopy(), client.Preconditions{UID: &pod.UID}, client.GracePeriodSeconds(0)))
}

// untrack lets the pod go without its Job counting it as failed, as the Job's own controller does when it deletes pods of a job
// that is suspended. Counted, a gang of a few members would be above any usual backoffLimit at its first restart, and the Job
// would wait 10 s, doubled for each of them, before it makes new ones.
func (r *Reconciler) untrack(ctx context.Context, pod *corev1.Pod) error {
	if !slices.Contains(pod.Finalizers, batchv1.JobTrackingFinalizer) {
		return nil
	}
	patch := fmt.Sprintf(`{"metadata":{"uid":%q,"$deleteFromPrimitiveList/finalizers":[%q]}}`, pod.UID, batchv1.JobTrackingFinalizer)
	return r.Patch(ctx, pod.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, []byte(patch)))
}

// mark gives the pod the condition by which others can tell why it is deleted, and lets its Job not count that as a failure.
func (r *Reconciler) mark(ctx context.Context, g *gang, pod *corev1.Pod, failed bool) error {
	if err := r.untrack(ctx, pod); err != nil {
		return err
	}
	message := "gpupack repairs PodGroup " + g.group.Name
	if g.repair != nil {
		message += ": " + g.repair.Message
	}
	status := map[string]any{"conditions": []corev1.PodCondition{{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reasonRepair, Message: message,
		LastTransitionTime: metav1.NewTime(g.now), ObservedGeneration: pod.Generation,
	}}}
	if failed {
		status["phase"] = corev1.PodFailed
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		return fmt.Errorf("encode the condition of pod %s: %w", pod.Name, err)
	}
	return r.Status().Patch(ctx, pod.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, patch))
}

// gone ignores that the pod exists no more, or is another of the same name.
func gone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// settle finishes what was begun: it makes kept pods anew when the old ones are gone, and takes those that were deleted off dead
// nodes. It returns when to look again, 0 for when something changes.
func (r *Reconciler) settle(ctx context.Context, g *gang) (time.Duration, error) {
	var again time.Duration
	byName := make(map[string]*corev1.Pod, len(g.pods))
	var dead []*corev1.Pod
	for _, pod := range g.pods {
		byName[pod.Name] = pod
		if marked(pod) && pod.DeletionTimestamp != nil {
			switch now, in := g.mayForce(pod); {
			case now:
				dead = append(dead, pod)
			default:
				again = sooner(again, in)
			}
		}
	}
	if err := each(dead, func(pod *corev1.Pod) error { return r.force(ctx, g, pod) }); err != nil {
		return 0, err
	}
	if g.repair != nil && g.repair.State == convert.RepairWaiting {
		return again, nil
	}
	ending := g.repair != nil && g.repair.State == convert.RepairEnding
	var kept []*corev1.PodTemplate
	for uid, t := range g.kept {
		old := byName[t.Template.Name]
		if old != nil && string(old.UID) == uid && (ending || old.DeletionTimestamp != nil) {
			again = sooner(again, settleAgain)
			continue
		}
		kept = append(kept, t)
	}
	return again, each(kept, func(t *corev1.PodTemplate) error { return r.makeAnew(ctx, g, t) })
}

// makeAnew creates the pod if the name is free, and then no longer keeps it.
func (r *Reconciler) makeAnew(ctx context.Context, g *gang, t *corev1.PodTemplate) error {
	key := client.ObjectKey{Namespace: t.Namespace, Name: t.Template.Name}
	var now corev1.Pod
	err := r.Live.Get(ctx, key, &now)
	switch {
	case err == nil && string(now.UID) == keptUID(t) && now.DeletionTimestamp != nil:
		return nil
	case err == nil:
		// It was not deleted after all, or its name is taken: by its successor, or by another that its user made.
		return client.IgnoreNotFound(r.Delete(ctx, t, client.Preconditions{UID: &t.UID}))
	case !apierrors.IsNotFound(err):
		return err
	}
	// The cache may have it still though it is used up.
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(t), t); err != nil {
		return client.IgnoreNotFound(err)
	}
	if err := r.Create(ctx, fromKept(t)); err != nil && !apierrors.IsAlreadyExists(err) {
		r.Events.Eventf(g.group, corev1.EventTypeWarning, eventNotAnew, "Pod %s is not made anew: %s", key.Name, err)
		return fmt.Errorf("make pod %s anew: %w", key, err)
	}
	return client.IgnoreNotFound(r.Delete(ctx, t, client.Preconditions{UID: &t.UID}))
}

// marked says whether a repair deleted the pod.
func marked(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Reason == reasonRepair {
			return true
		}
	}
	return false
}

// mayForce says whether a pod that was deleted need not be waited for, or else when to ask again. On a node that is not ready its
// containers get their grace period. Those of a StatefulSet must never run twice, so they wait until somebody says that the
// node is gone or out of service.
func (g *gang) mayForce(pod *corev1.Pod) (now bool, again time.Duration) {
	cause, _, in := g.nodeLost(pod.Spec.NodeName)
	switch cause {
	case causeNodeGone:
		return true, 0
	case causeNodeNotReady:
		if owner := metav1.GetControllerOf(pod); owner != nil && owner.Kind == "StatefulSet" {
			return false, 0
		}
		rest := pod.DeletionTimestamp.Sub(g.now)
		return rest <= 0, max(0, rest)
	}
	return false, in
}

// each calls do for all, several at a time, and returns the first error.
func each[T any](all []T, do func(T) error) error {
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, one := range all {
		group.Go(func() error { return do(one) })
	}
	return group.Wait()
}
