// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/utils/clock"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
)

// gangs keeps the plans under way. A plan begins when PreFilter has placed a whole gang in the ledger. It ends in one of
// two ways: enough members have come to Permit and are released together, or it is dropped with everything it holds.
type gangs struct {
	plugin *Plugin

	mu     sync.Mutex
	byName map[types.NamespacedName]*gangPlan
	// failures remembers why a gang could not be placed, so that its members do not each work that out again.
	failures map[types.NamespacedName]gangFailure
	// drops counts plans of a gang dropped in a row; it sets how long the gang waits before the next.
	drops map[types.NamespacedName]int
}

// gangPlan is one plan under way.
type gangPlan struct {
	// need is how many members must come to Permit before any is released.
	need int
	// pending are the members that the plan placed and that are not bound yet.
	pending sets.Set[types.UID]
	// arrived are those that have come to Permit.
	arrived  sets.Set[types.UID]
	released bool
	// late says that a pod of the gang waits for the end of the plan, which has no place for it.
	late     bool
	deadline clock.Timer
}

// gangFailure is a remembered failure and the state of the world in which it holds.
type gangFailure struct {
	fingerprint string
	message     string
}

func newGangs(p *Plugin) *gangs {
	return &gangs{
		plugin:   p,
		byName:   map[types.NamespacedName]*gangPlan{},
		failures: map[types.NamespacedName]gangFailure{},
		drops:    map[types.NamespacedName]int{},
	}
}

// begin records a plan whose entries are about to be put in the ledger.
func (g *gangs) begin(ctx context.Context, name types.NamespacedName, need int, members []types.UID, timeout time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	plan := &gangPlan{need: need, pending: sets.New(members...), arrived: sets.New[types.UID]()}
	plan.deadline = g.plugin.clock.AfterFunc(timeout, func() {
		g.expire(ctx, name, plan, fmt.Sprintf("its members were not ready to be bound together within %s", timeout))
	})
	g.byName[name] = plan
	delete(g.failures, name)
	g.plugin.preemption.placed(name)
}

// underWay says whether a plan of the gang has members that are not bound yet. A pod that asks this has no place in it, and is
// woken when the plan ends: another plan now would forget the places that this one keeps.
func (g *gangs) underWay(name types.NamespacedName) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	plan, ok := g.byName[name]
	if ok {
		plan.late = true
	}
	return ok
}

// arrive tells that a member has come to Permit. It returns the members to release, this one among them, whether the member
// must wait, and whether its plan still stands.
func (g *gangs) arrive(name types.NamespacedName, uid types.UID) (release []types.UID, wait, stands bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	plan, ok := g.byName[name]
	if !ok || !plan.pending.Has(uid) {
		return nil, false, false
	}
	plan.arrived.Insert(uid)
	if !plan.released && plan.arrived.Len() < plan.need {
		return nil, true, true
	}
	plan.released = true
	delete(g.drops, name)
	return plan.arrived.UnsortedList(), false, true
}

// done tells that a member is bound, or that the plan holds no place for it any more.
func (g *gangs) done(ctx context.Context, name types.NamespacedName, uid types.UID) {
	g.mu.Lock()
	plan, ok := g.byName[name]
	if ok {
		plan.pending.Delete(uid)
	}
	over := ok && plan.released && plan.pending.Len() == 0
	if over {
		plan.deadline.Stop()
		delete(g.byName, name)
	}
	wake := over && plan.late
	g.mu.Unlock()
	if wake {
		g.plugin.activate(ctx, name)
	}
}

