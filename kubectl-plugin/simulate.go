// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gpupack/gpupack/kubectl-plugin/trace"
	"github.com/gpupack/gpupack/pack/policy"
	"github.com/gpupack/gpupack/pack/sim"
)

// simulateFlags are the flags of simulate.
type simulateFlags struct {
	nodes, pods, snapshot string
	policies, seeds       string
	load                  float64
	distribution          string
	defragBudget          float64
	churn                 bool
	reserveAfter          time.Duration
	passes                float64
	timeScale             float64
	addNodes              string
	drain, podFiles       []string
	out                   output
	file                  string
}

// Flags that make sense in one of the two modes alone.
var (
	replayFlags = []string{"seeds", "load", "distribution", "defrag-budget", "churn", "time-scale", "reserve-after", "passes"}
	whatIfFlags = []string{"add-nodes", "drain", "pod-file", "stale-after"}
)

func (e *env) simulateCommand() *cobra.Command {
	f := simulateFlags{out: output{html: true}}
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Replay a trace under packing policies, or try a change on a snapshot",
		Long: "With --pods: replay a trace of tasks on a cluster (--nodes, or the hardware of --snapshot) and print how much of its\n" +
			"GPUs each policy allocates. With --snapshot alone: say where the pods that wait, those of --pod-file, and those of drained\n" +
			"nodes would go. No cluster is asked or changed.",
		Example: "  kubectl gpupack simulate --nodes nodes.csv --pods tasks.csv --policy gpupack,fgd --seeds 42-51\n" +
			"  kubectl gpupack snapshot > cluster.yaml\n" +
			"  kubectl gpupack simulate --snapshot cluster.yaml --add-nodes 4xA100 --pod-file job.yaml\n" +
			"  kubectl gpupack simulate --snapshot cluster.yaml --drain gpu-a100-01",
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := e.simulate(cmd, &f)
			if errors.Is(err, context.Canceled) {
				return errors.New("interrupted")
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.nodes, "nodes", "", "CSV file of nodes: sn,cpu_milli,memory_mib,gpu,model")
	flags.StringVar(&f.pods, "pods", "", "CSV file of tasks: name,cpu_milli,memory_mib,num_gpu,gpu_milli[,gpu_spec]")
	flags.StringVar(&f.snapshot, "snapshot", "", `A file written by "kubectl gpupack snapshot"`)
	flags.StringVar(&f.policies, "policy", schedulerPolicy, "Packing policies, separated by commas: "+strings.Join(policy.Names(), ", "))
	flags.StringVar(&f.seeds, "seeds", "42-51", "Seeds of the order of arrivals, one run each, such as 42, 42-51 or 42,45")
	flags.Float64Var(&f.load, "load", 1.3, fmt.Sprintf("GPUs that the tasks ask for in all, as a multiple of the cluster's; with --churn: "+
		"at any time in the mean, by default %g", churnLoad))
	flags.StringVar(&f.distribution, "distribution", sim.DistributionTrace,
		"Where policies have the mix of tasks from: trace (known from the start), online (learned from the arrivals)")
	flags.Float64Var(&f.defragBudget, "defrag-budget", 0, "Largest share of the tasks that defragmentation may move, 0 to 1")
	flags.BoolVar(&f.churn, "churn", false, "Let tasks leave too, by creation_time and deletion_time of the trace")
	flags.Float64Var(&f.timeScale, "time-scale", 1, "With --churn, what the time between arrivals is multiplied by")
	flags.Float64Var(&f.passes, "passes", sim.DefaultPasses, "With --churn, how often each task of the trace comes in the mean")
	flags.DurationVar(&f.reserveAfter, "reserve-after", 0, "With --churn, how long a task waits before a place is kept for it, whatever the "+
		"policy, such as 1h; 0 keeps none")
	flags.StringVar(&f.addNodes, "add-nodes", "", "Nodes to add, as copies of one with GPUs of that model, such as 4xA100 or 4xA100,2xH100")
	flags.StringSliceVar(&f.drain, "drain", nil, "Nodes to drain")
	flags.StringSliceVar(&f.podFiles, "pod-file", nil, "Files of Pods, Jobs, Deployments, ReplicaSets, StatefulSets and PodGroups to place")
	flags.StringVar(&f.file, "out", "", "Write to this file instead of standard output")
	f.out.add(cmd)
	e.addStaleAfter(cmd)
	complete := func(flag string, values ...string) {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	complete("policy", policy.Names()...)
	complete("distribution", sim.DistributionTrace, sim.DistributionOnline)
	for _, flag := range []string{"seeds", "load", "defrag-budget", "time-scale", "add-nodes", "drain"} {
		complete(flag)
	}
	acceptAllNamespaces(cmd)
	return cmd
}

func (e *env) simulate(cmd *cobra.Command, f *simulateFlags) error {
	policies, err := parsePolicies(f.policies)
	if err != nil {
		return usagef(cmd, "--policy: %v", err)
	}
	given := func(flag string) bool { return cmd.Flags().Changed(flag) }
	refuse := func(flags []string, why string) error {
		for _, flag := range flags {
			if given(flag) {
				return usagef(cmd, "--%s %s", flag, why)
			}
		}
		return nil
	}
	switch {
	case f.nodes != "" && f.snapshot != "":
		return usagef(cmd, "--nodes and --snapshot both tell the cluster: give one of them")
	case f.nodes == "" && f.snapshot == "":
		return usagef(cmd, "no cluster: give --nodes and --pods, or --snapshot")
	case f.nodes != "" && f.pods == "":
		return usagef(cmd, "no tasks: give --pods beside --nodes")
	case f.file == "" && f.out.format == formatHTML && isTerminal(e.Out):
		return usagef(cmd, "-o html is a page for a browser: give --out FILE, or send the output elsewhere")
	}
	if f.pods != "" {
		if err := refuse(whatIfFlags, "changes a snapshot, where no trace is replayed: leave out --pods"); err != nil {
			return err
		}
		return e.replay(cmd, f, policies)
	}
	if err := refuse(replayFlags, "is for the replay of a trace: give --pods"); err != nil {
		return err
	}
	return e.tryChange(cmd, f, policies)
}

// tryChange answers what would be if the snapshot were changed.
func (e *env) tryChange(cmd *cobra.Command, f *simulateFlags, policies []string) error {
	printer, err := f.out.printer(cmd)
	switch {
	case err != nil:
		return err
	case f.out.format == formatHTML:
		return usagef(cmd, "-o html is for the replay of a trace: give --pods")
	case len(policies) > 1:
		return usagef(cmd, "--policy names %d policies: on a snapshot give one", len(policies))
	}
	o := &whatIfOptions{policy: policies[0], drain: f.drain}
	if f.addNodes != "" {
		if o.add, err = parseMoreNodes(f.addNodes); err != nil {
			return usagef(cmd, "--add-nodes: %v", err)
		}
	}
	s, err := loadSnapshot(f.snapshot)
	if err != nil {
		return err
	}
	if len(f.podFiles) > 0 {
		namespace, err := (&namespaceFlags{}).resolve(e)
		if err != nil {
			return err
		}
		if o.new, err = readManifest(f.podFiles, namespace); err != nil {
			return err
		}
		if len(o.new.skipped) > 0 {
			printLine(e.ErrOut, "Left out, since it brings no pods: %s.", strings.Join(o.new.skipped, ", "))
		}
		if n := s.dropKnown(o.new); n > 0 {
			printLine(e.ErrOut, "%s of --pod-file left out, since the snapshot has it already.", plural(n, "pod"))
		}
	}
	return e.write(f.file, func(w io.Writer) error {
		bar := newProgress(e.ErrOut, 1, progressDelay)
		o.progress = bar.of(0)
		answer, err := s.whatIf(cmd.Context(), o, e.view)
		bar.stop()
		if err != nil {
			return err
		}
		if printer != nil {
			return printObject(printer, w, answer)
		}
		printWhatIf(newScreen(w), answer, &f.out)
		return nil
	})
}

// parsePolicies reads names separated by commas.
func parsePolicies(text string) ([]string, error) {
	names := strings.Split(text, ",")
	for i, name := range names {
		switch {
		case !policy.Exists(name):
			return nil, fmt.Errorf("there is no policy %q: use some of %s", name, strings.Join(policy.Names(), ", "))
		case slices.Contains(names[:i], name):
			return nil, fmt.Errorf("%s is named twice", name)
		}
	}
	return names, nil
}

// mostSeeds bounds a slip in a range.
const mostSeeds = 10_000

// parseSeeds reads seeds and ranges of seeds separated by commas.
func parseSeeds(text string) ([]uint64, error) {
	var out []uint64
	known := map[uint64]bool{}
	for _, part := range strings.Split(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is neither a seed, such as 42, nor a range, such as 42-51", part)
		}
		to, err := strconv.ParseUint(last, 10, 64)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is neither a seed, such as 42, nor a range, such as 42-51", part)
		case to < from:
			return nil, fmt.Errorf("the range %s ends before it begins", part)
		case to-from >= mostSeeds || len(out)+int(to-from) >= mostSeeds:
			return nil, fmt.Errorf("more than %d seeds", mostSeeds)
		}
		for n := range to - from + 1 {
			if known[from+n] {
				return nil, fmt.Errorf("seed %d is there twice", from+n)
			}
			known[from+n] = true
			out = append(out, from+n)
		}
	}
	return out, nil
}

