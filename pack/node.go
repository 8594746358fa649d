// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import "slices"

// Tenant is one pod's hold on one GPU.
type Tenant struct {
	// ID names the pod; its UID where there is one.
	ID string
	// Milli is the compute promised, 0 to 1000 milli-GPU; 1000 excludes every other tenant. A share by memory alone
	// has 0.
	Milli int64
	// RequestedMiB is the device memory promised.
	RequestedMiB int64
	// UsedMiB is the device memory really used, as last read.
	UsedMiB int64
	// Kind is the kind of pod that it is; 0 for one that holds nothing and is only seen to use memory.
	Kind Kinds
}

// MiB is the memory that the tenant takes from others: what it was promised or what it uses, whichever is more.
func (t *Tenant) MiB() int64 { return max(t.RequestedMiB, t.UsedMiB) }

// GPU is the state of one GPU.
type GPU struct {
	UUID string
	// Index on its node.
	Index int
	Model string
	// TotalMiB is the device memory.
	TotalMiB int64
	// ReservedMiB is what the driver keeps.
	ReservedMiB int64
	// ForeignMiB is what processes of no pod use.
	ForeignMiB int64
	// Utilization is how busy the GPU is, percent, smoothed.
	Utilization int
	// Unhealthy is why the GPU must not be chosen; empty for a healthy one.
	Unhealthy string
	// Cordoned is true where nothing ails the GPU, but an operator wants no new pods on it. Unhealthy then says so.
	Cordoned bool
	// Tenants hold the GPU or shares of it.
	Tenants []Tenant
}

// UsableMiB is the memory that pods could have if none held any and no process of no pod ran.
func (g *GPU) UsableMiB() int64 { return max(0, g.TotalMiB-g.ReservedMiB) }

// FreeMiB is the memory that a new pod could have: total - reserved - foreign - the tenants' holds, at least 0.
func (g *GPU) FreeMiB() int64 {
	free := g.UsableMiB() - g.ForeignMiB
	for i := range g.Tenants {
		free -= g.Tenants[i].MiB()
	}
	return max(0, free)
}

// RequestedMiB is the memory promised to tenants.
func (g *GPU) RequestedMiB() int64 {
	var sum int64
	for i := range g.Tenants {
		sum += g.Tenants[i].RequestedMiB
	}
	return sum
}

// FreeMilli is the compute that no tenant was promised, 0 to 1000 milli-GPU.
func (g *GPU) FreeMilli() int64 {
	free := int64(WholeMilli)
	for i := range g.Tenants {
		free -= g.Tenants[i].Milli
	}
	return max(0, free)
}

// Node is the state of one node and its GPUs.
type Node struct {
	Name string
	// CPUMilli is the CPU that no pod has requested, in milli-CPU.
	CPUMilli int64
	// MemoryMiB is the host memory that no pod has requested.
	MemoryMiB int64
	// Total is what pods could have of the node if there were none.
	Total Total
	// Problem is why nothing that needs a GPU can go here, whatever its size; ReasonFits if there is no such thing.
	Problem Reason
	// Stale is true where the readings are too old to place a share by them.
	Stale bool
	// Observe is true where another device plugin picks the GPU, so that gpupack cannot.
	Observe bool
	// GPUs in the order of their index.
	GPUs []GPU
}

// Clone returns a deep copy.
func (n *Node) Clone() *Node {
	c := *n
	c.GPUs = slices.Clone(n.GPUs)
	for i := range c.GPUs {
		c.GPUs[i].Tenants = slices.Clone(c.GPUs[i].Tenants)
	}
	return &c
}

// Kinds are the kinds of pods that hold GPUs of the node.
func (n *Node) Kinds() Kinds {
	var kinds Kinds
	for i := range n.GPUs {
		for j := range n.GPUs[i].Tenants {
			kinds |= n.GPUs[i].Tenants[j].Kind
		}
	}
	return kinds
}

// Place gives the request's CPU, memory and its part of the GPUs at those positions to the tenant with that ID. It does
// not check that they fit: see Fit.
func (n *Node) Place(r *Request, id string, gpus []int) {
	n.CPUMilli -= r.CPUMilli
	n.MemoryMiB -= r.MemoryMiB
	for _, i := range gpus {
		g := &n.GPUs[i]
		milli := r.Milli
		if r.GPUs > 0 {
			milli = WholeMilli
		}
		g.Tenants = append(g.Tenants, Tenant{ID: id, Milli: milli, RequestedMiB: r.MiBOn(g.UsableMiB()), Kind: KindOf(r)})
	}
}

// Remove undoes Place for the tenant with that ID.
func (n *Node) Remove(r *Request, id string) {
	n.CPUMilli += r.CPUMilli
	n.MemoryMiB += r.MemoryMiB
	for i := range n.GPUs {
		n.GPUs[i].Tenants = slices.DeleteFunc(n.GPUs[i].Tenants, func(t Tenant) bool { return t.ID == id })
	}
}
