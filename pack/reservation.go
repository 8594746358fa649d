// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// Holding is what a pod that runs holds of a node, and for how long.
type Holding struct {
	// ID is that of its tenants.
	ID      string
	Request Request
	// Since is when it started; zero where nobody knows.
	Since time.Time
	// Ends is when it will have left at the latest; zero where nobody knows.
	Ends time.Time
}

// Occupancy is a node and the pods that will leave it some day. What else is on the node stays for good.
type Occupancy struct {
	Node     *Node
	Holdings []Holding
}

// Turn is a place in the line of those that wait.
type Turn struct {
	Priority int32
	// Since is how long the owner is in line.
	Since time.Time
	// ID tells owners apart, and orders those that came at the same time.
	ID string
}

// Before says whether t goes before other: by priority, then by age.
func (t Turn) Before(other Turn) bool {
	return cmp.Or(cmp.Compare(other.Priority, t.Priority), t.Since.Compare(other.Since), strings.Compare(t.ID, other.ID)) < 0
}

// Unit is a gang that waits, or a single pod as a gang of one.
type Unit struct {
	Turn    Turn
	Classes []Request
	Members []Member
	// Need of the members must have a place at the same time.
	Need int
	// Domains has the topology domain of each node by position, where all members must be in one domain; "" is none. Nil lets
	// them be anywhere.
	Domains []string
}

// Outlook says, as Constraints do, where members may go besides what GPUs, CPU and host memory decide; but once some pods have
// left.
type Outlook interface {
	// Feasible says whether a member of the class may go to the node at that position once the pods of those IDs have left it,
	// together with all members that Placed has told of.
	Feasible(class, node int, left []string) bool
	// Placed tells that a member of the class is to have a place on the node once those pods have left it. It says whether that
	// can have changed what is feasible on other nodes.
	Placed(class, node int, left []string) (elsewhere bool)
}

// Claim is the place of one member.
type Claim struct {
	Request Request
	// GPUs are positions in the node's GPUs.
	GPUs []int
}

// Reservation is a claim of a unit that waits on places that are not free yet. It holds nothing: whatever does not delay the unit
// may use those places.
type Reservation struct {
	Turn Turn
	// Claims by node name, hardest to place first.
	Claims map[string][]Claim
	// Start is when all places will be free at the latest; zero where nobody knows.
	Start time.Time
	// Waits are the IDs of the pods that must leave first, sorted.
	Waits []string
	// Work is what those pods have still to do, in milli-GPU seconds. One that nobody knows the end of is taken to run as long
	// again as it has run, and a young one as long as the youngest quarter of all pods has run.
	Work int64
	// ran has the IDs of the pods that ran on the nodes when those were chosen. Of pods that nobody knows the end of, the unit
	// waits for these only.
	ran map[string]bool
}

// Binds says whether the reservation keeps a request out of the unit's places, if the request has that turn and ends at that
// time (zero where nobody knows). It does not where the request goes before the unit, or ends before the unit can start.
func (r *Reservation) Binds(turn Turn, ends time.Time) bool {
	return turn.ID != r.Turn.ID && !turn.Before(r.Turn) && (ends.IsZero() || r.Start.IsZero() || ends.After(r.Start))
}

// clock is the time, and how long a pod that has just started is taken to run where nobody knows.
type clock struct {
	now   time.Time
	young time.Duration
}

const minYoung = time.Minute

// clockOf takes a young pod to run as long as the youngest quarter of those on the nodes has run.
func clockOf(now time.Time, nodes []Occupancy) clock {
	var ages []time.Duration
	for i := range nodes {
		for j := range nodes[i].Holdings {
			if h := &nodes[i].Holdings[j]; h.Ends.IsZero() && !h.Since.IsZero() && h.Request.WantsGPU() {
				ages = append(ages, now.Sub(h.Since))
			}
		}
	}
	if len(ages) == 0 {
		return clock{now, minYoung}
	}
	slices.Sort(ages)
	return clock{now, max(minYoung, ages[len(ages)/4])}
}

func (h *Holding) remaining(c clock) time.Duration {
	switch {
	case !h.Ends.IsZero():
		return max(0, h.Ends.Sub(c.now))
	case h.Since.IsZero():
		return c.young
	}
	return max(c.young, c.now.Sub(h.Since))
}

