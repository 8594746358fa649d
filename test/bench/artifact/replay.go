// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package artifact

import (
	"cmp"
	"math"
	"math/rand"
	"slices"
	"strings"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
)

// drawnElsewhere is how many random numbers client-go's reflectors draw in the artifact before it puts the nodes in order.
// Found by trying: with it, figures of all published runs come out.
const drawnElsewhere = 10

// Load is what the arrivals ask for in the artifact's runs, as a multiple of the cluster's GPUs.
const Load = 1.3

// Replay repeats a run of the artifact with its own random numbers and returns what its authors report of it: percent of
// all GPUs allocated, the mean while what the arrivals asked for was 95, 100 and 130 percent of all GPUs, rounded. Runs of
// the policy random come out otherwise, since there the artifact draws from several goroutines.
func Replay(in sim.Input, policy string, seed int64) (a95, a100, final float64, err error) {
	rng := rand.New(rand.NewSource(seed))
	rng.Int()
	var all int64
	for i := range in.Nodes {
		all += int64(in.Nodes[i].GPUs) * pack.WholeMilli
	}
	arrivals := arrivals(in.Tasks, Load*float64(all), rng)
	in.Nodes = order(in.Nodes, rng)
	c, err := New(&in, policy, rng)
	if err != nil {
		return 0, 0, 0, err
	}
	c.Remember()
	var arrived, allocated int64
	sums, counts := map[float64]float64{}, map[float64]float64{}
	for i := range arrivals {
		r := &arrivals[i].Request
		asked := int64(r.Count()) * each(r)
		arrived += asked
		if at, _ := c.Place(r); at >= 0 {
			allocated += asked
		}
		percent := math.RoundToEven(100 * float64(arrived) / float64(all))
		sums[percent] += math.Round(1e4*float64(allocated)/float64(all)) / 100
		counts[percent]++
	}
	at := func(percent float64) float64 { return math.Round(100*sums[percent]/counts[percent]) / 100 }
	return at(95), at(100), at(100 * Load), nil
}

// arrivals returns the tasks in the order in which they come.
func arrivals(tasks []sim.Task, most float64, rng *rand.Rand) []sim.Task {
	byName := slices.SortedFunc(slices.Values(tasks), func(a, b sim.Task) int { return cmp.Compare(a.Name, b.Name) })
	all := slices.Clone(byName)
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var sum float64
	for i := range all {
		sum += float64(all[i].Request.Count()) * float64(each(&all[i].Request))
	}
	if sum > most {
		for sum > most {
			at := rng.Intn(len(all))
			sum -= float64(all[at].Request.Count()) * float64(each(&all[at].Request))
			all = slices.Delete(all, at, at+1)
		}
		return all
	}
	for {
		t := &byName[rng.Intn(len(byName))]
		// As the artifact has it, without the number of GPUs.
		if sum+float64(each(&t.Request)) > most {
			return all
		}
		sum += float64(t.Request.Count()) * float64(each(&t.Request))
		all = append(all, *t)
	}
}

// order returns the nodes as the artifact renames them: it puts a random number before each name, and of equal nodes takes
// the first by name.
func order(nodes []sim.Node, rng *rand.Rand) []sim.Node {
	byName := slices.SortedFunc(slices.Values(nodes), func(a, b sim.Node) int { return strings.Compare(a.Name, b.Name) })
	for range drawnElsewhere {
		rng.Int63()
	}
	out := make([]sim.Node, len(nodes))
	for i, at := range rng.Perm(len(nodes)) {
		out[at] = byName[i]
	}
	return out
}
