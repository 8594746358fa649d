// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/gpupack/gpupack/test/bench/report"
)

// report says what was measured.
func (b *bench) report(p *plan, took time.Duration) *report.Report {
	limits := fmt.Sprintf("Every client may make %d requests a second, and %d at once, unless a table says other.", b.limits.qps, b.limits.burst)
	if b.limits.qps == 0 {
		limits = "Every client has the limits of its own configuration."
	}
	r := &report.Report{Intro: fmt.Sprintf("Each run %d times, of which medians are given, on %d processors that the schedulers share with the API server, etcd and the benchmark, in %s. %s",
		b.repeats, runtime.NumCPU(), took.Round(time.Minute), limits)}
	for _, part := range allParts() {
		if !slices.Contains(p.parts, part) {
			continue
		}
		switch part {
		case partGangs:
			for _, nodes := range p.nodes {
				r.Tables = append(r.Tables, b.results.gangTable(nodes, p.sizes))
			}
			r.Tables = append(r.Tables, b.results.ratioTable(p))
		case partLimits:
			r.Tables = append(r.Tables, b.results.limitTable(p))
		case partContention:
			r.Tables = append(r.Tables, b.results.contentionTable(p.nodes[0]))
		case partKAI:
			r.Tables = append(r.Tables, b.results.kaiTable(p))
		case partSingles:
			r.Tables = append(r.Tables, b.results.singleTable(p))
		}
	}
	r.Goals = b.results.goals(p)
	return r
}

// cell is a median, or nothing.
func (r results) cell(k key, format string, of func(*sample) float64) string {
	v, ok := r.median(k, of)
	if !ok {
		return ""
	}
	return fmt.Sprintf(format, v)
}

// time is a median time, with what was given up said so.
func (r results) time(k key, of func(*sample) float64) string {
	text := r.cell(k, "%.2f", of)
	if up, ok := r.median(k, gaveUp); ok && up > 0 {
		return "> " + text
	}
	return text
}

// rate is how many pods are bound a second.
func (r results) rate(k key, of func(*sample) float64) string {
	return r.cell(k, "%.0f", func(s *sample) float64 { return s.bound / of(s) })
}

// costs are the figures of one run that all tables have.
func (r results) costs(k key) []string {
	perPod := func(of func(*sample) float64) func(*sample) float64 {
		return func(s *sample) float64 { return 1000 * of(s) / s.wanted }
	}
	if k.kind == nobody {
		return []string{
			"", r.cell(k, "%.2f", func(s *sample) float64 { return s.serverCPU + s.etcdCPU }),
			"", "", r.cell(k, "%.2f", func(s *sample) float64 { return s.calls }), "",
		}
	}
	return []string{
		r.cell(k, "%.2f", func(s *sample) float64 { return s.cpu }),
		r.cell(k, "%.2f", func(s *sample) float64 { return s.serverCPU + s.etcdCPU }),
		r.cell(k, "%.2f", perPod(func(s *sample) float64 { return s.cycles })),
		r.cell(k, "%.2f", func(s *sample) float64 { return s.attempts / s.wanted }),
		r.cell(k, "%.2f", func(s *sample) float64 { return s.calls }),
		r.cell(k, "%.0f", func(s *sample) float64 { return s.memory }),
	}
}

// costHeader names them.
func costHeader() []string {
	return []string{"CPU s", "CPU s of API server and etcd", "Cycle ms a pod", "Attempts a pod", "Calls a pod", "Peak MiB"}
}

func (r results) gangTable(nodes int, sizes []int) report.Table {
	t := report.Table{
		Title: fmt.Sprintf("Gangs at %d nodes", nodes), LeftColumns: 2,
		Header: append([]string{"Members", "Scheduler", "s from the last", "s from the first", "Pods/s", "Held: s", "Held: pods/s"}, costHeader()...),
	}
	for _, size := range sizes {
		for _, k := range []kind{ours, coscheduling, stock, nobody} {
			at := func(how way) key { return key{partGangs, nodes, size, string(how), k} }
			// Single pods can be bound as soon as the first exists.
			since := fromLast
			if !k.gangs() {
				since = fromFirst
			}
			row := []string{
				fmt.Sprint(size), k.title(), r.time(at(created), fromLast), r.time(at(created), fromFirst), r.rate(at(created), since),
				r.time(at(held), fromFirst), r.rate(at(held), fromFirst),
			}
			t.Add(append(row, r.costs(at(held))...)...)
		}
	}
	return t
}

func (r results) ratioTable(p *plan) report.Table {
	t := report.Table{
		Title: "How many times as fast gpupack is with gangs", LeftColumns: 0,
		Header: []string{"Nodes", "Members", "as coscheduling", "as coscheduling, held", "as the default profile, held",
			"as bindings alone, held", "a scheduler that takes no time: as coscheduling"},
	}
	for _, nodes := range p.nodes {
		for _, size := range p.sizes {
			at := func(how way, k kind) key { return key{partGangs, nodes, size, string(how), k} }
			t.Add(fmt.Sprint(nodes), fmt.Sprint(size),
				r.compare(at(created, ours), at(created, coscheduling), fromLast).short(),
				r.compare(at(held, ours), at(held, coscheduling), fromFirst).short(),
				r.compare(at(held, ours), at(held, stock), fromFirst).short(),
				r.compare(at(held, ours), at(held, nobody), fromFirst).short(),
				r.compare(at(held, nobody), at(created, coscheduling), fromLast).short())
		}
	}
	return t
}

