// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// WholeMilli is the compute of one whole GPU, in milli-GPU.
const WholeMilli = 1000

// Request is what one pod asks for. It asks for whole GPUs (GPUs > 0), or for a share of one GPU (Milli or MiB > 0), or
// for no GPU at all.
type Request struct {
	// CPUMilli is the CPU asked for, in milli-CPU. kube-scheduler checks it; policies use it to score.
	CPUMilli int64
	// MemoryMiB is the host memory asked for. kube-scheduler checks it; policies use it to score.
	MemoryMiB int64
	// GPUs is the number of whole GPUs.
	GPUs int
	// Milli is the compute share of one GPU, 0 to 1000 milli-GPU. 0 asks for none of it.
	Milli int64
	// MiB is the memory share of one GPU. 0 with Milli > 0 means the same share of memory as of compute.
	MiB int64
	// Models are the accepted GPU models, sorted; empty accepts any.
	Models []string
	// MaxUtilization is the busiest GPU that the pod would share, percent; 0 sets no limit.
	MaxUtilization int
}

// IsShare says whether the request is for a share of one GPU.
func (r *Request) IsShare() bool { return r.GPUs == 0 && (r.Milli > 0 || r.MiB > 0) }

// WantsGPU says whether the request needs any GPU.
func (r *Request) WantsGPU() bool { return r.GPUs > 0 || r.IsShare() }

// Count is the number of GPUs that the request occupies, in part or whole.
func (r *Request) Count() int {
	if r.IsShare() {
		return 1
	}
	return r.GPUs
}

// MiBOn is the device memory that the request takes of each GPU that has totalMiB of memory, of which usableMiB can be
// given to pods. A compute share that names no memory takes its share of usableMiB, rounded down: shares that add up to
// one GPU must fit on one GPU, whatever its memory.
func (r *Request) MiBOn(usableMiB int64) int64 {
	switch {
	case r.GPUs > 0:
		return usableMiB
	case r.MiB > 0:
		return r.MiB
	default:
		return r.Milli * usableMiB / WholeMilli
	}
}

// MilliOn is the share of a GPU that the request takes in the resource of which it takes most, compute or memory, in
// milli-GPU. A GPU has usableMiB for pods. The result can exceed 1000 where the GPU is too small.
func (r *Request) MilliOn(usableMiB int64) int64 {
	if r.GPUs > 0 {
		return WholeMilli
	}
	if r.MiB == 0 || usableMiB <= 0 {
		return r.Milli
	}
	return max(r.Milli, (r.MiB*WholeMilli+usableMiB-1)/usableMiB)
}

// Accepts says whether the request may run on a GPU of that model.
func (r *Request) Accepts(model string) bool {
	return len(r.Models) == 0 || slices.Contains(r.Models, model)
}

// RequestKey tells requests apart: those that ask for the same have the same key.
type RequestKey struct {
	cpuMilli, memoryMiB, milli, miB int64
	gpus, maxUtilization            int
	models                          string
}

// Key is what the request asks for, as a key of maps.
func (r *Request) Key() RequestKey {
	return RequestKey{
		cpuMilli: r.CPUMilli, memoryMiB: r.MemoryMiB, milli: r.Milli, miB: r.MiB, gpus: r.GPUs, maxUtilization: r.MaxUtilization,
		models: strings.Join(r.Models, "|"),
	}
}

// Validate returns what is wrong with a request, in one sentence, or nil.
func (r *Request) Validate() error {
	switch {
	case r.CPUMilli < 0 || r.MemoryMiB < 0 || r.GPUs < 0 || r.Milli < 0 || r.MiB < 0:
		return fmt.Errorf("a request cannot be negative")
	case r.GPUs > 0 && (r.Milli > 0 || r.MiB > 0):
		return fmt.Errorf("asks for %d whole GPUs and for a share of a GPU: ask for one kind", r.GPUs)
	case r.Milli > WholeMilli:
		return fmt.Errorf("asks for a share of %d milli-GPU, above one GPU (1000): ask for whole GPUs instead", r.Milli)
	case r.MaxUtilization < 0 || r.MaxUtilization > 100:
		return fmt.Errorf("a utilisation limit of %d is not in 0 to 100", r.MaxUtilization)
	}
	return nil
}

// String is the GPU part of the request as a person would say it, such as "2 GPUs of A100" or "8192 MiB of a GPU".
func (r *Request) String() string {
	var what string
	switch {
	case r.GPUs == 1:
		what = "1 GPU"
	case r.GPUs > 1:
		what = fmt.Sprintf("%d GPUs", r.GPUs)
	case r.Milli > 0 && r.MiB > 0:
		what = fmt.Sprintf("%d milli-GPU and %d MiB of a GPU", r.Milli, r.MiB)
	case r.Milli > 0:
		what = fmt.Sprintf("%d milli-GPU of a GPU", r.Milli)
	case r.MiB > 0:
		what = fmt.Sprintf("%d MiB of a GPU", r.MiB)
	default:
		return "no GPU"
	}
	if len(r.Models) > 0 {
		what += " of model " + strings.Join(r.Models, " or ")
	}
	return what
}

// compareSize orders requests from the hardest to place to the easiest: most GPUs, then largest share.
func compareSize(a, b *Request) int {
	return cmp.Or(
		cmp.Compare(b.GPUs, a.GPUs),
		cmp.Compare(b.MiB, a.MiB),
		cmp.Compare(b.Milli, a.Milli),
		cmp.Compare(b.CPUMilli, a.CPUMilli),
		cmp.Compare(b.MemoryMiB, a.MemoryMiB),
	)
}
