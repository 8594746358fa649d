// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	pgv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// workload is what is created in one run.
type workload struct {
	pods []*corev1.Pod
	// groups have as many members as they need.
	groups map[string]int
}

// podFor returns a pod that wants GPUs, or half of one where gpus is 0.
func podFor(k kind, name string, gpus int64) *corev1.Pod {
	template := templateFor(k, gpus)
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: template.Labels}, Spec: template.Spec}
}

func templateFor(k kind, gpus int64) corev1.PodTemplateSpec {
	resources := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("1"),
		corev1.ResourceMemory: resource.MustParse("1Gi"),
	}
	switch {
	case gpus > 0:
		resources[v1alpha1.ResourceGPU] = *resource.NewQuantity(gpus, resource.DecimalSI)
	case k == ours:
		resources[v1alpha1.ResourceGPUMilli] = resource.MustParse("500")
	default:
		// There is no way to ask for less.
		resources[v1alpha1.ResourceGPU] = resource.MustParse("1")
	}
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}},
		Spec: corev1.PodSpec{
			SchedulerName: string(k),
			RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{
				Name: "main", Image: "none", Resources: corev1.ResourceRequirements{Limits: resources, Requests: resources},
			}},
		},
	}
}

// addGang adds a PodGroup and its members. Schedulers that know none get the members alone.
func (w *workload) addGang(k kind, name string, members int, gpus int64) {
	for i := range members {
		pod := podFor(k, fmt.Sprintf("%s-%d", name, i), gpus)
		pod.Labels[v1alpha1.LabelPodGroup] = name
		w.pods = append(w.pods, pod)
	}
	if w.groups == nil {
		w.groups = map[string]int{}
	}
	w.groups[name] = members
}

// singles are pods that have nothing to do with each other.
func singles(k kind, n int, gpus int64) *workload {
	w := &workload{}
	for i := range n {
		w.pods = append(w.pods, podFor(k, fmt.Sprintf("single-%d", i), gpus))
	}
	return w
}

func gangOf(k kind, members int) *workload {
	w := &workload{}
	w.addGang(k, "gang", members, 1)
	return w
}

// contended returns gangs of several shapes that together ask for that many GPUs, or up to 63 more.
func contended(k kind, gpus int) *workload {
	// Each gang asks for 64 GPUs, in members of 1 to 8.
	w := &workload{}
	for i := 0; i*64 < gpus; i++ {
		perMember := 1 << (i % 4)
		w.addGang(k, fmt.Sprintf("gang-%03d", i), 64/perMember, int64(perMember))
	}
	return w
}

// createGroups creates the PodGroups of a workload.
func (c *cluster) createGroups(ctx context.Context, groups map[string]int) error {
	for name, members := range groups {
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&pgv1alpha1.PodGroup{
			TypeMeta:   metav1.TypeMeta{APIVersion: pgv1alpha1.SchemeGroupVersion.String(), Kind: "PodGroup"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
			Spec:       pgv1alpha1.PodGroupSpec{MinMember: int32(members)},
		})
		if err != nil {
			return err
		}
		_, err = c.dynamic.Resource(podGroups).Namespace(namespace).
			Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) createPods(ctx context.Context, pods []*corev1.Pod) error {
	return each(ctx, len(pods), creators, func(ctx context.Context, i int) error {
		_, err := c.client.CoreV1().Pods(namespace).Create(ctx, pods[i], metav1.CreateOptions{})
		return err
	})
}

// binders is how many pods we bind at once where there is no scheduler. Those bind all members of a gang at once, and the API
// server takes no more than a hundred requests of one connection.
const binders = 100

// bindPods binds pods to the first nodes, as many to each as it has GPUs.
func (c *cluster) bindPods(ctx context.Context, pods []*corev1.Pod) error {
	return each(ctx, len(pods), binders, func(ctx context.Context, i int) error {
		return c.client.CoreV1().Pods(namespace).Bind(ctx, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pods[i].Name},
			Target:     corev1.ObjectReference{Kind: "Node", Name: nodeName(i / gpusPerNode)},
		}, metav1.CreateOptions{})
	})
}

// job returns a Job of pods of one GPU each, which all run at once. They are members of a PodGroup where that is not empty.
func job(k kind, name string, pods int, group string) *batchv1.Job {
	template := templateFor(k, 1)
	if group != "" {
		template.Labels[v1alpha1.LabelPodGroup] = group
	}
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: batchv1.JobSpec{
			Completions: ptr.To(int32(pods)), Parallelism: ptr.To(int32(pods)),
			CompletionMode: ptr.To(batchv1.IndexedCompletion),
			Template:       template,
		},
	}
}

func (c *cluster) createJobs(ctx context.Context, k kind, n int) error {
	return each(ctx, n, creators, func(ctx context.Context, i int) error {
		_, err := c.client.BatchV1().Jobs(namespace).Create(ctx, job(k, fmt.Sprintf("job-%04d", i), 1, ""), metav1.CreateOptions{})
		return err
	})
}