func (r results) limitTable(p *plan) report.Table {
	t := report.Table{
		Title: fmt.Sprintf("Gangs of %d at %d nodes, held, with lower limits of the clients", judged(p), p.nodes[0]), LeftColumns: 2,
		Header: append([]string{"Requests/s, burst", "Scheduler", "s", "Pods/s"}, costHeader()...),
	}
	for _, l := range []limits{stockLimits, shippedLimits} {
		for _, k := range []kind{ours, coscheduling, stock} {
			at := key{partLimits, p.nodes[0], l.qps, fmt.Sprint(judged(p)), k}
			t.Add(append([]string{fmt.Sprintf("%d, %d", l.qps, l.burst), k.title(), r.time(at, fromFirst), r.rate(at, fromFirst)}, r.costs(at)...)...)
		}
	}
	return t
}

func (r results) contentionTable(nodes int) report.Table {
	t := report.Table{
		Title: fmt.Sprintf("Contention: gangs of 8 to 64 members ask for %.0f %% of %d nodes", 100*contentionLoad, nodes), LeftColumns: 1,
		Header: append([]string{"Scheduler", "s until no more is placed", "GPUs allocated, %", "Whole gangs", "Half placed", "Half placed, worst run"}, costHeader()...),
	}
	for _, k := range []kind{ours, coscheduling, stock} {
		at := r.find(partContention, k)
		half := func(s *sample) float64 { return s.half }
		worst, _ := r.worst(at, half)
		row := []string{
			k.title(), r.time(at, fromFirst), r.cell(at, "%.1f", func(s *sample) float64 { return s.allocated }),
			r.cell(at, "%.0f", func(s *sample) float64 { return s.whole }), r.cell(at, "%.0f", half), fmt.Sprintf("%.0f", worst),
		}
		t.Add(append(row, r.costs(at)...)...)
	}
	return t
}

func (r results) kaiTable(p *plan) report.Table {
	t := report.Table{
		Title: fmt.Sprintf("KAI-Scheduler's shapes at %d nodes", p.nodes[0]), LeftColumns: 2,
		Header: append([]string{"Shape", "Scheduler", "s", "Pods created after s", "s after the last pod", "CPU s of the Job controller"}, costHeader()...),
	}
	row := func(shape string, k key) {
		t.Add(append([]string{
			shape, k.kind.title(), r.time(k, fromFirst), r.cell(k, "%.2f", func(s *sample) float64 { return s.creating }), r.time(k, fromLast),
			r.cell(k, "%.2f", func(s *sample) float64 { return s.managerCPU }),
		}, r.costs(k)...)...)
	}
	for _, shape := range []struct {
		text, how string
		pods      int
		published float64
	}{
		{fmt.Sprintf("one Job of %d pods", p.kaiMembers), kaiGang, p.kaiMembers, kaiGangSeconds},
		{fmt.Sprintf("%d Jobs, scheduler running", p.kaiJobs), kaiRunning, p.kaiJobs, kaiRunningSeconds},
		{fmt.Sprintf("%d Jobs, scheduler started afterwards", p.kaiJobs), kaiAfter, p.kaiJobs, kaiAfterSeconds},
	} {
		for _, k := range []kind{ours, stock} {
			row(shape.text, key{partKAI, p.nodes[0], shape.pods, shape.how, k})
		}
		published := make([]string, len(t.Header))
		copy(published, []string{shape.text, "KAI-Scheduler, as published", fmt.Sprintf("%.1f", shape.published)})
		t.Add(published...)
	}
	return t
}

// singleRun is one way in which single pods run.
type singleRun struct {
	telemetry string
	how       way
}

func singleRuns() []singleRun {
	return []singleRun{{calm, held}, {calm, created}, {churnt, created}}
}

func (r results) singleTable(p *plan) report.Table {
	t := report.Table{
		Title: fmt.Sprintf("%d single pods at %d nodes", p.singles, p.singleNodes), LeftColumns: 3,
		Header: append([]string{"Pods want", "Scheduler", "Telemetry, pods", "GPUNodes written/s", "s", "Pods/s"}, costHeader()...),
	}
	for _, run := range singleRuns() {
		for _, row := range []struct {
			what string
			want int64
			kind kind
		}{{"a GPU", wantWhole, ours}, {"half a GPU", wantShare, ours}, {"a GPU", wantWhole, stock}} {
			at := key{partSingles, p.singleNodes, p.singles, singleHow(row.want, run.telemetry, run.how), row.kind}
			t.Add(append([]string{
				row.what, row.kind.title(), run.telemetry + ", " + string(run.how),
				r.cell(at, "%.0f", func(s *sample) float64 { return s.written }), r.time(at, fromFirst), r.rate(at, fromFirst),
			}, r.costs(at)...)...)
		}
	}
	return t
}
