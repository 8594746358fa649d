// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// DefaultClasses is what a cluster of which nothing is known yet is expected to run: mostly single GPUs and shares, some
// jobs that fill a node.
func DefaultClasses() []Class {
	gpu := func(n int, weight float64) Class {
		return Class{Request: Request{CPUMilli: int64(n) * 8000, MemoryMiB: int64(n) * 32 << 10, GPUs: n}, Weight: weight}
	}
	share := func(milli int64, weight float64) Class {
		return Class{Request: Request{CPUMilli: 4000, MemoryMiB: 16 << 10, Milli: milli}, Weight: weight}
	}
	return []Class{gpu(1, 0.45), gpu(2, 0.05), gpu(4, 0.05), gpu(8, 0.1), share(250, 0.15), share(500, 0.2)}
}

// Distribution is the mix of workloads to come, learned from those that came: each observation makes all earlier ones
// count a little less. Pods of one template ask for the same and are one class; nothing is rounded, since a class that asks
// for a little less than its pods fits on nodes on which they do not. It is safe for use from several goroutines.
type Distribution struct {
	// fixed is true where observations change nothing.
	fixed bool
	// decay is the factor by which an observation's weight shrinks with each later one.
	decay float64
	// most is the largest number of classes handed out.
	most int

	mu sync.Mutex
	// scale grows by 1/decay with each observation, instead of shrinking every weight.
	scale   float64
	weights map[RequestKey]*Class
	// waiting is how many pods of a class wait for a place.
	waiting map[RequestKey]*Class
	// since the last snapshot there were that many observations, and after due there will be a new one.
	since, due int

	current atomic.Pointer[Classes]
}

// Classes is a snapshot of a Distribution.
type Classes struct {
	// Version differs between snapshots that differ.
	Version uint64
	// List is sorted by falling weight, and its weights sum to 1.
	List []Class
}

const (
	// halfLife is the number of observations after which one counts half.
	halfLife = 2000
	// refresh is the least number of observations after which a new snapshot is made, and one in refreshPart of those that
	// count the usual one. Between, scores stay comparable and remembered ones stay valid.
	refresh     = 64
	refreshPart = 8
	// priorWeight is how many observations the prior is worth.
	priorWeight = 50
	// mostClasses are handed out.
	mostClasses = 400
)

// NewDistribution starts from a prior, which counts as much as 50 observations.
func NewDistribution(prior []Class) *Distribution {
	d := &Distribution{decay: 1 - 0.693147/halfLife, most: mostClasses, scale: 1, weights: map[RequestKey]*Class{}, waiting: map[RequestKey]*Class{}}
	var sum float64
	for i := range prior {
		sum += prior[i].Weight
	}
	for i := range prior {
		d.add(&prior[i].Request, priorWeight*prior[i].Weight/sum)
	}
	d.snapshot(1)
	return d
}

// FixedDistribution returns classes that no observation changes and that are not rounded.
func FixedDistribution(classes []Class) *Distribution {
	d := &Distribution{fixed: true}
	d.publish(1, slices.Clone(classes))
	return d
}

// Observe counts one pod that asked for r. Requests that ask for no GPU are counted too, since they take CPU and memory.
func (d *Distribution) Observe(r *Request) {
	if d.fixed {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.scale /= d.decay
	d.add(r, d.scale)
	if d.since++; d.since >= d.due {
		d.since = 0
		d.snapshot(d.current.Load().Version + 1)
	}
}

// Wait counts a pod that has been observed and finds no place: besides those that come, those that wait are to come too, however
// long ago they were observed. Each counts as one observation until Settle.
func (d *Distribution) Wait(r *Request) { d.wait(r, 1) }

// Settle takes back Wait, for a pod that has got a place or is gone.
func (d *Distribution) Settle(r *Request) { d.wait(r, -1) }

func (d *Distribution) wait(r *Request, pods float64) {
	if d.fixed {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	add(d.waiting, r, pods)
}

// Classes returns the newest snapshot.
func (d *Distribution) Classes() *Classes { return d.current.Load() }

func (d *Distribution) add(r *Request, weight float64) { add(d.weights, r, weight) }

func add(to map[RequestKey]*Class, r *Request, weight float64) {
	class := *r
	class.MaxUtilization = 0
	key := class.Key()
	if c, ok := to[key]; ok {
		c.Weight += weight
		return
	}
	to[key] = &Class{Request: class, Weight: weight}
}

// snapshot publishes the heaviest classes and forgets those that no longer count.
func (d *Distribution) snapshot(version uint64) {
	list := make([]Class, 0, len(d.weights))
	var sum float64
	for key, c := range d.weights {
		c.Weight /= d.scale
		if c.Weight < 1e-3 {
			delete(d.weights, key)
			continue
		}
		sum += c.Weight
		class := *c
		if w, ok := d.waiting[key]; ok {
			class.Weight += w.Weight
		}
		list = append(list, class)
	}
	for key, w := range d.waiting {
		if w.Weight <= 0 {
			delete(d.waiting, key)
		} else if _, ok := d.weights[key]; !ok {
			list = append(list, *w)
		}
	}
	d.scale = 1
	d.due = max(refresh, int(sum/refreshPart))
	d.publish(version, list)
}

// publish makes the heaviest classes of the list the current snapshot.
func (d *Distribution) publish(version uint64, list []Class) {
	slices.SortFunc(list, func(a, b Class) int {
		return cmp.Or(
			cmp.Compare(b.Weight, a.Weight),
			compareSize(&a.Request, &b.Request),
			slices.Compare(a.Request.Models, b.Request.Models),
		)
	})
	if !d.fixed {
		list = list[:min(d.most, len(list))]
	}
	var sum float64
	for i := range list {
		sum += list[i].Weight
	}
	for i := range list {
		list[i].Weight /= sum
	}
	d.current.Store(&Classes{Version: version, List: list})
}
