// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package artifact is the simulator that the authors of FGD published (github.com/hkust-adsl/kubernetes-scheduler-simulator,
// with the kube-scheduler that it is built with, github.com/mental2008/kubernetes), written anew as plainly as possible:
// for each task, every node is looked at, GPU by GPU. It is here to check pack/sim and the peers in pack/policy against,
// and to show what a decision costs that does not go by states.
package artifact

import (
	"cmp"
	"fmt"
	"math"
	"math/rand"
	"slices"
	"strings"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/sim"
)

// Policies are the names of those that the artifact has, as in pack/policy.
func Policies() []string {
	return []string{"random", "dot-product", "gpu-clustering", "gpu-packing", "best-fit", "fgd"}
}

// The largest node that the artifact knows.
const (
	mostCPU   = 128_000
	mostMilli = 8_000
)

// class is one of the kinds of tasks by which FGD goes.
type class struct {
	cpu, each int64
	gpus      int
	models    []string
	weight    float64
}

// node is what is free of one machine.
type node struct {
	cpu, memory int64
	// milli is what is left of each GPU, by index.
	milli []int64
	model string
	// kinds of tasks with GPUs on it.
	kinds map[pack.Kinds]bool
}

// Cluster is the nodes, on which tasks are placed one after the other.
type Cluster struct {
	policy string
	// nodes in the order in which they are taken where the policy rates them alike.
	nodes   []node
	typical []class
	rng     *rand.Rand
	// tight says which of equal GPUs FGD takes.
	tight bool
	// fragments are those that are remembered; nil where none are.
	fragments map[state]float64
}

// Tight has FGD take, of GPUs that it rates alike, the one of which least is left, as pack does, and not the first.
func (c *Cluster) Tight() { c.tight = true }

// state is what a fragment depends on.
type state struct {
	cpu   int64
	milli [pack.MaxGPUs]int16
	model string
}

// Remember has fragments remembered by state, which the artifact does not do. It changes no figure.
func (c *Cluster) Remember() { c.fragments = map[state]float64{} }

// New returns a cluster of the input's nodes with nothing on them. Of nodes that the policy rates alike, the first in the
// input is taken. The policy is one of Policies.
func New(in *sim.Input, policy string, rng *rand.Rand) (*Cluster, error) {
	if !slices.Contains(Policies(), policy) {
		return nil, fmt.Errorf("the artifact has no policy %q: use one of %s", policy, strings.Join(Policies(), ", "))
	}
	c := &Cluster{policy: policy, nodes: make([]node, len(in.Nodes)), typical: typical(in.Tasks), rng: rng}
	for i := range in.Nodes {
		n := &in.Nodes[i]
		c.nodes[i] = node{
			cpu: n.CPUMilli, memory: n.MemoryMiB, model: n.Model,
			milli: slices.Repeat([]int64{pack.WholeMilli}, n.GPUs), kinds: map[pack.Kinds]bool{},
		}
	}
	return c, nil
}

// typical returns the most frequent classes, without regard to host memory, as many as it takes for 95 % of the tasks.
func typical(tasks []sim.Task) []class {
	const part = 0.95
	counts := map[string]*class{}
	for i := range tasks {
		r := &tasks[i].Request
		key := fmt.Sprint(r.CPUMilli, r.Count(), each(r), r.Models)
		if counts[key] == nil {
			counts[key] = &class{cpu: r.CPUMilli, each: each(r), gpus: r.Count(), models: r.Models}
		}
		counts[key].weight++
	}
	classes := make([]class, 0, len(counts))
	for _, c := range counts {
		classes = append(classes, *c)
	}
	slices.SortFunc(classes, func(a, b class) int {
		return cmp.Or(
			cmp.Compare(b.weight, a.weight), cmp.Compare(b.cpu, a.cpu), cmp.Compare(b.each, a.each), cmp.Compare(b.gpus, a.gpus),
			strings.Compare(strings.Join(b.models, "|"), strings.Join(a.models, "|")),
		)
	})
	total := float64(len(tasks))
	var sum float64
	n := 0
	for n < len(classes) && sum < part*total {
		sum += classes[n].weight
		n++
	}
	classes = classes[:n]
	for i := range classes {
		classes[i].weight = classes[i].weight / total / (sum / total)
	}
	return classes
}

