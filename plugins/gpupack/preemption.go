// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	policylisters "k8s.io/client-go/listers/policy/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	schedulermetrics "k8s.io/kubernetes/pkg/scheduler/metrics"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// preemption remembers evictions from the decision until the victims are gone.
type preemption struct {
	// ctx ends with the scheduler; that of a scheduling cycle ends too early for evictions.
	ctx     context.Context
	budgets policylisters.PodDisruptionBudgetLister
	backoff wait.Backoff

	mu sync.Mutex
	// leaving has the pods that are being evicted and when each should be gone at the latest.
	leaving map[types.UID]time.Time
	// rooms are being made, by whom they are for.
	rooms map[unitKey]*room
	// failures is why no eviction helps a gang, and the state of the world in which that holds.
	failures map[types.NamespacedName]gangFailure
	// malformed are the checkpoints that have been complained of, by pod.
	malformed map[types.UID]string
	// retrying are those that will be tried again soon.
	retrying map[unitKey]bool
}

// unitKey names a gang, or a pod by itself.
type unitKey struct {
	gang types.NamespacedName
	pod  types.UID
}

// room is what an eviction makes. It does not change.
type room struct {
	// nodes by the UID of the pod that is to go there.
	nodes map[types.UID]string
	names map[types.UID]types.NamespacedName
	// awaits are the pods that must be gone first. Another pod may come by the name of one that is gone.
	awaits map[types.NamespacedName]types.UID
	until  time.Time
}

// goneSlack is how long after its grace period a pod is still expected to go.
const goneSlack = 30 * time.Second

func newPreemption(ctx context.Context, handle fwk.Handle) *preemption {
	return &preemption{
		ctx:       ctx,
		budgets:   handle.SharedInformerFactory().Policy().V1().PodDisruptionBudgets().Lister(),
		backoff:   evictionBackoff,
		leaving:   map[types.UID]time.Time{},
		rooms:     map[unitKey]*room{},
		failures:  map[types.NamespacedName]gangFailure{},
		malformed: map[types.UID]string{},
		retrying:  map[unitKey]bool{},
	}
}

// podGone forgets a pod that no longer exists.
func (m *preemption) podGone(pod *corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.leaving, pod.UID)
	delete(m.malformed, pod.UID)
	delete(m.rooms, unitKey{pod: pod.UID})
}

// placed forgets the room made for a gang that has its place, or exists no more.
func (m *preemption) placed(gang types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.rooms, unitKey{gang: gang})
	delete(m.failures, gang)
}

// evicted returns when each pod that is being evicted should be gone. One that is still there then is expected to go no more.
func (m *preemption) evicted(now time.Time) map[types.UID]time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.leaving, func(_ types.UID, until time.Time) bool { return now.After(until) })
	return maps.Clone(m.leaving)
}

// unit is a gang, or a pod by itself, that finds no room.
type unit struct {
	key  unitKey
	pods []*corev1.Pod
	need int
	// priority is the lowest of the pods'.
	priority int32
	// gang is nil for a pod by itself.
	gang *gang
}

func (u *unit) String() string {
	if u.gang != nil {
		return "PodGroup " + u.key.gang.String()
	}
	return "pod " + u.pods[0].Namespace + "/" + u.pods[0].Name
}

// unitOf returns the pod's gang, or the pod by itself. The text is why preemption is not for it.
func (p *Plugin) unitOf(pod *corev1.Pod) (*unit, string) {
	name := groupOf(pod)
	u := &unit{key: unitKey{pod: pod.UID}, pods: []*corev1.Pod{pod}, need: 1}
	if name.Name != "" {
		g, err := p.gang(name)
		switch {
		case err != nil, g.missing() > 0, p.gangs.underWay(name), len(g.pending) == 0:
			return nil, "the gang cannot start"
		case g.held >= int(g.group.Spec.MinMember):
			return nil, "nothing is evicted for members beyond the gang's minimum"
		}
		u = &unit{key: unitKey{gang: name}, pods: g.pending, need: g.need(), gang: g}
	}
	u.priority = corev1helpers.PodPriority(u.pods[0])
	for _, pod := range u.pods {
		u.priority = min(u.priority, corev1helpers.PodPriority(pod))
		if policy := pod.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
			return nil, fmt.Sprintf("pod %s has preemptionPolicy Never", pod.Name)
		}
	}
	return u, ""
}

