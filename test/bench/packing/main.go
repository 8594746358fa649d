// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Command packing replays the openb traces under several policies and prints how much of the cluster each allocates.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
	"github.com/gpupack/gpupack/test/openb"
)

func main() {
	dir := flag.String("traces", os.Getenv("TRACES"), "folder of the openb CSV files")
	names := flag.String("policies", "fgd,best-fit", "policies, separated by commas")
	traces := flag.String("only", "default,cpu050,cpu250,gpushare40,gpushare100,gpuspec10,gpuspec33,multigpu20,multigpu50", "traces, separated by commas")
	seeds := flag.Int("seeds", 10, "number of seeds, from 42")
	load := flag.Float64("load", 1.3, "GPUs that arrive, as a multiple of the cluster's")
	distribution := flag.String("distribution", sim.DistributionTrace, "trace or online")
	flag.Parse()
	if err := run(*dir, strings.Split(*names, ","), strings.Split(*traces, ","), *seeds, *load, *distribution); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dir string, policies, traces []string, seeds int, load float64, distribution string) error {
	nodes, err := openb.ReadNodes(filepath.Join(dir, "openb_node_list_gpu_node.csv"))
	if err != nil {
		return err
	}
	unallocated := map[string]float64{}
	for _, trace := range traces {
		tasks, err := openb.ReadTasks(filepath.Join(dir, "openb_pod_list_"+trace+".csv"))
		if err != nil {
			return err
		}
		in := input(nodes, tasks)
		for _, p := range policies {
			var mean sim.Result
			for seed := range seeds {
				r, err := sim.Run(context.Background(), in, sim.Options{Policy: p, Seed: uint64(42 + seed), Load: load, Distribution: distribution})
				if err != nil {
					return err
				}
				mean.A95 += r.A95 / float64(seeds)
				mean.A100 += r.A100 / float64(seeds)
				mean.Final += r.Final / float64(seeds)
				mean.Seconds += r.Seconds / float64(seeds)
			}
			unallocated[p] += (100 - mean.Final) / float64(len(traces))
			fmt.Printf("%-12s %-16s a95 %6.2f  a100 %6.2f  final %6.2f  %.2f s\n", trace, p, mean.A95, mean.A100, mean.Final, mean.Seconds)
		}
	}
	for _, p := range policies {
		fmt.Printf("%-16s unallocated %.2f\n", p, unallocated[p])
	}
	return nil
}

func input(nodes []openb.Node, tasks []openb.Task) sim.Input {
	var in sim.Input
	for _, n := range nodes {
		in.Nodes = append(in.Nodes, sim.Node{Name: n.Name, CPUMilli: n.CPUMilli, MemoryMiB: n.MemoryMiB, GPUs: n.GPUs, Model: n.Model})
	}
	for i := range tasks {
		t := &tasks[i]
		r := pack.Request{CPUMilli: t.CPUMilli, MemoryMiB: t.MemoryMiB, Models: t.Models}
		if t.IsShare() {
			r.Milli = t.GPUMilli
		} else {
			r.GPUs = t.GPUs
		}
		in.Tasks = append(in.Tasks, sim.Task{Name: t.Name, Request: r})
	}
	return in
}
