// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"github.com/gpupack/gpupack/test/bench/report"
)

// What gpupack must reach.
const (
	// leastFaster is how many times as fast as coscheduling a gang is.
	leastFaster = 3.0
	// leastEqual is how fast against the default profile.
	leastEqual = 1.0
	// leastKAI is how many times as fast as what KAI-Scheduler publishes.
	leastKAI = 5.0
)

// What KAI-Scheduler publishes, in seconds, measured on bigger machines than ours.
const (
	kaiGangSeconds    = 48.7
	kaiRunningSeconds = 7*60 + 40
	kaiAfterSeconds   = 6*60 + 38
)

// ratio is a peer's time divided by ours. ours did the same work in less time where it is above 1. A peer that was given up was
// slower than that.
type ratio struct {
	ours, theirs    float64
	oursUp, theirUp bool
	known           bool
}

func (r ratio) value() float64 { return r.theirs / r.ours }

// reached is never true where we were given up.
func (r ratio) reached(least float64) bool { return r.known && !r.oursUp && r.value() >= least }

func (r ratio) String() string {
	switch {
	case !r.known:
		return "not measured"
	case r.oursUp:
		return fmt.Sprintf("gave up after %s", seconds(r.ours))
	case r.theirUp:
		return fmt.Sprintf("more than %.2f times: %s against more than %s", r.value(), seconds(r.ours), seconds(r.theirs))
	}
	return fmt.Sprintf("%.2f times: %s against %s", r.value(), seconds(r.ours), seconds(r.theirs))
}

// short is the ratio alone.
func (r ratio) short() string {
	switch {
	case !r.known:
		return ""
	case r.oursUp:
		return "gave up"
	case r.theirUp:
		return fmt.Sprintf("> %.2f", r.value())
	}
	return fmt.Sprintf("%.2f", r.value())
}

func seconds(s float64) string { return fmt.Sprintf("%.2f s", s) }

func fromLast(s *sample) float64  { return s.fromLast }
func fromFirst(s *sample) float64 { return s.fromFirst }
func gaveUp(s *sample) float64    { return s.gaveUp }

// compare returns the ratio of medians of two runs.
func (r results) compare(ours, theirs key, of func(*sample) float64) ratio {
	a, ok := r.median(ours, of)
	b, ok2 := r.median(theirs, of)
	upA, _ := r.median(ours, gaveUp)
	upB, _ := r.median(theirs, gaveUp)
	return ratio{ours: a, theirs: b, oursUp: upA > 0, theirUp: upB > 0, known: ok && ok2}
}

// published returns the ratio to a published figure.
func (r results) published(ours key, theirs float64) ratio {
	a, ok := r.median(ours, fromFirst)
	up, _ := r.median(ours, gaveUp)
	return ratio{ours: a, theirs: theirs, oursUp: up > 0, known: ok}
}

// goals says which goals of the parts that ran are reached.
func (r results) goals(p *plan) []report.Goal {
	var goals []report.Goal
	add := func(what string, x ratio, least float64) {
		goals = append(goals, report.Goal{What: what, Figure: x.String(), Reached: x.reached(least)})
	}
	for _, part := range p.parts {
		switch part {
		case partGangs:
			size := judged(p)
			for _, nodes := range p.nodes {
				at := func(how way, k kind) key { return key{partGangs, nodes, size, string(how), k} }
				add(fmt.Sprintf("a gang of %d at %d nodes: at least %g times as fast as coscheduling", size, nodes, leastFaster),
					r.compare(at(created, ours), at(created, coscheduling), fromLast), leastFaster)
				add(fmt.Sprintf("a gang of %d at %d nodes: not slower than the default profile with as many single pods", size, nodes),
					r.compare(at(held, ours), at(held, stock), fromFirst), leastEqual)
			}
		case partSingles:
			for _, want := range []int64{wantWhole, wantShare} {
				for _, run := range singleRuns() {
					if run.telemetry == calm && run.how == created {
						continue
					}
					at := func(want int64, k kind) key {
						return key{partSingles, p.singleNodes, p.singles, singleHow(want, run.telemetry, run.how), k}
					}
					name := "whole GPUs"
					if want == wantShare {
						name = "shares"
					}
					add(fmt.Sprintf("single pods with %s at %d nodes, telemetry %s: not slower than the default profile", name, p.singleNodes, run.telemetry),
						r.compare(at(want, ours), at(wantWhole, stock), fromFirst), leastEqual)
				}
			}
		case partContention:
			k := r.find(partContention, ours)
			half, ok := r.worst(k, func(s *sample) float64 { return s.half })
			goals = append(goals, report.Goal{
				What: "contention: no gang is left half placed", Figure: fmt.Sprintf("%.0f in the worst run", half), Reached: ok && half == 0,
			})
		case partKAI:
			add(fmt.Sprintf("one Job of %d pods: at least %g times as fast as KAI-Scheduler", p.kaiMembers, leastKAI),
				r.published(key{partKAI, p.nodes[0], p.kaiMembers, kaiGang, ours}, kaiGangSeconds), leastKAI)
			add(fmt.Sprintf("%d Jobs while the scheduler runs: at least %g times as fast as KAI-Scheduler", p.kaiJobs, leastKAI),
				r.published(key{partKAI, p.nodes[0], p.kaiJobs, kaiRunning, ours}, kaiRunningSeconds), leastKAI)
			add(fmt.Sprintf("%d Jobs, scheduler started afterwards: at least %g times as fast as KAI-Scheduler", p.kaiJobs, leastKAI),
				r.published(key{partKAI, p.nodes[0], p.kaiJobs, kaiAfter, ours}, kaiAfterSeconds), leastKAI)
		}
	}
	return goals
}

// find returns the key of a part that has one only for each scheduler.
func (r results) find(part string, k kind) key {
	for at := range r {
		if at.part == part && at.kind == k {
			return at
		}
	}
	return key{}
}

// worst returns the largest of one figure.
func (r results) worst(k key, of func(*sample) float64) (float64, bool) {
	var values []float64
	for i := range r[k] {
		values = append(values, of(&r[k][i]))
	}
	if len(values) == 0 {
		return 0, false
	}
	return slices.Max(values), true
}