// work is what the holding has still to do, in milli-GPU seconds. A pod without GPUs counts as one of 1 milli-GPU.
func (h *Holding) work(c clock, n *Node) int64 {
	milli := int64(h.Request.GPUs) * WholeMilli
	if h.Request.IsShare() && len(n.GPUs) > 0 {
		milli = h.Request.MilliOn(n.GPUs[0].UsableMiB())
	}
	return max(1, milli) * int64(h.remaining(c)/time.Second)
}

// without returns the node as it is once the holdings at those positions are gone.
func (o *Occupancy) without(left []int) *Node {
	n := o.Node.Clone()
	for _, at := range left {
		n.Remove(&o.Holdings[at].Request, o.Holdings[at].ID)
	}
	for i := range n.GPUs {
		if len(n.GPUs[i].Tenants) == 0 && len(o.Node.GPUs[i].Tenants) > 0 {
			n.GPUs[i].Utilization = 0
		}
	}
	return n
}

// by returns the positions of the holdings that will have left at that time, as far as anybody knows.
func (o *Occupancy) by(at time.Time) []int {
	var out []int
	for i := range o.Holdings {
		if ends := o.Holdings[i].Ends; !ends.IsZero() && !ends.After(at) {
			out = append(out, i)
		}
	}
	return out
}

func (o *Occupancy) ids(left []int) []string {
	out := make([]string, len(left))
	for i, at := range left {
		out[i] = o.Holdings[at].ID
	}
	return out
}

// claimID is the tenant that stands for a claim.
const claimID = "reserved"

// settle places the claims on n, and says whether all fit. Where pinned is true, each keeps its GPUs. Else it gets those that are
// least free today, so that others can go on to use what is.
func (l *Limits) settle(n, today *Node, claims []Claim, pinned bool) ([]Claim, bool) {
	out := slices.Clone(claims)
	for i := range out {
		r := &out[i].Request
		if l.FitHost(n, r) != ReasonFits {
			return nil, false
		}
		switch {
		case !pinned:
			out[i].GPUs = l.pick(n, today, r)
		case slices.ContainsFunc(out[i].GPUs, func(at int) bool {
			return at >= len(n.GPUs) || l.gpuReason(&n.GPUs[at], r) != ReasonFits
		}):
			return nil, false
		}
		n.Place(r, claimID, out[i].GPUs)
	}
	return out, true
}

// pick returns GPUs for a request that fits on n.
func (l *Limits) pick(n, today *Node, r *Request) []int {
	var fit []int
	for i := range n.GPUs {
		if r.WantsGPU() && l.gpuReason(&n.GPUs[i], r) == ReasonFits {
			fit = append(fit, i)
		}
	}
	slices.SortStableFunc(fit, func(a, b int) int {
		return cmp.Or(
			cmp.Compare(l.left(&today.GPUs[a]), l.left(&today.GPUs[b])),
			cmp.Compare(l.left(&n.GPUs[a]), l.left(&n.GPUs[b])),
		)
	})
	fit = fit[:r.Count()]
	slices.Sort(fit)
	return fit
}

// vacate returns which of the holdings that may leave have to, so that all claims fit on the node: those that will leave soonest.
// It returns false where the claims do not fit even if all leave.
func (l *Limits) vacate(now clock, o *Occupancy, may []int, claims []Claim) ([]int, []Claim, bool) {
	try := func(left []int) ([]Claim, bool) { return l.settle(o.without(left), o.Node, claims, false) }
	if settled, ok := try(nil); ok {
		return nil, settled, true
	}
	settled, ok := try(may)
	if !ok {
		return nil, nil, false
	}
	order := slices.Clone(may)
	slices.SortFunc(order, func(a, b int) int {
		ha, hb := &o.Holdings[a], &o.Holdings[b]
		return cmp.Or(
			cmp.Compare(ha.remaining(now), hb.remaining(now)),
			cmp.Compare(ha.work(now, o.Node), hb.work(now, o.Node)),
			strings.Compare(ha.ID, hb.ID),
		)
	})
	left := order
	for n := 1; n < len(order); n++ {
		if s, ok := try(order[:n]); ok {
			left, settled = order[:n], s
			break
		}
	}
	// What was let go in vain stays, the one that lasts longest first.
	for i := len(left) - 2; i >= 0; i-- {
		fewer := slices.Delete(slices.Clone(left), i, i+1)
		if s, ok := try(fewer); ok {
			left, settled = fewer, s
		}
	}
	return left, settled, true
}

