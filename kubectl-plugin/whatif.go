// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	schedulinghelper "k8s.io/component-helpers/scheduling/corev1"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// WhatIf is the answer of kubectl gpupack simulate on a snapshot: where pods would go.
type WhatIf struct {
	metav1.TypeMeta `json:",inline"`
	// TakenAt is the time of the snapshot.
	TakenAt      metav1.MicroTime `json:"takenAt"`
	Policy       string           `json:"policy"`
	AddedNodes   []AddedNodes     `json:"addedNodes"`
	DrainedNodes []string         `json:"drainedNodes"`
	// Before is the snapshot as it was taken, After once the pods are where they go. After does not count drained nodes.
	Before Allocation `json:"before"`
	After  Allocation `json:"after"`
	// Placed of the Pods found a node.
	Placed int `json:"podsPlaced"`
	// Pods in the order in which they were placed.
	Pods []WhatIfPod `json:"pods"`
	// Unchecked is what some of the pods demand that was not looked at.
	Unchecked []Unchecked `json:"unchecked"`
}

// Allocation is how much of the GPUs is promised to pods.
type Allocation struct {
	Nodes int `json:"nodes"`
	GPUs  int `json:"gpus"`
	// Milli is the part of them that pods were promised, compute or memory, whichever is more of a GPU; milli-GPU.
	Milli int64 `json:"allocatedMilli"`
	// Percent is the same of all GPUs.
	Percent float64 `json:"allocatedPercent"`
	// FreeWhole counts the GPUs that a pod could be given whole.
	FreeWhole int `json:"gpusFreeWhole"`
}

// Origin says why a pod needs a place.
type Origin string

// Origins.
const (
	OriginPending Origin = "pending"
	OriginEvicted Origin = "evicted"
	OriginNew     Origin = "new"
)

// WhatIfPod is where a pod would go, or why nowhere.
type WhatIfPod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Origin    Origin `json:"origin"`
	Priority  int32  `json:"priority"`
	Request   string `json:"request"`
	Gang      string `json:"gang,omitempty"`
	// Node is empty where there is no place.
	Node string      `json:"node,omitempty"`
	GPUs []PlacedGPU `json:"gpus"`
	// Reason is why there is no place, in one sentence, and Reasons count the nodes by what is in the way there.
	Reason  string        `json:"reason,omitempty"`
	Reasons []ReasonCount `json:"reasons,omitempty"`

	shortRequest string
}

// Unchecked is a demand of pods that was not looked at.
type Unchecked struct {
	Demand string `json:"demand"`
	Pods   int    `json:"pods"`
}

// whatIfOptions are what is changed in the snapshot.
type whatIfOptions struct {
	policy string
	add    []moreNodes
	drain  []string
	new    *manifest
	// progress is told how many of the pods have been looked at; nil is fine.
	progress func(done, total int)
}

// arrival is a pod that needs a place.
type arrival struct {
	pod    *corev1.Pod
	origin Origin
	// since and then created decide among pods of equal priority, and order at last.
	since, created time.Time
	order          int
	outcome        WhatIfPod
}

