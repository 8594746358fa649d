// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// decision is what to do with a gang now. The record of it must be written before anything else is done.
type decision struct {
	// repair and restarts are what the PodGroup must say; nil and -1 for no change.
	repair   *convert.Repair
	restarts int
	// keep are the lost members that somebody else could delete before the repair begins, and that nobody else makes anew.
	keep []*loss
	// again is when to look again, 0 for when something changes.
	again time.Duration
	// unsettled says that a loss is not on record yet.
	unsettled bool
	// recovered is how long the gang was not whole, where that has just ended.
	recovered time.Duration
}

// decide is the way of a gang from one state of its repair to the next.
func (g *gang) decide() decision {
	d := decision{restarts: -1}
	if g.repair != nil {
		switch g.repair.State {
		case convert.RepairWaiting:
			if g.policy == v1alpha1.IgnoreLoss {
				// The policy has changed meanwhile.
				d.repair = g.in(convert.RepairDone)
			} else {
				g.endWaiting(&d)
			}
			return d
		case convert.RepairEnding:
			if len(g.toEnd()) == 0 {
				d.repair = g.in(convert.RepairPlacing)
			}
			return d
		case convert.RepairLimitReached:
			if !g.remade() && g.restarts() >= g.maxRestarts() {
				return d
			}
		}
	}
	var lost []*loss
	if g.policy != v1alpha1.IgnoreLoss {
		lost, d.again = g.losses()
	}
	if len(lost) > 0 {
		g.see(&d, lost)
		return d
	}
	since, whole := g.whole()
	if !whole {
		return d
	}
	if g.repair != nil && (g.repair.State == convert.RepairPlacing || g.repair.State == convert.RepairLimitReached) {
		if g.repair.State == convert.RepairPlacing {
			d.recovered = g.now.Sub(g.repair.Seen.Time)
		}
		d.repair = g.in(convert.RepairDone)
	}
	if g.restarts() > 0 {
		rest := g.o.ResetAfter - g.now.Sub(since)
		if rest <= 0 {
			d.restarts = 0
		}
		d.again = sooner(d.again, max(0, rest))
	}
	return d
}

// see begins a repair.
func (g *gang) see(d *decision, lost []*loss) {
	// Creation times are in seconds. Once the second of the youngest member is over, they tell its members from those
	// that will be made in their place.
	if rest := time.Second - g.now.Sub(g.youngest()); rest > 0 {
		d.again, d.unsettled = rest, true
		return
	}
	restarts := g.restarts()
	first := lost[0]
	d.repair = &convert.Repair{
		State:     convert.RepairWaiting,
		Policy:    g.policy,
		Cause:     first.cause,
		Member:    first.pod.Name,
		UID:       first.pod.UID,
		Message:   fmt.Sprintf("member %s is lost: %s", first.pod.Name, first.message),
		Seen:      metav1.NewTime(g.now),
		NotBefore: metav1.NewTime(g.now.Add(g.o.backoff(restarts)).Add(time.Second - 1).Truncate(time.Second)),
		Born:      metav1.NewTime(g.youngest()),
	}
	if restarts >= g.maxRestarts() {
		d.repair.State = convert.RepairLimitReached
		return
	}
	for _, l := range lost {
		if isBare(l.pod) && !slices.Contains(g.vanished, l.pod) {
			d.keep = append(d.keep, l)
		}
	}
	d.again = d.repair.NotBefore.Sub(g.now)
}

// endWaiting goes on when the back-off is over. If there is nothing left to end by then, the owner has made the gang anew, or
// the loss was none: a node that came back.
func (g *gang) endWaiting(d *decision) {
	toEnd := g.toEnd()
	lost, _ := g.losses()
	if len(toEnd) == 0 && len(g.kept) == 0 || len(lost) == 0 && !g.lostIsGone() {
		d.repair = g.in(convert.RepairDone)
		return
	}
	if rest := g.repair.NotBefore.Sub(g.now); rest > 0 {
		d.again = rest
		return
	}
	d.repair, d.restarts = g.in(convert.RepairEnding), g.restarts()+1
}

// lostIsGone says whether the member whose loss began the repair exists no more, or will not for long.
func (g *gang) lostIsGone() bool {
	for _, pod := range g.pods {
		if pod.UID == g.repair.UID {
			return pod.DeletionTimestamp != nil || convert.IsTerminal(pod)
		}
	}
	return true
}

// remade says whether the gang runs with members none of which is of the one that was given up.
func (g *gang) remade() bool {
	if _, ok := g.whole(); !ok {
		return false
	}
	for _, pod := range g.pods {
		if !convert.IsTerminal(pod) && pod.DeletionTimestamp == nil && g.isOld(pod) {
			return false
		}
	}
	return true
}

func (g *gang) in(state convert.RepairState) *convert.Repair {
	r := *g.repair
	r.State = state
	return &r
}

func (g *gang) restarts() int { return number(g.group.Annotations[v1alpha1.AnnotationRestarts], 0) }

func (g *gang) maxRestarts() int {
	return number(g.group.Annotations[v1alpha1.AnnotationMaxRestarts], g.o.MaxRestarts)
}

// number reads an annotation that a user may have written.
func number(text string, otherwise int) int {
	if n, err := strconv.Atoi(text); err == nil && n >= 0 {
		return n
	}
	return otherwise
}
