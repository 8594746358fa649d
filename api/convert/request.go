// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

const mib = 1 << 20

// Request reads what a pod asks for. The error names the resource or annotation that is wrong, what is wrong with it,
// and what to write instead. The request then has what another scheduler can have granted all the same: CPU, host memory
// and whole GPUs.
func Request(pod *corev1.Pod) (pack.Request, error) {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	r := pack.Request{
		CPUMilli:  requests.Cpu().MilliValue(),
		MemoryMiB: toMiB(requests.Memory()),
		GPUs:      int(value(requests, v1alpha1.ResourceGPU)),
		Milli:     value(requests, v1alpha1.ResourceGPUMilli),
		MiB:       toMiB(quantity(requests, v1alpha1.ResourceGPUMemory)),
	}
	granted := pack.Request{CPUMilli: r.CPUMilli, MemoryMiB: r.MemoryMiB, GPUs: max(0, r.GPUs)}
	if r.GPUs > 0 && (r.Milli > 0 || r.MiB > 0) {
		return granted, fmt.Errorf("the pod asks for %s and for a share of a GPU (%s or %s): ask for one kind",
			v1alpha1.ResourceGPU, v1alpha1.ResourceGPUMemory, v1alpha1.ResourceGPUMilli)
	}
	if r.Milli > pack.WholeMilli {
		return granted, fmt.Errorf("%s is %d, above one GPU (1000): ask for whole GPUs with %s instead",
			v1alpha1.ResourceGPUMilli, r.Milli, v1alpha1.ResourceGPU)
	}
	if err := r.Validate(); err != nil {
		return granted, err
	}
	if !r.WantsGPU() {
		return r, nil
	}
	// A share sits on one GPU, which the pod's containers use together; a request of several containers would be
	// several shares, of which nothing says whether they may be apart.
	if r.IsShare() && containersWithShare(pod) > 1 {
		return granted, fmt.Errorf("%d containers ask for a share of a GPU: write the pod's whole share on one of them",
			containersWithShare(pod))
	}
	var err error
	if r.Models, err = models(pod); err != nil {
		return granted, err
	}
	if r.MaxUtilization, err = maxUtilization(pod); err != nil {
		return granted, err
	}
	return r, nil
}

// containersWithShare counts the containers that ask for a share and run at the same time: sidecars too, but no other
// init containers, which have ended when the rest starts.
func containersWithShare(pod *corev1.Pod) int {
	n := 0
	count := func(c *corev1.Container) {
		requests := c.Resources.Requests
		if !quantity(requests, v1alpha1.ResourceGPUMemory).IsZero() || !quantity(requests, v1alpha1.ResourceGPUMilli).IsZero() {
			n++
		}
	}
	for i := range pod.Spec.Containers {
		count(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if policy := pod.Spec.InitContainers[i].RestartPolicy; policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			count(&pod.Spec.InitContainers[i])
		}
	}
	return n
}

func models(pod *corev1.Pod) ([]string, error) {
	text, ok := pod.Annotations[v1alpha1.AnnotationGPUModel]
	if !ok {
		return nil, nil
	}
	var out []string
	for _, m := range strings.Split(text, ",") {
		m = strings.TrimSpace(m)
		if m == "" {
			return nil, fmt.Errorf("annotation %s is %q: write model names separated by commas, such as \"A100-SXM4-80GB,H100\"",
				v1alpha1.AnnotationGPUModel, text)
		}
		out = append(out, m)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func maxUtilization(pod *corev1.Pod) (int, error) {
	text, ok := pod.Annotations[v1alpha1.AnnotationMaxLiveUtilization]
	if !ok {
		return 0, nil
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || n < 1 || n > 100 {
		return 0, fmt.Errorf("annotation %s is %q: write a whole number of percent from 1 to 100",
			v1alpha1.AnnotationMaxLiveUtilization, text)
	}
	return n, nil
}

// GPUs returns the UUIDs in the pod's gpus annotation; nil where there is none.
func GPUs(pod *corev1.Pod) []string {
	text := pod.Annotations[v1alpha1.AnnotationGPUs]
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

// HoldsGPUs says whether the pod occupies GPUs of the node that it is bound to.
func HoldsGPUs(pod *corev1.Pod) bool {
	if pod.Spec.NodeName == "" || IsTerminal(pod) {
		return false
	}
	return AsksForGPU(pod)
}

// IsTerminal says whether all of the pod's containers have ended for good.
func IsTerminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// AsksForGPU says whether any container asks for a GPU or a share of one, rightly or wrongly.
func AsksForGPU(pod *corev1.Pod) bool {
	asks := func(containers []corev1.Container) bool {
		return slices.ContainsFunc(containers, func(c corev1.Container) bool {
			for _, name := range []corev1.ResourceName{v1alpha1.ResourceGPU, v1alpha1.ResourceGPUMemory, v1alpha1.ResourceGPUMilli} {
				if !quantity(c.Resources.Requests, name).IsZero() {
					return true
				}
			}
			return false
		})
	}
	return asks(pod.Spec.Containers) || asks(pod.Spec.InitContainers)
}

func quantity(list corev1.ResourceList, name corev1.ResourceName) *resource.Quantity {
	q := list[name]
	return &q
}

func value(list corev1.ResourceList, name corev1.ResourceName) int64 {
	return quantity(list, name).Value()
}

// toMiB rounds up, so that a pod never gets less than it asked for.
func toMiB(q *resource.Quantity) int64 {
	bytes := q.Value()
	mibs := bytes / mib
	if bytes%mib > 0 {
		mibs++
	}
	return mibs
}
