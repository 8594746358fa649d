// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
	"github.com/gpupack/gpupack/test/bench/artifact"
)

const firstSeed = 42

// naive is FGD that scores every node for each decision.
const naive = "fgd, naively"

// How each policy decides.
func ways() []string { return []string{"gpupack", "fgd", naive} }

const (
	// full is the part of the GPUs that is taken before anything is measured.
	full = 0.5
	// leastNaive is how many decisions of FGD done naively are measured, however long they take.
	leastNaive = 100
	// runs of the whole trace are timed.
	runs = 3
)

// plan is what to measure.
type plan struct {
	sizes                    []int
	decisions, seeds, scored int
}

// cost is what a decision costs.
type cost struct {
	// samples are how long decisions took, sorted.
	samples []time.Duration
	// bytes a node, the most of all seeds; 0 where not measured.
	bytes float64
}

// quantile returns the sample below which that part of all is.
func (c *cost) quantile(q float64) time.Duration {
	if len(c.samples) == 0 {
		return 0
	}
	return c.samples[min(len(c.samples)-1, int(q*float64(len(c.samples))))]
}

// outcome is what was measured.
type outcome struct {
	plan  plan
	costs map[string]map[int]*cost
	// alike is how many of the decisions that FGD done naively took pack/sim took too, of compared.
	alike, compared int
	// whole is how long each run of the whole trace took, in seconds, by policy.
	whole map[string][]float64
	// tasks arrive in a run.
	tasks int
}

func (p *plan) measure(ctx context.Context, in sim.Input, w io.Writer) (*outcome, error) {
	o := &outcome{plan: *p, costs: map[string]map[int]*cost{}, whole: map[string][]float64{}}
	for _, policy := range []string{"gpupack", "fgd"} {
		for range runs {
			r, err := sim.Run(ctx, in, sim.Options{Policy: policy, Seed: firstSeed, Load: artifact.Load})
			if err != nil {
				return nil, err
			}
			o.whole[policy], o.tasks = append(o.whole[policy], r.Seconds), r.Tasks
		}
		slices.Sort(o.whole[policy])
	}
	for _, way := range ways() {
		o.costs[way] = map[int]*cost{}
		for _, size := range p.sizes {
			o.costs[way][size] = &cost{}
		}
	}
	for _, size := range p.sizes {
		large := replicate(in, size)
		for seed := range p.seeds {
			fmt.Fprintf(w, "%d nodes, seed %d\n", size, firstSeed+seed)
			if err := o.size(ctx, large, uint64(firstSeed+seed)); err != nil {
				return nil, err
			}
		}
		for _, way := range ways() {
			slices.Sort(o.costs[way][size].samples)
		}
	}
	return o, nil
}

// replicate returns as many nodes as asked for, of which each of the input's comes equally often.
func replicate(in sim.Input, size int) sim.Input {
	out := sim.Input{Nodes: make([]sim.Node, size), Tasks: in.Tasks}
	for i := range out.Nodes {
		out.Nodes[i] = in.Nodes[i%len(in.Nodes)]
		out.Nodes[i].Name = fmt.Sprintf("%s-%03d", out.Nodes[i].Name, i/len(in.Nodes))
	}
	// In the order of names, by which ties are broken.
	slices.SortFunc(out.Nodes, func(a, b sim.Node) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// size measures decisions in a cluster that is half full.
func (o *outcome) size(ctx context.Context, in sim.Input, seed uint64) error {
	var milli int64
	at := map[string]int{}
	for i := range in.Nodes {
		milli += int64(in.Nodes[i].GPUs) * pack.WholeMilli
		at[in.Nodes[i].Name] = i
	}
	arrivals := sim.Arrivals(in.Tasks, milli, 1, seed)
	var plain *artifact.Cluster
	for _, policy := range []string{"gpupack", "fgd"} {
		before := heap()
		p, err := sim.NewPlacer(in, sim.Options{Policy: policy, Seed: seed, TiesByName: true})
		if err != nil {
			return err
		}
		if policy == "fgd" {
			if plain, err = artifact.New(&in, "fgd", nil); err != nil {
				return err
			}
			plain.Tight()
		}
		next := 0
		for taken := int64(0); float64(taken) < full*float64(milli); next++ {
			if next%4096 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			r := &in.Tasks[arrivals[next]].Request
			node, ok := p.Place(arrivals[next])
			if !ok {
				continue
			}
			taken += int64(r.GPUs)*pack.WholeMilli + r.Milli
			if policy == "fgd" && !plain.PlaceOn(at[node], r) {
				return fmt.Errorf("%s has no room for arrival %d, which pack/sim put there", node, next)
			}
		}
		c := o.costs[policy][len(in.Nodes)]
		if policy != "fgd" {
			// With FGD, the naive cluster would be counted too.
			c.bytes = max(c.bytes, float64(heap()-before)/float64(len(in.Nodes)))
		}
		rest := arrivals[next:min(len(arrivals), next+o.plan.decisions)]
		nodes := make([]string, len(rest))
		for i, task := range rest {
			start := time.Now()
			nodes[i], _ = p.Place(task)
			c.samples = append(c.samples, time.Since(start))
		}
		runtime.KeepAlive(p)
		if policy == "fgd" {
			if err := o.naively(ctx, in, plain, rest, nodes); err != nil {
				return err
			}
		}
	}
	return nil
}

// naively measures FGD that scores every node. nodes are where pack/sim put the tasks.
func (o *outcome) naively(ctx context.Context, in sim.Input, plain *artifact.Cluster, tasks []int, nodes []string) error {
	c := o.costs[naive][len(in.Nodes)]
	most := max(leastNaive, o.plan.scored/len(in.Nodes))/o.plan.seeds + 1
	for i, task := range tasks[:min(len(tasks), most)] {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		start := time.Now()
		at, _ := plain.Place(&in.Tasks[task].Request)
		c.samples = append(c.samples, time.Since(start))
		o.compared++
		if at >= 0 && in.Nodes[at].Name == nodes[i] || at < 0 && nodes[i] == "" {
			o.alike++
		}
	}
	return nil
}

// heap is how many bytes are in use, once what is not is freed.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
