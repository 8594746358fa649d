// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// DefaultTopologyDomains has the node label that tells a node's domain, by kind of domain, where the operator did not choose.
func DefaultTopologyDomains() map[string]string {
	return map[string]string{
		"zone": corev1.LabelTopologyZone, "rack": "topology.kubernetes.io/rack", "nvlink": "nvidia.com/gpu.clique",
	}
}

// HeldMember is a member of a gang that has its place.
type HeldMember struct {
	// Name of the pod.
	Name string
	Node string
}

// GangDomains reads the domains in which the gang of a PodGroup should stay from the labels of nodes; nil where it asks for none.
// labels has the label of each kind of domain. The error is why the gang cannot be placed, in one sentence.
func GangDomains(group string, spec *GangSpec, labels map[string]string, nodes []*corev1.Node, held []HeldMember) (*pack.Domains, error) {
	if spec.Topology == "" {
		return nil, nil
	}
	kind := spec.Topology
	label, ok := labels[kind]
	if !ok {
		return nil, unknownDomain(group, spec, labels)
	}
	d := &pack.Domains{Kind: kind, Required: spec.TopologyRequired, Of: make([]int, len(nodes))}
	at := map[string]int{}
	for _, node := range nodes {
		if name := node.Labels[label]; name != "" {
			at[name] = 0
		}
	}
	if len(at) == 0 && d.Required {
		return nil, fmt.Errorf("PodGroup %s must be in one %s, but no node has the label %s that tells its %s: label the nodes",
			group, kind, label, kind)
	}
	d.Names = slices.SortedFunc(maps.Keys(at), compareNames)
	for i, name := range d.Names {
		at[name] = i
	}
	byNode := make(map[string]int, len(nodes))
	for i, node := range nodes {
		d.Of[i] = -1
		if name := node.Labels[label]; name != "" {
			d.Of[i] = at[name]
		}
		byNode[node.Name] = d.Of[i]
	}
	used := sets.New[int]()
	for _, m := range held {
		domain, ok := byNode[m.Node]
		switch {
		case !ok:
			// The node is gone, and the member will be.
		case domain >= 0:
			used.Insert(domain)
		case d.Required:
			return nil, fmt.Errorf("PodGroup %s must be in one %s, but its member %s has node %s without the label %s: label the node, or delete that member",
				group, kind, m.Name, m.Node, label)
		}
	}
	d.Held = sets.List(used)
	if d.Required && len(d.Held) > 1 {
		names := make([]string, len(d.Held))
		for i, domain := range d.Held {
			names[i] = d.Names[domain]
		}
		return nil, fmt.Errorf("PodGroup %s must be in one %s, but members are in %d of them already (%s): delete those in all but one",
			group, kind, len(names), strings.Join(names, ", "))
	}
	return d, nil
}

func unknownDomain(group string, spec *GangSpec, known map[string]string) error {
	annotation := v1alpha1.AnnotationTopology
	if spec.TopologyRequired {
		annotation = v1alpha1.AnnotationTopologyRequired
	}
	if len(known) == 0 {
		return fmt.Errorf("PodGroup %s has annotation %s of %q, but this scheduler knows no kind of domain: set topologyDomains in its configuration",
			group, annotation, spec.Topology)
	}
	return fmt.Errorf("PodGroup %s has annotation %s of %q, a kind of domain that this scheduler does not know: write one of %s",
		group, annotation, spec.Topology, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
}

// compareNames orders names, shorter ones first so that rack-10 follows rack-9.
func compareNames(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}
