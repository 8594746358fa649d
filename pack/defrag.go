// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"math"
	"slices"
	"strings"
)

// Movable is a pod that may be moved to another node.
type Movable struct {
	// ID is the pod's, and that of its Tenants where it has GPUs.
	ID      string
	Request Request
}

// Move takes a pod from one node to another.
type Move struct {
	ID               string
	FromNode, ToNode string
	// FromGPUs and ToGPUs are positions in Node.GPUs, ascending; empty for a pod without GPUs.
	FromGPUs, ToGPUs []int
}

// DefragPlan makes room for one request.
type DefragPlan struct {
	// Moves belong together: where two pods change places, neither fits before the other has left.
	Moves []Move
	// Node is where the request fits after the moves, and GPUs are positions of those that it can have there.
	Node string
	GPUs []int
	// Gain is what the request gets of GPUs, plus what the policy's scores say that the nodes are worth more after it all than
	// before, in milli-GPU. It is less than what the request gets where others would have used the room.
	Gain float64
}

// Defrag plans moves that make room for a request which fits nowhere. It is not safe for use from several goroutines.
type Defrag struct {
	chooser *Chooser
	// sites in the order of names, so that a plan does not depend on the order in which the nodes were given.
	sites   []*site
	classes []defragClass
	ids     map[RequestKey]int32
	// order has the classes by what they need at least of one GPU.
	order []int32
}

// site is a node, and what the search for plans looks at.
type site struct {
	node *Node
	// movable pods in the order of IDs, and the class of each.
	movable []Movable
	classes []int32
	shape   Shape
	// leavers are the movable pods; of those that are alike, the first.
	leavers []leaver
}

// leaver is a pod that could leave its node.
type leaver struct {
	// pod is a position in site.movable.
	pod, class int32
	// without is the shape of the node without the pod.
	without Shape
}

// defragClass is a kind of movable pods.
type defragClass struct {
	request Request
	// size is what it asks of all GPUs, and need what it needs of one at least, in milli-GPU. For a share by memory, size is
	// a guess and need 0.
	size, need int64
	places     places
}

// places are two sites that have room for a class, so that one is elsewhere; -1 where there are fewer.
type places struct {
	known         bool
	first, second int32
}

// NewDefrag returns a Defrag that knows of no node yet. Places are chosen by the chooser.
func NewDefrag(c *Chooser) *Defrag { return &Defrag{chooser: c, ids: map[RequestKey]int32{}} }

// Update tells of a node, by its name for the first time or again, and which pods on it may be moved. The node must not be
// changed as long as no other takes its place.
func (d *Defrag) Update(n *Node, movable []Movable) {
	at, known := slices.BinarySearchFunc(d.sites, n.Name, func(s *site, name string) int { return strings.Compare(s.node.Name, name) })
	if !known {
		d.sites = slices.Insert(d.sites, at, &site{})
	}
	s := d.sites[at]
	s.node, s.shape = n, d.chooser.Shape(n)
	for i := range d.classes {
		c := &d.classes[i]
		p := &c.places
		p.known = p.known && known && p.first != int32(at) && p.second != int32(at) && (p.second >= 0 || !s.has(&c.request))
	}
	s.movable = slices.Clone(movable)
	slices.SortFunc(s.movable, func(a, b Movable) int { return strings.Compare(a.ID, b.ID) })
	s.classes, s.leavers = s.classes[:0], s.leavers[:0]
	for i := range s.movable {
		m := &s.movable[i]
		l := leaver{pod: int32(i), class: d.class(&m.Request), without: d.without(n, m)}
		s.classes = append(s.classes, l.class)
		if !slices.ContainsFunc(s.leavers, func(o leaver) bool { return o.class == l.class && o.without == l.without }) {
			s.leavers = append(s.leavers, l)
		}
	}
}

