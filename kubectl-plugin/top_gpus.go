// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TopGPUs is the answer of kubectl gpupack top gpus. Nodes without telemetry have no items, but are in the totals.
type TopGPUs struct {
	metav1.TypeMeta `json:",inline"`
	Items           []GPUUsage `json:"items"`
	Totals          Totals     `json:"totals"`
}

var gpuKeys = []sortKey[GPUUsage]{
	{"node", func(a, b *GPUUsage) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Index, b.Index)) }},
	byName("model", func(g *GPUUsage) string { return g.Model }),
	byFigure("used", func(g *GPUUsage) int64 { return g.UsedMiB }),
	byFigure("requested", func(g *GPUUsage) int64 { return g.RequestedMiB }),
	byFigure("total", func(g *GPUUsage) int64 { return g.TotalMiB }),
	byFigure("free", func(g *GPUUsage) int64 { return g.FreeMiB }),
	byFigure("foreign", func(g *GPUUsage) int64 { return g.ForeignMiB }),
	byFigure("util", func(g *GPUUsage) int64 { return int64(g.Utilization) }),
	byFigure("power", func(g *GPUUsage) int64 { return g.PowerMilliwatts }),
	byFigure("temp", func(g *GPUUsage) int64 { return int64(g.TemperatureCelsius) }),
	byFigure("pods", func(g *GPUUsage) int64 { return int64(len(g.Pods)) }),
	{"health", func(a, b *GPUUsage) int { return cmp.Compare(rank(a), rank(b)) }},
}

// rank puts sick GPUs first.
func rank(g *GPUUsage) int {
	if g.Healthy {
		return 1
	}
	return 0
}

func (e *env) topGPUsCommand() *cobra.Command {
	out := output{keys: keyNames(gpuKeys)}
	var selector selectorFlag
	var prometheus prometheusFlag
	cmd := &cobra.Command{
		Use:     "gpus [NODE...]",
		Aliases: []string{"gpu"},
		Short:   "Show each GPU",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := out.printer(cmd)
			if err != nil {
				return err
			}
			s, nodes, err := e.readNodes(cmd, &selector, &prometheus, args)
			if err != nil {
				return err
			}
			answer := &TopGPUs{typeMeta("TopGPUs"), []GPUUsage{}, totals(nodes)}
			for i := range nodes {
				answer.Items = append(answer.Items, nodes[i].GPUs...)
			}
			sortItems(answer.Items, gpuKeys, out.sortBy)
			if p != nil {
				return printObject(p, e.Out, answer)
			}
			if len(answer.Items) > 0 {
				printGPUs(newScreen(e.Out), s, answer, &out)
			}
			s.sayWhatIsMissing(e.ErrOut, len(answer.Items))
			return nil
		},
	}
	out.add(cmd)
	e.addStaleAfter(cmd)
	selector.add(cmd, "nodes")
	prometheus.add(cmd)
	acceptAllNamespaces(cmd)
	return cmd
}

// Marks behind the name of a pod.
const (
	markOver = "!"
	markGone = "?"
)

func printGPUs(sc screen, s *snapshot, answer *TopGPUs, out *output) {
	t := table{columns: []column{
		{titles: []string{"NODE"}, min: 12, low: 16},
		{titles: []string{"IDX"}, right: true},
		{titles: []string{"UUID"}, wide: true},
		{titles: []string{"MODEL"}, min: 5, low: 9},
		{titles: memoryTitles},
		{titles: []string{"FREE"}, right: true, wide: true},
		{titles: []string{"FOREIGN"}, right: true},
		{titles: []string{"UTIL"}},
		{titles: []string{"POWER"}, right: true, wide: true},
		{titles: []string{"TEMP"}, right: true, wide: true},
		{titles: []string{"HEALTH"}},
		{titles: []string{"PODS"}, min: 14, low: 17},
	}}
	for i := range answer.Items {
		g := &answer.Items[i]
		foreign := styled("-", faint)
		if g.ForeignMiB > 0 {
			foreign = text(gib(g.ForeignMiB))
		}
		if g.ForeignMiB >= foreignNoteMiB {
			foreign[0].style = warn
		}
		health := text("ok")
		if !g.Healthy {
			health = styled(g.shortHealth(), bad)
		} else if g.telemetry == TelemetryStale {
			health = styled("stale", warn)
		} else if g.Cordoned != nil {
			health = styled("cordoned", warn)
		}
		power, temperature := "-", "-"
		if g.PowerMilliwatts > 0 {
			power = fmt.Sprintf("%dW", (g.PowerMilliwatts+500)/1000)
		}
		if g.TemperatureCelsius != 0 {
			temperature = fmt.Sprintf("%dC", g.TemperatureCelsius)
		}
		var pods listCell
		for _, p := range g.Pods {
			name := span{p.Name, plain}
			switch {
			case p.over():
				name = span{p.Name + markOver, bad}
			case p.Gone:
				name = span{p.Name + markGone, faint}
			}
			pods = append(pods, name)
		}
		t.rows = append(t.rows, []cell{
			text(g.Node), number(g.Index), text(g.UUID), modelCell(g.Model), memoryCell(&g.Memory, g.telemetry),
			text(gib(g.FreeMiB)), foreign, percentCell(g.Utilization, true), text(power), text(temperature), health, pods,
		})
	}
	t.print(sc, out.wide(), out.noHeaders)
	if out.noHeaders {
		return
	}
	printTotals(sc, answer.Totals)
	over, gone := false, false
	for i := range answer.Items {
		for _, p := range answer.Items[i].Pods {
			over, gone = over || p.over(), gone || p.Gone
		}
	}
	if over {
		fmt.Fprintf(sc, "pod%s uses more memory than it requested\n", markOver)
	}
	if gone {
		fmt.Fprintf(sc, "pod%s has ended, but its processes still use memory\n", markGone)
	}
}