// future returns the node as it will be once the claims can be placed, with them, and what must have left by then. It returns
// false where that cannot come true.
func (l *Limits) future(now time.Time, o *Occupancy, j *jointClaims) (n *Node, left []int, ok bool) {
	if !j.start.IsZero() {
		left = o.by(j.start)
		// Earlier decisions counted on the claims' GPUs, so those are tried first.
		for _, pinned := range []bool{true, false} {
			n = o.without(left)
			if _, ok := l.settle(n, o.Node, j.claims, pinned); ok {
				return n, left, true
			}
		}
	}
	// Those that came later were let in beside the claims and need not leave, unless they go before the unit.
	for _, may := range [][]int{o.which(j.ran), o.which(nil)} {
		var settled []Claim
		if left, settled, ok = l.vacate(clock{now, minYoung}, o, may, j.claims); ok {
			n = o.without(left)
			l.settle(n, o.Node, settled, true)
			return n, left, true
		}
	}
	return nil, nil, false
}

// which returns the positions of the holdings that are among those; of all where that is nil.
func (o *Occupancy) which(among map[string]bool) []int {
	var out []int
	for i := range o.Holdings {
		if among == nil || among[o.Holdings[i].ID] {
			out = append(out, i)
		}
	}
	return out
}

// jointClaims are the claims of several reservations on a node, and the earliest start among them; zero where one is unknown.
type jointClaims struct {
	claims []Claim
	start  time.Time
	ran    map[string]bool
}

func joint(name string, reservations []*Reservation) *jointClaims {
	j := &jointClaims{}
	first, unknown := true, false
	for _, r := range reservations {
		mine := r.Claims[name]
		if len(mine) == 0 {
			continue
		}
		j.claims = append(j.claims, mine...)
		if first {
			j.ran = r.ran
		} else {
			j.ran = maps.Clone(j.ran)
			maps.Copy(j.ran, r.ran)
		}
		unknown = unknown || r.Start.IsZero()
		if first || r.Start.Before(j.start) {
			j.start, first = r.Start, false
		}
	}
	sortClaims(j.claims)
	if unknown {
		j.start = time.Time{}
	}
	return j
}

func sortClaims(claims []Claim) {
	slices.SortStableFunc(claims, func(a, b Claim) int { return compareSize(&a.Request, &b.Request) })
}

// Beside returns what the node is to those that the reservations bind: what fits on it delays none of them, wherever it fits. It
// is the node itself where they claim nothing there, or nothing that can come true.
func (l *Limits) Beside(now time.Time, o *Occupancy, reservations ...*Reservation) *Node {
	for len(reservations) > 0 {
		claims := joint(o.Node.Name, reservations)
		if len(claims.claims) == 0 {
			return o.Node
		}
		then, _, ok := l.future(now, o, claims)
		if !ok {
			// Those that come first in line count.
			reservations = reservations[:len(reservations)-1]
			continue
		}
		n := o.Node.Clone()
		n.CPUMilli, n.MemoryMiB = min(n.CPUMilli, then.CPUMilli), min(n.MemoryMiB, then.MemoryMiB)
		for i := range n.GPUs {
			for _, t := range then.GPUs[i].Tenants {
				if t.ID == claimID {
					n.GPUs[i].Tenants = append(n.GPUs[i].Tenants, t)
				}
			}
		}
		return n
	}
	return o.Node
}

// Admits says whether a request with that turn, which would end at that time (zero where nobody knows), may go on the node now. If
// not, it returns the reservation that keeps it out, and whether that is the only reason is for the caller to ask by Fit.
// Reservations are in the order of their turns.
func (l *Limits) Admits(now time.Time, o *Occupancy, r *Request, turn Turn, ends time.Time, reservations []*Reservation) *Reservation {
	binding := slices.DeleteFunc(slices.Clone(reservations), func(r *Reservation) bool {
		return len(r.Claims[o.Node.Name]) == 0 || !r.Binds(turn, ends)
	})
	if len(binding) == 0 || l.FitHost(l.Beside(now, o, binding...), r) == ReasonFits {
		return nil
	}
	return binding[0]
}

