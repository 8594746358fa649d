// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/gpupack/gpupack/api/convert"
)

// TopPods is the answer of kubectl gpupack top pods.
type TopPods struct {
	metav1.TypeMeta `json:",inline"`
	Items           []PodUsage `json:"items"`
	Totals          PodTotals  `json:"totals"`
}

// PodTotals are the sums of a TopPods.
type PodTotals struct {
	Pods int `json:"pods"`
	// GPUs counts the GPUs that the pods hold, one that several share once.
	GPUs         int   `json:"gpus"`
	RequestedMiB int64 `json:"memoryRequestedMiB"`
	UsedMiB      int64 `json:"memoryUsedMiB"`
	// PodsOver counts the pods that use more than they requested.
	PodsOver int `json:"podsOver"`
}

var podKeys = []sortKey[PodUsage]{
	{"name", func(a, b *PodUsage) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}},
	byName("node", func(p *PodUsage) string { return p.Node }),
	byFigure("gpus", func(p *PodUsage) int64 { return int64(p.GPUCount) }),
	byFigure("used", func(p *PodUsage) int64 { return p.UsedMiB }),
	byFigure("requested", func(p *PodUsage) int64 { return p.RequestedMiB }),
	byFigure("over", func(p *PodUsage) int64 { return p.OverMiB }),
	byFigure("util", func(p *PodUsage) int64 { return int64(p.Utilization) }),
	byName("gang", func(p *PodUsage) string { return p.Gang }),
	{"age", func(a, b *PodUsage) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) }},
}

func (e *env) topPodsCommand() *cobra.Command {
	out := output{keys: keyNames(podKeys), names: true}
	var selector selectorFlag
	var namespaces namespaceFlags
	cmd := &cobra.Command{
		Use:     "pods [POD...]",
		Aliases: []string{"pod", "po"},
		Short:   "Show the pods that hold GPUs",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.begin(cmd, &out, &namespaces, &selector)
			if err != nil {
				return err
			}
			pods := gpuPods()
			pods.namespace, pods.selector = c.namespace, c.selector
			s, err := read(cmd.Context(), c, e.now(), scope{gpuNodes: true, pods: pods})
			if err != nil {
				return err
			}
			items, err := take(s.podUsage(e.view), args, "pod with GPUs", func(p *PodUsage) string { return p.Name })
			if err != nil {
				return err
			}
			sortItems(items, podKeys, out.sortBy)
			answer := func(items []PodUsage) *TopPods { return &TopPods{typeMeta("TopPods"), items, podTotals(items)} }
			err = printList(e, c, &out, &listing[PodUsage]{
				items:  items,
				answer: func(items []PodUsage) any { return answer(items) },
				name:   func(p *PodUsage) string { return "pod/" + p.Name },
				none:   fmt.Sprintf("No pods that hold GPUs found%s.", inNamespace(c.namespace)),
				table:  func(sc screen) { printPods(sc, s, answer(items), &out, c.namespace == "") },
			})
			if err == nil && c.printer == nil && out.format != formatName && (s.notInstalled || len(s.gpuNodes) == 0) {
				s.sayWhatIsMissing(e.ErrOut, len(items))
			}
			return err
		},
	}
	cmd.ValidArgsFunction = e.completePods(convert.HoldsGPUs)
	out.add(cmd)
	e.addStaleAfter(cmd)
	selector.add(cmd, "pods")
	namespaces.add(cmd)
	return cmd
}

func inNamespace(namespace string) string {
	if namespace == "" {
		return ""
	}
	return fmt.Sprintf(" in namespace %s", namespace)
}

func podTotals(pods []PodUsage) PodTotals {
	t := PodTotals{Pods: len(pods)}
	held := map[string]bool{}
	for i := range pods {
		p := &pods[i]
		t.RequestedMiB += p.RequestedMiB
		t.UsedMiB += p.UsedMiB
		if p.OverMiB > 0 {
			t.PodsOver++
		}
		for _, g := range p.GPUs {
			held[g.UUID] = true
		}
		if len(p.GPUs) == 0 {
			t.GPUs += p.GPUCount
		}
	}
	t.GPUs += len(held)
	return t
}

