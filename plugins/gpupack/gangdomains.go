// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
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

// gangDomains reads the domains in which a gang should stay from the labels of nodes; nil where it asks for none. The error is
// why it cannot be placed, in one sentence.
func (p *Plugin) gangDomains(g *gang, spec *convert.GangSpec, infos []fwk.NodeInfo, holders []holder) (*pack.Domains, error) {
	if spec.Topology == "" {
		return nil, nil
	}
	kind := spec.Topology
	label, ok := p.args.TopologyDomains[kind]
	if !ok {
		return nil, unknownDomain(g.name.Name, spec, p.args.TopologyDomains)
	}
	d := &pack.Domains{Kind: kind, Required: spec.TopologyRequired, Of: make([]int, len(infos))}
	at := map[string]int{}
	for _, info := range infos {
		if name := info.Node().Labels[label]; name != "" {
			at[name] = 0
		}
	}
	if len(at) == 0 && d.Required {
		return nil, fmt.Errorf("PodGroup %s must be in one %s, but no node has the label %s that tells its %s: label the nodes", g.name.Name, kind, label, kind)
	}
	d.Names = slices.SortedFunc(maps.Keys(at), compareNames)
	for i, name := range d.Names {
		at[name] = i
	}
	byNode := make(map[string]int, len(infos))
	for i, info := range infos {
		d.Of[i] = -1
		if name := info.Node().Labels[label]; name != "" {
			d.Of[i] = at[name]
		}
		byNode[info.Node().Name] = d.Of[i]
	}
	held := sets.New[int]()
	for _, h := range holders {
		domain, ok := byNode[h.node]
		switch {
		case !ok:
			// The node is gone, and the member will be.
		case domain >= 0:
			held.Insert(domain)
		case d.Required:
			return nil, fmt.Errorf("PodGroup %s must be in one %s, but its member %s has node %s without the label %s: label the node, or delete that member",
				g.name.Name, kind, h.pod.Name, h.node, label)
		}
	}
	d.Held = sets.List(held)
	if d.Required && len(d.Held) > 1 {
		names := make([]string, len(d.Held))
		for i, domain := range d.Held {
			names[i] = d.Names[domain]
		}
		return nil, fmt.Errorf("PodGroup %s must be in one %s, but members are in %d of them already (%s): delete those in all but one",
			g.name.Name, kind, len(names), strings.Join(names, ", "))
	}
	return d, nil
}

func unknownDomain(group string, spec *convert.GangSpec, known map[string]string) error {
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
