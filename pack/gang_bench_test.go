// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack_test

import (
	"fmt"
	"testing"

	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/pack/policy"
)

// everywhere lets every class go everywhere.
type everywhere struct{}

func (everywhere) Feasible(int, int) (bool, string) { return true, "" }
func (everywhere) Placed(int, int) bool             { return false }
func (everywhere) Removed(int, int)                 {}

// benchNodes are nodes of 8 GPUs, of which every third has shares and every fifth whole GPUs taken, in states that differ.
func benchNodes(n int) []*pack.Node {
	nodes := make([]*pack.Node, n)
	for i := range nodes {
		nodes[i] = &pack.Node{
			Name: fmt.Sprintf("node-%d", i), CPUMilli: 96_000, MemoryMiB: 1 << 20,
			Total: pack.Total{CPUMilli: 96_000, MemoryMiB: 1 << 20, GPUs: 8},
		}
		for j := range 8 {
			nodes[i].GPUs = append(nodes[i].GPUs, pack.GPU{
				UUID: fmt.Sprintf("GPU-%d-%d", i, j), Index: j, Model: "A100", TotalMiB: 81920, ReservedMiB: 600, Utilization: (i*7 + j) % 90,
			})
		}
		if i%3 == 0 {
			r := pack.Request{CPUMilli: int64(1000 * (1 + i%7)), MemoryMiB: 4096, Milli: int64(100 * (1 + i%9))}
			nodes[i].Place(&r, "share", []int{0})
		}
		if i%5 == 0 {
			r := pack.Request{CPUMilli: 8000, MemoryMiB: 32 << 10, GPUs: 1 + i%4}
			nodes[i].Place(&r, "whole", []int{4, 5, 6, 7}[:r.GPUs])
		}
	}
	return nodes
}

// inDomains spreads nodes over domains of that size.
func inDomains(nodes, size int, required bool) *pack.Domains {
	d := &pack.Domains{Kind: "rack", Required: required}
	for i := range nodes {
		if i%size == 0 {
			d.Names = append(d.Names, fmt.Sprintf("r%d", i/size))
		}
		d.Of = append(d.Of, i/size)
	}
	return d
}

func BenchmarkPlanGang(b *testing.B) {
	const size = 5000
	nodes := benchNodes(size)
	worker := pack.Request{CPUMilli: 8000, MemoryMiB: 64 << 10, GPUs: 1}
	full := pack.Request{CPUMilli: 64_000, MemoryMiB: 512 << 10, GPUs: 8}
	half := pack.Request{CPUMilli: 4000, MemoryMiB: 32 << 10, Milli: 500}
	launcher := pack.Request{CPUMilli: 2000, MemoryMiB: 4096}
	for _, bb := range []struct {
		name    string
		classes []pack.Request
		domains *pack.Domains
	}{
		{"OneGPU", []pack.Request{worker}, nil},
		{"EightGPUs", []pack.Request{full}, nil},
		{"Shares", []pack.Request{half}, nil},
		{"LauncherAndWorkers", []pack.Request{launcher, worker}, nil},
		{"RequiredOf8", []pack.Request{worker}, inDomains(size, size/8, true)},
		{"PreferredOf312", []pack.Request{worker}, inDomains(size, 16, false)},
		{"PreferredOf312EightGPUs", []pack.Request{full}, inDomains(size, 16, false)},
		{"PreferredOf312Launcher", []pack.Request{launcher, worker}, inDomains(size, 16, false)},
		{"PreferredOf312Shares", []pack.Request{half}, inDomains(size, 16, false)},
	} {
		gang := &pack.Gang{Classes: bb.classes, Need: 1024, Domains: bb.domains}
		for i := range gang.Need {
			gang.Members = append(gang.Members, pack.Member{ID: fmt.Sprint(i), Class: min(i, len(bb.classes)-1)})
		}
		b.Run(bb.name, func(b *testing.B) {
			c := pack.Chooser{Policy: policy.NewGPUPack(pack.NewDistribution(pack.DefaultClasses())), LoadWeight: 0.5}
			b.ReportAllocs()
			for b.Loop() {
				if _, failure := c.PlanGangIn(nodes, gang, everywhere{}); failure != nil {
					b.Fatal(failure)
				}
			}
		})
	}
}
