// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// What was saved and restored expects the same, and goes on to learn the same.
func TestSavedDistributionGoesOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		requests := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Request {
			r := drawRequest(t, "request")
			r.Models = rapid.SampledFrom([][]string{nil, {"A100"}, {"A100", "H100"}}).Draw(t, "models")
			return r
		}), 1, 6).Draw(t, "requests")
		observe := func(d *Distribution, n int) {
			for i := range n {
				d.Observe(&requests[(i*i+i/7)%len(requests)])
			}
		}
		d := NewDistribution(DefaultClasses())
		observe(d, refresh*rapid.IntRange(0, 40).Draw(t, "observations"))
		text, err := json.Marshal(d)
		require.NoError(t, err)
		again, err := json.Marshal(d)
		require.NoError(t, err)
		require.Equal(t, string(text), string(again), "equal weights are in an order of their own")

		restored := NewDistribution([]Class{{Request: Request{GPUs: 3}, Weight: 1}})
		observe(restored, 10)
		version := restored.Classes().Version
		require.NoError(t, json.Unmarshal(text, restored))
		require.Greater(t, restored.Classes().Version, version, "scores by the old classes must be forgotten")
		require.Len(t, restored.Classes().List, len(restored.weights), "what was restored counts at once")
		requireAlike(t, d, restored)
		observe(d, 100)
		observe(restored, 100)
		requireAlike(t, d, restored)
	})
}

// requireAlike allows for the rounding of saved weights.
func requireAlike(t require.TestingT, want, got *Distribution) {
	weights := func(d *Distribution) map[string]float64 {
		text, err := json.Marshal(d)
		require.NoError(t, err)
		var saved savedDistribution
		require.NoError(t, json.Unmarshal(text, &saved))
		out := map[string]float64{}
		for _, c := range saved.Classes {
			// A weight next to the least that counts can be forgotten by one and not by the other.
			if c.Weight > 0.01 {
				out[fmt.Sprintf("%+v", c.request())] = c.Weight
			}
		}
		return out
	}
	require.InDeltaMapValues(t, weights(want), weights(got), 0.002)
}

func TestSavedDistributionIsBounded(t *testing.T) {
	d := NewDistribution(DefaultClasses())
	for i := range 3 * mostSaved {
		d.Observe(&Request{GPUs: 1, Models: []string{fmt.Sprintf("model-%d", i)}})
	}
	text, err := json.Marshal(d)
	require.NoError(t, err)
	assert.Less(t, len(text), 256<<10, "a ConfigMap takes 1 MiB")
	var saved savedDistribution
	require.NoError(t, json.Unmarshal(text, &saved))
	assert.Len(t, saved.Classes, mostSaved)
}

func TestBrokenDistribution(t *testing.T) {
	tests := []struct{ name, text, err string }{
		{"empty", "", "unexpected end of JSON input"},
		{"no JSON", "classes: []", "invalid character"},
		{"something else", `{"kind":"Pod"}`, "it has no classes"},
		{"no classes", `{"classes":[]}`, "it has no classes"},
		{"a list", `[]`, "cannot unmarshal array"},
		{"no weight", `{"classes":[{"gpus":1}]}`, "classes[0] has a weight of 0, not above 0 and at most 1e+06"},
		{"negative weight", `{"classes":[{"gpus":1,"weight":1},{"gpus":2,"weight":-1}]}`, "classes[1] has a weight of -1"},
		{"absurd weight", `{"classes":[{"gpus":1,"weight":1e300}]}`, "classes[0] has a weight of 1e+300"},
		{"impossible request", `{"classes":[{"gpus":1,"milli":500,"weight":1}]}`, "classes[0]: asks for 1 whole GPUs and for a share"},
		{"negative request", `{"classes":[{"gpus":-1,"weight":1}]}`, "classes[0]: a request cannot be negative"},
		{"a fraction", `{"classes":[{"gpus":1.5,"weight":1}]}`, "cannot unmarshal number 1.5"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := NewDistribution(DefaultClasses())
			before := d.Classes()
			require.ErrorContains(t, d.UnmarshalJSON([]byte(tt.text)), tt.err)
			assert.Same(t, before, d.Classes(), "nothing changes")
		})
	}
	fixed := FixedDistribution(DefaultClasses())
	require.Error(t, fixed.UnmarshalJSON([]byte(`{"classes":[{"gpus":1,"weight":1}]}`)))
	_, err := json.Marshal(fixed)
	require.Error(t, err)
}
