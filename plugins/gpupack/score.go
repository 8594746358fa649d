// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"math"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/pack"
)

// ranking is the outcome of scoring, kept for the decision record.
type ranking struct {
	// scores are 0 to 100.
	scores fwk.NodeScoreList
	// best and second are positions in scores, of which there are two at least.
	best, second int
}

// of returns the score of a node; 100 where there was nothing to compare it with.
func (r *ranking) of(node string) int64 {
	for i := range r.scores {
		if r.scores[i].Name == node {
			return r.scores[i].Score
		}
	}
	return fwk.MaxNodeScore
}

// PreScore skips pods for which there is nothing to compare.
func (p *Plugin) PreScore(_ context.Context, state fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) *fwk.Status {
	c := cycleOf(state)
	if c == nil || c.planned != nil || len(nodes) < 2 {
		return fwk.NewStatus(fwk.Skip)
	}
	return nil
}

// Score rates the node by the packing policy, in milli-GPU. NormalizeScore goes by the exact figure, which is in the cycle's
// choices.
func (p *Plugin) Score(_ context.Context, state fwk.CycleState, _ *corev1.Pod, info fwk.NodeInfo) (int64, *fwk.Status) {
	c := cycleOf(state)
	if c == nil {
		return 0, nil
	}
	n := p.nodeIn(c, info)
	if c.back != nil {
		n = c.back.node(p, info)
	}
	choice, reason := p.chooser.Choose(n, &c.request)
	if reason != pack.ReasonFits {
		// Telemetry has moved since Filter. Without a choice the node comes last, and Reserve would refuse it.
		return 0, nil
	}
	c.choices.Store(info.Node().Name, choice)
	return int64(choice.Score), nil
}

// ScoreExtensions implements fwk.ScorePlugin.
func (p *Plugin) ScoreExtensions() fwk.ScoreExtensions { return p }

// NormalizeScore gives 100 to one node, the policy's favourite, and 0 to 99 to the others in proportion: kube-scheduler would
// draw lots between equals. Of nodes that the policy rates alike, the first by name is the favourite, as in simulations.
func (p *Plugin) NormalizeScore(_ context.Context, state fwk.CycleState, _ *corev1.Pod, scores fwk.NodeScoreList) *fwk.Status {
	c := cycleOf(state)
	if c == nil {
		return nil
	}
	ratings := make([]float64, len(scores))
	lowest := math.Inf(1)
	if c.short != nil {
		// Points are in proportion to all nodes that have room.
		lowest = c.short.lowest
	}
	for i := range scores {
		ratings[i] = math.Inf(-1)
		if choice, ok := c.choices.Load(scores[i].Name); ok {
			ratings[i] = choice.(pack.Choice).Score
			lowest = min(lowest, ratings[i])
		}
	}
	better := func(a, b int) bool {
		return b < 0 || ratings[a] > ratings[b] || ratings[a] == ratings[b] && scores[a].Name < scores[b].Name
	}
	best, second := -1, -1
	for i := range scores {
		switch {
		case better(i, best):
			best, second = i, best
		case better(i, second):
			second = i
		}
	}
	for i := range scores {
		switch {
		case i == best:
			scores[i].Score = fwk.MaxNodeScore
		case math.IsInf(ratings[i], -1):
			scores[i].Score = 0
		case ratings[best] == lowest:
			scores[i].Score = fwk.MaxNodeScore - 1
		default:
			scores[i].Score = int64(math.Round(float64(fwk.MaxNodeScore-1) * (ratings[i] - lowest) / (ratings[best] - lowest)))
		}
	}
	*c.ranking = ranking{scores: scores, best: best, second: second}
	return nil
}
