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

// GPUPack puts a request where what it leaves is worth most for what is to come. A node's state is worth
//
//   - what tasks drawn from the distribution of classes would get of its GPUs, if they came to this node one after the
//     other and were placed while they fit: the mean over a fixed set of drawn sequences. It sees that CPU runs out before
//     GPUs do, or the other way round, and which rests of GPUs add up;
//   - and, with a smaller weight, what each class alone could use of it, large classes counted most. It
//     sees large tasks, too rare in the sequences, which need what many small ones would break up.
//
// A placement's score is the worth after it less the worth before it, less a price for what it takes of a model that
// constrained tasks need more than others, less a little for each GPU that is left, so that of equals the fuller node wins
// and idle nodes stay idle. docs/packing.md says what was compared with it.
type GPUPack struct {
	distribution *pack.Distribution
	supply       atomic.Pointer[Supply]
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
	// sequences drawn, and tasks in each. Fewer are noisy; more cost time and gain little.
	sequences      = 64
	sequenceLength = 64
	// sizeExponent makes large tasks more frequent in the sequences than they are.
	sizeExponent = 0.5
	// usableWeight is what a milli-GPU that a class can use alone counts, to one that a sequence gets.
	usableWeight = 0.05
	// priceWeight is what a milli-GPU costs for each e-fold by which its model is scarcer than the least scarce.
	priceWeight = 0.5
	// fullness is what a free milli-GPU on the node counts against it.
	fullness = 0.01
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
	o := g.outlook()
	score := o.value(c.After) - o.value(c.Before)
	if c.Before.Len == 0 {
		return score
	}
	left := c.After.Free()
	taken := c.Before.Free() - left
	return score - priceWeight*o.price[c.Before.Model]*float64(taken) - fullness*float64(left)
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
	g.current.Store(o)
	return o
}

// outlook is what the policy expects to come, and what node states are worth then.
type outlook struct {
	classes *pack.Classes
	supply  *Supply
	kinds   []kind
	// drawn holds the sequences, one after the other.
	drawn []step
	price map[string]float64

	mu     sync.RWMutex
	worth  map[pack.Shape]float64
	accept map[string][]bool
}

// kind is a class of tasks that ask for GPUs or, in sequences, for CPU and memory alone.
type kind struct {
	request            pack.Request
	cpu, memory, milli int64
	gpus               int
	// size is what it asks of all GPUs, in milli-GPU.
	size int64
	// usable is its weight among what classes could use alone.
	usable float64
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
	o := &outlook{classes: classes, supply: supply, worth: map[pack.Shape]float64{}, accept: map[string][]bool{}}
	chance := make([]float64, len(classes.List))
	var chances, weights float64
	for i := range classes.List {
		r := &classes.List[i].Request
		k := kind{request: *r, cpu: r.CPUMilli, memory: r.MemoryMiB, milli: r.Milli, gpus: r.GPUs}
		k.size = int64(k.gpus)*pack.WholeMilli + k.milli
		if r.MiB > 0 {
			// What it is of a GPU depends on the model.
			k.size = max(k.size, pack.WholeMilli/2)
		}
		weight := classes.List[i].Weight
		chance[i] = weight
		if k.size > 0 {
			whole := float64(k.size) / pack.WholeMilli
			chance[i] *= math.Pow(whole, sizeExponent)
			k.usable = weight * whole * whole
		}
		chances += chance[i]
		weights += weight
		o.kinds = append(o.kinds, k)
	}
	for i := range o.kinds {
		o.kinds[i].usable /= weights
	}
	o.draw(chance, chances)
	o.bid()
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
	o.mu.RLock()
	v, ok := o.worth[*s]
	accepts := o.accept[s.Model]
	o.mu.RUnlock()
	if ok {
		return v
	}
	if accepts == nil {
		accepts = make([]bool, len(o.kinds))
		for i := range o.kinds {
			accepts[i] = o.kinds[i].request.Accepts(s.Model)
		}
	}
	v = o.got(s, accepts) + usableWeight*o.usable(s, accepts)
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.worth) >= mostRemembered {
		clear(o.worth)
	}
	o.worth[*s], o.accept[s.Model] = v, accepts
	return v
}

// got is what the drawn sequences get of the node's GPUs in the mean, in milli-GPU.
func (o *outlook) got(s *pack.Shape, accepts []bool) float64 {
	if s.Len == 0 || s.Milli[0] == 0 || len(o.drawn) == 0 {
		return 0
	}
	whole := s.Whole()
	var sum int64
	for at := 0; at < len(o.drawn); at += sequenceLength {
		milli, free := s.Milli, whole
		cpu, memory := s.CPUMilli, s.MemoryMiB
		sequence := o.drawn[at : at+sequenceLength]
		for i := range sequence {
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
				copy(milli[free-n:s.Len], milli[free:s.Len])
				clear(milli[s.Len-n : s.Len])
				free -= n
				sum += int64(n) * pack.WholeMilli
			case k.milli > 0 || k.byMemory:
				need := int64(k.milli)
				if k.byMemory {
					need = o.kinds[k.kind].request.MilliOn(s.UsableMiB)
				}
				if need > int64(milli[0]) {
					continue
				}
				g := s.Len - 1
				for int64(milli[g]) < need {
					g--
				}
				if g < free {
					free--
				}
				left := milli[g] - int16(need)
				for ; g+1 < s.Len && left < milli[g+1]; g++ {
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
		}
	}
	return float64(sum) / sequences
}

// usable is the mean over the classes of what tasks of one class alone could use of the node's GPUs, in milli-GPU, each
// class counted by the square of its size: once for each milli-GPU that it asks for, and once more because the larger the
// task, the fewer places there are for it.
func (o *outlook) usable(s *pack.Shape, accepts []bool) float64 {
	whole := s.Whole()
	var sum float64
	for i := range o.kinds {
		k := &o.kinds[i]
		if k.size == 0 || k.cpu > s.CPUMilli || k.memory > s.MemoryMiB || !accepts[i] {
			continue
		}
		var tasks int64
		size := k.size
		if k.gpus > 0 {
			tasks = int64(whole / k.gpus)
		} else {
			size = max(1, k.request.MilliOn(s.UsableMiB))
			for _, m := range s.Milli[:s.Len] {
				if int64(m) < size {
					break
				}
				tasks += int64(m) / size
			}
		}
		if k.cpu > 0 {
			tasks = min(tasks, s.CPUMilli/k.cpu)
		}
		if k.memory > 0 {
			tasks = min(tasks, s.MemoryMiB/k.memory)
		}
		sum += k.usable * float64(tasks*size)
	}
	return sum
}
