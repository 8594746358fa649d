// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// occupied makes nodes of eight GPUs.
func occupied(n int) []Occupancy {
	out := make([]Occupancy, n)
	for i := range out {
		out[i].Node = testNode(8)
		out[i].Node.Name = fmt.Sprintf("node-%d", i)
	}
	return out
}

// run puts a pod on the node that started ago before t0 and ends after it; 0 is never known to end.
func (o *Occupancy) run(id string, r Request, ago, ends time.Duration) {
	choice, reason := testChooser.Choose(o.Node, &r)
	if reason != ReasonFits {
		panic(id + ": " + reason.Message())
	}
	o.Node.Place(&r, id, choice.GPUs)
	h := Holding{ID: id, Request: r, Since: t0.Add(-ago)}
	if ends > 0 {
		h.Ends = t0.Add(ends)
	}
	o.Holdings = append(o.Holdings, h)
}

func (o *Occupancy) end(id string) {
	for i := range o.Holdings {
		if o.Holdings[i].ID == id {
			o.Node.Remove(&o.Holdings[i].Request, id)
			o.Holdings = slices.Delete(o.Holdings, i, i+1)
			return
		}
	}
}

func unit(need int, classes ...Request) *Unit {
	u := &Unit{Turn: Turn{Since: t0.Add(-time.Hour), ID: "unit"}, Classes: classes, Need: need}
	for i := range need {
		u.Members = append(u.Members, Member{ID: fmt.Sprint(i), Class: i % len(classes)})
	}
	return u
}

func gpus(n int) Request { return Request{CPUMilli: 1000, MemoryMiB: 1024, GPUs: n} }

func claimed(r *Reservation) map[string]int {
	out := map[string]int{}
	for node, claims := range r.Claims {
		for i := range claims {
			out[node] += len(claims[i].GPUs)
		}
	}
	return out
}

