// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"slices"
	"strings"
)

// liveGroupings are what the rows of the live view can be grouped by.
var liveGroupings = []string{"node", "pool", "model", "namespace", "gang"}

const (
	byNode = iota
	byPool
	byModel
	byNamespace
	byGang
)

// ofPods says whether the groups are of pods rather than of nodes.
func ofPods(grouping int) bool { return grouping >= byNamespace }

// liveSums are the figures of a row that rows are sorted by.
type liveSums struct {
	name        string
	memory      Memory
	utilization int
	held, count int
	pods, notes int
}

// liveKey is a column that rows can be sorted by.
type liveKey struct {
	name    string
	compare func(a, b *liveSums) int
}

func byFigureOf(name string, figure func(*liveSums) int64) liveKey {
	return liveKey{name, func(a, b *liveSums) int { return cmp.Compare(figure(b), figure(a)) }}
}

// liveKeys sort names ascending and figures descending.
var liveKeys = []liveKey{
	{"name", func(*liveSums, *liveSums) int { return 0 }},
	byFigureOf("used", func(s *liveSums) int64 { return s.memory.UsedMiB }),
	byFigureOf("requested", func(s *liveSums) int64 { return s.memory.RequestedMiB }),
	byFigureOf("free", func(s *liveSums) int64 { return s.memory.FreeMiB }),
	byFigureOf("foreign", func(s *liveSums) int64 { return s.memory.ForeignMiB }),
	byFigureOf("util", func(s *liveSums) int64 { return int64(s.utilization) }),
	byFigureOf("gpus", func(s *liveSums) int64 { return int64(s.held) }),
	byFigureOf("pods", func(s *liveSums) int64 { return int64(s.pods) }),
	byFigureOf("notes", func(s *liveSums) int64 { return int64(s.notes) }),
}

// liveGroup is a row that stands for several nodes or pods.
type liveGroup struct {
	key, name string
	sums      liveSums
	nodes     []*liveNode
	pods      []*livePod
}

// liveRow is one row of the tree: a group, a node, a GPU of a node, or a pod.
type liveRow struct {
	depth int
	group *liveGroup
	node  *liveNode
	// gpu is the position among the node's GPUs; -1 for none.
	gpu int
	// pod is nil for all other rows, and for a pod that the API does not have, of which share tells.
	pod   *livePod
	share *Share
}

// key tells rows apart, also after they were made anew.
func (r *liveRow) key() string {
	switch {
	case r.share != nil:
		return "s/" + r.node.GPUs[r.gpu].UUID + "/" + string(r.share.UID)
	case r.pod != nil:
		return "p/" + string(r.pod.UID)
	case r.gpu >= 0:
		return "g/" + r.node.GPUs[r.gpu].UUID
	case r.node != nil:
		return r.node.key
	}
	return r.group.key
}

// leaf says whether there is nothing under the row.
func (r *liveRow) leaf() bool {
	return r.pod != nil || r.share != nil || r.gpu >= 0 && len(r.node.GPUs[r.gpu].Pods) == 0
}

// liveOrder is how rows are chosen and sorted.
type liveOrder struct {
	grouping int
	sortBy   int
	reverse  bool
	// words must all be in what a row says; lower case.
	words []string
}

func (o *liveOrder) compare(a, b *liveSums) int {
	c := liveKeys[o.sortBy].compare(a, b)
	if c == 0 {
		c = cmp.Compare(a.name, b.name)
	}
	if o.reverse {
		return -c
	}
	return c
}

func (o *liveOrder) matches(texts ...string) bool {
	for _, word := range o.words {
		if !slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(strings.ToLower(t), word) }) {
			return false
		}
	}
	return true
}

func (o *liveOrder) matchesNode(n *liveNode) bool {
	return o.matches(append([]string{n.Node, n.Model, n.pool}, n.Notes...)...)
}

func (o *liveOrder) matchesPod(p *livePod) bool {
	texts := []string{p.Namespace + "/" + p.Name, p.Gang, p.Phase}
	if p.node != nil {
		texts = append(texts, p.node.Node, p.node.Model, p.node.pool)
	}
	return o.matches(texts...)
}

func sumsOfNode(n *liveNode) liveSums {
	return liveSums{name: n.Node, memory: n.Memory, utilization: n.Utilization, held: n.GPUsHeld, count: n.GPUCount,
		pods: n.PodCount, notes: len(n.notes)}
}

func sumsOfPod(p *livePod) liveSums {
	s := liveSums{name: p.Namespace + "/" + p.Name, utilization: p.Utilization, held: p.GPUCount, count: p.GPUCount, pods: 1}
	s.memory = Memory{RequestedMiB: p.RequestedMiB, UsedMiB: p.UsedMiB, TotalMiB: max(p.RequestedMiB, p.UsedMiB)}
	if p.OverMiB > 0 {
		s.notes = 1
	}
	return s
}

// liveRows returns the rows to be seen. open says which rows show what is under them.
func (d *liveData) rows(o *liveOrder, open func(key string) bool) []liveRow {
	b := &rowBuilder{order: o, open: open}
	if ofPods(o.grouping) {
		b.podGroups(d)
		return b.rows
	}
	var waiting []*livePod
	for i := range d.pending {
		if o.matchesPod(&d.pending[i]) {
			waiting = append(waiting, &d.pending[i])
		}
	}
	if len(waiting) > 0 {
		g := &liveGroup{key: "pending", name: "pending pods", pods: waiting}
		g.sum()
		b.group(g)
	}
	var nodes []*liveNode
	for _, n := range d.nodes {
		if o.matchesNode(n) || slices.ContainsFunc(n.pods, func(p livePod) bool { return o.matchesPod(&p) }) {
			nodes = append(nodes, n)
		}
	}
	if o.grouping == byNode {
		b.nodes(nodes, 0)
		return b.rows
	}
	groups := map[string]*liveGroup{}
	for _, n := range nodes {
		name := n.pool
		if o.grouping == byModel {
			name = n.Model
		}
		g := groupOf(groups, name, liveGroupings[o.grouping])
		g.nodes = append(g.nodes, n)
	}
	b.groups(groups)
	return b.rows
}

