// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gpupack/gpupack/agent/publish"
	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/nvml/simulated"
	"github.com/gpupack/gpupack/pack"
)

// node is the simulation of one node. The queue gives it to one worker at a time.
type node struct {
	scenario  *simulated.Node
	devices   *simulated.Devices
	publisher *publish.Publisher

	// given are the GPUs of the pods on the node, by the pod's UID.
	given map[types.UID]given
}

// given are the GPUs that a pod has, and since when.
type given struct {
	gpus  []string
	since time.Duration
}

func newNode(n *simulated.Node, workloads []simulated.Workload, p *publish.Publisher) *node {
	return &node{
		scenario:  n,
		devices:   simulated.NewDevices(n, workloads),
		publisher: p,
		given:     map[types.UID]given{},
	}
}

// tenants says which of the pods on the node have GPUs, and which. The problems are of pods that cannot be simulated as
// they ask to be.
func (n *node) tenants(objs []any, elapsed time.Duration) (tenants []simulated.Pod, problems []error) {
	type candidate struct {
		pod     *corev1.Pod
		request pack.Request
	}
	var candidates []candidate
	here := map[types.UID]bool{}
	for _, obj := range objs {
		pod := obj.(*corev1.Pod)
		if !convert.HoldsGPUs(pod) {
			continue
		}
		request, err := convert.Request(pod)
		if err != nil {
			// No scheduler of gpupack placed it, and no device plugin would serve it.
			problems = append(problems, fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err))
			continue
		}
		here[pod.UID] = true
		candidates = append(candidates, candidate{pod, request})
	}
	for uid := range n.given {
		if !here[uid] {
			delete(n.given, uid)
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int {
		return cmp.Or(a.pod.CreationTimestamp.Compare(b.pod.CreationTimestamp.Time), cmp.Compare(a.pod.UID, b.pod.UID))
	})
	// Those whose GPUs are known come first, so that the others get none of these.
	for _, c := range candidates {
		if gpus := convert.GPUs(c.pod); gpus != nil {
			for _, uuid := range gpus {
				if !n.devices.Has(uuid) {
					problems = append(problems, fmt.Errorf("pod %s/%s: annotation %s names %q, which is no GPU of node %s",
						c.pod.Namespace, c.pod.Name, v1alpha1.AnnotationGPUs, uuid, n.scenario.Name))
				}
			}
			n.give(c.pod.UID, gpus, elapsed)
		}
	}
	for _, c := range candidates {
		pod, request := c.pod, c.request
		if _, ok := n.given[pod.UID]; !ok {
			gpus := n.free(request, elapsed)
			if len(gpus) == 0 {
				problems = append(problems, fmt.Errorf("pod %s/%s: was bound to node %s, which cannot give it %s",
					pod.Namespace, pod.Name, n.scenario.Name, request.String()))
				continue
			}
			n.give(pod.UID, gpus, elapsed)
		}
		overrides, err := simulated.ParseOverrides(pod.Annotations)
		if err != nil {
			problems = append(problems, fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err))
		}
		milli := request.Milli
		if !request.IsShare() {
			milli = pack.WholeMilli
		}
		tenants = append(tenants, simulated.Pod{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Labels: pod.Labels,
			GPUs: n.given[pod.UID].gpus, Since: n.given[pod.UID].since,
			Milli: milli, MiB: request.MiB, Overrides: overrides,
		})
	}
	return tenants, problems
}

func (n *node) give(uid types.UID, gpus []string, elapsed time.Duration) {
	since := elapsed
	if before, ok := n.given[uid]; ok {
		since = before.since
	}
	n.given[uid] = given{gpus: gpus, since: since}
}

// free returns the GPUs that a device plugin would give to a pod that names none: the healthy ones of the lowest index that
// nobody has. nil if there are too few, or if the pod asks for a share, which only gpupack gives.
func (n *node) free(r pack.Request, elapsed time.Duration) []string {
	taken := map[string]bool{}
	for _, g := range n.given {
		for _, uuid := range g.gpus {
			taken[uuid] = true
		}
	}
	var free []string
	for _, gpu := range n.devices.Read(elapsed, nil) {
		if gpu.Healthy && !taken[gpu.UUID] && len(free) < r.GPUs {
			free = append(free, gpu.UUID)
		}
	}
	if len(free) < r.GPUs {
		return nil
	}
	return free
}
