// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"cmp"
	"slices"
	"sync"

	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// changes collects the names of nodes of which something has changed until they are taken. The zero value is ready for use, from
// several goroutines.
type changes struct {
	mu    sync.Mutex
	names map[string]struct{}
}

func (c *changes) mark(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names == nil {
		c.names = map[string]struct{}{}
	}
	c.names[node] = struct{}{}
}

func (c *changes) take() map[string]struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := c.names
	c.names = nil
	return names
}

// index keeps what the packing needs to know of all nodes from one cycle to the next, so that a cycle works out anew only what
// changed of nodes since the last. Only scheduling cycles use it, of which there is one at a time. Its slices go by the position
// of a node in the snapshot's list.
type index struct {
	infos       []fwk.NodeInfo
	positions   map[string]int
	generations []int64
	states      []*nodeState
	// rank is the position among the names of nodes, sorted.
	rank []int32
	// cpu and memory are what is free of the host, as in pack.Node.
	cpu, memory []int64
	// changed is the step of the last change.
	changed []uint64
	step    uint64

	free, total policy.Capacity
	shapes      map[pack.Shape]int
	rankings    map[pack.RequestKey]*standing
}

// update brings the index up to date with the snapshot's list of nodes.
func (p *Plugin) update(infos []fwk.NodeInfo) *index {
	x := &p.index
	x.step++
	// What changes from here on is seen now or marked for the next time.
	marked, ledger := p.telemetry.dirty.take(), p.ledger.dirty.take()
	if !sameList(x.infos, infos) {
		p.rebuild(infos)
		return x
	}
	now := p.clock.Now().UnixNano()
	for i, info := range x.infos {
		if s := x.states[i]; info.GetGeneration() != x.generations[i] || s.stale != (now > s.staleAfter) {
			x.set(i, p.state(info))
		}
	}
	for _, names := range []map[string]struct{}{marked, ledger} {
		for name := range names {
			if i, ok := x.positions[name]; ok {
				x.set(i, p.state(x.infos[i]))
			}
		}
	}
	return x
}

// sameList says whether the lists are one and the same. The snapshot makes a new list when nodes come or go, and changes none.
func sameList(a, b []fwk.NodeInfo) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func (p *Plugin) rebuild(infos []fwk.NodeInfo) {
	x, n := &p.index, len(infos)
	*x = index{
		infos: infos, positions: make(map[string]int, n), generations: make([]int64, n), states: make([]*nodeState, n),
		rank: make([]int32, n), cpu: make([]int64, n), memory: make([]int64, n), changed: make([]uint64, n), step: x.step,
		shapes: map[pack.Shape]int{}, rankings: map[pack.RequestKey]*standing{},
	}
	order := make([]int, n)
	for i, info := range infos {
		x.positions[info.Node().Name], order[i] = i, i
		x.set(i, p.state(info))
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(x.states[a].node.Name, x.states[b].node.Name) })
	for rank, i := range order {
		x.rank[i] = int32(rank)
	}
}

// set replaces the state of the node at that position.
func (x *index) set(i int, s *nodeState) {
	x.generations[i] = s.generation
	was := x.states[i]
	if was == s {
		return
	}
	if was != nil {
		x.free.Remove(&was.shape)
		x.total.RemoveTotal(was.node)
		if x.shapes[was.shape]--; x.shapes[was.shape] == 0 {
			delete(x.shapes, was.shape)
		}
	}
	x.free.Add(&s.shape)
	x.total.AddTotal(s.node)
	x.shapes[s.shape]++
	x.states[i], x.cpu[i], x.memory[i], x.changed[i] = s, s.node.CPUMilli, s.node.MemoryMiB, x.step
}

// eachShape yields the distinct shapes of nodes and how many nodes are in each.
func (x *index) eachShape(yield func(*pack.Shape, int) bool) {
	for shape, n := range x.shapes {
		if !yield(&shape, n) {
			return
		}
	}
}

// standing is how all nodes stand to one request: which fit it, and with which score.
type standing struct {
	epoch any
	// step up to which it is right.
	step uint64
	// reasons and scores by position; a score means something where the reason is that the request fits.
	reasons []pack.Reason
	scores  []float64
	count   [32]int
	// known is what is worked out once for all nodes of one state.
	known map[string]verdict
}

type verdict struct {
	score  float64
	reason pack.Reason
}

// mostStandings bounds the requests that are remembered. Each takes some 10 bytes a node, and what it knows of states.
const mostStandings = 64

// standing returns how all nodes stand to the request, brought up to date. ok is false where the policy's scores do not last.
func (p *Plugin) standing(x *index, r *pack.Request) (s *standing, ok bool) {
	epoch, ok := policy.Epoch(p.chooser.Policy)
	if !ok {
		return nil, false
	}
	key := r.Key()
	s = x.rankings[key]
	if s == nil {
		x.forgetOldest()
		s = &standing{reasons: make([]pack.Reason, len(x.infos)), scores: make([]float64, len(x.infos)), known: map[string]verdict{}}
		x.rankings[key] = s
		s.count[pack.ReasonFits] = len(x.infos)
	} else if s.epoch != epoch {
		s.step = 0
	}
	if s.epoch != epoch || len(s.known) > 2*len(x.infos) {
		clear(s.known)
		s.epoch = epoch
	}
	for i, changed := range x.changed {
		if changed <= s.step {
			continue
		}
		v := p.verdict(s, x.states[i], r)
		s.count[s.reasons[i]]--
		s.count[v.reason]++
		s.reasons[i], s.scores[i] = v.reason, v.score
	}
	s.step = x.step
	return s, true
}

func (p *Plugin) verdict(s *standing, n *nodeState, r *pack.Request) verdict {
	// What a state leaves out, a request with a limit can see.
	remembers := r.MaxUtilization == 0
	if v, ok := s.known[n.key]; ok && remembers {
		return v
	}
	choice, reason := p.chooser.Choose(n.node, r)
	v := verdict{choice.Score, reason}
	if remembers {
		s.known[n.key] = v
	}
	return v
}

// forgetOldest makes room for one more request.
func (x *index) forgetOldest() {
	if len(x.rankings) < mostStandings {
		return
	}
	var oldest pack.RequestKey
	least := x.step + 1
	for key, s := range x.rankings {
		if s.step < least {
			oldest, least = key, s.step
		}
	}
	delete(x.rankings, oldest)
}
