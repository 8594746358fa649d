// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"

	"github.com/gpupack/gpupack/pack"
)

const (
	// firstTries are looked for without sorting all nodes; mostly the best two of them do.
	firstTries = 8
	// mostTries bounds the nodes that are asked about one after the other. Where more than that are ruled out by other plugins,
	// the cycle had better ask about all, on all processors.
	mostTries = 256
)

// shortlist says which nodes a cycle has to look at, and what it would have found at the others.
type shortlist struct {
	// states of the nodes by name, so that telemetry that comes within the cycle does not rule them out.
	states map[string]*nodeState
	// lowest score of a node that has room.
	lowest float64
	// feasible is how many nodes have room.
	feasible int
}

// shortlist finds the node that scoring all nodes would choose for the pod, and the runner-up, or the only node that there is. It
// returns nil where that needs all nodes to be looked at: none suits the pod, or others' scores count beside the packing.
//
// The policy's favourite has all points that GPUPack gives, and no other node has. It is chosen for certain if no other plugin
// tells nodes apart, which is so if all of them skip scoring the pod.
func (p *Plugin) shortlist(ctx context.Context, c *cycle, pod *corev1.Pod, x *index) *shortlist {
	fw, ok := p.handle.(framework.Framework)
	if !ok || !c.request.WantsGPU() || prefers(pod) || pod.Status.NominatedNodeName != "" || len(fw.Extenders()) > 0 {
		return nil
	}
	s, ok := p.standing(x, &c.request)
	if !ok {
		return nil
	}
	r, planned := &c.request, p.ledger.anyPlanned()
	list := &shortlist{states: map[string]*nodeState{}, lowest: math.Inf(1)}
	count := s.count
	var best [firstTries]int
	found := 0
	for i, reason := range s.reasons {
		if reason != pack.ReasonFits {
			continue
		}
		if lacks := x.lacks(i, r, planned); lacks != pack.ReasonFits {
			count[lacks]++
			continue
		}
		list.feasible++
		list.lowest = min(list.lowest, s.scores[i])
		if found == firstTries && !x.before(s, i, best[found-1]) {
			continue
		}
		if found < firstTries {
			found++
		}
		at := found - 1
		for ; at > 0 && x.before(s, i, best[at-1]); at-- {
			best[at] = best[at-1]
		}
		best[at] = i
	}
	if found == 0 {
		return nil
	}

	state := framework.NewCycleState()
	state.Write(planningKey, planningMark{filter: true})
	state.Write(cycleKey, c.Clone())
	only, status, _ := fw.RunPreFilterPlugins(ctx, state, pod)
	if !status.IsSuccess() {
		return nil
	}
	var chosen []fwk.NodeInfo
	try := func(positions []int) {
		for _, i := range positions {
			if len(chosen) == 2 {
				return
			}
			info := x.infos[i]
			if !only.AllNodes() && !only.NodeNames.Has(info.Node().Name) ||
				!fw.RunFilterPluginsWithNominatedPods(ctx, state, pod, info).IsSuccess() {
				list.feasible--
				continue
			}
			chosen = append(chosen, info)
			list.states[info.Node().Name] = x.states[i]
		}
	}
	try(best[:found])
	if len(chosen) < 2 && found == firstTries {
		rest := x.rest(s, r, planned, best[:])
		try(rest[:min(len(rest), mostTries)])
		if len(chosen) < 2 && len(rest) > mostTries {
			return nil
		}
	}
	switch len(chosen) {
	case 0:
		return nil
	case 2:
		if !onlyPacking(ctx, fw, state, pod, chosen) {
			return nil
		}
	}
	for reason, n := range count {
		if pack.Reason(reason) != pack.ReasonFits {
			c.rejected[reason].Store(int32(n))
		}
	}
	return list
}

// names are the nodes of the list.
func (l *shortlist) names() sets.Set[string] { return sets.KeySet(l.states) }

// before says whether the node at position i is to be taken before the one at position j: it has the better score, or the same
// and the name that comes first.
func (x *index) before(s *standing, i, j int) bool {
	a, b := s.scores[i], s.scores[j]
	return a > b || a == b && x.rank[i] < x.rank[j]
}

// rest are the nodes that have room, best first, without those that come first.
func (x *index) rest(s *standing, r *pack.Request, planned bool, first []int) []int {
	var rest []int
	last := first[len(first)-1]
	for i, reason := range s.reasons {
		if reason == pack.ReasonFits && x.before(s, last, i) && x.lacks(i, r, planned) == pack.ReasonFits {
			rest = append(rest, i)
		}
	}
	slices.SortFunc(rest, func(i, j int) int {
		if x.before(s, i, j) {
			return -1
		}
		return 1
	})
	return rest
}

// lacks says what the host of the node surely lacks. Where a plan holds places, that is what Filter says; else NodeResourcesFit is
// asked in the end, which counts memory in bytes and not in MiB.
func (x *index) lacks(i int, r *pack.Request, planned bool) pack.Reason {
	var slack int64
	if !planned {
		slack = 1
	}
	switch {
	case r.CPUMilli > x.cpu[i] && (planned || r.CPUMilli > 0):
		return pack.ReasonCPU
	case r.MemoryMiB-slack > x.memory[i] && (planned || r.MemoryMiB > 0):
		return pack.ReasonHostMemory
	}
	return pack.ReasonFits
}

// prefers says whether the pod likes some nodes more than others.
func prefers(pod *corev1.Pod) bool {
	for i := range pod.Spec.TopologySpreadConstraints {
		if pod.Spec.TopologySpreadConstraints[i].WhenUnsatisfiable == corev1.ScheduleAnyway {
			return true
		}
	}
	a := pod.Spec.Affinity
	return a != nil && (a.NodeAffinity != nil && len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 ||
		a.PodAffinity != nil && len(a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 ||
		a.PodAntiAffinity != nil && len(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0)
}

// onlyPacking says whether the first of the nodes has the most points of every plugin but GPUPack: the plugin skips scoring the
// pod, or nothing that it counts is there. Which plugins skip does not depend on the nodes.
func onlyPacking(ctx context.Context, fw framework.Framework, state fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) bool {
	if !fw.RunPreScorePlugins(ctx, state, pod, nodes).IsSuccess() {
		return false
	}
	taints := nodes[0].Node().Spec.Taints
	for _, plugin := range fw.ListPlugins().Score.Enabled {
		switch name := plugin.Name; {
		case name == Name, state.GetSkipScorePlugins().Has(name):
		case name == names.TaintToleration && !slices.ContainsFunc(taints, func(t corev1.Taint) bool {
			return t.Effect == corev1.TaintEffectPreferNoSchedule
		}):
		case name == names.DynamicResources && state.GetSkipFilterPlugins().Has(name):
			// It rates claims, of which the pod has none.
		default:
			return false
		}
	}
	return true
}
