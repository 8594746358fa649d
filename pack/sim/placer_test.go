// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A Placer that is given the arrivals of a run places them as the run does.
func TestPlacer(t *testing.T) {
	in := Input{Nodes: nodes(24), Tasks: tasks()}
	for _, o := range []Options{
		{Policy: "gpupack", Seed: 3, Load: 1.3, Detail: true},
		{Policy: "fgd", Seed: 4, Load: 1.3, Detail: true, TiesByName: true, Distribution: DistributionOnline},
		{Policy: "random", Seed: 5, Load: 1.3, Detail: true},
	} {
		r, err := Run(context.Background(), in, o)
		require.NoError(t, err)
		require.Positive(t, r.Unscheduled)
		p, err := NewPlacer(in, o)
		require.NoError(t, err)
		for i, want := range r.Detail.Placements {
			node, ok := p.Place(want.Task)
			require.Equal(t, want.Node, node, "arrival %d", i)
			require.Equal(t, want.Node != "", ok)
		}
	}
	_, err := NewPlacer(in, Options{Policy: "x"})
	assert.ErrorContains(t, err, `unknown packing policy "x"`)
	_, err = NewPlacer(Input{Tasks: tasks()}, Options{Policy: "fgd"})
	assert.ErrorContains(t, err, "the cluster has no GPUs")
}
