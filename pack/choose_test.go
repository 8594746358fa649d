// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// policyFunc is a policy for tests.
type policyFunc func(c *Candidate) float64

func (f policyFunc) Name() string               { return "test" }
func (f policyFunc) Score(c *Candidate) float64 { return f(c) }

var (
	indifferent = policyFunc(func(*Candidate) float64 { return 0 })
	// mostWhole likes to keep GPUs free as a whole, and then to fill what is left.
	mostWhole = policyFunc(func(c *Candidate) float64 { return float64(c.After.Whole() - c.Before.Whole()) })
	// spread likes the opposite.
	spread = policyFunc(func(c *Candidate) float64 { return float64(c.Before.Whole() - c.After.Whole()) })
)

func TestChoose(t *testing.T) {
	share := Request{Milli: 300}
	partly := func() *Node {
		n := testNode(4)
		n.GPUs[1].Tenants = []Tenant{{ID: "a", Milli: 200}}
		n.GPUs[2].Tenants = []Tenant{{ID: "b", Milli: 500}}
		n.GPUs[3].Tenants = []Tenant{{ID: "c", Milli: 900}}
		return n
	}
	tests := []struct {
		name    string
		chooser Chooser
		node    *Node
		request Request
		want    Choice
	}{
		{"the policy decides", Chooser{Policy: spread}, partly(), share, Choice{GPUs: []int{0}, Score: 1}},
		{"of equals, the GPU of which least is left", Chooser{Policy: mostWhole}, partly(), share, Choice{GPUs: []int{2}}},
		{"then the idlest", Chooser{Policy: indifferent}, with(testNode(3), func(n *Node) {
			n.GPUs[0].Utilization, n.GPUs[1].Utilization, n.GPUs[2].Utilization = 9, 3, 3
		}), share, Choice{GPUs: []int{1}}},
		{"then the first", Chooser{Policy: indifferent}, testNode(3), share, Choice{GPUs: []int{0}}},
		{"a busy GPU costs what the share takes of it", Chooser{Policy: indifferent, LoadWeight: 0.5}, with(testNode(2), func(n *Node) {
			n.GPUs[0].Utilization, n.GPUs[1].Utilization = 100, 40
		}), share, Choice{GPUs: []int{1}, Score: -0.5 * 300 * 0.4}},
		{"by memory where it takes more of that", Chooser{Policy: indifferent, LoadWeight: 1}, with(testNode(1), func(n *Node) {
			n.GPUs[0].Utilization = 50
		}), Request{Milli: 100, MiB: 40960}, Choice{GPUs: []int{0}, Score: -250}},
		{"load outweighs the policy", Chooser{Policy: mostWhole, LoadWeight: 1}, with(partly(), func(n *Node) {
			n.GPUs[1].Utilization, n.GPUs[2].Utilization, n.GPUs[3].Utilization = 90, 100, 100
		}), share, Choice{GPUs: []int{0}, Score: -1}},
		{"no weight, no load", Chooser{Policy: indifferent}, with(testNode(1), func(n *Node) { n.GPUs[0].Utilization = 100 }), share,
			Choice{GPUs: []int{0}}},
		{"sick GPUs are passed over", Chooser{Policy: indifferent}, with(testNode(2), func(n *Node) { n.GPUs[0].Unhealthy = "ECC" }), share,
			Choice{GPUs: []int{1}}},
		{"whole GPUs, the first that are free", Chooser{Policy: mostWhole}, with(testNode(4), func(n *Node) {
			n.GPUs[0].Tenants = []Tenant{{ID: "a", Milli: 1}}
			n.GPUs[2].ForeignMiB = 1
		}), Request{GPUs: 2}, Choice{GPUs: []int{1, 3}, Score: -2}},
		{"whole GPUs, for whom load is nothing", Chooser{Policy: indifferent, LoadWeight: 1}, with(testNode(1), func(n *Node) {
			n.GPUs[0].Utilization = 100
		}), Request{GPUs: 1}, Choice{GPUs: []int{0}}},
		{"no GPU", Chooser{Policy: policyFunc(func(c *Candidate) float64 { return float64(c.After.CPUMilli - c.Before.CPUMilli) })}, testNode(1),
			Request{CPUMilli: 7}, Choice{Score: -7}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, reason := tt.chooser.Choose(tt.node, &tt.request)
			require.Equal(t, ReasonFits, reason)
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestChooseWhatDoesNotFit(t *testing.T) {
	never := policyFunc(func(*Candidate) float64 { panic("the policy was asked") })
	for _, tt := range fitCases {
		if tt.want == ReasonFits {
			continue
		}
		c := Chooser{Limits: limits, Policy: never}
		choice, reason := c.Choose(tt.node, &tt.request)
		assert.Equal(t, tt.want, reason, tt.name)
		assert.Zero(t, choice, tt.name)
	}
}

func TestChooseShowsThePolicyTheTruth(t *testing.T) {
	n := testNode(2)
	// Memory is half taken, compute is not: 300 milli-GPU with 10 % of the memory leave 400, not 200.
	n.GPUs[0].Tenants = []Tenant{{ID: "a", RequestedMiB: 40960, Kind: 1}}
	n.GPUs[1].Unhealthy = "ECC"
	n.GPUs[1].Tenants = []Tenant{{ID: "b", Milli: 1000, Kind: 1 << 1}}
	n.Total = Total{CPUMilli: 96000, MemoryMiB: 768 << 10, GPUs: 2}
	r := Request{CPUMilli: 1000, MemoryMiB: 1024, Milli: 300, MiB: 8192}
	var seen Candidate
	c := Chooser{Policy: policyFunc(func(c *Candidate) float64 {
		seen = *c
		return 0
	})}
	_, reason := c.Choose(n, &r)
	require.Equal(t, ReasonFits, reason)
	assert.Equal(t, int64(300), seen.Milli)
	assert.Equal(t, &r, seen.Request)
	assert.Equal(t, &n.Total, seen.Total)
	assert.Equal(t, Kinds(1|1<<1), seen.Kinds)
	assert.Equal(t, Shape{Model: "A100", CPUMilli: 64000, MemoryMiB: 512 << 10, UsableMiB: 81920, Len: 2, Milli: [MaxGPUs]int16{500}}, *seen.Before)
	assert.Equal(t, Shape{Model: "A100", CPUMilli: 63000, MemoryMiB: 511 << 10, UsableMiB: 81920, Len: 2, Milli: [MaxGPUs]int16{400}}, *seen.After)
}

// GPUs that look alike to the policy are scored once.
func TestChooseScoresEachStateOnce(t *testing.T) {
	calls := 0
	c := Chooser{Policy: policyFunc(func(*Candidate) float64 {
		calls++
		return 0
	})}
	n := testNode(8)
	n.GPUs[3].Tenants = []Tenant{{ID: "a", Milli: 100}}
	_, reason := c.Choose(n, &Request{Milli: 200})
	require.Equal(t, ReasonFits, reason)
	assert.Equal(t, 2, calls)
}

func TestShapes(t *testing.T) {
	c := Chooser{Limits: limits}
	foreign := with(testNode(2), func(n *Node) { n.GPUs[0].ForeignMiB = limits.WholeForeignMiB })
	got := map[Shape]int{}
	for shape, n := range c.Shapes(slices.Values([]*Node{testNode(2), testNode(1), foreign, testNode(2)})) {
		got[*shape] += n
	}
	assert.Equal(t, map[Shape]int{c.Shape(testNode(2)): 3, c.Shape(testNode(1)): 1}, got, "what the policy cannot tell apart is one")
	for range c.Shapes(slices.Values([]*Node{testNode(2), testNode(1)})) {
		break
	}
}