// without is the shape of the node without the pod.
func (d *Defrag) without(n *Node, m *Movable) Shape {
	rest := *n
	rest.GPUs = slices.Clone(n.GPUs)
	for _, g := range n.holds(m.ID) {
		rest.GPUs[g].Tenants = slices.Clone(n.GPUs[g].Tenants)
	}
	rest.Remove(&m.Request, m.ID)
	return d.chooser.Shape(&rest)
}

func (d *Defrag) class(r *Request) int32 {
	k := r.Key()
	id, ok := d.ids[k]
	if ok {
		return id
	}
	id = int32(len(d.classes))
	d.ids[k] = id
	c := defragClass{request: *r, size: r.Milli, need: r.Milli}
	switch {
	case r.GPUs > 0:
		c.size, c.need = int64(r.GPUs)*WholeMilli, WholeMilli
	case r.MiB > 0:
		c.size, c.need = max(r.Milli, WholeMilli/2), 0
	}
	d.classes = append(d.classes, c)
	at, _ := slices.BinarySearchFunc(d.order, c.need, func(id int32, need int64) int { return cmp.Compare(d.classes[id].need, need) })
	d.order = slices.Insert(d.order, at, id)
	return id
}

// Plan returns moves that make room for the request, at most that many, or false if it finds none, which does not mean that
// there are none. A plan lets pods of one node leave for free places, or has two pods change places so that what is free beside
// them adds up. It has been tried on copies of the nodes: the request and each pod that moves have a place. Of the plans of
// which each move gains at least least, in milli-GPU, it is one with the fewest moves.
func (d *Defrag) Plan(r *Request, most int, least float64) (DefragPlan, bool) {
	if most < 1 {
		return DefragPlan{}, false
	}
	var found ways
	d.leave(r, &found)
	if p, ok := d.best(r, found, least); ok || most == 1 {
		return p, ok
	}
	found = nil
	d.clear(r, most, &found)
	d.exchange(r, &found)
	return d.best(r, found, least)
}

// way is a plan of which only the shapes have been looked at.
type way struct {
	// site on which room is made, and which of its pods leave.
	site int32
	pods []int32
	// other is the site from which the pod comes comes in return for the only one that leaves; -1 if pods go to free places.
	other, comes int32
	// size is the sum of what moves, and left what is free afterwards on the GPUs of both sites, in milli-GPU.
	size, left int64
}

func (w *way) moves() int {
	if w.other >= 0 {
		return 2
	}
	return len(w.pods)
}

// compareWays puts the way first that moves less, and of those the one that fills nodes most. No two ways are equal.
func compareWays(a, b *way) int {
	return cmp.Or(
		cmp.Compare(a.moves(), b.moves()),
		cmp.Compare(a.size, b.size),
		cmp.Compare(a.left, b.left),
		cmp.Compare(a.site, b.site),
		slices.Compare(a.pods, b.pods),
		cmp.Compare(a.other, b.other),
		cmp.Compare(a.comes, b.comes),
	)
}

// mostWays is how many ways are worked out. More gain nothing on the traces of docs/packing.md.
const mostWays = 16

// ways are the first that were found, in order.
type ways []way

func (l *ways) add(w way) {
	full := len(*l) == mostWays
	if full && compareWays(&w, &(*l)[mostWays-1]) > 0 {
		return
	}
	at, _ := slices.BinarySearchFunc(*l, &w, func(a way, b *way) int { return compareWays(&a, b) })
	if full {
		*l = (*l)[:mostWays-1]
	}
	*l = slices.Insert(*l, at, w)
}

// best works the ways out and returns the plan with the fewest moves, of those the one that gains most.
func (d *Defrag) best(r *Request, found ways, least float64) (best DefragPlan, ok bool) {
	for i := range found {
		moves := found[i].moves()
		if ok && moves > len(best.Moves) {
			break
		}
		p, fits := d.workOut(r, &found[i])
		if fits && p.Gain >= least*float64(moves) && (!ok || p.Gain > best.Gain) {
			best, ok = p, true
		}
	}
	return best, ok
}