// whatIf places pods on the snapshot as gpupack-scheduler would. It changes the snapshot.
func (s *snapshot) whatIf(ctx context.Context, o *whatIfOptions, view viewOptions) (*WhatIf, error) {
	answer := &WhatIf{TypeMeta: typeMeta("WhatIf"), TakenAt: metav1.NewMicroTime(s.now.UTC()), Policy: o.policy, AddedNodes: []AddedNodes{},
		DrainedNodes: []string{}, Pods: []WhatIfPod{}, Unchecked: []Unchecked{}}
	chooser, _, err := newChooser(o.policy, s, view)
	if err != nil {
		return nil, err
	}
	answer.Before = newCandidates(s, s.requests(), chooser, view).allocation(nil)

	var waiting []*arrival
	wait := func(pod *corev1.Pod, origin Origin, created time.Time) {
		waiting = append(waiting, &arrival{pod: pod, origin: origin, since: s.now, created: created, order: len(waiting)})
	}
	for _, pod := range s.takePending() {
		wait(pod, OriginPending, pod.CreationTimestamp.Time)
	}
	for _, name := range o.drain {
		evicted, err := s.drain(name)
		if err != nil {
			return nil, err
		}
		answer.DrainedNodes = append(answer.DrainedNodes, name)
		for _, pod := range evicted {
			wait(pod, OriginEvicted, s.now)
		}
	}
	if answer.AddedNodes, err = s.addNodes(o.add); err != nil {
		return nil, err
	}
	if o.new != nil {
		if err := s.prioritise(o.new.pods); err != nil {
			return nil, err
		}
		for _, pod := range o.new.pods {
			wait(pod, OriginNew, s.now)
		}
		s.replacePodGroups(o.new.groups)
	}

	// The added nodes count in what the policy knows of the cluster.
	chooser, distribution, err := newChooser(o.policy, s, view)
	if err != nil {
		return nil, err
	}
	run := &whatIfRun{s: s, c: newCandidates(s, s.requests(), chooser, view), distribution: distribution}
	if err := run.place(ctx, waiting, o.progress); err != nil {
		return nil, err
	}
	answer.After = run.c.allocation(answer.DrainedNodes)
	unchecked := map[string]int{}
	for _, a := range run.order {
		if a.outcome.Node != "" {
			answer.Placed++
		}
		answer.Pods = append(answer.Pods, a.outcome)
		for _, demand := range uncheckedDemands(a.pod) {
			unchecked[demand]++
		}
	}
	for _, demand := range demands {
		if n := unchecked[demand]; n > 0 {
			answer.Unchecked = append(answer.Unchecked, Unchecked{demand, n})
		}
	}
	return answer, nil
}

// requests sums what pods hold of the nodes.
func (s *snapshot) requests() requests {
	taken := requests{}
	for i := range s.pods {
		if s.pods[i].Spec.NodeName != "" {
			taken.add(&s.pods[i])
		}
	}
	return taken
}

// allocation is how much of the nodes is promised, without those named.
func (c *candidates) allocation(without []string) Allocation {
	var a Allocation
	for i, n := range c.states {
		if slices.Contains(without, n.Name) {
			continue
		}
		a.Nodes++
		if len(n.GPUs) == 0 {
			// Without telemetry there is what the API knows.
			held := c.taken[n.Name][v1alpha1.ResourceGPU]
			a.GPUs += int(capacity(&c.nodes[i]))
			a.Milli += held.Value() * pack.WholeMilli
		}
		for j := range n.GPUs {
			g := &n.GPUs[j]
			a.GPUs++
			var milli, mib int64
			for k := range g.Tenants {
				milli += g.Tenants[k].Milli
				mib += g.Tenants[k].RequestedMiB
			}
			if usable := g.UsableMiB(); usable > 0 {
				milli = max(milli, (mib*pack.WholeMilli+usable-1)/usable)
			}
			a.Milli += min(milli, pack.WholeMilli)
			if len(g.Tenants) == 0 && g.Unhealthy == "" && g.ForeignMiB <= c.chooser.Limits.WholeForeignMiB &&
				n.Problem == pack.ReasonFits && !c.nodes[i].Spec.Unschedulable {
				a.FreeWhole++
			}
		}
	}
	if a.GPUs > 0 {
		a.Percent = float64(a.Milli) / float64(a.GPUs) / pack.WholeMilli * 100
	}
	return a
}

// takePending takes the pods without a node out of the snapshot.
func (s *snapshot) takePending() []*corev1.Pod {
	var out []*corev1.Pod
	s.pods = slices.DeleteFunc(s.pods, func(p corev1.Pod) bool {
		if p.Spec.NodeName != "" {
			return false
		}
		out = append(out, &p)
		return true
	})
	return out
}

