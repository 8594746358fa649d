// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func weightOf(c *Classes, r Request) float64 {
	for i := range c.List {
		if compareSize(&c.List[i].Request, &r) == 0 {
			return c.List[i].Weight
		}
	}
	return 0
}

func observe(d *Distribution, r Request, times int) {
	for range times {
		d.Observe(&r)
	}
}

func requireDistribution(t require.TestingT, c *Classes) {
	var sum float64
	for i := range c.List {
		require.Positive(t, c.List[i].Weight)
		if i > 0 {
			require.GreaterOrEqual(t, c.List[i-1].Weight, c.List[i].Weight)
		}
		sum += c.List[i].Weight
	}
	require.InDelta(t, 1, sum, 1e-9)
}

func TestPrior(t *testing.T) {
	c := NewDistribution(DefaultClasses()).Classes()
	requireDistribution(t, c)
	require.Len(t, c.List, 6)
	assert.Equal(t, 1, c.List[0].Request.GPUs)
	assert.InDelta(t, 0.45, c.List[0].Weight, 1e-9)

	assert.Empty(t, NewDistribution(nil).Classes().List, "no prior, nothing known")
}

func TestObservationsOutweighThePrior(t *testing.T) {
	prior, seen := Request{GPUs: 1}, Request{GPUs: 8}
	d := NewDistribution([]Class{{Request: prior, Weight: 3}})
	observe(d, seen, refresh-1)
	assert.Zero(t, weightOf(d.Classes(), seen), "between refreshes, scores stay comparable")
	assert.Equal(t, uint64(1), d.Classes().Version)

	observe(d, seen, 1)
	c := d.Classes()
	requireDistribution(t, c)
	assert.Equal(t, uint64(2), c.Version)
	// 64 observations beside a prior that is worth 50, all but undecayed.
	assert.InDelta(t, 64.0/114, weightOf(c, seen), 0.01)
}

func TestOldObservationsCountHalfAfterHalfLife(t *testing.T) {
	first, then := Request{GPUs: 1}, Request{GPUs: 2}
	d := NewDistribution(nil)
	observe(d, first, refresh)
	rounds := halfLife / refresh
	observe(d, then, rounds*refresh)
	c := d.Classes()
	requireDistribution(t, c)
	// Σ over k observations of decay^i = (1-decay^k)/(1-decay), so the first 64 keep about half of their weight.
	decay := d.decay
	sum := func(k int) float64 {
		var s, w float64 = 0, 1
		for range k {
			s += w
			w *= decay
		}
		return s
	}
	kept := sum(refresh) / 2
	assert.InDelta(t, kept/(kept+sum(rounds*refresh)), weightOf(c, first), 0.001)
}

func TestForgottenClassesVanish(t *testing.T) {
	once, always := Request{GPUs: 7}, Request{GPUs: 1}
	d := NewDistribution(nil)
	observe(d, once, 1)
	observe(d, always, 12*halfLife)
	assert.Zero(t, weightOf(d.Classes(), once))
	assert.Len(t, d.weights, 1, "what no longer counts takes no memory")
}

func TestOnlyTheHeaviestClassesAreHandedOut(t *testing.T) {
	d := NewDistribution(nil)
	for round := range 10 {
		for i := range 200 {
			if round > 0 && i >= 20 {
				break
			}
			observe(d, Request{MiB: int64(i+1) * 1024}, 1)
		}
	}
	observe(d, Request{MiB: 1024}, refresh)
	c := d.Classes()
	requireDistribution(t, c)
	require.Len(t, c.List, mostClasses)
	assert.Equal(t, int64(1024), c.List[0].Request.MiB)
	for i := range 20 {
		assert.Positive(t, weightOf(c, Request{MiB: int64(i+1) * 1024}))
	}
}

