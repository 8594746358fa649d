// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gpupack/gpupack/pack"
)

// GPUPack puts a request where what it leaves is worth most for what is to come. A node's state is worth what tasks drawn from
// the distribution of classes would get of its GPUs, if they came to this node one after the other and were placed while they
// fit: the mean over a fixed set of drawn sequences. It sees that CPU runs out before GPUs do, or the other way round, and
// which rests of GPUs add up. Where tasks leave, what is free is never filled for good, so that it also counts what the very next
// task could not use of it: the fragment of FGD.
//
// A placement's score is the worth after it less the worth before it, and from that is taken
//
//   - the reserve price of the room for a large task that it breaks up, where there is little such room left (reserve.go);
//   - a price for what it takes of a model that constrained tasks need more than others;
//   - a little for each GPU that is left, and for a whole one that a share breaks up, so that of equals the fuller node and
//     the GPU that is shared already win.
//
// docs/packing.md says what was compared with it.
type GPUPack struct {
	distribution *pack.Distribution
	turnover     bool
	supply       atomic.Pointer[Supply]
	cluster      atomic.Pointer[[]stock]
	current      atomic.Pointer[outlook]
	mu           sync.Mutex
}

// Supply is the number of GPUs of each model in the cluster.
type Supply map[string]int

// SupplyAware is implemented by policies that want to know the cluster's GPUs.
type SupplyAware interface {
	// SetSupply tells how many GPUs of each model there are. The caller must not change the map later.
	SetSupply(Supply)
}

const (
	// sequences drawn, and tasks in each. Half as many are as good in the mean, and noisier; more gain nothing.
	sequences      = 32
	sequenceLength = 64
	// sizeExponent makes large tasks more frequent in the sequences than they are.
	sizeExponent = 0.5
	// priceWeight is what a milli-GPU costs for each e-fold by which its model is scarcer than the least scarce.
	priceWeight = 0.5
	// fullness is what a free milli-GPU on the node counts against it.
	fullness = 0.01
	// breaking is what a whole GPU that a share breaks up counts against it, in milli-GPU. It decides between equals.
	breaking = 3
	// fragmentWeight is what a milli-GPU that the next task cannot use counts against a state where tasks leave, beside the 1 that
	// it counts if none of the tasks to come can.
	fragmentWeight = 4
	// mostExpensive bounds prices, in e-folds.
	mostExpensive = 5
)

// NewGPUPack returns the policy for a distribution of workload classes.
func NewGPUPack(d *pack.Distribution) *GPUPack { return &GPUPack{distribution: d} }

// Name implements pack.Policy.
func (g *GPUPack) Name() string { return "gpupack" }

// SetSupply implements SupplyAware. Without it, all models have the same price.
func (g *GPUPack) SetSupply(s Supply) { g.supply.Store(&s) }

// Score is what the placement adds to the worth of the node, in milli-GPU; mostly negative.
func (g *GPUPack) Score(c *pack.Candidate) float64 {
	if c.Before.Len == 0 {
		return 0
	}
	o := g.outlook()
	score := o.value(c.After) - o.value(c.Before) - o.breaks(c.Before, c.After)
	left := c.After.Free()
	taken := c.Before.Free() - left
	broken := c.Before.Whole() - c.After.Whole() - c.Request.GPUs
	return score - priceWeight*o.price[c.Before.Model]*float64(taken) - fullness*float64(left) - breaking*float64(broken)
}

