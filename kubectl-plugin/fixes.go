// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// Fix is a change that lets a pod or a gang in. It has been tried on the state of the cluster.
type Fix struct {
	Kind FixKind `json:"kind"`
	// Message is what to do, as a command.
	Message string `json:"message"`
	// Cost is what that costs, in a few words.
	Cost string `json:"cost"`
	// Node is where a pod could go then; empty for a gang.
	Node string `json:"node,omitempty"`
	// Evict are the pods to evict, as namespace/name.
	Evict []string `json:"evict,omitempty"`

	// with is the same as what a gang would start with.
	with string
}

// FixKind is one CamelCase word.
type FixKind string

// Kinds of fixes, from those that cost least to those that cost most.
const (
	FixUncordonGPU   FixKind = "UncordonGPU"
	FixUncordonNodes FixKind = "UncordonNodes"
	FixTelemetry     FixKind = "RefreshTelemetry"
	FixAskForLess    FixKind = "AskForLess"
	FixMinMember     FixKind = "LowerMinMember"
	FixAcceptModel   FixKind = "AcceptModel"
	FixTolerate      FixKind = "TolerateTaint"
	FixForeignMemory FixKind = "EndForeignProcesses"
	FixEvict         FixKind = "EvictPods"
	FixRepairGPU     FixKind = "RepairGPU"
	FixAddNodes      FixKind = "AddNodes"
)

const (
	// mostFixes are told of.
	mostFixes = 3
	// mostTries bounds how often a whole gang is planned to find one fix.
	mostTries = 256
	// mostCrowded bounds how many pods of a node are looked at, and mostVictims how many are proposed for eviction.
	mostCrowded, mostVictims = 64, 16
	// lowestPart is which part of a request is the least that is proposed: with less, a program would have to be another.
	lowestPart = 4
)

// fixer tries changes that could let pods in which have no place.
type fixer struct {
	s *snapshot
	c *candidates
	// view is how the state is read.
	view viewOptions
	// waiting are the pods: one, or the members of a gang that have no node.
	waiting []*corev1.Pod
	// group and held are of a gang; group is nil for a pod of none.
	group *podgroupv1alpha1.PodGroup
	held  []*corev1.Pod
	// labels has the node label of each kind of domain.
	labels map[string]string
}

// nearest returns at most three fixes of different kinds, those that cost least first.
func (f *fixer) nearest(ctx context.Context) ([]Fix, error) {
	var out []Fix
	for _, try := range []func() *Fix{
		f.uncordonGPU, f.uncordonNodes, f.freshTelemetry, f.askForLess, f.lowerMinMember, f.acceptModel, f.tolerateTaint,
		f.endForeign, f.evict, f.repairGPU, f.addNodes,
	} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if fix := try(); fix != nil {
			out = append(out, *fix)
		}
		if len(out) == mostFixes {
			break
		}
	}
	return out, nil
}

// fits says whether the pods would be placed on c, and where if it is one.
func (f *fixer) fits(c *candidates, waiting []*corev1.Pod) (node string, ok bool) {
	var plan []placed
	var failure *pack.GangFailure
	var err error
	if f.group != nil {
		plan, failure, err = c.planGang(f.group, f.held, waiting, f.labels)
	} else {
		plan, failure, err = c.plan(waiting, len(waiting), nil)
	}
	if err != nil || failure != nil || len(plan) == 0 {
		return "", false
	}
	if f.group == nil {
		node = c.nodes[plan[0].node].Name
	}
	return node, true
}

// fitsAt says whether the pods would be placed if change had been made to node at. A pod of no gang is tried on that node alone.
func (f *fixer) fitsAt(at int, change func(node *corev1.Node, state *pack.Node)) (string, bool) {
	node, state := *f.c.nodes[at].DeepCopy(), f.c.states[at].Clone()
	change(&node, state)
	c := *f.c
	if f.group == nil {
		c.nodes, c.states = []corev1.Node{node}, []*pack.Node{state}
		return f.fits(&c, f.waiting)
	}
	c.nodes, c.states = slices.Clone(f.c.nodes), slices.Clone(f.c.states)
	c.nodes[at], c.states[at] = node, state
	return f.fits(&c, f.waiting)
}

