// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	schedulinghelper "k8s.io/component-helpers/scheduling/corev1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack"
)

// victim is what would be evicted at once: a pod, or all of a gang's.
type victim struct {
	pods []*corev1.Pod
	// milli is what they hold of GPUs, milli-GPU.
	milli int64
}

// victims are the pods that could be evicted for the waiting ones: those that hold GPUs, are of no higher priority and not of the
// same gang. A gang goes as a whole, since one that loses a member is of no use.
func (f *fixer) victims() []victim {
	priority := int32(0)
	for i, pod := range f.waiting {
		if p := schedulinghelper.PodPriority(pod); i == 0 || p < priority {
			priority = p
		}
	}
	own := gangKey(f.waiting[0])
	gangs := map[string]int{}
	var out []victim
	for i := range f.s.pods {
		pod := &f.s.pods[i]
		key := gangKey(pod)
		if pod.Spec.NodeName == "" || pod.DeletionTimestamp != nil || staysOnDrain(pod) || !convert.HoldsGPUs(pod) || schedulinghelper.PodPriority(pod) > priority ||
			key.Name != "" && key == own {
			continue
		}
		milli := f.heldMilli(pod)
		if key.Name != "" {
			if at, ok := gangs[key.String()]; ok {
				out[at].pods, out[at].milli = append(out[at].pods, pod), out[at].milli+milli
				continue
			}
			gangs[key.String()] = len(out)
		}
		out = append(out, victim{[]*corev1.Pod{pod}, milli})
	}
	slices.SortStableFunc(out, func(a, b victim) int {
		return cmp.Or(cmp.Compare(schedulinghelper.PodPriority(a.pods[0]), schedulinghelper.PodPriority(b.pods[0])), cmp.Compare(a.milli, b.milli),
			cmp.Compare(len(a.pods), len(b.pods)))
	})
	return out
}

// heldMilli is what a pod holds of GPUs, compute or memory, whichever is more of each; milli-GPU.
func (f *fixer) heldMilli(pod *corev1.Pod) int64 {
	at, ok := f.at(pod.Spec.NodeName)
	if !ok {
		return 0
	}
	var sum int64
	for i := range f.c.states[at].GPUs {
		g := &f.c.states[at].GPUs[i]
		for j := range g.Tenants {
			if t := &g.Tenants[j]; t.ID == string(pod.UID) {
				part := t.Milli
				if usable := g.UsableMiB(); usable > 0 {
					part = max(part, t.MiB()*pack.WholeMilli/usable)
				}
				sum += min(part, pack.WholeMilli)
			}
		}
	}
	return sum
}

// at is the position of a node.
func (f *fixer) at(node string) (int, bool) {
	return slices.BinarySearchFunc(f.c.nodes, node, func(n corev1.Node, name string) int { return cmp.Compare(n.Name, name) })
}

// without is the cluster without those victims, or the nodes alone on which they were.
func (f *fixer) without(victims []victim, theirs bool) *candidates {
	c := *f.c
	states, taken := map[int]*pack.Node{}, requests{}
	for i := range victims {
		for _, pod := range victims[i].pods {
			name := pod.Spec.NodeName
			at, ok := f.at(name)
			if !ok {
				continue
			}
			if states[at] == nil {
				states[at], taken[name] = f.c.states[at].Clone(), f.c.taken[name]
			}
			request, _ := convert.Request(pod)
			states[at].Remove(&request, string(pod.UID))
			taken[name] = difference(taken[name], podRequests(pod))
		}
	}
	if theirs {
		c.nodes, c.states, c.taken = nil, nil, taken
		for _, at := range slices.Sorted(maps.Keys(states)) {
			c.nodes, c.states = append(c.nodes, f.c.nodes[at]), append(c.states, states[at])
		}
		return &c
	}
	c.states, c.taken = slices.Clone(f.c.states), maps.Clone(f.c.taken)
	for at, state := range states {
		c.states[at] = state
	}
	maps.Copy(c.taken, taken)
	return &c
}

// letsIn says whether the pods fit once the victims are gone. A pod of no gang is tried on the victims' nodes alone.
func (f *fixer) letsIn(victims []victim) (string, bool) {
	return f.fits(f.without(victims, f.group == nil), f.waiting)
}

// evict finds pods to evict: the one or the gang that costs least, or else several of one node, for a gang of several nodes.
func (f *fixer) evict() *Fix {
	all := f.victims()
	tries := len(all)
	if f.group != nil {
		tries = min(tries, mostTries)
	}
	for i := range all[:tries] {
		if node, ok := f.letsIn(all[i : i+1]); ok {
			return f.evictFix(all[i:i+1], node)
		}
	}
	if f.group == nil {
		return f.evictOfOneNode(all)
	}
	return f.evictOfNodes(all)
}