// drain cordons a node and takes its pods out of the snapshot, as kubectl drain would. It returns them as they come back.
func (s *snapshot) drain(name string) ([]*corev1.Pod, error) {
	at := slices.IndexFunc(s.nodes, func(n corev1.Node) bool { return n.Name == name })
	if at < 0 {
		return nil, fmt.Errorf("node %q to drain is not in the snapshot", name)
	}
	s.nodes[at].Spec.Unschedulable = true
	var out []*corev1.Pod
	s.pods = slices.DeleteFunc(s.pods, func(p corev1.Pod) bool {
		if p.Spec.NodeName != name || staysOnDrain(&p) {
			return false
		}
		if p.DeletionTimestamp == nil {
			pod := p.DeepCopy()
			pod.Spec.NodeName, pod.Status.Phase = "", corev1.PodPending
			delete(pod.Annotations, v1alpha1.AnnotationGPUs)
			out = append(out, pod)
		}
		return true
	})
	return out, nil
}

// staysOnDrain says whether kubectl drain leaves a pod alone: a daemon's, or a static one.
func staysOnDrain(pod *corev1.Pod) bool {
	owner := metav1.GetControllerOf(pod)
	return owner != nil && (owner.Kind == "DaemonSet" || owner.Kind == "Node")
}

// prioritise gives pods the priority that the API server would give them.
func (s *snapshot) prioritise(pods []*corev1.Pod) error {
	values := map[string]int32{"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
	standard := int32(0)
	for i := range s.priorityClasses {
		p := &s.priorityClasses[i]
		values[p.Name] = p.Value
		if p.GlobalDefault {
			standard = p.Value
		}
	}
	for _, pod := range pods {
		priority := standard
		if name := pod.Spec.PriorityClassName; name != "" {
			value, ok := values[name]
			if !ok && pod.Spec.Priority == nil {
				return fmt.Errorf("pod %s/%s: the snapshot has no PriorityClass %q", pod.Namespace, pod.Name, name)
			}
			priority = value
		}
		if pod.Spec.Priority == nil {
			pod.Spec.Priority = &priority
		}
	}
	return nil
}

// replacePodGroups adds PodGroups, in place of those of the same name.
func (s *snapshot) replacePodGroups(groups []podgroupv1alpha1.PodGroup) {
	for i := range groups {
		if old := s.podGroup(types.NamespacedName{Namespace: groups[i].Namespace, Name: groups[i].Name}); old != nil {
			created := old.CreationTimestamp
			*old = groups[i]
			old.CreationTimestamp = created
			continue
		}
		s.podGroups = append(s.podGroups, groups[i])
	}
}

// whatIfRun places arrivals.
type whatIfRun struct {
	s *snapshot
	c *candidates
	// distribution learns of pods that no scheduler has seen yet.
	distribution *pack.Distribution
	// order is the arrivals that have been looked at.
	order []*arrival
}

// place looks at all arrivals, in the order of the scheduler's queue: by priority, then by age. A gang is as old as its PodGroup.
// To the queue, other pods are as old as their last turn, which comes when the cluster changes, that is now. Nothing that is
// placed leaves, so that one pass is enough.
func (w *whatIfRun) place(ctx context.Context, waiting []*arrival, progress func(done, total int)) error {
	gangs := map[types.NamespacedName][]*arrival{}
	for _, a := range waiting {
		if gang := gangKey(a.pod); gang.Name != "" {
			gangs[gang] = append(gangs[gang], a)
			if group := w.s.podGroup(gang); group != nil && !group.CreationTimestamp.IsZero() {
				a.since = group.CreationTimestamp.Time
			}
		}
	}
	slices.SortStableFunc(waiting, func(a, b *arrival) int {
		return cmp.Or(
			cmp.Compare(schedulinghelper.PodPriority(b.pod), schedulinghelper.PodPriority(a.pod)),
			a.since.Compare(b.since),
			a.created.Compare(b.created),
			cmp.Compare(gangKey(a.pod).String(), gangKey(b.pod).String()),
			cmp.Compare(a.order, b.order),
		)
	})
	done := map[*arrival]bool{}
	for i := 0; i < len(waiting); i++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if progress != nil {
			progress(i, len(waiting))
		}
		a := waiting[i]
		if done[a] {
			continue
		}
		unit := []*arrival{a}
		gang := gangKey(a.pod)
		if gang.Name != "" {
			unit = gangs[gang]
		} else {
			// Pods that are alike are placed in one go, which is much faster than one by one and comes to the same.
			for _, next := range waiting[i+1:] {
				if done[next] || !w.alike(a, next) {
					break
				}
				unit = append(unit, next)
			}
		}
		for _, member := range unit {
			done[member] = true
			if r, err := convert.Request(member.pod); err == nil && member.origin != OriginPending {
				w.distribution.Observe(&r)
			}
		}
		if gang.Name != "" {
			w.placeGang(gang, unit)
		} else {
			w.placeAlike(unit)
		}
		w.order = append(w.order, unit...)
	}
	return nil
}

