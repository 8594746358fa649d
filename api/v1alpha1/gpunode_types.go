// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ConditionReady is true while the agent can read every GPU of its node.
const ConditionReady = "Ready"

// Source says where the figures of a GPUNode come from.
// +kubebuilder:validation:Enum=hardware;simulated;replay
type Source string

// Sources.
const (
	SourceHardware  Source = "hardware"
	SourceSimulated Source = "simulated"
	SourceReplay    Source = "replay"
)

// Mode says who hands GPUs to containers on a node.
// +kubebuilder:validation:Enum=observe;manage
type Mode string

// Modes.
const (
	// ModeObserve leaves that to NVIDIA's device plugin; the agent only reports what happened.
	ModeObserve Mode = "observe"
	// ModeManage means that gpupack-agent gives a container exactly the GPUs in AnnotationGPUs.
	ModeManage Mode = "manage"
)

// UnhealthyReason says why a GPU must not be chosen.
type UnhealthyReason string

// Reasons for which an agent reports a GPU as unhealthy.
const (
	ReasonXid             UnhealthyReason = "Xid"
	ReasonECC             UnhealthyReason = "ECC"
	ReasonRowRemapPending UnhealthyReason = "RowRemapPending"
	ReasonLost            UnhealthyReason = "FellOffTheBus"
	ReasonThrottled       UnhealthyReason = "Throttled"
	ReasonNotResponding   UnhealthyReason = "NotResponding"
)

// GPUNode is what the agent of one node sees of the node's GPUs. It has the name of its Node and is owned by it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=gpun,categories=gpupack
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="GPUs",type=string,JSONPath=`.status.summary.gpus`
// +kubebuilder:printcolumn:name="Model",type=string,JSONPath=`.status.summary.model`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.status.mode`
// +kubebuilder:printcolumn:name="Source",type=string,priority=1,JSONPath=`.status.source`
// +kubebuilder:printcolumn:name="Driver",type=string,priority=1,JSONPath=`.status.driverVersion`
// +kubebuilder:printcolumn:name="Observed",type=date,JSONPath=`.status.observedTime`
type GPUNode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec GPUNodeSpec `json:"spec,omitempty,omitzero"`

	// +optional
	Status GPUNodeStatus `json:"status,omitempty"`
}

// GPUNodeSpec is what operators want of a node's GPUs. Agents write the status alone.
type GPUNodeSpec struct {
	// CordonedGPUs get no new pods; those that they have stay. A UUID once.
	// +listType=map
	// +listMapKey=uuid
	// +kubebuilder:validation:MaxItems=32
	// +optional
	CordonedGPUs []CordonedGPU `json:"cordonedGPUs,omitempty"`
}

