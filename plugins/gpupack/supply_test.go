// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack/policy"
)

// supplies is a policy that remembers each supply that it is told of.
type supplies []policy.Supply

func (s *supplies) SetSupply(supply policy.Supply) { *s = append(*s, supply) }

func reading(name string, version int, models ...string) *v1alpha1.GPUNode {
	gn := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), ResourceVersion: fmt.Sprint(version)}}
	for i, model := range models {
		gn.Status.GPUs = append(gn.Status.GPUs, v1alpha1.GPU{
			UUID: fmt.Sprintf("%s-%d", name, i), Index: int32(i), Model: model, MemoryTotalMiB: 1000, Healthy: true,
		})
	}
	return gn
}

func watched() (*telemetry, *supplies) {
	var policy supplies
	t := &telemetry{}
	t.byKey = map[types.NamespacedName]*v1alpha1.GPUNode{}
	t.changed = newSupply(&policy).changed
	return t, &policy
}

func TestSupplyIsToldWhenItChanges(t *testing.T) {
	store, policies := watched()
	steps := []struct {
		name string
		do   func()
		want policy.Supply // nil where nothing is to be told
	}{
		{"a node comes", func() { store.set(reading("a", 1, "A100", "A100")) }, policy.Supply{"A100": 2}},
		{"another comes", func() { store.set(reading("b", 2, "T4", "A100")) }, policy.Supply{"A100": 3, "T4": 1}},
		{"other figures", func() {
			gn := reading("a", 3, "A100", "A100")
			gn.Status.GPUs[0].MemoryUsedMiB, gn.Status.GPUs[1].Utilization = 700, 90
			store.set(gn)
		}, nil},
		{"an older version", func() { store.set(reading("a", 1)) }, nil},
		{"a GPU falls sick", func() {
			gn := reading("b", 4, "T4", "A100")
			gn.Status.GPUs[0].Healthy = false
			store.set(gn)
		}, policy.Supply{"A100": 3}},
		{"impossible figures", func() {
			gn := reading("b", 5, "T4", "A100")
			gn.Status.GPUs[1].MemoryUsedMiB = -1
			store.set(gn)
		}, policy.Supply{"A100": 2}},
		{"both recover", func() { store.set(reading("b", 6, "T4", "A100")) }, policy.Supply{"A100": 3, "T4": 1}},
		{"a node goes", func() { store.remove(reading("a", 7)) }, policy.Supply{"A100": 1, "T4": 1}},
		{"again", func() { store.remove(reading("a", 7)) }, nil},
		{"the last one goes", func() { store.remove(reading("b", 8)) }, policy.Supply{}},
	}
	for _, step := range steps {
		before := len(*policies)
		step.do()
		if step.want == nil {
			require.Len(t, *policies, before, step.name)
			continue
		}
		require.Len(t, *policies, before+1, step.name)
		assert.Equal(t, step.want, (*policies)[before], step.name)
	}
	assert.Equal(t, policy.Supply{"A100": 2}, (*policies)[0], "what was told must not change later")
}

// Whatever comes, changes and goes, the supply is what the GPUNodes have.
func TestSupplyIsTheSumOfNodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store, policies := watched()
		for version := range rapid.IntRange(1, 30).Draw(t, "steps") {
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node")
			gn := reading(name, version+1, rapid.SliceOfN(rapid.SampledFrom([]string{"A100", "H100", "T4"}), 0, 4).Draw(t, "models")...)
			for i := range gn.Status.GPUs {
				gn.Status.GPUs[i].Healthy = rapid.Bool().Draw(t, "healthy")
			}
			if rapid.Bool().Draw(t, "gone") {
				store.remove(gn)
			} else {
				store.set(gn)
			}
		}
		want, got := policy.Supply{}, policy.Supply{}
		for _, gn := range store.byKey {
			for model, n := range convert.HealthyGPUs(gn) {
				want[model] += n
			}
		}
		if n := len(*policies); n > 0 {
			got = (*policies)[n-1]
		}
		require.Equal(t, want, got)
	})
}
