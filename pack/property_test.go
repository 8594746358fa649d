// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// somePolicy scores by everything that a policy can see, so that a wrong view of a node changes the score.
var somePolicy = policyFunc(func(c *Candidate) float64 {
	score := float64(c.Milli)
	for i, m := range c.After.Milli[:c.After.Len] {
		score += float64(m) * float64(i+1) * 0.37
	}
	for i, m := range c.Before.Milli[:c.Before.Len] {
		score -= float64(m) * float64(i+2) * 0.11
	}
	return score + float64(c.After.CPUMilli)/1e4 + float64(c.After.MemoryMiB)/1e6
})

var testChooser = Chooser{Limits: limits, Policy: somePolicy, LoadWeight: 0.5}

func drawRequest(t *rapid.T, label string) Request {
	r := Request{
		CPUMilli:  rapid.Int64Range(0, 16000).Draw(t, label+".cpu"),
		MemoryMiB: rapid.Int64Range(0, 64<<10).Draw(t, label+".memory"),
	}
	switch rapid.IntRange(0, 4).Draw(t, label+".kind") {
	case 0:
	case 1:
		r.GPUs = rapid.IntRange(1, 4).Draw(t, label+".gpus")
	case 2:
		r.Milli = rapid.Int64Range(1, 1000).Draw(t, label+".milli")
	case 3:
		r.MiB = rapid.Int64Range(1, 90000).Draw(t, label+".mib")
	case 4:
		r.Milli = rapid.Int64Range(1, 1000).Draw(t, label+".milli")
		r.MiB = rapid.Int64Range(1, 50000).Draw(t, label+".mib")
	}
	r.MaxUtilization = rapid.SampledFrom([]int{0, 0, 0, 50}).Draw(t, label+".maxUtilization")
	return r
}

// drawNode draws a node of equal GPUs in any state.
func drawNode(t *rapid.T, label string) *Node {
	n := &Node{
		Name:      label,
		CPUMilli:  rapid.Int64Range(0, 128000).Draw(t, label+".cpu"),
		MemoryMiB: rapid.Int64Range(0, 1<<20).Draw(t, label+".memory"),
	}
	total := rapid.Int64Range(1000, 81920).Draw(t, label+".total")
	reserved := rapid.Int64Range(0, 999).Draw(t, label+".reserved")
	for i := range rapid.IntRange(0, 8).Draw(t, label+".gpus") {
		at := fmt.Sprintf("%s.%d", label, i)
		g := GPU{
			UUID: at, Index: i, Model: "A100", TotalMiB: total, ReservedMiB: reserved,
			ForeignMiB:  rapid.SampledFrom([]int64{0, 0, 0, 1, 512, 900}).Draw(t, at+".foreign"),
			Utilization: rapid.IntRange(0, 100).Draw(t, at+".utilization"),
			Unhealthy:   rapid.SampledFrom([]string{"", "", "", "Xid 79"}).Draw(t, at+".unhealthy"),
		}
		left := int64(1000)
		for j := range rapid.IntRange(0, 2).Draw(t, at+".tenants") {
			milli := rapid.Int64Range(0, left).Draw(t, at+".milli")
			left -= milli
			g.Tenants = append(g.Tenants, Tenant{
				ID: fmt.Sprintf("%s/%d", at, j), Milli: milli,
				RequestedMiB: rapid.Int64Range(0, g.FreeMiB()).Draw(t, at+".requested"),
				UsedMiB:      rapid.Int64Range(0, total).Draw(t, at+".used"),
			})
		}
		n.GPUs = append(n.GPUs, g)
	}
	return n
}

// Whatever comes and goes, no GPU ever has more promised than it has, and none is shared with a pod that has it whole.
func TestNeverOverCapacity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t, "node")
		foreigners := n.Clone()
		type placed struct {
			request Request
			gpus    []int
		}
		here := map[string]placed{}
		for step := range rapid.IntRange(1, 30).Draw(t, "steps") {
			id := fmt.Sprintf("pod-%d", step)
			if len(here) > 0 && rapid.Bool().Draw(t, "remove") {
				ids := make([]string, 0, len(here))
				for id := range here {
					ids = append(ids, id)
				}
				slices.Sort(ids)
				gone := rapid.SampledFrom(ids).Draw(t, "gone")
				r := here[gone].request
				n.Remove(&r, gone)
				delete(here, gone)
				continue
			}
			r := drawRequest(t, id)
			if testChooser.Limits.FitHost(n, &r) != ReasonFits {
				continue
			}
			free := make([]int64, len(n.GPUs))
			for i := range n.GPUs {
				free[i] = n.GPUs[i].FreeMiB()
			}
			choice, reason := testChooser.Choose(n, &r)
			require.Equal(t, ReasonFits, reason)
			require.Len(t, choice.GPUs, r.Count())
			require.True(t, slices.IsSorted(choice.GPUs))
			for _, at := range choice.GPUs {
				g := &n.GPUs[at]
				require.Empty(t, g.Unhealthy)
				if r.IsShare() {
					require.LessOrEqual(t, r.MiBOn(g.UsableMiB()), free[at])
					require.True(t, r.MaxUtilization == 0 || g.Utilization <= r.MaxUtilization)
				} else {
					require.Empty(t, g.Tenants)
					require.LessOrEqual(t, g.ForeignMiB, limits.WholeForeignMiB)
				}
			}
			n.Place(&r, id, choice.GPUs)
			here[id] = placed{r, choice.GPUs}

			require.GreaterOrEqual(t, n.CPUMilli, int64(0))
			require.GreaterOrEqual(t, n.MemoryMiB, int64(0))
			for i := range n.GPUs {
				g := &n.GPUs[i]
				var milli, mib, ours int64
				full := false
				for j := range g.Tenants {
					milli += g.Tenants[j].Milli
					full = full || g.Tenants[j].Milli == WholeMilli
					if _, ok := here[g.Tenants[j].ID]; ok {
						ours += g.Tenants[j].RequestedMiB
					}
					mib += g.Tenants[j].MiB()
				}
				require.LessOrEqual(t, milli, int64(WholeMilli))
				if ours > 0 {
					foreign := g.ForeignMiB
					if full {
						foreign = 0
					}
					require.LessOrEqual(t, mib+foreign, g.UsableMiB())
				}
				ofOthers := len(foreigners.GPUs[i].Tenants)
				if full && len(g.Tenants) > ofOthers {
					require.Len(t, g.Tenants, 1)
				}
			}
		}
	})
}

func TestChooseIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, r := drawNode(t, "node"), drawRequest(t, "request")
		before := n.Clone()
		first, reason := testChooser.Choose(n, &r)
		again, reasonAgain := testChooser.Choose(n.Clone(), &r)
		require.Equal(t, reason, reasonAgain)
		require.Equal(t, first, again)
		require.Equal(t, before, n, "Choose changes nothing")
	})
}

// permute returns the node with its GPUs in another order.
func permute(t *rapid.T, n *Node) *Node {
	order := rapid.Permutation(rangeOf(len(n.GPUs))).Draw(t, "order")
	p := n.Clone()
	for i, from := range order {
		p.GPUs[i] = n.Clone().GPUs[from]
	}
	return p
}

func rangeOf(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func TestOrderOfGPUsChangesNoScore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, r := drawNode(t, "node"), drawRequest(t, "request")
		p := permute(t, n)
		require.Equal(t, n.Shape(), p.Shape())
		require.Equal(t, limits.shape(n), limits.shape(p))
		a, reasonA := testChooser.Choose(n, &r)
		b, reasonB := testChooser.Choose(p, &r)
		require.Equal(t, reasonA, reasonB)
		require.InDelta(t, a.Score, b.Score, 1e-9)
		require.Len(t, b.GPUs, len(a.GPUs))
	})
}

func TestPlaceThenRemoveRestores(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, r := drawNode(t, "node"), drawRequest(t, "request")
		before := n.Clone()
		choice, reason := testChooser.Choose(n, &r)
		if reason != ReasonFits {
			t.Skip("does not fit")
		}
		n.Place(&r, "pod", choice.GPUs)
		n.Remove(&r, "pod")
		require.Equal(t, before.CPUMilli, n.CPUMilli)
		require.Equal(t, before.MemoryMiB, n.MemoryMiB)
		for i := range n.GPUs {
			require.ElementsMatch(t, before.GPUs[i].Tenants, n.GPUs[i].Tenants)
		}
	})
}

// The shape by which a placement is scored is the shape that the node has afterwards.
func TestPlacedShapeIsTheRealOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, r := drawNode(t, "node"), drawRequest(t, "request")
		if limits.Fit(n, &r) != ReasonFits {
			t.Skip("does not fit")
		}
		before := limits.shape(n)
		// Any GPUs that fit, not only the best.
		var fitting []int
		for at := range n.GPUs {
			if limits.gpuReason(&n.GPUs[at], &r) == ReasonFits {
				fitting = append(fitting, at)
			}
		}
		var gpus []int
		if r.WantsGPU() {
			gpus = rapid.Permutation(fitting).Draw(t, "gpus")[:r.Count()]
		}
		predicted := limits.place(&before, n, &r, gpus)
		n.Place(&r, "pod", gpus)
		require.Equal(t, limits.shape(n), predicted)
	})
}

// A GPU counts as free as a whole exactly where it can be given away whole.
func TestWholeGPUsOfAShapeCanBeGivenAway(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t, "node")
		whole := Request{GPUs: 1}
		want := 0
		for i := range n.GPUs {
			if limits.gpuReason(&n.GPUs[i], &whole) == ReasonFits {
				want++
			}
		}
		shape := limits.shape(n)
		require.Equal(t, want, shape.Whole())
	})
}

func TestSqueezeAlwaysFindsGPUs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, r := drawNode(t, "node"), drawRequest(t, "request")
		got := Squeeze(n, &r)
		require.Len(t, got, min(r.Count(), len(n.GPUs)))
		require.True(t, slices.IsSorted(got))
		require.Len(t, slices.Compact(slices.Clone(got)), len(got), "no GPU twice")
		if strict := (&Limits{WholeForeignMiB: 1 << 40}); r.WantsGPU() && r.MaxUtilization == 0 && strict.Fit(n, &r) == ReasonFits {
			for _, at := range got {
				require.Empty(t, n.GPUs[at].Unhealthy, "a healthy GPU has room")
			}
		}
	})
}
