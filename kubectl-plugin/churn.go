// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"context"
	"fmt"
	"io"
	"math"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/gpupack/gpupack/pack/sim"
)

// Churns is what kubectl gpupack simulate --churn prints with -o json. Percentages are of all GPUs unless said otherwise, means over
// time; delays are in seconds.
type Churns struct {
	Policies []PolicyChurns `json:"policies"`
}

// PolicyChurns is how one policy did.
type PolicyChurns struct {
	Policy string  `json:"policy"`
	Runs   []Churn `json:"runs"`
	// Mean is that of the runs, and of no single one.
	Mean ChurnFigures `json:"mean"`
}

// Churn is one run.
type Churn struct {
	Seed         uint64 `json:"seed"`
	ChurnFigures `json:",inline"`
	Seconds      float64 `json:"seconds"`
}

// ChurnFigures are what was measured.
type ChurnFigures struct {
	// Hours that were measured.
	Hours float64 `json:"hours"`
	// Offered is what would be in use if each task started when it came; Allocated is what was.
	Offered   float64 `json:"offered"`
	Allocated float64 `json:"allocated"`
	// Fragmented is free, but of no use to the mean task with GPUs; Fragmentation is the same in percent of the free GPUs.
	Fragmented    float64 `json:"fragmented"`
	Fragmentation float64 `json:"fragmentation"`
	// All tasks, and the Large of them: of four GPUs or more or, where the trace has none, the largest twentieth.
	All   ChurnDelays `json:"all"`
	Large ChurnDelays `json:"large"`
}

// ChurnDelays are how long tasks waited for a place, in seconds.
type ChurnDelays struct {
	Tasks float64 `json:"tasks"`
	// Waiting had no place at the end.
	Waiting float64 `json:"waiting"`
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
}

// churn is the replay of tasks that come and leave.
type churn struct {
	runs
	load, timeScale, passes float64
	reserveAfter            time.Duration

	// results by policy and seed.
	results [][]sim.ChurnResult
}

func (c *churn) run(ctx context.Context, stderr io.Writer) (err error) {
	c.results, err = runAll(ctx, &c.runs, stderr, func(ctx context.Context, policy string, seed uint64, progress func(int, int)) (sim.ChurnResult, error) {
		return sim.Churn(ctx, c.in, sim.ChurnOptions{
			Policy: policy, Seed: seed, Load: c.load, TimeScale: c.timeScale, Distribution: c.distribution,
			ReserveAfter: c.reserveAfter.Seconds(), Passes: c.passes, Progress: progress,
		})
	})
	return err
}

// churns is the results as an object.
func (c *churn) churns() *Churns {
	out := &Churns{Policies: make([]PolicyChurns, len(c.policies))}
	for p, policy := range c.policies {
		of := PolicyChurns{Policy: policy, Runs: make([]Churn, len(c.seeds))}
		for s := range c.results[p] {
			r := &c.results[p][s]
			of.Runs[s] = Churn{Seed: r.Seed, Seconds: r.Seconds, ChurnFigures: ChurnFigures{
				Hours: r.Hours, Offered: r.Offered, Allocated: r.Allocated, Fragmented: r.Fragmented, Fragmentation: r.Fragmentation,
				All: churnDelays(&r.All), Large: churnDelays(&r.Large),
			}}
		}
		of.Mean = meanFigures(of.Runs)
		out.Policies[p] = of
	}
	return out
}

func churnDelays(d *sim.Delays) ChurnDelays {
	return ChurnDelays{float64(d.Tasks), float64(d.Waiting), d.P50, d.P99, d.Max}
}

// figures are all figures, in one order.
func (f *ChurnFigures) figures() []*float64 {
	out := []*float64{&f.Hours, &f.Offered, &f.Allocated, &f.Fragmented, &f.Fragmentation}
	for _, d := range []*ChurnDelays{&f.All, &f.Large} {
		out = append(out, &d.Tasks, &d.Waiting, &d.P50, &d.P99, &d.Max)
	}
	return out
}

func meanFigures(runs []Churn) ChurnFigures {
	var mean ChurnFigures
	sums := mean.figures()
	for i := range runs {
		for j, figure := range runs[i].figures() {
			*sums[j] += *figure / float64(len(runs))
		}
	}
	return mean
}

// print writes the results.
func (c *churn) print(w io.Writer, out *output) error {
	churns := c.churns()
	if out.format == "json" || out.format == "yaml" {
		return printData(w, out.format, churns)
	}
	delay := func(seconds float64) cell {
		return text(duration.HumanDuration(time.Duration(math.Round(seconds)) * time.Second))
	}
	t := table{columns: []column{
		{titles: []string{"POLICY"}},
		{titles: []string{"ALLOCATED"}, right: true},
		{titles: []string{"FRAGMENTED"}, right: true},
		{titles: []string{"FRAGMENTATION"}, right: true, wide: true},
		{titles: []string{"P50"}, right: true},
		{titles: []string{"P99"}, right: true},
		{titles: []string{"MAX"}, right: true, wide: true},
		{titles: []string{"WAITING"}, right: true},
		{titles: []string{"LARGE-P50"}, right: true},
		{titles: []string{"LARGE-P99"}, right: true},
		{titles: []string{"LARGE-MAX"}, right: true, wide: true},
		{titles: []string{"LARGE-WAITING"}, right: true},
		{titles: []string{"SECONDS"}, right: true},
	}}
	for i := range churns.Policies {
		p := &churns.Policies[i]
		var seconds float64
		for j := range p.Runs {
			seconds += p.Runs[j].Seconds / float64(len(p.Runs))
		}
		m := &p.Mean
		t.rows = append(t.rows, []cell{
			text(p.Policy), decimals(2, m.Allocated), decimals(2, m.Fragmented), decimals(2, m.Fragmentation), delay(m.All.P50), delay(m.All.P99),
			delay(m.All.Max), decimals(0, m.All.Waiting), delay(m.Large.P50), delay(m.Large.P99), delay(m.Large.Max), decimals(0, m.Large.Waiting),
			decimals(2, seconds),
		})
	}
	sc := newScreen(w)
	t.print(sc, out.wide(), out.noHeaders)
	if out.noHeaders {
		return nil
	}
	line := func(format string, args ...any) { fmt.Fprintln(sc, wrap(fmt.Sprintf(format, args...), sc.width)) }
	m := &churns.Policies[0].Mean
	fmt.Fprintln(sc)
	how := fmt.Sprintf("load %g, time scale %g", c.load, c.timeScale)
	if c.reserveAfter > 0 {
		how += fmt.Sprintf(", places kept after %s", duration.HumanDuration(c.reserveAfter))
	}
	fmt.Fprintln(sc, wrap(c.foot(how, ""), sc.width))
	line("Over %.0f hours, %.0f tasks came, %.0f of them large. They would have used %.2f %% of the GPUs if each had started when it came.",
		m.Hours, m.All.Tasks, m.Large.Tasks, m.Offered)
	fmt.Fprintln(sc, wrap("ALLOCATED and FRAGMENTED (free, but of no use to the mean task with GPUs) are percent of the GPUs, means over time. "+
		"P50 and P99 are delays until a task has a place; WAITING had none at the end.", sc.width))
	return nil
}