func TestReserve(t *testing.T) {
	tests := []struct {
		name  string
		nodes func() []Occupancy
		unit  *Unit
		gpus  map[string]int
		start time.Duration
		waits []string
	}{
		{"the node that is free first", func() []Occupancy {
			n := occupied(3)
			n[0].run("a", gpus(8), time.Hour, 10*time.Minute)
			n[1].run("b", gpus(8), time.Hour, 5*time.Minute)
			n[2].run("c", gpus(1), time.Second, 0)
			return n
		}, unit(1, gpus(8)), map[string]int{"node-1": 8}, 5 * time.Minute, []string{"b"}},
		{"as many nodes as the gang needs", func() []Occupancy {
			n := occupied(4)
			n[0].run("a", gpus(8), time.Hour, 30*time.Minute)
			n[1].run("b", gpus(8), time.Hour, 5*time.Minute)
			n[2].run("c", gpus(4), time.Hour, 20*time.Minute)
			return n
		}, unit(3, gpus(8)), map[string]int{"node-1": 8, "node-2": 8, "node-3": 8}, 20 * time.Minute, []string{"b", "c"}},
		{"only who is in the way must leave", func() []Occupancy {
			n := occupied(1)
			n[0].run("a", gpus(4), time.Hour, 3*time.Minute)
			n[0].run("b", gpus(2), time.Hour, 2*time.Minute)
			n[0].run("c", gpus(2), time.Hour, time.Minute)
			return n
		}, unit(1, gpus(4)), map[string]int{"node-0": 4}, 2 * time.Minute, []string{"b", "c"}},
		{"without ends, the least work in the way", func() []Occupancy {
			n := occupied(3)
			n[0].run("a", gpus(8), 10*time.Minute, 0)
			n[1].run("b", gpus(1), 24*time.Hour, 0)
			for i := range 8 {
				n[2].run(fmt.Sprint("c", i), gpus(1), time.Minute, 0)
			}
			return n
		}, unit(1, gpus(8)), map[string]int{"node-2": 8}, 0, []string{"c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"}},
		{"known ends before less work", func() []Occupancy {
			n := occupied(2)
			n[0].run("a", gpus(1), time.Minute, 0)
			n[1].run("b", gpus(8), time.Minute, 2*time.Hour)
			return n
		}, unit(1, gpus(8)), map[string]int{"node-1": 8}, 2 * time.Hour, []string{"b"}},
		{"a CPU-only pod in the way", func() []Occupancy {
			n := occupied(1)
			n[0].run("a", Request{CPUMilli: n[0].Node.CPUMilli}, time.Minute, time.Minute)
			return n
		}, unit(1, gpus(1)), map[string]int{"node-0": 1}, time.Minute, []string{"a"}},
		{"shares of one GPU", func() []Occupancy {
			n := occupied(1)
			n[0].run("a", gpus(7), time.Hour, 0)
			n[0].run("b", Request{Milli: 400}, time.Hour, time.Minute)
			n[0].run("c", Request{Milli: 400}, time.Hour, 2*time.Minute)
			return n
		}, unit(1, Request{Milli: 500}), map[string]int{"node-0": 1}, time.Minute, []string{"b"}},
		{"what fits now", func() []Occupancy { return occupied(1) }, unit(1, gpus(8)), map[string]int{"node-0": 8}, -1, nil},
		{"what never fits", func() []Occupancy {
			n := occupied(1)
			n[0].run("a", gpus(8), time.Hour, time.Minute)
			return n
		}, unit(2, gpus(8)), nil, 0, nil},
		{"whom nobody waits for", func() []Occupancy {
			n := occupied(1)
			n[0].run("a", gpus(8), time.Hour, time.Minute)
			n[0].Holdings = nil
			return n
		}, unit(1, gpus(8)), nil, 0, nil},
		{"a sick GPU", func() []Occupancy {
			n := occupied(2)
			n[0].run("a", gpus(8), time.Hour, time.Minute)
			n[0].Node.GPUs[3].Unhealthy = "Xid 79"
			n[1].run("b", gpus(8), time.Hour, time.Hour)
			return n
		}, unit(1, gpus(8)), map[string]int{"node-1": 8}, time.Hour, []string{"b"}},
		{"one domain", func() []Occupancy {
			n := occupied(4)
			n[0].run("a", gpus(8), time.Hour, time.Minute)
			n[1].run("b", gpus(8), time.Hour, time.Hour)
			n[2].run("c", gpus(8), time.Hour, 2*time.Minute)
			n[3].run("d", gpus(8), time.Hour, 30*time.Minute)
			return n
		}, func() *Unit {
			u := unit(2, gpus(8))
			u.Domains = []string{"red", "red", "blue", "blue"}
			return u
		}(), map[string]int{"node-2": 8, "node-3": 8}, 30 * time.Minute, []string{"c", "d"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			nodes := tt.nodes()
			r := testChooser.Limits.Reserve(t0, nodes, tt.unit, nil, nil, nil)
			if tt.gpus == nil {
				require.Nil(t, r)
				return
			}
			require.NotNil(t, r)
			assert.Equal(t, tt.gpus, claimed(r))
			assert.Equal(t, tt.waits, r.Waits)
			switch {
			case tt.start == 0:
				assert.True(t, r.Start.IsZero(), "the start is %s", r.Start)
			case tt.start < 0:
				assert.Equal(t, t0, r.Start)
			default:
				assert.Equal(t, t0.Add(tt.start), r.Start)
			}
			again := testChooser.Limits.Reserve(t0, tt.nodes(), tt.unit, nil, nil, nil)
			assert.Equal(t, r, again, "the same again")
		})
	}
}

func TestTurn(t *testing.T) {
	line := []Turn{
		{Priority: 10, Since: t0, ID: "c"},
		{Since: t0.Add(-time.Hour), ID: "b"},
		{Since: t0, ID: "a"},
		{Since: t0, ID: "b"},
	}
	for i := range line {
		for j := range line {
			assert.Equal(t, i < j, line[i].Before(line[j]), "%v before %v", line[i], line[j])
		}
	}
}

