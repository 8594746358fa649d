// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/gpupack/gpupack/pack"

// BestFit takes the node of which least is left, CPU and GPU counting alike, each as a part of the largest node.
type BestFit struct{}

// Name implements pack.Policy.
func (BestFit) Name() string { return "best-fit" }

// Score is 100 less the mean part that is left, in percent, rounded down, as the artifact of the FGD paper rounds it.
func (BestFit) Score(c *pack.Candidate) float64 {
	cpu := float64(c.Before.CPUMilli-c.Request.CPUMilli) / mostCPUMilli
	gpu := float64(c.Before.Free()-askedMilli(c)) / mostGPUMilli
	return float64(int64(100 * (1 - (cpu+gpu)/2)))
}
