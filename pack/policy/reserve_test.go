// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"iter"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gpupack/gpupack/pack"
)

// nodes yields states, one node in each but for the counts given.
func nodes(count int, states ...*pack.Shape) iter.Seq2[*pack.Shape, int] {
	return func(yield func(*pack.Shape, int) bool) {
		for _, s := range states {
			if !yield(s, count) {
				return
			}
		}
	}
}

func idle(cpu int64) *pack.Shape {
	return shape(cpu, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000)
}

func TestRoomHasItsPrice(t *testing.T) {
	single := pack.Class{Request: pack.Request{CPUMilli: 4000, GPUs: 1}, Weight: 0.99}
	eight := pack.Class{Request: pack.Request{CPUMilli: 90_000, GPUs: 8}, Weight: 0.01}
	after := shape(92_000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 0)
	price := func(turnover bool, count int, gpus ...int) float64 {
		p := NewGPUPack(pack.FixedDistribution([]pack.Class{single, eight}))
		p.SetTurnover(turnover)
		for _, n := range gpus {
			p.SetSupply(Supply{"A100": n})
		}
		// Nodes with too little CPU for the task of eight GPUs are free GPUs, but no room.
		p.SetCluster(func(yield func(*pack.Shape, int) bool) {
			for s, n := range nodes(count, idle(96_000)) {
				if !yield(s, n) {
					return
				}
			}
			yield(idle(64_000), 20)
		})
		return p.outlook().breaks(idle(96_000), after)
	}
	assert.Zero(t, price(false, 100), "there is plenty")
	assert.Greater(t, price(false, 1), 4000.0, "the last")
	assert.Greater(t, price(false, 1), price(false, 4))
	assert.InDelta(t, turnoverChance*8000, price(true, 100), 1e-9, "what is broken up does not come back")
	assert.InDelta(t, price(false, 1), price(true, 1), 1e-9)
	// Of 10,000 GPUs' worth of tasks 93 ask for eight, so that 10 more of them at a time are nothing rare, and 20 are.
	assert.Greater(t, price(true, 20, 10_000), 10*price(true, 200, 10_000), "how many there are at a time varies")
	assert.InDelta(t, price(false, 20), price(false, 20, 10_000), 1e-9, "not where none leaves")
}

// Two classes that fit on the same nodes see each other, though each asks for more of something.
func TestRoomIsSharedByWhoeverFitsThere(t *testing.T) {
	cpu := pack.Class{Request: pack.Request{CPUMilli: 90_000, MemoryMiB: 100, GPUs: 8}, Weight: 0.02}
	memory := pack.Class{Request: pack.Request{CPUMilli: 80_000, MemoryMiB: 200, GPUs: 8}, Weight: 0.02}
	single := pack.Class{Request: pack.Request{CPUMilli: 4000, GPUs: 1}, Weight: 0.96}
	roomy := idle(96_000)
	roomy.MemoryMiB = 1000
	after := *roomy
	after.CPUMilli = 10_000
	price := func(classes ...pack.Class) float64 {
		p := NewGPUPack(pack.FixedDistribution(classes))
		p.SetCluster(nodes(5, roomy))
		return p.outlook().breaks(roomy, &after)
	}
	assert.Greater(t, price(single, cpu, memory), price(single, cpu))
}

// What SetCluster returns are the states of which the score has changed.
func TestSetClusterSaysWhatChanged(t *testing.T) {
	p := NewGPUPack(pack.FixedDistribution([]pack.Class{
		{Request: pack.Request{GPUs: 1}, Weight: 0.9}, {Request: pack.Request{CPUMilli: 90_000, GPUs: 8}, Weight: 0.1},
	}))
	changed := p.SetCluster(nodes(1, idle(96_000)))
	require.NotNil(t, changed)
	assert.True(t, changed(idle(96_000)))
	assert.False(t, changed(idle(64_000)), "no room for the task of eight GPUs")
	assert.Nil(t, p.SetCluster(nodes(1, idle(96_000))), "nothing has changed")
	assert.NotNil(t, p.SetCluster(nodes(1000, shape(96_000, 500))), "no room is left, so it has no price")
}
