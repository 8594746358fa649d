// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sim replays a trace of tasks on a cluster, as fast as a policy can decide, to compare policies.
//
// A decision does not look at nodes but at distinct node states: nodes that can take the same tasks are one state with a
// count. Each kind of task keeps the states that it fits on in a heap by score, and looks only at states that are new
// since the last task of its kind, so that a decision costs about the same whatever the size of the cluster.
package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// Node is one machine, with nothing on it.
type Node struct {
	Name                string
	CPUMilli, MemoryMiB int64
	// GPUs is how many it has, all of one model; at most pack.MaxGPUs.
	GPUs  int
	Model string
}

// Task is one pod that arrives. Shares of a GPU are by compute: Request.MiB must be 0.
type Task struct {
	Name    string
	Request pack.Request
	// Arrival is when it comes and Duration how long it runs, in seconds. Churn needs them, Run does not look at them.
	Arrival, Duration int64
}

// Input is a cluster and the tasks that arrive at it.
type Input struct {
	Nodes []Node
	Tasks []Task
}

// Where the policy has the mix of classes from.
const (
	// DistributionTrace gives it the mix of the whole trace from the start.
	DistributionTrace = "trace"
	// DistributionOnline lets it learn from the arrivals.
	DistributionOnline = "online"
)

// Options say how to replay.
type Options struct {
	// Policy is one of policy.Names().
	Policy string
	// Seed decides the order of arrivals, which tasks arrive more than once, which of equal nodes is taken, and what the
	// policy random draws.
	Seed uint64
	// TiesByName takes, of nodes that the policy rates alike, the first by name, as the scheduler does. Else it is the first in
	// an order that the seed decides, as in the artifact of the FGD paper, so that a mean over seeds does not depend on how
	// nodes are named.
	TiesByName bool
	// Turnover lets the policy believe that tasks leave, as it does in the scheduler.
	Turnover bool
	// Load is the sum of GPUs that the arrivals ask for, as a multiple of the cluster's. 1.3 is usual.
	Load float64
	// Distribution is DistributionTrace (also if empty) or DistributionOnline.
	Distribution string
	// DefragBudget is the largest share of all arrivals that defragmentation may move, 0 to 1. 0 moves nothing.
	DefragBudget float64
	// Detail fills Result.Detail, which costs time and memory.
	Detail bool
	// Progress, unless nil, is called now and then with the number of arrivals that are dealt with and of all.
	Progress func(done, total int)
}

// Result is what became of a replay. Allocation is in percent of all GPUs of the cluster.
type Result struct {
	Seed uint64
	// A95 and A100 are allocated when what the arrivals asked for reached 95 % and 100 % of the cluster's GPUs, Final at the
	// end.
	A95, A100, Final float64
	// Tasks arrived, of which Unscheduled found no place.
	Tasks, Unscheduled int
	// Moved is the number of tasks that defragmentation moved.
	Moved int
	// Detail is nil unless Options asked for it.
	Detail *Detail
	// Seconds is how long the replay took.
	Seconds float64
}

// Run replays the input once. The result is the same for equal input and options, but for Seconds, and does not depend on
// the order of the nodes.
func Run(ctx context.Context, in Input, o Options) (Result, error) {
	if err := validate(&in, &o); err != nil {
		return Result{}, err
	}
	start := time.Now()
	in.Nodes = ranked(in.Nodes, o.TiesByName, o.Seed)
	re, err := newReplay(&in, o.Policy, o.Distribution, o.Seed)
	if err != nil {
		return Result{}, err
	}
	if o.Turnover {
		re.expectTurnover()
	}
	res, err := re.run(ctx, &in, &o)
	res.Seconds = time.Since(start).Seconds()
	return res, err
}

