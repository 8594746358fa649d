// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package daemon is what gpupack's long-running commands have in common: how they are called, how they log, how they end, and how they
// find the API server.
package daemon

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/version"
)

// Options are what a command can be told.
type Options interface {
	AddFlags(*pflag.FlagSet)
	// Validate returns what is wrong, in one sentence.
	Validate() error
	// Run returns when the context ends, or on an error.
	Run(context.Context) error
}

// NewCommand returns a command that runs until it gets a signal.
func NewCommand(name, short string, o Options) *cobra.Command {
	logging := logsapi.NewLoggingConfiguration()
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
		// The build stamps it, as it does for all of gpupack's commands.
		Version: version.Get().GitVersion,
		// An error is one sentence. Whoever wants the flags asks for --help.
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			logs.InitLogs()
			return logsapi.ValidateAndApply(logging, nil)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Validate(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			// A second signal ends the process at once.
			context.AfterFunc(ctx, stop)
			return o.Run(ctx)
		},
	}
	flags := cmd.Flags()
	flags.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	o.AddFlags(flags)
	logsapi.AddFlags(logging, flags)
	return cmd
}

// RESTConfig finds the API server: by the kubeconfig file, or where that is empty by the environment or the pod's service account.
func RESTConfig(kubeconfig, userAgent string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	return rest.AddUserAgent(cfg, userAgent), nil
}
