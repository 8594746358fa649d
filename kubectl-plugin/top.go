// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/gpupack/gpupack/api/convert"
)

func (e *env) topCommand() *cobra.Command {
	cmd := e.topNodesCommand(true)
	cmd.Use = "top"
	cmd.Short = "Show what the GPUs do: nodes, gpus or pods"
	cmd.Long = "Show what the GPUs of the cluster do and who uses them. Without a command, a live view of nodes, GPUs\n" +
		"and pods on a terminal, in which ? shows the keys; elsewhere, or with --watch=false, the same as \"top nodes\"."
	cmd.Example = "  kubectl gpupack top\n  kubectl gpupack top --watch=false\n  kubectl gpupack top gpus --sort-by=free\n  kubectl gpupack top pods -A\n" +
		"  kubectl gpupack top -o json | jq -r '.items[].gpus[] | [.node, .uuid, .memoryFreeMiB] | @tsv'"
	cmd.Args = noSuchCommand
	cmd.AddCommand(e.topNodesCommand(false), e.topGPUsCommand(), e.topPodsCommand())
	return cmd
}

// installHint says how to get what is missing.
const installHint = "install gpupack as https://github.com/gpupack/gpupack#install says"

// sayWhatIsMissing tells on the error stream why there is no telemetry, if there is none at all.
func (s *snapshot) sayWhatIsMissing(w io.Writer, items int) {
	requests := ""
	if items > 0 {
		requests = "; what is shown are the requests that the API knows"
	}
	switch {
	case s.notInstalled:
		fmt.Fprintf(w, "This cluster has no GPUNode resource: %s%s.\n", installHint, requests)
	case len(s.gpuNodes) == 0:
		fmt.Fprintf(w, "No gpupack-agent has reported GPUs yet: check that the agent runs on the GPU nodes, or %s%s.\n", installHint,
			requests)
	case items == 0:
		fmt.Fprintln(w, "No nodes with GPUs found.")
	}
}

// gpuPods is the pods that hold GPUs, in all namespaces.
func gpuPods() *podScope { return &podScope{bound: true, keep: convert.HoldsGPUs} }

// memoryLabel writes used, requested and total memory in one unit.
func (m *Memory) label(t Telemetry) string {
	if t == TelemetryNone || t == TelemetryInvalid {
		if m.RequestedMiB == 0 {
			return "-"
		}
		n, unit := gibIn(m.RequestedMiB, m.RequestedMiB)
		return "-/" + n + "/-" + unit
	}
	used, _ := gibIn(m.UsedMiB, m.TotalMiB)
	requested, _ := gibIn(m.RequestedMiB, m.TotalMiB)
	total, unit := gibIn(m.TotalMiB, m.TotalMiB)
	return used + "/" + requested + "/" + total + unit
}

// memoryTitles are the titles of a column of memory labels and bars.
var memoryTitles = []string{"MEMORY USED/REQ/TOTAL", "USED/REQ/TOTAL", "MEMORY"}

func memoryCell(m *Memory, t Telemetry) cell {
	c := barCell{label: m.label(t), kind: majorBar}
	if m.TotalMiB > 0 {
		c.parts = m.parts()
	}
	return c
}

func percentCell(percent int, known bool) cell {
	if !known {
		return barCell{label: "-", kind: minorBar}
	}
	return barCell{label: fmt.Sprintf("%d%%", percent), parts: percentParts(percent), kind: minorBar}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printTotals prints the foot of a table of nodes or GPUs.
func printTotals(s screen, t Totals) {
	fmt.Fprintln(s)
	printLine(s, "%s", wrap(fmt.Sprintf("%s, %s: %d healthy, %d sick; %d held by %s, %d free whole, %d stranded", plural(t.Nodes, "node"),
		plural(t.GPUs, "GPU"), t.GPUsHealthy, t.GPUsSick, t.GPUsHeld, plural(t.Pods, "pod"), t.GPUsFreeWhole, t.GPUsStranded), s.width))
	if t.TotalMiB > 0 {
		printLine(s, "%s", wrap(fmt.Sprintf("Memory %s: %s used (%s foreign), %s requested, %s free. Utilisation %d%% on average.",
			gib(t.TotalMiB), gib(t.UsedMiB), gib(t.ForeignMiB), gib(t.RequestedMiB), gib(t.FreeMiB), t.Utilization), s.width))
		fmt.Fprintln(s, s.render(legend()))
	}
}