// ranked returns a copy of the nodes in the order in which ties between them are broken: by name or as the seed decides.
func ranked(nodes []Node, byName bool, seed uint64) []Node {
	out := slices.Clone(nodes)
	slices.SortStableFunc(out, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	if !byName {
		rng := rand.New(rand.NewPCG(seed, 0x6e6f6465))
		rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	}
	return out
}

// replay is what a trace is replayed with.
type replay struct {
	// kinds is the class of each of Input.Tasks, a position in requests.
	kinds    []int32
	requests []pack.Request
	dist     *pack.Distribution
	cluster  *cluster
}

func newReplay(in *Input, policyName, distributionKind string, seed uint64) (*replay, error) {
	kinds, requests := classify(in.Tasks)
	d := distribution(kinds, requests, distributionKind)
	p, err := policy.Simulated(policyName, d)
	if err != nil {
		return nil, err
	}
	if aware, ok := p.(policy.SupplyAware); ok {
		aware.SetSupply(supply(in.Nodes))
	}
	return &replay{kinds: kinds, requests: requests, dist: d, cluster: newCluster(in.Nodes, requests, p, d, seed)}, nil
}

// expectTurnover tells the policy that tasks leave.
func (re *replay) expectTurnover() {
	if t, ok := re.cluster.policy.(policy.TurnoverAware); ok {
		t.SetTurnover(true)
	}
}

// supply is the number of GPUs of each model.
func supply(nodes []Node) policy.Supply {
	s := policy.Supply{}
	for i := range nodes {
		if n := &nodes[i]; n.GPUs > 0 {
			s[n.Model] += n.GPUs
		}
	}
	return s
}

func (re *replay) run(ctx context.Context, in *Input, o *Options) (Result, error) {
	c := re.cluster
	arrivals := Arrivals(in.Tasks, c.milli, o.Load, o.Seed)
	res := Result{Seed: o.Seed, Tasks: len(arrivals)}
	var books *ledger
	var rec *recorder
	var mover *defragger
	if o.Detail || o.DefragBudget > 0 {
		books = newLedger(in.Nodes)
	}
	if o.DefragBudget > 0 {
		mover = newDefragger(c, books, o.DefragBudget)
	}
	if o.Detail {
		rec = newRecorder(c, books, len(arrivals))
	}
	var arrived, allocated int64
	percent := func(milli int64) float64 { return 100 * float64(milli) / float64(c.milli) }
	res.A95, res.A100 = -1, -1
	for i, at := range arrivals {
		if i%256 == 0 {
			if ctx.Err() != nil {
				return Result{}, ctx.Err()
			}
			if o.Progress != nil {
				o.Progress(i, len(arrivals))
			}
		}
		r := &in.Tasks[at].Request
		re.dist.Observe(r)
		milli := asked(r)
		arrived += milli
		spot, ok := c.place(re.kinds[at])
		rank, gpus := spot.rank, []int(nil)
		if ok && books != nil {
			gpus = books.take(spot, r)
		}
		switch {
		case mover == nil:
		case ok:
			mover.arrived(i, re.kinds[at], rank, gpus)
		default:
			rank, gpus, ok = mover.makeRoom(i, re.kinds[at])
		}
		if ok {
			allocated += milli
		} else {
			res.Unscheduled++
		}
		if rec != nil {
			if ok {
				rec.placed(at, rank, gpus)
			} else {
				rec.failed(at, re.kinds[at])
			}
			rec.point(percent(arrived), percent(allocated))
		}
		if res.A95 < 0 && 100*arrived >= 95*c.milli {
			res.A95 = percent(allocated)
		}
		if res.A100 < 0 && arrived >= c.milli {
			res.A100 = percent(allocated)
		}
	}
	res.Final = percent(allocated)
	if res.A95 < 0 {
		res.A95 = res.Final
	}
	if res.A100 < 0 {
		res.A100 = res.Final
	}
	if rec != nil {
		res.Detail = rec.finish()
	}
	if mover != nil {
		mover.report(&res)
	}
	if o.Progress != nil {
		o.Progress(len(arrivals), len(arrivals))
	}
	return res, nil
}

func validate(in *Input, o *Options) error {
	gpus := 0
	for i := range in.Nodes {
		n := &in.Nodes[i]
		if n.GPUs > pack.MaxGPUs || n.GPUs < 0 || n.CPUMilli < 0 || n.MemoryMiB < 0 {
			return fmt.Errorf("node %q: %d GPUs, %d milli-CPU and %d MiB: at most %d GPUs, and nothing below 0", n.Name, n.GPUs, n.CPUMilli, n.MemoryMiB, pack.MaxGPUs)
		}
		gpus += n.GPUs
	}
	if gpus == 0 {
		return errors.New("the cluster has no GPUs: give at least one node with a GPU")
	}
	wants := false
	for i := range in.Tasks {
		t := &in.Tasks[i]
		if err := t.Request.Validate(); err != nil {
			return fmt.Errorf("task %q %w", t.Name, err)
		}
		if t.Request.MiB > 0 {
			return fmt.Errorf("task %q asks for a share of GPU memory: give its share of compute instead", t.Name)
		}
		wants = wants || t.Request.WantsGPU()
	}
	switch {
	case !wants:
		return errors.New("no task asks for a GPU: give at least one that does")
	case !(o.Load > 0 && o.Load <= 100):
		return fmt.Errorf("a load of %g is not above 0 and at most 100", o.Load)
	case !(o.DefragBudget >= 0 && o.DefragBudget <= 1):
		return fmt.Errorf("a defragmentation budget of %g is not in 0 to 1", o.DefragBudget)
	case o.Distribution != "" && o.Distribution != DistributionTrace && o.Distribution != DistributionOnline:
		return fmt.Errorf("unknown distribution %q: use %s or %s", o.Distribution, DistributionTrace, DistributionOnline)
	}
	return nil
}

// asked is what the request takes of all GPUs, in milli-GPU.
func asked(r *pack.Request) int64 { return int64(r.GPUs)*pack.WholeMilli + r.Milli }