func TestAdmits(t *testing.T) {
	// Four GPUs of node-0 are free, four in ten minutes; the unit waits for all of node-0, or for half of it.
	nodes := func() []Occupancy {
		n := occupied(1)
		n[0].run("a", gpus(4), time.Hour, 10*time.Minute)
		return n
	}
	younger := Turn{Since: t0, ID: "x"}
	minutes := func(n int) time.Time { return t0.Add(time.Duration(n) * time.Minute) }
	tests := []struct {
		name  string
		unit  *Unit
		other Request
		turn  Turn
		ends  time.Time
		want  bool
	}{
		{"in the way", unit(1, gpus(8)), gpus(1), younger, time.Time{}, false},
		{"ends in time", unit(1, gpus(8)), gpus(4), younger, minutes(10), true},
		{"ends too late", unit(1, gpus(8)), gpus(4), younger, minutes(11), false},
		{"higher priority", unit(1, gpus(8)), gpus(4), Turn{Priority: 1, Since: t0, ID: "x"}, time.Time{}, true},
		{"lower priority though older", unit(1, gpus(8)), gpus(4), Turn{Priority: -1, Since: t0.Add(-2 * time.Hour), ID: "x"}, time.Time{}, false},
		{"older", unit(1, gpus(8)), gpus(4), Turn{Since: t0.Add(-2 * time.Hour), ID: "x"}, time.Time{}, true},
		{"the owner itself", unit(1, gpus(8)), gpus(4), unit(1, gpus(8)).Turn, time.Time{}, true},
		{"beside the claims", unit(2, gpus(3)), gpus(2), younger, time.Time{}, true},
		{"not all beside the claims", unit(2, gpus(3)), gpus(3), younger, time.Time{}, false},
		{"CPU beside the claims", unit(1, gpus(8)), Request{CPUMilli: 1000}, younger, time.Time{}, true},
		{"CPU that is claimed", unit(1, Request{CPUMilli: 100000, GPUs: 8}), Request{CPUMilli: 100000}, younger, time.Time{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := nodes()
			n[0].Node.CPUMilli = 128000
			r := testChooser.Limits.Reserve(t0, n, tt.unit, nil, nil, nil)
			require.NotNil(t, r)
			blocked := testChooser.Limits.Admits(t0, &n[0], &tt.other, tt.turn, tt.ends, []*Reservation{r})
			assert.Equal(t, tt.want, blocked == nil)
		})
	}
}

// The policy would put the small members where the large one must go; the claims say where each goes.
func TestWithin(t *testing.T) {
	nodes := func() []Occupancy {
		n := occupied(2)
		n[0].run("a", gpus(2), time.Hour, 0)
		n[1].run("b", gpus(5), time.Hour, 0)
		return n
	}
	u := &Unit{Turn: Turn{ID: "unit"}, Classes: []Request{gpus(3), gpus(6)}, Members: []Member{{ID: "0"}, {ID: "1", Class: 1}}, Need: 2}
	n := nodes()
	r := testChooser.Limits.Reserve(t0, n, u, nil, nil, nil)
	require.Equal(t, map[string]int{"node-0": 6, "node-1": 3}, claimed(r))
	plain := []*Node{n[0].Node, n[1].Node}
	c := r.Within(plain, u.Classes, anywhere{})
	ok, _ := c.Feasible(0, 0)
	assert.False(t, ok)
	plan, failure := testChooser.PlanGang(plain, u.Classes, u.Members, u.Need, c)
	require.Nil(t, failure)
	apply(t, plain, u.Classes, plan)
	ok, why := c.Feasible(0, 1)
	assert.False(t, ok, "the place is taken")
	assert.Equal(t, "not among the places reserved for the gang", why)
}

func TestReasonReserved(t *testing.T) {
	n := occupied(1)
	r := testChooser.Limits.Reserve(t0, n, unit(1, gpus(4)), nil, nil, nil)
	view := testChooser.Limits.Beside(t0, &n[0], r)
	for _, other := range []Request{gpus(5), gpus(8)} {
		assert.Equal(t, ReasonReserved, testChooser.Limits.Fit(view, &other), "%s", other.String())
	}
	n[0].run("a", gpus(4), time.Hour, 0)
	view = testChooser.Limits.Beside(t0, &n[0], r)
	for _, other := range []Request{gpus(1), {Milli: 100}, {MiB: 100}} {
		assert.Equal(t, ReasonReserved, testChooser.Limits.Fit(view, &other), "%s", other.String())
	}
}

