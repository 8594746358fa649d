// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/gpupack/gpupack/pack/sim"
)

// chartHeight is the height of a chart without its axis, in CSS pixels, as in page.css. The width is the browser's choice,
// so that text keeps its size on any screen: x is always a percentage.
const chartHeight = 320

// labelHeight is the least distance between the labels at the ends of two curves, in CSS pixels.
const labelHeight = 17

// curves are the charts of allocation against arrivals, and their figures as a table.
type curves struct {
	Seed uint64
	// Paths are drawn once and used by each chart; in units of percent, y upside down.
	Paths []curvePath
	Ideal string
	Names []string
	// Toggles is true where curves can be switched off one by one.
	Toggles bool
	Charts  []chart
	Table   []curveRow
}

type curvePath struct {
	Name string
	// Colour is that of the policy.
	Colour int
	D      string
}

// chart is a window on the curves.
type chart struct {
	ID, Title, Description string
	ViewBox                string
	X, Y                   []tick
	Labels                 []curveLabel
}

// tick of the x axis at a percentage of the width, or of the y axis at CSS pixels from the top.
type tick struct{ At, Text string }

type curveLabel struct {
	Name   string
	Colour int
	Y      int
}

// curveRow is what is allocated at one point of the x axis.
type curveRow struct {
	Arrived, Ideal float64
	Allocated      []float64
}

func drawCurves(r *Report) curves {
	c := curves{Seed: r.Policies[0].Runs[0].Seed, Toggles: len(r.Policies) > 1 && len(r.Policies) <= colours}
	all := make([][]sim.Point, len(r.Policies))
	last := 0.0
	for i := range r.Policies {
		// All begin at nothing, although the first point comes after some arrivals.
		all[i] = append([]sim.Point{{}}, r.Policies[i].detail().Curve...)
		last = max(last, all[i][len(all[i])-1].Arrived)
		c.Paths = append(c.Paths, curvePath{r.Policies[i].Name, i % colours, pathOf(all[i])})
		c.Names = append(c.Names, r.Policies[i].Name)
	}
	if last == 0 {
		return c
	}
	c.Ideal = pathOf([]sim.Point{{}, {Arrived: min(last, 100), Allocated: min(last, 100)}, {Arrived: last, Allocated: min(last, 100)}})
	c.Charts = append(c.Charts, newChart("whole", "The whole run", all, c.Paths, 0, last, 0, 100))
	if from, low := part(all, last); from > 0 {
		c.Charts = append(c.Charts, newChart("end", fmt.Sprintf("From %s %% on", short(from)), all, c.Paths, from, last, low, 100))
	}
	for _, at := range tableSteps(last) {
		row := curveRow{Arrived: at, Ideal: min(at, 100)}
		for i := range all {
			row.Allocated = append(row.Allocated, allocatedAt(all[i], at))
		}
		c.Table = append(c.Table, row)
	}
	return c
}

// part finds a window that shows how the curves end: from a little before the first falls a point short of the ideal, but
// not from so early that the end is small again; and above what is allocated there. from is 0 where no curve falls short.
func part(all [][]sim.Point, last float64) (from, low float64) {
	at := math.Inf(1)
	for _, curve := range all {
		for _, p := range curve {
			if min(p.Arrived, 100)-p.Allocated >= 1 {
				at = min(at, p.Arrived)
				break
			}
		}
	}
	from = math.Floor(max(at-3, 0.6*last)/5) * 5
	if from == 0 || last-from < 5 { // so too where none falls short
		return 0, 0
	}
	low = 100
	for _, curve := range all {
		low = min(low, allocatedAt(curve, from), curve[len(curve)-1].Allocated)
	}
	return from, max(0, math.Floor((low-0.5)/5)*5)
}

func newChart(id, title string, all [][]sim.Point, paths []curvePath, x0, x1, y0, y1 float64) chart {
	ch := chart{
		ID: id, Title: title,
		ViewBox: fmt.Sprintf("%s %s %s %s", short(x0), short(-y1), short(x1-x0), short(y1-y0)),
		X:       ticks(x0, x1, func(v float64) string { return position(v, x0, x1) }),
		Y:       ticks(y0, y1, func(v float64) string { return short(chartHeight * (y1 - v) / (y1 - y0)) }),
	}
	var ends []string
	for i, curve := range all {
		end := curve[len(curve)-1].Allocated
		ch.Labels = append(ch.Labels, curveLabel{paths[i].Name, paths[i].Colour, int(math.Round(chartHeight * (y1 - end) / (y1 - y0)))})
		ends = append(ends, fmt.Sprintf("%s at %s %%", paths[i].Name, percent(end)))
	}
	spreadLabels(ch.Labels)
	ch.Description = fmt.Sprintf("Curves of GPUs allocated, %s to %s %%, against GPUs that arrivals asked for, %s to %s %%. They end with %s.",
		short(y0), short(y1), short(x0), trimmed(x1), list(ends))
	return ch
}

// spreadLabels moves labels apart that would overlap, and keeps them inside the chart while they are few enough.
func spreadLabels(labels []curveLabel) {
	order := make([]*curveLabel, len(labels))
	for i := range labels {
		order[i] = &labels[i]
	}
	slices.SortStableFunc(order, func(a, b *curveLabel) int { return cmp.Compare(a.Y, b.Y) })
	floor := chartHeight
	for i := len(order) - 1; i >= 0; i-- {
		order[i].Y = min(order[i].Y, floor)
		floor = order[i].Y - labelHeight
	}
	ceiling := 0
	for _, l := range order {
		l.Y = max(l.Y, ceiling)
		ceiling = l.Y + labelHeight
	}
}

// ticks returns round figures from low to high, at most eight.
func ticks(low, high float64, at func(float64) string) []tick {
	step := 1.0
	for _, s := range []float64{1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000} {
		if step = s; (high-low)/s <= 7 {
			break
		}
	}
	var out []tick
	for v := math.Ceil(low/step) * step; v <= high+1e-9; v += step {
		out = append(out, tick{at(v), short(v)})
	}
	return out
}

// tableSteps are the points of the table: each tenth, and more where curves part.
func tableSteps(last float64) []float64 {
	var out []float64
	step := 10.0
	if last > 200 {
		step = math.Ceil(last/20/10) * 10
	}
	for v := step; v < last; v += step {
		out = append(out, v)
		if v == 90 {
			out = append(out, 95)
		}
	}
	return append(out, last)
}

// allocatedAt is the height of a curve between its points.
func allocatedAt(curve []sim.Point, arrived float64) float64 {
	i, _ := slices.BinarySearchFunc(curve, arrived, func(p sim.Point, v float64) int { return cmp.Compare(p.Arrived, v) })
	switch {
	case i == len(curve):
		return curve[i-1].Allocated
	case i == 0 || curve[i].Arrived == curve[i-1].Arrived:
		return curve[i].Allocated
	}
	a, b := curve[i-1], curve[i]
	return a.Allocated + (b.Allocated-a.Allocated)*(arrived-a.Arrived)/(b.Arrived-a.Arrived)
}

func pathOf(curve []sim.Point) string {
	var b strings.Builder
	for i, p := range curve {
		sep := "L"
		if i == 0 {
			sep = "M"
		}
		b.WriteString(sep + short(p.Arrived) + "," + short(-p.Allocated))
	}
	return b.String()
}

// short writes a number to 0.01 in as few characters as it takes.
func short(v float64) string {
	return strconv.FormatFloat(math.Round(v*100)/100+0, 'f', -1, 64) // + 0 makes 0 of -0
}