// failed tells that a member could not take or keep its planned place. Before the release, the whole plan is dropped. After it,
// the member keeps its place until the plan's deadline, so that its gang is whole again as soon as it is retried, unless the
// place itself is what failed.
func (g *gangs) failed(ctx context.Context, name types.NamespacedName, uid types.UID, keepPlace bool, why string) {
	g.mu.Lock()
	plan, ok := g.byName[name]
	if !ok || !plan.pending.Has(uid) {
		g.mu.Unlock()
		g.plugin.ledger.dropUnbound(uid)
		return
	}
	if !plan.released {
		g.mu.Unlock()
		g.drop(ctx, name, plan, why)
		return
	}
	g.mu.Unlock()
	if !keepPlace {
		g.plugin.ledger.dropUnbound(uid)
		g.plugin.gaveBack(ctx, name)
		g.done(ctx, name, uid)
		// What made its place unfit has happened already: nothing else would make the queue try it again.
		g.plugin.clock.AfterFunc(time.Second, func() { g.plugin.activate(ctx, name) })
		return
	}
	if e, ok := g.plugin.ledger.get(uid); ok && e.phase == assumed {
		e.phase = planned
		g.plugin.ledger.put(&e)
	}
}

// memberGone tells that a pod no longer exists.
func (g *gangs) memberGone(ctx context.Context, pod *corev1.Pod) {
	name := groupOf(pod)
	if name.Name == "" {
		return
	}
	g.mu.Lock()
	plan, ok := g.byName[name]
	pending := ok && plan.pending.Has(pod.UID)
	g.mu.Unlock()
	why := fmt.Sprintf("member %s was deleted", pod.Name)
	switch {
	case pending:
		g.failed(ctx, name, pod.UID, false, why)
	case ok && pod.Spec.NodeName != "":
		// The plan counts on it: without it, too few would be released.
		g.drop(ctx, name, plan, why)
	}
}

// groupChanged tells that what a PodGroup asks for is another now, or that it is gone. A plan that has not released its members
// would start what nobody wants any more.
func (g *gangs) groupChanged(ctx context.Context, name types.NamespacedName, why string) {
	g.mu.Lock()
	plan, ok := g.byName[name]
	ok = ok && !plan.released
	g.mu.Unlock()
	if ok {
		g.drop(ctx, name, plan, why)
		return
	}
	g.plugin.activate(ctx, name)
}

// recheck drops a plan that has just begun if what it was made of has changed since it was read, of which the plan was not told.
func (g *gangs) recheck(ctx context.Context, read *gang) {
	for _, pod := range read.pending {
		if newest, err := g.plugin.pods.Pods(pod.Namespace).Get(pod.Name); err != nil || newest.UID != pod.UID {
			g.memberGone(ctx, pod)
		}
	}
	if group, ok := g.plugin.groups.find(read.name); !ok || group.UID != read.group.UID || group.Generation != read.group.Generation {
		g.groupChanged(ctx, read.name, "its PodGroup was edited or deleted")
	}
}

// expire ends a plan at its deadline.
func (g *gangs) expire(ctx context.Context, name types.NamespacedName, plan *gangPlan, why string) {
	g.mu.Lock()
	current := g.byName[name] == plan
	released, late := plan.released, plan.late
	if current && released {
		delete(g.byName, name)
	}
	g.mu.Unlock()
	switch {
	case !current:
	case released:
		// Places kept for members that were not bound in time are given back.
		for uid := range plan.pending {
			if e, ok := g.plugin.ledger.get(uid); ok && e.phase == planned {
				g.plugin.ledger.drop(uid)
			}
		}
		g.plugin.gaveBack(ctx, name)
		if late {
			g.plugin.activate(ctx, name)
		}
	default:
		g.drop(ctx, name, plan, why)
	}
}

// maxRetryDelay bounds how long a gang waits after its plans were dropped several times in a row.
const maxRetryDelay = 30 * time.Second

// drop ends a plan that has released nobody: all its places are given back, and its waiting members rejected.
func (g *gangs) drop(ctx context.Context, name types.NamespacedName, plan *gangPlan, why string) {
	g.mu.Lock()
	if g.byName[name] != plan || plan.released {
		g.mu.Unlock()
		return
	}
	delete(g.byName, name)
	plan.deadline.Stop()
	g.drops[name]++
	delay := min(time.Second<<min(g.drops[name]-1, 10), maxRetryDelay)
	g.mu.Unlock()

	gangPlans.WithLabelValues("dropped").Inc()
	g.plugin.logger(ctx).Info("Dropped the plan of a gang", "podGroup", name, "reason", why)
	for uid := range plan.pending {
		g.plugin.ledger.dropUnbound(uid)
	}
	for uid := range plan.arrived {
		if waiting := g.plugin.handle.GetWaitingPod(uid); waiting != nil {
			waiting.Reject(Name, fmt.Sprintf("the plan of PodGroup %s was dropped: %s", name.Name, why))
		}
	}
	g.plugin.gaveBack(ctx, name)
	// No event of the API tells the queue that the gang may try again.
	g.plugin.clock.AfterFunc(delay, func() { g.plugin.activate(ctx, name) })
}

