// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/pack"
)

func place(p pack.Policy, r *pack.Request, before, after *pack.Shape, milli int64) float64 {
	return p.Score(&pack.Candidate{Request: r, Before: before, After: after, Milli: milli})
}

// What a reader of the documentation expects of the policy, one property a case.
func TestGPUPackPrefers(t *testing.T) {
	halves := pack.Class{Request: pack.Request{CPUMilli: 4000, Milli: 500}, Weight: 1}
	wholes := pack.Class{Request: pack.Request{CPUMilli: 4000, GPUs: 1}, Weight: 1}
	eights := pack.Class{Request: pack.Request{CPUMilli: 32_000, GPUs: 8}, Weight: 0.1}
	half := &pack.Request{CPUMilli: 4000, Milli: 500}

	t.Run("the GPU that is shared already", func(t *testing.T) {
		p := NewGPUPack(pack.FixedDistribution([]pack.Class{halves, wholes}))
		before := shape(64_000, 1000, 500)
		assert.Greater(t, place(p, half, before, shape(60_000, 1000, 0), 500), place(p, half, before, shape(60_000, 500, 500), 500))
	})
	t.Run("the node that has CPU to spare", func(t *testing.T) {
		p := NewGPUPack(pack.FixedDistribution([]pack.Class{wholes}))
		scarce, ample := shape(8000, 1000, 1000), shape(64_000, 1000, 1000)
		r := &pack.Request{CPUMilli: 6000, GPUs: 1}
		assert.Greater(t, place(p, r, ample, shape(58_000, 1000, 0), 1000), place(p, r, scarce, shape(2000, 1000, 0), 1000))
	})
	t.Run("not the idle node that a task of eight GPUs needs", func(t *testing.T) {
		p := NewGPUPack(pack.FixedDistribution([]pack.Class{wholes, eights}))
		idle := shape(64_000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000)
		used := shape(60_000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 0)
		r := &pack.Request{CPUMilli: 4000, GPUs: 1}
		onIdle := place(p, r, idle, used, 1000)
		onUsed := place(p, r, used, shape(56_000, 1000, 1000, 1000, 1000, 1000, 1000, 0, 0), 1000)
		assert.Greater(t, onUsed, onIdle)
	})
	t.Run("where tasks leave, not the last CPU beside free GPUs", func(t *testing.T) {
		// What all tasks to come get of a node is the same on both, but only one has a place for the next.
		long := pack.Class{Request: pack.Request{CPUMilli: 16_000, GPUs: 1}, Weight: 1}
		fits, strands := shape(20_000, 1000), shape(16_000, 1000, 1000)
		r := &pack.Request{CPUMilli: 4000}
		margin := func(turnover bool) float64 {
			p := NewGPUPack(pack.FixedDistribution([]pack.Class{long}))
			p.SetTurnover(turnover)
			return place(p, r, fits, shape(16_000, 1000), 0) - place(p, r, strands, shape(12_000, 1000, 1000), 0)
		}
		assert.Greater(t, margin(true), 2*margin(false))
	})
	t.Run("not the model that others cannot do without", func(t *testing.T) {
		only := wholes
		only.Request.Models = []string{"H100"}
		p := NewGPUPack(pack.FixedDistribution([]pack.Class{only, wholes}))
		p.SetSupply(Supply{"H100": 10, "T4": 90})
		scarce, plenty := shape(64_000, 1000), shape(64_000, 1000)
		scarce.Model, plenty.Model = "H100", "T4"
		without := func(s *pack.Shape) *pack.Shape { c := *s; c.CPUMilli -= 4000; c.Milli[0] = 0; return &c }
		r := &pack.Request{CPUMilli: 4000, GPUs: 1}
		assert.Greater(t, place(p, r, plenty, without(plenty), 1000), place(p, r, scarce, without(scarce), 1000))
		assert.InDelta(t, mostExpensive, p.outlook().price["H100"], 0, "half of the demand wants a tenth of the GPUs")
		assert.InDelta(t, 0, p.outlook().price["T4"], 0)
	})
}

// Prices level the load: with a fifth of the demand bound to a quarter of the GPUs, the rest must fill 0.25 - 0.2 there and
// 0.75 elsewhere, which is an openness of 0.05/0.25 to 0.75/0.75.
func TestBid(t *testing.T) {
	p := NewGPUPack(pack.FixedDistribution([]pack.Class{
		{Request: pack.Request{GPUs: 1, Models: []string{"H100"}}, Weight: 0.2},
		{Request: pack.Request{GPUs: 1}, Weight: 0.8},
	}))
	p.SetSupply(Supply{"H100": 25, "T4": 75})
	assert.InDelta(t, 1.609, p.outlook().price["H100"], 0.01, "ln 5")
	p.SetSupply(Supply{"H100": 25})
	assert.Empty(t, p.outlook().price, "one model has no choice to price")
}

func TestGPUPackFollowsTheDistribution(t *testing.T) {
	d := pack.NewDistribution([]pack.Class{{Request: pack.Request{Milli: 500}, Weight: 1}})
	p := NewGPUPack(d)
	before, after := shape(8000, 1000, 1000), shape(8000, 1000, 500)
	r := &pack.Request{Milli: 500}
	first := place(p, r, before, after, 500)
	for range 100 * 64 {
		d.Observe(&pack.Request{GPUs: 1})
	}
	assert.Less(t, place(p, r, before, after, 500), first, "what is left of the GPU is of no use any more")
}

// A class that asks for GPU memory takes another part of each model; one that is larger than the GPU takes nothing.
func TestGPUPackShareByMemory(t *testing.T) {
	p := NewGPUPack(pack.FixedDistribution([]pack.Class{{Request: pack.Request{MiB: 40_000}, Weight: 1}}))
	s := shape(8000, 1000)
	assert.InDelta(t, 1000, p.outlook().value(s), 0)
	s.UsableMiB = 60_000
	assert.InDelta(t, 667, p.outlook().value(s), 0)
	s.UsableMiB = 30_000
	assert.InDelta(t, 0, p.outlook().value(s), 0)
}

// What sequences get never exceeds what is free.
func TestGotBounds(t *testing.T) {
	p := NewGPUPack(pack.FixedDistribution(pack.DefaultClasses()))
	rapid.Check(t, func(t *rapid.T) {
		n := &pack.Node{CPUMilli: rapid.Int64Range(0, 128_000).Draw(t, "cpu"), MemoryMiB: rapid.Int64Range(0, 1<<20).Draw(t, "memory")}
		for range rapid.IntRange(0, 8).Draw(t, "gpus") {
			n.GPUs = append(n.GPUs, pack.GPU{TotalMiB: 80_000, Tenants: []pack.Tenant{{Milli: rapid.Int64Range(0, 1000).Draw(t, "taken")}}})
		}
		s := n.Shape()
		got := p.outlook().value(&s)
		require.GreaterOrEqual(t, got, 0.0)
		require.LessOrEqual(t, got, float64(s.Free()))
	})
}

func TestGPUPackConcurrently(t *testing.T) {
	d := pack.NewDistribution(pack.DefaultClasses())
	p := NewGPUPack(d)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 200 {
				p.SetSupply(Supply{"A100": 1 + worker})
				place(p, &pack.Request{Milli: 10}, shape(8000, 1000, 1000), shape(8000, 1000, int16((i*37+worker)%1000)), 10)
				d.Observe(&pack.Request{GPUs: i%8 + 1})
			}
		})
	}
	wg.Wait()
}
