// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package simulated holds the scenario language, which describes nodes and what happens to their GPUs over time, and the
// GPUs of a scenario: what they would read at a time, given the pods that have them. Nothing here depends on the clock or
// on chance, so that the same scenario with the same pods always reads the same.
package simulated

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// Scenario is a fleet of nodes and how pods use their GPUs. All times in it count from the start of the simulation.
type Scenario struct {
	Nodes []Node
	// Workloads say how pods use their GPUs. The first whose selector matches a pod's labels counts.
	Workloads []Workload
}

// Node is one node and its GPUs.
type Node struct {
	Name   string
	Labels map[string]string
	Taints []corev1.Taint
	// CPUMilli is the CPU of the node, in milli-CPU.
	CPUMilli int64
	// MemoryMiB is the host memory of the node.
	MemoryMiB int64
	// MaxPods is how many pods the node takes; 0 means DefaultMaxPods.
	MaxPods int64
	// Mode says who hands out GPUs; empty means manage.
	Mode v1alpha1.Mode
	// DriverVersion is reported as it is; empty means DefaultDriverVersion.
	DriverVersion string
	// GPUs of the node, in groups of equal ones. Their indices count through the groups in this order, from 0.
	GPUs []GPUGroup
	// Processes run outside any pod.
	Processes []Process
	Events    []Event
}

const (
	// DefaultMaxPods is the kubelet's own default.
	DefaultMaxPods = 110
	// DefaultDriverVersion is the driver version of nodes that name none.
	DefaultDriverVersion = "570.86.15"
	// MaxGPUs is the most GPUs that a GPUNode can have.
	MaxGPUs = 32
)

// GPUGroup is a number of equal GPUs.
type GPUGroup struct {
	// Model in the form of a label's value, such as "A100-SXM4-80GB".
	Model string
	Count int
	// MemoryMiB is the device memory of each GPU.
	MemoryMiB int64
	// ReservedMiB is the part of it that the driver keeps.
	ReservedMiB int64
}

// Process is a process of no pod that uses a GPU.
type Process struct {
	// GPU is the index of the GPU on its node.
	GPU int
	// MemoryMiB is the device memory that it uses, as long as there is that much left when it starts.
	MemoryMiB int64
	// Utilization is its part of the GPU's utilisation, percent.
	Utilization int32
	// From and Until bound its life. Until 0 means that it does not end.
	From, Until time.Duration
	Command     string
	PID         int
}

// EventKind is what happens to a GPU.
type EventKind string

// Kinds of events.
const (
	// EventXid is an Xid error of the driver. The errors that an application causes (see ApplicationXid) leave the GPU
	// healthy, the others do not.
	EventXid EventKind = "xid"
	// EventECC is an uncorrectable memory error.
	EventECC EventKind = "ecc"
	// EventLost means that the GPU falls off the bus. What ran on it has ended.
	EventLost EventKind = "lost"
	// EventRecover makes the GPU healthy again.
	EventRecover EventKind = "recover"
)

// Event happens to one GPU at one time.
type Event struct {
	// GPU is the index of the GPU on its node.
	GPU  int
	At   time.Duration
	Kind EventKind
	// Code is the number of the Xid; other kinds have none.
	Code int
}

// Workload is how the pods that it selects use each of their GPUs.
type Workload struct {
	// Selector selects pods by their labels; nil selects all.
	Selector labels.Selector
	// MemoryFraction is the memory used, as a fraction of what the pod asked for. It may be above 1.
	MemoryFraction float64
	// Utilization is the pod's part of each GPU's utilisation, percent; nil derives it from the compute asked for.
	Utilization *int32
	// GrowthMiBPerMinute is added to the memory used for each minute that the pod runs.
	GrowthMiBPerMinute int64
}

// How a pod uses its GPUs if no workload selects it.
const (
	// DefaultMemoryFraction is the memory used, as a fraction of what the pod asked for.
	DefaultMemoryFraction = 0.9
	// DefaultUtilization is the utilisation of a whole GPU, percent; a share has its share of that. It varies a little.
	DefaultUtilization = 80
)

// Annotations on a pod that override how it uses each of its GPUs.
const (
	// AnnotationMemory is the memory used, as a quantity, such as "12Gi".
	AnnotationMemory = "simulated." + v1alpha1.GroupName + "/memory"
	// AnnotationUtilization is the pod's part of the GPU's utilisation, percent, such as "70".
	AnnotationUtilization = "simulated." + v1alpha1.GroupName + "/utilization"
)

// GPUCount is the number of GPUs of the node.
func (n *Node) GPUCount() int {
	count := 0
	for _, g := range n.GPUs {
		count += g.Count
	}
	return count
}

// group returns the group of the GPU with that index, or nil.
func (n *Node) group(index int) *GPUGroup {
	if index < 0 {
		return nil
	}
	for i := range n.GPUs {
		if index < n.GPUs[i].Count {
			return &n.GPUs[i]
		}
		index -= n.GPUs[i].Count
	}
	return nil
}
