// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"
	"strings"
)

// printExplanation prints an explanation as text.
func printExplanation(sc screen, s *snapshot, x *Explanation) {
	line := func(format string, args ...any) { fmt.Fprintln(sc, wrap(fmt.Sprintf(format, args...), sc.width)) }
	section := func(title string) { fmt.Fprintf(sc, "\n%s\n", sc.render([]span{{title, heading}})) }

	if x.brief {
		line("%s", x.Summary)
		return
	}
	fmt.Fprintln(sc, sc.render([]span{{fmt.Sprintf("Pod %s/%s", x.Namespace, x.Name), heading},
		{fmt.Sprintf(" (%s, created %s) asks for %s.", x.Phase, s.ago(x.CreationTimestamp), x.Request), plain}}))
	if x.Scheduler != nil {
		line("The scheduler said %s: %s", s.ago(x.Scheduler.Time), x.Scheduler.Message)
	}
	line("%s", x.Summary)
	if g := x.Gang; g != nil {
		section("Gang " + g.Name)
		line("%s", g.text())
	}
	if x.Usage != nil || x.Placement != nil {
		section("Placement")
		printPlaced(line, x)
	}
	if len(x.Reasons) > 0 {
		printReasons(sc, fmt.Sprintf("Nodes: %d, of which %d would fit", x.Nodes.Total, x.Nodes.Fitting), x.Reasons)
	}
	printFixes(sc, x.Fixes)
	if len(x.Nearest) > 0 {
		section("Nearest nodes")
		for i := range x.Nearest {
			printVerdict(sc, &x.Nearest[i])
		}
	}
}

// printReasons prints how many nodes fail for which reason.
func printReasons(sc screen, title string, reasons []ReasonCount) {
	fmt.Fprintf(sc, "\n%s\n", sc.render([]span{{title, heading}}))
	for _, r := range reasons {
		example := ""
		if r.Nodes == 1 {
			example = ": " + r.Example
		}
		fmt.Fprintf(sc, "%6d  %s%s\n", r.Nodes, r.Message, example)
	}
}

// printFixes prints what would let a pod or a gang in.
func printFixes(sc screen, fixes []Fix) {
	if len(fixes) == 0 {
		return
	}
	fmt.Fprintf(sc, "\n%s\n", sc.render([]span{{"Nearest fixes, each tried on the cluster as it is", heading}}))
	for i := range fixes {
		f := &fixes[i]
		message := f.Message
		if f.Node != "" && !strings.Contains(message, f.Node) {
			message += ", for " + f.Node
		}
		fmt.Fprintln(sc, wrap(fmt.Sprintf("%d. %s", i+1, message), sc.width))
		fmt.Fprintln(sc, "  "+strings.ReplaceAll(wrap(" cost: "+f.Cost, sc.width-2), "\n", "\n  "))
	}
}

func printPlaced(line func(string, ...any), x *Explanation) {
	if u := x.Usage; u != nil {
		if len(u.GPUs) > 0 {
			line("GPU %s of %s: %s requested, %s used, %d%% busy.", u.indices(), u.Node, gib(u.RequestedMiB), gib(u.UsedMiB),
				u.Utilization)
		} else {
			line("%s of %s; there is no telemetry to tell which.", u.indices(), u.Node)
		}
		if u.OverMiB > 0 {
			line("It uses %s more than it requested.", gib(u.OverMiB))
		}
	}
	p := x.Placement
	switch {
	case p == nil:
		line("gpupack left no record: scheduler %q placed it.", x.SchedulerName)
	case p.Decision == nil && p.DecisionError != "":
		line("The record of the decision cannot be read: %s.", p.DecisionError)
	case p.Decision == nil:
		line("gpupack chose GPU %s and left no record of why.", p.indices())
	default:
		d := p.Decision
		line("gpupack chose GPU %s by policy %s with score %d.", p.indices(), d.Policy, d.Score)
		switch {
		case d.RunnerUp != "":
			line("Next best was %s with score %d; %s fitted.", d.RunnerUp, d.RunnerUpScore, plural(d.Feasible, "node"))
		case d.Feasible > 1:
			line("%s fitted.", plural(d.Feasible, "node"))
		default:
			line("No other node fitted.")
		}
		if len(d.Rejected) > 0 {
			line("Rejected nodes: %s.", rejections(d.Rejected))
		}
	}
}

func (g *Gang) text() string {
	if !g.Exists {
		return fmt.Sprintf("%s, %d placed; there is no such PodGroup.", plural(g.Members, "member"), g.Placed)
	}
	t := fmt.Sprintf("%s of at least %d, %d placed", plural(g.Members, "member"), g.MinMember, g.Placed)
	if waiting := g.Members - g.Placed; waiting > 0 {
		t += fmt.Sprintf("; there is room now for %d of the %d others", g.Room, waiting)
	}
	return t + "."
}

// printVerdict prints a node. GPUs that say the same share a line.
func printVerdict(sc screen, v *NodeVerdict) {
	if len(v.Obstacles) == 0 {
		fmt.Fprintf(sc, "%s: fits\n", v.Node)
	} else {
		fmt.Fprintf(sc, "%s: %s\n", v.Node, strings.Join(v.Obstacles, "; "))
	}
	var messages []string
	same := map[string][]int{}
	for _, g := range v.GPUs {
		if same[g.Message] == nil {
			messages = append(messages, g.Message)
		}
		same[g.Message] = append(same[g.Message], g.Index)
	}
	for _, m := range messages {
		fmt.Fprintf(sc, "  GPU %s: %s\n", joinIndices(same[m]), m)
	}
}
