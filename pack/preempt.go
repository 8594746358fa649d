// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"strings"
)

// VictimPod is one pod that preemption may evict.
type VictimPod struct {
	// ID is that of its tenant.
	ID string
	// Node is a position in Preemption.Nodes.
	Node int
	// Request is what the pod holds of the node.
	Request  Request
	Priority int32
	// Loss is the work that ends with the pod, in GPU seconds.
	Loss float64
	// Budgets are positions in Preemption.Budgets of the disruption budgets that count the pod.
	Budgets []int
}

// Victim is what preemption evicts whole or not at all, but for its elastic pods: a gang, or a pod by itself.
type Victim struct {
	// ID decides among equals.
	ID string
	// Pods in the order in which they are worth keeping.
	Pods []VictimPod
	// Elastic is how many of the pods can go before the others are worth nothing. Once more go, all go.
	Elastic int
	// Pinned says that more than the elastic pods must not go.
	Pinned bool
}

// Evictions are Constraints that know what the nodes are like once pods have left.
type Evictions interface {
	Constraints
	// Evicted tells that a pod of a victim, both by position, leaves its node.
	Evicted(victim, pod int)
	// Restored takes back Evicted.
	Restored(victim, pod int)
	// Hopeless says whether the answer of the last call of Feasible, which was no, would be the same without any pod.
	Hopeless() bool
}

// Preemption is a gang, or a pod as a gang of one, that finds no room, and what could be evicted to make some.
type Preemption struct {
	Nodes   []*Node
	Classes []Request
	Members []Member
	// Need is how many members must be placed together. Nothing is evicted for more than these.
	Need int
	// Domains, where not nil, are where the gang should stay.
	Domains *Domains
	// Victims must all be worth less than the gang; that is the caller's to decide.
	Victims []Victim
	// Budgets are how many pods each disruption budget lets go.
	Budgets     []int
	Constraints Evictions
}

// Eviction is a victim to evict.
type Eviction struct {
	// Victim and Pods are positions.
	Victim int
	Pods   []int
}

// PreemptionPlan is what to evict and what that makes room for.
type PreemptionPlan struct {
	// Evictions are empty where the gang has room as it is.
	Evictions []Eviction
	// Placements of at least the members needed.
	Placements []Placement
	Toll       Toll
}

// Toll is what evictions cost. Less is better in the order of the fields.
type Toll struct {
	// Breaks counts how many pods go beyond what disruption budgets let go.
	Breaks int
	// Priority is the highest of any pod; math.MinInt32 where there is none.
	Priority int32
	// Loss is the work that ends, in GPU seconds.
	Loss float64
	Pods int
}

func (t Toll) compare(o Toll) int {
	return cmp.Or(cmp.Compare(t.Breaks, o.Breaks), cmp.Compare(t.Priority, o.Priority), cmp.Compare(t.Loss, o.Loss), cmp.Compare(t.Pods, o.Pods))
}

const (
	// maxCeilings bounds how many plans are compared where none leaves all budgets whole.
	maxCeilings = 4
	// maxSpared bounds how many victims are left alone in turn to find one that does.
	maxSpared = 8
)

// Preempt says what to evict so that the gang has room for the members that it needs, or why no eviction helps. It breaks as few
// disruption budgets as it finds a way to, then spares the higher priorities, then work, then pods. No victim is evicted without
// need. Nodes are not changed, and the constraints are in the end told that nobody is gone or placed.
//
// Where one domain must take the whole gang, each is tried by itself. Domains that are only preferred do not decide what goes, but
// where the members are put then.
func (c *Chooser) Preempt(p *Preemption) (*PreemptionPlan, *GangFailure) {
	s := newEvictor(c, p)
	defer s.reset()
	room := &PreemptionPlan{Toll: Toll{Priority: math.MinInt32}}
	failure := s.planWhole(room)
	if failure == nil {
		return room, nil
	}
	if len(p.Victims) == 0 {
		return nil, failure
	}
	if p.Domains == nil || !p.Domains.Required {
		if plan := s.search(false); plan != nil {
			return plan, nil
		}
		return nil, s.despair()
	}
	var best *PreemptionPlan
	for _, domain := range p.Domains.open() {
		s.confine(domain)
		plan := s.search(best != nil && best.Toll.Breaks == 0)
		if plan != nil && (best == nil || plan.Toll.compare(best.Toll) < 0) {
			best = plan
		}
	}
	if best != nil {
		return best, nil
	}
	s.confine(-1)
	return nil, s.despair()
}