// Where ends are unknown, whatever leaves the node first serves the unit, not only those that it was planned to wait for.
func TestRoomThatOthersLeave(t *testing.T) {
	n := occupied(1)
	for i := range 8 {
		n[0].run(fmt.Sprint("p", i), gpus(1), time.Duration(i+1)*time.Hour, 0)
	}
	r := testChooser.Limits.Reserve(t0, n, unit(1, gpus(4)), nil, nil, nil)
	require.Equal(t, []string{"p0", "p1", "p2", "p3"}, r.Waits)
	one := gpus(1)
	for _, id := range []string{"p7", "p1", "p6", "p5"} {
		n[0].end(id)
		assert.NotNil(t, testChooser.Limits.Admits(t0, &n[0], &one, Turn{Since: t0, ID: "x"}, time.Time{}, []*Reservation{r}), "after %s", id)
	}
	n[0].end("p4")
	assert.Nil(t, testChooser.Limits.Admits(t0, &n[0], &one, Turn{Since: t0, ID: "x"}, time.Time{}, []*Reservation{r}))
}

func TestReservationIsKept(t *testing.T) {
	n := occupied(3)
	n[0].run("a", gpus(8), time.Hour, 0)
	n[1].run("b", gpus(8), 2*time.Hour, 0)
	n[2].run("c", gpus(8), 100*time.Hour, 0)
	u := unit(1, gpus(8))
	l := &testChooser.Limits
	r := l.Reserve(t0, n, u, nil, nil, nil)
	require.Equal(t, map[string]int{"node-0": 8}, claimed(r))

	n[0].Holdings[0].Since = t0.Add(-3 * time.Hour)
	r = l.Reserve(t0, n, u, nil, nil, r)
	require.Equal(t, map[string]int{"node-0": 8}, claimed(r), "a little less work elsewhere is not worth it")
	n[0].Holdings[0].Since = t0.Add(-5 * time.Hour)
	r = l.Reserve(t0, n, u, nil, nil, r)
	require.Equal(t, map[string]int{"node-1": 8}, claimed(r), "half of the work is")
	n[2].Holdings[0].Ends = t0.Add(100 * time.Hour)
	r = l.Reserve(t0, n, u, nil, nil, r)
	require.Equal(t, map[string]int{"node-2": 8}, claimed(r), "an end that is known is")
	n[1].Holdings[0].Ends = t0.Add(99 * time.Hour)
	r = l.Reserve(t0, n, u, nil, nil, r)
	require.Equal(t, map[string]int{"node-2": 8}, claimed(r))
	n[2].Node.GPUs[0].Unhealthy = "Xid 79"
	r = l.Reserve(t0, n, u, nil, nil, r)
	require.Equal(t, map[string]int{"node-1": 8}, claimed(r), "what cannot come true is given up")
	r = l.Reserve(t0, n[:1], u, nil, nil, r)
	require.Equal(t, map[string]int{"node-0": 8}, claimed(r), "a node that is gone too")
	n[0].Node.GPUs[0].Unhealthy = "Xid 79"
	assert.Same(t, n[0].Node, l.Beside(t0, &n[0], r), "a claim that cannot come true keeps nobody out")
	require.Nil(t, l.Reserve(t0, n[:1], u, nil, nil, r))
}

