// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strconv"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/kubectl-plugin/report"
	"github.com/gpupack/gpupack/pack/sim"
)

// Replays is what kubectl gpupack simulate prints of the replay of a trace with -o json.
type Replays struct {
	Policies []PolicyReplays `json:"policies"`
}

// PolicyReplays is how one policy did.
type PolicyReplays struct {
	Policy string `json:"policy"`
	// Runs are by seed, in the order in which these were given.
	Runs []Replay    `json:"runs"`
	Mean Allocations `json:"mean"`
}

// Replay is one run.
type Replay struct {
	Seed        uint64 `json:"seed"`
	Allocations `json:",inline"`
	// Tasks arrived, of which Unscheduled found no place.
	Tasks       int `json:"tasks"`
	Unscheduled int `json:"unscheduled"`
	// Moved counts the tasks that defragmentation moved.
	Moved   int     `json:"moved"`
	Seconds float64 `json:"seconds"`
}

// Allocations are what of all GPUs is allocated, percent: when what the arrivals asked for reached 95 % and 100 % of the GPUs, and at
// the end.
type Allocations struct {
	A95   float64 `json:"a95"`
	A100  float64 `json:"a100"`
	Final float64 `json:"final"`
}

// replay is the replay of tasks that come and never leave.
type replay struct {
	runs
	load         float64
	defragBudget float64
	// detail asks for the details of each policy's first run, which a page shows.
	detail bool
	// title and command are what a page says of itself.
	title, command string

	// results by policy and seed.
	results [][]sim.Result
}

// runs is a trace, and under which policies and with which seeds to replay it.
type runs struct {
	in sim.Input
	// files are where it comes from.
	files        string
	policies     []string
	seeds        []uint64
	distribution string
}

// one runs under one policy with one seed.
type one[R any] func(ctx context.Context, policy string, seed uint64, progress func(done, total int)) (R, error)

// runAll runs under each policy with each seed, side by side, and returns the results by policy and seed. They do not depend on
// how many run at a time.
func runAll[R any](ctx context.Context, r *runs, stderr io.Writer, run one[R]) ([][]R, error) {
	bar := newProgress(stderr, len(r.policies)*len(r.seeds), progressDelay)
	defer bar.stop()
	side, ctx := errgroup.WithContext(ctx)
	side.SetLimit(runtime.GOMAXPROCS(0))
	out := make([][]R, len(r.policies))
	for p, policy := range r.policies {
		out[p] = make([]R, len(r.seeds))
		for s, seed := range r.seeds {
			progress := bar.of(p*len(r.seeds) + s)
			side.Go(func() (err error) {
				out[p][s], err = run(ctx, policy, seed, progress)
				if err != nil && ctx.Err() == nil {
					return fmt.Errorf("%s: %w", r.files, err)
				}
				return err
			})
		}
	}
	return out, side.Wait()
}

// run replays the arrivals.
func (r *replay) run(ctx context.Context, stderr io.Writer) (err error) {
	r.results, err = runAll(ctx, &r.runs, stderr, func(ctx context.Context, policy string, seed uint64, progress func(int, int)) (sim.Result, error) {
		return sim.Run(ctx, r.in, sim.Options{
			Policy: policy, Seed: seed, Load: r.load, Distribution: r.distribution, DefragBudget: r.defragBudget,
			Detail: r.detail && seed == r.seeds[0], Progress: progress,
		})
	})
	return err
}

// replays is the results as an object.
func (r *replay) replays() *Replays {
	out := &Replays{Policies: make([]PolicyReplays, len(r.policies))}
	for p, policy := range r.policies {
		of := PolicyReplays{Policy: policy, Runs: make([]Replay, len(r.seeds))}
		for s := range r.results[p] {
			res := &r.results[p][s]
			of.Runs[s] = Replay{Seed: res.Seed, Allocations: Allocations{res.A95, res.A100, res.Final}, Tasks: res.Tasks,
				Unscheduled: res.Unscheduled, Moved: res.Moved, Seconds: res.Seconds}
		}
		of.Mean = Allocations{
			A95:   of.mean(func(r *Replay) float64 { return r.A95 }),
			A100:  of.mean(func(r *Replay) float64 { return r.A100 }),
			Final: of.mean(func(r *Replay) float64 { return r.Final }),
		}
		out.Policies[p] = of
	}
	return out
}