// open are the domains that can take a gang of which one must take the whole.
func (d *Domains) open() []int {
	if len(d.Held) > 0 {
		return d.Held[:1]
	}
	some := make([]bool, len(d.Names))
	for _, domain := range d.Of {
		if domain >= 0 {
			some[domain] = true
		}
	}
	var out []int
	for domain := range some {
		if some[domain] {
			out = append(out, domain)
		}
	}
	return out
}

// confine lets the gang be in that domain only; anywhere that its own domains allow for -1.
func (s *evictor) confine(domain int) {
	s.reset()
	s.open, s.isOpen, s.domains = s.open[:0], make([]bool, len(s.nodes)), s.Domains
	if domain >= 0 {
		within := *s.Domains
		within.Held = []int{domain}
		s.domains = &within
	}
	for at := range s.nodes {
		if domain < 0 || s.Domains.Of[at] == domain {
			s.open = append(s.open, at)
			s.isOpen[at] = true
		}
	}
}

// search finds what costs least to evict, or nil where no eviction helps. Where strict is true, nothing that breaks a budget does.
func (s *evictor) search(strict bool) *PreemptionPlan {
	priorities := s.priorities()
	if len(priorities) == 0 {
		return nil
	}
	// Where nothing helps, that shows at once with all gone.
	last := len(priorities) - 1
	rules := []rule{{strict: true}, {strict: true, share: true}, {}}
	if strict {
		rules = rules[:2]
	}
	found := false
	for _, s.rule = range rules {
		if !s.rule.strict {
			// To place each member at the least cost can lead into a corner where another way breaks no budget.
			if plan := s.clearOut(true); plan != nil {
				return plan
			}
		}
		s.rule.ceiling = priorities[last]
		if found = s.plan() || s.rule.strict && s.spare(); found {
			break
		}
	}
	if !found {
		return s.clearOut(strict)
	}
	lowest := sort.Search(last, func(i int) bool {
		s.rule.ceiling = priorities[i]
		return s.plan()
	})
	ceilings := priorities[lowest : lowest+1]
	if !s.rule.strict {
		// To take higher priorities may break fewer budgets.
		ceilings = priorities[max(lowest, last+1-maxCeilings):]
	}
	var best *PreemptionPlan
	for _, s.rule.ceiling = range ceilings {
		for _, s.rule.share = range []bool{false, true} {
			if !s.plan() {
				continue
			}
			if plan := s.finish(); plan != nil && (best == nil || plan.Toll.compare(best.Toll) < 0) {
				best = plan
			}
		}
	}
	if best == nil {
		best = s.clearOut(strict)
	}
	return best
}

// spare looks for a victim without which a strict plan that found no place for all does find it, since the budget that the victim
// used up lets others go instead.
func (s *evictor) spare() bool {
	var used []int
	for _, v := range s.touched {
		if s.count[v] > 0 && !slices.Contains(used, v) && slices.ContainsFunc(s.Victims[v].Pods, func(p VictimPod) bool { return len(p.Budgets) > 0 }) {
			used = append(used, v)
		}
	}
	for _, v := range used[:min(len(used), maxSpared)] {
		s.rule.spared = v + 1
		if s.plan() {
			return true
		}
	}
	s.rule.spared = 0
	return false
}

