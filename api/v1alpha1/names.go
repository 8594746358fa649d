// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import corev1 "k8s.io/api/core/v1"

// SchedulerName is what a pod writes in spec.schedulerName to be placed by gpupack-scheduler.
const SchedulerName = "gpupack"

// SystemNamespace is where gpupack's own parts run.
const SystemNamespace = "gpupack-system"

// WorkloadClassesConfigMap is where gpupack-scheduler keeps, in its own namespace and under the key PROFILE.json, what it has
// learned of the workloads to come.
const WorkloadClassesConfigMap = "gpupack-workload-classes"

// Resources that a container requests.
const (
	// ResourceGPU counts whole GPUs.
	ResourceGPU corev1.ResourceName = "nvidia.com/gpu"
	// ResourceGPUMemory is a share of one GPU: that many bytes of its device memory, rounded up to MiB.
	ResourceGPUMemory corev1.ResourceName = GroupName + "/gpu-memory"
	// ResourceGPUMilli is a share of one GPU: thousandths of its compute, 1 to 1000. Alone, it implies the same share
	// of the GPU's memory.
	ResourceGPUMilli corev1.ResourceName = GroupName + "/gpu-milli"
)

// Annotations that a user writes on a pod.
const (
	// AnnotationGPUModel lists the accepted models, separated by commas.
	AnnotationGPUModel = GroupName + "/gpu-model"
	// AnnotationMaxLiveUtilization forbids sharing a GPU that is busier than this, percent, 1 to 100.
	AnnotationMaxLiveUtilization = GroupName + "/max-live-utilization"
	// AnnotationScaleDown, on the pods of a ReplicaSet, says which of them scale-down should remove first: ScaleDownFreeGPUs.
	AnnotationScaleDown = GroupName + "/scale-down"
)

// ScaleDownFreeGPUs removes those pods first whose loss sets whole GPUs and nodes free.
const ScaleDownFreeGPUs = "free-gpus"

// AnnotationLastCheckpoint is when a pod last saved what it had done, as a time of RFC 3339 such as 2026-01-31T09:30:00Z. Of
// pods that preemption could evict, those go first that lose least since.
const AnnotationLastCheckpoint = GroupName + "/last-checkpoint"

// Annotations that a user writes on a PodGroup.
const (
	// AnnotationTopology names the kind of domain, such as rack, in as few of which as possible the gang is placed.
	AnnotationTopology = GroupName + "/topology"
	// AnnotationTopologyRequired names the kind of domain of which one must take the whole gang.
	AnnotationTopologyRequired = GroupName + "/topology-required"
	// AnnotationOnMemberLoss is a MemberLossPolicy.
	AnnotationOnMemberLoss = GroupName + "/on-member-loss"
	// AnnotationMaxRestarts is how many repairs gpupack-controller makes before it leaves the gang as it is, 0 or more.
	AnnotationMaxRestarts = GroupName + "/max-restarts"
)

// Annotations that gpupack-controller writes on a PodGroup.
const (
	// AnnotationRestarts counts the repairs since the gang last ran well. Whoever removes it lets the count begin anew.
	AnnotationRestarts = GroupName + "/restarts"
	// AnnotationRepair holds the last repair in JSON, see convert.Repair.
	AnnotationRepair = GroupName + "/repair"
)

// AnnotationReplaces is what gpupack-controller writes on a pod that it made in place of a lost one: the UID of that one.
const AnnotationReplaces = GroupName + "/replaces"

// LabelRepairOf marks a PodTemplate in which gpupack-controller keeps a pod that it is about to make anew. Its value is the
// name of the PodGroup.
const LabelRepairOf = GroupName + "/repair-of"

// MemberLossPolicy is what happens to a gang when a member, its node or its GPU is lost.
type MemberLossPolicy string

const (
	// RestartGang ends the other members too, so that the whole gang starts anew elsewhere. The default.
	RestartGang MemberLossPolicy = "restart-gang"
	// ReplaceMember ends the lost member alone, so that another takes its place.
	ReplaceMember MemberLossPolicy = "replace-member"
	// IgnoreLoss leaves the gang to its owner.
	IgnoreLoss MemberLossPolicy = "ignore"
)

// Annotations that gpupack-scheduler writes on a pod before it binds it.
const (
	// AnnotationGPUs holds the UUIDs of the GPUs chosen, separated by commas.
	AnnotationGPUs = GroupName + "/gpus"
	// AnnotationDecision holds a Decision in JSON.
	AnnotationDecision = GroupName + "/decision"
)

// LabelPodGroup makes a pod a member of the PodGroup of that name in the pod's namespace. It is the label of the
// scheduler-plugins project, so that operators which already write it work unchanged.
const LabelPodGroup = "scheduling.x-k8s.io/pod-group"

// Decision is the record of why a pod was placed where it is, kept on the pod in AnnotationDecision.
type Decision struct {
	// Policy is the name of the packing policy that decided.
	Policy string `json:"policy"`
	// Score is what the policy gave the chosen node, 0 to 100.
	Score int64 `json:"score"`
	// RunnerUp is the next best node; empty where no other node fitted.
	RunnerUp string `json:"runnerUp,omitempty"`
	// RunnerUpScore is what the policy gave RunnerUp, 0 to 100.
	RunnerUpScore int64 `json:"runnerUpScore,omitempty"`
	// Feasible counts the nodes that fitted: those with room for the pod, less those found to be ruled out by something else, such
	// as a taint. Where the best nodes suited the pod, nobody asked that of the others.
	Feasible int `json:"feasible"`
	// Rejected counts the nodes that gpupack found without room, by reason.
	Rejected map[string]int `json:"rejected,omitempty"`
	// Gang is the PodGroup with which the pod was placed, if any.
	Gang string `json:"gang,omitempty"`
}
