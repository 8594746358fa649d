// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack/policy"
)

// Validate returns what is wrong with the arguments, each with the field's path.
func (a *GPUPackArgs) Validate(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if !policy.Exists(a.Policy) {
		errs = append(errs, field.NotSupported(path.Child("policy"), a.Policy, policy.Names()))
	}
	if a.LoadWeight < 0 || a.LoadWeight > 1000 {
		errs = append(errs, field.Invalid(path.Child("loadWeight"), a.LoadWeight, "must be a percentage from 0 to 1000"))
	}
	if a.StaleAfter.Duration <= 0 {
		errs = append(errs, field.Invalid(path.Child("staleAfter"), a.StaleAfter.Duration.String(), "must be above 0"))
	}
	switch a.StalePolicy {
	case convert.StaleTrustRequests, convert.StaleReject, convert.StaleTrustTelemetry:
	default:
		errs = append(errs, field.NotSupported(path.Child("stalePolicy"), a.StalePolicy,
			[]convert.StalePolicy{convert.StaleTrustRequests, convert.StaleReject, convert.StaleTrustTelemetry}))
	}
	if a.WholeGPUForeignMiB < 0 {
		errs = append(errs, field.Invalid(path.Child("wholeGPUForeignMiB"), a.WholeGPUForeignMiB, "must be 0 MiB or more"))
	}
	if a.GangTimeout.Duration <= 0 {
		errs = append(errs, field.Invalid(path.Child("gangTimeout"), a.GangTimeout.Duration.String(), "must be above 0"))
	}
	if a.ReserveAfter.Duration < 0 {
		errs = append(errs, field.Invalid(path.Child("reserveAfter"), a.ReserveAfter.Duration.String(), "must be 0s or more"))
	}
	if a.MaxReservations < 1 {
		errs = append(errs, field.Invalid(path.Child("maxReservations"), a.MaxReservations, "must be 1 or more"))
	}
	for _, domain := range slices.Sorted(maps.Keys(a.TopologyDomains)) {
		label := a.TopologyDomains[domain]
		for _, wrong := range validation.IsQualifiedName(label) {
			errs = append(errs, field.Invalid(path.Child("topologyDomains").Key(domain), label, "must be the key of a node label: "+wrong))
		}
	}
	return errs
}
