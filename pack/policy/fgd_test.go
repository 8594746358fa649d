// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/pack"
)

func TestNew(t *testing.T) {
	assert.Equal(t, []string{"best-fit", "dot-product", "fgd", "gpu-clustering", "gpu-packing", "gpupack", "least-allocated",
		"most-allocated", "random"}, Names())
	for _, name := range Names() {
		assert.True(t, Exists(name))
		p, err := New(name, pack.FixedDistribution(nil))
		require.NoError(t, err)
		assert.Equal(t, name, p.Name())
	}
	assert.False(t, Exists("FGD"))
	_, err := New("tetris", nil)
	assert.EqualError(t, err, `unknown packing policy "tetris": use one of `+strings.Join(Names(), ", "))
}

func shape(cpu int64, milli ...int16) *pack.Shape {
	s := &pack.Shape{Model: "A100", CPUMilli: cpu, MemoryMiB: 1 << 20, UsableMiB: 80000, Len: len(milli)}
	copy(s.Milli[:], milli)
	return s
}

// What a class cannot use of a node, by the definition in section 3 of the paper.
func TestFragment(t *testing.T) {
	tests := []struct {
		name    string
		shape   *pack.Shape
		request pack.Request
		want    int64
	}{
		{"all usable", shape(8000, 1000, 1000), pack.Request{GPUs: 1}, 0},
		{"GPUs with less left than a whole one", shape(8000, 1000, 600, 300), pack.Request{GPUs: 1}, 900},
		{"two whole GPUs wanted, one free: all is lost", shape(8000, 1000, 600, 300), pack.Request{GPUs: 2}, 1900},
		{"a share uses what is as large", shape(8000, 1000, 500, 499), pack.Request{Milli: 500}, 499},
		{"a share that fits nowhere", shape(8000, 400, 300), pack.Request{Milli: 500}, 700},
		{"too little CPU: all is lost", shape(3999, 1000, 500), pack.Request{CPUMilli: 4000, Milli: 500}, 1500},
		{"just enough CPU", shape(4000, 1000, 500), pack.Request{CPUMilli: 4000, Milli: 500}, 0},
		{"too little host memory", shape(4000, 1000), pack.Request{MemoryMiB: 1<<20 + 1, Milli: 500}, 1000},
		{"another model", shape(4000, 1000), pack.Request{GPUs: 1, Models: []string{"T4"}}, 1000},
		{"an accepted model", shape(4000, 1000), pack.Request{GPUs: 1, Models: []string{"A100", "T4"}}, 0},
		{"no GPU wanted: all is lost on it", shape(4000, 1000, 200), pack.Request{CPUMilli: 1}, 1200},
		{"a share by memory", shape(4000, 1000, 100), pack.Request{MiB: 8001}, 100},
		{"a share by memory that fits exactly", shape(4000, 1000, 100), pack.Request{MiB: 8000}, 0},
		{"sick or full GPUs have nothing to lose", shape(4000, 1000, 0, 0), pack.Request{GPUs: 1}, 0},
		{"no GPUs", shape(4000), pack.Request{GPUs: 1}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, fragment(tt.shape, &tt.request, tt.shape.Free()))
		})
	}
}

// Two GPUs, 1000 and 600 left; a task of 400 milli-GPU may go to either. Half of what comes wants 600 milli-GPU, 30 % one
// whole GPU, 20 % none.
//
//	before:        600: 0     one: 600           none: 1600   0.3*600          + 0.2*1600 = 500
//	on the first:  600: 0     one: 1200 (no fit) none: 1200   0.3*1200         + 0.2*1200 = 600
//	on the second: 600: 200   one: 200           none: 1200   0.5*200 + 0.3*200 + 0.2*1200 = 400
func TestFGDByHand(t *testing.T) {
	fgd := NewFGD(pack.FixedDistribution([]pack.Class{
		{Request: pack.Request{Milli: 600}, Weight: 5},
		{Request: pack.Request{GPUs: 1}, Weight: 3},
		{Request: pack.Request{CPUMilli: 1}, Weight: 2},
	}))
	before := shape(8000, 1000, 600)
	task := &pack.Request{Milli: 400}
	first := fgd.Score(&pack.Candidate{Request: task, Before: before, After: shape(8000, 600, 600), Milli: 400})
	second := fgd.Score(&pack.Candidate{Request: task, Before: before, After: shape(8000, 1000, 200), Milli: 400})
	assert.InDelta(t, 500-600, first, 1e-9)
	assert.InDelta(t, 500-400, second, 1e-9)

	n := &pack.Node{CPUMilli: 8000, MemoryMiB: 1 << 20, GPUs: []pack.GPU{
		{UUID: "GPU-0", Model: "A100", TotalMiB: 80000},
		{UUID: "GPU-1", Model: "A100", TotalMiB: 80000, Tenants: []pack.Tenant{{ID: "a", Milli: 400, RequestedMiB: 32000}}},
	}}
	c := pack.Chooser{Policy: fgd}
	choice, reason := c.Choose(n, task)
	require.Equal(t, pack.ReasonFits, reason)
	assert.Equal(t, []int{1}, choice.GPUs)
	assert.InDelta(t, 100, choice.Score, 1e-9)
}

