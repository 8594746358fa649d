// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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

// newest is a snapshot of all that was observed.
func newest(d *Distribution) *Classes {
	d.snapshot(d.current.Load().Version + 1)
	return d.Classes()
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
	c := newest(d)
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

// The more is known, the less a snapshot differs from the last, and the later the next one comes.
func TestSnapshotsBecomeRarer(t *testing.T) {
	d := NewDistribution(nil)
	observe(d, Request{GPUs: 1}, refresh)
	require.Equal(t, uint64(2), d.Classes().Version)
	observe(d, Request{GPUs: 1}, 4*halfLife)
	version := d.Classes().Version
	assert.Less(t, version, uint64(4*halfLife/refresh/2))
	observe(d, Request{GPUs: 1}, halfLife/refreshPart*2)
	assert.Greater(t, d.Classes().Version, version, "they do not stop")
}

// A class is what pods ask for, to the last milli-CPU; only how busy a GPU they put up with does not matter.
func TestClassesAreExact(t *testing.T) {
	d := NewDistribution(nil)
	r := Request{Milli: 333, CPUMilli: 120_200, MemoryMiB: 640_001, MaxUtilization: 50}
	observe(d, r, refresh)
	r.MaxUtilization = 0
	assert.Equal(t, []Class{{Request: r, Weight: 1}}, d.Classes().List)
}

func TestForgottenClassesVanish(t *testing.T) {
	once, always := Request{GPUs: 7}, Request{GPUs: 1}
	d := NewDistribution(nil)
	observe(d, once, 1)
	observe(d, always, 12*halfLife)
	assert.Zero(t, weightOf(newest(d), once))
	assert.Len(t, d.weights, 1, "what no longer counts takes no memory")
}

func TestOnlyTheHeaviestClassesAreHandedOut(t *testing.T) {
	d := NewDistribution(nil)
	for round := range 10 {
		for i := range 2 * mostClasses {
			if round > 0 && i >= 20 {
				break
			}
			observe(d, Request{MiB: int64(i+1) * 1024}, 1)
		}
	}
	observe(d, Request{MiB: 1024}, refresh)
	c := newest(d)
	requireDistribution(t, c)
	require.Len(t, c.List, mostClasses)
	assert.Equal(t, int64(1024), c.List[0].Request.MiB)
	for i := range 20 {
		assert.Positive(t, weightOf(c, Request{MiB: int64(i+1) * 1024}))
	}
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

// What waits is to come, however long ago it was observed.
func TestWhatWaitsIsNotForgotten(t *testing.T) {
	waits, always := Request{GPUs: 7, MaxUtilization: 50}, Request{GPUs: 1}
	d := NewDistribution(nil)
	observe(d, waits, 1)
	d.Wait(&waits)
	d.Wait(&waits)
	observe(d, always, 12*halfLife)
	c := newest(d)
	requireDistribution(t, c)
	// All that came counts as much as half-life/ln 2 observations.
	assert.InDelta(t, 2/(2+halfLife/0.693147), weightOf(c, Request{GPUs: 7}), 1e-5)

	d.Settle(&waits)
	d.Settle(&waits)
	assert.Zero(t, weightOf(newest(d), waits))
	assert.Empty(t, d.waiting)

	fixed := FixedDistribution([]Class{{Request: always, Weight: 1}})
	fixed.Wait(&waits)
	assert.Len(t, fixed.Classes().List, 1)
}

func TestDistributionIsSafeForConcurrentUse(t *testing.T) {
	d := NewDistribution(DefaultClasses())
	d.decay = 1
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
	requireDistribution(t, newest(d))
	var sum float64
	for _, c := range d.weights {
		sum += c.Weight
	}
	assert.InDelta(t, priorWeight+8*50*refresh, sum, 1e-6, "no observation is lost")
}