// indices writes the GPUs of a pod in short, such as "0-3,6"; "2 GPUs" where it is not known which.
func (p *PodUsage) indices() string {
	if len(p.GPUs) == 0 {
		return plural(p.GPUCount, "GPU")
	}
	indices := make([]int, len(p.GPUs))
	for i := range p.GPUs {
		indices[i] = p.GPUs[i].Index
	}
	return joinIndices(indices)
}

// joinIndices writes rising indices in short, such as "0-3,6".
func joinIndices(indices []int) string {
	var parts []string
	for i := 0; i < len(indices); {
		j := i
		for j+1 < len(indices) && indices[j+1] == indices[j]+1 {
			j++
		}
		switch {
		case j == i:
			parts = append(parts, fmt.Sprint(indices[i]))
		case j == i+1:
			parts = append(parts, fmt.Sprint(indices[i]), fmt.Sprint(indices[j]))
		default:
			parts = append(parts, fmt.Sprintf("%d-%d", indices[i], indices[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// memory is the figure and bar of used over requested memory.
func (p *PodUsage) memory() cell {
	if len(p.GPUs) == 0 {
		if p.RequestedMiB == 0 {
			return barCell{label: "-", kind: majorBar}
		}
		n, unit := gibIn(p.RequestedMiB, p.RequestedMiB)
		return barCell{label: "-/" + n + unit, kind: majorBar}
	}
	scale := max(p.RequestedMiB, p.UsedMiB)
	used, _ := gibIn(p.UsedMiB, scale)
	requested, unit := gibIn(p.RequestedMiB, scale)
	return barCell{label: used + "/" + requested + unit, kind: majorBar, parts: []part{
		{p.UsedMiB - p.OverMiB, glyphUsed, good},
		{p.OverMiB, glyphSick, bad},
		{max(0, p.RequestedMiB-p.UsedMiB), glyphPromised, good},
	}}
}

func printPods(sc screen, s *snapshot, answer *TopPods, out *output, allNamespaces bool) {
	t := table{columns: []column{
		{titles: []string{"NAMESPACE"}, min: 9, wide: !allNamespaces},
		{titles: []string{"NAME"}, min: 12, low: 18},
		{titles: []string{"NODE"}, min: 9, low: 16},
		{titles: []string{"GPUS"}},
		{titles: []string{"REQUEST"}, wide: true},
		{titles: []string{"MEMORY USED/REQ", "USED/REQ"}},
		{titles: []string{"UTIL"}},
		{titles: []string{"GANG"}, min: 5, low: 12},
		{titles: []string{"PHASE"}, wide: true},
		{titles: []string{"AGE"}, right: true, optional: true},
		{titles: []string{"NOTES"}, min: 17, low: 20},
	}}
	for i := range answer.Items {
		p := &answer.Items[i]
		var notes []span
		if p.OverMiB > 0 {
			notes = append(notes, span{fmt.Sprintf("%s over", gib(p.OverMiB)), bad})
		}
		if len(p.GPUs) == 0 {
			notes = append(notes, span{"no telemetry", warn})
		} else if p.telemetry == TelemetryStale {
			notes = append(notes, span{"stale", warn})
		}
		t.rows = append(t.rows, []cell{
			text(p.Namespace), text(p.Name), text(p.Node), text(p.indices()), text(p.Request), p.memory(),
			percentCell(p.Utilization, len(p.GPUs) > 0), text(orDash(p.Gang)), text(orDash(p.Phase)),
			text(duration.HumanDuration(s.age(p.CreationTimestamp))), listCell(notes),
		})
	}
	t.print(sc, out.wide(), out.noHeaders)
	if out.noHeaders {
		return
	}
	fmt.Fprintln(sc)
	printLine(sc, "%s", wrap(fmt.Sprintf("%s on %s: memory %s used, %s requested; %d over their request", plural(answer.Totals.Pods, "pod"),
		plural(answer.Totals.GPUs, "GPU"), gib(answer.Totals.UsedMiB), gib(answer.Totals.RequestedMiB), answer.Totals.PodsOver), sc.width))
	fmt.Fprintln(sc, sc.render([]span{{glyphUsed, good}, {" used  ", plain}, {glyphPromised, good}, {" requested, unused  ", plain},
		{glyphSick, bad}, {" used beyond the request", plain}}))
}