// firstNode is the first fix on a node of those where change says that there is something to change.
func (f *fixer) firstNode(kind FixKind, wanted func(at int) bool, change func(*corev1.Node, *pack.Node), say func(at int) (message, cost string)) *Fix {
	tries := 0
	for at := range f.c.nodes {
		if !wanted(at) {
			continue
		}
		if tries++; f.group != nil && tries > mostTries {
			return nil
		}
		if node, ok := f.fitsAt(at, change); ok {
			message, cost := say(at)
			return &Fix{Kind: kind, Message: message, Cost: cost, Node: node}
		}
	}
	return nil
}

// eachGPU tries a change of one GPU, on each GPU of which wanted says that there is something to change.
func (f *fixer) eachGPU(kind FixKind, wanted func(g *pack.GPU) bool, change func(g *pack.GPU), say func(node string, g *pack.GPU) (message, cost string)) *Fix {
	tries := 0
	for at, state := range f.c.states {
		for i := range state.GPUs {
			if !wanted(&state.GPUs[i]) {
				continue
			}
			if tries++; f.group != nil && tries > mostTries {
				return nil
			}
			if node, ok := f.fitsAt(at, func(_ *corev1.Node, n *pack.Node) { change(&n.GPUs[i]) }); ok {
				message, cost := say(state.Name, &state.GPUs[i])
				return &Fix{Kind: kind, Message: message, Cost: cost, Node: node}
			}
		}
	}
	return nil
}

func (f *fixer) uncordonGPU() *Fix {
	return f.eachGPU(FixUncordonGPU, func(g *pack.GPU) bool { return g.Cordoned },
		func(g *pack.GPU) { g.Cordoned, g.Unhealthy = false, "" },
		func(node string, g *pack.GPU) (string, string) {
			return fmt.Sprintf("uncordon GPU %d of %s", g.Index, node), "it is " + g.Unhealthy
		})
}

func (f *fixer) uncordonNodes() *Fix {
	uncordon := func(n *corev1.Node, _ *pack.Node) { n.Spec.Unschedulable = false }
	cordoned := func(at int) bool { return f.c.nodes[at].Spec.Unschedulable && len(f.c.states[at].GPUs) > 0 }
	name := ""
	if fix := f.firstNode(FixUncordonNodes, cordoned, uncordon, func(at int) (string, string) {
		name = f.c.nodes[at].Name
		return "uncordon " + name, "none, if the node is fit for use"
	}); fix != nil || f.group == nil {
		if fix != nil {
			fix.with = name + " uncordoned"
		}
		return fix
	}
	names := f.s.cordoned()
	if len(names) < 2 {
		return nil
	}
	c := *f.c
	c.nodes = slices.Clone(f.c.nodes)
	for i := range c.nodes {
		c.nodes[i].Spec.Unschedulable = false
	}
	if _, ok := f.fits(&c, f.waiting); !ok {
		return nil
	}
	return &Fix{Kind: FixUncordonNodes, Message: "uncordon " + shortList(names, 3), Cost: "none, if the nodes are fit for use",
		with: shortList(names, 3) + " uncordoned"}
}

func (f *fixer) freshTelemetry() *Fix {
	return f.firstNode(FixTelemetry, func(at int) bool { return f.c.states[at].Stale },
		func(_ *corev1.Node, n *pack.Node) {
			n.Stale = false
			if n.Problem == pack.ReasonStaleReject {
				n.Problem = pack.ReasonFits
			}
		},
		func(at int) (string, string) {
			name, age := f.c.nodes[at].Name, "never"
			if gn := f.s.gpuNode(name); gn != nil && gn.Status.ObservedTime != nil {
				age = duration.HumanDuration(f.s.age(metav1.Time{Time: gn.Status.ObservedTime.Time})) + " ago"
			}
			return fmt.Sprintf("get gpupack-agent on %s to report again", name), "none: it reported last " + age
		})
}

func (f *fixer) endForeign() *Fix {
	return f.eachGPU(FixForeignMemory, func(g *pack.GPU) bool { return g.ForeignMiB >= foreignNoteMiB },
		func(g *pack.GPU) { g.ForeignMiB = 0 },
		func(node string, g *pack.GPU) (string, string) {
			return fmt.Sprintf("end what runs outside any pod on GPU %d of %s", g.Index, node),
				fmt.Sprintf("whatever that does with the %s that it uses", gib(g.ForeignMiB))
		})
}