// Reserve returns where the unit will soonest have all its places, or nil where it will not even if all pods leave that may: by
// the ends that are known if those are enough, and else where pods with the least work are in the way. The reservations of
// earlier units hold there. outlook, where not nil, makes the constraints anew for each try.
//
// before is the reservation that the unit has, or nil. Its nodes are kept as long as they can come true and no others are clearly
// better.
func (l *Limits) Reserve(now time.Time, nodes []Occupancy, u *Unit, outlook func() Outlook, earlier []*Reservation, before *Reservation) *Reservation {
	p := reservationPlan{limits: l, now: clockOf(now, nodes), unit: u, nodes: slices.Clone(nodes), after: map[int]time.Time{}, outlook: outlook}
	for i := range p.nodes {
		claims := joint(p.nodes[i].Node.Name, earlier)
		if len(claims.claims) == 0 {
			continue
		}
		if then, left, ok := l.future(now, &p.nodes[i], claims); ok {
			rest := slices.Clone(p.nodes[i].Holdings)
			for _, at := range slices.Backward(slices.Sorted(slices.Values(left))) {
				rest = slices.Delete(rest, at, at+1)
			}
			p.nodes[i] = Occupancy{Node: then, Holdings: rest}
			p.after[i] = claims.start
		}
	}
	members := slices.Clone(u.Members)
	slices.SortStableFunc(members, func(a, b Member) int {
		return cmp.Or(compareSize(&u.Classes[a.Class], &u.Classes[b.Class]), a.Class-b.Class)
	})
	p.members = members

	all := make([]int, len(nodes))
	for i := range all {
		all[i] = i
	}
	var kept *Reservation
	if before != nil {
		mine := slices.DeleteFunc(slices.Clone(all), func(i int) bool { return len(before.Claims[nodes[i].Node.Name]) == 0 })
		p.ran = before.ran
		if kept = p.best(mine); kept == nil {
			p.ran = nil
			kept = p.best(mine)
		}
		if kept != nil {
			kept.ran = before.ran
		}
		p.ran = nil
	}
	if kept != nil && !before.Start.IsZero() && (kept.Start.IsZero() || kept.Start.After(now) && kept.Start.After(before.Start)) &&
		l.stands(nodes, before) {
		kept = before.stillWaiting(nodes)
	}
	fresh := p.best(all)
	if kept != nil && !fresh.clearlyBetter(kept, now) {
		return kept
	}
	return fresh
}

// stands says whether all claims can be in place at the start that the reservation has.
func (l *Limits) stands(nodes []Occupancy, r *Reservation) bool {
	found := 0
	for i := range nodes {
		o := &nodes[i]
		if claims := r.Claims[o.Node.Name]; len(claims) > 0 {
			found++
			if _, ok := l.settle(o.without(o.by(r.Start)), o.Node, claims, true); !ok {
				return false
			}
		}
	}
	return found == len(r.Claims)
}

// stillWaiting returns the reservation without the pods that have left.
func (r *Reservation) stillWaiting(nodes []Occupancy) *Reservation {
	here := map[string]bool{}
	for i := range nodes {
		for j := range nodes[i].Holdings {
			here[nodes[i].Holdings[j].ID] = true
		}
	}
	out := *r
	out.Waits = slices.DeleteFunc(slices.Clone(r.Waits), func(id string) bool { return !here[id] })
	return &out
}

// Within confines constraints to the places that the reservation claims on those nodes, so that PlanGang finds a plan where the
// policy alone would put members of one class where those of another should go.
func (r *Reservation) Within(nodes []*Node, classes []Request, c Constraints) Constraints {
	w := &within{Constraints: c, room: make([]map[RequestKey]int, len(nodes)), keys: make([]RequestKey, len(classes))}
	for i := range classes {
		w.keys[i] = classes[i].Key()
	}
	for i, n := range nodes {
		for _, claim := range r.Claims[n.Name] {
			if w.room[i] == nil {
				w.room[i] = map[RequestKey]int{}
			}
			w.room[i][claim.Request.Key()]++
		}
	}
	return w
}

type within struct {
	Constraints
	// room counts the claims left by node and request.
	room []map[RequestKey]int
	keys []RequestKey
}

// Feasible implements Constraints.
func (w *within) Feasible(class, node int) (bool, string) {
	if w.room[node][w.keys[class]] == 0 {
		return false, "not among the places reserved for the gang"
	}
	return w.Constraints.Feasible(class, node)
}