func groupOf(groups map[string]*liveGroup, name, kind string) *liveGroup {
	if groups[name] == nil {
		groups[name] = &liveGroup{key: kind + "/" + name, name: cmp.Or(name, "no "+kind)}
	}
	return groups[name]
}

type rowBuilder struct {
	order *liveOrder
	open  func(key string) bool
	rows  []liveRow
}

func (b *rowBuilder) podGroups(d *liveData) {
	groups := map[string]*liveGroup{}
	add := func(pods []livePod) {
		for i := range pods {
			p := &pods[i]
			if !b.order.matchesPod(p) {
				continue
			}
			name := p.Namespace
			if b.order.grouping == byGang && p.Gang != "" {
				name += "/" + p.Gang
			} else if b.order.grouping == byGang {
				name = ""
			}
			g := groupOf(groups, name, liveGroupings[b.order.grouping])
			g.pods = append(g.pods, p)
		}
	}
	for _, n := range d.nodes {
		add(n.pods)
	}
	add(d.pending)
	b.groups(groups)
}

func (b *rowBuilder) groups(groups map[string]*liveGroup) {
	list := make([]*liveGroup, 0, len(groups))
	for _, g := range groups {
		g.sum()
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, c *liveGroup) int { return b.order.compare(&a.sums, &c.sums) })
	for _, g := range list {
		b.group(g)
	}
}

// sum adds up what is in the group.
func (g *liveGroup) sum() {
	g.sums = liveSums{name: g.name}
	busy, read := 0, 0
	for _, n := range g.nodes {
		s := sumsOfNode(n)
		g.sums.add(&s)
		busy += n.Utilization * len(n.GPUs)
		read += len(n.GPUs)
	}
	for _, p := range g.pods {
		s := sumsOfPod(p)
		g.sums.add(&s)
		busy += p.Utilization * len(p.GPUs)
		read += len(p.GPUs)
	}
	if read > 0 {
		g.sums.utilization = (busy + read/2) / read
	}
}

func (s *liveSums) add(o *liveSums) {
	s.memory.add(&o.memory)
	s.held += o.held
	s.count += o.count
	s.pods += o.pods
	s.notes += o.notes
}

// group adds a group that was summed up, and what is in it.
func (b *rowBuilder) group(g *liveGroup) {
	b.rows = append(b.rows, liveRow{group: g, gpu: -1})
	if !b.open(g.key) {
		return
	}
	b.nodes(g.nodes, 1)
	b.podRows(g.pods, 1)
}

func (b *rowBuilder) nodes(nodes []*liveNode, depth int) {
	if b.order.sortBy == 0 {
		slices.SortFunc(nodes, func(a, c *liveNode) int {
			if b.order.reverse {
				return cmp.Compare(c.Node, a.Node)
			}
			return cmp.Compare(a.Node, c.Node)
		})
	} else {
		slices.SortFunc(nodes, func(a, c *liveNode) int {
			x, y := sumsOfNode(a), sumsOfNode(c)
			return b.order.compare(&x, &y)
		})
	}
	for _, n := range nodes {
		b.rows = append(b.rows, liveRow{depth: depth, node: n, gpu: -1})
		// What is searched for in a pod must be seen without opening each node.
		whole := len(b.order.words) == 0 || b.order.matchesNode(n)
		if whole && !b.open(n.key) {
			continue
		}
		b.gpus(n, depth+1, whole)
	}
}

// gpus adds what is on a node; where it is not whole, only the pods that match, and their GPUs.
func (b *rowBuilder) gpus(n *liveNode, depth int, whole bool) {
	if len(n.GPUs) == 0 {
		var pods []*livePod
		for i := range n.pods {
			if whole || b.order.matchesPod(&n.pods[i]) {
				pods = append(pods, &n.pods[i])
			}
		}
		b.podRows(pods, depth)
		return
	}
	for i := range n.GPUs {
		g := &n.GPUs[i]
		var under []liveRow
		for j := range g.Pods {
			share := &g.Pods[j]
			row := liveRow{depth: depth + 1, node: n, gpu: i, share: share}
			for k := range n.pods {
				if n.pods[k].UID == share.UID {
					row.pod = &n.pods[k]
				}
			}
			if whole || row.pod != nil && b.order.matchesPod(row.pod) {
				under = append(under, row)
			}
		}
		if !whole && len(under) == 0 {
			continue
		}
		row := liveRow{depth: depth, node: n, gpu: i}
		b.rows = append(b.rows, row)
		if !whole || b.open(row.key()) {
			b.rows = append(b.rows, under...)
		}
	}
}

func (b *rowBuilder) podRows(pods []*livePod, depth int) {
	slices.SortFunc(pods, func(a, c *livePod) int {
		x, y := sumsOfPod(a), sumsOfPod(c)
		return b.order.compare(&x, &y)
	})
	for _, p := range pods {
		b.rows = append(b.rows, liveRow{depth: depth, node: p.node, gpu: -1, pod: p})
	}
}
