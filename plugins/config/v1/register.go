// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package v1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	schedulerv1 "k8s.io/kube-scheduler/config/v1"
	"k8s.io/utils/ptr"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack"
	"github.com/gpupack/gpupack/plugins/config"
)

// AddToScheme adds the types to kube-scheduler's configuration group, with their defaults and conversions.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(schedulerv1.SchemeGroupVersion, &GPUPackArgs{})
	s.AddTypeDefaultingFunc(&GPUPackArgs{}, func(obj any) { SetDefaults(obj.(*GPUPackArgs)) })
	if err := s.AddConversionFunc((*GPUPackArgs)(nil), (*config.GPUPackArgs)(nil), func(a, b any, _ conversion.Scope) error {
		toInternal(a.(*GPUPackArgs), b.(*config.GPUPackArgs))
		return nil
	}); err != nil {
		return err
	}
	return s.AddConversionFunc((*config.GPUPackArgs)(nil), (*GPUPackArgs)(nil), func(a, b any, _ conversion.Scope) error {
		fromInternal(a.(*config.GPUPackArgs), b.(*GPUPackArgs))
		return nil
	})
}

// SetDefaults fills what is left out.
func SetDefaults(a *GPUPackArgs) {
	setDefault(&a.Policy, "gpupack")
	setDefault(&a.LoadWeight, pack.DefaultLoadWeight)
	setDefault(&a.StaleAfter, metav1.Duration{Duration: convert.DefaultStaleAfter})
	setDefault(&a.StalePolicy, string(convert.StaleTrustRequests))
	setDefault(&a.WholeGPUForeignMiB, pack.DefaultWholeForeignMiB)
	setDefault(&a.GangTimeout, metav1.Duration{Duration: time.Minute})
	setDefault(&a.ReserveAfter, metav1.Duration{Duration: 5 * time.Minute})
	setDefault(&a.MaxReservations, 2)
	if a.TopologyDomains == nil {
		a.TopologyDomains = convert.DefaultTopologyDomains()
	}
}

func setDefault[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

// toInternal converts arguments whose defaults have been set.
func toInternal(in *GPUPackArgs, out *config.GPUPackArgs) {
	out.Policy = ptr.Deref(in.Policy, "")
	out.LoadWeight = ptr.Deref(in.LoadWeight, 0)
	out.StaleAfter = ptr.Deref(in.StaleAfter, metav1.Duration{})
	out.StalePolicy = convert.StalePolicy(ptr.Deref(in.StalePolicy, ""))
	out.WholeGPUForeignMiB = ptr.Deref(in.WholeGPUForeignMiB, 0)
	out.GangTimeout = ptr.Deref(in.GangTimeout, metav1.Duration{})
	out.ReserveAfter = ptr.Deref(in.ReserveAfter, metav1.Duration{})
	out.MaxReservations = ptr.Deref(in.MaxReservations, 0)
	out.TopologyDomains = in.TopologyDomains
}

func fromInternal(in *config.GPUPackArgs, out *GPUPackArgs) {
	out.Policy = ptr.To(in.Policy)
	out.LoadWeight = ptr.To(in.LoadWeight)
	out.StaleAfter = ptr.To(in.StaleAfter)
	out.StalePolicy = ptr.To(string(in.StalePolicy))
	out.WholeGPUForeignMiB = ptr.To(in.WholeGPUForeignMiB)
	out.GangTimeout = ptr.To(in.GangTimeout)
	out.ReserveAfter = ptr.To(in.ReserveAfter)
	out.MaxReservations = ptr.To(in.MaxReservations)
	out.TopologyDomains = in.TopologyDomains
}
