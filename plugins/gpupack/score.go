// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"cmp"
	"context"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/pack"
)

// ranking is the outcome of scoring, kept for the decision record.
type ranking struct {
	best, second fwk.NodeScore
	feasible     int
}

// PreScore skips pods for which there is nothing to compare.
func (p *Plugin) PreScore(_ context.Context, state fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) *fwk.Status {
	c := cycleOf(state)
	if c == nil || c.planned != nil || len(nodes) < 2 {
		return fwk.NewStatus(fwk.Skip)
	}
	return nil
}

// scoreUnit is the resolution of a raw score: millionths of a milli-GPU.
const scoreUnit = 1e6

// Score rates the node by the packing policy. The result is raw; NormalizeScore brings it to 0 to 100.
func (p *Plugin) Score(_ context.Context, state fwk.CycleState, _ *corev1.Pod, info fwk.NodeInfo) (int64, *fwk.Status) {
	c := cycleOf(state)
	if c == nil {
		return 0, nil
	}
	choice, reason := p.chooser.Choose(p.node(info), &c.request)
	if reason != pack.ReasonFits {
		// Telemetry has moved since Filter. Reserve would refuse the node; make it the last choice.
		return math.MinInt64 / 2, nil
	}
	c.choices.Store(info.Node().Name, choice)
	return int64(choice.Score * scoreUnit), nil
}

// ScoreExtensions implements fwk.ScorePlugin.
func (p *Plugin) ScoreExtensions() fwk.ScoreExtensions { return p }

// NormalizeScore gives the best node 100 and the others 0 to 99 in proportion, so that nearly equal nodes stay apart. Among
// equals the first by name wins, which makes decisions repeatable.
func (p *Plugin) NormalizeScore(_ context.Context, state fwk.CycleState, _ *corev1.Pod, scores fwk.NodeScoreList) *fwk.Status {
	if len(scores) == 0 {
		return nil
	}
	order := make([]int, len(scores))
	lowest := int64(math.MaxInt64)
	for i := range scores {
		order[i] = i
		if scores[i].Score > math.MinInt64/2 {
			lowest = min(lowest, scores[i].Score)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(scores[b].Score, scores[a].Score), cmp.Compare(scores[a].Name, scores[b].Name))
	})
	best := scores[order[0]].Score
	spread := float64(best) - float64(lowest)
	for i := range scores {
		switch {
		case i == order[0]:
			scores[i].Score = fwk.MaxNodeScore
		case spread <= 0:
			scores[i].Score = fwk.MaxNodeScore - 1
		default:
			scores[i].Score = int64(math.Round(float64(fwk.MaxNodeScore-1) * max(0, float64(scores[i].Score)-float64(lowest)) / spread))
		}
	}
	if c := cycleOf(state); c != nil {
		c.ranking.best, c.ranking.feasible = scores[order[0]], len(scores)
		if len(order) > 1 {
			c.ranking.second = scores[order[1]]
		}
	}
	return nil
}
