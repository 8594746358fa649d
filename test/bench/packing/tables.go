// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/gpupack/gpupack/pack/sim"
	"github.com/gpupack/gpupack/test/bench/artifact"
	"github.com/gpupack/gpupack/test/bench/report"
)

// report says what was measured.
func (o *outcome) report() *report.Report {
	r := &report.Report{Intro: fmt.Sprintf("%d nodes with %d GPUs; seeds %d to %d; load %g. Percent of all GPUs allocated when the arrivals had asked for 95 %% "+
		"(a95) and 100 %% (a100) of the GPUs, and at the end (final); mean, least and most of the seeds.",
		o.nodes, o.gpus, firstSeed, firstSeed+o.plan.seeds-1, o.plan.load)}
	o.sortPolicies()
	for _, trace := range o.plan.traces {
		t := figureTable("Trace "+trace, "Policy")
		for _, policy := range o.plan.policies {
			addFigures(&t, policy, o.results[setting{trace: trace, policy: policy}])
		}
		r.Tables = append(r.Tables, t)
	}
	online := figureTable("Classes learned from the arrivals", "Policy, trace")
	for _, policy := range o.plan.policies {
		for _, trace := range o.plan.traces {
			addFigures(&online, policy+", "+trace, o.results[setting{trace: trace, policy: policy, online: true}])
		}
	}
	r.Tables = append(r.Tables, online, o.defragTable(), o.sumTable(), o.artifactTable())
	r.Tables = slices.DeleteFunc(r.Tables, func(t report.Table) bool { return len(t.Rows) == 0 })
	r.Goals = o.goals()
	return r
}

// sortPolicies puts those first that leave least unallocated.
func (o *outcome) sortPolicies() {
	key := func(policy string) float64 {
		v, _ := o.unallocated(policy, false)
		return v
	}
	slices.SortStableFunc(o.plan.policies, func(a, b string) int { return cmp.Compare(key(a), key(b)) })
}

func figureTable(title, first string) report.Table {
	t := report.Table{Title: title, Header: []string{first}, LeftColumns: 1}
	for _, name := range figureNames {
		t.Header = append(t.Header, name, "least", "most")
	}
	return t
}

func addFigures(t *report.Table, name string, results []sim.Result) {
	if len(results) == 0 {
		return
	}
	least := figures{math.Inf(1), math.Inf(1), math.Inf(1)}
	var most figures
	for i := range results {
		x := &results[i]
		least = figures{min(least.a95, x.A95), min(least.a100, x.A100), min(least.final, x.Final)}
		most = figures{max(most.a95, x.A95), max(most.a100, x.A100), max(most.final, x.Final)}
	}
	row := []string{name}
	for i, m := range mean(results).list() {
		row = append(row, percent(m), percent(least.list()[i]), percent(most.list()[i]))
	}
	t.Add(row...)
}

func percent(v float64) string { return fmt.Sprintf("%.2f", v) }

func (o *outcome) defragTable() report.Table {
	t := figureTable(fmt.Sprintf("Trace default, with at most %g %% of all tasks moved", 100*defragBudget), "Policy")
	t.Header = append(t.Header, "moved, %, most")
	if results := o.results[setting{trace: "default", policy: "gpupack", budget: defragBudget}]; len(results) > 0 {
		addFigures(&t, "gpupack", results)
		t.Rows[0] = append(t.Rows[0], percent(mostMoved(results)))
	}
	return t
}

// sumTable compares the policies over all traces.
func (o *outcome) sumTable() report.Table {
	t := report.Table{
		Title:  "All traces",
		Header: []string{"Policy", "Unallocated at the end, %", "To fgd's", "With classes learned, %", "One run on default, alone on one core, s"}, LeftColumns: 1,
	}
	fgds, compared := o.unallocated("fgd", false)
	for _, policy := range o.plan.policies {
		row := []string{policy, "", "", "", ""}
		v, ok := o.unallocated(policy, false)
		if ok {
			row[1] = percent(v)
		}
		if ok && compared {
			row[2] = fmt.Sprintf("%.3f", v/fgds)
		}
		if v, ok := o.unallocated(policy, true); ok {
			row[3] = percent(v)
		}
		if s, ok := o.seconds[policy]; ok {
			row[4] = percent(s)
		}
		if slices.ContainsFunc(row[1:], func(cell string) bool { return cell != "" }) {
			t.Add(row...)
		}
	}
	return t
}

// artifactTable compares the peers with what the artifact's authors report.
func (o *outcome) artifactTable() report.Table {
	t := report.Table{
		Title:  "Peers against what the authors of the FGD paper's artifact report",
		Header: []string{"Trace", "Policy", "Reported a95", "Ours", "Reported a100", "Ours", "Reported final", "Ours"}, LeftColumns: 2,
	}
	if o.plan.artifact {
		t.Header = append(t.Header, "Repeated a95", "a100", "final")
	}
	for _, trace := range o.plan.traces {
		for _, policy := range artifact.Policies() {
			a95, a100, final, ok := artifact.Published(trace, policy)
			results := o.results[setting{trace: trace, policy: policy}]
			repeated := o.results[setting{trace: trace, policy: policy, artifact: true}]
			if !ok || len(results)+len(repeated) == 0 || o.plan.load != artifact.Load {
				continue
			}
			row := []string{trace, policy, percent(a95), "", percent(a100), "", percent(final), ""}
			if len(results) > 0 {
				for i, v := range mean(results).list() {
					row[3+2*i] = percent(v)
				}
			}
			if o.plan.artifact {
				for _, v := range mean(repeated).list() {
					row = append(row, percent(v))
				}
			}
			t.Add(row...)
		}
	}
	return t
}
