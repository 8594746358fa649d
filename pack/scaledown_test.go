// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"math/bits"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// crowd returns replicas on nodes whose GPUs have the given tenants each: letters are replicas, "-" is another pod.
func crowd(domains map[string]string, nodes ...[]string) []Replica {
	var out []Replica
	for i, gpus := range nodes {
		n := &Node{Name: fmt.Sprintf("n%d", i)}
		has := map[string]bool{}
		for j, tenants := range gpus {
			g := GPU{Index: j}
			for _, id := range tenants {
				g.Tenants = append(g.Tenants, Tenant{ID: string(id), Milli: 100})
				if id != '-' {
					has[string(id)] = true
				}
			}
			n.GPUs = append(n.GPUs, g)
		}
		for id := 'a'; id <= 'z'; id++ {
			if has[string(id)] {
				r := Replica{ID: string(id), Node: n}
				if domains != nil {
					r.Domains = []string{domains[n.Name]}
				}
				out = append(out, r)
			}
		}
	}
	return out
}

func TestScaleDownOrder(t *testing.T) {
	zones := map[string]string{"n0": "east", "n1": "west"}
	for name, c := range map[string]struct {
		replicas []Replica
		spreads  []Spread
		want     string
	}{
		"the GPU with the fewest first":       {replicas: crowd(nil, []string{"abc", "de"}), want: "deabc"},
		"GPUs of others last":                 {replicas: crowd(nil, []string{"a-", "bcd"}), want: "bcda"},
		"two GPUs for one pod":                {replicas: crowd(nil, []string{"a", "b", "b"}), want: "ba"},
		"the node that is soonest empty":      {replicas: crowd(nil, []string{"a", "b", "c"}, []string{"d", "e"}), want: "deabc"},
		"a node of others is never empty":     {replicas: crowd(nil, []string{"a", "-"}, []string{"b", "c"}), want: "bca"},
		"one on each GPU, by node":            {replicas: crowd(nil, []string{"a", "b"}, []string{"c", "d"}), want: "abcd"},
		"none":                                {want: ""},
		"spread over zones":                   {replicas: crowd(zones, []string{"a", "b"}, []string{"cd", "ef"}), spreads: []Spread{{MaxSkew: 1, Domains: []string{"east", "west"}}}, want: "cdaebf"},
		"spread of a wider skew":              {replicas: crowd(zones, []string{"a", "b"}, []string{"cd", "ef"}), spreads: []Spread{{MaxSkew: 4, Domains: []string{"east", "west"}}}, want: "abcdef"},
		"a spread that is broken gets better": {replicas: crowd(zones, []string{"a"}, []string{"bc", "de"}), spreads: []Spread{{MaxSkew: 1, Domains: []string{"east", "west"}}}, want: "bcdae"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			for _, i := range ScaleDownOrder(c.replicas, c.spreads) {
				got += c.replicas[i].ID
			}
			assert.Equal(t, c.want, got)
		})
	}
}

// Whatever the number of shares removed, no other choice sets more GPUs free.
func TestScaleDownIsBestForShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "replicas")
		gpus := make([]string, rapid.IntRange(1, 4).Draw(t, "gpus"))
		for g := range gpus {
			if rapid.Bool().Draw(t, "others") {
				gpus[g] = "-"
			}
		}
		for i := range n {
			g := rapid.IntRange(0, len(gpus)-1).Draw(t, "gpu")
			gpus[g] += string(rune('a' + i))
		}
		cut := rapid.IntRange(0, len(gpus)).Draw(t, "nodes")
		replicas := crowd(nil, gpus[:cut], gpus[cut:])
		freed := func(gone map[string]bool) (n int) {
			for _, tenants := range gpus {
				empty := tenants != ""
				for _, id := range tenants {
					empty = empty && gone[string(id)]
				}
				if empty {
					n++
				}
			}
			return n
		}
		best := make([]int, n+1)
		for set := range 1 << n {
			gone := map[string]bool{}
			for i := range n {
				gone[string(rune('a'+i))] = set>>i&1 == 1
			}
			k := bits.OnesCount(uint(set))
			best[k] = max(best[k], freed(gone))
		}
		gone := map[string]bool{}
		for k, i := range ScaleDownOrder(replicas, nil) {
			require.False(t, gone[replicas[i].ID], "removed twice")
			gone[replicas[i].ID] = true
			require.Equal(t, best[k+1], freed(gone), "after %d removals", k+1)
		}
		require.Len(t, gone, n)
	})
}

// A spread that holds goes on to hold whatever the number of replicas removed.
func TestScaleDownKeepsSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zones := []string{"a", "b", "c"}
		spread := Spread{MaxSkew: rapid.IntRange(1, 2).Draw(t, "maxSkew"), Domains: zones}
		var replicas []Replica
		base := rapid.IntRange(0, 3).Draw(t, "base")
		left := map[string]int{}
		for _, zone := range zones {
			n := &Node{Name: zone}
			left[zone] = base + rapid.IntRange(0, spread.MaxSkew).Draw(t, "more")
			for i := range left[zone] {
				id := fmt.Sprint(zone, i)
				n.GPUs = append(n.GPUs, GPU{Index: i, Tenants: []Tenant{{ID: id, Milli: 500}}})
				replicas = append(replicas, Replica{ID: id, Node: n, Domains: []string{zone}})
			}
		}
		for _, i := range ScaleDownOrder(replicas, []Spread{spread}) {
			left[replicas[i].Domains[0]]--
			require.LessOrEqual(t, max(left["a"], left["b"], left["c"])-min(left["a"], left["b"], left["c"]), spread.MaxSkew, "%v", left)
		}
	})
}

func TestRenumber(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		current := rapid.SliceOfN(rapid.Ptr(rapid.Int32(), true), 0, 12).Draw(t, "costs")
		got := Renumber(current)
		require.Len(t, got, len(current))
		for i := 1; i < len(got); i++ {
			require.Less(t, got[i-1], got[i])
		}
		for i, v := range Renumber(ptrs(got)) {
			require.Equal(t, got[i], v, "what is right stays")
		}
	})
	one := func(v int32) *int32 { return &v }
	assert.Equal(t, []int32{1024, 2048}, Renumber([]*int32{nil, nil}))
	assert.Equal(t, []int32{10, 25, 40, 1064}, Renumber([]*int32{one(10), nil, one(40), nil}))
	assert.Equal(t, []int32{-1019, 5, 40}, Renumber([]*int32{one(7), one(5), one(40)}), "one changes")
	assert.Equal(t, []int32{-1014, 10}, Renumber([]*int32{nil, one(10)}))
	assert.Equal(t, []int32{1024, 2048, 3072}, Renumber([]*int32{one(10), nil, one(11)}), "no room between")
}

func ptrs(list []int32) []*int32 {
	out := make([]*int32, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}
