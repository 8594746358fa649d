// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// asks is what one container requests, by resource name.
type asks map[corev1.ResourceName]string

const (
	gpu       = v1alpha1.ResourceGPU
	gpuMemory = v1alpha1.ResourceGPUMemory
	gpuMilli  = v1alpha1.ResourceGPUMilli
)

func container(a asks) corev1.Container {
	requests := corev1.ResourceList{}
	for name, q := range a {
		requests[name] = resource.MustParse(q)
	}
	return corev1.Container{Resources: corev1.ResourceRequirements{Requests: requests}}
}

// podOf makes a pod with a container for each of the asks.
func podOf(name string, containers ...asks) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Annotations: map[string]string{}}}
	for _, a := range containers {
		pod.Spec.Containers = append(pod.Spec.Containers, container(a))
	}
	return pod
}

func annotated(pod *corev1.Pod, key, value string) *corev1.Pod {
	pod.Annotations[key] = value
	return pod
}

func withInit(pod *corev1.Pod, a asks, sidecar bool) *corev1.Pod {
	c := container(a)
	if sidecar {
		c.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
	}
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
	return pod
}

func TestRequest(t *testing.T) {
	tests := []struct {
		name string
		pod  *corev1.Pod
		want pack.Request
		// err is part of the message; empty for a request that is well-formed.
		err string
	}{
		{name: "no GPU", pod: podOf("p", asks{"cpu": "500m", "memory": "1Gi"}), want: pack.Request{CPUMilli: 500, MemoryMiB: 1024}},
		{name: "no GPU, no matter what the annotations say", pod: annotated(podOf("p", asks{"cpu": "1"}), v1alpha1.AnnotationGPUModel, ",,"),
			want: pack.Request{CPUMilli: 1000}},
		{name: "whole GPUs", pod: podOf("p", asks{gpu: "2", "cpu": "8"}), want: pack.Request{GPUs: 2, CPUMilli: 8000}},
		{name: "whole GPUs of several containers", pod: podOf("p", asks{gpu: "2"}, asks{gpu: "1"}), want: pack.Request{GPUs: 3}},
		{name: "memory", pod: podOf("p", asks{gpuMemory: "8Gi"}), want: pack.Request{MiB: 8192}},
		{name: "memory is rounded up to MiB", pod: podOf("p", asks{gpuMemory: "1000000"}), want: pack.Request{MiB: 1}},
		{name: "one byte more is one MiB more", pod: podOf("p", asks{gpuMemory: "1048577"}), want: pack.Request{MiB: 2}},
		{name: "host memory is rounded up to MiB", pod: podOf("p", asks{"memory": "1"}), want: pack.Request{MemoryMiB: 1}},
		{name: "milli", pod: podOf("p", asks{gpuMilli: "500"}), want: pack.Request{Milli: 500}},
		{name: "all milli of one GPU", pod: podOf("p", asks{gpuMilli: "1000"}), want: pack.Request{Milli: 1000}},
		{name: "milli and memory", pod: podOf("p", asks{gpuMilli: "500", gpuMemory: "8Gi"}), want: pack.Request{Milli: 500, MiB: 8192}},
		{name: "zero is nothing", pod: podOf("p", asks{gpuMilli: "0", gpu: "0"}), want: pack.Request{}},
		{name: "a share beside a container without one", pod: podOf("p", asks{gpuMilli: "500"}, asks{"cpu": "1"}), want: pack.Request{Milli: 500, CPUMilli: 1000}},

		{name: "an init container asks for more", pod: withInit(podOf("p", asks{gpu: "1", "cpu": "1"}), asks{gpu: "2", "cpu": "500m"}, false),
			want: pack.Request{GPUs: 2, CPUMilli: 1000}},
		{name: "an init container asks for less", pod: withInit(podOf("p", asks{gpu: "4"}), asks{gpu: "1"}, false), want: pack.Request{GPUs: 4}},
		{name: "a sidecar asks besides", pod: withInit(podOf("p", asks{gpu: "1", "cpu": "1"}), asks{gpu: "1", "cpu": "1"}, true),
			want: pack.Request{GPUs: 2, CPUMilli: 2000}},
		{name: "an init container with a share", pod: withInit(podOf("p", asks{gpuMilli: "300"}), asks{gpuMilli: "500"}, false), want: pack.Request{Milli: 500}},
		{name: "a share in a sidecar alone", pod: withInit(podOf("p", asks{"cpu": "1"}), asks{gpuMilli: "500"}, true), want: pack.Request{Milli: 500, CPUMilli: 1000}},
		{name: "overhead", pod: func() *corev1.Pod {
			p := podOf("p", asks{"cpu": "1", gpu: "1"})
			p.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse("250m")}
			return p
		}(), want: pack.Request{GPUs: 1, CPUMilli: 1250}},

		{name: "models", pod: annotated(podOf("p", asks{gpu: "1"}), v1alpha1.AnnotationGPUModel, "H100, A100-SXM4-80GB,H100"),
			want: pack.Request{GPUs: 1, Models: []string{"A100-SXM4-80GB", "H100"}}},
		{name: "utilisation", pod: annotated(podOf("p", asks{gpuMilli: "1"}), v1alpha1.AnnotationMaxLiveUtilization, " 60 "),
			want: pack.Request{Milli: 1, MaxUtilization: 60}},

		{name: "share above one GPU", pod: podOf("p", asks{gpuMilli: "1001", "cpu": "1"}), want: pack.Request{CPUMilli: 1000},
			err: "gpupack.dev/gpu-milli is 1001, above one GPU (1000): ask for whole GPUs with nvidia.com/gpu instead"},
		{name: "both kinds", pod: podOf("p", asks{gpu: "1", gpuMilli: "500"}), want: pack.Request{GPUs: 1},
			err: "the pod asks for nvidia.com/gpu and for a share of a GPU (gpupack.dev/gpu-memory or gpupack.dev/gpu-milli): ask for one kind"},
		{name: "both kinds in two containers", pod: podOf("p", asks{gpu: "1"}, asks{gpuMemory: "1Gi", "memory": "1Gi"}), want: pack.Request{GPUs: 1, MemoryMiB: 1024},
			err: "ask for one kind"},
		{name: "both kinds, one in an init container", pod: withInit(podOf("p", asks{gpuMemory: "1Gi"}), asks{gpu: "1"}, false), want: pack.Request{GPUs: 1},
			err: "ask for one kind"},
		{name: "two containers with shares", pod: podOf("p", asks{gpuMilli: "300"}, asks{gpuMilli: "300"}),
			err: "2 containers ask for a share of a GPU: write the pod's whole share on one of them"},
		{name: "two containers with halves of a share", pod: podOf("p", asks{gpuMilli: "300"}, asks{gpuMemory: "1Gi"}),
			err: "2 containers ask for a share"},
		{name: "a container and a sidecar with shares", pod: withInit(podOf("p", asks{gpuMilli: "300"}), asks{gpuMilli: "300"}, true),
			err: "2 containers ask for a share"},
		{name: "no model", pod: annotated(podOf("p", asks{gpu: "1"}), v1alpha1.AnnotationGPUModel, ""), want: pack.Request{GPUs: 1},
			err: `annotation gpupack.dev/gpu-model is "": write model names separated by commas`},
		{name: "an empty model", pod: annotated(podOf("p", asks{gpu: "1"}), v1alpha1.AnnotationGPUModel, "A100,,H100"), want: pack.Request{GPUs: 1},
			err: `annotation gpupack.dev/gpu-model is "A100,,H100"`},
		{name: "utilisation in words", pod: annotated(podOf("p", asks{gpuMilli: "1"}), v1alpha1.AnnotationMaxLiveUtilization, "low"),
			err: `annotation gpupack.dev/max-live-utilization is "low": write a whole number of percent from 1 to 100`},
		{name: "utilisation with a sign", pod: annotated(podOf("p", asks{gpuMilli: "1"}), v1alpha1.AnnotationMaxLiveUtilization, "60%"),
			err: "write a whole number of percent"},
		{name: "utilisation above 100", pod: annotated(podOf("p", asks{gpuMilli: "1"}), v1alpha1.AnnotationMaxLiveUtilization, "101"),
			err: "write a whole number of percent"},
		{name: "utilisation 0", pod: annotated(podOf("p", asks{gpuMilli: "1"}), v1alpha1.AnnotationMaxLiveUtilization, "0"),
			err: "write a whole number of percent"},
		{name: "negative", pod: podOf("p", asks{gpu: "-1"}), err: "a request cannot be negative"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.pod.DeepCopy()
			got, err := Request(tt.pod)
			assert.Equal(t, tt.want, got)
			assert.Equal(t, before, tt.pod)
			if tt.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.err)
		})
	}
}

