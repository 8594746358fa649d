// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

func TestTelemetryWakesOnlyPodsThatItCanHelp(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	reading := func(change func(*v1alpha1.GPUNode)) *v1alpha1.GPUNode {
		at := metav1.NewMicroTime(now)
		gn := &v1alpha1.GPUNode{Status: v1alpha1.GPUNodeStatus{ObservedTime: &at, Mode: v1alpha1.ModeManage, GPUs: []v1alpha1.GPU{{
			UUID: "g0", Model: "A100", MemoryTotalMiB: 81920, MemoryUsedMiB: 40000, MemoryForeignMiB: 10000, Utilization: 80, Healthy: true,
		}}}}
		if change != nil {
			change(gn)
		}
		return gn
	}
	gpu := func(change func(*v1alpha1.GPU)) *v1alpha1.GPUNode {
		return reading(func(gn *v1alpha1.GPUNode) { change(&gn.Status.GPUs[0]) })
	}
	cordoned := reading(func(gn *v1alpha1.GPUNode) { gn.Spec.CordonedGPUs = []v1alpha1.CordonedGPU{{UUID: "g0"}} })
	share := pack.Request{MiB: 8192}
	for name, tc := range map[string]struct {
		before, after *v1alpha1.GPUNode
		request       pack.Request
		want          bool
	}{
		"first reading":    {nil, reading(nil), share, true},
		"nothing changed":  {reading(nil), reading(nil), share, false},
		"memory freed":     {reading(nil), gpu(func(g *v1alpha1.GPU) { g.MemoryUsedMiB -= 1000 }), share, true},
		"memory taken":     {reading(nil), gpu(func(g *v1alpha1.GPU) { g.MemoryUsedMiB += 1000 }), share, false},
		"foreign freed":    {reading(nil), gpu(func(g *v1alpha1.GPU) { g.MemoryForeignMiB = 0 }), share, true},
		"recovered":        {gpu(func(g *v1alpha1.GPU) { g.Healthy = false }), reading(nil), share, true},
		"fell sick":        {reading(nil), gpu(func(g *v1alpha1.GPU) { g.Healthy = false }), share, false},
		"uncordoned":       {cordoned, reading(nil), share, true},
		"cordoned":         {reading(nil), cordoned, share, false},
		"calmer, no limit": {reading(nil), gpu(func(g *v1alpha1.GPU) { g.Utilization = 10 }), share, false},
		"calmer, within limit": {
			reading(nil), gpu(func(g *v1alpha1.GPU) { g.Utilization = 10 }),
			pack.Request{MiB: 8192, MaxUtilization: 50}, true,
		},
		"calmer, still above limit": {
			reading(nil), gpu(func(g *v1alpha1.GPU) { g.Utilization = 70 }),
			pack.Request{MiB: 8192, MaxUtilization: 50}, false,
		},
		"another model": {
			reading(nil), gpu(func(g *v1alpha1.GPU) { g.MemoryUsedMiB = 10000 }),
			pack.Request{GPUs: 1, Models: []string{"H100"}}, false,
		},
		"pod without GPU": {reading(nil), gpu(func(g *v1alpha1.GPU) { g.MemoryUsedMiB = 10000 }), pack.Request{CPUMilli: 1}, false},
		"was stale": {
			reading(func(gn *v1alpha1.GPUNode) {
				old := metav1.NewMicroTime(now.Add(-time.Hour))
				gn.Status.ObservedTime = &old
			}), reading(nil), share, true,
		},
		"impossible": {reading(nil), gpu(func(g *v1alpha1.GPU) { g.MemoryUsedMiB = -1 }), share, false},
	} {
		t.Run(name, func(t *testing.T) {
			options := convert.Options{StaleAfter: time.Minute, Now: now}
			g := gainOf(tc.before, tc.after, &options)
			require.Equal(t, tc.want, g.helps(&tc.request))
			require.True(t, g.any() || !tc.want)
		})
	}
}

// An event is read once, however many pods wait; the next one is read anew.
func TestEventIsReadOnce(t *testing.T) {
	p, infos := withNodes(t, 1, policy.BestFit{})
	before := p.telemetry.get(infos[0].Node().Name)
	first, second := before.DeepCopy(), before.DeepCopy()
	first.ResourceVersion, first.Status.GPUs[0].Healthy = "2", false
	second.ResourceVersion = "3"
	sick, err := p.gains.of(p, before, first)
	require.NoError(t, err)
	require.False(t, sick.any())
	again, err := p.gains.of(p, before, first)
	require.NoError(t, err)
	require.Same(t, sick, again)
	well, err := p.gains.of(p, first, second)
	require.NoError(t, err)
	require.Equal(t, &gain{models: []string{"A100"}}, well)
	require.Same(t, second, p.telemetry.get(before.Name), "a pod that it wakes meets it")

	gone, err := p.gains.of(p, second, nil)
	require.NoError(t, err)
	require.Nil(t, gone)
	_, err = p.gains.of(p, second, "text")
	require.Error(t, err)
}
