// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/gpupack/gpupack/pack"

// The largest node that the artifact of the FGD paper knows, by which its policies normalise.
const (
	mostCPUMilli = 128_000
	mostGPUMilli = 8_000
)

// DotProduct avoids nodes of which much is left of what the request needs most. Source: Grandl et al., "Multi-resource
// packing for cluster schedulers" (Tetris), SIGCOMM '14, in the form in which the artifact of the FGD paper has it: the
// product of what is left and what is asked for, CPU and GPU, each as a part of the largest node, and the least is best.
type DotProduct struct{}

// Name implements pack.Policy.
func (DotProduct) Name() string { return "dot-product" }

// Score is 100 less the mean product in percent, rounded down, as the artifact rounds it.
func (DotProduct) Score(c *pack.Candidate) float64 {
	cpu := float64(c.Before.CPUMilli) / mostCPUMilli * float64(c.Request.CPUMilli) / mostCPUMilli
	gpu := float64(c.Before.Free()) / mostGPUMilli * float64(askedMilli(c)) / mostGPUMilli
	return float64(int64(100 * (1 - (cpu+gpu)/2)))
}

// askedMilli is what the candidate takes of all its GPUs, in milli-GPU.
func askedMilli(c *pack.Candidate) int64 { return int64(c.Request.Count()) * c.Milli }
