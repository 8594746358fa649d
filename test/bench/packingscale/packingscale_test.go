// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gpupack/gpupack/test/bench/openb"
)

func input(t *testing.T) (folder string) {
	t.Helper()
	folder = t.TempDir()
	for from, to := range map[string]string{"nodes.csv": "openb_node_list_gpu_node.csv", "tasks.csv": "openb_pod_list_default.csv"} {
		data, err := os.ReadFile(filepath.Join("../../fixtures/openb", from))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(folder, to), data, 0o600))
	}
	return folder
}

func TestMeasure(t *testing.T) {
	in, err := openb.Read(input(t), "default")
	require.NoError(t, err)
	p := &plan{sizes: []int{64, 150}, decisions: 30, seeds: 2, scored: 150 * 100}
	o, err := p.measure(context.Background(), in, io.Discard)
	require.NoError(t, err)
	for _, size := range p.sizes {
		for _, way := range ways() {
			c := o.costs[way][size]
			assert.Len(t, c.samples, 60, "%s, %d", way, size)
			assert.Positive(t, c.quantile(0.5))
			assert.GreaterOrEqual(t, c.quantile(0.99), c.quantile(0.5))
		}
		assert.Positive(t, o.costs["gpupack"][size].bytes)
	}
	assert.Equal(t, 120, o.compared)
	assert.Equal(t, o.compared, o.alike, "FGD done naively decides the same")
	assert.Len(t, o.whole["gpupack"], runs)
	r := o.report()
	assert.Len(t, r.Goals, 3)
	assert.Len(t, r.Tables[0].Rows, 6)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = p.measure(ctx, in, io.Discard)
	assert.ErrorIs(t, err, context.Canceled)
}

func TestReplicate(t *testing.T) {
	in, err := openb.Read(input(t), "default")
	require.NoError(t, err)
	out := replicate(in, 64*3+1)
	names := map[string]bool{}
	gpus := 0
	for i, n := range out.Nodes {
		names[n.Name] = true
		gpus += n.GPUs
		if i > 0 {
			assert.Less(t, out.Nodes[i-1].Name, n.Name)
		}
	}
	assert.Len(t, names, 64*3+1)
	assert.Equal(t, 3*291+in.Nodes[0].GPUs, gpus)
}

func TestQuantile(t *testing.T) {
	c := cost{}
	assert.Zero(t, c.quantile(0.5))
	for i := range 100 {
		c.samples = append(c.samples, time.Duration(i))
	}
	assert.Equal(t, time.Duration(50), c.quantile(0.5))
	assert.Equal(t, time.Duration(99), c.quantile(0.99))
	assert.Equal(t, time.Duration(99), c.quantile(1))
}

func TestGoals(t *testing.T) {
	few := func(median, p99 time.Duration, bytes float64) *cost {
		return &cost{samples: []time.Duration{1, median, p99}, bytes: bytes}
	}
	for name, tc := range map[string]struct {
		large   *cost
		seconds float64
		missed  int
		figure  string
	}{
		"all reached": {few(30, 300, 1024), 1, -1, ""},
		"median":      {few(31, 300, 1024), 1, 0, "median 3.10 times, p99 3.00 times"},
		"p99":         {few(30, 301, 1024), 1, 0, "median 3.00 times, p99 3.01 times"},
		"seconds":     {few(30, 300, 1024), 1.01, 1, "1.01 s"},
		"memory":      {few(30, 300, 1025), 1, 2, "1025 at 100000, 5000 at 1213"},
	} {
		t.Run(name, func(t *testing.T) {
			o := &outcome{
				plan:  plan{sizes: []int{1213, 100_000}},
				costs: map[string]map[int]*cost{"gpupack": {1213: few(10, 100, 5000), 100_000: tc.large}},
				whole: map[string][]float64{"gpupack": {0, tc.seconds, 9}},
			}
			goals := o.goals()
			require.Len(t, goals, 3)
			for i, g := range goals {
				assert.Equal(t, i != tc.missed, g.Reached, "%s: %s", g.What, g.Figure)
				if i == tc.missed {
					assert.Equal(t, tc.figure, g.Figure)
				}
			}
		})
	}
}

func TestArguments(t *testing.T) {
	for want, args := range map[string][]string{
		`"x" is not a number of nodes`:     {"-sizes", "64,x"},
		"are too few":                      {"-decisions", "0"},
		`unknown output format "x"`:        {"-o", "x"},
		`unexpected argument "x"`:          {"x"},
		"set TRACES to a folder with the ": {"-traces", "none"},
	} {
		assert.ErrorContains(t, run(context.Background(), args), want)
	}
}