func TestGPUs(t *testing.T) {
	assert.Nil(t, GPUs(&corev1.Pod{}))
	assert.Nil(t, GPUs(annotated(podOf("p"), v1alpha1.AnnotationGPUs, "")))
	assert.Equal(t, []string{"GPU-a"}, GPUs(annotated(podOf("p"), v1alpha1.AnnotationGPUs, "GPU-a")))
	assert.Equal(t, []string{"GPU-a", "GPU-b"}, GPUs(annotated(podOf("p"), v1alpha1.AnnotationGPUs, "GPU-a,GPU-b")))
}

func TestHoldsGPUs(t *testing.T) {
	onNode := func(pod *corev1.Pod, phase corev1.PodPhase) *corev1.Pod {
		pod.Spec.NodeName, pod.Status.Phase = "node", phase
		return pod
	}
	tests := []struct {
		name              string
		pod               *corev1.Pod
		holds, asksForGPU bool
	}{
		{"running", onNode(podOf("p", asks{gpu: "1"}), corev1.PodRunning), true, true},
		{"bound, not started", onNode(podOf("p", asks{gpuMilli: "1"}), corev1.PodPending), true, true},
		{"share by memory", onNode(podOf("p", asks{"cpu": "1"}, asks{gpuMemory: "1Gi"}), corev1.PodRunning), true, true},
		{"malformed", onNode(podOf("p", asks{gpu: "1", gpuMilli: "1"}), corev1.PodRunning), true, true},
		{"init container alone", onNode(withInit(podOf("p", asks{}), asks{gpu: "1"}, false), corev1.PodRunning), true, true},
		{"succeeded", onNode(podOf("p", asks{gpu: "1"}), corev1.PodSucceeded), false, true},
		{"failed", onNode(podOf("p", asks{gpu: "1"}), corev1.PodFailed), false, true},
		{"on no node", podOf("p", asks{gpu: "1"}), false, true},
		{"no GPU", onNode(podOf("p", asks{"cpu": "1"}), corev1.PodRunning), false, false},
		{"zero GPUs", onNode(podOf("p", asks{gpu: "0"}), corev1.PodRunning), false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.holds, HoldsGPUs(tt.pod))
			assert.Equal(t, tt.asksForGPU, AsksForGPU(tt.pod))
		})
	}
}
