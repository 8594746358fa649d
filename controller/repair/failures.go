// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gpupack/gpupack/controller/members"
)

// failures are pods that were seen to fail and of which no record tells yet. Operators delete a failed pod and make another
// within milliseconds; the gang has lost a member all the same. What is here is lost with the process.
type failures struct {
	mu      sync.Mutex
	byGroup map[types.NamespacedName]map[types.UID]*corev1.Pod
}

func (f *failures) add(pod *corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	group := members.GroupOf(pod)
	if group.Name == "" {
		return
	}
	if f.byGroup == nil {
		f.byGroup = map[types.NamespacedName]map[types.UID]*corev1.Pod{}
	}
	if f.byGroup[group] == nil {
		f.byGroup[group] = map[types.UID]*corev1.Pod{}
	}
	f.byGroup[group][pod.UID] = pod
}

// of returns what is remembered of a group, by name.
func (f *failures) of(group types.NamespacedName) []*corev1.Pod {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.byGroup[group]), func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
}

// forget drops those pods of a group; those that failed meanwhile stay.
func (f *failures) forget(group types.NamespacedName, pods []*corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, pod := range pods {
		delete(f.byGroup[group], pod.UID)
	}
	if len(f.byGroup[group]) == 0 {
		delete(f.byGroup, group)
	}
}
