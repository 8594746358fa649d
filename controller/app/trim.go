// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package app

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/internal/trim"
)

// trimPod keeps members of gangs whole, since some are made anew, of other pods with GPUs what they hold and how they are to be
// spread, and of all others nothing but that they are there.
func trimPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	if pod.Labels[v1alpha1.LabelPodGroup] != "" {
		pod.ManagedFields = nil
		return pod, nil
	}
	trimmed := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		DeletionTimestamp: pod.DeletionTimestamp, OwnerReferences: pod.OwnerReferences,
	}}
	trimmed.Spec.NodeName, trimmed.Status.Phase = pod.Spec.NodeName, pod.Status.Phase
	if _, asks := pod.Annotations[v1alpha1.AnnotationScaleDown]; !asks && !convert.AsksForGPU(pod) {
		trimmed.OwnerReferences = nil
		return trimmed, nil
	}
	for _, key := range []string{v1alpha1.AnnotationScaleDown, v1alpha1.AnnotationGPUs, corev1.PodDeletionCost} {
		if value, ok := pod.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&trimmed.ObjectMeta, key, value)
		}
	}
	trimmed.Spec.Containers, trimmed.Spec.InitContainers = trim.Containers(pod.Spec.Containers), trim.Containers(pod.Spec.InitContainers)
	trimmed.Spec.NodeSelector, trimmed.Spec.TopologySpreadConstraints = pod.Spec.NodeSelector, pod.Spec.TopologySpreadConstraints
	if affinity := pod.Spec.Affinity; affinity != nil {
		trimmed.Spec.Affinity = &corev1.Affinity{NodeAffinity: affinity.NodeAffinity}
	}
	return trimmed, nil
}

// trimNode keeps of a node what tells whether it is there, what it has, and where it is.
func trimNode(obj any) (any, error) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	node.ManagedFields, node.Annotations = nil, nil
	node.Status = corev1.NodeStatus{
		Conditions: node.Status.Conditions, Capacity: node.Status.Capacity, Allocatable: node.Status.Allocatable,
	}
	return node, nil
}