// CordonedGPU is a GPU that is to get no new pods.
type CordonedGPU struct {
	// UUID of the GPU, as in the status.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=96
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9][-A-Za-z0-9_.]*$`
	UUID string `json:"uuid"`

	// Reason is why, for people.
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Reason string `json:"reason,omitempty"`

	// By is the user who did so.
	// +kubebuilder:validation:MaxLength=256
	// +optional
	By string `json:"by,omitempty"`

	// Since is when that was.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
}

// Cordon returns what is said of a GPU that is cordoned; nil for one that is not.
func (s *GPUNodeSpec) Cordon(uuid string) *CordonedGPU {
	for i := range s.CordonedGPUs {
		if s.CordonedGPUs[i].UUID == uuid {
			return &s.CordonedGPUs[i]
		}
	}
	return nil
}

// String says so in a few words, such as "cordoned by ada: fan is loud".
func (c *CordonedGPU) String() string {
	out := "cordoned"
	if c.By != "" {
		out += " by " + c.By
	}
	if c.Reason != "" {
		out += ": " + c.Reason
	}
	return out
}

// GPUNodeStatus is one reading of a node's GPUs.
//
// +kubebuilder:validation:XValidation:rule="!has(self.gpus) || self.gpus.all(g, self.gpus.exists_one(h, h.index == g.index))",message="two GPUs have the same index",fieldPath=".gpus"
type GPUNodeStatus struct {
	// ObservedTime is when the figures were read. The scheduler treats a reading that is too old as stale.
	// +optional
	ObservedTime *metav1.MicroTime `json:"observedTime,omitempty"`

	// +kubebuilder:validation:MaxLength=64
	// +optional
	DriverVersion string `json:"driverVersion,omitempty"`

	// +optional
	Source Source `json:"source,omitempty"`

	// +kubebuilder:default=observe
	// +optional
	Mode Mode `json:"mode,omitempty"`

	// Summary repeats what `kubectl get gpunodes` prints.
	// +optional
	Summary GPUNodeSummary `json:"summary,omitempty"`

	// GPUs of the node, a UUID once.
	// +listType=map
	// +listMapKey=uuid
	// +kubebuilder:validation:MaxItems=32
	// +optional
	GPUs []GPU `json:"gpus,omitempty"`

	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// GPUNodeSummary is a reading in two words.
type GPUNodeSummary struct {
	// GPUs is "healthy/all".
	// +kubebuilder:validation:MaxLength=16
	// +optional
	GPUs string `json:"gpus,omitempty"`
	// Model is the model of the node's GPUs; "mixed" where there are several.
	// +kubebuilder:validation:MaxLength=64
	// +optional
	Model string `json:"model,omitempty"`
}

// GPU is one reading of one GPU.
//
// +kubebuilder:validation:XValidation:rule="self.memoryReservedMiB <= self.memoryTotalMiB",message="memoryReservedMiB is above memoryTotalMiB"
// +kubebuilder:validation:XValidation:rule="self.memoryUsedMiB <= self.memoryTotalMiB",message="memoryUsedMiB is above memoryTotalMiB"
// +kubebuilder:validation:XValidation:rule="self.memoryForeignMiB <= self.memoryUsedMiB",message="memoryForeignMiB is above memoryUsedMiB"
// +kubebuilder:validation:XValidation:rule="self.healthy || (has(self.unhealthyReason) && size(self.unhealthyReason) > 0)",message="an unhealthy GPU needs an unhealthyReason"
type GPU struct {
	// UUID as NVML gives it, "GPU-" and more.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=96
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9][-A-Za-z0-9_.]*$`
	UUID string `json:"uuid"`

	// Index of the GPU on its node, as NVML orders them.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	Index int32 `json:"index"`

	// Model in the form of a node label's value, such as "A100-SXM4-80GB".
	// +kubebuilder:validation:MaxLength=64
	// +optional
	Model string `json:"model,omitempty"`

	// MemoryTotalMiB is the device memory of the GPU.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16777216
	MemoryTotalMiB int64 `json:"memoryTotalMiB"`

	// MemoryReservedMiB is what the driver keeps for itself. No pod can have it.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:default=0
	// +optional
	MemoryReservedMiB int64 `json:"memoryReservedMiB"`

	// MemoryUsedMiB is what all processes use, without the driver's reserve.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:default=0
	// +optional
	MemoryUsedMiB int64 `json:"memoryUsedMiB"`

	// MemoryForeignMiB is the part of MemoryUsedMiB used by processes that belong to no pod.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:default=0
	// +optional
	MemoryForeignMiB int64 `json:"memoryForeignMiB"`

	// Utilization is the share of time in which a kernel ran, percent, smoothed.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	// +kubebuilder:default=0
	// +optional
	Utilization int32 `json:"utilization"`

	// MemoryBandwidthUtilization is the share of time in which device memory was read or written, percent, smoothed.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	// +optional
	MemoryBandwidthUtilization int32 `json:"memoryBandwidthUtilization,omitempty"`

	// PowerMilliwatts is the power drawn.
	// +kubebuilder:validation:Minimum=0
	// +optional
	PowerMilliwatts int64 `json:"powerMilliwatts,omitempty"`

	// TemperatureCelsius is the core temperature.
	// +kubebuilder:validation:Minimum=-100
	// +kubebuilder:validation:Maximum=300
	// +optional
	TemperatureCelsius int32 `json:"temperatureCelsius,omitempty"`

	// Healthy is false while the GPU must not get new pods.
	Healthy bool `json:"healthy"`

	// UnhealthyReason is one CamelCase word: Xid, ECC, RowRemapPending, FellOffTheBus, Throttled or NotResponding.
	// +kubebuilder:validation:MaxLength=64
	// +optional
	UnhealthyReason UnhealthyReason `json:"unhealthyReason,omitempty"`

	// UnhealthyMessage is the detail, such as "Xid 79: GPU has fallen off the bus".
	// +kubebuilder:validation:MaxLength=256
	// +optional
	UnhealthyMessage string `json:"unhealthyMessage,omitempty"`

	// MIGDevices of a GPU in MIG mode.
	// +listType=map
	// +listMapKey=uuid
	// +kubebuilder:validation:MaxItems=16
	// +optional
	MIGDevices []MIGDevice `json:"migDevices,omitempty"`

	// NVLinkPeers are the UUIDs of the GPUs that NVLink joins to this one.
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=96
	// +optional
	NVLinkPeers []string `json:"nvlinkPeers,omitempty"`

	// Pods that have this GPU, or a share of it.
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=256
	// +optional
	Pods []GPUPod `json:"pods,omitempty"`
}

// MIGDevice is one instance of a partitioned GPU.
type MIGDevice struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=96
	UUID string `json:"uuid"`
	// Profile such as "1g.10gb".
	// +kubebuilder:validation:MaxLength=32
	Profile string `json:"profile"`
	// +kubebuilder:validation:Minimum=0
	MemoryTotalMiB int64 `json:"memoryTotalMiB"`
	// +kubebuilder:validation:Minimum=0
	// +optional
	MemoryUsedMiB int64 `json:"memoryUsedMiB,omitempty"`
}

// GPUPod is one pod's use of one GPU.
type GPUPod struct {
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// +kubebuilder:validation:MaxLength=253
	Name string    `json:"name"`
	UID  types.UID `json:"uid"`
	// MemoryUsedMiB is what the pod's processes use of the GPU's memory.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:default=0
	// +optional
	MemoryUsedMiB int64 `json:"memoryUsedMiB"`
	// Utilization is the pod's part of the GPU's utilisation, percent, smoothed.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	// +optional
	Utilization int32 `json:"utilization,omitempty"`
}

// GPUNodeList is a list of GPUNode.
//
// +kubebuilder:object:root=true
type GPUNodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GPUNode `json:"items"`
}
