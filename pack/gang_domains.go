// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// offer is what a domain would take of the members that are left.
type offer struct {
	known bool
	// exact is true where the constraints were asked; else count is at least what they leave.
	exact bool
	count int
	// taken is count by class.
	taken []int
	score float64
}

// mean is the score of one member.
func (o *offer) mean() float64 { return o.score / float64(o.count) }

// domainPlan chooses domains for a plan.
type domainPlan struct {
	*gangPlan
	// nodes by domain, and those of none.
	nodes [][]int32
	none  []int32
	// offers by domain.
	offers []offer
	// alike remembers the estimates of domains by the states of their nodes.
	alike map[string]offer
	key   []byte
}

func (p *gangPlan) domains() *domainPlan {
	domains := p.gang.Domains
	d := &domainPlan{
		gangPlan: p,
		nodes:    make([][]int32, len(domains.Names)),
		offers:   make([]offer, len(domains.Names)),
		alike:    map[string]offer{},
	}
	for at, domain := range domains.Of {
		if domain < 0 {
			d.none = append(d.none, int32(at))
		} else {
			d.nodes[domain] = append(d.nodes[domain], int32(at))
		}
	}
	return d
}

// require plans the whole gang in the one domain that takes most members, and of those in the one that the policy likes best.
func (p *gangPlan) require() *GangFailure {
	domains := p.gang.Domains
	d := p.domains()
	var open []int
	if len(domains.Held) > 0 {
		open = domains.Held[:1]
	} else {
		for domain := range d.nodes {
			if len(d.nodes[domain]) > 0 {
				open = append(open, domain)
			}
		}
	}
	f := &GangFailure{Need: p.gang.Need, Kind: domains.Kind, Fixed: len(domains.Held) > 0}
	if len(open) == 0 {
		if p.gang.Need == 0 {
			return nil
		}
		return f
	}
	best := open[0]
	for {
		for _, domain := range open {
			if a, b := d.offer(domain), d.offer(best); a.count > b.count || a.count == b.count && a.score > b.score {
				best = domain
			}
		}
		if d.offer(best).exact {
			break
		}
		d.try(best)
		best = open[0]
	}
	p.explain = true
	p.fill(d.nodes[best], true)
	if len(p.places) >= p.gang.Need {
		return nil
	}
	f.Placed, f.Domain, f.Request, f.Rejected = len(p.places), domains.Names[best], p.failure.Request, p.failure.Rejected
	return f
}

// prefer plans as many members as fit in as few domains as possible, and on nodes of no domain only what fits in none.
func (p *gangPlan) prefer() {
	d := p.domains()
	used := make([]bool, len(d.nodes))
	var held []int32
	for _, domain := range p.gang.Domains.Held {
		if !used[domain] {
			used[domain] = true
			held = append(held, d.nodes[domain]...)
		}
	}
	if len(held) > 0 {
		p.fill(held, true)
	}
	var open []int
	for domain := range d.nodes {
		if !used[domain] && len(d.nodes[domain]) > 0 {
			open = append(open, domain)
		}
	}
	for p.left > 0 {
		domain := d.next(open)
		if domain < 0 {
			break
		}
		p.fill(d.nodes[domain], true)
		open = slices.DeleteFunc(open, func(o int) bool { return o == domain })
		for i := range d.offers {
			// What members allow each other can be another thing now.
			if p.interplay && d.offers[i].exact {
				d.offers[i].known = false
			}
		}
	}
	if p.interplay && p.left > 0 {
		p.fill(slices.Concat(d.nodes...), true)
	}
	p.fill(d.none, true)
}

// maxTries bounds how many domains are tried for each that is chosen where members constrain each other, so that what is known
// of a domain does not last.
const maxTries = 16

