// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Command gang measures how fast gangs are placed: gpupack beside the coscheduling plugin of scheduler-plugins, and beside
// kube-scheduler's default profile on as many single pods, one after another on one embedded control plane. It fails if a goal is
// missed. See docs/benchmarks/gang.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/gpupack/gpupack/test/bench/report"
)

func init() {
	// Child processes are started by main and end with its thread, see endWithParent.
	runtime.LockOSThread()
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	klog.LogToStderr(false) // what matters is reported as an error
	klog.SetOutput(io.Discard)
	err := run(ctx, os.Args[1:])
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "gang: interrupted; nothing is left running")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "gang:", err)
		os.Exit(1)
	}
}

// options are the command line's.
type options struct {
	plan   plan
	bench  bench
	format string
	into   string
}

func parse(args []string) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("gang", flag.ExitOnError)
	only := flags.String("only", strings.Join(allParts(), ","), "parts to run, separated by commas")
	nodes := flags.String("nodes", "500,2000,5000", "numbers of nodes for gangs, separated by commas; singles run on the most, all else on the fewest")
	sizes := flags.String("sizes", "8,64,256,1024", "numbers of members of gangs, separated by commas")
	quick := flags.Bool("quick", false, "small and once, to see that it works: its figures say nothing")
	flags.IntVar(&o.bench.repeats, "repeats", 3, "how often each run is repeated; medians are reported")
	flags.IntVar(&o.plan.singles, "singles", 1000, "number of single pods")
	flags.IntVar(&o.plan.kaiMembers, "kai-members", 512, "pods of the one large Job")
	flags.IntVar(&o.plan.kaiJobs, "kai-jobs", 4000, "number of Jobs of one GPU")
	flags.IntVar(&o.bench.limits.qps, "qps", 5000, "requests a second that a scheduler's client may make, the same for all; 0 leaves each its own configuration")
	flags.IntVar(&o.bench.limits.burst, "burst", 5000, "requests that it may make at once")
	flags.DurationVar(&o.bench.limit, "limit", 5*time.Minute, "how long a run may take until it is given up")
	flags.StringVar(&o.bench.programs.ours, "gpupack", "bin/gpupack-scheduler", "`path` of gpupack-scheduler")
	flags.StringVar(&o.bench.programs.stock, "coscheduling", "bin/coscheduling-scheduler", "`path` of kube-scheduler with coscheduling")
	flags.StringVar(&o.bench.profiles, "profiles", "", "write CPU profiles of the schedulers into this `folder`, which must exist")
	flags.StringVar(&o.format, "o", "table", "output format: "+strings.Join(report.Formats(), " or "))
	flags.StringVar(&o.into, "into", "", "also put the output into this Markdown `file`")
	_ = flags.Parse(args)
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := report.CheckFormat(o.format); err != nil {
		return nil, err
	}
	for _, part := range strings.Split(*only, ",") {
		if !slices.Contains(allParts(), part) {
			return nil, fmt.Errorf("there is no part %q: use some of %s", part, strings.Join(allParts(), ","))
		}
		o.plan.parts = append(o.plan.parts, part)
	}
	if *quick {
		*nodes, *sizes = "20", "8,64"
		o.bench.repeats, o.plan.singles, o.plan.kaiMembers, o.plan.kaiJobs = 1, 50, 64, 100
	}
	var err error
	if o.plan.nodes, err = numbers(*nodes, "nodes"); err != nil {
		return nil, err
	}
	if o.plan.sizes, err = numbers(*sizes, "members"); err != nil {
		return nil, err
	}
	o.plan.singleNodes = slices.Max(o.plan.nodes)
	if o.bench.repeats < 1 || o.plan.singles < 1 || o.plan.kaiMembers < 1 || o.plan.kaiJobs < 1 || o.bench.limit <= 0 {
		return nil, errors.New("numbers of repeats, pods and Jobs must be at least 1")
	}
	least := o.plan.nodes[0] * gpusPerNode
	for what, n := range map[string]int{"a gang": slices.Max(o.plan.sizes), "the large Job": o.plan.kaiMembers, "all Jobs": o.plan.kaiJobs, "all single pods": o.plan.singles} {
		if n > least {
			return nil, fmt.Errorf("%d pods of %s want more than the %d GPUs of %d nodes", n, what, least, o.plan.nodes[0])
		}
	}
	return o, nil
}

// numbers reads numbers and sorts them.
func numbers(text, what string) ([]int, error) {
	var out []int
	for _, word := range strings.Split(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is not a number of %s", word, what)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	for _, path := range []string{shipped, shippedPod, o.bench.programs.ours, o.bench.programs.stock} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: run this by make bench-gang, at the root of the checkout", err)
		}
	}
	b := &o.bench
	b.out, b.results = os.Stderr, results{}
	start := time.Now()
	if b.cluster, err = startCluster(ctx, os.Stderr); err != nil {
		return err
	}
	defer b.stop()
	measureErr := b.measure(ctx, &o.plan)
	r := b.report(&o.plan, time.Since(start))
	if measureErr != nil {
		// What was measured until then is not in vain, but it is nothing for a document.
		return errors.Join(r.Write(os.Stdout, o.format), measureErr)
	}
	return r.Print(o.format, o.into)
}

// measure runs the parts of the plan, from few nodes to many.
func (b *bench) measure(ctx context.Context, p *plan) error {
	for i, nodes := range p.nodes {
		if err := b.grow(ctx, nodes); err != nil {
			return err
		}
		for _, part := range allParts() {
			if !slices.Contains(p.parts, part) {
				continue
			}
			var err error
			switch {
			case part == partGangs:
				err = b.gangs(ctx, p.sizes)
			case part == partSingles && nodes == p.singleNodes:
				err = b.singles(ctx, p.singles)
			case i > 0:
			case part == partLimits:
				err = b.clientLimits(ctx, judged(p))
			case part == partContention:
				err = b.contention(ctx)
			case part == partKAI:
				err = b.kai(ctx, p.kaiMembers, p.kaiJobs)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// judged is the size of gangs by which goals are judged: 256, or the largest that runs where that does not.
func judged(p *plan) int {
	if slices.Contains(p.sizes, 256) {
		return 256
	}
	return slices.Max(p.sizes)
}
