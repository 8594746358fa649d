// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/internal/trim"
	"github.com/gpupack/gpupack/nvml/simulated"
)

// trimPod keeps of a pod what the fleet looks at, as there are many.
func trimPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	trimmed := &corev1.Pod{ObjectMeta: trimMeta(&pod.ObjectMeta)}
	trimmed.Labels = pod.Labels
	for _, key := range []string{v1alpha1.AnnotationGPUs, simulated.AnnotationMemory, simulated.AnnotationUtilization} {
		if value, ok := pod.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&trimmed.ObjectMeta, key, value)
		}
	}
	trimmed.Spec.NodeName = pod.Spec.NodeName
	trimmed.Spec.Containers = trim.Containers(pod.Spec.Containers)
	trimmed.Spec.InitContainers = trim.Containers(pod.Spec.InitContainers)
	trimmed.Status.Phase = pod.Status.Phase
	return trimmed, nil
}

// trimNode keeps of a node what the fleet looks at.
func trimNode(obj any) (any, error) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	trimmed := &corev1.Node{ObjectMeta: trimMeta(&node.ObjectMeta)}
	trimmed.Status.Capacity = trimResources(node.Status.Capacity)
	trimmed.Status.Allocatable = trimResources(node.Status.Allocatable)
	return trimmed, nil
}

func trimResources(list corev1.ResourceList) corev1.ResourceList {
	if q, ok := list[v1alpha1.ResourceGPU]; ok {
		return corev1.ResourceList{v1alpha1.ResourceGPU: q}
	}
	return nil
}

func trimMeta(meta *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: meta.Name, Namespace: meta.Namespace, UID: meta.UID,
		ResourceVersion: meta.ResourceVersion, CreationTimestamp: meta.CreationTimestamp,
	}
}