func noPreemption(why string) *fwk.Status {
	return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "preemption: "+why)
}

// preempt evicts what stands in the way of the pod, or of its whole gang, and nominates it for the room that this makes.
func (p *Plugin) preempt(ctx context.Context, pod *corev1.Pod, statuses fwk.NodeToStatusReader) (*fwk.PostFilterResult, *fwk.Status) {
	schedulermetrics.PreemptionAttempts.Inc()
	// An earlier nomination of a pod for which no room is made is void.
	void := framework.NewPostFilterResultWithNominatedNode("")
	u, why := p.unitOf(pod)
	if u == nil {
		return void, noPreemption(why)
	}
	infos, err := p.handle.SnapshotSharedLister().NodeInfos().List()
	if err != nil {
		return nil, fwk.AsStatus(err)
	}
	if result, status := p.awaitRoom(ctx, u, pod); result != nil {
		return result, status
	}
	var fingerprint string
	if u.gang != nil {
		fingerprint = p.fingerprint(u.gang, infos)
		p.preemption.mu.Lock()
		known, ok := p.preemption.failures[u.key.gang]
		p.preemption.mu.Unlock()
		if ok && known.fingerprint == fingerprint {
			return void, noPreemption(known.message)
		}
	}
	fw, ok := p.handle.(framework.Framework)
	if !ok {
		return nil, fwk.AsStatus(fmt.Errorf("the scheduler's handle is a %T, which cannot run the filters that preemption needs", p.handle))
	}
	plan, d, why := p.decide(ctx, fw, u, infos, statuses)
	if plan == nil {
		if u.gang != nil {
			p.preemption.mu.Lock()
			p.preemption.failures[u.key.gang] = gangFailure{fingerprint, why}
			p.preemption.mu.Unlock()
		}
		if p.ledger.anyPlanned() {
			// What is in the way may be about to be bound, and can only then be evicted. No event tells.
			p.retrySoon(u)
		}
		return void, noPreemption(why)
	}
	return p.makeRoom(ctx, u, pod, plan, d)
}

// awaitRoom nominates the unit again for room that is still being made.
func (p *Plugin) awaitRoom(ctx context.Context, u *unit, pod *corev1.Pod) (*fwk.PostFilterResult, *fwk.Status) {
	m := p.preemption
	m.mu.Lock()
	r := m.rooms[u.key]
	m.mu.Unlock()
	if r == nil {
		return nil, nil
	}
	left := 0
	for name, uid := range r.awaits {
		if pod, err := p.pods.Pods(name.Namespace).Get(name.Name); err == nil && pod.UID == uid {
			left++
		}
	}
	_, known := r.nodes[pod.UID]
	if left == 0 || !known || p.clock.Now().After(r.until) {
		m.mu.Lock()
		delete(m.rooms, u.key)
		m.mu.Unlock()
		return nil, nil
	}
	return p.nominate(ctx, u, pod, r), noPreemption(awaiting(left))
}

// nominate makes the filters of pods of lower priority count the unit's pods where they are to go.
func (p *Plugin) nominate(ctx context.Context, u *unit, pod *corev1.Pod, r *room) *fwk.PostFilterResult {
	for _, pod := range u.pods {
		if node, ok := r.nodes[pod.UID]; ok {
			p.nominatePod(ctx, pod, node)
		}
	}
	return framework.NewPostFilterResultWithNominatedNode(r.nodes[pod.UID])
}

// making returns the rooms that are being made.
func (m *preemption) making(now time.Time) []*room {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.rooms, func(_ unitKey, r *room) bool { return now.After(r.until) })
	return slices.Collect(maps.Values(m.rooms))
}

// keepRooms nominates pods again for the rooms that are being made for them. The queue forgets nominations that are not in a
// pod's status yet when it moves the pod.
func (p *Plugin) keepRooms(ctx context.Context) {
	// The queue may be waiting for the lock when it is asked.
	for _, r := range p.preemption.making(p.clock.Now()) {
		for uid, node := range r.nodes {
			if slices.ContainsFunc(p.handle.NominatedPodsForNode(node), func(pi fwk.PodInfo) bool { return pi.GetPod().UID == uid }) {
				continue
			}
			pod, err := p.pods.Pods(r.names[uid].Namespace).Get(r.names[uid].Name)
			if err == nil && pod.UID == uid && pod.Spec.NodeName == "" && !p.ledger.has(string(uid)) {
				p.nominatePod(ctx, pod, node)
			}
		}
	}
}

