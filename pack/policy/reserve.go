// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"iter"
	"math"
	"slices"

	"github.com/gpupack/gpupack/pack"
)

// ClusterAware is implemented by policies whose scores depend on what is free in the whole cluster.
type ClusterAware interface {
	// SetCluster tells the distinct states of nodes, and how many nodes are in each, in any order. It returns which states
	// are rated differently from now on; nil if none is. Call it again when what is free has changed by ClusterStep.
	SetCluster(iter.Seq2[*pack.Shape, int]) (changed func(*pack.Shape) bool)
}

// TurnoverAware is implemented by policies to which it matters whether tasks leave.
type TurnoverAware interface {
	// SetTurnover tells that tasks will leave and others take their place, so that the cluster never fills for good. Call it
	// before the first score.
	SetTurnover(bool)
}

// ClusterStep is the change of free GPUs or CPU, as a part of the cluster's, after which a ClusterAware policy wants to know.
const ClusterStep = 0.0025

// stock is a state and the number of nodes in it.
type stock struct {
	shape pack.Shape
	nodes int
}

// room is what one task of a class of several whole GPUs needs of a node: free GPUs side by side, and CPU and memory with them.
type room struct {
	// at is the position of its class among the kinds.
	at      int
	request pack.Request
	// size in milli-GPU.
	size float64
	// weight is the share of arrivals that are of the class.
	weight float64
	// price of one room, in milli-GPU.
	price float64
}

const (
	// reserveMargin is by how many standard deviations demand is taken to be above its mean. A room that is kept in vain
	// costs a slightly worse place for small tasks; one that is missing costs a large task.
	reserveMargin = 2
	// leastChance of missing a room that is worth a price.
	leastChance = 0.01
	// turnoverChance is the least for a room where tasks leave. Then what is broken up by small tasks, which follow upon each
	// other, does not come back, however much of it there was, and the large task that comes in the end waits for all of them.
	turnoverChance = 0.03
)

// SetTurnover implements TurnoverAware.
func (g *GPUPack) SetTurnover(turnover bool) { g.turnover = turnover }

// SetCluster implements ClusterAware.
func (g *GPUPack) SetCluster(states iter.Seq2[*pack.Shape, int]) func(*pack.Shape) bool {
	var cluster []stock
	for shape, nodes := range states {
		if nodes > 0 && shape.Len > 0 {
			cluster = append(cluster, stock{*shape, nodes})
		}
	}
	o := g.outlook()
	g.cluster.Store(&cluster)
	return o.reserve(cluster, g.turnover)
}

// findRooms lists the classes for which room is reserved.
func (o *outlook) findRooms() {
	for i := range o.kinds {
		if k := &o.kinds[i]; k.gpus > 1 {
			o.rooms = append(o.rooms, room{at: i, request: k.request, size: float64(k.size), weight: k.weight})
		}
	}
}

// in is how many tasks the node has room for, if it gets no others.
func (r *room) in(s *pack.Shape) int64 {
	if !s.Fits(&r.request) {
		return 0
	}
	n := int64(s.Whole() / r.request.GPUs)
	if r.request.CPUMilli > 0 {
		n = min(n, s.CPUMilli/r.request.CPUMilli)
	}
	if r.request.MemoryMiB > 0 {
		n = min(n, s.MemoryMiB/r.request.MemoryMiB)
	}
	return n
}

// reserve sets the price of each room: the chance that the tasks which come until the cluster is full need more of them than
// there are, times what a task loses that finds none. Airlines price the last seats of a cheap class in this way (expected
// marginal seat revenue, Belobaba 1989). It returns which states have room of which the price changed.
func (o *outlook) reserve(cluster []stock, turnover bool) func(*pack.Shape) bool {
	var free float64
	count := make([]float64, len(o.rooms))
	// has says which states have room, one bit a state.
	has := make([][]uint64, len(o.rooms))
	for r := range has {
		has[r] = make([]uint64, (len(cluster)+63)/64)
	}
	for i := range cluster {
		c := &cluster[i]
		free += float64(c.nodes) * float64(c.shape.Free())
		if c.shape.Whole() < 2 {
			continue
		}
		for r := range o.rooms {
			if n := o.rooms[r].in(&c.shape); n > 0 {
				count[r] += float64(c.nodes) * float64(n)
				has[r][i/64] |= 1 << (i % 64)
			}
		}
	}
	// In a cluster in which tasks come and leave, as many come while one stays as the cluster holds. So many more or fewer of a class
	// there can be at one time than at another.
	var capacity float64
	if o.supply != nil {
		for _, n := range *o.supply {
			capacity += float64(n) * pack.WholeMilli
		}
	}
	var scarce []room
	for i := range o.rooms {
		r := o.rooms[i]
		// The room is also taken by larger tasks that fit nowhere else.
		var each float64
		for h := range o.rooms {
			if o.rooms[h].size >= r.size && within(has[h], has[i]) {
				each += o.rooms[h].weight * o.rooms[h].size / r.size
			}
		}
		demand := free / o.mean * each
		// Arrivals are as good as independent, so the variance of demand is its mean; a little more keeps it above 0.
		variance := demand
		if turnover {
			variance += capacity / o.mean * each
		}
		deviation := math.Sqrt(variance + 0.1)
		chance := math.Erfc((count[i]-0.5-demand-reserveMargin*deviation)/deviation/math.Sqrt2) / 2
		if turnover {
			chance = max(chance, turnoverChance)
		}
		if r.price = chance * r.size; count[i] > 0 && chance >= leastChance {
			scarce = append(scarce, r)
		}
	}
	var changed []room
	if before := o.scarce.Swap(&scarce); before != nil {
		changed = slices.Clone(*before)
	}
	for i := range scarce {
		same := func(r room) bool { return r.at == scarce[i].at && r.price == scarce[i].price }
		if at := slices.IndexFunc(changed, same); at >= 0 {
			changed = slices.Delete(changed, at, at+1)
		} else {
			changed = append(changed, scarce[i])
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return func(s *pack.Shape) bool {
		return slices.ContainsFunc(changed, func(r room) bool { return r.in(s) > 0 })
	}
}

// within says whether all states of the first set, of which there are some, are in the second.
func within(states, of []uint64) bool {
	some := false
	for i, bits := range states {
		if bits&^of[i] != 0 {
			return false
		}
		some = some || bits != 0
	}
	return some
}

// breaks is the price of the room that goes from before to after. One piece of room can serve several classes, but only one
// task, so that the dearest counts.
func (o *outlook) breaks(before, after *pack.Shape) float64 {
	scarce := o.scarce.Load()
	if scarce == nil {
		return 0
	}
	var price float64
	for i := range *scarce {
		r := &(*scarce)[i]
		if n := r.in(before); n > 0 {
			price = max(price, r.price*float64(n-r.in(after)))
		}
	}
	return price
}
