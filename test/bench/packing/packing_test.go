// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gpupack/gpupack/pack/policy"
	"github.com/gpupack/gpupack/pack/sim"
)

// measured is an outcome on the traces default and cpu050 in which all goals are just reached, or what change makes of it.
func measured(change func(map[setting][]sim.Result)) *outcome {
	o := &outcome{plan: plan{traces: []string{"default", "cpu050"}, seeds: 2, load: 1.3}, results: map[setting][]sim.Result{}}
	// The mean of two seeds.
	set := func(s setting, a95, a100, final float64) {
		o.results[s] = []sim.Result{{A95: a95 - 1, A100: a100 - 1, Final: final - 1, Tasks: 200, Moved: 2}, {A95: a95 + 1, A100: a100 + 1, Final: final + 1, Tasks: 200}}
	}
	set(setting{trace: "default", policy: "fgd"}, 94.91, 95.23, 95)
	set(setting{trace: "cpu050", policy: "fgd"}, 94.81, 95.00, 95)
	set(setting{trace: "default", policy: "gpupack"}, 94.71, 95.03, 96.25)
	set(setting{trace: "cpu050", policy: "gpupack"}, 94.61, 94.80, 96.25)
	set(setting{trace: "default", policy: "gpupack", online: true}, 94.41, 94.73, 95.95)
	set(setting{trace: "cpu050", policy: "gpupack", online: true}, 94.41, 94.73, 96.95)
	set(setting{trace: "default", policy: "gpupack", budget: defragBudget}, 94, 95, 98)
	set(setting{trace: "default", policy: "best-fit"}, 90, 90, 93.4)
	if change != nil {
		change(o.results)
	}
	return o
}

func TestGoals(t *testing.T) {
	ours := setting{trace: "default", policy: "gpupack"}
	for name, tc := range map[string]struct {
		change func(map[setting][]sim.Result)
		// missed is the position of the one goal that is missed, -1 for none, and figure is what its line says.
		missed int
		figure string
	}{
		"all reached": {nil, -1, ""},
		"ratio": {func(r map[setting][]sim.Result) {
			r[ours][0].Final -= 0.12
			online := setting{trace: "default", policy: "gpupack", online: true}
			r[online][0].Final -= 0.12
		}, 0, "0.7560 (3.78 of 5.00 %)"},
		"below FGD": {func(r map[setting][]sim.Result) {
			r[ours][1].A95 -= 0.2
			r[ours][1].A100 -= 0.04
		}, 1, "a95 on default -0.30, a100 on default -0.22"},
		"learned": {func(r map[setting][]sim.Result) {
			r[setting{trace: "cpu050", policy: "gpupack", online: true}][0].A95 -= 2
		}, 2, "a95 on cpu050 -1.20"},
		"defragmented": {func(r map[setting][]sim.Result) {
			r[setting{trace: "default", policy: "gpupack", budget: defragBudget}][0].Final -= 0.02
		}, 3, "97.99 %, with 1.00 % moved at most"},
		"moved": {func(r map[setting][]sim.Result) {
			r[setting{trace: "default", policy: "gpupack", budget: defragBudget}][1].Moved = 3
		}, 3, "98.00 %, with 1.50 % moved at most"},
		"peers": {func(r map[setting][]sim.Result) {
			r[setting{trace: "default", policy: "best-fit"}][1].Final += 0.2
		}, 4, "final of best-fit on default 0.42"},
	} {
		t.Run(name, func(t *testing.T) {
			goals := measured(tc.change).goals()
			require.Len(t, goals, 5)
			for i, g := range goals {
				assert.Equal(t, i != tc.missed, g.Reached, "%s: %s", g.What, g.Figure)
				if i == tc.missed {
					assert.Equal(t, tc.figure, g.Figure)
				}
			}
		})
	}
}

// What was not measured is no goal, so that it cannot pass for reached.
func TestGoalsOfAPart(t *testing.T) {
	o := measured(func(r map[setting][]sim.Result) {
		for s := range r {
			if s.policy != "best-fit" {
				delete(r, s)
			}
		}
	})
	require.Len(t, o.goals(), 1)
	delete(o.results, setting{trace: "default", policy: "best-fit"})
	assert.Empty(t, o.goals())
	assert.EqualError(t, o.report().Err(), "no goal was measured")
}

func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	for from, to := range map[string]string{"nodes.csv": "openb_node_list_gpu_node.csv", "tasks.csv": "openb_pod_list_default.csv"} {
		data, err := os.ReadFile(filepath.Join("../../fixtures/openb", from))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, to), data, 0o600))
	}
	p := &plan{traces: []string{"default"}, policies: policy.Names(), parts: allParts(), seeds: 2, load: 1.3, artifact: true}
	o, err := p.measure(context.Background(), dir, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, 64, o.nodes)
	assert.Equal(t, 291, o.gpus)
	// Nine policies, two that learn, one that moves tasks and six runs of the artifact.
	assert.Len(t, o.results, 9+2+1+6)
	for s, results := range o.results {
		require.Len(t, results, 2)
		for i, r := range results {
			assert.Equal(t, uint64(firstSeed+i), r.Seed)
			assert.Greater(t, r.Final, 80.0, "%+v", s)
		}
	}
	assert.Len(t, o.seconds, 9)
	r := o.report()
	assert.Len(t, r.Goals, 5)
	var titles []string
	for _, table := range r.Tables {
		titles = append(titles, table.Title)
		for _, row := range table.Rows {
			assert.Len(t, row, len(table.Header), table.Title)
		}
	}
	assert.Equal(t, []string{
		"Trace default", "Classes learned from the arrivals", "Trace default, with at most 1 % of all tasks moved", "All traces",
		"Peers against what the authors of the FGD paper's artifact report",
	}, titles)

	_, err = p.measure(context.Background(), t.TempDir(), io.Discard)
	assert.ErrorContains(t, err, "set TRACES to a folder")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = p.measure(ctx, dir, io.Discard)
	assert.ErrorIs(t, err, context.Canceled)
}

func TestArguments(t *testing.T) {
	for want, args := range map[string][]string{
		`unknown policy "x"`:               {"-policies", "x"},
		`unknown part "x"`:                 {"-parts", "x"},
		"0 seeds are too few":              {"-seeds", "0"},
		"the artifact's runs have a load":  {"-artifact", "-load", "1"},
		`unknown output format "x"`:        {"-o", "x"},
		`unexpected argument "x"`:          {"x"},
		"set TRACES to a folder with the ": {"-traces", "none"},
	} {
		assert.ErrorContains(t, run(context.Background(), args), want)
	}
}
