// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package simulated

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

const (
	// maxMemoryMiB is the most device memory that a GPUNode accepts for a GPU.
	maxMemoryMiB = 1 << 24
	// maxNodes bounds what a mistyped count can do.
	maxNodes = 100_000
)

// Validate returns what is wrong with the scenario. The fields are named as in a scenario file.
func (s *Scenario) Validate() field.ErrorList {
	var errs field.ErrorList
	nodes := field.NewPath("nodes")
	if len(s.Nodes) == 0 {
		errs = append(errs, field.Required(nodes, "list at least one node"))
	}
	seen := make(map[string]bool, len(s.Nodes))
	for i := range s.Nodes {
		n, path := &s.Nodes[i], nodes.Index(i)
		errs = append(errs, validateName(n.Name, path.Child("name"))...)
		if seen[n.Name] {
			errs = append(errs, duplicateName(n.Name, path.Child("name")))
		}
		seen[n.Name] = true
		errs = append(errs, n.validate(path)...)
	}
	return append(errs, validateWorkloads(s.Workloads)...)
}

func validateName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "give a name, or namePrefix and count")}
	}
	var errs field.ErrorList
	for _, msg := range validation.IsDNS1123Subdomain(name) {
		errs = append(errs, field.Invalid(path, name, msg))
	}
	return errs
}

func duplicateName(name string, path *field.Path) *field.Error {
	err := field.Duplicate(path, name)
	err.Detail = "another node has this name: rename one of them"
	return err
}

// validate checks everything but the name.
func (n *Node) validate(path *field.Path) field.ErrorList {
	errs := metav1validation.ValidateLabels(n.Labels, path.Child("labels"))
	for i, t := range n.Taints {
		at := path.Child("taints").Index(i)
		errs = append(errs, metav1validation.ValidateLabelName(t.Key, at.Child("key"))...)
		for _, msg := range validation.IsValidLabelValue(t.Value) {
			errs = append(errs, field.Invalid(at.Child("value"), t.Value, msg))
		}
		effects := []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}
		errs = append(errs, oneOf(t.Effect, effects, at.Child("effect"))...)
	}
	if n.CPUMilli <= 0 {
		errs = append(errs, field.Required(path.Child("cpu"), `give the CPUs of the node, such as "96"`))
	}
	if n.MemoryMiB <= 0 {
		errs = append(errs, field.Required(path.Child("memory"), "give the host memory of the node, such as 512Gi"))
	}
	if n.MaxPods < 0 {
		errs = append(errs, field.Invalid(path.Child("maxPods"), n.MaxPods, "must not be negative"))
	}
	if n.Mode != "" {
		modes := []v1alpha1.Mode{v1alpha1.ModeManage, v1alpha1.ModeObserve}
		errs = append(errs, oneOf(n.Mode, modes, path.Child("mode"))...)
	}
	if len(n.DriverVersion) > 64 {
		errs = append(errs, field.TooLong(path.Child("driverVersion"), n.DriverVersion, 64))
	}
	errs = append(errs, n.validateGPUs(path.Child("gpus"))...)
	errs = append(errs, n.validateProcesses(path.Child("processes"))...)
	return append(errs, n.validateEvents(path.Child("events"))...)
}

func (n *Node) validateGPUs(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(n.GPUs) == 0 {
		errs = append(errs, field.Required(path, "list at least one group of GPUs: no agent runs on a node without any"))
	}
	for i, g := range n.GPUs {
		at := path.Index(i)
		if g.Model == "" {
			errs = append(errs, field.Required(at.Child("model"), "give the model, such as A100-SXM4-80GB"))
		}
		for _, msg := range validation.IsValidLabelValue(g.Model) {
			errs = append(errs, field.Invalid(at.Child("model"), g.Model, msg))
		}
		if g.Count < 1 || g.Count > MaxGPUs {
			errs = append(errs, field.Invalid(at.Child("count"), g.Count, fmt.Sprintf("must be 1 to %d", MaxGPUs)))
		}
		switch {
		case g.MemoryMiB == 0:
			errs = append(errs, field.Required(at.Child("memory"), "give the device memory of each GPU, such as 80Gi"))
		case g.MemoryMiB < 0 || g.MemoryMiB > maxMemoryMiB:
			errs = append(errs, field.Invalid(at.Child("memory"), g.MemoryMiB, fmt.Sprintf("must be 1 to %d MiB", maxMemoryMiB)))
		case g.ReservedMiB < 0 || g.ReservedMiB >= g.MemoryMiB:
			errs = append(errs, field.Invalid(at.Child("reserved"), g.ReservedMiB,
				fmt.Sprintf("must be at least 0 MiB and less than the GPU's memory, %d MiB", g.MemoryMiB)))
		}
	}
	if count := n.GPUCount(); len(errs) == 0 && count > MaxGPUs {
		errs = append(errs, field.TooMany(path, count, MaxGPUs))
	}
	return errs
}