// each is what the request takes of each of its GPUs, in milli-GPU.
func each(r *pack.Request) int64 {
	if r.GPUs > 0 {
		return pack.WholeMilli
	}
	return r.Milli
}

// Place puts a task where the policy likes it best, and returns the position of the node in the input and the indexes of
// the GPUs, or -1 where it fits nowhere.
func (c *Cluster) Place(r *pack.Request) (at int, gpus []int) {
	at = -1
	gpu := -1
	best := int64(math.MinInt64)
	var fitting []int
	for i := range c.nodes {
		n := &c.nodes[i]
		if !n.fits(r) {
			continue
		}
		if c.policy == "random" {
			fitting = append(fitting, i)
			continue
		}
		if score, g := c.score(n, r); score > best {
			at, best, gpu = i, score, g
		}
	}
	if len(fitting) > 0 {
		at = fitting[c.rng.Intn(len(fitting))]
	}
	if at < 0 {
		return -1, nil
	}
	return at, c.take(&c.nodes[at], r, gpu)
}

// PlaceOn puts a task on that node, a position in the input, and says whether it fits there.
func (c *Cluster) PlaceOn(at int, r *pack.Request) bool {
	n := &c.nodes[at]
	if !n.fits(r) {
		return false
	}
	_, gpu := c.score(n, r)
	c.take(n, r, gpu)
	return true
}

// take gives the task its part of the node, and a share that GPU unless it is -1.
func (c *Cluster) take(n *node, r *pack.Request, gpu int) (gpus []int) {
	switch {
	case !r.IsShare():
		gpus = n.free(r.GPUs)
	case c.policy == "random":
		gpus = []int{n.draw(r, c.rng)}
	case gpu >= 0:
		gpus = []int{gpu}
	default:
		gpus = []int{n.tightest(r)}
	}
	n.cpu -= r.CPUMilli
	n.memory -= r.MemoryMiB
	for _, g := range gpus {
		n.milli[g] -= each(r)
	}
	if r.WantsGPU() {
		n.kinds[pack.KindOf(r)] = true
	}
	return gpus
}

func (n *node) fits(r *pack.Request) bool {
	if r.CPUMilli > n.cpu || r.MemoryMiB > n.memory {
		return false
	}
	if !r.WantsGPU() {
		return true
	}
	return r.Accepts(n.model) && n.count(each(r)) >= r.Count()
}

// count is the number of GPUs of which that much is left.
func (n *node) count(each int64) int {
	count := 0
	for _, left := range n.milli {
		if left >= each {
			count++
		}
	}
	return count
}

// free returns the first GPUs of which nothing is taken.
func (n *node) free(count int) []int {
	var gpus []int
	for g, left := range n.milli {
		if left == pack.WholeMilli && len(gpus) < count {
			gpus = append(gpus, g)
		}
	}
	return gpus
}

// draw returns one of the GPUs on which the share fits.
func (n *node) draw(r *pack.Request, rng *rand.Rand) int {
	gpu, count := -1, 0
	for g, left := range n.milli {
		if left >= r.Milli {
			count++
			if rng.Intn(count) == 0 {
				gpu = g
			}
		}
	}
	return gpu
}

// tightest returns the GPU on which the share leaves least.
func (n *node) tightest(r *pack.Request) int {
	gpu := -1
	for g, left := range n.milli {
		if left >= r.Milli && (gpu < 0 || left < n.milli[gpu]) {
			gpu = g
		}
	}
	return gpu
}

// left is what is left of all GPUs.
func (n *node) left() int64 {
	var sum int64
	for _, m := range n.milli {
		sum += m
	}
	return sum
}

// score rates the node, on which the request fits. Policies that choose the GPU of a share return it, the others -1.
func (c *Cluster) score(n *node, r *pack.Request) (score int64, gpu int) {
	left, asked := n.left(), int64(r.Count())*each(r)
	switch c.policy {
	case "dot-product":
		product := float64(n.cpu)/mostCPU*float64(r.CPUMilli)/mostCPU + float64(left)/mostMilli*float64(asked)/mostMilli
		return int64(100 * (1 - product/2)), -1
	case "best-fit":
		rest := float64(n.cpu-r.CPUMilli)/mostCPU*0.5 + float64(left-asked)/mostMilli*0.5
		return int64((1 - rest) * 100), -1
	case "gpu-clustering":
		return n.clustering(r, left), -1
	case "gpu-packing":
		return n.packing(r), -1
	default:
		return c.gradient(n, r)
	}
}

