// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gpupack/gpupack/test/bench/report"
)

// What gpupack must reach.
const (
	mostGrowth  = 3    // from the smallest cluster to the largest
	mostSeconds = 1    // for a run of the whole trace
	mostBytes   = 1024 // a node
)

// report says what was measured.
func (o *outcome) report() *report.Report {
	r := &report.Report{Intro: fmt.Sprintf("The openb cluster and trace default, the nodes replicated, %d %% of the GPUs taken before anything is measured. "+
		"All on one core. FGD done naively scores every node for each decision; %d of %d such decisions are the same as those of pack/sim.", int(100*full), o.alike, o.compared)}
	times := report.Table{Title: "One decision", Header: []string{"Policy", "Nodes", "Decisions", "Median, µs", "p99, µs", "Bytes a node"}, LeftColumns: 1}
	for _, way := range ways() {
		for _, size := range o.plan.sizes {
			c := o.costs[way][size]
			bytes := ""
			if c.bytes != 0 {
				bytes = fmt.Sprintf("%.0f", c.bytes)
			}
			times.Add(way, fmt.Sprint(size), fmt.Sprint(len(c.samples)), micro(c.quantile(0.5)), micro(c.quantile(0.99)), bytes)
		}
	}
	whole := report.Table{
		Title:  fmt.Sprintf("The whole trace, %d arrivals", o.tasks),
		Header: []string{"Policy", "Seconds, median of " + fmt.Sprint(runs)}, LeftColumns: 1,
	}
	for _, policy := range []string{"gpupack", "fgd"} {
		whole.Add(policy, fmt.Sprintf("%.2f", o.seconds(policy)))
	}
	r.Tables = []report.Table{times, whole}
	r.Goals = o.goals()
	return r
}

func micro(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Microsecond)) }

func (o *outcome) seconds(policy string) float64 { return o.whole[policy][len(o.whole[policy])/2] }

// goals says which goals are reached.
func (o *outcome) goals() []report.Goal {
	sizes := o.plan.sizes
	small, large := sizes[0], sizes[len(sizes)-1]
	ours := o.costs["gpupack"]
	median := float64(ours[large].quantile(0.5)) / float64(ours[small].quantile(0.5))
	p99 := float64(ours[large].quantile(0.99)) / float64(ours[small].quantile(0.99))
	var bytes []string
	for _, size := range slices.Backward(sizes) {
		bytes = append(bytes, fmt.Sprintf("%.0f at %d", ours[size].bytes, size))
	}
	return []report.Goal{
		{
			What:   fmt.Sprintf("time of one decision, median and p99, at %d nodes: at most %d times that at %d", large, mostGrowth, small),
			Figure: fmt.Sprintf("median %.2f times, p99 %.2f times", median, p99), Reached: median <= mostGrowth && p99 <= mostGrowth,
		},
		{
			What:   fmt.Sprintf("a run of the whole trace: at most %d s on one core", mostSeconds),
			Figure: fmt.Sprintf("%.2f s", o.seconds("gpupack")), Reached: o.seconds("gpupack") <= mostSeconds,
		},
		{
			// What a policy remembers is bounded and weighs most in small clusters.
			What:   fmt.Sprintf("memory at %d nodes: at most %d bytes a node", large, mostBytes),
			Figure: strings.Join(bytes, ", "), Reached: ours[large].bytes <= mostBytes,
		},
	}
}
