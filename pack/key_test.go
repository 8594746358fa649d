// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Nodes of one state are alike to every request; what differs between them is what no request can see.
func TestNodesOfOneStateAreAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawNode(t, "a")
		if rapid.Bool().Draw(t, "mixed") {
			for i := range a.GPUs {
				a.GPUs[i].Model = rapid.SampledFrom([]string{"A100", "T4"}).Draw(t, "model")
			}
		}
		b := a.Clone()
		b.Name = "b"
		if len(b.GPUs) > 1 {
			// The first GPU gives a shape its model.
			seed := rapid.Uint64().Draw(t, "seed")
			rand.New(rand.NewPCG(seed, 0)).Shuffle(len(b.GPUs)-1, func(i, j int) {
				b.GPUs[i+1], b.GPUs[j+1] = b.GPUs[j+1], b.GPUs[i+1]
			})
		}
		for i := range b.GPUs {
			b.GPUs[i].UUID += "-b"
			if b.GPUs[i].FreeMilli() == 0 {
				b.GPUs[i].Utilization = rapid.IntRange(0, 100).Draw(t, "utilization")
			}
		}
		require.Equal(t, a.State(), b.State())
		r := drawRequest(t, "request")
		r.MaxUtilization = 0
		if rapid.Bool().Draw(t, "picky") {
			r.Models = []string{"A100"}
		}
		require.Equal(t, limits.Fit(a, &r), limits.Fit(b, &r))
		require.Equal(t, limits.FitHost(a, &r), limits.FitHost(b, &r))
		one, reason := testChooser.Choose(a, &r)
		other, _ := testChooser.Choose(b, &r)
		if reason == ReasonFits {
			require.Equal(t, one.Score, other.Score)
		}
	})
}

// Whatever a request or a policy can see is part of the state.
func TestStateTellsNodesApart(t *testing.T) {
	base := func() *Node {
		n := &Node{CPUMilli: 4000, MemoryMiB: 1000, Total: Total{CPUMilli: 8000, MemoryMiB: 2000, GPUs: 3}}
		for range 3 {
			n.GPUs = append(n.GPUs, GPU{Model: "A100", TotalMiB: 81920, ReservedMiB: 640})
		}
		return n
	}
	seen := map[string]string{base().State(): "base"}
	for name, change := range map[string]func(*Node){
		"cpu":         func(n *Node) { n.CPUMilli-- },
		"overdrawn":   func(n *Node) { n.CPUMilli = -1 },
		"memory":      func(n *Node) { n.MemoryMiB-- },
		"total":       func(n *Node) { n.Total.CPUMilli++ },
		"problem":     func(n *Node) { n.Problem = ReasonNoTelemetry },
		"stale":       func(n *Node) { n.Stale = true },
		"observe":     func(n *Node) { n.Observe = true },
		"fewer":       func(n *Node) { n.GPUs = n.GPUs[:2] },
		"first model": func(n *Node) { n.GPUs[0].Model = "T4" },
		"last model":  func(n *Node) { n.GPUs[2].Model = "T4" },
		"usable":      func(n *Node) { n.GPUs[1].ReservedMiB++ },
		"foreign":     func(n *Node) { n.GPUs[1].ForeignMiB++ },
		"busy":        func(n *Node) { n.GPUs[1].Utilization++ },
		"cordoned":    func(n *Node) { n.GPUs[1].Unhealthy, n.GPUs[1].Cordoned = "cordoned", true },
		"unhealthy":   func(n *Node) { n.GPUs[1].Unhealthy = "Xid" },
		"held":        func(n *Node) { n.GPUs[1].Tenants = []Tenant{{ID: "t"}} },
		"share":       func(n *Node) { n.GPUs[1].Tenants = []Tenant{{ID: "t", Milli: 500}} },
		"share kind":  func(n *Node) { n.GPUs[1].Tenants = []Tenant{{ID: "t", Milli: 500, Kind: 1}} },
		"two shares":  func(n *Node) { n.GPUs[1].Tenants = slices.Repeat([]Tenant{{ID: "t", Milli: 100, RequestedMiB: 10}}, 2) },
	} {
		n := base()
		change(n)
		key := n.State()
		assert.Empty(t, seen[key], "%s is as %s", name, seen[key])
		seen[key] = name
	}
}

func BenchmarkState(b *testing.B) {
	n := &Node{CPUMilli: 4000, MemoryMiB: 1000}
	for range 8 {
		n.GPUs = append(n.GPUs, GPU{Model: "A100-SXM4-80GB", TotalMiB: 81920, ReservedMiB: 640, Tenants: []Tenant{{Milli: 1000, RequestedMiB: 80000}}})
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = n.State()
	}
}
