// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// What the API server's admission adds to a pod so that it has a token.
const (
	tokenVolumePrefix = "kube-api-access-"
	tokenMountPath    = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// keepName is the name of the PodTemplate in which a pod is kept.
func keepName(uid types.UID) string { return "gpupack-" + string(uid) }

// keep is a PodTemplate from which the pod can be made anew after it is gone. It goes with the PodGroup.
func keep(group *schedulingv1alpha1.PodGroup, pod *corev1.Pod) *corev1.PodTemplate {
	meta, spec := anew(pod)
	return &corev1.PodTemplate{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace,
			Name:      keepName(pod.UID),
			Labels:    map[string]string{v1alpha1.LabelRepairOf: group.Name},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: schedulingv1alpha1.SchemeGroupVersion.String(), Kind: "PodGroup", Name: group.Name, UID: group.UID,
			}},
		},
		Template: corev1.PodTemplateSpec{ObjectMeta: meta, Spec: spec},
	}
}

// anew is the pod as its user made it: without what scheduler, kubelet and admission have added.
func anew(pod *corev1.Pod) (metav1.ObjectMeta, corev1.PodSpec) {
	meta := metav1.ObjectMeta{
		Namespace:       pod.Namespace,
		Name:            pod.Name,
		Labels:          maps.Clone(pod.Labels),
		Annotations:     maps.Clone(pod.Annotations),
		OwnerReferences: slices.Clone(pod.OwnerReferences),
	}
	if meta.Annotations == nil {
		meta.Annotations = map[string]string{}
	}
	delete(meta.Annotations, v1alpha1.AnnotationGPUs)
	delete(meta.Annotations, v1alpha1.AnnotationDecision)
	meta.Annotations[v1alpha1.AnnotationReplaces] = string(pod.UID)

	spec := *pod.Spec.DeepCopy()
	spec.NodeName = ""
	spec.EphemeralContainers = nil
	// Admission computes these from the classes that the pod names, and refuses others.
	spec.Priority, spec.PreemptionPolicy = nil, nil
	if spec.RuntimeClassName != nil {
		spec.Overhead = nil
	}
	token := map[string]bool{}
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool {
		token[v.Name] = strings.HasPrefix(v.Name, tokenVolumePrefix) && v.Projected != nil
		return token[v.Name]
	})
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			containers[i].VolumeMounts = slices.DeleteFunc(containers[i].VolumeMounts, func(m corev1.VolumeMount) bool {
				return token[m.Name] && m.MountPath == tokenMountPath
			})
		}
	}
	return meta, spec
}

// fromKept is the pod to create.
func fromKept(t *corev1.PodTemplate) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: *t.Template.ObjectMeta.DeepCopy(), Spec: *t.Template.Spec.DeepCopy()}
}

// keptUID is the UID of the pod that was kept.
func keptUID(t *corev1.PodTemplate) string { return strings.TrimPrefix(t.Name, "gpupack-") }
