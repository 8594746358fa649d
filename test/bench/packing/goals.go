// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gpupack/gpupack/pack/sim"
	"github.com/gpupack/gpupack/test/bench/artifact"
	"github.com/gpupack/gpupack/test/bench/report"
)

// What gpupack must reach. Points are of the percentage of all GPUs, in the mean of the seeds.
const (
	mostOfFGD        = 0.75 // of what FGD leaves unallocated, over all traces
	mostBelowFGD     = 0.2  // points on any trace
	mostBelowGiven   = 0.3  // points with classes learned, on any trace
	leastWithDefrag  = 98   // percent allocated in the end
	mostFromArtifact = 0.4  // points, of each peer
)

// figures are means over the seeds, in percent of all GPUs.
type figures struct{ a95, a100, final float64 }

func (f figures) list() []float64 { return []float64{f.a95, f.a100, f.final} }

// figureNames are those of figures.list.
var figureNames = []string{"a95", "a100", "final"}

func mean(results []sim.Result) figures {
	var f figures
	for i := range results {
		f.a95 += results[i].A95 / float64(len(results))
		f.a100 += results[i].A100 / float64(len(results))
		f.final += results[i].Final / float64(len(results))
	}
	return f
}

// unallocated is the mean over the traces of what a policy leaves unallocated in the end.
func (o *outcome) unallocated(policy string, online bool) (float64, bool) {
	var sum float64
	for _, trace := range o.plan.traces {
		results := o.results[setting{trace: trace, policy: policy, online: online}]
		if len(results) == 0 {
			return 0, false
		}
		sum += 100 - mean(results).final
	}
	return sum / float64(len(o.plan.traces)), true
}

// gap is how far a figure on a trace is below, or from, what it is compared with.
type gap struct {
	points float64
	what   string
}

// widest returns the gaps that are wider than allowed, or the widest if none is.
func widest(gaps []gap, most float64) (wide []gap, reached bool) {
	slices.SortStableFunc(gaps, func(a, b gap) int { return cmp.Compare(b.points, a.points) })
	beyond := 0
	for beyond < len(gaps) && gaps[beyond].points > most+roundingError {
		beyond++
	}
	return gaps[:max(1, beyond)], beyond == 0
}

// roundingError is how much a mean of percentages may be off.
const roundingError = 1e-9

// list prints gaps, those of figures that are below with a minus.
func list(gaps []gap) string {
	cells := make([]string, len(gaps))
	for i, g := range gaps {
		cells[i] = fmt.Sprintf("%s %+.2f", g.what, -g.points)
	}
	return strings.Join(cells, ", ")
}

// goals says of each goal that could be measured whether it is reached.
func (o *outcome) goals() []report.Goal {
	var goals []report.Goal
	add := func(reached bool, what, figure string) {
		goals = append(goals, report.Goal{What: what, Figure: figure, Reached: reached})
	}
	ours, ok := o.unallocated("gpupack", false)
	fgds, ok2 := o.unallocated("fgd", false)
	if ok && ok2 {
		add(ours <= mostOfFGD*fgds+roundingError,
			fmt.Sprintf("unallocated in the end, mean of the traces: at most %g of fgd's", mostOfFGD),
			fmt.Sprintf("%.4f (%.2f of %.2f %%)", ours/fgds, ours, fgds))
		gaps, reached := widest(o.gaps(setting{policy: "gpupack"}, setting{policy: "fgd"}), mostBelowFGD)
		add(reached, fmt.Sprintf("a95, a100 and final on each trace: at most %g points below fgd's", mostBelowFGD), list(gaps))
	}
	if _, ok2 := o.unallocated("gpupack", true); ok && ok2 {
		gaps, reached := widest(o.gaps(setting{policy: "gpupack", online: true}, setting{policy: "gpupack"}), mostBelowGiven)
		add(reached, fmt.Sprintf("a95, a100 and final on each trace with classes learned online: at most %g points below those with classes given", mostBelowGiven), list(gaps))
	}
	if results := o.results[setting{trace: "default", policy: "gpupack", budget: defragBudget}]; len(results) > 0 {
		moved := mostMoved(results)
		final := mean(results).final
		add(final >= leastWithDefrag-roundingError && moved <= 100*defragBudget,
			fmt.Sprintf("final on default with at most %g %% of all tasks moved: at least %d %%", 100*defragBudget, leastWithDefrag),
			fmt.Sprintf("%.2f %%, with %.2f %% moved at most", final, moved))
	}
	if gaps := o.fromArtifact(); len(gaps) > 0 {
		gaps, reached := widest(gaps, mostFromArtifact)
		cells := make([]string, len(gaps))
		for i, g := range gaps {
			cells[i] = fmt.Sprintf("%s %.2f", g.what, g.points)
		}
		add(reached, fmt.Sprintf("final of each peer, and a95 and a100 of fgd, on each trace: at most %g points from what the artifact's authors report", mostFromArtifact), strings.Join(cells, ", "))
	}
	return goals
}

// gaps are how far the figures of one setting are below those of another, by trace.
func (o *outcome) gaps(a, b setting) []gap {
	var gaps []gap
	for _, trace := range o.plan.traces {
		a.trace, b.trace = trace, trace
		of, against := mean(o.results[a]).list(), mean(o.results[b]).list()
		for i, name := range figureNames {
			gaps = append(gaps, gap{against[i] - of[i], name + " on " + trace})
		}
	}
	return gaps
}

// fromArtifact are how far the peers are from what the artifact's authors report.
func (o *outcome) fromArtifact() []gap {
	var gaps []gap
	for _, trace := range o.plan.traces {
		for _, policy := range artifact.Policies() {
			a95, a100, final, ok := artifact.Published(trace, policy)
			results := o.results[setting{trace: trace, policy: policy}]
			if !ok || len(results) == 0 || o.plan.load != artifact.Load {
				continue
			}
			f := mean(results)
			gaps = append(gaps, gap{math.Abs(f.final - final), fmt.Sprintf("final of %s on %s", policy, trace)})
			if policy == "fgd" {
				gaps = append(gaps, gap{math.Abs(f.a95 - a95), "a95 of fgd on " + trace}, gap{math.Abs(f.a100 - a100), "a100 of fgd on " + trace})
			}
		}
	}
	return gaps
}

// mostMoved is the largest part of the tasks that was moved, in percent.
func mostMoved(results []sim.Result) float64 {
	var most float64
	for i := range results {
		most = max(most, 100*float64(results[i].Moved)/float64(results[i].Tasks))
	}
	return most
}
