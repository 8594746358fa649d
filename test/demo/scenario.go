// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/kubectl-plugin/trace"
	"github.com/gpupack/gpupack/nvml/simulated"
)

const (
	poolLabel = "gpupack.dev/pool"
	// modelLabel is what NVIDIA's GPU feature discovery writes, and what users of the default scheduler select by.
	modelLabel = "nvidia.com/gpu.product"
)

// pool is a set of nodes with a scheduler of its own. All pools have the same nodes, but for their names.
type pool struct {
	name       string
	title      string
	namespace  string
	scheduler  string
	nodePrefix string
	mode       v1alpha1.Mode
}

var (
	gpupackPool = &pool{
		name: "gpupack", title: "gpupack", namespace: "demo",
		scheduler: v1alpha1.SchedulerName, mode: v1alpha1.ModeManage,
	}
	defaultPool = &pool{
		name: "default", title: "default profile", namespace: "demo-default",
		scheduler: "default-scheduler", nodePrefix: "default-", mode: v1alpha1.ModeObserve,
	}
)

func (p *pool) selector() string { return poolLabel + "=" + p.name }

// gpuMemory is the device memory of a model and what its driver keeps of it, MiB. The trace hides what G2 and G3 are.
var gpuMemory = map[string]struct{ total, reserved int64 }{
	"T4":      {15360, 448},
	"P100":    {16384, 272},
	"V100M16": {16384, 272},
	"V100M32": {32768, 272},
	"A10":     {23028, 512},
	"G2":      {32768, 448},
	"G3":      {81920, 640},
}

const (
	// foreignMiB is held by a process that no pod owns, on the first GPU of the first node of foreignModel.
	foreignMiB   = 60 << 10
	foreignModel = "G3"
	// sickXid is reported by the third GPU of the second node of sickModel.
	sickXid   = 79
	sickModel = "G3"
)

// scenario gives each pool the nodes, one of which has a process outside any pod and one a sick GPU.
func scenario(nodes []trace.Node, pools []*pool) (*simulated.Scenario, error) {
	s := &simulated.Scenario{}
	for _, p := range pools {
		seen := map[string]int{}
		for _, n := range nodes {
			memory, ok := gpuMemory[n.Model]
			if !ok {
				return nil, fmt.Errorf("node %s has GPUs of model %q, whose memory the demo does not know", n.Name, n.Model)
			}
			node := simulated.Node{
				Name:      p.nodePrefix + n.Name,
				Labels:    map[string]string{poolLabel: p.name, modelLabel: n.Model},
				CPUMilli:  n.CPUMilli,
				MemoryMiB: n.MemoryMiB,
				Mode:      p.mode,
				GPUs: []simulated.GPUGroup{
					{Model: n.Model, Count: n.GPUs, MemoryMiB: memory.total, ReservedMiB: memory.reserved},
				},
			}
			seen[n.Model]++
			if n.Model == foreignModel && seen[n.Model] == 1 {
				node.Processes = []simulated.Process{{GPU: 0, MemoryMiB: foreignMiB, Command: "python3", PID: 4242}}
			}
			if n.Model == sickModel && seen[n.Model] == 2 {
				node.Events = []simulated.Event{{GPU: 2, Kind: simulated.EventXid, Code: sickXid}}
			}
			s.Nodes = append(s.Nodes, node)
		}
	}
	return s, nil
}
