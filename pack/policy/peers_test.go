// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gpupack/gpupack/pack"
)

// Each figure follows by hand from the formula that the policy names.
func TestPeers(t *testing.T) {
	before := shape(64_000, 1000, 1000, 600, 300)
	share := &pack.Request{CPUMilli: 6400, Milli: 300}
	one := &pack.Request{CPUMilli: 6400, GPUs: 1}
	idle := shape(64_000, 1000, 1000)
	tests := []struct {
		name   string
		policy pack.Policy
		c      pack.Candidate
		want   float64
	}{
		// 64/128 * 6.4/128 = 0.025; 2900/8000 * 300/8000 = 0.0136; 100 * (1 - 0.0193) = 98.07
		{"dot product", DotProduct{}, pack.Candidate{Request: share, Before: before, Milli: 300}, 98},
		// 57.6/128 = 0.45; 2600/8000 = 0.325; 100 * (1 - 0.3875) = 61.25
		{"best fit", BestFit{}, pack.Candidate{Request: share, Before: before, Milli: 300}, 61},
		// The GPU with 300 left is in use: 100 - 30/10.
		{"packing on a shared GPU", GPUPacking{}, pack.Candidate{Request: share, Before: before, Milli: 300}, 97},
		{"packing on a free GPU", GPUPacking{}, pack.Candidate{Request: one, Before: before, Milli: 1000}, 49},
		{"packing on an idle node", GPUPacking{}, pack.Candidate{Request: one, Before: idle, Milli: 1000}, 31},
		{"packing without a GPU", GPUPacking{}, pack.Candidate{Request: &pack.Request{}, Before: idle}, 0},
		// 25 * 5100/8000 = 15, and 75, 50, 25 or 0.
		{"clustering beside the same kind", GPUClustering{}, pack.Candidate{Request: share, Before: before, Kinds: 1}, 90},
		{"clustering beside several kinds", GPUClustering{}, pack.Candidate{Request: share, Before: before, Kinds: 3}, 65},
		{"clustering on an idle node", GPUClustering{}, pack.Candidate{Request: share, Before: idle}, 43},
		{"clustering beside another kind", GPUClustering{}, pack.Candidate{Request: share, Before: before, Kinds: 2}, 15},
		// CPU 50 %, memory 25 %, GPU 75 %.
		{"most allocated", MostAllocated{}, pack.Candidate{
			Request: one, Before: idle, After: &pack.Shape{CPUMilli: 32_000, MemoryMiB: 768, Len: 2, Milli: [pack.MaxGPUs]int16{500}},
			Total: &pack.Total{CPUMilli: 64_000, MemoryMiB: 1024, GPUs: 2},
		}, 50},
		{"least allocated without a GPU", LeastAllocated{}, pack.Candidate{
			Request: &pack.Request{CPUMilli: 1}, Before: idle, After: &pack.Shape{CPUMilli: 32_000, MemoryMiB: 768, Len: 2},
			Total: &pack.Total{CPUMilli: 64_000, MemoryMiB: 1024, GPUs: 2},
		}, 62},
		{"most allocated, total unknown", MostAllocated{}, pack.Candidate{Request: one, Before: idle, After: idle}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.InDelta(t, tt.want, tt.policy.Score(&tt.c), 0)
		})
	}
}

// The artifact's score is 50 where nothing changes, and ignores host memory.
func TestFGDArtifact(t *testing.T) {
	f := NewFGDArtifact(pack.FixedDistribution([]pack.Class{{Request: pack.Request{GPUs: 1, MemoryMiB: 2 << 20}, Weight: 1}}))
	before := shape(8000, 1000, 1000)
	assert.InDelta(t, 50, f.Score(&pack.Candidate{Before: before, After: before}), 0)
	// 990 milli-GPU of fragment more: 100 / (1 + e^0.99) = 27.09.
	assert.InDelta(t, 27, f.Score(&pack.Candidate{Before: before, After: shape(8000, 1000, 990)}), 0)
	// Host memory apart, the first two are one class, and with it and the third 95 % of the tasks are accounted for.
	request := pack.Request{GPUs: 1, CPUMilli: 1000, MemoryMiB: 1}
	other, rare := request, pack.Request{Milli: 500, CPUMilli: 1000}
	other.MemoryMiB = 2
	most := typical(&pack.Classes{Version: 7, List: []pack.Class{
		{Request: pack.Request{GPUs: 2}, Weight: 0.4}, {Request: request, Weight: 0.3}, {Request: other, Weight: 0.25}, {Request: rare, Weight: 0.05},
	}})
	request.MemoryMiB = 0
	assert.Equal(t, uint64(7), most.Version)
	require.Len(t, most.List, 2)
	assert.Equal(t, request, most.List[0].Request)
	assert.InDelta(t, 0.55/0.95, most.List[0].Weight, 1e-12)
	assert.Equal(t, pack.Request{GPUs: 2}, most.List[1].Request)
	p, err := Simulated("fgd", pack.FixedDistribution(nil))
	require.NoError(t, err)
	assert.IsType(t, &FGDArtifact{}, p)
	p, err = Simulated("best-fit", nil)
	require.NoError(t, err)
	assert.IsType(t, BestFit{}, p)
}