func gangKey(pod *corev1.Pod) types.NamespacedName {
	if name := gangOf(pod); name != "" {
		return types.NamespacedName{Namespace: pod.Namespace, Name: name}
	}
	return types.NamespacedName{}
}

// alike says whether nothing that decides where they go differs between two pods.
func (w *whatIfRun) alike(a, b *arrival) bool {
	if gangOf(b.pod) != "" || w.obstacle(a) != "" || w.obstacle(b) != "" {
		return false
	}
	x, errX := convert.Request(a.pod)
	y, errY := convert.Request(b.pod)
	return errX == nil && errY == nil && classKey(a.pod, &x) == classKey(b.pod, &y)
}

// obstacle is why a pod is not tried on any node; empty if it is.
func (w *whatIfRun) obstacle(a *arrival) string {
	_, err := convert.Request(a.pod)
	switch {
	case len(a.pod.Spec.SchedulingGates) > 0:
		return fmt.Sprintf("it is held back by the scheduling gate %s", a.pod.Spec.SchedulingGates[0].Name)
	case a.origin != OriginEvicted && a.pod.Spec.SchedulerName != v1alpha1.SchedulerName:
		return fmt.Sprintf("it is left to scheduler %q: gpupack places pods with schedulerName: %s", a.pod.Spec.SchedulerName,
			v1alpha1.SchedulerName)
	case err != nil:
		return "its request is wrong: " + err.Error()
	}
	return ""
}

// placeAlike places pods that are alike, as many of them as fit.
func (w *whatIfRun) placeAlike(unit []*arrival) {
	if why := w.obstacle(unit[0]); why != "" {
		unit[0].fail(why, nil)
		return
	}
	plan, _, err := w.c.plan(podsOf(unit), 0, nil)
	if err != nil {
		// The requests have been read before without an error.
		unit[0].fail(err.Error(), nil)
		return
	}
	w.commit(unit, plan)
}

// placeGang places at least as many of a gang's pods as it needs, or none.
func (w *whatIfRun) placeGang(name types.NamespacedName, unit []*arrival) {
	var members []*arrival
	for _, a := range unit {
		if why := w.obstacle(a); why != "" {
			a.fail(why, nil)
		} else {
			members = append(members, a)
		}
	}
	failAll := func(format string, args ...any) {
		for _, a := range members {
			a.fail(fmt.Sprintf(format, args...), nil)
		}
	}
	if len(members) == 0 {
		return
	}
	group := w.s.podGroup(name)
	if group == nil {
		failAll("PodGroup %s does not exist in namespace %s", name.Name, name.Namespace)
		return
	}
	// Pods without a node were taken out of the snapshot.
	var held []*corev1.Pod
	for i := range w.s.pods {
		if pod := &w.s.pods[i]; gangKey(pod) == name {
			held = append(held, pod)
		}
	}
	minMember := int(group.Spec.MinMember)
	if missing := minMember - len(held) - len(members); missing > 0 {
		failAll("PodGroup %s waits for %d more pods: it needs %d and has %d", name.Name, missing, minMember, len(held)+len(members))
		return
	}
	plan, failure, err := w.c.planGang(group, held, podsOf(members), convert.DefaultTopologyDomains())
	var invalid *invalidMember
	switch {
	case errors.As(err, &invalid):
		failAll("PodGroup %s waits: %v", name.Name, invalid)
	case err != nil:
		failAll("%v", err)
	case failure != nil:
		failAll("PodGroup %s waits: %v", name.Name, failure)
	default:
		w.commit(members, plan)
	}
}