// Placed implements Constraints.
func (w *within) Placed(class, node int) bool {
	w.room[node][w.keys[class]]--
	return w.Constraints.Placed(class, node)
}

// Removed implements Constraints.
func (w *within) Removed(class, node int) {
	w.room[node][w.keys[class]]++
	w.Constraints.Removed(class, node)
}

// better says whether r is the better of two for the same unit.
func (r *Reservation) better(other *Reservation) bool {
	switch {
	case r == nil || other == nil:
		return other == nil && r != nil
	case r.Start.IsZero() != other.Start.IsZero():
		return other.Start.IsZero()
	case !r.Start.Equal(other.Start):
		return r.Start.Before(other.Start)
	}
	return r.Work < other.Work
}

// clearlyBetter says whether it is worth to give up what has been waited for already.
func (r *Reservation) clearlyBetter(kept *Reservation, now time.Time) bool {
	switch {
	case r == nil:
		return false
	case r.Start.IsZero() != kept.Start.IsZero():
		return kept.Start.IsZero()
	case r.Start.IsZero():
		return r.Work < kept.Work/2
	}
	wait, other := r.Start.Sub(now), kept.Start.Sub(now)
	return wait < other-max(time.Minute, other/4) || wait <= 0 && other > 0
}

// reservationPlan looks for the places of one unit.
type reservationPlan struct {
	limits *Limits
	now    clock
	// ran, where not nil, has the pods that can be waited for without their end being known.
	ran     map[string]bool
	unit    *Unit
	members []Member
	nodes   []Occupancy
	// after is when the claims of earlier units on a node will be in place; zero where nobody knows.
	after   map[int]time.Time
	outlook func() Outlook
}

// best looks among those nodes, in each domain where the unit must be in one.
func (p *reservationPlan) best(among []int) *Reservation {
	if p.unit.Domains == nil {
		return p.among(among)
	}
	byDomain := map[string][]int{}
	for _, at := range among {
		if d := p.unit.Domains[at]; d != "" {
			byDomain[d] = append(byDomain[d], at)
		}
	}
	var best *Reservation
	for _, d := range slices.Sorted(maps.Keys(byDomain)) {
		if r := p.among(byDomain[d]); r.better(best) {
			best = r
		}
	}
	return best
}

func (p *reservationPlan) among(among []int) *Reservation {
	ends := []time.Time{p.now.now}
	for _, at := range among {
		for i := range p.nodes[at].Holdings {
			if e := p.nodes[at].Holdings[i].Ends; e.After(p.now.now) {
				ends = append(ends, e)
			}
		}
	}
	slices.SortFunc(ends, time.Time.Compare)
	ends = slices.CompactFunc(ends, time.Time.Equal)
	until := func(at time.Time) *seats {
		return p.place(among, func(o *Occupancy) []int { return o.by(at) })
	}
	found := until(ends[len(ends)-1])
	if found == nil {
		found = p.place(among, func(o *Occupancy) []int { return o.which(p.ran) })
		if found == nil {
			return nil
		}
		return p.reservation(found)
	}
	// The earliest end at which it fits. More room never hurts, or so little that a later end does as well.
	low, high := 0, len(ends)-1
	for low < high {
		mid := (low + high) / 2
		if s := until(ends[mid]); s != nil {
			found, high = s, mid
		} else {
			low = mid + 1
		}
	}
	return p.reservation(found)
}

// reservation puts what was found in words.
func (p *reservationPlan) reservation(s *seats) *Reservation {
	r := &Reservation{Turn: p.unit.Turn, Claims: map[string][]Claim{}, Start: p.now.now, ran: map[string]bool{}}
	unknown := false
	for _, at := range slices.Sorted(maps.Keys(s.claims)) {
		o := &p.nodes[at]
		r.Claims[o.Node.Name] = s.claims[at]
		for i := range o.Holdings {
			r.ran[o.Holdings[i].ID] = true
		}
		for _, h := range s.left[at] {
			holding := &o.Holdings[h]
			r.Waits = append(r.Waits, holding.ID)
			r.Work += holding.work(p.now, o.Node)
			unknown = unknown || holding.Ends.IsZero()
			if holding.Ends.After(r.Start) {
				r.Start = holding.Ends
			}
		}
		if after, ok := p.after[at]; ok {
			unknown = unknown || after.IsZero()
			if after.After(r.Start) {
				r.Start = after
			}
		}
	}
	if unknown {
		r.Start = time.Time{}
	}
	slices.Sort(r.Waits)
	return r
}

