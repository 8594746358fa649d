// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/gpupack/gpupack/pack"
)

func TestEpochChangesWithWhatScoresDependOn(t *testing.T) {
	d := pack.NewDistribution(pack.DefaultClasses())
	epoch := func(p pack.Policy) any {
		e, ok := Epoch(p)
		assert.True(t, ok)
		return e
	}
	g, f := NewGPUPack(d), NewFGD(d)
	ours, fgd := epoch(g), epoch(f)
	assert.True(t, ours == epoch(g))
	assert.True(t, fgd == epoch(f))
	for range 100 {
		d.Observe(&pack.Request{GPUs: 3})
	}
	assert.True(t, ours != epoch(g), "other tasks come")
	assert.True(t, fgd != epoch(f))

	ours = epoch(g)
	g.SetSupply(Supply{"A100": 8, "T4": 8})
	assert.True(t, ours != epoch(g), "other GPUs")
	ours = epoch(g)
	g.SetTurnover(true)
	n := &pack.Node{CPUMilli: 64000, MemoryMiB: 1 << 20, GPUs: make([]pack.GPU, 8)}
	for i := range n.GPUs {
		n.GPUs[i] = pack.GPU{Model: "A100", TotalMiB: 80000}
	}
	shape := n.Shape()
	g.SetCluster(func(yield func(*pack.Shape, int) bool) { yield(&shape, 1) })
	assert.True(t, ours != epoch(g), "another cluster")

	_, ok := Epoch(&Random{})
	assert.False(t, ok)
	for _, name := range Names() {
		p, err := New(name, d)
		assert.NoError(t, err)
		_, ok := Epoch(p)
		assert.Equal(t, name != "random", ok, name)
	}
}
