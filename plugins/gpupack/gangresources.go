// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// checkMinResources says why a gang cannot start with those members placed though there are enough of them: what they and those
// that hold places ask for is less than its minResources, and other members would add to it. Where not even all of its
// members ask for that much, all must be placed, and the cluster must have that much for the gang, as the coscheduling
// plugin means it. A gang that has started may always grow.
func (g *gang) checkMinResources(placed []*corev1.Pod, holders []holder, infos []fwk.NodeInfo, nodes []*pack.Node) error {
	if len(g.group.Spec.MinResources) == 0 || g.held >= int(g.group.Spec.MinMember) {
		return nil
	}
	held := make([]*corev1.Pod, len(holders))
	for i := range holders {
		held[i] = holders[i].pod
	}
	has := sumRequests(slices.Concat(held, placed))
	all := sumRequests(slices.Concat(held, g.pending))
	for _, name := range slices.Sorted(maps.Keys(g.group.Spec.MinResources)) {
		want, got, most := g.group.Spec.MinResources[name], has[name], all[name]
		if got.Cmp(want) >= 0 {
			continue
		}
		if got.Cmp(most) < 0 {
			return fmt.Errorf("its minResources want %s of %s, and the members that fit at once ask for %s", want.String(), name, got.String())
		}
		if room := roomFor(name, held, infos, nodes); room.Cmp(want) < 0 {
			return fmt.Errorf("its minResources want %s of %s, more than its members ask for (%s), and the cluster has room for %s",
				want.String(), name, most.String(), room.String())
		}
	}
	return nil
}

func sumRequests(pods []*corev1.Pod) corev1.ResourceList {
	out := corev1.ResourceList{corev1.ResourcePods: *resource.NewQuantity(int64(len(pods)), resource.DecimalSI)}
	for _, pod := range pods {
		for name, q := range resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{}) {
			sum := out[name]
			sum.Add(q)
			out[name] = sum
		}
	}
	return out
}

// roomFor is how much of a resource the nodes have left, with what the gang itself holds.
func roomFor(name corev1.ResourceName, held []*corev1.Pod, infos []fwk.NodeInfo, nodes []*pack.Node) resource.Quantity {
	var free int64
	for i, info := range infos {
		if !info.Node().Spec.Unschedulable {
			free += max(0, freeOf(name, info, nodes[i]))
		}
	}
	q := *resource.NewQuantity(free, resource.DecimalSI)
	switch name {
	case corev1.ResourceCPU:
		q = *resource.NewMilliQuantity(free, resource.DecimalSI)
	case corev1.ResourceMemory, corev1.ResourceEphemeralStorage, v1alpha1.ResourceGPUMemory:
		q = *resource.NewQuantity(free, resource.BinarySI)
	}
	mine := sumRequests(held)[name]
	q.Add(mine)
	return q
}

// freeOf is how much of a resource a node has left: CPU in milli-CPU, else in units.
func freeOf(name corev1.ResourceName, info fwk.NodeInfo, n *pack.Node) int64 {
	allocatable, requested := info.GetAllocatable(), info.GetRequested()
	switch name {
	case corev1.ResourceCPU:
		return n.CPUMilli
	case corev1.ResourceMemory:
		return n.MemoryMiB << 20
	case corev1.ResourcePods:
		return int64(allocatable.GetAllowedPodNumber() - len(info.GetPods()))
	case corev1.ResourceEphemeralStorage:
		return allocatable.GetEphemeralStorage() - requested.GetEphemeralStorage()
	case v1alpha1.ResourceGPU, v1alpha1.ResourceGPUMilli, v1alpha1.ResourceGPUMemory:
		var free int64
		for i := range n.GPUs {
			switch g := &n.GPUs[i]; {
			case n.Problem != pack.ReasonFits || g.Unhealthy != "":
			case name == v1alpha1.ResourceGPUMilli:
				free += g.FreeMilli()
			case name == v1alpha1.ResourceGPUMemory:
				free += g.FreeMiB() << 20
			case len(g.Tenants) == 0:
				free++
			}
		}
		return free
	default:
		return allocatable.GetScalarResources()[name] - requested.GetScalarResources()[name]
	}
}