// priorities are those of all pods that could go from where the gang can be, in order.
func (s *evictor) priorities() []int32 {
	var out []int32
	for _, at := range s.open {
		for _, ref := range s.onNode[at] {
			for j := range s.Victims[ref.victim].Pods {
				out = append(out, s.Victims[ref.victim].Pods[j].Priority)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// rule says which victims a plan may take, and how it weighs them.
type rule struct {
	ceiling int32
	// strict leaves pods alone that a budget keeps.
	strict bool
	// share weighs a victim by the part of what it frees that the member takes, since more members can use the rest.
	share bool
	// spared, where not 0, is one more than the position of a victim to leave alone, so that a budget is left for others.
	spared int
}

type podRef struct{ victim, pod int }

type evictor struct {
	*Preemption
	chooser *Chooser
	order   []Member
	// onNode are the victims' pods by node.
	onNode [][]podRef
	rule   rule
	// open are the nodes where members can go, and domains those that a plan must regard.
	open    []int
	isOpen  []bool
	domains *Domains

	nodes []*Node
	owned []bool
	// gone by victim and pod, and how many of each victim.
	gone  [][]bool
	count []int
	// touched are the victims of which some were evicted since all was reset.
	touched []int
	// charged counts the evicted pods by budget.
	charged []int
	placed  []Placement
	byNode  map[int][]int
	// interacts is true once a placement has changed what is feasible elsewhere.
	interacts bool
	options   [][]eviction
}

// eviction is what a node offers to a class.
type eviction struct {
	known, feasible bool
	// sure is true where the constraints were asked with exactly these pods gone.
	sure   bool
	pods   []podRef
	toll   Toll
	weight weight
	// keep is the first position among its victim's pods of any of the pods.
	keep  int
	score float64
}

func newEvictor(c *Chooser, p *Preemption) *evictor {
	s := &evictor{
		Preemption: p, chooser: c,
		nodes: slices.Clone(p.Nodes), owned: make([]bool, len(p.Nodes)),
		onNode: make([][]podRef, len(p.Nodes)), byNode: map[int][]int{},
		gone: make([][]bool, len(p.Victims)), count: make([]int, len(p.Victims)), charged: make([]int, len(p.Budgets)),
		options: make([][]eviction, len(p.Classes)),
	}
	s.order = slices.Clone(p.Members)
	slices.SortStableFunc(s.order, func(a, b Member) int {
		return cmp.Or(compareSize(&p.Classes[a.Class], &p.Classes[b.Class]), a.Class-b.Class)
	})
	for v := range p.Victims {
		s.gone[v] = make([]bool, len(p.Victims[v].Pods))
		for j := range p.Victims[v].Pods {
			at := p.Victims[v].Pods[j].Node
			s.onNode[at] = append(s.onNode[at], podRef{v, j})
		}
	}
	s.confine(-1)
	return s
}

func (s *evictor) pod(r podRef) *VictimPod { return &s.Victims[r.victim].Pods[r.pod] }

// reset takes everything back.
func (s *evictor) reset() {
	for len(s.placed) > 0 {
		s.unplaceLast()
	}
	clear(s.byNode)
	for _, v := range s.touched {
		for j, gone := range s.gone[v] {
			if gone {
				s.Constraints.Restored(v, j)
			}
		}
		clear(s.gone[v])
		s.count[v] = 0
	}
	s.touched = s.touched[:0]
	clear(s.charged)
	copy(s.nodes, s.Nodes)
	clear(s.owned)
	for class := range s.options {
		clear(s.options[class])
	}
}

func (s *evictor) unplaceLast() {
	last := s.placed[len(s.placed)-1]
	s.Constraints.Removed(last.Member.Class, last.Node)
	s.placed = s.placed[:len(s.placed)-1]
}

// plan places as many members as are needed, each where it costs least, and says whether there is a place for all of them.
func (s *evictor) plan() bool {
	s.reset()
	full := make([]bool, len(s.Classes))
	rest := slices.Clone(s.order)
	for again := true; again && len(s.placed) < s.Need; {
		again = false
		clear(full)
		var left []Member
		for _, m := range rest {
			if len(s.placed) == s.Need {
				break
			}
			if full[m.Class] || !s.place(m) {
				full[m.Class] = true
				left = append(left, m)
				continue
			}
			// A member may need another beside it that is easier to place.
			again = again || s.interacts
		}
		rest = left
	}
	return len(s.placed) >= s.Need
}

// place puts the member on the node where that costs least.
func (s *evictor) place(m Member) bool {
	for {
		at := s.cheapest(m.Class)
		if at < 0 {
			return false
		}
		o := &s.options[m.Class][at]
		took := s.evict(o.pods)
		if o.sure || s.feasible(m.Class, at) {
			s.put(m, at)
			s.forget(took, at)
			return true
		}
		hopeless := s.Constraints.Hopeless()
		s.restore(took)
		if hopeless {
			*o = eviction{known: true}
			continue
		}
		*o = s.ask(m.Class, at)
	}
}

func (s *evictor) feasible(class, at int) bool {
	ok, _ := s.Constraints.Feasible(class, at)
	return ok
}

func (s *evictor) put(m Member, at int) {
	r := &s.Classes[m.Class]
	choice, _ := s.chooser.Choose(s.nodes[at], r)
	s.own(at)
	s.nodes[at].Place(r, m.ID, choice.GPUs)
	s.byNode[at] = append(s.byNode[at], len(s.placed))
	s.placed = append(s.placed, Placement{Member: m, Node: at, GPUs: choice.GPUs, Score: choice.Score})
	if s.Constraints.Placed(m.Class, at) {
		s.interacts = true
		for class := range s.options {
			clear(s.options[class])
		}
	}
}

// cheapest returns the node that costs the class least, or -1. Among equals the policy decides, then the order of nodes.
func (s *evictor) cheapest(class int) int {
	if s.options[class] == nil {
		s.options[class] = make([]eviction, len(s.nodes))
	}
	best := -1
	for _, at := range s.open {
		o := &s.options[class][at]
		if !o.known {
			*o = s.evaluate(class, at, nil)
		}
		if o.feasible && (best < 0 || o.compare(&s.options[class][best]) < 0) {
			best = at
		}
	}
	return best
}

func (e *eviction) compare(o *eviction) int {
	return cmp.Or(cmp.Compare(e.weight.breaks, o.weight.breaks), cmp.Compare(e.weight.loss, o.weight.loss), e.toll.compare(o.toll),
		cmp.Compare(o.keep, e.keep), cmp.Compare(o.score, e.score))
}

// ask evaluates the node with the constraints asked at each step.
func (s *evictor) ask(class, at int) eviction {
	o := s.evaluate(class, at, func(pods []podRef) bool {
		took := s.evict(pods)
		ok := s.feasible(class, at)
		s.restore(took)
		return ok
	})
	o.sure = true
	return o
}

// evaluate finds what must leave the node so that a member of the class can go there. also, where set, is asked too whether
// the node suits once those pods are gone.
func (s *evictor) evaluate(class, at int, also func([]podRef) bool) eviction {
	r := &s.Classes[class]
	var without *Node
	fits := func(pods []podRef) bool {
		n := s.nodes[at]
		if len(pods) > 0 {
			n = n.Clone()
			for _, ref := range pods {
				n.Remove(&s.pod(ref).Request, s.pod(ref).ID)
			}
		}
		without = n
		return s.chooser.Limits.FitHost(n, r) == ReasonFits && (also == nil || also(pods))
	}
	out := eviction{known: true}
	if !fits(nil) {
		lots := s.lots(at)
		var all []podRef
		for i := range lots {
			all = append(all, lots[i].pods...)
		}
		if len(all) == 0 || !fits(all) {
			return out
		}
		keep := make([]bool, len(lots))
		for i := range lots {
			// The elastic pods of a gang stay only where the rest of it does.
			if of := lots[i].of; of >= 0 && !keep[of] {
				continue
			}
			var pods []podRef
			for j := range lots {
				if !keep[j] && j != i {
					pods = append(pods, lots[j].pods...)
				}
			}
			keep[i] = fits(pods)
		}
		for i := range lots {
			if !keep[i] {
				out.pods = append(out.pods, lots[i].pods...)
			}
		}
		if !fits(out.pods) {
			return out
		}
		out.toll, out.weight = s.toll(out.pods, r)
		out.keep = slices.MinFunc(out.pods, func(a, b podRef) int { return a.pod - b.pod }).pod
		if s.rule.strict && out.toll.Breaks > 0 {
			return out
		}
	} else {
		out.toll.Priority = math.MinInt32
	}
	out.feasible = true
	choice, _ := s.chooser.Choose(without, r)
	out.score = choice.Score
	return out
}

// lot is what leaves one node at once.
type lot struct {
	pods []podRef
	toll Toll
	// of is the position of the lot with the rest of the gang, for one that can leave before it; -1 for others.
	of int
}

// lots returns what can leave the node, from what is worth most to what is worth least.
func (s *evictor) lots(at int) []lot {
	var lots []lot
	here := map[int][]podRef{}
	var victims []int
	for _, ref := range s.onNode[at] {
		if !s.gone[ref.victim][ref.pod] && ref.victim != s.rule.spared-1 {
			if here[ref.victim] == nil {
				victims = append(victims, ref.victim)
			}
			here[ref.victim] = append(here[ref.victim], ref)
		}
	}
	for _, v := range victims {
		pods := here[v]
		elastic := min(s.Victims[v].Elastic-s.count[v], len(pods))
		core := pods[:len(pods)-elastic]
		first := len(lots)
		of := -1
		if len(core) > 0 {
			toll, _ := s.toll(core, nil)
			if s.Victims[v].Pinned || !s.allowed(toll) {
				core = nil
			} else {
				lots = append(lots, lot{pods: core, toll: toll, of: -1})
				of = first
			}
		}
		for _, ref := range pods[len(pods)-elastic:] {
			if toll, _ := s.toll([]podRef{ref}, nil); s.allowed(toll) || of >= 0 {
				lots = append(lots, lot{pods: []podRef{ref}, toll: toll, of: of})
			}
		}
	}
	rank := make([]int, len(lots))
	for i := range rank {
		rank[i] = i
	}
	slices.SortStableFunc(rank, func(a, b int) int {
		return cmp.Or(lots[b].toll.compare(lots[a].toll), s.compareIDs(lots[a].pods[0], lots[b].pods[0]))
	})
	// A gang's own lot stands before its elastic ones, whatever they weigh.
	position := make([]int, len(lots))
	sorted := make([]lot, 0, len(lots))
	seen := make([]bool, len(lots))
	add := func(i int) {
		if !seen[i] {
			seen[i], position[i] = true, len(sorted)
			sorted = append(sorted, lots[i])
		}
	}
	for _, i := range rank {
		if lots[i].of >= 0 {
			add(lots[i].of)
		}
		add(i)
	}
	for i := range sorted {
		if sorted[i].of >= 0 {
			sorted[i].of = position[sorted[i].of]
		}
	}
	return sorted
}

func (s *evictor) allowed(t Toll) bool {
	return t.Priority <= s.rule.ceiling && (!s.rule.strict || t.Breaks == 0)
}

func (s *evictor) compareIDs(a, b podRef) int {
	return cmp.Or(strings.Compare(s.Victims[a.victim].ID, s.Victims[b.victim].ID), cmp.Compare(a.pod, b.pod))
}

// whole adds to pods the rest of each gang of which more than the elastic ones would be gone.
func (s *evictor) whole(pods []podRef) []podRef {
	more := map[int]int{}
	for _, ref := range pods {
		more[ref.victim]++
	}
	out := pods
	for i, ref := range pods {
		v := ref.victim
		if slices.ContainsFunc(pods[:i], func(r podRef) bool { return r.victim == v }) || s.count[v]+more[v] <= s.Victims[v].Elastic {
			continue
		}
		for j := range s.Victims[v].Pods {
			if !s.gone[v][j] && !slices.Contains(pods, podRef{v, j}) {
				out = append(out[:len(out):len(out)], podRef{v, j})
			}
		}
	}
	return out
}

// weight is what nodes are compared by.
type weight struct{ breaks, loss float64 }

// toll is what evicting the pods costs beside what is evicted already, and what that weighs for the request, if there is one.
func (s *evictor) toll(pods []podRef, r *Request) (Toll, weight) {
	t := Toll{Priority: math.MinInt32}
	var w weight
	charges := map[int]int{}
	for _, ref := range s.whole(pods) {
		p := s.pod(ref)
		breaks := 0
		for _, b := range p.Budgets {
			charges[b]++
			if s.charged[b]+charges[b] > s.Budgets[b] {
				breaks++
			}
		}
		t.Pods++
		t.Loss += p.Loss
		t.Priority = max(t.Priority, p.Priority)
		t.Breaks += breaks
		part := 1.0
		if r != nil && s.rule.share {
			var frees float64
			for j := range s.Victims[ref.victim].Pods {
				frees += extent(&s.Victims[ref.victim].Pods[j].Request)
			}
			part = min(1, extent(r)/frees)
		}
		w.breaks += part * float64(breaks)
		w.loss += part * p.Loss
	}
	return t, w
}

// extent is how much a request takes, in GPUs; CPU counts a little, so that it is never 0.
func extent(r *Request) float64 {
	return float64(r.GPUs) + float64(r.Milli)/WholeMilli + float64(r.MiB)/(64<<10) + float64(r.CPUMilli+1)/1e6
}

// evict lets the pods go, with what goes with them, and returns all of these.
func (s *evictor) evict(pods []podRef) []podRef {
	pods = s.whole(pods)
	for _, ref := range pods {
		p := s.pod(ref)
		s.touched = append(s.touched, ref.victim)
		s.own(p.Node)
		s.nodes[p.Node].Remove(&p.Request, p.ID)
		s.leave(ref)
	}
	return pods
}

// leave counts a pod as gone, but does not take it off its node.
func (s *evictor) leave(ref podRef) {
	s.gone[ref.victim][ref.pod] = true
	s.count[ref.victim]++
	for _, b := range s.pod(ref).Budgets {
		s.charged[b]++
	}
	s.Constraints.Evicted(ref.victim, ref.pod)
}

// restore takes evictions back.
func (s *evictor) restore(pods []podRef) {
	for _, ref := range slices.Backward(pods) {
		p := s.pod(ref)
		s.gone[ref.victim][ref.pod] = false
		s.count[ref.victim]--
		for _, b := range p.Budgets {
			s.charged[b]--
		}
		s.Constraints.Restored(ref.victim, ref.pod)
	}
	for _, ref := range pods {
		s.rebuild(s.pod(ref).Node)
	}
}

func (s *evictor) own(at int) {
	if !s.owned[at] {
		s.nodes[at], s.owned[at] = s.nodes[at].Clone(), true
	}
}

// vacated is the node without what is gone, and without the members.
func (s *evictor) vacated(at int) *Node {
	n := s.Nodes[at].Clone()
	for _, ref := range s.onNode[at] {
		if s.gone[ref.victim][ref.pod] {
			n.Remove(&s.pod(ref).Request, s.pod(ref).ID)
		}
	}
	return n
}

func (s *evictor) rebuild(at int) {
	n := s.vacated(at)
	for _, i := range s.byNode[at] {
		n.Place(&s.Classes[s.placed[i].Member.Class], s.placed[i].Member.ID, s.placed[i].GPUs)
	}
	s.nodes[at], s.owned[at] = n, true
}

// forget drops what is known of a node that has a new member, and of all nodes that hold pods of victims of which some left.
func (s *evictor) forget(pods []podRef, at int) {
	drop := func(node int) {
		for class := range s.options {
			if s.options[class] != nil {
				s.options[class][node] = eviction{}
			}
		}
	}
	drop(at)
	for i, ref := range pods {
		if i > 0 && pods[i-1].victim == ref.victim {
			continue
		}
		for j := range s.Victims[ref.victim].Pods {
			drop(s.Victims[ref.victim].Pods[j].Node)
		}
	}
	for _, ref := range pods {
		if len(s.pod(ref).Budgets) == 0 {
			continue
		}
		// A budget can count pods of any node.
		for class := range s.options {
			clear(s.options[class])
		}
		return
	}
}

// finish takes back what the members placed do not need, and plans the gang anew on what is then free, as the scheduler will. It
// goes on until that plan needs all that is evicted, and returns nil where there is none.
func (s *evictor) finish() *PreemptionPlan {
	s.reprieve()
	for {
		plan := &PreemptionPlan{Toll: Toll{Priority: math.MinInt32}}
		var all []podRef
		for v := range s.gone {
			e := Eviction{Victim: v}
			for j, gone := range s.gone[v] {
				if gone {
					e.Pods = append(e.Pods, j)
					all = append(all, podRef{v, j})
				}
			}
			if len(e.Pods) > 0 {
				plan.Evictions = append(plan.Evictions, e)
			}
		}
		s.reset()
		if len(all) > 0 {
			plan.Toll, _ = s.toll(all, nil)
		}
		s.evict(all)
		if s.planWhole(plan) != nil {
			return nil
		}
		if !s.reprieve() {
			return plan
		}
	}
}

// planWhole plans the gang as if nothing were to be evicted beside what is gone, and puts the members needed there.
func (s *evictor) planWhole(plan *PreemptionPlan) *GangFailure {
	undo := &undoing{Evictions: s.Constraints}
	placements, failure := s.chooser.PlanGangIn(s.nodes, &Gang{Classes: s.Classes, Members: s.Members, Need: s.Need, Domains: s.domains}, undo)
	undo.all()
	if failure != nil {
		return failure
	}
	plan.Placements = placements
	for _, p := range placements[:max(0, s.Need)] {
		s.own(p.Node)
		s.nodes[p.Node].Place(&s.Classes[p.Member.Class], p.Member.ID, p.GPUs)
		s.byNode[p.Node] = append(s.byNode[p.Node], len(s.placed))
		s.placed = append(s.placed, p)
		s.interacts = s.Constraints.Placed(p.Member.Class, p.Node) || s.interacts
	}
	return nil
}

// undoing takes back what a plan tells the constraints.
type undoing struct {
	Evictions
	placed [][2]int
}

// Placed implements Constraints.
func (u *undoing) Placed(class, node int) bool {
	u.placed = append(u.placed, [2]int{class, node})
	return u.Evictions.Placed(class, node)
}

// Removed implements Constraints. Plans take back what they placed last.
func (u *undoing) Removed(class, node int) {
	u.placed = u.placed[:len(u.placed)-1]
	u.Evictions.Removed(class, node)
}

func (u *undoing) all() {
	for _, p := range slices.Backward(u.placed) {
		u.Evictions.Removed(p[0], p[1])
	}
}

// reprieve keeps each victim without which the members have their nodes all the same, those first that are worth most. It says
// whether there was any.
func (s *evictor) reprieve() bool {
	type evicted struct {
		victim int
		pods   []podRef
		toll   Toll
	}
	var list []evicted
	for v := range s.gone {
		if s.count[v] == 0 {
			continue
		}
		e := evicted{victim: v, toll: Toll{Priority: math.MinInt32}}
		for j, gone := range s.gone[v] {
			if gone {
				e.pods = append(e.pods, podRef{v, j})
				p := s.pod(podRef{v, j})
				e.toll.Loss += p.Loss
				e.toll.Pods++
				e.toll.Priority = max(e.toll.Priority, p.Priority)
				for _, b := range p.Budgets {
					if s.charged[b] > s.Budgets[b] {
						e.toll.Breaks++
					}
				}
			}
		}
		list = append(list, e)
	}
	slices.SortStableFunc(list, func(a, b evicted) int {
		return cmp.Or(b.toll.compare(a.toll), s.compareIDs(a.pods[0], b.pods[0]))
	})
	some := false
	for _, e := range list {
		if s.keeps(e.pods) {
			some = true
			continue
		}
		var kept []podRef
		for _, ref := range e.pods {
			if len(e.pods) > 1 && s.keeps([]podRef{ref}) {
				kept = append(kept, ref)
			}
		}
		if s.count[e.victim] > s.Victims[e.victim].Elastic && len(kept) > 0 {
			// Less of the gang than it needs would stay.
			s.evict(kept)
			for _, ref := range kept {
				s.rebuild(s.pod(ref).Node)
			}
			kept = nil
		}
		some = some || len(kept) > 0
	}
	return some
}

// keeps restores the pods if the members can keep their nodes all the same.
func (s *evictor) keeps(pods []podRef) bool {
	before := slices.Clone(s.placed)
	s.restore(pods)
	var touched []int
	for _, ref := range pods {
		touched = append(touched, s.pod(ref).Node)
	}
	if s.interacts {
		for at := range s.byNode {
			touched = append(touched, at)
		}
	}
	slices.Sort(touched)
	touched = slices.Compact(touched)
	for _, at := range touched {
		if s.repeat(at) {
			continue
		}
		copy(s.placed, before)
		for _, ref := range pods {
			s.leave(ref)
		}
		for _, at := range touched {
			s.rebuild(at)
		}
		return false
	}
	return true
}

// repeat puts the node's members there again, and says whether all still suit.
func (s *evictor) repeat(at int) bool {
	members := s.byNode[at]
	for _, i := range slices.Backward(members) {
		s.Constraints.Removed(s.placed[i].Member.Class, at)
	}
	n := s.vacated(at)
	ok := true
	for _, i := range members {
		class := s.placed[i].Member.Class
		r := &s.Classes[class]
		if ok {
			ok = s.chooser.Limits.FitHost(n, r) == ReasonFits && s.feasible(class, at)
		}
		if ok {
			choice, _ := s.chooser.Choose(n, r)
			n.Place(r, s.placed[i].Member.ID, choice.GPUs)
			s.placed[i].GPUs, s.placed[i].Score = choice.GPUs, choice.Score
		}
		s.Constraints.Placed(class, at)
	}
	if ok {
		s.nodes[at], s.owned[at] = n, true
	}
	return ok
}

// clearOut plans the gang with all victims gone, and takes back what that plan does not need. It finds a way where placing each
// member at the least cost has led into a corner. Where strict is true, those stay that a budget keeps once others are gone which
// are worth less. It returns nil where that makes no room.
func (s *evictor) clearOut(strict bool) *PreemptionPlan {
	s.empty(strict)
	if s.planWhole(&PreemptionPlan{}) != nil {
		return nil
	}
	return s.finish()
}

// despair is why there is no room even where all victims are gone.
func (s *evictor) despair() *GangFailure {
	s.empty(false)
	return s.planWhole(&PreemptionPlan{})
}

// empty evicts all that can go from where the gang can be.
func (s *evictor) empty(strict bool) {
	s.reset()
	type leaver struct {
		pods []podRef
		toll Toll
	}
	var leavers []leaver
	seen := make([]bool, len(s.Victims))
	for _, at := range s.open {
		for _, ref := range s.onNode[at] {
			v := &s.Victims[ref.victim]
			if seen[ref.victim] {
				continue
			}
			seen[ref.victim] = true
			var core []podRef
			for j := range v.Pods {
				core = append(core, podRef{ref.victim, j})
			}
			// The elastic ones by themselves, too, since they can go where the others have to stay.
			elastic := v.Elastic
			for _, r := range slices.Backward(core) {
				if elastic > 0 && s.isOpen[s.pod(r).Node] {
					elastic--
					toll, _ := s.toll([]podRef{r}, nil)
					leavers = append(leavers, leaver{[]podRef{r}, toll})
				}
			}
			if !v.Pinned {
				toll, _ := s.toll(core, nil)
				leavers = append(leavers, leaver{core, toll})
			}
		}
	}
	slices.SortStableFunc(leavers, func(a, b leaver) int {
		return cmp.Or(a.toll.compare(b.toll), s.compareIDs(a.pods[0], b.pods[0]))
	})
	for _, l := range leavers {
		pods := slices.DeleteFunc(l.pods, func(r podRef) bool { return s.gone[r.victim][r.pod] })
		if toll, _ := s.toll(pods, nil); len(pods) > 0 && (!strict || toll.Breaks == 0) {
			s.evict(pods)
		}
	}
}