func (n *Node) validateProcesses(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range n.Processes {
		p, at := &n.Processes[i], path.Index(i)
		group := n.group(p.GPU)
		if group == nil {
			errs = append(errs, n.noSuchGPU(p.GPU, at.Child("gpu")))
		}
		if p.MemoryMiB < 0 {
			errs = append(errs, field.Invalid(at.Child("memory"), p.MemoryMiB, "must not be negative"))
		}
		errs = append(errs, percent(p.Utilization, at.Child("utilization"))...)
		if p.PID < 0 {
			errs = append(errs, field.Invalid(at.Child("pid"), p.PID, "must not be negative"))
		}
		if p.From < 0 {
			errs = append(errs, field.Invalid(at.Child("from"), p.From.String(), "must not be negative"))
		}
		if p.Until < 0 || p.Until != 0 && p.Until <= p.From {
			errs = append(errs, field.Invalid(at.Child("until"), p.Until.String(),
				fmt.Sprintf("must be after from (%s), or be left out for a process that does not end", p.From)))
		}
		if group == nil {
			continue
		}
		// Memory is most in demand when a process starts.
		var sum int64
		for j := range n.Processes {
			if other := &n.Processes[j]; other.GPU == p.GPU && other.runs(p.From) {
				sum += other.MemoryMiB
			}
		}
		if usable := group.MemoryMiB - group.ReservedMiB; sum > usable {
			errs = append(errs, field.Invalid(at.Child("memory"), p.MemoryMiB, fmt.Sprintf(
				"at %s the processes on GPU %d would use %d MiB of %d MiB (memory less the driver's reserve): lower one of them",
				p.From, p.GPU, sum, usable)))
		}
	}
	return errs
}

func (n *Node) validateEvents(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, e := range n.Events {
		at := path.Index(i)
		if n.group(e.GPU) == nil {
			errs = append(errs, n.noSuchGPU(e.GPU, at.Child("gpu")))
		}
		if e.At < 0 {
			errs = append(errs, field.Invalid(at.Child("at"), e.At.String(), "must not be negative"))
		}
		errs = append(errs, oneOf(e.Kind, []EventKind{EventXid, EventECC, EventLost, EventRecover}, at.Child("kind"))...)
		if e.Kind == EventXid && (e.Code < 1 || e.Code > 999) {
			errs = append(errs, field.Invalid(at.Child("code"), e.Code, "an xid needs its number, 1 to 999"))
		}
		if e.Kind != EventXid && e.Code != 0 {
			errs = append(errs, field.Invalid(at.Child("code"), e.Code, "only an xid has a code: remove it"))
		}
	}
	return errs
}

func (n *Node) noSuchGPU(index int, path *field.Path) *field.Error {
	return field.Invalid(path, index, fmt.Sprintf("the node has %d GPUs, whose indices start at 0", n.GPUCount()))
}

func validateWorkloads(workloads []Workload) field.ErrorList {
	var errs field.ErrorList
	for i, w := range workloads {
		at := field.NewPath("workloads").Index(i)
		if !(w.MemoryFraction >= 0 && w.MemoryFraction <= 100) {
			errs = append(errs, field.Invalid(at.Child("memoryFraction"), w.MemoryFraction, "must be 0 to 100; 1 is all that the pod asked for"))
		}
		if w.Utilization != nil {
			errs = append(errs, percent(*w.Utilization, at.Child("utilization"))...)
		}
		if w.GrowthMiBPerMinute < 0 || w.GrowthMiBPerMinute > maxMemoryMiB {
			errs = append(errs, field.Invalid(at.Child("growthPerMinute"), w.GrowthMiBPerMinute,
				fmt.Sprintf("must be 0 to %d MiB", maxMemoryMiB)))
		}
	}
	return errs
}

func percent(value int32, path *field.Path) field.ErrorList {
	if value < 0 || value > 100 {
		return field.ErrorList{field.Invalid(path, value, "must be 0 to 100 percent")}
	}
	return nil
}

func oneOf[T ~string](value T, valid []T, path *field.Path) field.ErrorList {
	names := make([]string, len(valid))
	for i, v := range valid {
		if v == value {
			return nil
		}
		names[i] = string(v)
	}
	return field.ErrorList{field.Invalid(path, value, "must be one of "+strings.Join(names, ", "))}
}
