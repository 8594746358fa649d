// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Command packingscale measures what one placement costs in clusters of several sizes, beside FGD done naively, and fails if
// gpupack misses a goal. All runs on one core.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/gpupack/gpupack/test/bench/openb"
	"github.com/gpupack/gpupack/test/bench/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "packingscale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("packingscale", flag.ExitOnError)
	folder := flags.String("traces", os.Getenv("TRACES"), "`folder` of the openb CSV files")
	sizes := flags.String("sizes", "1213,10000,100000", "numbers of nodes, separated by commas")
	decisions := flags.Int("decisions", 1000, "decisions to measure for each seed")
	seeds := flags.Int("seeds", 3, "number of seeds, from 42")
	scored := flags.Int("scored", 10_000_000, "nodes that FGD done naively may score in all for each size, at least 100 decisions")
	format := flags.String("o", "table", "output format: "+strings.Join(report.Formats(), " or "))
	into := flags.String("into", "", "also put the output into this Markdown `file`")
	_ = flags.Parse(args)
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case *decisions < 1 || *seeds < 1 || *scored < 0:
		return fmt.Errorf("%d decisions of %d seeds with %d scored are too few", *decisions, *seeds, *scored)
	}
	if err := report.CheckFormat(*format); err != nil {
		return err
	}
	p := plan{decisions: *decisions, seeds: *seeds, scored: *scored}
	for _, text := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is not a number of nodes", text)
		}
		p.sizes = append(p.sizes, n)
	}
	slices.Sort(p.sizes)
	in, err := openb.Read(*folder, "default")
	if err != nil {
		return err
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	o, err := p.measure(ctx, in, os.Stderr)
	if err != nil {
		return err
	}
	r := o.report()
	return r.Print(*format, *into)
}
