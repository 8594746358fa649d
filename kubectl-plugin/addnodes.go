// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// moreNodes asks for nodes like those that have GPUs of a model.
type moreNodes struct {
	count int
	// model can be a part of the name that is in no other model's name.
	model string
}

// mostNodes bounds what one flag adds.
const mostNodes = 10_000

var moreNodesText = regexp.MustCompile(`^([0-9]+)x(.+)$`)

// parseMoreNodes reads 4xA100 or 4xA100,2xH100.
func parseMoreNodes(text string) ([]moreNodes, error) {
	var out []moreNodes
	for _, part := range strings.Split(text, ",") {
		part = strings.TrimSpace(part)
		fields := moreNodesText.FindStringSubmatch(part)
		if fields == nil {
			return nil, fmt.Errorf("%q is not a number of nodes and a GPU model, such as 4xA100", part)
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil || n < 1 || n > mostNodes {
			return nil, fmt.Errorf("%s nodes are not in 1 to %d", fields[1], mostNodes)
		}
		out = append(out, moreNodes{n, fields[2]})
	}
	return out, nil
}

// AddedNodes are nodes that were added to a snapshot.
type AddedNodes struct {
	Names []string `json:"names"`
	// Like is the node of which they are copies.
	Like  string `json:"like"`
	Model string `json:"model"`
	// GPUs of each.
	GPUs int `json:"gpus"`
}

// addNodes adds copies of nodes, with nothing on them.
func (s *snapshot) addNodes(more []moreNodes) ([]AddedNodes, error) {
	var out []AddedNodes
	for i := range more {
		model, err := s.findModel(more[i].model)
		if err != nil {
			return nil, err
		}
		node, gn := s.exampleOf(model)
		if node == nil {
			return nil, fmt.Errorf("no node has GPUs of model %s alone, so that there is none to copy", model)
		}
		added := AddedNodes{Like: node.Name, Model: model, GPUs: len(gn.Status.GPUs)}
		for n := 1; len(added.Names) < more[i].count; n++ {
			name := fmt.Sprintf("%s-new-%d", more[i].model, n)
			if s.hasNode(name) {
				continue
			}
			added.Names = append(added.Names, name)
			s.nodes = append(s.nodes, emptyNode(node, name, len(gn.Status.GPUs)))
			s.gpuNodes = append(s.gpuNodes, s.emptyGPUNode(gn, name))
		}
		s.sort()
		out = append(out, added)
	}
	return out, nil
}

// findModel returns the model of that name, or the only one in whose name the text is.
func (s *snapshot) findModel(text string) (string, error) {
	models := map[string]bool{}
	for i := range s.gpuNodes {
		for j := range s.gpuNodes[i].Status.GPUs {
			models[s.gpuNodes[i].Status.GPUs[j].Model] = true
		}
	}
	if models[text] {
		return text, nil
	}
	known := slices.Sorted(maps.Keys(models))
	similar := slices.DeleteFunc(slices.Clone(known), func(m string) bool {
		return !strings.Contains(strings.ToLower(m), strings.ToLower(text))
	})
	switch {
	case len(similar) == 1:
		return similar[0], nil
	case len(similar) > 1:
		return "", fmt.Errorf("%q is in the names of several GPU models: write one of %s", text, strings.Join(similar, ", "))
	case len(known) == 0:
		return "", fmt.Errorf("there is no node with GPUs of model %q to copy: the snapshot has no GPUs", text)
	}
	return "", fmt.Errorf("there is no node with GPUs of model %q to copy: the snapshot has %s", text, strings.Join(known, ", "))
}

// exampleOf returns the node with the most GPUs of which all are of the model, the first by name.
func (s *snapshot) exampleOf(model string) (*corev1.Node, *v1alpha1.GPUNode) {
	var node *corev1.Node
	var best *v1alpha1.GPUNode
	for i := range s.nodes {
		gn := s.gpuNode(s.nodes[i].Name)
		if gn == nil || len(gn.Status.GPUs) == 0 || convert.CheckTelemetry(gn) != nil {
			continue
		}
		other := func(g v1alpha1.GPU) bool { return g.Model != model }
		if !slices.ContainsFunc(gn.Status.GPUs, other) && (best == nil || len(gn.Status.GPUs) > len(best.Status.GPUs)) {
			node, best = &s.nodes[i], gn
		}
	}
	return node, best
}

func (s *snapshot) hasNode(name string) bool {
	return slices.ContainsFunc(s.nodes, func(n corev1.Node) bool { return n.Name == name })
}

// emptyNode is a node as the example was when it was new.
func emptyNode(example *corev1.Node, name string, gpus int) corev1.Node {
	node := example.DeepCopy()
	node.Name, node.UID = name, ""
	if node.Labels[corev1.LabelHostname] != "" {
		node.Labels[corev1.LabelHostname] = name
	}
	node.Spec.Unschedulable = false
	// Kubernetes itself sets these on nodes that something is the matter with.
	node.Spec.Taints = slices.DeleteFunc(node.Spec.Taints, func(t corev1.Taint) bool {
		return strings.HasPrefix(t.Key, "node.kubernetes.io/")
	})
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, list := range []corev1.ResourceList{node.Status.Capacity, node.Status.Allocatable} {
		// Sick GPUs are not advertised.
		if _, ok := list[v1alpha1.ResourceGPU]; ok {
			list[v1alpha1.ResourceGPU] = *resource.NewQuantity(int64(gpus), resource.DecimalSI)
		}
	}
	return *node
}

// emptyGPUNode is the telemetry of such a node.
func (s *snapshot) emptyGPUNode(example *v1alpha1.GPUNode, name string) v1alpha1.GPUNode {
	observed := metav1.NewMicroTime(s.now)
	gn := v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: name}}
	gn.Status = v1alpha1.GPUNodeStatus{
		ObservedTime: &observed, DriverVersion: example.Status.DriverVersion, Source: example.Status.Source, Mode: example.Status.Mode,
	}
	for i := range example.Status.GPUs {
		g := &example.Status.GPUs[i]
		gn.Status.GPUs = append(gn.Status.GPUs, v1alpha1.GPU{
			UUID: fmt.Sprintf("GPU-%s-%d", name, g.Index), Index: g.Index, Model: g.Model,
			MemoryTotalMiB: g.MemoryTotalMiB, MemoryReservedMiB: g.MemoryReservedMiB, Healthy: true,
		})
	}
	slices.SortFunc(gn.Status.GPUs, func(a, b v1alpha1.GPU) int { return cmp.Compare(a.Index, b.Index) })
	return gn
}
