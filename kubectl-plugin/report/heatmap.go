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

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
)

const (
	// mapWidth is the width of a heat map in its own units, which are CSS pixels where it is not stretched: what is left of
	// a screen of 400 pixels.
	mapWidth = 352
	// mapArea is how much a map may cover before its cells get smaller, in square units.
	mapArea = mapWidth * 480
	// mostCells is how many cells a map may have. A larger cluster gets a cell for several GPUs.
	mostCells = 16_000
	// nodeGap is the space between two nodes beyond that between two cells.
	nodeGap = 2
)

// buckets are the shades of a GPU by what is allocated of it, from none to all.
var buckets = [...]string{"0 %", "≤ 25", "≤ 50", "≤ 75", "< 100", "100 %"}

// bucketOf is the shade of a cell of which free of size is free.
func bucketOf(free, size int) int {
	switch used := size - free; {
	case used <= 0:
		return 0
	case free <= 0:
		return len(buckets) - 1
	default:
		return 1 + min(3, (4*used-1)/size)
	}
}

// heatmap is the cluster at one time of one policy's run, a cell a GPU.
type heatmap struct {
	ID     string
	Policy string
	Colour int
	// Common is true for a map that is the same under all policies.
	Common bool
	// When is "before" or "after".
	When      string
	Allocated float64
	// Left says what is not allocated.
	Left    string
	Buckets []bucketCount
	Groups  []mapGroup
}

type bucketCount struct {
	Shade int
	Name  string
	Count int
}

// mapGroup is the nodes of one model and number of GPUs.
type mapGroup struct {
	Name, Size string
	Allocated  float64
	Height     int
	Paths      []mapPath

	// What the script needs to find the cell under the pointer: the first cell's number, cells a node, nodes a row, and the
	// distance from cell to cell.
	First, Cells, Columns, Pitch, Gap, Nodes int
}

// mapPath is all cells of one shade. Cells are dashes of a broad line, so that equal neighbours cost nothing.
type mapPath struct {
	Shade int
	D     string
	// Width of the line, and its dashes.
	Width int
	Dash  string
}

// cells is what the script tells of the cell under the pointer.
type cells struct {
	// Names of nodes, in the order in which groups draw them.
	Names []string `json:"names"`
	// Merged is true where a cell is one node or several, not a GPU.
	Merged bool `json:"merged"`
	// CPU in milli-CPU and memory in MiB, a node; nothing where a cell is several nodes.
	CPU    []int64 `json:"cpu"`
	Memory []int64 `json:"memory"`
	// Maps in the order of the page.
	Maps []mapCells `json:"maps"`
}

// mapCells is what is free: thousandths of each cell, and milli-CPU and MiB of each node.
type mapCells struct {
	Free   []int   `json:"free"`
	CPU    []int64 `json:"cpu"`
	Memory []int64 `json:"memory"`
}

// layout is where cells go, the same in all maps.
type layout struct {
	groups []layoutGroup
	// merged is how many nodes share one cell; 0 where each GPU has its own.
	merged int
	// pitch is the distance from cell to cell, and gap what is added from node to node.
	pitch, gap int
}

type layoutGroup struct {
	model string
	gpus  int
	// nodes are positions in the cluster.
	nodes []int
}

func newLayout(nodes []sim.NodeUse, most int) layout {
	type key struct {
		model string
		gpus  int
	}
	l := layout{gap: nodeGap}
	at := map[key]int{}
	total, with := 0, 0
	for i := range nodes {
		n := &nodes[i]
		if len(n.Milli) == 0 {
			continue
		}
		total += len(n.Milli)
		with++
		k := key{n.Model, len(n.Milli)}
		if _, ok := at[k]; !ok {
			at[k] = len(l.groups)
			l.groups = append(l.groups, layoutGroup{model: k.model, gpus: k.gpus})
		}
		g := &l.groups[at[k]]
		g.nodes = append(g.nodes, i)
	}
	slices.SortFunc(l.groups, func(a, b layoutGroup) int {
		return cmp.Or(cmp.Compare(b.gpus*len(b.nodes), a.gpus*len(a.nodes)), strings.Compare(a.model, b.model), cmp.Compare(b.gpus, a.gpus))
	})
	count := total
	if total > most {
		l.merged = (with + most - 1) / most
		count = with / l.merged
		l.gap = 0
	}
	l.pitch = min(10, max(4, int(math.Sqrt(mapArea/float64(max(1, count))))))
	return l
}

