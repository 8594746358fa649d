// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func decisionOf(state fwk.CycleState) *decision {
	data, err := state.Read(decisionKey)
	if err != nil {
		return nil
	}
	d, _ := data.(*decision)
	return d
}

// Bind binds a pod that gets GPUs. The Binding carries the GPUs and the decision record as annotations, which the API server
// puts on the pod as it sets its node: a pod has both or neither, and a scheduler that starts later needs nothing else. Pods
// that get no GPU are left to the next plugin.
func (p *Plugin) Bind(ctx context.Context, state fwk.CycleState, pod *corev1.Pod, node string) *fwk.Status {
	d := decisionOf(state)
	if d == nil || len(d.gpus) == 0 {
		return fwk.NewStatus(fwk.Skip)
	}
	record, err := json.Marshal(d.record)
	if err != nil {
		return fwk.AsStatus(err)
	}
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name,
			// A pod of the same name that was created meanwhile is another pod.
			UID: pod.UID,
			Annotations: map[string]string{
				v1alpha1.AnnotationGPUs:     strings.Join(d.gpus, ","),
				v1alpha1.AnnotationDecision: string(record),
			},
		},
		Target: corev1.ObjectReference{Kind: "Node", Name: node},
	}
	err = p.send(ctx, binding)
	if err == nil {
		return nil
	}
	if mayHaveHappened(err) && p.happened(ctx, binding) {
		p.logger(ctx).Info("Bound pod to node, although the call failed", "pod", pod.Name, "namespace", pod.Namespace, "node", node, "error", err.Error())
		return nil
	}
	return fwk.AsStatus(fmt.Errorf("binding pod %s/%s to node %s: %w", pod.Namespace, pod.Name, node, err))
}

// mostBindings is how many bindings are on their way at once. The API server takes 100 requests on one connection, watches and events
// among them. Each one more would make a connection of its own, of which the handshakes alone took half of the scheduler's time
// when a gang of 256 was bound.
const mostBindings = 32

// send makes the call by the way that DefaultBinder would take.
func (p *Plugin) send(ctx context.Context, binding *corev1.Binding) error {
	select {
	case p.bindings <- struct{}{}:
		defer func() { <-p.bindings }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if cacher := p.handle.APICacher(); cacher != nil {
		done, err := cacher.BindPod(binding)
		if err != nil {
			return err
		}
		return cacher.WaitOnFinish(ctx, done)
	}
	return p.handle.ClientSet().CoreV1().Pods(binding.Namespace).Bind(ctx, binding, metav1.CreateOptions{})
}

// mayHaveHappened says whether a call that failed like that can have had its effect: the answer was lost, or it is the answer to
// a second try.
func mayHaveHappened(err error) bool {
	switch apierrors.ReasonForError(err) {
	case metav1.StatusReasonNotFound, metav1.StatusReasonForbidden, metav1.StatusReasonUnauthorized, metav1.StatusReasonInvalid,
		metav1.StatusReasonBadRequest, metav1.StatusReasonTooManyRequests:
		return false
	}
	return true
}

// happened asks the API server whether the pod is bound as the binding says.
func (p *Plugin) happened(ctx context.Context, binding *corev1.Binding) bool {
	pod, err := p.handle.ClientSet().CoreV1().Pods(binding.Namespace).Get(ctx, binding.Name, metav1.GetOptions{})
	return err == nil && pod.UID == binding.UID && pod.Spec.NodeName == binding.Target.Name &&
		pod.Annotations[v1alpha1.AnnotationGPUs] == binding.Annotations[v1alpha1.AnnotationGPUs]
}

// binds says what is wrong with the profile if another plugin would bind pods before GPUPack can: they would have GPUs of which
// nobody knows which. The framework does not let a plugin see the profile before it is complete.
func (p *Plugin) binds() error {
	fw, ok := p.handle.(framework.Framework)
	if !ok {
		return nil
	}
	var order []string
	for _, plugin := range fw.ListPlugins().Bind.Enabled {
		order = append(order, plugin.Name)
	}
	mine, other := slices.Index(order, Name), slices.Index(order, names.DefaultBinder)
	if mine < 0 || other >= 0 && other < mine {
		return fmt.Errorf("profile %s lets %s bind pods, which would not say which GPUs they have: enable %s under bind in the scheduler's configuration",
			p.handle.ProfileName(), names.DefaultBinder, Name)
	}
	return nil
}

// PostBind counts the pod.
func (p *Plugin) PostBind(ctx context.Context, state fwk.CycleState, pod *corev1.Pod, _ string) {
	c := cycleOf(state)
	if c == nil {
		return
	}
	decisions.WithLabelValues("placed").Inc()
	if c.planned != nil {
		p.gangs.done(ctx, c.planned.gang, pod.UID)
	}
}
