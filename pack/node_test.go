// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testNode returns a node with plenty of CPU and memory and n equal GPUs of 80 GiB usable memory.
func testNode(n int) *Node {
	node := &Node{Name: "node", CPUMilli: 64000, MemoryMiB: 512 << 10}
	for i := range n {
		node.GPUs = append(node.GPUs, GPU{UUID: fmt.Sprintf("GPU-%d", i), Index: i, Model: "A100", TotalMiB: 81920})
	}
	return node
}

func with(n *Node, changes ...func(*Node)) *Node {
	for _, change := range changes {
		change(n)
	}
	return n
}

func TestFreeMiB(t *testing.T) {
	tests := []struct {
		name            string
		gpu             GPU
		free, requested int64
		freeMilli       int64
	}{
		{"empty", GPU{TotalMiB: 1000}, 1000, 0, 1000},
		{"driver's reserve", GPU{TotalMiB: 1000, ReservedMiB: 100}, 900, 0, 1000},
		{"foreign", GPU{TotalMiB: 1000, ReservedMiB: 100, ForeignMiB: 50}, 850, 0, 1000},
		{"requested above used", GPU{TotalMiB: 1000, Tenants: []Tenant{{RequestedMiB: 300, UsedMiB: 10, Milli: 250}}}, 700, 300, 750},
		{"used above requested", GPU{TotalMiB: 1000, Tenants: []Tenant{{RequestedMiB: 300, UsedMiB: 400}}}, 600, 300, 1000},
		{"each tenant by its own maximum", GPU{TotalMiB: 1000, Tenants: []Tenant{
			{RequestedMiB: 300, UsedMiB: 400, Milli: 500}, {RequestedMiB: 200, UsedMiB: 1, Milli: 500},
		}}, 400, 500, 0},
		{"never negative", GPU{TotalMiB: 1000, ForeignMiB: 900, Tenants: []Tenant{{UsedMiB: 400, Milli: 1000}, {Milli: 1000}}}, 0, 0, 0},
		{"reserve above total", GPU{TotalMiB: 1000, ReservedMiB: 2000}, 0, 0, 1000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.free, tt.gpu.FreeMiB())
			assert.Equal(t, tt.requested, tt.gpu.RequestedMiB())
			assert.Equal(t, tt.freeMilli, tt.gpu.FreeMilli())
		})
	}
}

var limits = Limits{WholeForeignMiB: 512}