// outlook is the outlook for the newest distribution and supply.
func (g *GPUPack) outlook() *outlook {
	classes, supply := g.distribution.Classes(), g.supply.Load()
	if o := g.current.Load(); o != nil && o.classes == classes && o.supply == supply {
		return o
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if o := g.current.Load(); o != nil && o.classes == classes && o.supply == supply {
		return o
	}
	o := newOutlook(classes, supply)
	o.turnover = g.turnover
	if c := g.cluster.Load(); c != nil {
		o.reserve(*c, g.turnover)
	}
	g.current.Store(o)
	return o
}

// outlook is what the policy expects to come, and what node states are worth then.
type outlook struct {
	classes *pack.Classes
	supply  *Supply
	kinds   []kind
	// turnover is true where tasks leave.
	turnover bool
	// mean is what one task asks of all GPUs, in milli-GPU.
	mean float64
	// drawn holds the sequences, one after the other.
	drawn []step
	// next holds, for each step, where in its sequence is the first from there on that may fit on a node of each level.
	next  [][levels]uint8
	price map[string]float64
	rooms []room
	// scarce are the rooms that have a price.
	scarce atomic.Pointer[[]room]

	mu    sync.RWMutex
	worth map[worthKey]float64
	// models has the position in accepted for each model.
	models map[string]int
	// accepted holds which kinds accept a model. Models that the same kinds accept share one.
	accepted [][]bool
}

// worthKey is what the worth of a state depends on. GPUs of which nothing is left do not count.
type worthKey struct {
	cpuMilli, memoryMiB, usableMiB int64
	accepted, gpus                 int
	milli                          [pack.MaxGPUs]int16
}

// kind is a class of tasks that ask for GPUs or, in sequences, for CPU and memory alone.
type kind struct {
	request            pack.Request
	cpu, memory, milli int64
	gpus               int
	// size is what it asks of all GPUs, in milli-GPU.
	size int64
	// weight is the share of tasks that are of the kind.
	weight float64
}

// step is one task of a sequence: what got needs of its kind, close together.
type step struct {
	cpu, memory int64
	// kind is a position in kinds.
	kind  uint16
	milli int16
	gpus  int8
	// byMemory is true for a share of GPU memory, which is another part of each model.
	byMemory bool
}

func newOutlook(classes *pack.Classes, supply *Supply) *outlook {
	o := &outlook{classes: classes, supply: supply, worth: map[worthKey]float64{}, models: map[string]int{}}
	chance := make([]float64, len(classes.List))
	var chances, weights float64
	for i := range classes.List {
		r := &classes.List[i].Request
		k := kind{
			request: *r, cpu: r.CPUMilli, memory: r.MemoryMiB, milli: r.Milli, gpus: r.GPUs, weight: classes.List[i].Weight,
		}
		k.size = int64(k.gpus)*pack.WholeMilli + k.milli
		if r.MiB > 0 {
			// What it is of a GPU depends on the model.
			k.size = max(k.size, pack.WholeMilli/2)
		}
		chance[i] = k.weight
		if k.size > 0 {
			chance[i] *= math.Pow(float64(k.size)/pack.WholeMilli, sizeExponent)
		}
		chances += chance[i]
		weights += k.weight
		o.kinds = append(o.kinds, k)
	}
	for i := range o.kinds {
		o.kinds[i].weight /= weights
		o.mean += o.kinds[i].weight * float64(o.kinds[i].size)
	}
	o.draw(chance, chances)
	o.bid()
	o.findRooms()
	return o
}

// draw fills the sequences. The numbers are the same each time, so that a small change of the distribution changes little.
// Every other sequence has its largest tasks first: of the tasks that come, the cluster can send a node those that suit it,
// which the order of arrival alone would not show.
func (o *outlook) draw(chance []float64, sum float64) {
	if len(chance) == 0 || sum <= 0 {
		return
	}
	rng := rand.New(rand.NewPCG(1, 2))
	o.drawn = make([]step, sequences*sequenceLength)
	for i := range o.drawn {
		at := rng.Float64() * sum
		n := 0
		for n < len(chance)-1 && at >= chance[n] {
			at -= chance[n]
			n++
		}
		k := &o.kinds[n]
		o.drawn[i] = step{
			cpu: k.cpu, memory: k.memory, kind: uint16(n), milli: int16(k.milli), gpus: int8(min(k.gpus, pack.MaxGPUs+1)),
			byMemory: k.request.MiB > 0,
		}
	}
	for at := 0; at < len(o.drawn); at += 2 * sequenceLength {
		slices.SortStableFunc(o.drawn[at:at+sequenceLength], func(a, b step) int {
			return cmp.Compare(o.kinds[b.kind].size, o.kinds[a.kind].size)
		})
	}
	o.link()
}

// roomiest is the largest part of a GPU that is free on a node of each level: tasks that need more are passed over unseen.
// From level 1 on there is no whole GPU.
var roomiest = [...]int16{pack.WholeMilli, pack.WholeMilli - 1, 800, 640, 460, 310, 200}

const levels = len(roomiest)

// levelOf is the first level from l on that is right for that much on the GPU of which most is left.
func levelOf(milli int16, l int) int {
	for l+1 < levels && milli <= roomiest[l+1] {
		l++
	}
	return l
}

func (o *outlook) link() {
	o.next = make([][levels]uint8, len(o.drawn))
	for at := 0; at < len(o.drawn); at += sequenceLength {
		var next [levels]uint8
		for l := range next {
			next[l] = sequenceLength
		}
		for i := sequenceLength - 1; i >= 0; i-- {
			s := &o.drawn[at+i]
			for l := range next {
				if l == 0 || s.gpus == 0 && (s.byMemory || s.milli <= roomiest[l]) {
					next[l] = uint8(i)
				}
			}
			o.next[at+i] = next
		}
	}
}

// bid sets the price of each model. Where every class spreads over the models that it accepts in proportion to supply and
// openness, there is one openness for each model with which all are loaded alike (the scaling of entropic transport). A
// model that constrained tasks fill must be closed to the others: its price is how much less open it is than the most open.
func (o *outlook) bid() {
	o.price = map[string]float64{}
	if o.supply == nil {
		return
	}
	var models []string
	var gpus, demand float64
	for m, n := range *o.supply {
		if n > 0 {
			models = append(models, m)
			gpus += float64(n)
		}
	}
	slices.Sort(models)
	for i := range o.kinds {
		demand += o.classes.List[i].Weight * float64(o.kinds[i].size)
	}
	if demand == 0 || len(models) < 2 {
		return
	}
	share := make([]float64, len(models))
	open := make([]float64, len(models))
	for m := range models {
		share[m], open[m] = float64((*o.supply)[models[m]])/gpus, 1
	}
	load := make([]float64, len(models))
	for range 60 {
		clear(load)
		for i := range o.kinds {
			var sum float64
			for m := range models {
				if o.kinds[i].request.Accepts(models[m]) {
					sum += share[m] * open[m]
				}
			}
			if sum == 0 || o.kinds[i].size == 0 {
				continue
			}
			part := o.classes.List[i].Weight * float64(o.kinds[i].size) / demand / sum
			for m := range models {
				if o.kinds[i].request.Accepts(models[m]) {
					load[m] += part * share[m] * open[m]
				}
			}
		}
		for m := range models {
			open[m] = min(max(open[m]*share[m]/max(load[m], 1e-12), math.Exp(-mostExpensive)), math.Exp(mostExpensive))
		}
	}
	most := slices.Max(open)
	for m := range models {
		o.price[models[m]] = min(math.Log(most/open[m]), mostExpensive)
	}
}

// value is what a state of a node is worth, in milli-GPU.
func (o *outlook) value(s *pack.Shape) float64 {
	if s.Len == 0 || s.Milli[0] == 0 {
		return 0
	}
	k := worthKey{cpuMilli: s.CPUMilli, memoryMiB: s.MemoryMiB, usableMiB: s.UsableMiB, gpus: s.Len, milli: s.Milli}
	for s.Milli[k.gpus-1] == 0 {
		k.gpus--
	}
	o.mu.RLock()
	at, known := o.models[s.Model]
	var v float64
	var accepts []bool
	if known {
		k.accepted = at
		v, known = o.worth[k]
		accepts = o.accepted[at]
	}
	o.mu.RUnlock()
	if known {
		return v
	}
	if accepts == nil {
		k.accepted, accepts = o.accept(s.Model)
	}
	v = o.got(&k, accepts)
	if o.turnover {
		v -= fragmentWeight * expectedFragment(s, o.classes.List)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.worth) >= mostRemembered {
		clear(o.worth)
	}
	o.worth[k] = v
	return v
}

// accept finds which kinds accept the model, and the position of that in accepted.
func (o *outlook) accept(model string) (int, []bool) {
	accepts := make([]bool, len(o.kinds))
	for i := range o.kinds {
		accepts[i] = o.kinds[i].request.Accepts(model)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	at := slices.IndexFunc(o.accepted, func(known []bool) bool { return slices.Equal(known, accepts) })
	if at < 0 {
		at = len(o.accepted)
		o.accepted = append(o.accepted, accepts)
	}
	o.models[model] = at
	return at, o.accepted[at]
}

// got is what the drawn sequences get of the node's GPUs in the mean, in milli-GPU.
func (o *outlook) got(s *worthKey, accepts []bool) float64 {
	if len(o.drawn) == 0 {
		return 0
	}
	whole := 0
	for whole < s.gpus && s.milli[whole] == pack.WholeMilli {
		whole++
	}
	start := levelOf(s.milli[0], 0)
	var sum int64
	for at := 0; at < len(o.drawn); at += sequenceLength {
		milli, free, level := s.milli, whole, start
		cpu, memory := s.cpuMilli, s.memoryMiB
		sequence, next := o.drawn[at:at+sequenceLength], o.next[at:at+sequenceLength]
		for i := 0; i < sequenceLength; i++ {
			if i = int(next[i][level]); i == sequenceLength {
				break
			}
			k := &sequence[i]
			if k.cpu > cpu || k.memory > memory || !accepts[k.kind] {
				continue
			}
			switch {
			case k.gpus > 0:
				n := int(k.gpus)
				if n > free {
					continue
				}
				copy(milli[free-n:s.gpus], milli[free:s.gpus])
				clear(milli[s.gpus-n : s.gpus])
				free -= n
				sum += int64(n) * pack.WholeMilli
			case k.milli > 0 || k.byMemory:
				need := int64(k.milli)
				if k.byMemory {
					need = o.kinds[k.kind].request.MilliOn(s.usableMiB)
				}
				if need > int64(milli[0]) {
					continue
				}
				g := s.gpus - 1
				for int64(milli[g]) < need {
					g--
				}
				if g < free {
					free--
				}
				left := milli[g] - int16(need)
				for ; g+1 < s.gpus && left < milli[g+1]; g++ {
					milli[g] = milli[g+1]
				}
				milli[g] = left
				sum += need
			}
			cpu -= k.cpu
			memory -= k.memory
			if milli[0] == 0 {
				break
			}
			level = levelOf(milli[0], level)
		}
	}
	return float64(sum) / sequences
}
