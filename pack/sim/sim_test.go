// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// sample is a small cluster of two models and a mix of shares, single GPUs, whole nodes and tasks without GPU.
func sample() Input {
	var in Input
	for i := range 12 {
		model, gpus := "A", 8
		if i%3 == 0 {
			model, gpus = "B", 2
		}
		in.Nodes = append(in.Nodes, Node{Name: fmt.Sprint("n", i), CPUMilli: 96000, MemoryMiB: 384 << 10, GPUs: gpus, Model: model})
	}
	for i := range 120 {
		r := pack.Request{CPUMilli: 4000, MemoryMiB: 8 << 10}
		switch {
		case i%20 == 0:
			r.GPUs, r.CPUMilli = 8, 64000
		case i%5 == 0:
			r.GPUs = 1
		case i%7 == 0:
			r.Models, r.Milli = []string{"B"}, 300
		case i%11 != 0:
			r.Milli = int64(100 + 10*(i%80))
		}
		in.Tasks = append(in.Tasks, Task{Name: fmt.Sprint("t", i), Request: r})
	}
	return in
}

func result(t *testing.T, in Input, o Options) Result {
	t.Helper()
	r, err := Run(t.Context(), in, o)
	require.NoError(t, err)
	r.Seconds = 0
	return r
}

func TestRunIsRepeatable(t *testing.T) {
	for _, name := range policy.Names() {
		t.Run(name, func(t *testing.T) {
			in, o := sample(), Options{Policy: name, Seed: 42, Load: 1.3}
			first := result(t, in, o)
			require.Greater(t, first.Final, 50.0)
			require.LessOrEqual(t, first.Final, 100.0)
			require.Positive(t, first.Unscheduled, "more is asked for than there is")

			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			require.Equal(t, first, result(t, in, o))
			rand.Shuffle(len(in.Nodes), func(i, j int) { in.Nodes[i], in.Nodes[j] = in.Nodes[j], in.Nodes[i] })
			require.Equal(t, first, result(t, in, o), "the order of nodes counts")
		})
	}
}

func TestArrivals(t *testing.T) {
	in := sample()
	const milli = 200_000
	order := Arrivals(in.Tasks, milli, 1.3, 7)
	require.Equal(t, order, Arrivals(in.Tasks, milli, 1.3, 7))
	require.NotEqual(t, order, Arrivals(in.Tasks, milli, 1.3, 8))
	var sum, last int64
	for _, at := range order {
		last = asked(&in.Tasks[at].Request)
		sum += last
	}
	require.GreaterOrEqual(t, sum, int64(1.3*milli))
	require.Less(t, sum, int64(1.3*milli)+8*pack.WholeMilli)
	slices.Sort(order)
	require.Len(t, slices.Compact(order), len(in.Tasks), "every task arrives once at least")
}

func TestRunRefusesBadInput(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Input, *Options)
		err    string
	}{
		"no GPUs":      {func(in *Input, _ *Options) { in.Nodes = in.Nodes[:0] }, "the cluster has no GPUs"},
		"no GPU tasks": {func(in *Input, _ *Options) { in.Tasks = []Task{{Request: pack.Request{CPUMilli: 1}}} }, "no task asks for a GPU"},
		"bad task":     {func(in *Input, _ *Options) { in.Tasks[0].Request.Milli = 2000 }, `task "t0"`},
		"load":         {func(_ *Input, o *Options) { o.Load = 0 }, "a load of 0"},
		"policy":       {func(_ *Input, o *Options) { o.Policy = "tetris" }, `unknown packing policy "tetris"`},
		"distribution": {func(_ *Input, o *Options) { o.Distribution = "guess" }, `unknown distribution "guess"`},
	} {
		t.Run(name, func(t *testing.T) {
			in, o := sample(), Options{Policy: "fgd", Seed: 1, Load: 1.3}
			tc.change(&in, &o)
			_, err := Run(t.Context(), in, o)
			require.ErrorContains(t, err, tc.err)
		})
	}
}