func (f *fixer) repairGPU() *Fix {
	return f.eachGPU(FixRepairGPU, func(g *pack.GPU) bool { return g.Unhealthy != "" && !g.Cordoned },
		func(g *pack.GPU) { g.Unhealthy = "" },
		func(node string, g *pack.GPU) (string, string) {
			return fmt.Sprintf("repair GPU %d of %s", g.Index, node), "a reset or another GPU: " + g.Unhealthy
		})
}

// changedPods are copies of the waiting pods with a change.
func (f *fixer) changedPods(change func(*corev1.Pod)) []*corev1.Pod {
	out := make([]*corev1.Pod, len(f.waiting))
	for i, pod := range f.waiting {
		out[i] = pod.DeepCopy()
		change(out[i])
	}
	return out
}

// askForLess finds the largest request that fits, of the one resource of which the smallest part must go.
func (f *fixer) askForLess() *Fix {
	type less struct {
		name       corev1.ResourceName
		unit       int64
		write      func(int64) string
		of         string
		difference func(int64) string
	}
	const mib = 1 << 20
	count := func(n int64) string { return fmt.Sprint(n) }
	var best *Fix
	bestPart := 0.0
	for _, l := range []less{
		{v1alpha1.ResourceGPUMemory, mib, func(n int64) string { return fmt.Sprintf("%d MiB", n) }, " of a GPU", gib},
		{v1alpha1.ResourceGPUMilli, 1, count, " milli-GPU", func(n int64) string { return fmt.Sprintf("%d milli-GPU", n) }},
		{v1alpha1.ResourceGPU, 1, count, " GPUs", func(n int64) string { return plural(int(n), "GPU") }},
		{corev1.ResourceCPU, 1, func(n int64) string { return figure(float64(n) / 1000) }, " CPUs",
			func(n int64) string { return figure(float64(n)/1000) + " CPUs" }},
		{corev1.ResourceMemory, mib, gib, " of memory", gib},
	} {
		asked := asksOf(f.waiting, l.name, l.unit)
		if asked < 2 {
			continue
		}
		fits := func(n int64) (string, bool) {
			ok := true
			pods := f.changedPods(func(p *corev1.Pod) { ok = ok && askAtMost(p, l.name, l.unit, n) })
			if !ok {
				return "", false
			}
			return f.fits(f.c, pods)
		}
		low, high := max(1, asked/lowestPart), asked
		node, ok := fits(low)
		if !ok {
			continue
		}
		for low+1 < high {
			middle := (low + high) / 2
			if at, ok := fits(middle); ok {
				low, node = middle, at
			} else {
				high = middle
			}
		}
		if part := float64(low) / float64(asked); part > bestPart && low < asked {
			who := ""
			if f.group != nil {
				who = " for each member"
			}
			bestPart = part
			best = &Fix{Kind: FixAskForLess, Message: "ask for " + l.write(low) + l.of + who, Cost: l.difference(asked-low) + " less", Node: node}
		}
	}
	return best
}

// asksOf is the most that one of the pods asks of a resource, in units: CPU in milli-CPU.
func asksOf(pods []*corev1.Pod, name corev1.ResourceName, unit int64) int64 {
	most := int64(0)
	for _, pod := range pods {
		sum := int64(0)
		for i := range pod.Spec.Containers {
			sum += amount(pod.Spec.Containers[i].Resources.Requests, name, unit)
		}
		most = max(most, sum)
	}
	return most
}

func amount(list corev1.ResourceList, name corev1.ResourceName, unit int64) int64 {
	q := list[name]
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return (q.Value() + unit - 1) / unit
}

// askAtMost lets a pod ask for no more than n units. It says whether that was possible in one container.
func askAtMost(pod *corev1.Pod, name corev1.ResourceName, unit, n int64) bool {
	excess := asksOf([]*corev1.Pod{pod}, name, unit) - n
	if excess <= 0 {
		return true
	}
	for i := range pod.Spec.Containers {
		list := pod.Spec.Containers[i].Resources.Requests
		if has := amount(list, name, unit); has > excess || has == excess && n > 0 && len(pod.Spec.Containers) > 1 {
			q := list[name]
			if name == corev1.ResourceCPU {
				q.SetMilli(has - excess)
			} else {
				q.Set((has - excess) * unit)
			}
			list[name] = q
			return true
		}
	}
	return false
}

