// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package config holds GPUPackArgs, the arguments of the GPUPack plugin in a KubeSchedulerConfiguration, in the form that
// the plugin uses. Package v1 has the form that users write.
//
// +kubebuilder:object:generate=true
package config

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/api/convert"
)

// GPUPackArgs are the arguments of the GPUPack plugin.
//
// +kubebuilder:object:root=true
type GPUPackArgs struct {
	metav1.TypeMeta

	// Policy is the name of the packing policy.
	Policy string
	// LoadWeight is how much a GPU at 100 % utilisation counts against a share that would go there, in percent of what
	// the share takes: 0 to 1000. 0 ignores utilisation.
	LoadWeight int32
	// StaleAfter is the age from which telemetry is stale.
	StaleAfter metav1.Duration
	// StalePolicy is what to do with a node whose telemetry is stale.
	StalePolicy convert.StalePolicy
	// WholeGPUForeignMiB is how much memory processes of no pod may use on a GPU that is given away whole, in MiB.
	WholeGPUForeignMiB int64
	// GangTimeout is how long a planned gang may take until all its members are ready to be bound, where its PodGroup has
	// no scheduleTimeoutSeconds.
	GangTimeout metav1.Duration
	// ReserveAfter is how long a gang or pod waits in vain before places are reserved for it; 0 reserves none.
	ReserveAfter metav1.Duration
	// MaxReservations is for how many gangs and pods places are reserved at a time, at least 1: the first in line.
	MaxReservations int32
	// TopologyDomains has the node label that tells a node's domain, for each kind of domain that a PodGroup may name.
	TopologyDomains map[string]string
}