func podsOf(unit []*arrival) []*corev1.Pod {
	pods := make([]*corev1.Pod, len(unit))
	for i, a := range unit {
		pods[i] = a.pod
	}
	return pods
}

// commit puts the planned pods on their nodes, and says of the others why they have none.
func (w *whatIfRun) commit(unit []*arrival, plan []placed) {
	w.c.commit(plan)
	byPod := make(map[*corev1.Pod]*placed, len(plan))
	for i := range plan {
		byPod[plan[i].pod] = &plan[i]
	}
	said := map[string]*verdicts{}
	for _, a := range unit {
		if p := byPod[a.pod]; p != nil {
			a.succeed(w.c.states[p.node], p)
			continue
		}
		request, _ := convert.Request(a.pod)
		key := classKey(a.pod, &request)
		if said[key] == nil {
			said[key] = w.c.judge(a.pod, &request)
		}
		a.fail(fmt.Sprintf("none of %s fits", plural(len(w.c.nodes), "node")), said[key].reasons)
	}
}

func (a *arrival) describe() WhatIfPod {
	out := WhatIfPod{Namespace: a.pod.Namespace, Name: a.pod.Name, Origin: a.origin, Priority: schedulinghelper.PodPriority(a.pod),
		Gang: gangOf(a.pod), GPUs: []PlacedGPU{}}
	if r, err := convert.Request(a.pod); err != nil {
		out.Request, out.shortRequest = "invalid: "+err.Error(), "invalid"
	} else {
		out.Request, out.shortRequest = inWords(&r), shortRequest(&r)
	}
	return out
}

func (a *arrival) fail(why string, reasons []ReasonCount) {
	a.outcome = a.describe()
	a.outcome.Reason, a.outcome.Reasons = why, reasons
}

func (a *arrival) succeed(node *pack.Node, p *placed) {
	a.outcome = a.describe()
	a.outcome.Node = node.Name
	for _, at := range p.gpus {
		a.outcome.GPUs = append(a.outcome.GPUs, PlacedGPU{node.GPUs[at].UUID, node.GPUs[at].Index})
	}
}

// What pods can demand that is not looked at.
const (
	demandPodAffinity = "pod affinity"
	demandSpread      = "topology spread"
	demandVolumes     = "volumes"
	demandPorts       = "host ports"
	demandClaims      = "resource claims"
)

var demands = []string{demandPodAffinity, demandSpread, demandVolumes, demandPorts, demandClaims}

// uncheckedDemands are those of a pod.
func uncheckedDemands(pod *corev1.Pod) []string {
	var out []string
	has := func(demand string, is bool) {
		if is {
			out = append(out, demand)
		}
	}
	a := pod.Spec.Affinity
	has(demandPodAffinity, a != nil && (a.PodAffinity != nil || a.PodAntiAffinity != nil))
	has(demandSpread, len(pod.Spec.TopologySpreadConstraints) > 0)
	has(demandVolumes, slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil || v.Ephemeral != nil
	}))
	has(demandPorts, slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
		return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.HostPort > 0 })
	}))
	has(demandClaims, len(pod.Spec.ResourceClaims) > 0)
	return out
}

// dropKnown takes the pods of a manifest out that the snapshot has already, and returns how many they were.
func (s *snapshot) dropKnown(m *manifest) int {
	known := make(map[types.NamespacedName]bool, len(s.pods))
	for i := range s.pods {
		known[types.NamespacedName{Namespace: s.pods[i].Namespace, Name: s.pods[i].Name}] = true
	}
	before := len(m.pods)
	m.pods = slices.DeleteFunc(m.pods, func(p *corev1.Pod) bool {
		return known[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}]
	})
	return before - len(m.pods)
}