func (f *fixer) lowerMinMember() *Fix {
	if f.group == nil {
		return nil
	}
	_, failure, err := f.c.planGang(f.group, f.held, f.waiting, f.labels)
	if err != nil || failure == nil || failure.Placed == 0 {
		return nil
	}
	n := len(f.held) + failure.Placed
	group := f.group.DeepCopy()
	group.Spec.MinMember = int32(n)
	if _, failure, err := f.c.planGang(group, f.held, f.waiting, f.labels); err != nil || failure != nil {
		return nil
	}
	return &Fix{Kind: FixMinMember, Message: fmt.Sprintf("lower minMember of PodGroup %s to %d", f.group.Name, n),
		Cost: fmt.Sprintf("it starts with %d fewer", int(f.group.Spec.MinMember)-n), with: fmt.Sprintf("a minMember of %d", n)}
}

func (f *fixer) acceptModel() *Fix {
	for _, model := range f.s.models() {
		changed := false
		pods := f.changedPods(func(p *corev1.Pod) {
			if accepted := p.Annotations[v1alpha1.AnnotationGPUModel]; accepted != "" {
				p.Annotations[v1alpha1.AnnotationGPUModel] = accepted + "," + model
				changed = true
			}
		})
		if !changed {
			return nil
		}
		if node, ok := f.fits(f.c, pods); ok {
			return &Fix{Kind: FixAcceptModel, Message: fmt.Sprintf("accept %s too, in the annotation %s", model, v1alpha1.AnnotationGPUModel),
				Cost: "another model of GPU", Node: node}
		}
	}
	return nil
}

// tolerateTaint looks at taints that people set, not at those of nodes in trouble.
func (f *fixer) tolerateTaint() *Fix {
	tried := map[string]bool{}
	for i := range f.c.nodes {
		for _, taint := range f.c.nodes[i].Spec.Taints {
			if taint.Effect == corev1.TaintEffectPreferNoSchedule || strings.HasPrefix(taint.Key, "node.kubernetes.io/") || tried[taint.ToString()] {
				continue
			}
			tried[taint.ToString()] = true
			pods := f.changedPods(func(p *corev1.Pod) {
				p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: taint.Key, Operator: corev1.TolerationOpEqual,
					Value: taint.Value, Effect: taint.Effect})
			})
			if node, ok := f.fits(f.c, pods); ok {
				return &Fix{Kind: FixTolerate, Message: "tolerate the taint " + taint.ToString(), Cost: "nodes that are meant for others", Node: node}
			}
		}
	}
	return nil
}

// addNodes adds nodes like those that there are, as few as let the pods in.
func (f *fixer) addNodes() *Fix {
	need := 1
	if f.group != nil {
		need = max(1, int(f.group.Spec.MinMember)-len(f.held))
	}
	options := f.s.convertOptions(f.view)
	fewest := need + 1
	var fix *Fix
	models := f.s.models()
	for _, model := range models[:min(mostModels, len(models))] {
		node, gn := f.s.exampleOf(model)
		if node == nil {
			continue
		}
		fits := func(n int) bool {
			c := *f.c
			c.nodes, c.states = slices.Clone(f.c.nodes), slices.Clone(f.c.states)
			for i := range n {
				name := fmt.Sprintf("%s-new-%d", node.Name, i+1)
				added, telemetry := emptyNode(node, name, len(gn.Status.GPUs)), f.s.emptyGPUNode(gn, name)
				c.nodes = append(c.nodes, added)
				c.states = append(c.states, convert.Node(&added, &telemetry, nil, options))
			}
			_, ok := f.fits(&c, f.waiting)
			return ok
		}
		low, high := 0, fewest-1
		if high == 0 || !fits(high) {
			continue
		}
		for low+1 < high {
			if middle := (low + high) / 2; fits(middle) {
				high = middle
			} else {
				low = middle
			}
		}
		fewest = high
		fix = &Fix{Kind: FixAddNodes, Message: fmt.Sprintf("add %s like %s", plural(high, "node"), node.Name),
			Cost: fmt.Sprintf("%d x %s", high*len(gn.Status.GPUs), model),
			with: fmt.Sprintf("%s like %s (%d x %s)", plural(high, "more node"), node.Name, len(gn.Status.GPUs), model)}
	}
	return fix
}
