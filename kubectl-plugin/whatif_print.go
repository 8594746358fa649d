// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"
	"strconv"
	"strings"
)

// printWhatIf prints the answer as text.
func printWhatIf(sc screen, x *WhatIf, out *output) {
	if len(x.Pods) > 0 {
		whatIfTable(x).print(sc, out.wide(), out.noHeaders)
	}
	if out.noHeaders {
		return
	}
	section := func(title string) { fmt.Fprintf(sc, "\n%s\n", sc.render([]span{{title, heading}})) }
	line := func(format string, args ...any) { fmt.Fprintln(sc, wrap(fmt.Sprintf(format, args...), sc.width)) }
	if x.Placed < len(x.Pods) {
		section("Not placed")
		for _, group := range x.unplaced() {
			line("%s: %s", strings.Join(group.pods, ", "), group.pod.Reason)
			for _, r := range group.pod.Reasons {
				example := ""
				if r.Nodes == 1 {
					example = ": " + r.Example
				}
				fmt.Fprintf(sc, "%6d  %s%s\n", r.Nodes, r.Message, example)
			}
		}
	}
	if len(x.Pods) > 0 {
		fmt.Fprintln(sc)
	}
	for _, a := range x.AddedNodes {
		line("Added: %s with %s of model %s, like %s.", plural(len(a.Names), "node"), plural(a.GPUs, "GPU"), a.Model, a.Like)
	}
	if len(x.DrainedNodes) > 0 {
		line("Drained: %s.", strings.Join(x.DrainedNodes, ", "))
	}
	if len(x.Pods) > 0 {
		line("%d of %s placed.", x.Placed, plural(len(x.Pods), "pod"))
	} else {
		line("No pod waits for a place.")
	}
	line("GPUs allocated: %s before, %s after. Free as a whole: %d before, %d after.", &x.Before, &x.After, x.Before.FreeWhole,
		x.After.FreeWhole)
	for _, u := range x.Unchecked {
		line("Not checked: %s of %s.", u.Demand, plural(u.Pods, "pod"))
	}
}

// String is such as "20.5 of 48 (42.7 %)".
func (a *Allocation) String() string {
	gpus := strings.TrimSuffix(strconv.FormatFloat(float64(a.Milli)/1000, 'f', 1, 64), ".0")
	return fmt.Sprintf("%s of %d (%.1f %%)", gpus, a.GPUs, a.Percent)
}

func whatIfTable(x *WhatIf) *table {
	t := &table{columns: []column{
		{titles: []string{"NAMESPACE"}, min: 9},
		{titles: []string{"NAME"}, min: 12, low: 18},
		{titles: []string{"WHY"}},
		{titles: []string{"PRIORITY"}, right: true, wide: true},
		{titles: []string{"REQUEST"}, min: 8, low: 16},
		{titles: []string{"GANG"}, min: 5, low: 12},
		{titles: []string{"NODE"}, min: 9, low: 16},
		{titles: []string{"GPUS"}},
		{titles: []string{"UUIDS"}, wide: true},
	}}
	for i := range x.Pods {
		p := &x.Pods[i]
		node, gpus := styled("not placed", bad), "-"
		if p.Node != "" {
			node, gpus = text(p.Node), placedIndices(p.GPUs)
		}
		uuids := make([]string, len(p.GPUs))
		for j, g := range p.GPUs {
			uuids[j] = g.UUID
		}
		t.rows = append(t.rows, []cell{
			text(p.Namespace), text(p.Name), text(string(p.Origin)), number(int(p.Priority)), text(orDash(p.shortRequest)),
			text(orDash(p.Gang)), node, text(gpus), text(orDash(strings.Join(uuids, ","))),
		})
	}
	return t
}

// alikePods are pods without a place for the same reason.
type alikePods struct {
	pods []string
	pod  *WhatIfPod
}

// mostNames is how many names of a group are written.
const mostNames = 5

// unplaced groups the pods without a place by why they have none.
func (x *WhatIf) unplaced() []alikePods {
	var out []alikePods
	at := map[string]int{}
	count := map[int]int{}
	for i := range x.Pods {
		p := &x.Pods[i]
		if p.Node != "" {
			continue
		}
		key := fmt.Sprint(p.Reason, p.Reasons)
		n, ok := at[key]
		if !ok {
			n = len(out)
			at[key] = n
			out = append(out, alikePods{pod: p})
		}
		if count[n]++; count[n] <= mostNames {
			out[n].pods = append(out[n].pods, p.Namespace+"/"+p.Name)
		}
	}
	for n := range out {
		if more := count[n] - mostNames; more > 0 {
			out[n].pods = append(out[n].pods, fmt.Sprintf("%d more", more))
		}
	}
	return out
}