// leave finds ways in which one pod leaves for a free place.
func (d *Defrag) leave(r *Request, found *ways) {
	for at, s := range d.sites {
		if !s.open(r) {
			continue
		}
		for i := range s.leavers {
			l := &s.leavers[i]
			if l.without.Fits(r) && d.elsewhere(l.class, int32(at)) {
				found.add(way{
					site: int32(at), pods: []int32{l.pod}, other: -1, size: d.classes[l.class].size, left: l.without.Free(),
				})
			}
		}
	}
}

// elsewhere says whether a site other than at has room for the class.
func (d *Defrag) elsewhere(class, at int32) bool {
	c := &d.classes[class]
	p := &c.places
	if !p.known {
		*p = places{known: true, first: -1, second: -1}
		for i, s := range d.sites {
			if !s.has(&c.request) {
				continue
			}
			if p.first >= 0 {
				p.second = int32(i)
				break
			}
			p.first = int32(i)
		}
	}
	return p.second >= 0 || p.first >= 0 && p.first != at
}

// clear finds ways in which several pods leave one site for free places.
func (d *Defrag) clear(r *Request, most int, found *ways) {
	for at, s := range d.sites {
		if !s.open(r) {
			continue
		}
		var free []int32
		for i, class := range s.classes {
			if d.elsewhere(class, int32(at)) {
				free = append(free, int32(i))
			}
		}
		if len(free) < 2 {
			continue
		}
		if w, ok := d.clearSite(r, most, s, free); ok && len(w.pods) > 0 {
			w.site = int32(at)
			found.add(w)
		}
	}
}

// clearSite picks which of the free pods of a site leave: those on the GPUs that the fewest have to leave, and while CPU or
// memory lacks, the one that gives most of it back.
func (d *Defrag) clearSite(r *Request, most int, s *site, free []int32) (w way, ok bool) {
	w.other = -1
	rest := s.node.Clone()
	leave := func(pods ...int32) {
		for _, pod := range pods {
			rest.Remove(&s.movable[pod].Request, s.movable[pod].ID)
			w.pods = append(w.pods, pod)
			w.size += d.classes[s.classes[pod]].size
		}
	}
	for d.chooser.Limits.Fit(rest, r) != ReasonFits {
		var fewest []int32
		for i := range rest.GPUs {
			if pods := d.evict(r, &rest.GPUs[i], s, free); len(pods) > 0 && (fewest == nil || len(pods) < len(fewest)) {
				fewest = pods
			}
		}
		if fewest == nil || len(w.pods)+len(fewest) > most {
			return w, false
		}
		leave(fewest...)
	}
	for rest.CPUMilli < r.CPUMilli || rest.MemoryMiB < r.MemoryMiB {
		best, gives := int32(-1), 0.0
		for _, pod := range free {
			if slices.Contains(w.pods, pod) {
				continue
			}
			m := &s.movable[pod].Request
			if gain := part(m.CPUMilli, r.CPUMilli-rest.CPUMilli) + part(m.MemoryMiB, r.MemoryMiB-rest.MemoryMiB); gain > gives {
				best, gives = pod, gain
			}
		}
		if best < 0 || len(w.pods) == most {
			return w, false
		}
		leave(best)
	}
	shape := d.chooser.Shape(rest)
	w.left = shape.Free()
	return w, true
}

// part is how much of what lacks is given, 0 to 1.
func part(given, lacks int64) float64 {
	if lacks <= 0 {
		return 0
	}
	return float64(min(given, lacks)) / float64(lacks)
}