func TestReservationsInLine(t *testing.T) {
	n := occupied(3)
	n[0].run("a", gpus(8), time.Hour, time.Minute)
	n[1].run("b", gpus(8), time.Hour, 5*time.Minute)
	n[2].run("c", gpus(8), time.Hour, 10*time.Minute)
	l := &testChooser.Limits
	first := l.Reserve(t0, n, unit(1, gpus(6)), nil, nil, nil)
	require.Equal(t, map[string]int{"node-0": 6}, claimed(first))
	second := unit(1, gpus(8))
	second.Turn = Turn{Since: t0, ID: "second"}
	r := l.Reserve(t0, n, second, nil, []*Reservation{first}, nil)
	require.Equal(t, map[string]int{"node-1": 8}, claimed(r))
	small := unit(1, gpus(2))
	small.Turn = Turn{Since: t0, ID: "small"}
	r = l.Reserve(t0, n, small, nil, []*Reservation{first}, nil)
	require.Equal(t, map[string]int{"node-0": 2}, claimed(r), "beside the first")
	require.Equal(t, t0.Add(time.Minute), r.Start)

	two, both := gpus(2), []*Reservation{first, r}
	assert.Same(t, r, l.Admits(t0, &n[0], &two, Turn{Since: t0.Add(time.Minute), ID: "x"}, time.Time{}, []*Reservation{r}), "in the way")
	assert.Same(t, first, l.Admits(t0, &n[0], &two, Turn{Since: t0.Add(time.Minute), ID: "x"}, time.Time{}, both))
}

// outlook for tests.
type views struct {
	feasible func(class, node int, left []string) bool
	placed   func(class, node int, left []string) bool
}

func (v views) Feasible(class, node int, left []string) bool { return v.feasible(class, node, left) }
func (v views) Placed(class, node int, left []string) bool {
	return v.placed != nil && v.placed(class, node, left)
}

func TestReserveAsksOthers(t *testing.T) {
	n := occupied(2)
	n[0].run("a", gpus(1), time.Hour, time.Minute)
	n[0].run("b", gpus(1), time.Hour, 2*time.Minute)
	n[1].run("c", gpus(8), time.Hour, 3*time.Minute)
	reserve := func(v views, need int) *Reservation {
		return testChooser.Limits.Reserve(t0, n, unit(need, gpus(4)), func() Outlook { return v }, nil, nil)
	}
	r := reserve(views{feasible: func(_, node int, _ []string) bool { return node == 1 }}, 1)
	assert.Equal(t, map[string]int{"node-1": 4}, claimed(r), "a node that others refuse")

	r = reserve(views{feasible: func(_, node int, left []string) bool { return node == 0 && slices.Contains(left, "b") }}, 1)
	assert.Equal(t, map[string]int{"node-0": 4}, claimed(r), "a pod in the way though there is room")
	assert.Equal(t, t0.Add(2*time.Minute), r.Start)
	assert.Contains(t, r.Waits, "b")

	var on []int
	r = reserve(views{
		feasible: func(_, node int, _ []string) bool { return !slices.Contains(on, node) },
		placed:   func(_, node int, _ []string) bool { on = append(on, node); return true },
	}, 1)
	require.NotNil(t, r)
}

// world is a cluster in which pods come and go at their times, and are let in only where reservations allow it.
type world struct {
	nodes []Occupancy
	now   time.Time
	count int
}

func drawWorld(t *rapid.T, known bool) *world {
	w := &world{now: t0}
	for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
		n := testNode(rapid.SampledFrom([]int{2, 4, 8}).Draw(t, "gpus"))
		n.Name = fmt.Sprintf("node-%d", i)
		w.nodes = append(w.nodes, Occupancy{Node: n})
	}
	for range rapid.IntRange(0, 12).Draw(t, "running") {
		w.arrive(t, nil, known)
	}
	return w
}

func drawSmall(t *rapid.T) Request {
	return rapid.SampledFrom([]Request{
		gpus(1), gpus(2), gpus(3), {CPUMilli: 1000, MemoryMiB: 1024}, {CPUMilli: 30000, MemoryMiB: 1024},
		{Milli: 300}, {Milli: 500}, {MiB: 20000}, {Milli: 100, MiB: 30000},
	}).Draw(t, "request")
}

