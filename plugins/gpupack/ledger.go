// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack"
)

// phase is how far a promise has come.
type phase uint8

const (
	// planned: a gang's plan holds the place, and the member's own scheduling cycle has not come to Reserve.
	planned phase = iota
	// assumed: the framework has assumed the pod on the node.
	assumed
	// bound: the API has the pod on the node.
	bound
)

func (p phase) String() string { return [...]string{"planned", "assumed", "bound"}[p] }

// entry is one pod's promise.
type entry struct {
	uid   types.UID
	name  types.NamespacedName
	node  string
	gpus  []string
	phase phase
	// request is set for planned entries, which no NodeInfo has.
	request pack.Request
	// gang is the PodGroup with whose plan the entry came, if any.
	gang types.NamespacedName
}

// ledger knows which pod has which GPUs, from the moment that they are promised. The framework's reserve and unreserve,
// gang plans and the pod informer are its only writers; the latter rebuilds it from annotations when the scheduler starts.
type ledger struct {
	mu     sync.RWMutex
	byUID  map[types.UID]*entry
	byNode map[string]map[types.UID]*entry
	// version by node grows with each change of the node's entries.
	version map[string]uint64
	total   uint64
	// planned is the number of entries in that phase.
	planned int
	// dirty are the nodes whose entries changed.
	dirty changes
}

func newLedger() *ledger {
	return &ledger{
		byUID:   map[types.UID]*entry{},
		byNode:  map[string]map[types.UID]*entry{},
		version: map[string]uint64{},
	}
}

// put adds entries or replaces those of the same pods, all at once.
func (l *ledger) put(entries ...*entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		l.remove(e.uid)
		l.byUID[e.uid] = e
		if l.byNode[e.node] == nil {
			l.byNode[e.node] = map[types.UID]*entry{}
		}
		l.byNode[e.node][e.uid] = e
		l.count(e.phase, 1)
		l.touch(e.node)
	}
}

// drop removes the entries of those pods.
func (l *ledger) drop(uids ...types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, uid := range uids {
		l.remove(uid)
	}
}

// dropUnbound removes the pod's entry unless the API has the pod bound.
func (l *ledger) dropUnbound(uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.byUID[uid]; ok && e.phase != bound {
		l.remove(uid)
	}
}

func (l *ledger) remove(uid types.UID) {
	e, ok := l.byUID[uid]
	if !ok {
		return
	}
	delete(l.byUID, uid)
	delete(l.byNode[e.node], uid)
	if len(l.byNode[e.node]) == 0 {
		delete(l.byNode, e.node)
	}
	l.count(e.phase, -1)
	l.touch(e.node)
}

func (l *ledger) count(p phase, n int) {
	if p == planned {
		l.planned += n
	}
	ledgerEntries.WithLabelValues(p.String()).Add(float64(n))
}

func (l *ledger) touch(node string) {
	l.version[node]++
	l.total++
	l.dirty.mark(node)
}

func (l *ledger) get(uid types.UID) (entry, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if e, ok := l.byUID[uid]; ok {
		return *e, true
	}
	return entry{}, false
}

func (l *ledger) has(uid string) bool {
	_, ok := l.get(types.UID(uid))
	return ok
}

// onNode returns the node's entries and their version.
func (l *ledger) onNode(node string) (map[types.UID]*entry, uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return maps.Clone(l.byNode[node]), l.version[node]
}

func (l *ledger) nodeVersion(node string) uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.version[node]
}

// forgetNode drops the version of a node that is gone and has no entries.
func (l *ledger) forgetNode(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.byNode[node]) == 0 {
		delete(l.version, node)
	}
}

// anyPlanned says whether a plan holds places that no NodeInfo shows.
func (l *ledger) anyPlanned() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.planned > 0
}

func (l *ledger) totalVersion() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.total
}

// observe takes what the API says of a pod.
func (l *ledger) observe(pod *corev1.Pod) {
	switch {
	case convert.IsTerminal(pod):
		l.drop(pod.UID)
	case pod.Spec.NodeName != "" && convert.AsksForGPU(pod):
		gpus := convert.GPUs(pod)
		if e, ok := l.get(pod.UID); ok && e.phase == bound && e.node == pod.Spec.NodeName && slices.Equal(e.gpus, gpus) {
			return
		}
		l.put(&entry{
			uid:   pod.UID,
			name:  types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name},
			node:  pod.Spec.NodeName,
			gpus:  gpus,
			phase: bound,
			gang:  groupOf(pod),
		})
	}
}