// fitCases has a case for every Reason.
var fitCases = []struct {
	name    string
	node    *Node
	request Request
	want    Reason
}{
	{"no GPU wanted, whatever the node's problem", &Node{Problem: ReasonNoTelemetry}, Request{CPUMilli: 1}, ReasonFits},
	{"whole", testNode(2), Request{GPUs: 2}, ReasonFits},
	{"share", testNode(1), Request{Milli: 500}, ReasonFits},
	{"no telemetry", &Node{Problem: ReasonNoTelemetry}, Request{GPUs: 1}, ReasonNoTelemetry},
	{"invalid telemetry", &Node{Problem: ReasonInvalidTelemetry}, Request{GPUs: 1}, ReasonInvalidTelemetry},
	{"stale and rejected", with(testNode(1), func(n *Node) { n.Problem, n.Stale = ReasonStaleReject, true }), Request{GPUs: 1}, ReasonStaleReject},
	{"too few", testNode(4), Request{GPUs: 8}, ReasonTooFewGPUs},
	{"none at all", testNode(0), Request{Milli: 1}, ReasonTooFewGPUs},
	{"model", testNode(2), Request{GPUs: 1, Models: []string{"H100"}}, ReasonModel},
	{"too few of the model", with(testNode(2), func(n *Node) { n.GPUs[1].Model = "T4" }), Request{GPUs: 2, Models: []string{"A100"}}, ReasonModel},
	{"share on an observe node", with(testNode(1), func(n *Node) { n.Observe = true }), Request{Milli: 1}, ReasonObserveShare},
	{"whole on an observe node", with(testNode(1), func(n *Node) { n.Observe = true }), Request{GPUs: 1}, ReasonFits},
	{"share on a stale node", with(testNode(1), func(n *Node) { n.Stale = true }), Request{Milli: 1}, ReasonStaleShare},
	{"whole on a stale node", with(testNode(1), func(n *Node) { n.Stale = true }), Request{GPUs: 1}, ReasonFits},
	{"share too large for a stale node says so", with(testNode(1), func(n *Node) { n.Stale = true }), Request{MiB: 81921}, ReasonTooLarge},
	{"too large", testNode(1), Request{MiB: 81921}, ReasonTooLarge},
	{"too large by the driver's reserve", with(testNode(1), func(n *Node) { n.GPUs[0].ReservedMiB = 1 }), Request{MiB: 81920}, ReasonTooLarge},
	{"unhealthy", with(testNode(2), func(n *Node) { n.GPUs[0].Unhealthy = "Xid 79" }), Request{GPUs: 2}, ReasonUnhealthy},
	{"unhealthy and no share", with(testNode(1), func(n *Node) { n.GPUs[0].Unhealthy = "Xid 79" }), Request{Milli: 1}, ReasonUnhealthy},
	{"cordoned", with(testNode(2), cordon(0)), Request{GPUs: 2}, ReasonCordoned},
	{"cordoned and no share", with(testNode(1), cordon(0)), Request{Milli: 1}, ReasonCordoned},
	{"another is cordoned", with(testNode(2), cordon(0)), Request{GPUs: 1}, ReasonFits},
	{"observe: a cordoned GPU could be handed out", with(testNode(2), func(n *Node) { n.Observe = true }, cordon(1)), Request{GPUs: 1},
		ReasonObserveCordoned},
	{"observe: the cordoned GPU is taken", with(testNode(2), func(n *Node) {
		n.Observe, n.GPUs[1].Tenants = true, []Tenant{{ID: "a", Milli: 1000}}
	}, cordon(1)), Request{GPUs: 1}, ReasonFits},
	{"foreign above the limit", with(testNode(1), func(n *Node) { n.GPUs[0].ForeignMiB = 513 }), Request{GPUs: 1}, ReasonForeign},
	{"foreign at the limit", with(testNode(1), func(n *Node) { n.GPUs[0].ForeignMiB = 512 }), Request{GPUs: 1}, ReasonFits},
	{"foreign leaves too little for a share", with(testNode(1), func(n *Node) { n.GPUs[0].ForeignMiB = 61440 }), Request{MiB: 20481}, ReasonForeign},
	{"foreign leaves just enough", with(testNode(1), func(n *Node) { n.GPUs[0].ForeignMiB = 61440 }), Request{MiB: 20480}, ReasonFits},
	{"observe: a GPU with foreign memory could be handed out", with(testNode(2), func(n *Node) { n.Observe, n.GPUs[1].ForeignMiB = true, 4096 }),
		Request{GPUs: 1}, ReasonObserveForeign},
	{"observe: that GPU is taken", with(testNode(2), func(n *Node) {
		n.Observe, n.GPUs[1].ForeignMiB, n.GPUs[1].Tenants = true, 4096, []Tenant{{ID: "a", Milli: 1000}}
	}), Request{GPUs: 1}, ReasonFits},
	{"busier than accepted", with(testNode(1), func(n *Node) { n.GPUs[0].Utilization = 61 }), Request{Milli: 1, MaxUtilization: 60}, ReasonBusy},
	{"as busy as accepted", with(testNode(1), func(n *Node) { n.GPUs[0].Utilization = 60 }), Request{Milli: 1, MaxUtilization: 60}, ReasonFits},
	{"occupied", with(testNode(2), func(n *Node) { n.GPUs[0].Tenants = []Tenant{{ID: "a", Milli: 1}} }), Request{GPUs: 2}, ReasonOccupied},
	{"occupied by a tenant that only uses memory", with(testNode(1), func(n *Node) { n.GPUs[0].Tenants = []Tenant{{ID: "a", UsedMiB: 1}} }),
		Request{GPUs: 1}, ReasonOccupied},
	{"memory", with(testNode(1), func(n *Node) { n.GPUs[0].Tenants = []Tenant{{ID: "a", RequestedMiB: 80000}} }), Request{MiB: 2000}, ReasonMemory},
	{"memory used beyond the request", with(testNode(1), func(n *Node) {
		n.GPUs[0].Tenants = []Tenant{{ID: "a", RequestedMiB: 1024, UsedMiB: 80000}}
	}), Request{MiB: 2000}, ReasonMemory},
	{"compute", with(testNode(1), func(n *Node) { n.GPUs[0].Tenants = []Tenant{{ID: "a", Milli: 600}} }), Request{Milli: 401}, ReasonCompute},
	{"a share by memory beside a tenant with all compute", with(testNode(1), func(n *Node) { n.GPUs[0].Tenants = []Tenant{{ID: "a", Milli: 1000}} }),
		Request{MiB: 1}, ReasonCompute},
	{"all compute beside a share by memory", with(testNode(1), func(n *Node) { n.GPUs[0].Tenants = []Tenant{{ID: "a", RequestedMiB: 1}} }),
		Request{Milli: 1000, MiB: 1}, ReasonCompute},
	{"the reason nearest to fitting", with(testNode(3), func(n *Node) {
		n.GPUs[0].Unhealthy = "ECC"
		n.GPUs[1].Model = "T4"
		n.GPUs[2].Tenants = []Tenant{{ID: "a", Milli: 600}}
	}), Request{Milli: 500, Models: []string{"A100"}}, ReasonCompute},
	{"of several GPUs, the reason of the last that is needed", with(testNode(3), func(n *Node) {
		n.GPUs[0].Unhealthy = "ECC"
		n.GPUs[1].Tenants = []Tenant{{ID: "a", Milli: 600}}
	}), Request{GPUs: 3}, ReasonUnhealthy},
}

