// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// TopNodes is the answer of kubectl gpupack top nodes.
type TopNodes struct {
	metav1.TypeMeta `json:",inline"`
	Items           []NodeUsage `json:"items"`
	Totals          Totals      `json:"totals"`
}

var nodeKeys = []sortKey[NodeUsage]{
	byName("node", func(n *NodeUsage) string { return n.Node }),
	byName("model", func(n *NodeUsage) string { return n.Model }),
	byFigure("gpus", func(n *NodeUsage) int64 { return int64(n.GPUsHeld) }),
	byFigure("used", func(n *NodeUsage) int64 { return n.UsedMiB }),
	byFigure("requested", func(n *NodeUsage) int64 { return n.RequestedMiB }),
	byFigure("total", func(n *NodeUsage) int64 { return n.TotalMiB }),
	byFigure("free", func(n *NodeUsage) int64 { return n.FreeMiB }),
	byFigure("foreign", func(n *NodeUsage) int64 { return n.ForeignMiB }),
	byFigure("util", func(n *NodeUsage) int64 { return int64(n.Utilization) }),
	byFigure("pods", func(n *NodeUsage) int64 { return int64(n.PodCount) }),
	byFigure("notes", func(n *NodeUsage) int64 { return int64(len(n.Notes)) }),
}

// topNodesCommand prints the nodes. With live, it shows the live view where that is wanted.
func (e *env) topNodesCommand(live bool) *cobra.Command {
	out := output{keys: keyNames(nodeKeys), names: true}
	var selector selectorFlag
	var prometheus prometheusFlag
	cmd := &cobra.Command{
		Use:     "nodes [NODE...]",
		Aliases: []string{"node", "no"},
		Short:   "Show the nodes that have GPUs",
		RunE: func(cmd *cobra.Command, args []string) error {
			watch := false
			if live {
				var err error
				if watch, err = e.wantsLive(cmd); err != nil {
					return err
				}
			}
			p, err := out.printer(cmd)
			if err != nil {
				return err
			}
			if watch {
				return e.watchTop(cmd, &selector, &prometheus, out.sortBy)
			}
			s, nodes, err := e.readNodes(cmd, &selector, &prometheus, args)
			if err != nil {
				return err
			}
			sortItems(nodes, nodeKeys, out.sortBy)
			answer := &TopNodes{typeMeta("TopNodes"), nodes, totals(nodes)}
			switch {
			case p != nil:
				return printObject(p, e.Out, answer)
			case out.format == formatName:
				for i := range nodes {
					printLine(e.Out, "node/%s", nodes[i].Node)
				}
				return nil
			}
			if len(nodes) > 0 {
				printNodes(newScreen(e.Out), s, answer, &out)
			}
			s.sayWhatIsMissing(e.ErrOut, len(nodes))
			return nil
		},
	}
	out.add(cmd)
	e.addStaleAfter(cmd)
	selector.add(cmd, "nodes")
	prometheus.add(cmd)
	acceptAllNamespaces(cmd)
	if live {
		addWatch(cmd)
	}
	return cmd
}

// readNodes reads the nodes of a command on nodes or GPUs.
func (e *env) readNodes(cmd *cobra.Command, f *selectorFlag, p *prometheusFlag, names []string) (*snapshot, []NodeUsage, error) {
	selector, err := f.parse(cmd)
	if err != nil {
		return nil, nil, err
	}
	source, err := p.source(cmd)
	if err != nil {
		return nil, nil, err
	}
	r, err := e.reader()
	if err != nil {
		return nil, nil, err
	}
	s, err := read(cmd.Context(), r, e.now(), scope{nodes: orEverything(selector), gpuNodes: true, pods: gpuPods()})
	if err != nil {
		return nil, nil, err
	}
	e.sayMeasured(cmd.Context(), s, source)
	nodes, err := take(s.nodeUsage(e.view, selector != nil), names, "node with GPUs", func(n *NodeUsage) string { return n.Node })
	return s, append([]NodeUsage{}, nodes...), err
}

func printNodes(sc screen, s *snapshot, answer *TopNodes, out *output) {
	t := table{columns: []column{
		{titles: []string{"NODE"}, min: 12, low: 16},
		{titles: []string{"MODEL"}, min: 5, low: 9},
		{titles: []string{"GPUS"}, right: true},
		{titles: memoryTitles},
		{titles: []string{"FREE"}, right: true, wide: true},
		{titles: []string{"UTIL"}},
		{titles: []string{"PODS"}, right: true},
		{titles: []string{"MODE"}, wide: true},
		{titles: []string{"SOURCE"}, wide: true},
		{titles: []string{"DRIVER"}, wide: true},
		{titles: []string{"READ"}, right: true, wide: true},
		{titles: []string{"NOTES"}, min: 17, low: 20},
	}}
	for i := range answer.Items {
		n := &answer.Items[i]
		known := len(n.GPUs) > 0
		read := "-"
		if n.ObservedTime != nil {
			read = duration.HumanDuration(s.age(metav1.Time{Time: n.ObservedTime.Time}))
		}
		free := "-"
		if known {
			free = gib(n.FreeMiB)
		}
		t.rows = append(t.rows, []cell{
			text(n.Node), modelCell(n.Model), text(fmt.Sprintf("%d/%d", n.GPUsHeld, n.GPUCount)),
			memoryCell(&n.Memory, n.Telemetry), text(free), percentCell(n.Utilization, known), number(n.PodCount),
			text(orDash(string(n.Mode))), text(orDash(string(n.Source))), text(orDash(n.Driver)), text(read), listCell(n.notes),
		})
	}
	t.print(sc, out.wide(), out.noHeaders)
	if !out.noHeaders {
		printTotals(sc, answer.Totals)
	}
}
