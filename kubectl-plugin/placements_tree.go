// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"fmt"
	"slices"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/duration"
)

// Values of --by.
const (
	byNodeTree = "node"
	byGangTree = "gang"
)

// branch is a node of a tree of placements: what it is called, and what is below.
type branch struct {
	name string
	// pod is nil for what is no pod.
	pod   *PodPlacement
	below []*branch
}

// to returns the branch of that name below b, which it adds if need be.
func (b *branch) to(name string) *branch {
	for _, child := range b.below {
		if child.name == name {
			return child
		}
	}
	child := &branch{name: name}
	b.below = append(b.below, child)
	return child
}

// placementTree puts pods below their GPUs below their nodes, or below their nodes below their gangs.
func placementTree(items []PodPlacement, by string) *branch {
	sorted := slices.Clone(items)
	slices.SortStableFunc(sorted, func(a, b PodPlacement) int {
		gang := 0
		if by == byGangTree {
			// Pods of no gang come last.
			gang = cmp.Or(cmp.Compare(btoi(a.Gang == ""), btoi(b.Gang == "")), cmp.Compare(a.gangName(), b.gangName()))
		}
		return cmp.Or(gang, cmp.Compare(a.Node, b.Node), cmp.Compare(a.firstGPU(), b.firstGPU()), cmp.Compare(a.indices(), b.indices()))
	})
	root := &branch{}
	for i := range sorted {
		p := &sorted[i]
		at := root
		if by == byGangTree {
			at = at.to(p.gangName())
		}
		at = at.to(p.Node)
		if by == byNodeTree {
			at = at.to("GPU " + p.indices())
		}
		at.below = append(at.below, &branch{name: p.Namespace + "/" + p.Name, pod: p})
	}
	return root
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *PodPlacement) gangName() string {
	if p.Gang == "" {
		return "no gang"
	}
	return fmt.Sprintf("gang %s/%s", p.Namespace, p.Gang)
}

func (p *PodPlacement) firstGPU() int {
	if len(p.GPUs) == 0 {
		return -1
	}
	return p.GPUs[0].Index
}

// treeCell is a name in a tree, whose lines stay when it is shortened.
type treeCell struct{ lines, name string }

func (c treeCell) want() int  { return utf8.RuneCountInString(c.lines + c.name) }
func (c treeCell) most() int  { return c.want() }
func (c treeCell) least() int { return utf8.RuneCountInString(c.lines) + 3 }

func (c treeCell) draw(w int) []span {
	return []span{{c.lines, faint}, {shorten(c.name, w-utf8.RuneCountInString(c.lines)), plain}}
}

func printPlacementTree(sc screen, s *snapshot, items []PodPlacement, by string, out *output) {
	t := table{columns: []column{
		{titles: []string{map[string]string{byNodeTree: "NODE", byGangTree: "GANG"}[by]}, min: 20, low: 28},
		{titles: []string{"GPUS"}, wide: by == byNodeTree},
		{titles: []string{"REQUEST"}, min: 8, low: 16},
		{titles: []string{"SCORE"}, right: true},
		{titles: []string{"RUNNER-UP"}, min: 12, low: 16},
		{titles: []string{"GANG"}, min: 5, low: 12, wide: by == byGangTree},
		{titles: []string{"AGE"}, right: true, optional: true},
		{titles: []string{"REJECTED"}, wide: true},
	}}
	var add func(b *branch, lines string)
	add = func(b *branch, lines string) {
		for i, child := range b.below {
			head, rest := "├─ ", "│  "
			if i == len(b.below)-1 {
				head, rest = "└─ ", "   "
			}
			if b.name == "" {
				// The roots of the trees stand alone.
				head, rest = "", ""
			}
			row := []cell{treeCell{lines + head, child.name}, text(""), text(""), text(""), text(""), text(""), text(""), text("")}
			if p := child.pod; p != nil {
				score, runnerUp := scoreCells(p.Decision)
				rejected := "-"
				if p.Decision != nil {
					rejected = rejections(p.Decision.Rejected)
				}
				row = []cell{row[0], text(p.indices()), text(p.shortRequest), text(score), runnerUp, text(orDash(p.Gang)),
					text(duration.HumanDuration(s.age(p.CreationTimestamp))), text(rejected)}
			}
			t.rows = append(t.rows, row)
			add(child, lines+rest)
		}
	}
	add(placementTree(items, by), "")
	t.print(sc, out.wide(), out.noHeaders)
}