// arrive lets a pod in on some node, if the reservations do.
func (w *world) arrive(t *rapid.T, reservations []*Reservation, known bool) {
	r := drawSmall(t)
	var ends time.Time
	if known || rapid.Bool().Draw(t, "deadline") {
		ends = w.now.Add(time.Duration(rapid.IntRange(1, 60).Draw(t, "minutes")) * time.Minute)
	}
	o := &w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(t, "node")]
	w.count++
	turn := Turn{Since: w.now, ID: fmt.Sprintf("pod-%d", w.count)}
	if testChooser.Limits.FitHost(o.Node, &r) != ReasonFits ||
		testChooser.Limits.Admits(w.now, o, &r, turn, ends, reservations) != nil {
		return
	}
	view := o.Node
	if binding := slices.DeleteFunc(slices.Clone(reservations), func(r *Reservation) bool { return !r.Binds(turn, ends) }); len(binding) > 0 {
		view = testChooser.Limits.Beside(w.now, o, binding...)
	}
	choice, reason := testChooser.Choose(view, &r)
	require.Equal(t, ReasonFits, reason)
	o.Node.Place(&r, turn.ID, choice.GPUs)
	o.Holdings = append(o.Holdings, Holding{ID: turn.ID, Request: r, Since: w.now, Ends: ends})
}

// pass lets time pass: what has come to its end is gone, and some pods go before it.
func (w *world) pass(t *rapid.T, d time.Duration) {
	w.now = w.now.Add(d)
	for i := range w.nodes {
		for _, h := range slices.Clone(w.nodes[i].Holdings) {
			if !h.Ends.IsZero() && !h.Ends.After(w.now) || rapid.IntRange(0, 9).Draw(t, "early") == 0 {
				w.nodes[i].end(h.ID)
			}
		}
	}
}

func (w *world) requireWithin(t *rapid.T, r *Reservation) {
	for i := range w.nodes {
		o := &w.nodes[i]
		claims := r.Claims[o.Node.Name]
		if len(claims) == 0 {
			continue
		}
		then, _, ok := testChooser.Limits.future(w.now, o, joint(o.Node.Name, []*Reservation{r}))
		require.True(t, ok, "%s", o.Node.Name)
		require.GreaterOrEqual(t, then.CPUMilli, int64(0))
		require.GreaterOrEqual(t, then.MemoryMiB, int64(0))
		for g := range then.GPUs {
			var milli, mib int64
			for _, tenant := range then.GPUs[g].Tenants {
				milli += tenant.Milli
				mib += tenant.RequestedMiB
				require.False(t, tenant.Milli == WholeMilli && len(then.GPUs[g].Tenants) > 1)
			}
			require.LessOrEqual(t, milli, int64(WholeMilli))
			require.LessOrEqual(t, mib, then.GPUs[g].UsableMiB())
		}
	}
}

func drawUnit(t *rapid.T) *Unit {
	classes := []Request{
		rapid.SampledFrom([]Request{gpus(1), gpus(2), gpus(4), gpus(8)}).Draw(t, "class"),
		rapid.SampledFrom([]Request{gpus(1), {Milli: 500}, {CPUMilli: 2000, MemoryMiB: 1024}}).Draw(t, "class"),
	}
	return unit(rapid.IntRange(1, 5).Draw(t, "need"), classes...)
}

// Where all pods there are have ends, the start that a reservation promises is kept whoever comes later, with or without an end; and
// what it claims never exceeds a node.
func TestBackfillNeverDelays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t, true)
		u := drawUnit(t)
		l := &testChooser.Limits
		r := l.Reserve(w.now, w.nodes, u, nil, nil, nil)
		if r == nil {
			return
		}
		require.False(t, r.Start.IsZero(), "all ends are known")
		for range 200 {
			w.requireWithin(t, r)
			if !w.now.Before(r.Start) {
				for i := range w.nodes {
					if claims := r.Claims[w.nodes[i].Node.Name]; len(claims) > 0 {
						_, ok := l.settle(w.nodes[i].Node.Clone(), w.nodes[i].Node, claims, true)
						require.True(t, ok, "the unit cannot start on %s at the time that it was promised", w.nodes[i].Node.Name)
					}
				}
				return
			}
			w.arrive(t, []*Reservation{r}, false)
			if rapid.Bool().Draw(t, "time passes") {
				w.pass(t, time.Duration(rapid.IntRange(1, 15).Draw(t, "minutes"))*time.Minute)
			}
			if rapid.Bool().Draw(t, "again") {
				promised := r.Start
				r = l.Reserve(w.now, w.nodes, u, nil, nil, r)
				require.NotNil(t, r)
				require.False(t, r.Start.IsZero() || r.Start.After(promised) && r.Start.After(w.now), "%s was promised, now %s", promised, r.Start)
			}
		}
		require.Fail(t, "the unit never starts")
	})
}

