// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gpupack/gpupack/pack/sim"
	"github.com/gpupack/gpupack/test/bench/artifact"
	"github.com/gpupack/gpupack/test/bench/openb"
)

const firstSeed = 42

// What is measured.
const (
	partGiven   = "given"   // all policies on all traces, with the mix of classes given
	partOnline  = "online"  // the same learned from the arrivals, for those policies that go by it
	partDefrag  = "defrag"  // gpupack on the default trace, with tasks moved
	partSeconds = "seconds" // how long one run takes alone
)

func allParts() []string { return []string{partGiven, partOnline, partDefrag, partSeconds} }

// defragBudget is the part of the tasks that may be moved.
const defragBudget = 0.01

// plan is what to measure.
type plan struct {
	traces, policies, parts []string
	seeds                   int
	load                    float64
	// artifact has the runs of the FGD paper's artifact repeated.
	artifact bool
}

// setting is what all runs have in common that differ by seed.
type setting struct {
	trace, policy string
	online        bool
	budget        float64
	// artifact is true for a run that repeats one of the artifact.
	artifact bool
}

// outcome is what was measured.
type outcome struct {
	plan    plan
	nodes   int
	gpus    int
	results map[setting][]sim.Result
	// seconds of one run on the default trace, by policy.
	seconds map[string]float64
}

// settings are those that the plan asks for, the slowest first so that no core idles at the end.
func (p *plan) settings() []setting {
	var out []setting
	add := func(policies []string, s setting) {
		for _, s.policy = range policies {
			for _, s.trace = range p.traces {
				out = append(out, s)
			}
		}
	}
	if slices.Contains(p.parts, partOnline) {
		add(both(p.policies, []string{"gpupack", "fgd"}), setting{online: true})
	}
	if slices.Contains(p.parts, partDefrag) && slices.Contains(p.policies, "gpupack") && slices.Contains(p.traces, "default") {
		out = append(out, setting{trace: "default", policy: "gpupack", budget: defragBudget})
	}
	if p.artifact {
		add(both(artifact.Policies(), p.policies), setting{artifact: true})
	}
	if slices.Contains(p.parts, partGiven) {
		add(p.policies, setting{})
	}
	return out
}

// both returns the names of the first list that are in the second too.
func both(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(name string) bool { return !slices.Contains(b, name) })
}

// measure runs the plan, on all processors, and says on w how far it is.
func (p *plan) measure(ctx context.Context, folder string, w io.Writer) (*outcome, error) {
	o := &outcome{plan: *p, results: map[setting][]sim.Result{}, seconds: map[string]float64{}}
	inputs := map[string]sim.Input{}
	for _, name := range p.traces {
		in, err := openb.Read(folder, name)
		if err != nil {
			return nil, err
		}
		inputs[name] = in
		o.nodes, o.gpus = len(in.Nodes), 0
		for i := range in.Nodes {
			o.gpus += in.Nodes[i].GPUs
		}
	}
	settings := p.settings()
	say := newProgress(w, len(settings)*p.seeds)
	group, inGroup := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, s := range settings {
		results := make([]sim.Result, p.seeds)
		o.results[s] = results
		for i := range results {
			group.Go(func() (err error) {
				if inGroup.Err() != nil {
					return inGroup.Err()
				}
				results[i], err = s.run(inGroup, inputs[s.trace], p.load, firstSeed+i)
				say.step()
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if in, ok := inputs["default"]; ok && slices.Contains(p.parts, partSeconds) {
		fmt.Fprintln(w, "measuring how long one run takes alone")
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		for _, name := range p.policies {
			r, err := (&setting{policy: name}).run(ctx, in, p.load, firstSeed)
			if err != nil {
				return nil, err
			}
			o.seconds[name] = r.Seconds
		}
	}
	return o, nil
}

// run replays the input once.
func (s *setting) run(ctx context.Context, in sim.Input, load float64, seed int) (sim.Result, error) {
	if s.artifact {
		a95, a100, final, err := artifact.Replay(in, s.policy, int64(seed))
		return sim.Result{Seed: uint64(seed), A95: a95, A100: a100, Final: final}, err
	}
	o := sim.Options{Policy: s.policy, Seed: uint64(seed), Load: load, DefragBudget: s.budget}
	if s.online {
		o.Distribution = sim.DistributionOnline
	}
	return sim.Run(ctx, in, o)
}

// progress says now and then how many runs are done.
type progress struct {
	w     io.Writer
	runs  int
	start time.Time

	mu   sync.Mutex
	done int
	said time.Time
}

const sayEvery = 10 * time.Second

func newProgress(w io.Writer, runs int) *progress {
	return &progress{w: w, runs: runs, start: time.Now(), said: time.Now()}
}

// step counts one run.
func (p *progress) step() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	if time.Since(p.said) >= sayEvery || p.done == p.runs {
		p.said = time.Now()
		fmt.Fprintf(p.w, "%d of %d runs in %s\n", p.done, p.runs, time.Since(p.start).Round(time.Second))
	}
}