// cordon makes an operator want no new pods on a GPU.
func cordon(gpu int) func(*Node) {
	return func(n *Node) { n.GPUs[gpu].Unhealthy, n.GPUs[gpu].Cordoned = "cordoned", true }
}

func TestFit(t *testing.T) {
	seen := map[Reason]bool{}
	for _, tt := range fitCases {
		t.Run(tt.name, func(t *testing.T) {
			got := limits.Fit(tt.node, &tt.request)
			assert.Equal(t, tt.want, got, "got %s: %s", got, got.Message())
			assert.Equal(t, tt.want, limits.FitHost(tt.node, &Request{
				GPUs: tt.request.GPUs, Milli: tt.request.Milli, MiB: tt.request.MiB,
				Models: tt.request.Models, MaxUtilization: tt.request.MaxUtilization,
			}), "FitHost with nothing asked of the host")
		})
		seen[tt.want] = true
	}
	for r := range numReasons {
		if r != ReasonCPU && r != ReasonHostMemory && r != ReasonReserved {
			assert.True(t, seen[r], "no case for %s", r)
		}
		assert.NotEmpty(t, r.String())
		assert.NotEmpty(t, r.Message())
	}
}

func TestFitHost(t *testing.T) {
	n := testNode(1)
	assert.Equal(t, ReasonCPU, limits.FitHost(n, &Request{CPUMilli: n.CPUMilli + 1, GPUs: 1}))
	assert.Equal(t, ReasonHostMemory, limits.FitHost(n, &Request{MemoryMiB: n.MemoryMiB + 1, GPUs: 1}))
	assert.Equal(t, ReasonFits, limits.FitHost(n, &Request{CPUMilli: n.CPUMilli, MemoryMiB: n.MemoryMiB, GPUs: 1}))
	assert.Equal(t, ReasonTooFewGPUs, limits.FitHost(n, &Request{GPUs: 2}))
}

func TestReasonsThatEvictionMends(t *testing.T) {
	for r := range numReasons {
		mends := r == ReasonFits || r >= ReasonBusy && r != ReasonReserved
		assert.Equal(t, !mends, r.Unresolvable(), "%s", r)
	}
}

