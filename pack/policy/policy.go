// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gpupack/gpupack/pack"
)

// builders make each policy by its name.
var builders = map[string]func(*pack.Distribution) pack.Policy{
	"best-fit":        func(*pack.Distribution) pack.Policy { return BestFit{} },
	"dot-product":     func(*pack.Distribution) pack.Policy { return DotProduct{} },
	"fgd":             func(d *pack.Distribution) pack.Policy { return NewFGD(d) },
	"gpu-clustering":  func(*pack.Distribution) pack.Policy { return GPUClustering{} },
	"gpupack":         func(d *pack.Distribution) pack.Policy { return NewGPUPack(d) },
	"gpu-packing":     func(*pack.Distribution) pack.Policy { return GPUPacking{} },
	"least-allocated": func(*pack.Distribution) pack.Policy { return LeastAllocated{} },
	"most-allocated":  func(*pack.Distribution) pack.Policy { return MostAllocated{} },
	"random":          func(*pack.Distribution) pack.Policy { return &Random{} },
}

// Names lists the policies that New makes, sorted.
func Names() []string { return slices.Sorted(maps.Keys(builders)) }

// Exists says whether New makes a policy of that name.
func Exists(name string) bool {
	_, ok := builders[name]
	return ok
}

// Simulated is New for comparisons: "fgd" is what the artifact of the FGD paper computes, and pods come but do not go.
func Simulated(name string, d *pack.Distribution) (pack.Policy, error) {
	if name == "fgd" {
		return NewFGDArtifact(d), nil
	}
	return build(name, d)
}

// New makes the policy of that name for a distribution of workload classes, in a cluster in which pods come and go.
func New(name string, d *pack.Distribution) (pack.Policy, error) {
	p, err := build(name, d)
	if t, ok := p.(TurnoverAware); ok {
		t.SetTurnover(true)
	}
	return p, err
}

func build(name string, d *pack.Distribution) (pack.Policy, error) {
	build, ok := builders[name]
	if !ok {
		return nil, fmt.Errorf("unknown packing policy %q: use one of %s", name, strings.Join(Names(), ", "))
	}
	return build(d), nil
}