// remember keeps why a gang could not be placed.
func (g *gangs) remember(name types.NamespacedName, fingerprint, message string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failures[name] = gangFailure{fingerprint, message}
}

// remembered returns the failure of a gang if nothing has changed since.
func (g *gangs) remembered(name types.NamespacedName, fingerprint string) *fwk.Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f, ok := g.failures[name]; ok && f.fingerprint == fingerprint {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, f.message)
	}
	return nil
}

// forget drops what is remembered of a gang that exists no more.
func (g *gangs) forget(name types.NamespacedName) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.failures, name)
	delete(g.drops, name)
	g.plugin.preemption.placed(name)
}

// gang is a PodGroup and its members as the API has them.
type gang struct {
	name  types.NamespacedName
	group *schedulingv1alpha1.PodGroup
	// held counts members that have their place: bound, or about to be.
	held int
	// pending are members that can be scheduled and have no place yet.
	pending []*corev1.Pod
	// unbound are all members that the queue may hold.
	unbound []*corev1.Pod
}

// gang reads a PodGroup. The error is why it cannot be scheduled, in one sentence.
func (p *Plugin) gang(name types.NamespacedName) (*gang, error) {
	group, ok := p.groups.find(name)
	if !ok {
		p.gangs.forget(name)
		return nil, fmt.Errorf("PodGroup %s does not exist in namespace %s", name.Name, name.Namespace)
	}
	objects, err := p.podIndexer.ByIndex(byGang, name.String())
	if err != nil {
		return nil, err
	}
	g := &gang{name: name, group: group}
	for _, obj := range objects {
		pod, ok := obj.(*corev1.Pod)
		// One that is being deleted will soon be none: with it as a member, some of a gang that is made anew could start
		// without the others.
		if !ok || convert.IsTerminal(pod) || pod.DeletionTimestamp != nil {
			continue
		}
		if pod.Spec.NodeName == "" {
			g.unbound = append(g.unbound, pod)
		}
		switch {
		case pod.Spec.NodeName != "" || p.ledger.has(string(pod.UID)):
			g.held++
		case len(pod.Spec.SchedulingGates) == 0 && pod.Spec.SchedulerName == p.handle.ProfileName():
			g.pending = append(g.pending, pod)
		}
	}
	return g, nil
}

// has says whether the pod is a member.
func (g *gang) has(pod *corev1.Pod) bool { return groupOf(pod) == g.name }

// missing is how many members must still come into being before the gang can start.
func (g *gang) missing() int {
	return int(g.group.Spec.MinMember) - g.held - len(g.pending)
}

// need is how many pending members must be placed together.
func (g *gang) need() int { return max(1, int(g.group.Spec.MinMember)-g.held) }

// gangTimeout is how long a plan may take to be released.
func (p *Plugin) gangTimeout(group *schedulingv1alpha1.PodGroup) time.Duration {
	if s := group.Spec.ScheduleTimeoutSeconds; s != nil && *s > 0 {
		return time.Duration(*s) * time.Second
	}
	return p.args.GangTimeout.Duration
}

// activate moves a gang's members from wherever the queue has them to its active part.
func (p *Plugin) activate(ctx context.Context, name types.NamespacedName) {
	g, err := p.gang(name)
	if err != nil {
		return
	}
	pods := make(map[string]*corev1.Pod, len(g.unbound))
	for _, pod := range g.unbound {
		pods[pod.Namespace+"/"+pod.Name] = pod
	}
	p.handle.Activate(p.logger(ctx), pods)
}
