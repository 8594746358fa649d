// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"

	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// GangSpec is what a PodGroup says of its gang.
type GangSpec struct {
	// MinMember is how many members must be placed together, 1 or more.
	MinMember int
	// Topology is the kind of domain that the gang should stay within; empty for none.
	Topology string
	// TopologyRequired says that the gang must not leave one domain.
	TopologyRequired bool
	// OnMemberLoss is what to do when a member is lost.
	OnMemberLoss v1alpha1.MemberLossPolicy
}

// Gang reads a PodGroup. The error names what is wrong, and what to write instead; the other fields are then as they should be.
func Gang(group *schedulingv1alpha1.PodGroup) (GangSpec, error) {
	s := GangSpec{MinMember: max(1, int(group.Spec.MinMember)), OnMemberLoss: v1alpha1.RestartGang}
	var wrong error
	preferred, prefers := group.Annotations[v1alpha1.AnnotationTopology]
	required, requires := group.Annotations[v1alpha1.AnnotationTopologyRequired]
	switch {
	case prefers && requires && preferred != required:
		wrong = fmt.Errorf("PodGroup %s has annotation %s of %q and %s of %q: keep one of them",
			group.Name, v1alpha1.AnnotationTopology, preferred, v1alpha1.AnnotationTopologyRequired, required)
	case prefers && preferred == "" || requires && required == "":
		wrong = fmt.Errorf("PodGroup %s has an empty annotation %s or %s: name a kind of domain, such as rack",
			group.Name, v1alpha1.AnnotationTopology, v1alpha1.AnnotationTopologyRequired)
	case requires:
		s.Topology, s.TopologyRequired = required, true
	case prefers:
		s.Topology = preferred
	}
	if text, ok := group.Annotations[v1alpha1.AnnotationOnMemberLoss]; ok {
		switch loss := v1alpha1.MemberLossPolicy(text); loss {
		case v1alpha1.RestartGang, v1alpha1.ReplaceMember, v1alpha1.IgnoreLoss:
			s.OnMemberLoss = loss
		default:
			wrong = fmt.Errorf("PodGroup %s has annotation %s of %q: write %s, %s or %s",
				group.Name, v1alpha1.AnnotationOnMemberLoss, text, v1alpha1.RestartGang, v1alpha1.ReplaceMember, v1alpha1.IgnoreLoss)
		}
	}
	return s, wrong
}