// evictOfOneNode takes as many of a node's pods as need be, on the node where least is lost.
func (f *fixer) evictOfOneNode(all []victim) *Fix {
	byNode := map[string][]victim{}
	for _, v := range all {
		for _, pod := range v.pods {
			if list := byNode[pod.Spec.NodeName]; len(list) == 0 || list[len(list)-1].pods[0] != v.pods[0] {
				byNode[pod.Spec.NodeName] = append(list, v)
			}
		}
	}
	var best []victim
	var lost int64
	bestNode := ""
	for _, name := range slices.Sorted(maps.Keys(byNode)) {
		victims := byNode[name]
		if len(victims) > mostCrowded {
			victims = victims[:mostCrowded]
		}
		if _, ok := f.letsIn(victims); !ok {
			continue
		}
		victims = f.fewest(victims)
		sum := int64(0)
		for i := range victims {
			sum += victims[i].milli
		}
		if len(victims) <= mostVictims && (best == nil || sum < lost) {
			best, lost, bestNode = victims, sum, name
		}
	}
	if best == nil {
		return nil
	}
	return f.evictFix(best, bestNode)
}

// fewest leaves out those victims that need not go, the most costly first.
func (f *fixer) fewest(victims []victim) []victim {
	out := slices.Clone(victims)
	for i := len(out) - 1; i >= 0; i-- {
		rest := slices.Delete(slices.Clone(out), i, i+1)
		if _, ok := f.letsIn(rest); ok {
			out = rest
		}
	}
	return out
}

// evictOfNodes clears as few nodes as let a gang in, those first where least is lost.
func (f *fixer) evictOfNodes(all []victim) *Fix {
	lost := map[string]int64{}
	for i := range all {
		for _, pod := range all[i].pods {
			lost[pod.Spec.NodeName] += all[i].milli
		}
	}
	names := slices.SortedFunc(maps.Keys(lost), func(a, b string) int { return cmp.Or(cmp.Compare(lost[a], lost[b]), cmp.Compare(a, b)) })
	of := func(n int) []victim {
		cleared := map[string]bool{}
		for _, name := range names[:n] {
			cleared[name] = true
		}
		var out []victim
		for _, v := range all {
			if slices.ContainsFunc(v.pods, func(p *corev1.Pod) bool { return cleared[p.Spec.NodeName] }) {
				out = append(out, v)
			}
		}
		return out
	}
	low, high := 0, len(names)
	if high == 0 {
		return nil
	}
	if _, ok := f.letsIn(of(high)); !ok {
		return nil
	}
	for low+1 < high {
		middle := (low + high) / 2
		if _, ok := f.letsIn(of(middle)); ok {
			high = middle
		} else {
			low = middle
		}
	}
	victims := of(high)
	if len(victims) > mostTries {
		return nil
	}
	return f.evictFix(f.fewest(victims), "")
}

func (f *fixer) evictFix(victims []victim, node string) *Fix {
	fix := &Fix{Kind: FixEvict, Node: node}
	var milli int64
	var evicted []*corev1.Pod
	gangs := map[string]bool{}
	for i := range victims {
		milli += victims[i].milli
		for _, pod := range victims[i].pods {
			fix.Evict = append(fix.Evict, pod.Namespace+"/"+pod.Name)
			evicted = append(evicted, pod)
			if gang := gangKey(pod); gang.Name != "" {
				gangs[gang.Name] = true
			}
		}
	}
	fix.Message = "evict " + shortList(fix.Evict, 3)
	fix.Cost = fmt.Sprintf("%s with %s", plural(len(evicted), "pod"), milliGPUs(milli))
	if len(gangs) > 0 {
		fix.Cost += ", the whole gang " + shortList(slices.Sorted(maps.Keys(gangs)), 3)
	}
	return f.afterwards(fix, victims, evicted)
}

// afterwards says what becomes of the evicted pods.
func (f *fixer) afterwards(fix *Fix, victims []victim, evicted []*corev1.Pod) *Fix {
	c := f.without(victims, false)
	for i := range c.states {
		c.states[i] = c.states[i].Clone()
	}
	for node := range c.taken {
		c.taken[node] = c.taken[node].DeepCopy()
	}
	var plan []placed
	if f.group != nil {
		plan, _, _ = c.planGang(f.group, f.held, f.waiting, f.labels)
	} else {
		plan, _, _ = c.plan(f.waiting, len(f.waiting), nil)
	}
	c.chooser.Policy = untold{c.chooser.Policy}
	c.commit(plan)
	again, _, err := c.plan(evicted, 0, nil)
	switch {
	case err != nil || len(again) == 0:
		fix.Cost += "; no room for it elsewhere"
		if len(evicted) > 1 {
			fix.Cost = strings.TrimSuffix(fix.Cost, "it elsewhere") + "them elsewhere"
		}
	case len(again) < len(evicted):
		fix.Cost += fmt.Sprintf("; room elsewhere for %d of them", len(again))
	case len(evicted) == 1:
		fix.Cost += "; then there is room for it on " + c.nodes[again[0].node].Name
	default:
		fix.Cost += "; then there is room for them elsewhere"
	}
	return fix
}

// untold is a policy that is not told of the cluster, which has not changed.
type untold struct{ pack.Policy }

// milliGPUs writes what is held of GPUs: "2 GPUs", "0.3 of a GPU".
func milliGPUs(milli int64) string {
	if milli < pack.WholeMilli {
		return fmt.Sprintf("%.1f of a GPU", float64(milli)/pack.WholeMilli)
	}
	if milli%pack.WholeMilli == 0 {
		return plural(int(milli/pack.WholeMilli), "GPU")
	}
	return fmt.Sprintf("%.1f GPUs", float64(milli)/pack.WholeMilli)
}