func (p *Plugin) nominatePod(ctx context.Context, pod *corev1.Pod, node string) {
	if info, err := framework.NewPodInfo(pod); err == nil {
		p.handle.AddNominatedPod(p.logger(ctx), info, &fwk.NominatingInfo{NominatingMode: fwk.ModeOverride, NominatedNodeName: node})
	}
}

// scene has the objects behind the positions in a plan of what to evict.
type scene struct {
	infos   []fwk.NodeInfo
	victims []victimUnit
	leaving []podOnNode
	// until is when the last of those that leave should be gone.
	until time.Time
}

// victimUnit is what can be evicted of a gang, or a pod by itself.
type victimUnit struct {
	gang types.NamespacedName
	pods []podOnNode
	// members are all of the gang that are on nodes.
	members int
}

type podOnNode struct {
	*corev1.Pod
	// node is a position in the scene's infos.
	node int
}

// decide plans the unit on the nodes as they would be without what leaves anyway and without what could be evicted. The text is
// why nothing helps.
func (p *Plugin) decide(ctx context.Context, fw framework.Framework, u *unit, infos []fwk.NodeInfo, statuses fwk.NodeToStatusReader,
) (*pack.PreemptionPlan, *scene, string) {
	now := p.clock.Now()
	// In the order in which gangs are planned.
	infos = sortedByName(infos)
	d := &scene{infos: infos}
	if !p.collect(u, d, now) {
		return nil, nil, "no pod of lower priority is in the way"
	}
	// The filters would count members that are nominated already beside their places in this plan.
	for _, pod := range u.pods {
		p.handle.DeleteNominatedPodIfExists(pod)
	}
	constraints, err := newGangConstraints(ctx, fw, infos, u.pods)
	if err != nil {
		return nil, nil, err.Error()
	}
	r := &rehearsal{gangConstraints: constraints, victims: d.victims}
	if u.gang == nil {
		r.unsuited = make([]bool, len(infos))
		for i := range infos {
			r.unsuited[i] = statuses.Get(infos[i].Node().Name).Code() == fwk.UnschedulableAndUnresolvable
		}
	}
	leaving := map[int][]*corev1.Pod{}
	for _, pod := range d.leaving {
		r.remove(pod)
		leaving[pod.node] = append(leaving[pod.node], pod.Pod)
	}
	request := &pack.Preemption{
		Nodes:   make([]*pack.Node, len(infos)),
		Classes: constraints.requests, Members: constraints.members, Need: u.need,
		Constraints: r,
	}
	if request.Domains, err = p.domainsOf(u, infos); err != nil {
		return nil, nil, err.Error()
	}
	back := p.heldBack(u.pods...)
	uids := make(map[types.UID]bool, len(u.pods))
	for _, pod := range u.pods {
		uids[pod.UID] = true
	}
	for i := range infos {
		request.Nodes[i] = p.withNominated(back.node(p, infos[i]), leaving[i], u.priority, func(pod *corev1.Pod) bool { return uids[pod.UID] })
	}
	p.describe(d, request, now)
	start := p.clock.Now()
	plan, failure := p.chooser.Preempt(request)
	preemptionDuration.Observe(p.clock.Since(start).Seconds())
	if failure != nil {
		return nil, nil, "no eviction of pods of lower priority would make room: " + failure.Error()
	}
	return plan, d, ""
}

// domainsOf returns the domains in which a gang should stay, nil for one that does not care.
func (p *Plugin) domainsOf(u *unit, infos []fwk.NodeInfo) (*pack.Domains, error) {
	if u.gang == nil {
		return nil, nil
	}
	spec, err := convert.Gang(u.gang.group)
	if err != nil {
		return nil, err
	}
	holders, err := p.holders(u.gang.name)
	if err != nil {
		return nil, err
	}
	return p.gangDomains(u.gang, &spec, infos, holders)
}

