// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

// Candidate is one way to put a request on a node.
type Candidate struct {
	Request *Request
	// Before and After are the node without and with the request.
	Before, After *Shape
	// Milli is the part taken of each of the request's GPUs, 0 to 1000 milli-GPU, in the resource of which it takes most;
	// 0 for a request without GPUs.
	Milli int64
	// Total is what the node has, free or not; nil where the caller does not know.
	Total *Total
	// Kinds are the kinds of pods that hold GPUs of the node; 0 where there are none or the caller does not know.
	Kinds Kinds
}

// Total is what a node has, free or not.
type Total struct {
	CPUMilli, MemoryMiB int64
	GPUs                int
}

// Kinds is a set of kinds of pods by their GPUs: bit 0 stands for shares of a GPU, bit n for n whole GPUs.
type Kinds uint64

// KindOf is the kind of a request; the empty set for a request without GPUs.
func KindOf(r *Request) Kinds {
	switch {
	case r.IsShare():
		return 1
	case r.GPUs > 0:
		return 1 << min(r.GPUs, 63)
	default:
		return 0
	}
}

// Policy rates placements. Its methods are called from several goroutines at once.
type Policy interface {
	// Name is what users write to choose the policy.
	Name() string
	// Score rates a candidate in milli-GPU: how much usable capacity it leaves, relative to the state before. Higher is
	// better, and scores compare across nodes.
	Score(c *Candidate) float64
}

// Class is one kind of workload that may come, and how likely it is.
type Class struct {
	Request Request
	// Weight is proportional to the probability that the next pod is of this class.
	Weight float64
}
