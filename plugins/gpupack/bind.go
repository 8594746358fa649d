// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// PreBindPreFlight skips pods that get no GPU.
func (p *Plugin) PreBindPreFlight(_ context.Context, state fwk.CycleState, _ *corev1.Pod, _ string) *fwk.Status {
	if d := decisionOf(state); d == nil || len(d.gpus) == 0 {
		return fwk.NewStatus(fwk.Skip)
	}
	return nil
}

func decisionOf(state fwk.CycleState) *decision {
	data, err := state.Read(decisionKey)
	if err != nil {
		return nil
	}
	d, _ := data.(*decision)
	return d
}

// PreBind writes the GPUs and the decision record on the pod, in one patch. Only then is the pod bound, so a bound pod
// always says which GPUs it has, and a scheduler that starts later needs nothing else.
func (p *Plugin) PreBind(ctx context.Context, state fwk.CycleState, pod *corev1.Pod, _ string) *fwk.Status {
	d := decisionOf(state)
	if d == nil || len(d.gpus) == 0 {
		return nil
	}
	record, err := json.Marshal(d.record)
	if err != nil {
		return fwk.AsStatus(err)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		// A pod of the same name that was created meanwhile is another pod.
		"uid": pod.UID,
		"annotations": map[string]string{
			v1alpha1.AnnotationGPUs:     strings.Join(d.gpus, ","),
			v1alpha1.AnnotationDecision: string(record),
		},
	}})
	if err != nil {
		return fwk.AsStatus(err)
	}
	if _, err := p.handle.ClientSet().CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fwk.AsStatus(fmt.Errorf("writing the GPUs of pod %s/%s: %w", pod.Namespace, pod.Name, err))
	}
	return nil
}

// PostBind counts the pod.
func (p *Plugin) PostBind(_ context.Context, state fwk.CycleState, pod *corev1.Pod, _ string) {
	c := cycleOf(state)
	if c == nil {
		return
	}
	decisions.WithLabelValues("placed").Inc()
	if c.planned != nil {
		p.gangs.done(c.planned.gang, pod.UID)
	}
}