// next returns the domain to fill next, or -1 where none takes any more: of those with which the fewest domains can take all that
// is left, the one that the policy likes best.
func (d *domainPlan) next(open []int) int {
	order := slices.Clone(open)
	for tries := 0; ; tries++ {
		for _, domain := range order {
			d.offer(domain)
		}
		slices.SortStableFunc(order, func(a, b int) int {
			x, y := &d.offers[a], &d.offers[b]
			return cmp.Or(cmp.Compare(y.count, x.count), cmp.Compare(y.score, x.score), cmp.Compare(a, b))
		})
		order = order[:len(order)-d.empty(order)]
		if len(order) == 0 {
			return -1
		}
		chosen, others := d.choose(order)
		unsure := -1
		for _, domain := range append(others, chosen) {
			if !d.offers[domain].exact && (!d.interplay || domain == chosen) {
				unsure = domain
			}
		}
		if unsure < 0 {
			return chosen
		}
		if d.interplay && tries >= maxTries {
			exact := slices.IndexFunc(order, func(domain int) bool { return d.offers[domain].exact })
			if exact >= 0 {
				return order[exact]
			}
		}
		d.try(unsure)
	}
}

// empty counts the domains at the end of order that take nothing.
func (d *domainPlan) empty(order []int) int {
	n := 0
	for n < len(order) && d.offers[order[len(order)-1-n]].count == 0 {
		n++
	}
	return n
}

// choose picks from domains in the order of what they take, the most first. The others are those that would have to take what
// the chosen one leaves.
func (d *domainPlan) choose(order []int) (chosen int, others []int) {
	least, sum := 0, 0
	for least < len(order) && sum < d.left {
		sum += d.offers[order[least]].count
		least++
	}
	if sum < d.left {
		return order[0], nil
	}
	chosen = -1
	last := d.offers[order[least-1]].count
	for i, domain := range order {
		o := &d.offers[domain]
		// The largest without this one, and this one.
		with := sum
		if i >= least {
			with = sum - last + o.count
		}
		if with >= d.left && (chosen < 0 || o.mean() > d.offers[chosen].mean()) {
			chosen = domain
		}
	}
	for _, domain := range order {
		if len(others) < least-1 && domain != chosen {
			others = append(others, domain)
		}
	}
	return chosen, others
}

// offer is what the domain would take of the members that are left, as far as that is known.
func (d *domainPlan) offer(domain int) *offer {
	o := &d.offers[domain]
	if o.known {
		// More members of a class than are left were counted on.
		for class, n := range o.taken {
			if n > d.rest[class] {
				o.known = false
				break
			}
		}
	}
	if !o.known {
		*o = d.estimate(d.nodes[domain])
	}
	return o
}

// try finds out what the domain would really take.
func (d *domainPlan) try(domain int) {
	d.offers[domain] = d.attempt(d.nodes[domain], true)
}

// attempt fills nodes and takes all back.
func (d *domainPlan) attempt(nodes []int32, ask bool) offer {
	from := len(d.places)
	o := offer{known: true, exact: ask, taken: make([]int, len(d.rest))}
	o.score = d.fill(nodes, ask)
	o.count = len(d.places) - from
	for i := from; i < len(d.places); i++ {
		o.taken[d.places[i].class]++
	}
	d.undo(from)
	return o
}

// estimate is at least what nodes would take if there were no constraints: each class as many as if it were alone.
func (d *domainPlan) estimate(nodes []int32) offer {
	states := make([]int32, len(nodes))
	for i, at := range nodes {
		states[i] = d.state[at]
	}
	slices.Sort(states)
	key := d.key[:0]
	for _, n := range d.rest {
		key = binary.AppendUvarint(key, uint64(n))
	}
	for _, s := range states {
		key = binary.AppendUvarint(key, uint64(s))
	}
	d.key = key
	if o, ok := d.alike[string(key)]; ok {
		return o
	}
	o := d.attempt(nodes, false)
	kinds := 0
	for _, n := range d.rest {
		kinds += min(n, 1)
	}
	if kinds > 1 {
		// Room that one class would take, which constraints then keep out, is another's.
		rest, left := slices.Clone(d.rest), d.left
		o.count = 0
		for class, n := range rest {
			if o.taken[class] < n {
				clear(d.rest)
				d.rest[class], d.left = n, n
				o.taken[class] = d.attempt(nodes, false).count
			}
			o.count += o.taken[class]
		}
		copy(d.rest, rest)
		d.left = left
	}
	d.alike[string(key)] = o
	return o
}