// collect finds what leaves the nodes anyway and what could be evicted, and says whether there is any.
func (p *Plugin) collect(u *unit, d *scene, now time.Time) bool {
	gangs := map[types.NamespacedName]*victimUnit{}
	var names []types.NamespacedName
	evicted := p.preemption.evicted(now)
	for i, info := range d.infos {
		for _, pi := range info.GetPods() {
			pod := podOnNode{pi.GetPod(), i}
			if convert.IsTerminal(pod.Pod) {
				continue
			}
			until, leaves := evicted[pod.UID]
			if pod.DeletionTimestamp != nil {
				until, leaves = pod.DeletionTimestamp.Add(goneSlack), true
			}
			if leaves {
				if now.Before(until) {
					d.leaving = append(d.leaving, pod)
					if until.After(d.until) {
						d.until = until
					}
				}
				continue
			}
			lower := corev1helpers.PodPriority(pod.Pod) < u.priority
			name := groupOf(pod.Pod)
			known := false
			if name.Name != "" {
				_, known = p.groups.find(name)
			}
			if !known {
				if lower {
					d.victims = append(d.victims, victimUnit{pods: []podOnNode{pod}, members: 1})
				}
				continue
			}
			if name == u.key.gang {
				continue
			}
			g := gangs[name]
			if g == nil {
				g = &victimUnit{gang: name}
				gangs[name] = g
				names = append(names, name)
			}
			g.members++
			if lower {
				g.pods = append(g.pods, pod)
			}
		}
	}
	for _, name := range names {
		g := gangs[name]
		if len(g.pods) == 0 || len(g.pods) < g.members && p.elastic(g) == 0 {
			continue
		}
		slices.SortFunc(g.pods, func(a, b podOnNode) int {
			return cmp.Or(cmp.Compare(corev1helpers.PodPriority(b.Pod), corev1helpers.PodPriority(a.Pod)), compareMembers(a.Pod, b.Pod))
		})
		d.victims = append(d.victims, *g)
	}
	return len(d.victims) > 0 || len(d.leaving) > 0
}

// elastic is how many of a gang's members can go without the others.
func (p *Plugin) elastic(v *victimUnit) int {
	group, ok := p.groups.find(v.gang)
	if !ok {
		return 0
	}
	return min(len(v.pods), max(0, v.members-max(1, int(group.Spec.MinMember))))
}

// describe turns victims into those of package pack.
func (p *Plugin) describe(d *scene, request *pack.Preemption, now time.Time) {
	budgets := p.disruptionBudgets()
	for i := range budgets {
		request.Budgets = append(request.Budgets, budgets[i].allowed)
	}
	for i := range d.victims {
		unit := &d.victims[i]
		v := pack.Victim{ID: unit.pods[0].Namespace + "/" + unit.pods[0].Name}
		if unit.gang.Name != "" {
			v = pack.Victim{ID: unit.gang.String(), Elastic: p.elastic(unit), Pinned: len(unit.pods) < unit.members}
		}
		for _, pod := range unit.pods {
			v.Pods = append(v.Pods, pack.VictimPod{
				ID: string(pod.UID), Node: pod.node,
				Request:  held(pod.Pod),
				Priority: corev1helpers.PodPriority(pod.Pod),
				Loss:     p.loss(pod.Pod, request.Nodes[pod.node], now),
				Budgets:  budgets.of(pod.Pod),
			})
		}
		request.Victims = append(request.Victims, v)
	}
}

// held is what a node has more of once the pod is gone. Memory is rounded down, as is what is free of the node's.
func held(pod *corev1.Pod) pack.Request {
	// A malformed request holds what there is of it.
	r, _ := convert.Request(pod)
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	r.MemoryMiB = requests.Memory().Value() >> 20
	return r
}

// loss is the work that ends with the pod, in GPU seconds: what it has done since it started or last saved its work. A CPU
// counts as a thousandth of a GPU.
func (p *Plugin) loss(pod *corev1.Pod, n *pack.Node, now time.Time) float64 {
	if pod.Status.StartTime == nil {
		return 0
	}
	since := pod.Status.StartTime.Time
	if text, ok := pod.Annotations[v1alpha1.AnnotationLastCheckpoint]; ok {
		at, err := time.Parse(time.RFC3339, text)
		switch {
		case err != nil:
			p.complainOfCheckpoint(pod, text)
		case at.After(since):
			since = at
		}
	}
	r, _ := convert.Request(pod)
	gpus := float64(r.GPUs)
	if r.IsShare() {
		var usable int64
		if len(n.GPUs) > 0 {
			usable = n.GPUs[0].UsableMiB()
		}
		gpus = float64(r.MilliOn(usable)) / pack.WholeMilli
	}
	return max(0, now.Sub(since).Seconds()) * (gpus + float64(r.CPUMilli)/1e6)
}