func TestQuantise(t *testing.T) {
	tests := []struct {
		name     string
		in, want Request
	}{
		{"GPUs and models stay", Request{GPUs: 3, Models: []string{"A100"}}, Request{GPUs: 3, Models: []string{"A100"}}},
		{"milli", Request{Milli: 333}, Request{Milli: 300}},
		{"small milli stays", Request{Milli: 30}, Request{Milli: 30}},
		{"memory", Request{MiB: 9000}, Request{MiB: 8192}},
		{"small memory stays", Request{MiB: 500}, Request{MiB: 500}},
		{"CPU", Request{CPUMilli: 96000}, Request{CPUMilli: 81920}},
		{"small CPU stays", Request{CPUMilli: 7}, Request{CPUMilli: 7}},
		{"host memory", Request{MemoryMiB: 1023}, Request{MemoryMiB: 896}},
		{"a utilisation limit is no class", Request{GPUs: 1, MaxUtilization: 50}, Request{GPUs: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, quantise(&tt.in))
		})
	}
}

// A class never asks for more than the pods that it stands for, so where they fit it does, and its kind stays the same.
func TestQuantiseRoundsDownALittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t, "request")
		r.CPUMilli = rapid.Int64().Filter(func(v int64) bool { return v >= 0 }).Draw(t, "cpu")
		q := quantise(&r)
		within := func(v, rounded, step int64) {
			require.LessOrEqual(t, rounded, v)
			require.GreaterOrEqual(t, rounded, v-v/4-step)
			require.Equal(t, v > 0, rounded > 0)
		}
		within(r.Milli, q.Milli, 50)
		within(r.MiB, q.MiB, 1024)
		within(r.CPUMilli, q.CPUMilli, 0)
		within(r.MemoryMiB, q.MemoryMiB, 0)
		require.Equal(t, r.IsShare(), q.IsShare())
		require.Equal(t, r.GPUs, q.GPUs)
		require.Equal(t, q, quantise(&q), "once is enough")
	})
}

func TestFixedDistribution(t *testing.T) {
	classes := []Class{{Request: Request{GPUs: 1, CPUMilli: 8001}, Weight: 1e-6}, {Request: Request{Milli: 333}, Weight: 3e-6}}
	d := FixedDistribution(classes)
	want := []Class{{Request: Request{Milli: 333}, Weight: 0.75}, {Request: Request{GPUs: 1, CPUMilli: 8001}, Weight: 0.25}}
	check := func() {
		c := d.Classes()
		requireDistribution(t, c)
		require.Len(t, c.List, 2)
		for i := range want {
			assert.Equal(t, want[i].Request, c.List[i].Request)
			assert.InDelta(t, want[i].Weight, c.List[i].Weight, 1e-9)
		}
	}
	check()
	version := d.Classes().Version
	observe(d, Request{GPUs: 8}, 10*refresh)
	check()
	assert.Equal(t, version, d.Classes().Version)
	assert.InDelta(t, 1e-6, classes[0].Weight, 0, "the caller's classes stay as they are")
}

// Snapshots of equal weights come in an order that does not depend on that of a map.
func TestSnapshotOrderIsDeterministic(t *testing.T) {
	make64 := func() []Class {
		d := NewDistribution(nil)
		d.decay = 1
		for i := range refresh {
			r := Request{GPUs: i % 4, CPUMilli: int64(i % 8), Models: []string{string(rune('A' + i%3))}}
			d.Observe(&r)
		}
		return d.Classes().List
	}
	want := make64()
	for range 20 {
		require.Equal(t, want, make64())
	}
}

func TestDistributionIsSafeForConcurrentUse(t *testing.T) {
	d := NewDistribution(DefaultClasses())
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			var last uint64
			for i := range 50 * refresh {
				r := Request{GPUs: (worker+i)%8 + 1}
				d.Observe(&r)
				c := d.Classes()
				assert.GreaterOrEqual(t, c.Version, last)
				last = c.Version
			}
		})
	}
	wg.Wait()
	requireDistribution(t, d.Classes())
	assert.Equal(t, uint64(1+8*50), d.Classes().Version, "no observation is lost")
}