// A GPU of 46068 MiB that keeps 600 MiB for the driver has room for 22 pods of 2000 MiB, and 24 must not get there.
func TestSharesByMemoryAreCountedExactly(t *testing.T) {
	for reserved, want := range map[int64]int{0: 23, 68: 23, 69: 22, 600: 22} {
		n := &Node{Name: "l40s", GPUs: []GPU{{UUID: "GPU-0", TotalMiB: 46068, ReservedMiB: reserved}}}
		r := Request{MiB: 2000}
		placed := 0
		for i := range 24 {
			if limits.Fit(n, &r) != ReasonFits {
				break
			}
			n.Place(&r, fmt.Sprint(i), []int{0})
			placed++
		}
		assert.Equal(t, want, placed, "with %d MiB reserved", reserved)
		assert.Equal(t, ReasonMemory, limits.Fit(n, &r))
		assert.LessOrEqual(t, n.GPUs[0].RequestedMiB(), n.GPUs[0].UsableMiB())
	}
}

// Shares that add up to one GPU fit on one GPU, whatever its memory.
func TestSharesByComputeFillAGPU(t *testing.T) {
	for _, shares := range [][]int64{{500, 500}, {333, 333, 334}, {250, 250, 250, 250}, {1, 999}, {142, 142, 142, 142, 142, 142, 148}} {
		for _, total := range []int64{81251, 46067, 15109, 1001} {
			n := &Node{GPUs: []GPU{{UUID: "GPU-0", TotalMiB: total}}}
			left := int64(1000)
			for i, milli := range shares {
				r := Request{Milli: milli}
				require.Equal(t, ReasonFits, limits.Fit(n, &r), "share %d of %v on %d MiB", i, shares, total)
				n.Place(&r, fmt.Sprint(i), []int{0})
				left -= milli
				shape := n.Shape()
				assert.Equal(t, left, shape.Free(), "left after share %d of %v on %d MiB", i, shares, total)
			}
		}
	}
}

func TestExplain(t *testing.T) {
	n := testNode(3)
	n.GPUs[0].Unhealthy = "Xid 79"
	n.GPUs[1].Tenants = []Tenant{{ID: "a", Milli: 600, RequestedMiB: 70000}}

	assert.Equal(t, []GPUVerdict{
		{UUID: "GPU-0", Index: 0, Reason: ReasonUnhealthy, NeedMiB: 16384, FreeMiB: 81920, NeedMilli: 100, FreeMilli: 1000},
		{UUID: "GPU-1", Index: 1, Reason: ReasonMemory, NeedMiB: 16384, FreeMiB: 11920, NeedMilli: 100, FreeMilli: 400},
		{UUID: "GPU-2", Index: 2, Reason: ReasonFits, NeedMiB: 16384, FreeMiB: 81920, NeedMilli: 100, FreeMilli: 1000},
	}, limits.Explain(n, &Request{Milli: 100, MiB: 16384}))

	verdicts := limits.Explain(n, &Request{GPUs: 2})
	require.Len(t, verdicts, 3)
	assert.Equal(t, GPUVerdict{UUID: "GPU-1", Index: 1, Reason: ReasonOccupied, NeedMiB: 81920, FreeMiB: 11920, NeedMilli: 1000, FreeMilli: 400}, verdicts[1])

	assert.Empty(t, limits.Explain(n, &Request{CPUMilli: 1}), "no GPU wanted")
	n.Problem = ReasonStaleReject
	assert.Empty(t, limits.Explain(n, &Request{GPUs: 1}), "the node's problem comes before its GPUs")
}

