// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"math"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// normalize rates nodes by name and returns their scores and the cycle.
func normalize(t require.TestingT, names []string, ratings map[string]float64) (fwk.NodeScoreList, *cycle) {
	c := &cycle{choices: &sync.Map{}, ranking: &ranking{}, rejected: &rejections{}}
	state := framework.NewCycleState()
	state.Write(cycleKey, c)
	var scores fwk.NodeScoreList
	for _, name := range names {
		scores = append(scores, fwk.NodeScore{Name: name})
		if rating, ok := ratings[name]; ok {
			c.choices.Store(name, pack.Choice{Score: rating})
		}
	}
	require.Nil(t, (&Plugin{}).NormalizeScore(context.Background(), state, nil, scores))
	return scores, c
}

func TestNormalizeScore(t *testing.T) {
	tests := []struct {
		name    string
		nodes   []string
		ratings map[string]float64
		want    []int64
	}{
		{"in proportion", []string{"a", "b", "c", "d"}, map[string]float64{"a": -400, "b": 0, "c": -200, "d": -100}, []int64{0, 100, 50, 74}},
		{"equals: the first by name", []string{"c", "b", "a"}, map[string]float64{"a": 5, "b": 5, "c": 5}, []int64{99, 99, 100}},
		{"equals before others", []string{"c", "b", "a"}, map[string]float64{"a": 4, "b": 5, "c": 5}, []int64{99, 100, 0}},
		// A thousandth of a millionth of a milli-GPU is a difference, as it is in simulations.
		{"nearly equals", []string{"a", "b"}, map[string]float64{"a": 1000, "b": 1000 + 1e-9}, []int64{0, 100}},
		{"nearly equals, far from others", []string{"a", "b", "c"}, map[string]float64{"a": 1000, "b": 1000 + 1e-9, "c": -1000}, []int64{99, 100, 0}},
		{"without a choice", []string{"a", "b", "c"}, map[string]float64{"b": -7, "c": -8}, []int64{0, 100, 0}},
		{"one choice alone", []string{"a", "b"}, map[string]float64{"b": -7}, []int64{0, 100}},
		{"no choice", []string{"b", "a"}, nil, []int64{0, 100}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			scores, _ := normalize(t, tt.nodes, tt.ratings)
			var got []int64
			for _, s := range scores {
				got = append(got, s.Score)
			}
			assert.Equal(t, tt.want, got)
		})
	}
}

// One node has 100, and no other, whatever the ratings; better nodes never have less.
func TestNormalizeScoreHasOneFavourite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching("[a-z]{1,3}"), 2, 20, rapid.ID).Draw(t, "names")
		ratings := map[string]float64{}
		for _, name := range names {
			ratings[name] = rapid.OneOf(rapid.Float64Range(-1e5, 1e5), rapid.SampledFrom([]float64{-1, 0, math.Nextafter(0, 1)})).Draw(t, "rating")
		}
		scores, _ := normalize(t, names, ratings)
		favourites := 0
		for _, a := range scores {
			require.GreaterOrEqual(t, a.Score, fwk.MinNodeScore)
			require.LessOrEqual(t, a.Score, fwk.MaxNodeScore)
			if a.Score == fwk.MaxNodeScore {
				favourites++
			}
			for _, b := range scores {
				if ratings[a.Name] > ratings[b.Name] || ratings[a.Name] == ratings[b.Name] && a.Name < b.Name {
					require.GreaterOrEqual(t, a.Score, b.Score)
				}
			}
		}
		require.Equal(t, 1, favourites)
	})
}

func TestDecisionRecord(t *testing.T) {
	p := &Plugin{chooser: pack.Chooser{Policy: policy.BestFit{}}}
	scores := map[string]float64{"a": -300, "b": -100, "c": -200}
	for node, want := range map[string]v1alpha1.Decision{
		"b": {Score: 100, RunnerUp: "c", RunnerUpScore: 50},
		// Chosen by other plugins' scores.
		"c": {Score: 50, RunnerUp: "b", RunnerUpScore: 100},
		"a": {Score: 0, RunnerUp: "b", RunnerUpScore: 100},
	} {
		_, c := normalize(t, []string{"a", "b", "c"}, scores)
		c.rejected[pack.ReasonBusy].Add(2)
		want.Policy, want.Feasible, want.Rejected = "best-fit", 3, map[string]int{"Busy": 2}
		assert.Equal(t, want, p.record(c, node), "on node %s", node)
	}
	alone := &cycle{ranking: &ranking{}, rejected: &rejections{}}
	assert.Equal(t, v1alpha1.Decision{Policy: "best-fit", Score: 100, Feasible: 1, Rejected: map[string]int{}}, p.record(alone, "a"))
}
