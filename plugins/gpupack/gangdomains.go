// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack"
)

// holder is a member of a gang that has its place: bound, or about to be.
type holder struct {
	pod  *corev1.Pod
	node string
}

// holders are the members of a gang that have their places.
func (p *Plugin) holders(name types.NamespacedName) ([]holder, error) {
	objects, err := p.podIndexer.ByIndex(byGang, name.String())
	if err != nil {
		return nil, err
	}
	var out []holder
	for _, obj := range objects {
		pod, ok := obj.(*corev1.Pod)
		if !ok || convert.IsTerminal(pod) {
			continue
		}
		if pod.Spec.NodeName != "" {
			out = append(out, holder{pod, pod.Spec.NodeName})
		} else if e, ok := p.ledger.get(pod.UID); ok {
			out = append(out, holder{pod, e.node})
		}
	}
	slices.SortFunc(out, func(a, b holder) int { return compareMembers(a.pod, b.pod) })
	return out, nil
}

// gangDomains reads the domains in which a gang should stay. The error is why it cannot be placed, in one sentence.
func (p *Plugin) gangDomains(g *gang, spec *convert.GangSpec, infos []fwk.NodeInfo, holders []holder) (*pack.Domains, error) {
	if spec.Topology == "" {
		return nil, nil
	}
	nodes := make([]*corev1.Node, len(infos))
	for i, info := range infos {
		nodes[i] = info.Node()
	}
	held := make([]convert.HeldMember, len(holders))
	for i, h := range holders {
		held[i] = convert.HeldMember{Name: h.pod.Name, Node: h.node}
	}
	return convert.GangDomains(g.name.Name, spec, p.args.TopologyDomains, nodes, held)
}

// Labels by which other projects number the pods of a gang.
const (
	kubeflowReplicaIndex = "training.kubeflow.org/replica-index"
	kubeflowReplicaType  = "training.kubeflow.org/replica-type"
	jobSetReplicatedJob  = "jobset.sigs.k8s.io/replicatedjob-name"
	jobSetJobIndex       = "jobset.sigs.k8s.io/job-index"
)

// leaders are types of Kubeflow's replicas that have rank 0.
var leaders = sets.New("master", "chief", "launcher")

// rank is the order of a pod in its gang.
type rank struct {
	// known says whether the pod is numbered; those that are not come last, by name.
	known bool
	// part of the gang within which numbers count.
	part         string
	outer, inner int
}

// rankOf reads the number that the controller of the pod has given to it.
func rankOf(pod *corev1.Pod) rank {
	r := rank{}
	number := func(key string) (int, bool) {
		text, ok := pod.Labels[key]
		if !ok {
			text, ok = pod.Annotations[key]
		}
		if !ok {
			return 0, false
		}
		n, err := strconv.Atoi(text)
		return n, err == nil && n >= 0
	}
	if n, ok := number(kubeflowReplicaIndex); ok {
		r.part = strings.ToLower(pod.Labels[kubeflowReplicaType])
		if leaders.Has(r.part) {
			r.part = ""
		}
		r.inner, r.known = n, true
		return r
	}
	if n, ok := number(jobSetJobIndex); ok {
		r.part, r.outer, r.known = pod.Labels[jobSetReplicatedJob], n, true
	}
	if n, ok := number(batchv1.JobCompletionIndexAnnotation); ok {
		r.inner, r.known = n, true
	}
	return r
}

// compareRanks orders members by rank, then by name.
func compareRanks(a, b *corev1.Pod) int {
	x, y := rankOf(a), rankOf(b)
	switch {
	case x.known && !y.known:
		return -1
	case !x.known && y.known:
		return 1
	}
	return cmp.Or(cmp.Compare(x.part, y.part), cmp.Compare(x.outer, y.outer), cmp.Compare(x.inner, y.inner), compareMembers(a, b))
}
