// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack"
)

// Exit codes of Run.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// env is what the subcommands share.
type env struct {
	genericiooptions.IOStreams
	config *genericclioptions.ConfigFlags
	// reader returns the client; tests put another in its place.
	reader func() (client.Reader, error)
	// writer returns the client of the commands that change something.
	writer func() (client.Client, error)
	now    func() time.Time
	view   viewOptions
}

// NewCommand returns the command kubectl gpupack with its subcommands. Run it by Run for the exit codes.
func NewCommand(streams genericiooptions.IOStreams) *cobra.Command {
	e := &env{IOStreams: streams, config: genericclioptions.NewConfigFlags(true), now: time.Now}
	e.reader = func() (client.Reader, error) { return newClient(e.config) }
	e.writer = func() (client.Client, error) { return newClient(e.config) }
	return e.command()
}

// Run runs kubectl gpupack with the arguments after its name. It returns the exit code: 0, 1 for an error, 2 for wrong usage.
func Run(ctx context.Context, streams genericiooptions.IOStreams, args []string) int {
	ctrllog.SetLogger(logr.Discard())
	return run(ctx, NewCommand(streams), streams, args)
}

func run(ctx context.Context, cmd *cobra.Command, streams genericiooptions.IOStreams, args []string) int {
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(streams.ErrOut, "error: %s\n", sentence(err))
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(streams.ErrOut, "See '%s --help'.\n", usage.cmd.CommandPath())
		return exitUsage
	}
	return exitError
}

// usageError is an error in how a command was called.
type usageError struct {
	cmd     *cobra.Command
	message string
}

func (e *usageError) Error() string { return e.message }

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{cmd, fmt.Sprintf(format, args...)}
}

func (e *env) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-gpupack",
		Short: "See and explain how the GPUs of a cluster are used",
		Long: "kubectl gpupack shows what the GPUs of a cluster do and who uses them, where gpupack placed pods and why,\n" +
			"what a pending pod waits for, and what would be on another cluster or with another packing policy.",
		Example: "  kubectl gpupack top\n  kubectl gpupack top pods -n research\n  kubectl gpupack explain trainer-0",
		Annotations: map[string]string{
			cobra.CommandDisplayNameAnnotation: "kubectl gpupack",
		},
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(e.In)
	root.SetOut(e.Out)
	root.SetErr(e.ErrOut)
	root.SetUsageTemplate(usageTemplate)
	root.SetFlagErrorFunc(flagError)
	e.config.AddFlags(root.PersistentFlags())
	e.view.staleAfter = convert.DefaultStaleAfter
	e.view.wholeForeignMiB = pack.DefaultWholeForeignMiB
	root.AddCommand(e.topCommand(), e.placementsCommand(), e.explainCommand(), e.gangsCommand(), e.snapshotCommand(), e.cordonGPUCommand(), e.uncordonGPUCommand(),
		e.simulateCommand(), e.versionCommand())
	root.InitDefaultCompletionCmd("completion")
	return root
}

// addStaleAfter is for commands that show telemetry.
func (e *env) addStaleAfter(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&e.view.staleAfter, "stale-after", convert.DefaultStaleAfter,
		"Age from which telemetry is stale, staleAfter in the scheduler's GPUPackArgs")
}

// usageTemplate is cobra's without the 20 flags that every kubectl command has.
const usageTemplate = `Usage:{{if .Runnable}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} [command]{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}

Commands:{{range .Commands}}{{if (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{end}}{{if .LocalNonPersistentFlags.HasAvailableFlags}}

Flags:
{{.LocalNonPersistentFlags.FlagUsagesWrapped 100 | trimTrailingWhitespaces}}{{end}}

kubectl's own flags (--context, --kubeconfig, --namespace, --as and others) work too: see "kubectl options".
`

// noSuchCommand refuses arguments to a command that has subcommands.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	// Cobra sets the default of 2 when it looks for suggestions itself, which it does not where Args is set.
	cmd.SuggestionsMinimumDistance = 2
	message := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		message += fmt.Sprintf(": did you mean %q?", strings.Join(s, "\" or \""))
	}
	return usagef(cmd, "%s", message)
}

// exactly refuses another number of arguments.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef(cmd, "expected %s, got %d arguments", what, len(args))
		}
		return nil
	}
}

// flagError adds the nearest flag to the error of one that does not exist.
func flagError(cmd *cobra.Command, err error) error {
	message := err.Error()
	if name, ok := strings.CutPrefix(message, "unknown flag: --"); ok {
		nearest, distance := "", 3
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if d := editDistance(name, f.Name); d < distance && !f.Hidden {
				nearest, distance = f.Name, d
			}
		})
		if nearest != "" {
			message += fmt.Sprintf(": did you mean --%s?", nearest)
		}
	}
	return usagef(cmd, "%s", message)
}

// didYouMean names the nearest of the names, if one is near; empty if none is.
func didYouMean(name string, names []string) string {
	nearest, distance := "", 3
	for _, n := range names {
		if d := editDistance(name, n); d < distance {
			nearest, distance = n, d
		}
	}
	if nearest == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", nearest)
}

// editDistance is the number of characters to insert, delete or replace to get from a to b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// namespaceFlags is -A beside kubectl's -n.
type namespaceFlags struct{ all bool }

func (n *namespaceFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&n.all, "all-namespaces", "A", false, "Pods of all namespaces")
}

// resolve returns the namespace to read, empty for all.
func (n *namespaceFlags) resolve(e *env) (string, error) {
	if n.all {
		return "", nil
	}
	namespace, _, err := e.config.ToRawKubeConfigLoader().Namespace()
	return namespace, err
}

// acceptAllNamespaces takes -A for what has no namespace, where it changes nothing, so that habit does not fail.
func acceptAllNamespaces(cmd *cobra.Command) {
	cmd.Flags().BoolP("all-namespaces", "A", false, "")
	_ = cmd.Flags().MarkHidden("all-namespaces")
}

// take keeps the items with the given names in their order, all if there are none; it is an error if one does not exist.
func take[T any](items []T, names []string, kind string, nameOf func(*T) string) ([]T, error) {
	if len(names) == 0 {
		return items, nil
	}
	found := map[string]bool{}
	out := slices.DeleteFunc(items, func(item T) bool {
		name := nameOf(&item)
		if slices.Contains(names, name) {
			found[name] = true
			return false
		}
		return true
	})
	for _, name := range names {
		if !found[name] {
			return nil, fmt.Errorf("%s %q not found", kind, name)
		}
	}
	return out, nil
}

// completePods offers the names of pods that keep accepts, in the namespace of the flags.
func (e *env) completePods(keep func(*corev1.Pod) bool) cobra.CompletionFunc {
	return e.completeNames(func(ctx context.Context, r client.Reader, namespace string) ([]string, error) {
		pods, err := listPods(ctx, r, &podScope{namespace: namespace, keep: keep})
		if err != nil {
			return nil, err
		}
		names := make([]string, len(pods))
		for i := range pods {
			names[i] = pods[i].Name
		}
		return names, nil
	})
}

// completeNames offers those of the names in the namespace of the flags that are not among the arguments yet.
func (e *env) completeNames(names func(ctx context.Context, r client.Reader, namespace string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		namespace, err := (&namespaceFlags{}).resolve(e)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		r, err := e.reader()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		all, err := names(cmd.Context(), r, namespace)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return slices.DeleteFunc(all, func(name string) bool { return slices.Contains(args, name) }), cobra.ShellCompDirectiveNoFileComp
	}
}
