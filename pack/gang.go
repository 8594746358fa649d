// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
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
	// Placed members of Need would fit at once.
	Placed, Need int
	// Request is that of the first member that does not fit beside them.
	Request Request
	// Rejected counts nodes by the reason why they do not take that member.
	Rejected map[string]int
}

// Error says how many members fit and why no more do.
func (f *GangFailure) Error() string {
	type count struct {
		reason string
		nodes  int
	}
	counts := make([]count, 0, len(f.Rejected))
	for reason, nodes := range f.Rejected {
		counts = append(counts, count{reason, nodes})
	}
	slices.SortFunc(counts, func(a, b count) int {
		if a.nodes != b.nodes {
			return b.nodes - a.nodes
		}
		return strings.Compare(a.reason, b.reason)
	})
	fit := fmt.Sprintf("%d of the %d members needed fit at once", f.Placed, f.Need)
	if len(counts) == 0 {
		return fit
	}
	parts := make([]string, len(counts))
	for i, c := range counts {
		parts[i] = fmt.Sprintf("%d %s", c.nodes, c.reason)
	}
	return fmt.Sprintf("%s; no node for another that asks for %s: %s", fit, f.Request.String(), strings.Join(parts, ", "))
}

// PlanGang places members so that at least need of them have a node at the same time, and as many more as fit. It changes
// none of the nodes. Members are tried from the class that is hardest to place to the easiest, each where the policy
// likes it best once the earlier ones are there.
func (c *Chooser) PlanGang(nodes []*Node, classes []Request, members []Member, need int, constraints Constraints) ([]Placement, *GangFailure) {
	plan := gangPlan{chooser: c, nodes: slices.Clone(nodes), classes: classes, constraints: constraints}
	plan.options = make([][]option, len(classes))

	members = slices.Clone(members)
	slices.SortStableFunc(members, func(a, b Member) int {
		if d := compareSize(&classes[a.Class], &classes[b.Class]); d != 0 {
			return d
		}
		return a.Class - b.Class
	})
	placed := make([]Placement, 0, len(members))
	owned := make([]bool, len(nodes))
	full := make([]bool, len(classes))
	var failure *GangFailure
	for again := true; again && len(members) > 0; {
		again, failure = false, nil
		clear(full)
		var rest []Member
		for _, m := range members {
			at := -1
			if !full[m.Class] {
				at = plan.best(m.Class)
			}
			if at < 0 {
				// What the plan adds takes room, so no other member of the class will fit either.
				full[m.Class] = true
				rest = append(rest, m)
				if failure == nil {
					failure = &GangFailure{Need: need, Request: classes[m.Class], Rejected: plan.rejected(m.Class)}
				}
				continue
			}
			choice := plan.options[m.Class][at].choice
			if !owned[at] {
				plan.nodes[at], owned[at] = plan.nodes[at].Clone(), true
			}
			plan.nodes[at].Place(&classes[m.Class], m.ID, choice.GPUs)
			placed = append(placed, Placement{Member: m, Node: at, GPUs: choice.GPUs, Score: choice.Score})
			elsewhere := constraints.Placed(m.Class, at)
			plan.forget(at, elsewhere)
			// A member may need another beside it that is easier to place, as a worker its launcher by pod affinity.
			again = again || elsewhere
		}
		members = rest
	}
	if len(placed) < need {
		if failure == nil {
			failure = &GangFailure{Need: need}
		}
		failure.Placed = len(placed)
		return nil, failure
	}
	return placed, nil
}

// option is what a node offers a class.
type option struct {
	known    bool
	feasible bool
	choice   Choice
	why      string
}

type gangPlan struct {
	chooser     *Chooser
	nodes       []*Node
	classes     []Request
	constraints Constraints
	// options by class and node.
	options [][]option
}

// best returns the node that the policy likes best for a member of the class, the first of equals, or -1.
func (p *gangPlan) best(class int) int {
	if p.options[class] == nil {
		p.options[class] = make([]option, len(p.nodes))
	}
	best := -1
	for at := range p.nodes {
		o := &p.options[class][at]
		if !o.known {
			*o = p.evaluate(class, at)
		}
		if o.feasible && (best < 0 || o.choice.Score > p.options[class][best].choice.Score) {
			best = at
		}
	}
	return best
}

func (p *gangPlan) evaluate(class, at int) option {
	r := &p.classes[class]
	if reason := p.chooser.Limits.FitHost(p.nodes[at], r); reason != ReasonFits {
		return option{known: true, why: reason.Message()}
	}
	if ok, why := p.constraints.Feasible(class, at); !ok {
		return option{known: true, why: why}
	}
	choice, _ := p.chooser.Choose(p.nodes[at], r)
	return option{known: true, feasible: true, choice: choice}
}

func (p *gangPlan) rejected(class int) map[string]int {
	out := map[string]int{}
	for i := range p.options[class] {
		out[p.options[class][i].why]++
	}
	return out
}

// forget drops what is known of the node, or of all nodes where a placement reached further.
func (p *gangPlan) forget(at int, elsewhere bool) {
	for class := range p.options {
		switch {
		case p.options[class] == nil:
		case elsewhere:
			clear(p.options[class])
		default:
			p.options[class][at] = option{}
		}
	}
}