// evict returns which of the free pods of a site have to leave the GPU for the request to have it, or its share of it: the
// largest first, so that they are few. It returns none if that is not enough, or not needed.
func (d *Defrag) evict(r *Request, g *GPU, s *site, free []int32) []int32 {
	rest := *g
	rest.Tenants = slices.Clone(g.Tenants)
	slices.SortStableFunc(rest.Tenants, func(a, b Tenant) int {
		return cmp.Or(cmp.Compare(b.Milli, a.Milli), cmp.Compare(b.RequestedMiB, a.RequestedMiB), strings.Compare(a.ID, b.ID))
	})
	var pods []int32
	for i := 0; d.chooser.Limits.gpuReason(&rest, r) != ReasonFits; {
		if i == len(rest.Tenants) {
			return nil
		}
		at := slices.IndexFunc(free, func(pod int32) bool { return s.movable[pod].ID == rest.Tenants[i].ID })
		if at < 0 {
			i++
			continue
		}
		pods = append(pods, free[at])
		rest.Tenants = slices.Delete(rest.Tenants, i, i+1)
	}
	return pods
}

// swap makes room on a site: a pod of the class leaves, and one of another class comes instead.
type swap struct {
	leaves, site, pod int32
	left              int64
}

// exchange finds ways in which a pod of the site on which room is made changes places with one of another site.
func (d *Defrag) exchange(r *Request, found *ways) {
	wanted := d.wanted(r)
	for at, s := range d.sites {
		for i := range s.leavers {
			l := &s.leavers[i]
			for j := range wanted[l.class] {
				w := &wanted[l.class][j]
				c := &d.classes[w.leaves]
				if c.need > int64(l.without.Milli[0]) {
					break
				}
				if w.site == int32(at) || !l.without.Fits(&c.request) || !s.open(&c.request) {
					continue
				}
				found.add(way{
					site: w.site, pods: []int32{w.pod}, other: int32(at), comes: l.pod,
					size: c.size + d.classes[l.class].size, left: w.left + l.without.Free() - c.size,
				})
			}
		}
	}
}

// wanted returns, by the class that comes, the swaps that make room for the request: for each class that leaves, in
// Defrag.order, the one that fills its site most.
func (d *Defrag) wanted(r *Request) [][]swap {
	type spot struct{ site, leaver int32 }
	leaving := make([][]spot, len(d.classes))
	for at, s := range d.sites {
		if !s.open(r) {
			continue
		}
		for i := range s.leavers {
			if l := &s.leavers[i]; l.without.Fits(r) {
				leaving[l.class] = append(leaving[l.class], spot{int32(at), int32(i)})
			}
		}
	}
	wanted := make([][]swap, len(d.classes))
	for _, leaves := range d.order {
		for _, at := range leaving[leaves] {
			s := d.sites[at.site]
			l := &s.leavers[at.leaver]
			room := l.without
			room.Take(r, fullest(&room, r))
			free := room.Free()
			for _, comes := range d.order {
				c := &d.classes[comes]
				if c.need > int64(room.Milli[0]) {
					break
				}
				if comes == l.class || !room.Fits(&c.request) || !s.open(&c.request) {
					continue
				}
				w := swap{leaves, at.site, l.pod, free - c.size}
				// Swaps with the same class that leaves follow each other.
				switch n := len(wanted[comes]); {
				case n == 0 || wanted[comes][n-1].leaves != w.leaves:
					wanted[comes] = append(wanted[comes], w)
				case w.left < wanted[comes][n-1].left:
					wanted[comes][n-1] = w
				}
			}
		}
	}
	return wanted
}

// fullest is the GPU of the shape of which least is left that has room for a share; 0 for other requests.
func fullest(s *Shape, r *Request) int {
	if !r.IsShare() {
		return 0
	}
	g := s.Len - 1
	for int64(s.Milli[g]) < max(1, r.MilliOn(s.UsableMiB)) {
		g--
	}
	return g
}

// trial is a way that is worked out on copies of the nodes.
type trial struct {
	*Defrag
	// copies of the nodes that changed, by site.
	copies map[int32]*Node
	gain   float64
}