// A display server or a monitoring agent on each GPU must not hide from the policy that the GPUs can be given away whole.
func TestFGDWithALittleForeignMemory(t *testing.T) {
	fgd := NewFGD(pack.FixedDistribution([]pack.Class{{Request: pack.Request{GPUs: 1}, Weight: 1}}))
	c := pack.Chooser{Policy: fgd, Limits: pack.Limits{WholeForeignMiB: 512}}
	n := &pack.Node{CPUMilli: 8000, GPUs: []pack.GPU{
		{UUID: "GPU-0", TotalMiB: 80000, ForeignMiB: 4},
		{UUID: "GPU-1", TotalMiB: 80000, ForeignMiB: 4, Tenants: []pack.Tenant{{ID: "a", Milli: 500, RequestedMiB: 40000}}},
	}}
	choice, reason := c.Choose(n, &pack.Request{Milli: 250})
	require.Equal(t, pack.ReasonFits, reason)
	assert.Equal(t, []int{1}, choice.GPUs, "the share goes beside the other one")
	assert.InDelta(t, 250, choice.Score, 1, "and leaves less of no use to whole GPUs")
}

func TestMemoFollowsTheDistribution(t *testing.T) {
	d := pack.NewDistribution([]pack.Class{{Request: pack.Request{Milli: 500}, Weight: 1}})
	fgd := NewFGD(d)
	candidate := &pack.Candidate{Before: shape(8000, 1000, 1000), After: shape(8000, 1000, 500)}
	assert.InDelta(t, 0, fgd.Score(candidate), 1e-9, "500 left are of use to halves")
	old := d.Classes().Version
	for range 100 * 64 {
		d.Observe(&pack.Request{GPUs: 1})
	}
	require.NotEqual(t, old, d.Classes().Version)
	assert.InDelta(t, -500*d.Classes().List[0].Weight, fgd.Score(candidate), 1e-9, "but not to whole GPUs")
	assert.Equal(t, d.Classes().Version, fgd.memo.version)
	assert.Len(t, fgd.memo.byShape, 2)
}

func TestMemoComputesOnce(t *testing.T) {
	var m memo
	calls := 0
	compute := func(*pack.Shape, []pack.Class) float64 { calls++; return float64(calls) }
	classes := &pack.Classes{Version: 1}
	for range 3 {
		assert.InDelta(t, 1, m.get(shape(1, 1000), classes, compute), 0)
	}
	assert.InDelta(t, 2, m.get(shape(2, 1000), classes, compute), 0, "another shape")
	assert.InDelta(t, 3, m.get(shape(1, 1000), &pack.Classes{Version: 2}, compute), 0, "another version")
}

func TestMemoIsBounded(t *testing.T) {
	var m memo
	classes := &pack.Classes{Version: 1}
	for i := range mostRemembered + 10 {
		m.get(shape(int64(i)), classes, func(*pack.Shape, []pack.Class) float64 { return 0 })
	}
	assert.Len(t, m.byShape, 10)
}

// Whatever other goroutines ask and observe, each score is that of one version of the distribution.
func TestFGDConcurrently(t *testing.T) {
	d := pack.NewDistribution(pack.DefaultClasses())
	fgd := NewFGD(d)
	var m memo
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				after := shape(8000, 1000, int16((i*37+worker)%1000))
				classes := d.Classes()
				assert.InDelta(t, expectedFragment(after, classes.List), m.get(after, classes, expectedFragment), 0)
				fgd.Score(&pack.Candidate{Before: shape(8000, 1000, 1000), After: after})
				d.Observe(&pack.Request{GPUs: i%8 + 1})
			}
		})
	}
	wg.Wait()
}

// A fragment is part of what is free, and a smaller class of the same kind never loses more.
func TestFragmentBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		milli := rapid.SliceOfN(rapid.Int16Range(0, 1000), 0, 8).Draw(t, "milli")
		n := &pack.Node{CPUMilli: rapid.Int64Range(0, 9000).Draw(t, "cpu"), MemoryMiB: 1 << 20}
		for i, left := range milli {
			n.GPUs = append(n.GPUs, pack.GPU{UUID: fmt.Sprint(i), TotalMiB: 80000, Tenants: []pack.Tenant{{ID: "a", Milli: 1000 - int64(left)}}})
		}
		s := n.Shape()
		r := pack.Request{CPUMilli: rapid.Int64Range(0, 9000).Draw(t, "cpuAsked"), Milli: rapid.Int64Range(1, 1000).Draw(t, "milliAsked")}
		got := fragment(&s, &r, s.Free())
		require.GreaterOrEqual(t, got, int64(0))
		require.LessOrEqual(t, got, s.Free())
		smaller := r
		smaller.Milli = rapid.Int64Range(1, r.Milli).Draw(t, "smaller")
		require.LessOrEqual(t, fragment(&s, &smaller, s.Free()), got)
	})
}
