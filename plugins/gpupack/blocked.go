// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"
)

// besidePlansKey marks the cycles of pods that were looked at while gang plans held places.
const besidePlansKey fwk.StateKey = Name + "/beside-plans"

// besidePlans is how often plans had given places back when the cycle began.
type besidePlans uint64

// Clone implements fwk.StateData.
func (b besidePlans) Clone() fwk.StateData { return b }

// blocked knows the pods that found no node while gang plans held places. When such places are given back, nothing in the API
// changes, so that the queue would not try these pods again.
type blocked struct {
	mu     sync.Mutex
	pods   map[types.UID]types.NamespacedName
	rounds besidePlans
}

// beginBesidePlans is called when a pod's cycle begins.
func (p *Plugin) beginBesidePlans(state fwk.CycleState) {
	if p.ledger.anyPlanned() {
		p.blocked.mu.Lock()
		defer p.blocked.mu.Unlock()
		state.Write(besidePlansKey, p.blocked.rounds)
	}
}

// block is called when a pod has found no node.
func (p *Plugin) block(ctx context.Context, state fwk.CycleState, pod *corev1.Pod) {
	data, err := state.Read(besidePlansKey)
	if err != nil {
		return
	}
	began, ok := data.(besidePlans)
	if !ok {
		return
	}
	b := &p.blocked
	b.mu.Lock()
	now := b.rounds
	if now == began {
		if b.pods == nil {
			b.pods = map[types.UID]types.NamespacedName{}
		}
		b.pods[pod.UID] = types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	}
	b.mu.Unlock()
	if now != began {
		// Places were given back since the pod was looked at.
		p.handle.Activate(p.logger(ctx), map[string]*corev1.Pod{pod.Namespace + "/" + pod.Name: p.latest(pod)})
	}
}

// unblock forgets a pod that is bound or gone.
func (b *blocked) unblock(uid types.UID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.pods, uid)
}

// gaveBack wakes the pods that found no node beside places that a plan held and no longer holds. Those of the plan's own gang are
// woken otherwise, after a delay.
func (p *Plugin) gaveBack(ctx context.Context, own types.NamespacedName) {
	b := &p.blocked
	b.mu.Lock()
	pods := b.pods
	b.pods = nil
	b.rounds++
	b.mu.Unlock()
	wake := make(map[string]*corev1.Pod, len(pods))
	for uid, name := range pods {
		if pod, err := p.pods.Pods(name.Namespace).Get(name.Name); err == nil && pod.UID == uid && groupOf(pod) != own {
			wake[name.String()] = pod
		}
	}
	if len(wake) > 0 {
		p.handle.Activate(p.logger(ctx), wake)
	}
}