// churnLoad is the load of a replay with departures where none is given: most of the cluster, and somebody waits.
const churnLoad = 0.95

// replay runs each policy with each seed.
func (e *env) replay(cmd *cobra.Command, f *simulateFlags, policies []string) error {
	formats := []string{formatTable, formatWide, "json", "yaml", formatHTML}
	if f.churn {
		formats = formats[:4]
	}
	if !slices.Contains(formats, f.out.format) {
		return usagef(cmd, "-o %s is not an output format of such a replay: use one of %s", f.out.format, strings.Join(formats, ", "))
	}
	if f.churn && !cmd.Flags().Changed("load") {
		f.load = churnLoad
	}
	seeds, err := parseSeeds(f.seeds)
	switch {
	case err != nil:
		return usagef(cmd, "--seeds: %v", err)
	case !(f.load > 0 && f.load <= 100):
		return usagef(cmd, "--load %g is not above 0 and at most 100", f.load)
	case f.distribution != sim.DistributionTrace && f.distribution != sim.DistributionOnline:
		return usagef(cmd, "--distribution %s is not known: use trace or online", f.distribution)
	case !(f.defragBudget >= 0 && f.defragBudget <= 1):
		return usagef(cmd, "--defrag-budget %g is not in 0 to 1", f.defragBudget)
	case f.churn && f.defragBudget > 0:
		return usagef(cmd, "--defrag-budget is for tasks that never leave: leave out --churn")
	case !f.churn && cmd.Flags().Changed("time-scale"):
		return usagef(cmd, "--time-scale is for tasks that leave: give --churn")
	case !f.churn && cmd.Flags().Changed("reserve-after"):
		return usagef(cmd, "--reserve-after is for tasks that leave: give --churn")
	case !f.churn && cmd.Flags().Changed("passes"):
		return usagef(cmd, "--passes is for tasks that leave: give --churn")
	case !(f.passes > 0 && f.passes <= 1000):
		return usagef(cmd, "--passes %g is not above 0 and at most 1000", f.passes)
	case f.reserveAfter < 0:
		return usagef(cmd, "--reserve-after %s is below 0", f.reserveAfter)
	case !(f.timeScale > 0 && f.timeScale <= 1000):
		return usagef(cmd, "--time-scale %g is not above 0 and at most 1000", f.timeScale)
	}
	in, err := f.input()
	if err != nil {
		return err
	}
	these := runs{in: in, files: f.nodes + f.snapshot + ", " + f.pods, policies: policies, seeds: seeds, distribution: f.distribution}
	return e.write(f.file, func(w io.Writer) error {
		if f.churn {
			c := &churn{runs: these, load: f.load, timeScale: f.timeScale, reserveAfter: f.reserveAfter, passes: f.passes}
			if err := c.run(cmd.Context(), e.ErrOut); err != nil {
				return err
			}
			return c.print(w, &f.out)
		}
		r := &replay{runs: these, load: f.load, defragBudget: f.defragBudget, detail: f.out.format == formatHTML,
			title: strings.TrimSuffix(filepath.Base(f.pods), filepath.Ext(f.pods)), command: commandLine(cmd)}
		if err := r.run(cmd.Context(), e.ErrOut); err != nil {
			return err
		}
		return r.print(w, &f.out)
	})
}