// cell is what is free of a cell's capacity, both in milli-GPU.
type cell struct{ free, size int }

// block returns how many cells belong together in a group: those of a node, or one of several nodes.
func (l *layout) block(g *layoutGroup) (cellsEach, blocks int) {
	if l.merged == 0 {
		return g.gpus, len(g.nodes)
	}
	return 1, (len(g.nodes) + l.merged - 1) / l.merged
}

// cells returns the cells of a block of a group.
func (l *layout) cells(g *layoutGroup, block int, nodes []sim.NodeUse) []cell {
	if l.merged == 0 {
		n := &nodes[g.nodes[block]]
		out := make([]cell, len(n.Milli))
		for i, free := range n.Milli {
			out[i] = cell{free, pack.WholeMilli}
		}
		return out
	}
	var c cell
	for _, at := range g.nodes[block*l.merged : min(len(g.nodes), (block+1)*l.merged)] {
		for _, free := range nodes[at].Milli {
			c.free += free
			c.size += pack.WholeMilli
		}
	}
	return []cell{c}
}

// names returns what blocks are called, in the order of drawing.
func (l *layout) names(nodes []sim.NodeUse) []string {
	var out []string
	for i := range l.groups {
		g := &l.groups[i]
		_, blocks := l.block(g)
		for b := range blocks {
			if l.merged <= 1 {
				out = append(out, nodes[g.nodes[b]].Name)
				continue
			}
			last := min(len(g.nodes), (b+1)*l.merged) - 1
			out = append(out, nodes[g.nodes[b*l.merged]].Name+" to "+nodes[g.nodes[last]].Name)
		}
	}
	return out
}

// drawMaps draws the cluster before and after, and says what a reader must know of all maps. What is the same before for
// all policies is drawn once.
func drawMaps(r *Report) ([]heatmap, *cells, string) {
	nodes := r.Policies[0].detail().Before
	l := newLayout(nodes, mostCells)
	data := &cells{Names: l.names(nodes), Merged: l.merged > 0}
	if l.merged <= 1 {
		for i := range l.groups {
			for _, at := range l.groups[i].nodes {
				data.CPU = append(data.CPU, nodes[at].CPUMilli)
				data.Memory = append(data.Memory, nodes[at].MemoryMiB)
			}
		}
	}
	var maps []heatmap
	add := func(m heatmap, use []sim.NodeUse) {
		drawn, under := l.draw(use)
		drawn.ID, drawn.Policy, drawn.Colour, drawn.Common, drawn.When = m.ID, m.Policy, m.Colour, m.Common, m.When
		maps = append(maps, drawn)
		data.Maps = append(data.Maps, under)
	}
	common := true
	for i := range r.Policies {
		common = common && slices.EqualFunc(nodes, r.Policies[i].detail().Before, sameUse)
	}
	if common {
		add(heatmap{ID: "before", Common: true, When: "before"}, nodes)
	}
	for i := range r.Policies {
		p := &r.Policies[i]
		m := heatmap{Policy: p.Name, Colour: i % colours}
		if !common {
			m.ID, m.When = "before-"+strconv.Itoa(i), "before"
			add(m, p.detail().Before)
		}
		m.ID, m.When = "after-"+strconv.Itoa(i), "after"
		add(m, p.detail().After)
	}
	note := "A cell is a GPU, cells side by side are a node."
	switch {
	case l.merged == 1:
		note = "A cell is a node with all its GPUs, for there are too many to show each."
	case l.merged > 1:
		note = fmt.Sprintf("A cell is %d nodes with all their GPUs, for there are too many to show each.", l.merged)
	}
	moved := false
	for i := range r.Policies {
		moved = moved || len(r.Policies[i].detail().Moves) > 0
	}
	switch {
	case moved:
		note += " Before is just before defragmentation, where it moved anything."
	case common:
		note += " Before is before the first arrival."
	}
	return maps, data, note
}

