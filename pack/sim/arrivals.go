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

// distribution is what the policy knows of the tasks.
func distribution(tasks []Task, kind string) *pack.Distribution {
	if kind == DistributionOnline {
		return pack.NewDistribution(pack.DefaultClasses())
	}
	at := map[string]int{}
	var classes []pack.Class
	for i := range tasks {
		r := tasks[i].Request
		key := fmt.Sprint(r)
		n, ok := at[key]
		if !ok {
			n = len(classes)
			at[key] = n
			classes = append(classes, pack.Class{Request: r})
		}
		classes[n].Weight++
	}
	slices.SortFunc(classes, func(a, b pack.Class) int {
		return cmp.Or(cmp.Compare(b.Weight, a.Weight), strings.Compare(fmt.Sprint(a.Request), fmt.Sprint(b.Request)))
	})
	return pack.FixedDistribution(classes)
}
