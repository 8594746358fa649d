// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Member is one pod of a gang.
type Member struct {
	ID string
	// Class is the position of the member's request in the gang's classes. Members of one class are interchangeable.
	Class int
}

// Constraints say what other than GPUs, CPU and host memory decides where a gang's members may go.
type Constraints interface {
	// Feasible says whether a member of the class may go to the node at that position, together with all members that
	// Placed has told of. The text is why not.
	Feasible(class, node int) (bool, string)
	// Placed tells that a member of the class is planned on the node. It says whether that can have changed what is
	// feasible on other nodes; what is feasible on this one is asked again in any case.
	Placed(class, node int) (elsewhere bool)
	// Removed takes back what Placed told of one member of the class on the node.
	Removed(class, node int)
}

// Gang is what PlanGangIn places.
type Gang struct {
	// Classes are the requests of members.
	Classes []Request
	// Members in the order of their ranks: those next to each other talk most.
	Members []Member
	// Need is how many members must have a node at the same time.
	Need int
	// Domains, where not nil, are where the gang should stay.
	Domains *Domains
}

// Domains are sets of nodes that are close to each other, such as racks.
type Domains struct {
	// Kind is what users call them, such as "rack".
	Kind string
	// Names of the domains. Ranks walk through them in this order.
	Names []string
	// Of has, for each node, the position of its domain in Names, or -1 where it is in none.
	Of []int
	// Required says that the whole gang must be in one domain. Otherwise it is placed in as few as possible, and on nodes
	// of no domain where those of domains do not do.
	Required bool
	// Held are positions in Names of domains in which members of the gang are already. They count as used: where a domain
	// is required, it is the first of these.
	Held []int
}

// Placement is where one member of a gang goes.
type Placement struct {
	Member Member
	// Node is a position in the nodes given to PlanGang.
	Node int
	// GPUs are positions in that node's GPUs.
	GPUs []int
	// Score is what the policy gave the placement.
	Score float64
}

// GangFailure is why a gang cannot be placed.
type GangFailure struct {
	// Placed members of Need would fit at once, in the domain that is nearest to taking all where one is required.
	Placed, Need int
	// Request is that of the first member that does not fit beside them.
	Request Request
	// Rejected counts nodes, of that domain where one is required, by the reason why they do not take that member.
	Rejected map[string]int
	// Kind is the kind of domain that is required; empty where none is.
	Kind string
	// Domain is the nearest domain; empty where none is required or there are none.
	Domain string
	// Fixed says that members which are placed already leave no other domain than that.
	Fixed bool
}

// Error says how many members fit and why no more do.
func (f *GangFailure) Error() string {
	var b strings.Builder
	where := ""
	switch {
	case f.Kind == "":
		fmt.Fprintf(&b, "%d of the %d members needed fit at once", f.Placed, f.Need)
	case f.Domain == "":
		fmt.Fprintf(&b, "no node is in a %s, of which one must take the whole gang", f.Kind)
	case f.Fixed:
		fmt.Fprintf(&b, "%s %s, where its other members are, has room for %d of the %d members needed", f.Kind, f.Domain, f.Placed, f.Need)
		where = " there"
	default:
		fmt.Fprintf(&b, "no %s takes the whole gang: %s %s has room for %d of the %d members needed", f.Kind, f.Kind, f.Domain, f.Placed, f.Need)
		where = " there"
	}
	type count struct {
		reason string
		nodes  int
	}
	counts := make([]count, 0, len(f.Rejected))
	for reason, nodes := range f.Rejected {
		counts = append(counts, count{reason, nodes})
	}
	slices.SortFunc(counts, func(a, b count) int {
		return cmp.Or(cmp.Compare(b.nodes, a.nodes), strings.Compare(a.reason, b.reason))
	})
	for i, c := range counts {
		if i == 0 {
			fmt.Fprintf(&b, "; no node%s for another that asks for %s: ", where, f.Request.String())
		} else {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d %s", c.nodes, c.reason)
	}
	return b.String()
}

// PlanGang is PlanGangIn for a gang that no domain should hold together.
func (c *Chooser) PlanGang(nodes []*Node, classes []Request, members []Member, need int, constraints Constraints) ([]Placement, *GangFailure) {
	return c.PlanGangIn(nodes, &Gang{Classes: classes, Members: members, Need: need}, constraints)
}

// PlanGangIn places members so that at least the needed ones have a node at the same time, and as many more as fit. It changes
// none of the nodes. Members are tried from the class that is hardest to place to the easiest, each where the policy
// likes it best once the earlier ones are there.
//
// Where domains are preferred, first as many members as fit are placed, then in as few domains as possible, then where
// the policy likes it best. The number of domains is the least for a gang of one class whose members do not constrain each
// other; else each next domain is one that takes as many of the rest as the fewest domains would have to.
//
// In the end, the members of each class get its places by rank, domain by domain and node by node.
func (c *Chooser) PlanGangIn(nodes []*Node, g *Gang, constraints Constraints) ([]Placement, *GangFailure) {
	p := newGangPlan(c, nodes, g, constraints)
	var failure *GangFailure
	switch {
	case g.Domains == nil:
		failure = p.anywhere()
	case g.Domains.Required:
		failure = p.require()
	default:
		if p.prefer(); len(p.places) < g.Need {
			// What interplay between members or between classes can do to the choice of domains must not keep a gang out.
			p.undo(0)
			failure = p.anywhere()
		}
	}
	if failure != nil {
		return nil, failure
	}
	return p.placements(), nil
}

// anywhere plans the gang without regard to domains.
func (p *gangPlan) anywhere() *GangFailure {
	all := make([]int32, len(p.state))
	for at := range all {
		all[at] = int32(at)
	}
	p.explain = true
	p.fill(all, true)
	if len(p.places) >= p.gang.Need {
		return nil
	}
	f := p.failure
	f.Placed, f.Need = len(p.places), p.gang.Need
	return &f
}

// placements gives the places of each class to its members by rank.
func (p *gangPlan) placements() []Placement {
	places := slices.Clone(p.places)
	slices.SortStableFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(p.domainOrder(a.node), p.domainOrder(b.node)), cmp.Compare(a.node, b.node))
	})
	byClass := make([][]place, len(p.gang.Classes))
	for _, at := range places {
		byClass[at.class] = append(byClass[at.class], at)
	}
	out := make([]Placement, 0, len(places))
	for _, m := range p.gang.Members {
		if len(byClass[m.Class]) == 0 {
			continue
		}
		at := byClass[m.Class][0]
		byClass[m.Class] = byClass[m.Class][1:]
		out = append(out, Placement{Member: m, Node: int(at.node), GPUs: slices.Clone(at.choice.GPUs), Score: at.choice.Score})
	}
	return out
}

// domainOrder is where ranks come to a node's domain.
func (p *gangPlan) domainOrder(node int32) int {
	d := p.gang.Domains
	switch {
	case d == nil:
		return 0
	case d.Of[node] < 0:
		return len(d.Names)
	default:
		return d.Of[node]
	}
}