func (p *PolicyReplays) mean(of func(*Replay) float64) float64 {
	var sum float64
	for i := range p.Runs {
		sum += of(&p.Runs[i])
	}
	return sum / float64(len(p.Runs))
}

// print writes the results.
func (r *replay) print(w io.Writer, out *output) error {
	replays := r.replays()
	switch out.format {
	case "json", "yaml":
		return printData(w, out.format, replays)
	case formatHTML:
		page := &report.Report{Title: r.title, Command: r.command, Input: r.in, Load: r.load, Seeds: r.seeds,
			Distribution: r.distribution, DefragBudget: r.defragBudget}
		for p, policy := range r.policies {
			page.Policies = append(page.Policies, report.Policy{Name: policy, Runs: r.results[p]})
		}
		var b bytes.Buffer
		if err := report.HTML(&b, page); err != nil {
			return err
		}
		_, err := b.WriteTo(w)
		return err
	}
	r.printTable(newScreen(w), replays, out)
	return nil
}

// printData prints what is no object of an API, in the order of its fields.
func printData(w io.Writer, format string, data any) error {
	text, err := json.MarshalIndent(data, "", "    ")
	if err == nil && format == "yaml" {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", bytes.TrimSpace(text))
	return err
}

// decimals is a number with so many of them.
func decimals(n int, f float64) cell { return text(strconv.FormatFloat(f, 'f', n, 64)) }

func (r *replay) printTable(sc screen, replays *Replays, out *output) {
	several := len(r.seeds) > 1
	t := table{columns: []column{
		{titles: []string{"POLICY"}},
		{titles: []string{"A95"}, right: true},
		{titles: []string{"A100"}, right: true},
		{titles: []string{"FINAL"}, right: true},
		{titles: []string{"MIN"}, right: true, wide: !several},
		{titles: []string{"MAX"}, right: true, wide: !several},
		{titles: []string{"TASKS"}, right: true},
		{titles: []string{"UNSCHEDULED"}, right: true},
		{titles: []string{"MOVED"}, right: true},
		{titles: []string{"SECONDS"}, right: true},
	}}
	for i := range replays.Policies {
		p := &replays.Policies[i]
		least, most := p.Runs[0].Final, p.Runs[0].Final
		for j := range p.Runs {
			least, most = min(least, p.Runs[j].Final), max(most, p.Runs[j].Final)
		}
		t.rows = append(t.rows, []cell{
			text(p.Policy), decimals(2, p.Mean.A95), decimals(2, p.Mean.A100), decimals(2, p.Mean.Final), decimals(2, least), decimals(2, most),
			decimals(0, p.mean(func(r *Replay) float64 { return float64(r.Tasks) })),
			decimals(0, p.mean(func(r *Replay) float64 { return float64(r.Unscheduled) })),
			decimals(0, p.mean(func(r *Replay) float64 { return float64(r.Moved) })),
			decimals(2, p.mean(func(r *Replay) float64 { return r.Seconds })),
		})
	}
	t.print(sc, out.wide(), out.noHeaders)
	if out.noHeaders {
		return
	}
	fmt.Fprintln(sc)
	printLine(sc, "%s", wrap(r.foot(fmt.Sprintf("load %g", r.load), ", MIN and MAX of FINAL"), sc.width))
	printLine(sc, "%s", wrap("Percent of the GPUs allocated when the tasks that arrived had asked for 95 % and 100 % of them, and at the end.",
		sc.width))
}

// foot says what was run, and how. spread is what of the table is not a mean.
func (r *runs) foot(how, spread string) string {
	gpus := 0
	for i := range r.in.Nodes {
		gpus += r.in.Nodes[i].GPUs
	}
	over := fmt.Sprintf("with seed %d", r.seeds[0])
	if len(r.seeds) > 1 {
		over = fmt.Sprintf("means over %d seeds%s", len(r.seeds), spread)
	}
	return fmt.Sprintf("%s, %s; %s in the trace, %s, distribution %s; %s.", plural(len(r.in.Nodes), "node"),
		plural(gpus, "GPU"), plural(len(r.in.Tasks), "task"), how, r.distribution, over)
}
