// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Demo shows gpupack on a real control plane whose nodes and GPUs are simulated: pods of the openb trace, a gang, and a
// Deployment of shares, packed by gpupack and, beside it, placed by kube-scheduler's default profile. It ends with an error
// if a promise of gpupack is broken. It is run from the root of the checkout: see make demo.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/gpupack/gpupack/test/embedded"
)

type options struct {
	buildOnly  bool
	short      bool
	keep       bool
	keeper     bool
	down       bool
	screenshot string
}

func init() {
	// Child processes are started by main and end with its thread, see endWithParent.
	runtime.LockOSThread()
}

func main() {
	var opts options
	flag.BoolVar(&opts.buildOnly, "build-only", false, "build the programs of the control plane, and stop")
	flag.BoolVar(&opts.short, "short", false, "fewer pods, and no comparison with the default profile")
	flag.BoolVar(&opts.keep, "keep", false, "leave the cluster running in the background")
	flag.BoolVar(&opts.keeper, "keeper", false, "for --keep itself: be the process in the background")
	flag.BoolVar(&opts.down, "down", false, "end what --keep left running")
	flag.StringVar(&opts.screenshot, "screenshot", "", "write a picture of `kubectl gpupack top` to this SVG `file`")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	klog.LogToStderr(false) // what matters is reported as an error
	klog.SetOutput(discard{})

	err := run(ctx, opts)
	switch {
	case ctx.Err() != nil && !opts.keeper:
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; nothing is left running")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) error {
	if _, err := os.Stat("manifests/base"); err != nil {
		return errors.New("run this from the root of the checkout, best by make demo")
	}
	switch {
	case opts.down:
		return down(ctx)
	case opts.buildOnly:
		if _, err := embedded.Build(ctx, os.Stdout); err != nil {
			return err
		}
		if _, err := embedded.BuildKubectl(ctx, os.Stdout); err != nil {
			return err
		}
		_, err := embedded.BuildOperators(ctx, os.Stdout)
		return err
	case opts.keep:
		return keep(ctx, opts)
	case opts.keeper:
		return beKeeper(ctx, opts)
	}
	d := &demo{options: opts}
	defer d.stop()
	return d.run(ctx)
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
