// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"strconv"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/agent/publish"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/nvml/simulated"
)

const (
	// kwokAnnotation, with the value kwokFake, tells kwok that it is to run the node.
	kwokAnnotation = "kwok.x-k8s.io/node"
	kwokFake       = "fake"

	// The labels of NVIDIA's GPU feature discovery.
	labelProduct = "nvidia.com/gpu.product"
	labelCount   = "nvidia.com/gpu.count"
	labelMemory  = "nvidia.com/gpu.memory" // MiB
)

// CreateNodes creates the Nodes of the fleet, for kwok to run. Those that exist are left as they are.
func (f *Fleet) CreateNodes(ctx context.Context) error {
	creates, ctx := errgroup.WithContext(ctx)
	creates.SetLimit(workers)
	for _, n := range f.nodes {
		creates.Go(func() error {
			_, err := f.client.CoreV1().Nodes().Create(ctx, kubeNode(n.scenario, n.devices),
				metav1.CreateOptions{FieldManager: publish.FieldManager})
			if err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("create node %s: %w", n.scenario.Name, err)
			}
			return nil
		})
	}
	return creates.Wait()
}

// kubeNode returns the Node of a node of the scenario as it is at the start.
func kubeNode(n *simulated.Node, devices *simulated.Devices) *corev1.Node {
	healthy := 0
	for _, gpu := range devices.Read(0, nil) {
		if gpu.Healthy {
			healthy++
		}
	}
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(n.CPUMilli, resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(n.MemoryMiB<<20, resource.BinarySI),
		corev1.ResourcePods:   *resource.NewQuantity(cmp.Or(n.MaxPods, simulated.DefaultMaxPods), resource.DecimalSI),
		v1alpha1.ResourceGPU:  *resource.NewQuantity(int64(n.GPUCount()), resource.DecimalSI),
	}
	allocatable := capacity.DeepCopy()
	allocatable[v1alpha1.ResourceGPU] = *resource.NewQuantity(int64(healthy), resource.DecimalSI)

	labels := map[string]string{
		corev1.LabelHostname:   n.Name,
		corev1.LabelOSStable:   "linux",
		corev1.LabelArchStable: "amd64",
		labelCount:             strconv.Itoa(n.GPUCount()),
	}
	if len(n.GPUs) == 1 {
		labels[labelProduct] = n.GPUs[0].Model
		labels[labelMemory] = strconv.FormatInt(n.GPUs[0].MemoryMiB, 10)
	}
	maps.Copy(labels, n.Labels)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        n.Name,
			Labels:      labels,
			Annotations: map[string]string{kwokAnnotation: kwokFake},
		},
		Spec:   corev1.NodeSpec{Taints: n.Taints},
		Status: corev1.NodeStatus{Capacity: capacity, Allocatable: allocatable},
	}
}
