// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1 holds GPUPackArgs as users write them in a KubeSchedulerConfiguration of kubescheduler.config.k8s.io/v1.
//
// +kubebuilder:object:generate=true
package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// GPUPackArgs are the arguments of the GPUPack plugin. Each may be left out.
//
// +kubebuilder:object:root=true
type GPUPackArgs struct {
	metav1.TypeMeta `json:",inline"`

	// Policy is the name of the packing policy: gpupack, fgd, or another that docs/packing.md lists. Default: gpupack.
	Policy *string `json:"policy,omitempty"`
	// LoadWeight is how much a GPU at 100 % utilisation counts against a share that would go there, in percent of what
	// the share takes: 0 to 1000. 0 ignores utilisation. Default: 50.
	LoadWeight *int32 `json:"loadWeight,omitempty"`
	// StaleAfter is the age from which telemetry is stale. Agents write at least once a minute. Default: 3m.
	StaleAfter *metav1.Duration `json:"staleAfter,omitempty"`
	// StalePolicy is what to do with a node whose telemetry is stale: TrustRequests goes by what pods requested and adds
	// no pod that shares a GPU; Reject adds no GPU pod; TrustTelemetry goes on as if the last reading were true.
	// Default: TrustRequests.
	StalePolicy *string `json:"stalePolicy,omitempty"`
	// WholeGPUForeignMiB is how much memory processes of no pod may use on a GPU that is given away whole, in MiB.
	// Default: 512.
	WholeGPUForeignMiB *int64 `json:"wholeGPUForeignMiB,omitempty"`
	// GangTimeout is how long a planned gang may take until all its members are ready to be bound, where its PodGroup
	// has no scheduleTimeoutSeconds. Default: 1m.
	GangTimeout *metav1.Duration `json:"gangTimeout,omitempty"`
	// ReserveAfter is how long a gang or pod waits in vain before places are reserved for it, so that those that come later
	// do not take them one by one. 0s reserves none. Default: 5m.
	ReserveAfter *metav1.Duration `json:"reserveAfter,omitempty"`
	// MaxReservations is for how many gangs and pods places are reserved at a time, at least 1: the first in line by
	// priority, then age. Default: 2.
	MaxReservations *int32 `json:"maxReservations,omitempty"`
	// TopologyDomains has the node label that tells a node's domain, for each kind of domain that a PodGroup may name.
	// Default: zone: topology.kubernetes.io/zone, rack: topology.kubernetes.io/rack, nvlink: nvidia.com/gpu.clique.
	TopologyDomains map[string]string `json:"topologyDomains,omitempty"`
}
