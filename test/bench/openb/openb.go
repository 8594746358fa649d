// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package openb finds the openb traces for benchmarks.
package openb

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gpupack/gpupack/kubectl-plugin/trace"
	"github.com/gpupack/gpupack/pack/sim"
)

// Traces are the names of those that the benchmarks replay. All have the same nodes.
func Traces() []string {
	return []string{"default", "cpu050", "cpu250", "gpushare40", "gpushare100", "gpuspec10", "gpuspec33", "multigpu20", "multigpu50"}
}

const nodesFile = "openb_node_list_gpu_node.csv"

// Read returns the nodes and the tasks of a trace from the folder.
func Read(folder, name string) (sim.Input, error) {
	if _, err := os.Stat(filepath.Join(folder, nodesFile)); folder == "" || errors.Is(err, fs.ErrNotExist) {
		what := "TRACES is empty"
		if folder != "" {
			what = fmt.Sprintf("there is no %s in %s", nodesFile, folder)
		}
		return sim.Input{}, fmt.Errorf("%s: set TRACES to a folder with the CSV files of the openb traces, which are in data/csv of "+
			"github.com/hkust-adsl/kubernetes-scheduler-simulator", what)
	}
	nodes, err := trace.ReadNodes(filepath.Join(folder, nodesFile))
	if err != nil {
		return sim.Input{}, err
	}
	tasks, err := trace.ReadTasks(filepath.Join(folder, "openb_pod_list_"+name+".csv"))
	if err != nil {
		return sim.Input{}, err
	}
	return trace.Input(nodes, tasks), nil
}
