// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func reading() []v1alpha1.GPU {
	return []v1alpha1.GPU{
		{UUID: "GPU-0", Index: 0, MemoryTotalMiB: 80000, MemoryUsedMiB: 10000, Utilization: 50, Healthy: true,
			Pods: []v1alpha1.GPUPod{{UID: "a", MemoryUsedMiB: 5000}, {UID: "b", MemoryUsedMiB: 5000}}},
		{UUID: "GPU-1", Index: 1, MemoryTotalMiB: 10000, MemoryUsedMiB: 1000, MemoryForeignMiB: 1000, Healthy: true},
	}
}

func newTestDecider() *Decider {
	d := NewDecider(DefaultThresholds)
	d.jitter = func() float64 { return 0.5 }
	return d
}

func TestDecide(t *testing.T) {
	const heartbeat = 57 * time.Second // 60 s less half a tenth
	tests := map[string]struct {
		change func(gpus []v1alpha1.GPU)
		after  time.Duration
		write  bool
		wait   time.Duration
	}{
		"nothing":                        {func([]v1alpha1.GPU) {}, 5 * time.Second, false, heartbeat - 5*time.Second},
		"heartbeat":                      {func([]v1alpha1.GPU) {}, heartbeat, true, 0},
		"little memory":                  {func(g []v1alpha1.GPU) { g[0].MemoryUsedMiB += 255 }, 5 * time.Second, false, heartbeat - 5*time.Second},
		"256 MiB":                        {func(g []v1alpha1.GPU) { g[0].MemoryUsedMiB -= 256 }, 5 * time.Second, true, 0},
		"2 % of a small GPU":             {func(g []v1alpha1.GPU) { g[1].MemoryUsedMiB += 200 }, 5 * time.Second, true, 0},
		"less than 2 % of a small GPU":   {func(g []v1alpha1.GPU) { g[1].MemoryForeignMiB -= 199 }, 5 * time.Second, false, heartbeat - 5*time.Second},
		"foreign memory":                 {func(g []v1alpha1.GPU) { g[1].MemoryForeignMiB -= 200 }, 5 * time.Second, true, 0},
		"first process of no pod":        {func(g []v1alpha1.GPU) { g[0].MemoryForeignMiB = 1 }, 5 * time.Second, true, 0},
		"memory moves between pods":      {func(g []v1alpha1.GPU) { g[0].Pods[0].MemoryUsedMiB += 300; g[0].Pods[1].MemoryUsedMiB -= 300 }, 5 * time.Second, true, 0},
		"pods in another order":          {func(g []v1alpha1.GPU) { g[0].Pods[0], g[0].Pods[1] = g[0].Pods[1], g[0].Pods[0] }, 5 * time.Second, false, heartbeat - 5*time.Second},
		"another pod":                    {func(g []v1alpha1.GPU) { g[0].Pods[1].UID = "c" }, 5 * time.Second, true, 0},
		"one pod less":                   {func(g []v1alpha1.GPU) { g[0].Pods = g[0].Pods[:1] }, 5 * time.Second, true, 0},
		"health":                         {func(g []v1alpha1.GPU) { g[1].Healthy = false }, 5 * time.Second, true, 0},
		"reason":                         {func(g []v1alpha1.GPU) { g[1].UnhealthyReason = v1alpha1.ReasonXid }, 5 * time.Second, true, 0},
		"health, but written just now":   {func(g []v1alpha1.GPU) { g[1].Healthy = false }, 500 * time.Millisecond, false, 1500 * time.Millisecond},
		"utilisation, not for long yet":  {func(g []v1alpha1.GPU) { g[0].Utilization += 10 }, 5 * time.Second, false, 10 * time.Second},
		"utilisation, close to the beat": {func(g []v1alpha1.GPU) { g[0].Utilization += 10 }, 50 * time.Second, false, 7 * time.Second},
		"little utilisation":             {func(g []v1alpha1.GPU) { g[0].Utilization += 9 }, 5 * time.Second, false, heartbeat - 5*time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := newTestDecider()
			write, _ := d.Decide(reading(), start)
			require.True(t, write, "the first reading")
			d.Written(reading(), start)

			gpus := reading()
			tt.change(gpus)
			write, wait := d.Decide(gpus, start.Add(tt.after))
			require.Equal(t, tt.write, write)
			require.Equal(t, tt.wait, wait)
		})
	}
}

func TestDecideUtilization(t *testing.T) {
	d := newTestDecider()
	d.Written(reading(), start)
	at := func(seconds int, utilization int32) (bool, time.Duration) {
		gpus := reading()
		gpus[0].Utilization = utilization
		return d.Decide(gpus, start.Add(time.Duration(seconds)*time.Second))
	}
	// A peak that does not last.
	write, wait := at(5, 90)
	require.False(t, write)
	require.Equal(t, 10*time.Second, wait)
	write, _ = at(14, 55)
	require.False(t, write)
	// One that does, whatever its height.
	write, _ = at(15, 70)
	require.False(t, write)
	write, wait = at(20, 100)
	require.False(t, write)
	require.Equal(t, 5*time.Second, wait)
	write, _ = at(25, 61)
	require.True(t, write)
}

func TestDecideAfterReset(t *testing.T) {
	d := newTestDecider()
	d.Written(reading(), start)
	d.Reset()
	write, _ := d.Decide(reading(), start)
	require.True(t, write)
}

// TestDecideAlways offers random readings at random times, each no later than was asked for.
func TestDecideAlways(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := NewDecider(DefaultThresholds)
		d.jitter = func() float64 { return rapid.Float64Range(0, 0.999).Draw(t, "jitter") }
		now, written := start, time.Time{}
		var last []v1alpha1.GPU
		wait := time.Duration(0)
		for range rapid.IntRange(1, 30).Draw(t, "readings") {
			if wait > 0 {
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(wait)).Draw(t, "pass")))
			}
			gpus := reading()
			gpus[0].MemoryUsedMiB += rapid.Int64Range(0, 2000).Draw(t, "used")
			gpus[0].Utilization = rapid.Int32Range(0, 100).Draw(t, "utilization")
			gpus[1].Healthy = rapid.Bool().Draw(t, "healthy")
			var write bool
			write, wait = d.Decide(gpus, now)
			if !write {
				require.Positive(t, wait)
				require.LessOrEqual(t, now.Add(wait).Sub(written), DefaultThresholds.Heartbeat)
				if now.Sub(written) >= DefaultThresholds.MinInterval {
					require.Equal(t, last[1].Healthy, gpus[1].Healthy)
					require.Less(t, abs(last[0].MemoryUsedMiB-gpus[0].MemoryUsedMiB), DefaultThresholds.MemoryMiB)
				}
				continue
			}
			if !written.IsZero() {
				require.GreaterOrEqual(t, now.Sub(written), DefaultThresholds.MinInterval)
			}
			d.Written(gpus, now)
			last, written = gpus, now
			_, wait = d.Decide(gpus, now)
		}
	})
}
