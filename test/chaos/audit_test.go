// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/embedded"
)

// audit follows every change of the pods of a namespace and notes what must never be.
type audit struct {
	mu sync.Mutex
	// gpus of each bound pod.
	gpus map[types.UID][]string
	// milli and memory, in MiB, promised of each GPU.
	milli, memory map[string]int64
	violations    []string
	// bindings is how many pods have been bound so far.
	bindings int
	bound    *sync.Cond
}

func newAudit(t *testing.T, cp *embedded.ControlPlane, namespace string) *audit {
	a := &audit{gpus: map[types.UID][]string{}, milli: map[string]int64{}, memory: map[string]int64{}}
	a.bound = sync.NewCond(&a.mu)
	clientset, err := kubernetes.NewForConfig(cp.Config())
	require.NoError(t, err)
	informer := cache.NewSharedInformer(cache.NewListWatchFromClient(clientset.CoreV1().RESTClient(), "pods", namespace, fields.Everything()),
		&corev1.Pod{}, 0)
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { a.changed(obj.(*corev1.Pod)) },
		UpdateFunc: func(_, obj any) { a.changed(obj.(*corev1.Pod)) },
		DeleteFunc: func(obj any) {
			if pod, ok := obj.(*corev1.Pod); ok {
				a.gone(pod)
			}
		},
	})
	require.NoError(t, err)
	go informer.RunWithContext(t.Context())
	require.True(t, cache.WaitForCacheSync(t.Context().Done(), informer.HasSynced))
	return a
}

func (a *audit) changed(pod *corev1.Pod) {
	if pod.Spec.NodeName == "" {
		return
	}
	if convert.IsTerminal(pod) {
		a.gone(pod)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	gpus := convert.GPUs(pod)
	if known, ok := a.gpus[pod.UID]; ok {
		if !slices.Equal(known, gpus) {
			a.violate("the GPUs of pod %s changed after it was bound, from %v to %v", pod.Name, known, gpus)
		}
		return
	}
	a.gpus[pod.UID] = gpus
	a.bindings++
	a.bound.Broadcast()
	whole := pod.Spec.Containers[0].Resources.Requests[v1alpha1.ResourceGPU]
	if n := int(whole.Value()); n > 0 && n != len(gpus) {
		a.violate("pod %s asks for %d GPUs and was bound with %v", pod.Name, n, gpus)
	}
	for _, gpu := range gpus {
		if !strings.HasPrefix(gpu, "GPU-"+pod.Spec.NodeName+"-") {
			a.violate("pod %s was bound to node %s with %s", pod.Name, pod.Spec.NodeName, gpu)
		}
		milli, memory := asks(pod)
		a.milli[gpu] += milli
		a.memory[gpu] += memory
		if a.milli[gpu] > 1000 || a.memory[gpu] > usableMiB {
			a.violate("%s is promised to too many pods, the last of which is %s", gpu, pod.Name)
		}
	}
}

func (a *audit) gone(pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	milli, memory := asks(pod)
	for _, gpu := range a.gpus[pod.UID] {
		a.milli[gpu] -= milli
		a.memory[gpu] -= memory
	}
	delete(a.gpus, pod.UID)
}

// asks is what a pod takes of each of its GPUs.
func asks(pod *corev1.Pod) (milli, memoryMiB int64) {
	requests := pod.Spec.Containers[0].Resources.Requests
	if whole := requests[v1alpha1.ResourceGPU]; !whole.IsZero() {
		return 1000, usableMiB
	}
	memory := requests[v1alpha1.ResourceGPUMemory]
	return 0, memory.Value() >> 20
}

func (a *audit) violate(format string, args ...any) {
	a.violations = append(a.violations, fmt.Sprintf(format, args...))
}

func (a *audit) found() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.violations)
}
