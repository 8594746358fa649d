// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/gpupack/gpupack/pack"
)

// Arrivals returns positions in tasks in the order in which they arrive at a cluster of that many milli-GPU: all tasks
// shuffled, then tasks drawn with replacement until what the arrivals ask for reaches load times the cluster, and the
// whole sequence shuffled. Where all tasks ask for more than that already, the shuffled ones end there.
func Arrivals(tasks []Task, milli int64, load float64, seed uint64) []int {
	rng := rand.New(rand.NewPCG(seed, 0x67707570))
	order := rng.Perm(len(tasks))
	target := int64(load * float64(milli))
	var sum int64
	for i, at := range order {
		if sum >= target {
			order = order[:i]
			break
		}
		sum += asked(&tasks[at].Request)
	}
	for sum < target {
		at := rng.IntN(len(tasks))
		order = append(order, at)
		sum += asked(&tasks[at].Request)
	}
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

// classify returns the class of each task, as a position in the requests, of which all differ.
func classify(tasks []Task) (kinds []int32, requests []pack.Request) {
	known := map[pack.RequestKey]int32{}
	kinds = make([]int32, len(tasks))
	for i := range tasks {
		r := &tasks[i].Request
		k := r.Key()
		id, ok := known[k]
		if !ok {
			id = int32(len(requests))
			known[k] = id
			requests = append(requests, *r)
		}
		kinds[i] = id
	}
	return kinds, requests
}

// distribution is what the policy knows of the tasks.
func distribution(kinds []int32, requests []pack.Request, kind string) *pack.Distribution {
	if kind == DistributionOnline {
		return pack.NewDistribution(pack.DefaultClasses())
	}
	classes := make([]pack.Class, len(requests))
	for i := range requests {
		classes[i].Request = requests[i]
	}
	for _, k := range kinds {
		classes[k].Weight++
	}
	slices.SortFunc(classes, func(a, b pack.Class) int {
		return cmp.Or(cmp.Compare(b.Weight, a.Weight), strings.Compare(fmt.Sprint(a.Request), fmt.Sprint(b.Request)))
	})
	return pack.FixedDistribution(classes)
}