func TestPlaceAndRemove(t *testing.T) {
	n := testNode(2)
	n.GPUs[0].ReservedMiB = 920
	before := n.Clone()
	whole := Request{CPUMilli: 8000, MemoryMiB: 1024, GPUs: 2}
	n.Place(&whole, "gang", []int{0, 1})
	assert.Equal(t, int64(56000), n.CPUMilli)
	assert.Equal(t, int64(511<<10), n.MemoryMiB)
	assert.Equal(t, []Tenant{{ID: "gang", Milli: 1000, RequestedMiB: 81000, Kind: 1 << 2}}, n.GPUs[0].Tenants)
	assert.Equal(t, []Tenant{{ID: "gang", Milli: 1000, RequestedMiB: 81920, Kind: 1 << 2}}, n.GPUs[1].Tenants)
	assert.Equal(t, KindOf(&whole), n.Kinds())
	assert.Empty(t, before.GPUs[0].Tenants, "a clone shares nothing")
	n.Remove(&whole, "gang")
	assert.Equal(t, before.CPUMilli, n.CPUMilli)
	assert.Equal(t, before.MemoryMiB, n.MemoryMiB)
	assert.Empty(t, n.GPUs[0].Tenants)
	assert.Empty(t, n.GPUs[1].Tenants)
	assert.Zero(t, n.Kinds())
}

func TestShape(t *testing.T) {
	n := testNode(4)
	n.CPUMilli, n.MemoryMiB = -5, -7
	n.GPUs[1].Tenants = []Tenant{{ID: "a", Milli: 250, RequestedMiB: 40960}}
	n.GPUs[2].Unhealthy = "ECC"
	n.GPUs[3].ForeignMiB = 100

	s := n.Shape()
	assert.Equal(t, Shape{Model: "A100", UsableMiB: 81920, Len: 4, Milli: [MaxGPUs]int16{1000, 998, 500, 0}}, s)
	assert.Equal(t, int64(2498), s.Free())
	assert.Equal(t, 1, s.Whole())

	tolerant := limits.shape(n)
	assert.Equal(t, [MaxGPUs]int16{1000, 1000, 500, 0}, tolerant.Milli, "a GPU that can be given away whole counts as whole")

	empty := testNode(0).Shape()
	assert.Zero(t, empty.Len)
	assert.Zero(t, empty.Whole())

	all := testNode(MaxGPUs + 1).Shape()
	assert.Equal(t, MaxGPUs, all.Len)
	assert.Equal(t, MaxGPUs, all.Whole())
}

func TestSqueeze(t *testing.T) {
	share := Request{Milli: 300}
	tests := []struct {
		name    string
		node    *Node
		request Request
		want    []int
	}{
		{"a share goes where the least room is enough", with(testNode(3), func(n *Node) {
			n.GPUs[0].Tenants = []Tenant{{ID: "a", Milli: 800}}
			n.GPUs[2].Tenants = []Tenant{{ID: "b", Milli: 600}}
		}), share, []int{2}},
		{"not on a sick GPU", with(testNode(2), func(n *Node) { n.GPUs[0].Unhealthy = "ECC" }), share, []int{1}},
		{"not on another model", with(testNode(2), func(n *Node) { n.GPUs[0].Model = "T4" }), Request{Milli: 300, Models: []string{"A100"}}, []int{1}},
		{"without room, on the emptiest", with(testNode(2), func(n *Node) {
			n.GPUs[0].Tenants = []Tenant{{ID: "a", Milli: 900}}
			n.GPUs[1].Tenants = []Tenant{{ID: "b", Milli: 800}}
		}), share, []int{1}},
		{"whole GPUs that nobody has", with(testNode(4), func(n *Node) {
			n.GPUs[0].Tenants = []Tenant{{ID: "a", RequestedMiB: 40960}}
			n.GPUs[2].Unhealthy = "ECC"
		}), Request{GPUs: 2}, []int{1, 3}},
		{"the whole GPU with the least foreign memory", with(testNode(2), func(n *Node) { n.GPUs[0].ForeignMiB = 61440 }), Request{GPUs: 1}, []int{1}},
		{"more whole GPUs than the node has", testNode(2), Request{GPUs: 4}, []int{0, 1}},
		{"no GPU at all", testNode(0), share, []int{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, Squeeze(tt.node, &tt.request))
		})
	}
}