// Though nobody knows when pods end, a unit has its places once each that ran at the time of its reservation has ended, however
// many come later.
func TestReservationEndsStarvation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t, false)
		u := drawUnit(t)
		l := &testChooser.Limits
		r := l.Reserve(w.now, w.nodes, u, nil, nil, nil)
		if r == nil {
			return
		}
		old := map[string]bool{}
		for i := range w.nodes {
			for _, h := range w.nodes[i].Holdings {
				old[h.ID] = true
			}
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			w.arrive(t, []*Reservation{r}, false)
			if rapid.IntRange(0, 3).Draw(t, "time passes") == 0 {
				w.pass(t, time.Minute)
			}
		}
		// The old ones leave, and the back-filled whose end is known.
		w.now = w.now.Add(24 * time.Hour)
		for i := range w.nodes {
			for _, h := range slices.Clone(w.nodes[i].Holdings) {
				if old[h.ID] || !h.Ends.IsZero() {
					w.nodes[i].end(h.ID)
				}
			}
		}
		again := l.Reserve(w.now, w.nodes, u, nil, nil, r)
		require.NotNil(t, again)
		require.Empty(t, again.Waits)
		require.Equal(t, w.now, again.Start)
	})
}

// A second unit claims nothing that the first has claimed.
func TestReservationsDoNotOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t, rapid.Bool().Draw(t, "known"))
		l := &testChooser.Limits
		first, second := drawUnit(t), drawUnit(t)
		second.Turn = Turn{Since: t0, ID: "second"}
		a := l.Reserve(w.now, w.nodes, first, nil, nil, nil)
		if a == nil {
			return
		}
		b := l.Reserve(w.now, w.nodes, second, nil, []*Reservation{a}, nil)
		if b == nil {
			return
		}
		require.False(t, a.Start.IsZero() && !b.Start.IsZero() && sharesNode(a, b), "the second cannot know when the first has its places")
		for i := range w.nodes {
			o := &w.nodes[i]
			if claims := joint(o.Node.Name, []*Reservation{a, b}); len(claims.claims) > 0 {
				_, _, ok := l.future(w.now, o, claims)
				require.True(t, ok, "%s", o.Node.Name)
			}
		}
	})
}

func sharesNode(a, b *Reservation) bool {
	for name := range a.Claims {
		if len(b.Claims[name]) > 0 {
			return true
		}
	}
	return false
}

func BenchmarkReserve(b *testing.B) {
	for _, known := range []bool{false, true} {
		nodes := occupied(5000)
		for i := range nodes {
			for j := range 8 {
				ends := time.Duration(0)
				if known {
					ends = time.Duration(1+(i*7919+j*104729)%3600) * time.Second
				}
				nodes[i].run(fmt.Sprintf("%d-%d", i, j), gpus(1), time.Duration(1+(i*31+j*17)%1000)*time.Minute, ends)
			}
		}
		u := unit(64, gpus(8))
		b.Run(fmt.Sprintf("5000 nodes, 64 members, known=%t", known), func(b *testing.B) {
			for b.Loop() {
				testChooser.Limits.Reserve(t0, nodes, u, nil, nil, nil)
			}
		})
		r := testChooser.Limits.Reserve(t0, nodes, u, nil, nil, nil)
		var at int
		for at = range nodes {
			if r.Claims[nodes[at].Node.Name] != nil {
				break
			}
		}
		b.Run(fmt.Sprintf("view of a node, known=%t", known), func(b *testing.B) {
			for b.Loop() {
				testChooser.Limits.Beside(t0, &nodes[at], r)
			}
		})
	}
}
