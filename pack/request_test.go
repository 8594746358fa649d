// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRequestKinds(t *testing.T) {
	tests := []struct {
		name       string
		request    Request
		isShare    bool
		wantsGPU   bool
		count      int
		text       string
		validError string
	}{
		{name: "nothing", request: Request{CPUMilli: 1000}, text: "no GPU"},
		{name: "one", request: Request{GPUs: 1}, wantsGPU: true, count: 1, text: "1 GPU"},
		{name: "several", request: Request{GPUs: 8, Models: []string{"A100", "H100"}}, wantsGPU: true, count: 8,
			text: "8 GPUs of model A100 or H100"},
		{name: "milli", request: Request{Milli: 500}, isShare: true, wantsGPU: true, count: 1, text: "500 milli-GPU of a GPU"},
		{name: "memory", request: Request{MiB: 8192}, isShare: true, wantsGPU: true, count: 1, text: "8192 MiB of a GPU"},
		{name: "milli and memory", request: Request{Milli: 1000, MiB: 1}, isShare: true, wantsGPU: true, count: 1,
			text: "1000 milli-GPU and 1 MiB of a GPU"},
		{name: "both kinds", request: Request{GPUs: 2, Milli: 1}, wantsGPU: true, count: 2, text: "2 GPUs",
			validError: "asks for 2 whole GPUs and for a share of a GPU: ask for one kind"},
		{name: "both kinds by memory", request: Request{GPUs: 1, MiB: 1}, wantsGPU: true, count: 1, text: "1 GPU",
			validError: "ask for one kind"},
		{name: "share above one GPU", request: Request{Milli: 1001}, isShare: true, wantsGPU: true, count: 1,
			text: "1001 milli-GPU of a GPU", validError: "asks for a share of 1001 milli-GPU, above one GPU (1000)"},
		{name: "negative", request: Request{MemoryMiB: -1}, text: "no GPU", validError: "cannot be negative"},
		{name: "utilisation limit", request: Request{GPUs: 1, MaxUtilization: 101}, wantsGPU: true, count: 1, text: "1 GPU",
			validError: "a utilisation limit of 101 is not in 0 to 100"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.request
			assert.Equal(t, tt.isShare, r.IsShare(), "IsShare")
			assert.Equal(t, tt.wantsGPU, r.WantsGPU(), "WantsGPU")
			assert.Equal(t, tt.count, r.Count(), "Count")
			assert.Equal(t, tt.text, r.String())
			err := r.Validate()
			if tt.validError == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.validError)
		})
	}
}

func TestRequestOnGPU(t *testing.T) {
	const usable = 81251 // an A100 with its driver's reserve: an odd number
	tests := []struct {
		name       string
		request    Request
		usable     int64
		mib, milli int64
	}{
		{"whole takes all", Request{GPUs: 2}, usable, usable, 1000},
		{"milli implies memory, rounded down", Request{Milli: 500}, usable, 40625, 500},
		{"memory alone, milli rounded up", Request{MiB: 8192}, usable, 8192, 101},
		{"exact milli", Request{MiB: 500}, 1000, 500, 500},
		{"more memory than compute", Request{Milli: 10, MiB: 40626}, usable, 40626, 501},
		{"more compute than memory", Request{Milli: 600, MiB: 1}, usable, 1, 600},
		{"larger than the GPU", Request{MiB: 2000}, 1000, 2000, 2000},
		{"GPU without memory", Request{Milli: 300, MiB: 5}, 0, 5, 300},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.mib, tt.request.MiBOn(tt.usable), "MiBOn")
			assert.Equal(t, tt.milli, tt.request.MilliOn(tt.usable), "MilliOn")
		})
	}
}

func TestRequestAccepts(t *testing.T) {
	anyModel, two := Request{}, Request{Models: []string{"A10", "T4"}}
	assert.True(t, anyModel.Accepts("V100"))
	assert.True(t, two.Accepts("T4"))
	assert.False(t, two.Accepts("V100"))
	assert.False(t, two.Accepts(""))
}