// seats are the places found for a unit, by the position of the node.
type seats struct {
	claims map[int][]Claim
	left   map[int][]int
}

// seat is what a node offers another member of a class.
type seat struct {
	known, fits, asked bool
	claims             []Claim
	left               []int
	// cost is the work in the way of this member, beyond that in the way of those that have a place there already.
	cost int64
}

// place gives each member a place where the least work is in its way, until as many as needed have one. may says which holdings
// of a node can be waited for. It returns nil where too few members fit.
func (p *reservationPlan) place(among []int, may func(*Occupancy) []int) *seats {
	var outlook Outlook
	if p.outlook != nil {
		outlook = p.outlook()
	}
	s := &seats{claims: map[int][]Claim{}, left: map[int][]int{}}
	offers := make([][]seat, len(p.unit.Classes))
	members, placed := slices.Clone(p.members), 0
	for again := true; again && placed < p.unit.Need; {
		again = false
		full := make([]bool, len(p.unit.Classes))
		var rest []Member
		for _, m := range members {
			at := -1
			if placed < p.unit.Need && !full[m.Class] {
				at = p.choose(s, offers, among, may, m.Class, outlook)
			}
			if at < 0 {
				full[m.Class] = true
				rest = append(rest, m)
				continue
			}
			offer := offers[m.Class][at]
			node := among[at]
			s.claims[node], s.left[node] = offer.claims, offer.left
			placed++
			elsewhere := outlook != nil && outlook.Placed(m.Class, node, p.nodes[node].ids(offer.left))
			for class := range offers {
				switch {
				case offers[class] == nil:
				case elsewhere:
					clear(offers[class])
				default:
					offers[class][at] = seat{}
				}
			}
			again = again || elsewhere
		}
		members = rest
	}
	if placed < p.unit.Need {
		return nil
	}
	return s
}

// choose returns the position in among of the node with the least work in the way of a member of the class, the first by name of
// equals, or -1.
func (p *reservationPlan) choose(s *seats, offers [][]seat, among []int, may func(*Occupancy) []int, class int, outlook Outlook) int {
	if offers[class] == nil {
		offers[class] = make([]seat, len(among))
	}
	for {
		best := -1
		for at := range among {
			offer := &offers[class][at]
			if !offer.known {
				*offer = p.offer(s, among[at], may, class)
			}
			if !offer.fits {
				continue
			}
			if best < 0 || offer.cost < offers[class][best].cost ||
				offer.cost == offers[class][best].cost && p.nodes[among[at]].Node.Name < p.nodes[among[best]].Node.Name {
				best = at
			}
		}
		if best < 0 {
			return -1
		}
		offer := &offers[class][best]
		if offer.asked || outlook == nil {
			return best
		}
		offer.asked = true
		node := among[best]
		o := &p.nodes[node]
		if outlook.Feasible(class, node, o.ids(offer.left)) {
			return best
		}
		// What is in the way may be no want of room: a port, a volume, a pod that repels this one.
		offer.fits = false
		if all := may(o); len(all) > len(offer.left) && outlook.Feasible(class, node, o.ids(all)) {
			offer.fits, offer.left = true, all
			offer.cost = p.work(o, all) - p.work(o, s.left[node])
		}
	}
}

func (p *reservationPlan) offer(s *seats, node int, may func(*Occupancy) []int, class int) seat {
	o := &p.nodes[node]
	claims := append(slices.Clone(s.claims[node]), Claim{Request: p.unit.Classes[class]})
	sortClaims(claims)
	left, settled, ok := p.limits.vacate(p.now, o, may(o), claims)
	if !ok {
		return seat{known: true}
	}
	// What another member of the unit waits for leaves in any case.
	for _, at := range s.left[node] {
		if !slices.Contains(left, at) {
			left = append(slices.Clip(left), at)
		}
	}
	return seat{known: true, fits: true, claims: settled, left: left, cost: p.work(o, left) - p.work(o, s.left[node])}
}

func (p *reservationPlan) work(o *Occupancy, left []int) int64 {
	var sum int64
	for _, at := range left {
		sum += o.Holdings[at].work(p.now, o.Node)
	}
	return sum
}
