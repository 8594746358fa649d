// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package livecache

import (
	"fmt"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// Pod is what is kept of a pod that asks for GPUs.
type Pod struct {
	Namespace, Name string
	UID             types.UID
	// Node is empty while the pod waits for one.
	Node    string
	Gang    string
	Phase   corev1.PodPhase
	Created metav1.Time
	// GPUs are the UUIDs that were recorded for it.
	GPUs []string

	version string
	spec    *corev1.PodSpec
}

// Object returns the pod with what is kept of it.
func (p *Pod) Object() *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, CreationTimestamp: p.Created},
		Spec:       *p.spec,
		Status:     corev1.PodStatus{Phase: p.Phase},
	}
	pod.Spec.NodeName = p.Node
	if p.Gang != "" {
		pod.Labels = map[string]string{v1alpha1.LabelPodGroup: p.Gang}
	}
	if len(p.GPUs) > 0 {
		pod.Annotations = map[string]string{v1alpha1.AnnotationGPUs: strings.Join(p.GPUs, ",")}
	}
	return pod
}

// GetObjectKind makes a Pod an item of a list.
func (p *Pod) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject makes a Pod an item of a list.
func (p *Pod) DeepCopyObject() runtime.Object {
	out := *p
	return &out
}

func (p *Pod) key() types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

func (p *Pod) same(o *Pod) bool { return p.UID == o.UID && p.version == o.version && p.version != "" }

// trimPod returns nil for a pod that asks for no GPU or has ended. The caller must hold the lock, since pods share specs.
func (c *Cache) trimPod(pod *corev1.Pod) *Pod {
	if !convert.AsksForGPU(pod) || convert.IsTerminal(pod) {
		return nil
	}
	p := &Pod{
		Namespace: one(pod.Namespace), Name: pod.Name, UID: pod.UID, Node: one(pod.Spec.NodeName),
		Gang: one(strings.TrimSpace(pod.Labels[v1alpha1.LabelPodGroup])), Phase: corev1.PodPhase(one(string(pod.Status.Phase))),
		Created: pod.CreationTimestamp, version: pod.ResourceVersion, spec: c.specOf(&pod.Spec),
	}
	for _, uuid := range convert.GPUs(pod) {
		p.GPUs = append(p.GPUs, one(uuid))
	}
	return p
}

// specOf returns a spec with the requests for GPUs alone, the same one for all pods that ask for the same.
func (c *Cache) specOf(spec *corev1.PodSpec) *corev1.PodSpec {
	trimmed := &corev1.PodSpec{Containers: trimContainers(spec.Containers), InitContainers: trimContainers(spec.InitContainers)}
	if spec.Resources != nil {
		trimmed.Resources = &corev1.ResourceRequirements{Requests: trimResources(spec.Resources.Requests)}
	}
	var key strings.Builder
	for _, containers := range [][]corev1.Container{trimmed.InitContainers, trimmed.Containers} {
		for i := range containers {
			if policy := containers[i].RestartPolicy; policy != nil {
				key.WriteString(string(*policy))
			}
			writeResources(&key, containers[i].Resources.Requests)
		}
		key.WriteString(";")
	}
	if trimmed.Resources != nil {
		writeResources(&key, trimmed.Resources.Requests)
	}
	if known := c.specs[key.String()]; known != nil {
		return known
	}
	c.specs[key.String()] = trimmed
	return trimmed
}

func writeResources(b *strings.Builder, list corev1.ResourceList) {
	for _, name := range gpuResources {
		q := list[name]
		fmt.Fprintf(b, "%s,", q.String())
	}
	b.WriteString("/")
}

var gpuResources = []corev1.ResourceName{v1alpha1.ResourceGPU, v1alpha1.ResourceGPUMemory, v1alpha1.ResourceGPUMilli}

func trimContainers(containers []corev1.Container) []corev1.Container {
	var trimmed []corev1.Container
	for i := range containers {
		c := &containers[i]
		if requests := trimResources(c.Resources.Requests); len(requests) > 0 {
			trimmed = append(trimmed, corev1.Container{
				RestartPolicy: c.RestartPolicy, Resources: corev1.ResourceRequirements{Requests: requests},
			})
		}
	}
	return trimmed
}

func trimResources(list corev1.ResourceList) corev1.ResourceList {
	var trimmed corev1.ResourceList
	for _, name := range gpuResources {
		if q, ok := list[name]; ok {
			if trimmed == nil {
				trimmed = corev1.ResourceList{}
			}
			trimmed[name] = q
		}
	}
	return trimmed
}

// trimNode keeps of a node whether it is ready, its GPUs and a few labels.
func (c *Cache) trimNode(node *corev1.Node) *corev1.Node {
	trimmed := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: one(node.Name), ResourceVersion: node.ResourceVersion}}
	for _, key := range c.options.NodeLabels {
		if value, ok := node.Labels[key]; ok {
			metav1.SetMetaDataLabel(&trimmed.ObjectMeta, key, one(value))
		}
	}
	trimmed.Spec.Unschedulable = node.Spec.Unschedulable
	trimmed.Status.Capacity = trimResources(node.Status.Capacity)
	trimmed.Status.Allocatable = trimResources(node.Status.Allocatable)
	for i := range node.Status.Conditions {
		if condition := &node.Status.Conditions[i]; condition.Type == corev1.NodeReady {
			trimmed.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: condition.Status}}
		}
	}
	return trimmed
}

// trimGPUNode keeps cordons and readings.
func trimGPUNode(gn *v1alpha1.GPUNode) *v1alpha1.GPUNode {
	trimmed := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: one(gn.Name), ResourceVersion: gn.ResourceVersion}, Spec: gn.Spec}
	trimmed.Status = v1alpha1.GPUNodeStatus{
		ObservedTime:  gn.Status.ObservedTime,
		DriverVersion: one(gn.Status.DriverVersion),
		Source:        v1alpha1.Source(one(string(gn.Status.Source))),
		Mode:          v1alpha1.Mode(one(string(gn.Status.Mode))),
		GPUs:          make([]v1alpha1.GPU, len(gn.Status.GPUs)),
	}
	for i := range gn.Status.GPUs {
		g := gn.Status.GPUs[i]
		g.UUID, g.Model = one(g.UUID), one(g.Model)
		g.NVLinkPeers, g.MIGDevices = nil, nil
		pods := make([]v1alpha1.GPUPod, len(g.Pods))
		for j, p := range g.Pods {
			p.Namespace, p.Name, p.UID = one(p.Namespace), one(p.Name), types.UID(one(string(p.UID)))
			pods[j] = p
		}
		g.Pods = pods
		trimmed.Status.GPUs[i] = g
	}
	return trimmed
}

// one returns the same string for equal strings, so that what is told many times is kept once.
func one(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}