func (n *node) clustering(r *pack.Request, left int64) int64 {
	score := 25 * (mostMilli - left) / mostMilli
	same := n.kinds[pack.KindOf(r)]
	switch {
	case !r.WantsGPU():
		return 0
	case same && len(n.kinds) == 1:
		return score + 75
	case same:
		return score + 50
	case len(n.kinds) == 0:
		return score + 25
	}
	return score
}

func (n *node) packing(r *pack.Request) int64 {
	if !r.WantsGPU() {
		return 0
	}
	whole := int64(n.count(pack.WholeMilli))
	if int(whole) == len(n.milli) {
		return max(33-whole, whole)
	}
	var free, rest int64
	need := r.Count()
	for _, left := range slices.Sorted(slices.Values(n.milli)) {
		if need == 0 {
			break
		}
		if left < each(r) {
			continue
		}
		need--
		rest += left * 100 / pack.WholeMilli
		if left == pack.WholeMilli {
			free++
		}
	}
	if free > 0 {
		return max(50-free, 33)
	}
	return max(100-rest/10, 50)
}

// gradient is FGD's score.
func (c *Cluster) gradient(n *node, r *pack.Request) (score int64, gpu int) {
	before := c.fragment(n.cpu, n.milli, n.model)
	after := slices.Clone(n.milli)
	rate := func() int64 {
		change := c.fragment(n.cpu-r.CPUMilli, after, n.model) - before
		return int64(1 / (1 + math.Exp(change/pack.WholeMilli)) * 100)
	}
	if !r.IsShare() {
		for _, g := range n.free(r.GPUs) {
			after[g] = 0
		}
		return rate(), -1
	}
	gpu = -1
	for g, left := range n.milli {
		if left < r.Milli {
			continue
		}
		after[g] -= r.Milli
		if s := rate(); gpu < 0 || s > score || c.tight && s == score && left < n.milli[gpu] {
			score, gpu = s, g
		}
		after[g] = left
	}
	return score, gpu
}

func (c *Cluster) fragment(cpu int64, milli []int64, model string) float64 {
	if c.fragments == nil {
		return c.sum(cpu, milli, model)
	}
	key := state{cpu: cpu, model: model}
	for g, left := range milli {
		key.milli[g] = int16(left)
	}
	slices.Sort(key.milli[:len(milli)])
	f, ok := c.fragments[key]
	if !ok {
		f = c.sum(cpu, milli, model)
		c.fragments[key] = f
	}
	return f
}

// sum is the mean over the classes of what a task of the class cannot use of the GPUs.
//
// The artifact sums by reason why, and then over the reasons. The order matters: where nothing changes, the score is 50,
// or 49 by an error in the last digit.
func (c *Cluster) sum(cpu int64, milli []int64, model string) float64 {
	const (
		lacksBoth = iota
		lacksGPU
		lacksCPU
		noGPU
		noGPUAndLacksCPU
		noAccess
		reasons
	)
	var free int64
	for _, left := range milli {
		free += left
	}
	var sums [reasons]float64
	for i := range c.typical {
		k := &c.typical[i]
		fits, lost := 0, int64(0)
		for _, left := range milli {
			if left >= k.each {
				fits++
			} else {
				lost += left
			}
		}
		reason := lacksGPU
		switch enough := cpu >= k.cpu; {
		case k.gpus == 0 && enough:
			reason, lost = noGPU, free
		case k.gpus == 0:
			reason, lost = noGPUAndLacksCPU, free
		case len(k.models) > 0 && !slices.Contains(k.models, model):
			reason, lost = noAccess, free
		case fits >= k.gpus && enough:
		case fits >= k.gpus:
			reason, lost = lacksCPU, free
		case enough:
			lost = free
		default:
			reason, lost = lacksBoth, free
		}
		sums[reason] += k.weight * float64(lost)
	}
	var sum float64
	for _, s := range sums {
		sum += s
	}
	return sum
}