// workOut tries the way on copies of the nodes.
func (d *Defrag) workOut(r *Request, w *way) (DefragPlan, bool) {
	t := trial{Defrag: d, copies: map[int32]*Node{}}
	type goer struct {
		id      string
		request *Request
		// to is the site; -1 if any but that on which room is made will do.
		to int32
	}
	var p DefragPlan
	var goers []goer
	move := func(site, pod, to int32) {
		m := &d.sites[site].movable[pod]
		p.Moves = append(p.Moves, Move{ID: m.ID, FromNode: d.sites[site].node.Name, FromGPUs: t.lift(site, m)})
		goers = append(goers, goer{m.ID, &m.Request, to})
	}
	for _, pod := range w.pods {
		move(w.site, pod, w.other)
	}
	if w.other >= 0 {
		move(w.other, w.comes, w.site)
	}
	goers = append(goers, goer{"", r, w.site})
	// The hardest to place first.
	order := make([]int, len(goers))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return compareSize(goers[a].request, goers[b].request) })
	for _, i := range order {
		g := &goers[i]
		n, gpus, ok := t.place(g.request, g.id, g.to, w.site)
		if !ok {
			return DefragPlan{}, false
		}
		if i < len(p.Moves) {
			p.Moves[i].ToNode, p.Moves[i].ToGPUs = n.Name, gpus
		} else {
			p.Node, p.GPUs = n.Name, gpus
			if r.WantsGPU() {
				p.Gain = float64(int64(r.Count()) * r.MilliOn(n.Shape().UsableMiB))
			}
		}
	}
	p.Gain += t.gain
	return p, true
}

func (t *trial) node(site int32) *Node {
	if n, ok := t.copies[site]; ok {
		return n
	}
	return t.sites[site].node
}

// change returns a copy of the site's node that may be changed.
func (t *trial) change(site int32) *Node {
	n, ok := t.copies[site]
	if !ok {
		n = t.sites[site].node.Clone()
		t.copies[site] = n
	}
	return n
}

// lift takes a pod from the site and returns where its GPUs were.
func (t *trial) lift(site int32, m *Movable) []int {
	n := t.change(site)
	with := t.chooser.Shape(n)
	gpus := n.holds(m.ID)
	n.Remove(&m.Request, m.ID)
	without := t.chooser.Shape(n)
	c := Candidate{Request: &m.Request, Before: &without, After: &with, Total: &n.Total, Kinds: n.Kinds()}
	if m.Request.WantsGPU() {
		c.Milli = m.Request.MilliOn(with.UsableMiB)
	}
	t.gain -= t.chooser.Policy.Score(&c)
	return gpus
}

// place puts the request on the site to, or if that is negative, on the best-rated other than not.
func (t *trial) place(r *Request, id string, to, not int32) (*Node, []int, bool) {
	var best Choice
	best.Score = math.Inf(-1)
	site := int32(-1)
	try := func(at int32) {
		n := t.node(at)
		if t.chooser.Limits.FitHost(n, r) != ReasonFits {
			return
		}
		if c, reason := t.chooser.Choose(n, r); reason == ReasonFits && c.Score > best.Score {
			best, site = c, at
		}
	}
	if to >= 0 {
		try(to)
	} else {
		for at, s := range t.sites {
			if int32(at) != not && s.has(r) {
				try(int32(at))
			}
		}
	}
	if site < 0 {
		return nil, nil, false
	}
	n := t.change(site)
	n.Place(r, id, best.GPUs)
	t.gain += best.Score
	return n, best.GPUs, true
}

// has says whether the node has room for the request. Like Shape.Fits, it may say no although there is.
func (s *site) has(r *Request) bool { return s.shape.Fits(r) && s.open(r) }

// open says whether the node takes such requests at all.
func (s *site) open(r *Request) bool {
	n := s.node
	return !r.WantsGPU() || n.Problem == ReasonFits && !(r.IsShare() && (n.Stale || n.Observe))
}

// holds returns the positions of the GPUs on which the tenant with that ID is, ascending.
func (n *Node) holds(id string) []int {
	var gpus []int
	for i := range n.GPUs {
		if slices.ContainsFunc(n.GPUs[i].Tenants, func(t Tenant) bool { return t.ID == id }) {
			gpus = append(gpus, i)
		}
	}
	return gpus
}
