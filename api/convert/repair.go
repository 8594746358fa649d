// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// RepairState says how far the repair of a gang has come.
type RepairState string

const (
	// RepairWaiting: a member is lost, and the back-off runs.
	RepairWaiting RepairState = "Waiting"
	// RepairEnding: members are being deleted.
	RepairEnding RepairState = "Ending"
	// RepairPlacing: what had to end has been told to, and the gang waits to run whole again.
	RepairPlacing RepairState = "Placing"
	// RepairDone: the gang runs whole again, or its owner was faster.
	RepairDone RepairState = "Done"
	// RepairLimitReached: the gang has been repaired too often, and is left as it is.
	RepairLimitReached RepairState = "LimitReached"
)

// Repair is the record of the last repair of a gang, kept on the PodGroup in v1alpha1.AnnotationRepair.
type Repair struct {
	State  RepairState               `json:"state"`
	Policy v1alpha1.MemberLossPolicy `json:"policy"`
	// Cause is why the member is lost, one CamelCase word.
	Cause string `json:"cause"`
	// Member is the pod that was lost, of several the first by name.
	Member string    `json:"member"`
	UID    types.UID `json:"uid"`
	// Message says it in a sentence.
	Message string `json:"message"`
	// Seen is when the loss was seen, and NotBefore when the back-off ends.
	Seen      metav1.Time `json:"seen"`
	NotBefore metav1.Time `json:"notBefore"`
	// Born is when the youngest member was created that the gang had when the loss was seen. Members created later are
	// of the gang made anew.
	Born metav1.Time `json:"born"`
}

// LastRepair reads the record of a PodGroup's last repair; nil where there was none. The error says what is wrong with the
// annotation.
func LastRepair(group *schedulingv1alpha1.PodGroup) (*Repair, error) {
	text, ok := group.Annotations[v1alpha1.AnnotationRepair]
	if !ok {
		return nil, nil
	}
	var r Repair
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, fmt.Errorf("PodGroup %s has an annotation %s that gpupack-controller did not write, remove it: %w",
			group.Name, v1alpha1.AnnotationRepair, err)
	}
	return &r, nil
}

// IsEnding says whether the gang is about to be ended whole. Members must not be placed then: they would be apart from those
// that are made anew.
func IsEnding(group *schedulingv1alpha1.PodGroup) bool {
	r, err := LastRepair(group)
	return err == nil && r != nil && r.Policy == v1alpha1.RestartGang && (r.State == RepairWaiting || r.State == RepairEnding)
}