func sameUse(a, b sim.NodeUse) bool {
	return a.FreeCPUMilli == b.FreeCPUMilli && a.FreeMemoryMiB == b.FreeMemoryMiB && slices.Equal(a.Milli, b.Milli)
}

// draw draws the groups and counts what is allocated.
func (l *layout) draw(nodes []sim.NodeUse) (heatmap, mapCells) {
	var m heatmap
	var under mapCells
	var shades [len(buckets)]int
	var free, size, whole, rests, rested int
	first := 0
	for i := range l.groups {
		g := &l.groups[i]
		each, blocks := l.block(g)
		columns := min(blocks, max(1, (mapWidth+l.gap+1)/(each*l.pitch+l.gap)))
		drawn := mapGroup{
			Name:  fmt.Sprintf("%s × %d", g.model, g.gpus),
			Size:  plural(len(g.nodes), "node") + ", " + plural(g.gpus*len(g.nodes), "GPU"),
			First: first, Cells: each, Columns: columns, Pitch: l.pitch, Gap: l.gap, Nodes: blocks,
			Height: l.pitch * ((blocks + columns - 1) / columns),
		}
		var paths [len(buckets)]strings.Builder
		groupFree := 0
		for b := range blocks {
			cs := l.cells(g, b, nodes)
			x, y := b%columns*(each*l.pitch+l.gap), b/columns*l.pitch
			for c := 0; c < len(cs); {
				shade := bucketOf(cs[c].free, cs[c].size)
				n := c
				for n < len(cs) && bucketOf(cs[n].free, cs[n].size) == shade {
					groupFree += cs[n].free
					under.Free = append(under.Free, cs[n].free*1000/cs[n].size)
					n++
				}
				// Twice the middle of a row, so that it is a whole number.
				fmt.Fprintf(&paths[shade], "M%d %sh%d", x+c*l.pitch, half(2*y+l.pitch-1), (n-c)*l.pitch-1)
				shades[shade] += n - c
				c = n
			}
		}
		for shade := range paths {
			if paths[shade].Len() > 0 {
				drawn.Paths = append(drawn.Paths, mapPath{shade, paths[shade].String(), l.pitch - 1, fmt.Sprintf("%d 1", l.pitch-1)})
			}
		}
		groupSize := pack.WholeMilli * g.gpus * len(g.nodes)
		drawn.Allocated = 100 - share(float64(groupFree), float64(groupSize))
		free, size = free+groupFree, size+groupSize
		first += each * blocks
		m.Groups = append(m.Groups, drawn)
		for _, at := range g.nodes {
			n := &nodes[at]
			for _, f := range n.Milli {
				switch {
				case f == pack.WholeMilli:
					whole++
				case f > 0:
					rests += f
					rested++
				}
			}
			if l.merged <= 1 {
				under.CPU = append(under.CPU, n.FreeCPUMilli)
				under.Memory = append(under.Memory, n.FreeMemoryMiB)
			}
		}
	}
	m.Allocated = 100 - share(float64(free), float64(size))
	switch {
	case free == 0:
		m.Left = "nothing is free"
	case rested == 0:
		m.Left = plural(whole, "whole GPU") + " free"
	default:
		m.Left = fmt.Sprintf("%s free: %s whole, %s in rests of %s", gpus(int64(free)), count(whole), gpus(int64(rests)), plural(rested, "GPU"))
	}
	for shade, n := range shades {
		m.Buckets = append(m.Buckets, bucketCount{shade, buckets[shade], n})
	}
	return m, under
}

// half writes a number of halves.
func half(n int) string {
	if n%2 == 0 {
		return strconv.Itoa(n / 2)
	}
	return strconv.Itoa(n/2) + ".5"
}
