// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"
	"strconv"

	"github.com/gpupack/gpupack/pack"
)

// leastGain is what each move must gain, in milli-GPU. docs/packing.md compares figures.
const leastGain = 50

// defragger moves tasks to make room for those that find no place. Once i tasks have arrived, at most budget times i have
// been moved.
type defragger struct {
	cluster *cluster
	books   *ledger
	budget  float64
	planner *pack.Defrag
	// names that the planner knows the nodes by, and ranks by name. Two of Input.Nodes may have the same name.
	names []string
	ranks map[string]int32
	// residents are the tasks on each node, by rank.
	residents [][]resident
	// changed are the nodes, by rank, of which the planner does not know yet how they are now; some more than once.
	changed []int32
	// changes counts how often a node changed, and failed is the count when there was no plan for a class, and with how many
	// moves at most.
	changes int
	failed  []failure
	// before is the cluster just before the first move.
	before []NodeUse
	moves  []Move
}

// resident is a task on a node.
type resident struct {
	// arrival is a position in the order of arrival, and id says it in decimal.
	arrival int
	id      string
	class   int32
	gpus    []int
}

type failure struct{ changes, most int }

// indifferent rates all places alike. The scores of the policy random are drawn, and would not be the same again.
type indifferent struct{}

func (indifferent) Name() string                  { return "indifferent" }
func (indifferent) Score(*pack.Candidate) float64 { return 0 }

func newDefragger(c *cluster, books *ledger, budget float64) *defragger {
	chooser := &pack.Chooser{Policy: c.policy}
	if c.random {
		chooser.Policy = indifferent{}
	}
	d := &defragger{
		cluster: c, books: books, budget: budget, planner: pack.NewDefrag(chooser), ranks: map[string]int32{},
		residents: make([][]resident, len(books.nodes)), failed: make([]failure, len(c.classes)), changes: 1,
	}
	for rank := range books.nodes {
		d.names = append(d.names, strconv.Itoa(rank))
		d.ranks[d.names[rank]] = int32(rank)
		d.changed = append(d.changed, int32(rank))
	}
	return d
}

// arrived tells that an arrival has a place, of which the books know.
func (d *defragger) arrived(arrival int, class, rank int32, gpus []int) {
	d.settle(resident{arrival: arrival, id: strconv.Itoa(arrival), class: class, gpus: gpus}, rank)
}

func (d *defragger) settle(r resident, rank int32) {
	d.residents[rank] = append(d.residents[rank], r)
	d.touch(rank)
}

func (d *defragger) touch(rank int32) {
	d.changed = append(d.changed, rank)
	d.changes++
}

// makeRoom moves tasks so that an arrival, of that class, has a place, and says whether it has.
func (d *defragger) makeRoom(arrival int, class int32) (rank int32, gpus []int, ok bool) {
	r := &d.cluster.classes[class].request
	most := min(int(d.budget*float64(arrival+1))-len(d.moves), int(asked(r)/leastGain))
	if most < 1 || d.hopeless(r, most) {
		return 0, nil, false
	}
	d.refresh()
	p, ok := d.planner.Plan(r, most, leastGain)
	if !ok {
		d.failed[class] = failure{d.changes, most}
		return 0, nil, false
	}
	if len(d.moves) == 0 {
		d.before = d.books.use()
	}
	moved := make([]resident, len(p.Moves))
	for i := range p.Moves {
		moved[i] = d.lift(&p.Moves[i])
	}
	for i := range p.Moves {
		m := &p.Moves[i]
		from, to := d.ranks[m.FromNode], d.ranks[m.ToNode]
		moved[i].gpus = m.ToGPUs
		d.put(moved[i], to)
		d.moves = append(d.moves, Move{Arrival: moved[i].arrival, From: d.books.nodes[from].Name, To: d.books.nodes[to].Name})
	}
	rank = d.ranks[p.Node]
	d.put(resident{arrival: arrival, id: strconv.Itoa(arrival), class: class, gpus: p.GPUs}, rank)
	d.restate()
	return rank, p.GPUs, true
}

// hopeless says whether there was no plan for a class that asks for the same GPUs and no more CPU and memory, and nothing
// has changed since.
func (d *defragger) hopeless(r *pack.Request, most int) bool {
	for class, f := range d.failed {
		if f.changes != d.changes || f.most < most {
			continue
		}
		o := &d.cluster.classes[class].request
		if o.GPUs == r.GPUs && o.Milli == r.Milli && o.CPUMilli <= r.CPUMilli && o.MemoryMiB <= r.MemoryMiB && slices.Equal(o.Models, r.Models) {
			return true
		}
	}
	return false
}

// refresh tells the planner of the nodes that changed.
func (d *defragger) refresh() {
	slices.Sort(d.changed)
	for _, rank := range slices.Compact(d.changed) {
		u := &d.books.nodes[rank]
		n := &pack.Node{
			Name: d.names[rank], CPUMilli: u.CPUMilli, MemoryMiB: u.MemoryMiB, GPUs: make([]pack.GPU, len(u.Milli)),
			Total: pack.Total{CPUMilli: u.CPUMilli, MemoryMiB: u.MemoryMiB, GPUs: len(u.Milli)},
		}
		for g := range n.GPUs {
			// Traces do not say how much memory a GPU has. Any will do: shares take as much of it as of compute.
			n.GPUs[g] = pack.GPU{Index: g, Model: u.Model, TotalMiB: pack.WholeMilli}
		}
		movable := make([]pack.Movable, 0, len(d.residents[rank]))
		for i := range d.residents[rank] {
			t := &d.residents[rank][i]
			r := &d.cluster.classes[t.class].request
			n.Place(r, t.id, t.gpus)
			movable = append(movable, pack.Movable{ID: t.id, Request: *r})
		}
		d.planner.Update(n, movable)
	}
	d.changed = d.changed[:0]
}

// lift takes the task that moves from its node.
func (d *defragger) lift(m *pack.Move) resident {
	rank := d.ranks[m.FromNode]
	here := d.residents[rank]
	at := slices.IndexFunc(here, func(r resident) bool { return r.id == m.ID })
	r := here[at]
	d.residents[rank] = slices.Delete(here, at, at+1)
	d.books.give(rank, &d.cluster.classes[r.class].request, r.gpus)
	d.touch(rank)
	return r
}

// put gives a task its GPUs on a node.
func (d *defragger) put(r resident, rank int32) {
	d.books.put(rank, &d.cluster.classes[r.class].request, r.gpus)
	d.settle(r, rank)
}

// restate puts the nodes that changed since refresh into the states that they are in now.
func (d *defragger) restate() {
	for _, rank := range d.changed {
		next := d.cluster.states[d.cluster.of[rank]]
		next.shape = d.books.shape(rank)
		if d.cluster.byKind {
			next.kinds = 0
			for i := range d.residents[rank] {
				next.kinds |= pack.KindOf(&d.cluster.classes[d.residents[rank][i].class].request)
			}
		}
		d.cluster.change(rank, &next)
	}
}

// report says what was moved.
func (d *defragger) report(res *Result) {
	res.Moved = len(d.moves)
	if res.Detail != nil && res.Moved > 0 {
		res.Detail.Before, res.Detail.Moves = d.before, d.moves
	}
}
