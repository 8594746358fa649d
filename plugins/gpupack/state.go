// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"math"
	"sync"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack"
)

// nodeStates remembers the packing state of each node until something that it was made of changes.
type nodeStates struct {
	byName sync.Map // of string to *nodeState
}

type nodeState struct {
	// What the state was made of. NodeInfo bumps its generation on each change, a clone's too.
	generation int64
	telemetry  string
	ledger     uint64
	stale      bool

	// staleAfter is when, in nanoseconds since 1970, the reading is stale.
	staleAfter int64

	node *pack.Node
	// shape is the node as the policy sees it.
	shape pack.Shape
	// key is the node's State.
	key string
	// requests of the pods that have GPUs. A pod that changes is another object.
	requests map[*corev1.Pod]request
}

type request struct {
	pack.Request
	err error
}

// node returns the packing state of a node as NodeInfo has it, with the places that gang plans hold. Callers must not
// change it.
func (p *Plugin) node(info fwk.NodeInfo) *pack.Node { return p.state(info).node }

func (p *Plugin) state(info fwk.NodeInfo) *nodeState {
	name := info.Node().Name
	options := p.convertOptions(p.clock.Now())
	gn := p.telemetry.get(name)
	key := nodeState{generation: info.GetGeneration(), ledger: p.ledger.nodeVersion(name), staleAfter: math.MaxInt64}
	if gn != nil {
		key.telemetry, key.stale, key.staleAfter = gn.ResourceVersion, convert.IsStale(gn, &options), math.MinInt64
		if at := gn.Status.ObservedTime; at != nil {
			key.staleAfter = at.Add(options.StaleAfter).UnixNano()
		}
	}
	var requests map[*corev1.Pod]request
	if v, ok := p.nodes.byName.Load(name); ok {
		known := v.(*nodeState)
		requests = known.requests
		if known.generation == key.generation && known.telemetry == key.telemetry && known.ledger == key.ledger && known.stale == key.stale {
			return known
		}
	}
	entries, version := p.ledger.onNode(name)
	key.ledger = version

	var pods []convert.Pod
	for _, podInfo := range info.GetPods() {
		pod := podInfo.GetPod()
		e, inLedger := entries[pod.UID]
		delete(entries, pod.UID)
		if !convert.AsksForGPU(pod) {
			continue
		}
		gpus := convert.GPUs(pod)
		if inLedger {
			gpus = e.gpus
		} else if pod.Spec.NodeName == "" {
			// A nominated pod that is only tried here may carry the annotation of an attempt that failed.
			gpus = nil
		}
		pods = append(pods, convert.Pod{Pod: pod, GPUs: gpus})
	}
	key.requests = make(map[*corev1.Pod]request, len(pods))
	options.Request = func(pod *corev1.Pod) (pack.Request, error) {
		r, ok := requests[pod]
		if !ok {
			r.Request, r.err = convert.Request(pod)
		}
		key.requests[pod] = r
		return r.Request, r.err
	}
	n := convert.Node(info.Node(), gn, pods, options)
	allocatable, requested := info.GetAllocatable(), info.GetRequested()
	n.CPUMilli = allocatable.GetMilliCPU() - requested.GetMilliCPU()
	n.MemoryMiB = (allocatable.GetMemory() - requested.GetMemory()) >> 20
	for _, e := range entries {
		// Entries of other phases that NodeInfo lacks are pods that preemption imagines away, or that leave.
		if e.phase == planned {
			n.Place(&e.request, string(e.uid), positions(n, e.gpus))
		}
	}
	key.node, key.shape, key.key = n, p.chooser.Shape(n), n.State()
	p.nodes.byName.Store(name, &key)
	return &key
}

// positions finds GPUs on a node by their UUIDs.
func positions(n *pack.Node, uuids []string) []int {
	var out []int
	for _, uuid := range uuids {
		for i := range n.GPUs {
			if n.GPUs[i].UUID == uuid {
				out = append(out, i)
			}
		}
	}
	return out
}

// uuids names GPUs of a node by their positions.
func uuids(n *pack.Node, positions []int) []string {
	out := make([]string, len(positions))
	for i, at := range positions {
		out[i] = n.GPUs[at].UUID
	}
	return out
}
