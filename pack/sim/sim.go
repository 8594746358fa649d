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
	// Seed decides the order of arrivals, which tasks arrive more than once, and what the policy random draws.
	Seed uint64
	// Load is the sum of GPUs that the arrivals ask for, as a multiple of the cluster's. 1.3 is usual.
	Load float64
	// Distribution is DistributionTrace (also if empty) or DistributionOnline.
	Distribution string
}

// Result is what became of a replay. Allocation is in percent of all GPUs of the cluster.
type Result struct {
	Seed uint64
	// A95 and A100 are allocated when what the arrivals asked for reached 95 % and 100 % of the cluster's GPUs, Final at the
	// end.
	A95, A100, Final float64
	// Tasks arrived, of which Unscheduled found no place.
	Tasks, Unscheduled int
	// Seconds is how long the replay took.
	Seconds float64
}

// Run replays the input once. The result is the same for equal input and options, but for Seconds, and does not depend on
// the order of the nodes.
func Run(ctx context.Context, in Input, o Options) (Result, error) {
	if err := validate(&in, &o); err != nil {
		return Result{}, err
	}
	kinds, requests := classify(in.Tasks)
	d := distribution(kinds, requests, o.Distribution)
	p, err := policy.Simulated(o.Policy, d)
	if err != nil {
		return Result{}, err
	}
	return run(ctx, &in, &o, kinds, requests, d, p)
}

// run replays tasks of which kinds names each one's class, a position in requests.
func run(ctx context.Context, in *Input, o *Options, kinds []int32, requests []pack.Request, d *pack.Distribution, p pack.Policy) (Result, error) {
	start := time.Now()
	c := newCluster(in.Nodes, requests, p, d, o.Seed)
	if aware, ok := p.(policy.SupplyAware); ok {
		supply := policy.Supply{}
		for i := range in.Nodes {
			if n := &in.Nodes[i]; n.GPUs > 0 {
				supply[n.Model] += n.GPUs
			}
		}
		aware.SetSupply(supply)
	}
	arrivals := Arrivals(in.Tasks, c.milli, o.Load, o.Seed)
	res := Result{Seed: o.Seed, Tasks: len(arrivals)}
	var arrived, allocated int64
	percent := func() float64 { return 100 * float64(allocated) / float64(c.milli) }
	res.A95, res.A100 = -1, -1
	for i, at := range arrivals {
		if i%256 == 0 && ctx.Err() != nil {
			return Result{}, ctx.Err()
		}
		r := &in.Tasks[at].Request
		d.Observe(r)
		milli := asked(r)
		arrived += milli
		if c.place(kinds[at]) {
			allocated += milli
		} else {
			res.Unscheduled++
		}
		if res.A95 < 0 && 100*arrived >= 95*c.milli {
			res.A95 = percent()
		}
		if res.A100 < 0 && arrived >= c.milli {
			res.A100 = percent()
		}
	}
	res.Final = percent()
	if res.A95 < 0 {
		res.A95 = res.Final
	}
	if res.A100 < 0 {
		res.A100 = res.Final
	}
	res.Seconds = time.Since(start).Seconds()
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
	case o.Distribution != "" && o.Distribution != DistributionTrace && o.Distribution != DistributionOnline:
		return fmt.Errorf("unknown distribution %q: use %s or %s", o.Distribution, DistributionTrace, DistributionOnline)
	}
	return nil
}

// asked is what the request takes of all GPUs, in milli-GPU.
func asked(r *pack.Request) int64 { return int64(r.GPUs)*pack.WholeMilli + r.Milli }
