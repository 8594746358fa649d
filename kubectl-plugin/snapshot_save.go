// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// Snapshot is what kubectl gpupack snapshot writes: a cluster at one time, as far as it decides where pods go. The items are
// the API's own objects with less in them. The list is not a v1 List, so that kubectl apply and delete refuse the file
// instead of doing with a cluster's nodes what it says.
type Snapshot struct {
	metav1.TypeMeta `json:",inline"`
	// TakenAt is when the cluster was like this. Ages, such as that of telemetry, are up to this time.
	TakenAt metav1.MicroTime `json:"takenAt"`
	// Items are Nodes, GPUNodes, PodGroups, PriorityClasses, the ConfigMap of workload classes, and Pods.
	Items []any `json:"items"`
}

const kindSnapshot = "Snapshot"

func (e *env) snapshotCommand() *cobra.Command {
	out := output{format: "yaml"}
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Write down the cluster, for simulate --snapshot",
		Long: "Write down what decides where GPU pods go: nodes, GPUNodes, PodGroups, priority classes, what the scheduler has learned, the\n" +
			"pods that have a node, and those that wait for gpupack. Images, commands, environment, volumes other than claims, and all\n" +
			"annotations that are not gpupack's are left out.",
		Example: "  kubectl gpupack snapshot > cluster.yaml\n  kubectl gpupack simulate --snapshot cluster.yaml --add-nodes 4xA100",
		Args:    exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out.format != "json" && out.format != "yaml" {
				return usagef(cmd, "-o %s is not an output format: use one of yaml, json", out.format)
			}
			p, err := out.printer(cmd)
			if err != nil {
				return err
			}
			r, err := e.reader()
			if err != nil {
				return err
			}
			every := metav1.NamespaceAll
			s, err := read(cmd.Context(), r, e.now(), scope{nodes: everything(), gpuNodes: true, podGroups: &every, priorityClasses: true,
				workloadClasses: true,
				pods: &podScope{live: true, keep: func(p *corev1.Pod) bool {
					if !matters(p) {
						return false
					}
					*p = *essentialPod(p)
					return true
				}}})
			if err != nil {
				return err
			}
			s.sayWhatIsMissing(e.ErrOut, len(s.nodes))
			return printObject(p, e.Out, s.save())
		},
	}
	cmd.Flags().StringVarP(&out.format, "output", "o", out.format, "Output format: yaml, json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"yaml", "json"}, cobra.ShellCompDirectiveNoFileComp))
	acceptAllNamespaces(cmd)
	return cmd
}

// matters says whether a pod takes part in what is placed: it holds something of a node, or waits for gpupack.
func matters(pod *corev1.Pod) bool {
	if convert.IsTerminal(pod) {
		return false
	}
	return pod.Spec.NodeName != "" || pod.Spec.SchedulerName == v1alpha1.SchedulerName && pod.DeletionTimestamp == nil
}

// save returns the snapshot as an object to print.
func (s *snapshot) save() *Snapshot {
	out := &Snapshot{TypeMeta: typeMeta(kindSnapshot), TakenAt: metav1.NewMicroTime(s.now.UTC()), Items: []any{}}
	for i := range s.nodes {
		out.Items = append(out.Items, essentialNode(&s.nodes[i]))
	}
	for i := range s.gpuNodes {
		gn := &s.gpuNodes[i]
		out.Items = append(out.Items, &v1alpha1.GPUNode{
			TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: "GPUNode"},
			ObjectMeta: metav1.ObjectMeta{Name: gn.Name},
			Spec:       gn.Spec,
			Status:     gn.Status,
		})
	}
	for i := range s.podGroups {
		g := &s.podGroups[i]
		out.Items = append(out.Items, &podgroupv1alpha1.PodGroup{
			TypeMeta:   metav1.TypeMeta{APIVersion: podgroupv1alpha1.SchemeGroupVersion.String(), Kind: "PodGroup"},
			ObjectMeta: essentialMeta(&g.ObjectMeta),
			Spec:       g.Spec,
		})
	}
	for i := range s.priorityClasses {
		p := &s.priorityClasses[i]
		out.Items = append(out.Items, &schedulingv1.PriorityClass{
			TypeMeta:   metav1.TypeMeta{APIVersion: schedulingv1.SchemeGroupVersion.String(), Kind: "PriorityClass"},
			ObjectMeta: metav1.ObjectMeta{Name: p.Name},
			Value:      p.Value, GlobalDefault: p.GlobalDefault, PreemptionPolicy: p.PreemptionPolicy,
		})
	}
	if cm := s.workloadClasses; cm != nil {
		out.Items = append(out.Items, &corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{Namespace: cm.Namespace, Name: cm.Name},
			Data:       cm.Data,
		})
	}
	for i := range s.pods {
		out.Items = append(out.Items, essentialPod(&s.pods[i]))
	}
	return out
}

