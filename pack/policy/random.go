// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math/rand/v2"

	"github.com/gpupack/gpupack/pack"
)

// Random puts a request anywhere that it fits.
type Random struct{}

// Name implements pack.Policy.
func (*Random) Name() string { return "random" }

// Score is a number that means nothing, from 0 to 1000.
func (*Random) Score(*pack.Candidate) float64 { return rand.Float64() * pack.WholeMilli }
