// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"testing"

	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func TestGang(t *testing.T) {
	for name, c := range map[string]struct {
		minMember   int32
		annotations map[string]string
		want        GangSpec
		wrong       string
	}{
		"nothing said": {want: GangSpec{MinMember: 1, OnMemberLoss: v1alpha1.RestartGang}},
		"preferred domain": {
			minMember:   8,
			annotations: map[string]string{"gpupack.dev/topology": "rack"},
			want:        GangSpec{MinMember: 8, Topology: "rack", OnMemberLoss: v1alpha1.RestartGang},
		},
		"required domain": {
			minMember:   8,
			annotations: map[string]string{"gpupack.dev/topology-required": "nvlink", "gpupack.dev/on-member-loss": "ignore"},
			want:        GangSpec{MinMember: 8, Topology: "nvlink", TopologyRequired: true, OnMemberLoss: v1alpha1.IgnoreLoss},
		},
		"two domains": {
			annotations: map[string]string{"gpupack.dev/topology": "rack", "gpupack.dev/topology-required": "zone"},
			want:        GangSpec{MinMember: 1, OnMemberLoss: v1alpha1.RestartGang},
			wrong:       `PodGroup train has annotation gpupack.dev/topology of "rack" and gpupack.dev/topology-required of "zone": keep one of them`,
		},
		"empty domain": {
			annotations: map[string]string{"gpupack.dev/topology": ""},
			want:        GangSpec{MinMember: 1, OnMemberLoss: v1alpha1.RestartGang},
			wrong:       "name a kind of domain, such as rack",
		},
		"unknown policy": {
			annotations: map[string]string{"gpupack.dev/topology": "rack", "gpupack.dev/on-member-loss": "pray"},
			want:        GangSpec{MinMember: 1, Topology: "rack", OnMemberLoss: v1alpha1.RestartGang},
			wrong:       `annotation gpupack.dev/on-member-loss of "pray": write restart-gang, replace-member or ignore`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			group := &schedulingv1alpha1.PodGroup{
				ObjectMeta: metav1.ObjectMeta{Name: "train", Annotations: c.annotations},
				Spec:       schedulingv1alpha1.PodGroupSpec{MinMember: c.minMember},
			}
			got, err := Gang(group)
			assert.Equal(t, c.want, got)
			if c.wrong == "" {
				assert.NoError(t, err)
			} else {
				assert.ErrorContains(t, err, c.wrong)
			}
		})
	}
}