// complainOfCheckpoint says once what is wrong with the annotation.
func (p *Plugin) complainOfCheckpoint(pod *corev1.Pod, text string) {
	p.preemption.mu.Lock()
	known, ok := p.preemption.malformed[pod.UID]
	p.preemption.malformed[pod.UID] = text
	p.preemption.mu.Unlock()
	if ok && known == text {
		return
	}
	p.handle.EventRecorder().Eventf(pod, nil, corev1.EventTypeWarning, "InvalidCheckpoint", "Ignored",
		"annotation %s is %q: write a time such as 2026-01-31T09:30:00Z; until then preemption counts the pod's work from its start",
		v1alpha1.AnnotationLastCheckpoint, text)
}

// disruptionBudgets are the PodDisruptionBudgets that count any pod.
type disruptionBudgets []disruptionBudget

type disruptionBudget struct {
	namespace string
	selector  labels.Selector
	allowed   int
	disrupted map[string]metav1.Time
}

func (p *Plugin) disruptionBudgets() disruptionBudgets {
	list, err := p.preemption.budgets.List(labels.Everything())
	if err != nil {
		return nil
	}
	slices.SortFunc(list, func(a, b *policyv1.PodDisruptionBudget) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	var out disruptionBudgets
	for _, b := range list {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil || selector.Empty() {
			continue
		}
		out = append(out, disruptionBudget{b.Namespace, selector, int(b.Status.DisruptionsAllowed), b.Status.DisruptedPods})
	}
	return out
}

// of returns the positions of the budgets that count the pod.
func (b disruptionBudgets) of(pod *corev1.Pod) []int {
	var out []int
	for i := range b {
		if b[i].namespace != pod.Namespace || len(pod.Labels) == 0 || !b[i].selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		// The API server has counted this one already.
		if _, ok := b[i].disrupted[pod.Name]; !ok {
			out = append(out, i)
		}
	}
	return out
}

// withNominated is a node's state without the pods that leave it, and with those nominated to it whose priority is not below that.
// Others than except count.
func (p *Plugin) withNominated(n *pack.Node, leaving []*corev1.Pod, priority int32, except func(*corev1.Pod) bool) *pack.Node {
	owned := false
	own := func() {
		if !owned {
			n, owned = n.Clone(), true
		}
	}
	for _, pod := range leaving {
		own()
		r := held(pod)
		n.Remove(&r, string(pod.UID))
	}
	for _, pi := range p.handle.NominatedPodsForNode(n.Name) {
		// Of a pod that it holds nowhere at the moment, the queue knows no more than the name.
		pod := p.latest(pi.GetPod())
		if corev1helpers.PodPriority(pod) < priority || except(pod) || p.ledger.has(string(pod.UID)) {
			continue
		}
		own()
		// A malformed request holds what there is of it.
		r, _ := convert.Request(pod)
		n.Place(&r, string(pod.UID), pack.Squeeze(n, &r))
	}
	return n
}

// rehearsal is constraints for a gang on nodes that pods leave.
type rehearsal struct {
	*gangConstraints
	victims []victimUnit
	// unsuited are nodes that the pod's own scheduling cycle found unsuitable whatever else is there.
	unsuited []bool
	hopeless bool
}

var _ pack.Evictions = &rehearsal{}

// Feasible implements pack.Constraints.
func (r *rehearsal) Feasible(class, node int) (bool, string) {
	var status *fwk.Status
	if r.unsuited != nil && r.unsuited[node] && r.classes[class].rejected == "" {
		status = ruledOut()
	} else {
		status = r.filter(class, node)
	}
	r.hopeless = status.Code() == fwk.UnschedulableAndUnresolvable
	return status.IsSuccess(), status.Message()
}

// Hopeless implements pack.Evictions.
func (r *rehearsal) Hopeless() bool { return r.hopeless }

// Evicted implements pack.Evictions.
func (r *rehearsal) Evicted(victim, pod int) { r.remove(r.victims[victim].pods[pod]) }

// Restored implements pack.Evictions.
func (r *rehearsal) Restored(victim, pod int) {
	p := r.victims[victim].pods[pod]
	info, _ := framework.NewPodInfo(p.Pod)
	r.add(p.node, info, true)
}

func (r *rehearsal) remove(pod podOnNode) {
	info, _ := framework.NewPodInfo(pod.Pod)
	r.take(pod.node, info, true)
}