// commandLine is how to run the command again, but for where its output went.
func commandLine(cmd *cobra.Command) string {
	words := []string{cmd.CommandPath()}
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if flag.Name != "output" && flag.Name != "out" {
			words = append(words, "--"+flag.Name, shellWord(flag.Value.String()))
		}
	})
	return strings.Join(words, " ")
}

// shellWord writes a word as a shell takes it.
func shellWord(word string) string {
	plain := func(r rune) bool {
		return r < 128 && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("-_=+.,/:@%", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// input reads the cluster and the tasks.
func (f *simulateFlags) input() (sim.Input, error) {
	tasks, err := trace.ReadTasks(f.pods)
	if err != nil {
		return sim.Input{}, err
	}
	if f.snapshot == "" {
		nodes, err := trace.ReadNodes(f.nodes)
		if err != nil {
			return sim.Input{}, err
		}
		return trace.Input(nodes, tasks), nil
	}
	s, err := loadSnapshot(f.snapshot)
	if err != nil {
		return sim.Input{}, err
	}
	return trace.Input(s.hardware(), tasks), nil
}

// hardware is the nodes with nothing on them. Of a node that mixes models, all GPUs count as of the first one's.
func (s *snapshot) hardware() []trace.Node {
	out := make([]trace.Node, len(s.nodes))
	for i := range s.nodes {
		node := &s.nodes[i]
		n := trace.Node{Name: node.Name, CPUMilli: node.Status.Allocatable.Cpu().MilliValue(),
			MemoryMiB: node.Status.Allocatable.Memory().Value() >> 20}
		if gn := s.gpuNode(node.Name); gn != nil && len(gn.Status.GPUs) > 0 {
			n.GPUs, n.Model = len(gn.Status.GPUs), gn.Status.GPUs[0].Model
		} else {
			n.GPUs, n.Model = int(capacity(node)), node.Labels[productLabel]
		}
		out[i] = n
	}
	return out
}
