// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Command packing replays the openb traces under each policy, prints how much of the cluster each allocates, and fails if
// gpupack misses a goal.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/gpupack/gpupack/pack/policy"
	"github.com/gpupack/gpupack/test/bench/artifact"
	"github.com/gpupack/gpupack/test/bench/openb"
	"github.com/gpupack/gpupack/test/bench/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "packing:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("packing", flag.ExitOnError)
	folder := flags.String("traces", os.Getenv("TRACES"), "`folder` of the openb CSV files")
	policies := flags.String("policies", strings.Join(policy.Names(), ","), "policies, separated by commas")
	only := flags.String("only", strings.Join(openb.Traces(), ","), "traces, separated by commas")
	parts := flags.String("parts", strings.Join(allParts(), ","), "what to measure, separated by commas")
	seeds := flags.Int("seeds", 10, "number of seeds, from 42")
	load := flags.Float64("load", 1.3, "GPUs that arrive, as a multiple of the cluster's")
	peers := flags.Bool("artifact", false, "also repeat the runs of the FGD paper's artifact, with its own random numbers")
	format := flags.String("o", "table", "output format: "+strings.Join(report.Formats(), " or "))
	into := flags.String("into", "", "also put the output into this Markdown `file`")
	_ = flags.Parse(args)
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	p := plan{
		traces: strings.Split(*only, ","), policies: strings.Split(*policies, ","), parts: strings.Split(*parts, ","),
		seeds: *seeds, load: *load, artifact: *peers,
	}
	if err := p.validate(); err != nil {
		return err
	}
	if err := report.CheckFormat(*format); err != nil {
		return err
	}
	o, err := p.measure(ctx, *folder, os.Stderr)
	if err != nil {
		return err
	}
	r := o.report()
	return r.Print(*format, *into)
}

// validate says what is wrong with the plan.
func (p *plan) validate() error {
	for _, name := range p.policies {
		if !policy.Exists(name) {
			return fmt.Errorf("unknown policy %q: use some of %s", name, strings.Join(policy.Names(), ", "))
		}
	}
	for _, name := range p.parts {
		if !slices.Contains(allParts(), name) {
			return fmt.Errorf("unknown part %q: use some of %s", name, strings.Join(allParts(), ", "))
		}
	}
	if p.seeds < 1 {
		return fmt.Errorf("%d seeds are too few: use one or more", p.seeds)
	}
	if p.artifact && p.load != artifact.Load {
		return fmt.Errorf("the artifact's runs have a load of %g: leave out --load or --artifact", artifact.Load)
	}
	return nil
}
