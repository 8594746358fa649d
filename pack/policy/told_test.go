// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"iter"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/gpupack/gpupack/pack"
)

// counting counts how often it is told.
type counting int

func (c *counting) SetCluster(iter.Seq2[*pack.Shape, int]) func(*pack.Shape) bool {
	*c++
	return func(*pack.Shape) bool { return true }
}

func TestTold(t *testing.T) {
	var p counting
	var told Told
	none := func(func(*pack.Shape, int) bool) {}
	const step = 250 // of 100,000
	for i, tt := range []struct {
		free, total Capacity
		want        bool
	}{
		{Capacity{}, Capacity{100_000, 0}, true}, // nothing is free, which the policy does not know yet
		{Capacity{}, Capacity{100_000, 0}, false},
		{Capacity{step - 1, 0}, Capacity{100_000, 0}, false},
		{Capacity{step, 0}, Capacity{100_000, 0}, true},
		{Capacity{1, 0}, Capacity{100_000, 0}, false},
		{Capacity{0, 0}, Capacity{100_000, 0}, true},
		{Capacity{step / 2, 0}, Capacity{50_000, 0}, true}, // of half as many
		{Capacity{step / 2, step - 1}, Capacity{50_000, 100_000}, false},
		{Capacity{step / 2, step}, Capacity{50_000, 100_000}, true},
		{Capacity{0, step}, Capacity{0, 100_000}, true}, // the last GPU is gone
		{Capacity{0, step}, Capacity{0, 100_000}, false},
	} {
		before := p
		assert.Equal(t, tt.want, told.Tell(&p, tt.free, tt.total, none) != nil, "step %d", i)
		assert.Equal(t, tt.want, p > before, "step %d", i)
	}
}