// essentialMeta is what matters of an object's metadata.
func essentialMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, Labels: m.Labels,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
	}
	for key, value := range m.Annotations {
		if strings.HasPrefix(key, v1alpha1.GroupName+"/") {
			metav1.SetMetaDataAnnotation(&out, key, value)
		}
	}
	for i := range m.OwnerReferences {
		// Whether a pod comes back when its node is drained depends on who controls it.
		if o := &m.OwnerReferences[i]; o.Controller != nil && *o.Controller {
			out.OwnerReferences = append(out.OwnerReferences, *o)
		}
	}
	return out
}

func essentialNode(node *corev1.Node) *corev1.Node {
	out := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, Labels: node.Labels, CreationTimestamp: node.CreationTimestamp},
		Spec:       corev1.NodeSpec{Unschedulable: node.Spec.Unschedulable, Taints: node.Spec.Taints},
		Status:     corev1.NodeStatus{Capacity: node.Status.Capacity, Allocatable: node.Status.Allocatable},
	}
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == corev1.NodeReady {
			out.Status.Conditions = append(out.Status.Conditions, corev1.NodeCondition{Type: c.Type, Status: c.Status})
		}
	}
	return out
}

// essentialPod is a pod as far as schedulers look at it.
func essentialPod(pod *corev1.Pod) *corev1.Pod {
	spec := &pod.Spec
	out := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: essentialMeta(&pod.ObjectMeta),
		Spec: corev1.PodSpec{
			SchedulerName: spec.SchedulerName, NodeName: spec.NodeName, NodeSelector: spec.NodeSelector, Affinity: spec.Affinity,
			Tolerations: spec.Tolerations, TopologySpreadConstraints: spec.TopologySpreadConstraints,
			Priority: spec.Priority, PriorityClassName: spec.PriorityClassName, PreemptionPolicy: spec.PreemptionPolicy,
			Overhead: spec.Overhead, Resources: spec.Resources, SchedulingGates: spec.SchedulingGates,
			ResourceClaims: spec.ResourceClaims, HostNetwork: spec.HostNetwork,
			InitContainers: essentialContainers(spec.InitContainers),
			Containers:     essentialContainers(spec.Containers),
		},
		Status: corev1.PodStatus{
			Phase:                 pod.Status.Phase,
			ContainerStatuses:     essentialStatuses(pod.Status.ContainerStatuses, spec.Containers),
			InitContainerStatuses: essentialStatuses(pod.Status.InitContainerStatuses, spec.InitContainers),
		},
	}
	for i := range spec.Volumes {
		if v := &spec.Volumes[i]; v.PersistentVolumeClaim != nil {
			out.Spec.Volumes = append(out.Spec.Volumes, corev1.Volume{Name: v.Name,
				VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: v.PersistentVolumeClaim}})
		}
	}
	// While a pod is resized in place, these say what it holds until then.
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress {
			out.Status.Conditions = append(out.Status.Conditions, corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: c.Reason})
		}
	}
	return out
}

func essentialContainers(list []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range list {
		c := corev1.Container{Name: list[i].Name, RestartPolicy: list[i].RestartPolicy}
		c.Resources.Requests, c.Resources.Claims = list[i].Resources.Requests, list[i].Resources.Claims
		for _, p := range list[i].Ports {
			if p.HostPort > 0 {
				c.Ports = append(c.Ports, p)
			}
		}
		out = append(out, c)
	}
	return out
}

// essentialStatuses keeps what containers were given where that is not what they ask for, as while they are resized in place.
func essentialStatuses(list []corev1.ContainerStatus, containers []corev1.Container) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range list {
		c := &list[i]
		of := slices.IndexFunc(containers, func(other corev1.Container) bool { return other.Name == c.Name })
		if c.Resources == nil || of < 0 {
			continue
		}
		asked := containers[of].Resources.Requests
		if equality.Semantic.DeepEqual(asked, c.Resources.Requests) && equality.Semantic.DeepEqual(asked, c.AllocatedResources) {
			continue
		}
		out = append(out, corev1.ContainerStatus{Name: c.Name, AllocatedResources: c.AllocatedResources,
			Resources: &corev1.ResourceRequirements{Requests: c.Resources.Requests}})
	}
	return out
}
