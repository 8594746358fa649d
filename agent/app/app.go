// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package app is the command gpupack-agent.
package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gpupack/gpupack/agent/fleet"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/internal/daemon"
	"github.com/gpupack/gpupack/nvml/simulated"
)

type options struct {
	source      string
	scenario    string
	node        string
	createNodes bool
	kubeconfig  string
	interval    time.Duration
	minInterval time.Duration
}

// AddFlags implements daemon.Options.
func (o *options) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.source, "source", o.source, "where the figures come from: hardware or simulated")
	flags.StringVar(&o.scenario, "scenario", o.scenario, "file with the nodes and GPUs of --source=simulated, see docs/scenario.md")
	flags.StringVar(&o.node, "node", o.node, "name of the one node to report; by default all nodes of the scenario")
	flags.BoolVar(&o.createNodes, "create-nodes", o.createNodes, "create the nodes of the scenario that do not exist, for kwok to run")
	flags.StringVar(&o.kubeconfig, "kubeconfig", o.kubeconfig, "kubeconfig file; by default that of the environment, or the pod's service account")
	flags.DurationVar(&o.interval, "interval", o.interval, "how often the GPUs are read")
	flags.DurationVar(&o.minInterval, "min-write-interval", o.minInterval, "shortest time between two writes of a node's GPUNode")
}

// Validate implements daemon.Options.
func (o *options) Validate() error {
	switch v1alpha1.Source(o.source) {
	case v1alpha1.SourceSimulated:
		if o.scenario == "" {
			return errors.New("--source=simulated needs --scenario FILE")
		}
	case v1alpha1.SourceHardware:
		return errors.New("this build does not read hardware yet: use --source=simulated with --scenario FILE")
	default:
		return fmt.Errorf("--source=%s is unknown: use hardware or simulated", o.source)
	}
	if o.interval <= 0 {
		return fmt.Errorf("--interval=%s must be above 0", o.interval)
	}
	if o.minInterval <= 0 {
		return fmt.Errorf("--min-write-interval=%s must be above 0", o.minInterval)
	}
	return nil
}

// NewCommand returns the command.
func NewCommand() *cobra.Command {
	o := &options{
		source:      string(v1alpha1.SourceHardware),
		interval:    time.Second,
		minInterval: 2 * time.Second,
	}
	return daemon.NewCommand("gpupack-agent", "Publishes the GPUs of a node, and what uses them, as the node's GPUNode", o)
}

// Run implements daemon.Options.
func (o *options) Run(ctx context.Context) error {
	scenario, err := simulated.Load(o.scenario)
	if err != nil {
		return err
	}
	cfg, err := daemon.RESTConfig(o.kubeconfig, "gpupack-agent")
	if err != nil {
		return err
	}
	fleetOptions := fleet.Options{Interval: o.interval, MinInterval: o.minInterval}
	if o.node != "" {
		fleetOptions.Nodes = []string{o.node}
	}
	f, err := fleet.New(cfg, scenario, fleetOptions)
	if err != nil {
		return err
	}
	if o.createNodes {
		if err := f.CreateNodes(ctx); err != nil {
			return err
		}
	}
	return f.Run(ctx)
}
