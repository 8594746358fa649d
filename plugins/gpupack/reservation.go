// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package gpupack

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/utils/clock"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack"
)

const (
	// recheckAfter is how often a reservation is compared with what else there is.
	recheckAfter = 30 * time.Second
	// retryAfter is how long what was found stands at least.
	retryAfter = 5 * time.Second
	// wakeAfter lets kube-scheduler's own cache see that a pod is gone before its place is tried.
	wakeAfter = 100 * time.Millisecond
	// endMargin is how much later than now a pod that is let in now may start.
	endMargin = 5 * time.Second
	// overdue is how long a pod may outlast its end before nobody believes in that.
	overdue = time.Minute
	// podGrace is a pod's time to end where it does not say.
	podGrace = 30 * time.Second
)

// reservations keep places for those that have waited longest, so that what comes later does not take them one by one. The
// reservation itself is package pack's; this says who waits, since when, and who must be woken. Nothing of it is stored: a
// scheduler that has just started finds how long each has waited in the API.
type reservations struct {
	plugin *Plugin

	mu sync.Mutex
	// waiting are the gangs and pods that found no place, by their ID.
	waiting map[string]*waiter
	// refused are pods that failed while there were reservations, and are tried again when one changes.
	refused map[string]*corev1.Pod
	// made, in order of the turns, is never changed but replaced.
	made    atomic.Pointer[[]*reservation]
	version atomic.Uint64
}

// waiter is a gang or a pod of none that waits.
type waiter struct {
	turn pack.Turn
	// gang is its PodGroup, or pod its name.
	gang, pod types.NamespacedName
	// since is when it could have started if there had been room.
	since time.Time

	// The rest is under the lock of reservations.

	// seen is when it last failed, tried when places were last looked for. nowhere is true where there were none, whoever leaves.
	seen, tried time.Time
	nowhere     bool
	// due wakes it when something is to be decided.
	due clock.Timer
	// waking is true while it is about to be woken.
	waking bool
}

func (w *waiter) String() string {
	if w.gang.Name != "" {
		return "PodGroup " + w.gang.Name
	}
	return "pod " + w.pod.Name
}

// reservation is a waiter's.
type reservation struct {
	*pack.Reservation
	waiter *waiter
}

func newReservations(p *Plugin) *reservations {
	r := &reservations{plugin: p, waiting: map[string]*waiter{}, refused: map[string]*corev1.Pod{}}
	r.made.Store(&[]*reservation{})
	return r
}

// watch keeps what waits true to the API.
func (r *reservations) watch(ctx context.Context) error {
	changed := func(pod *corev1.Pod, gone bool) {
		id := lineID(pod)
		r.mu.Lock()
		w, ok := r.waiting[id]
		r.mu.Unlock()
		if ok && !r.waits(w) {
			r.end(ctx, id)
		}
		if gone && pod.Spec.NodeName != "" {
			r.left(ctx, pod.Spec.NodeName)
		}
	}
	_, err := r.plugin.handle.SharedInformerFactory().Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(old, obj any) {
			before, pod := old.(*corev1.Pod), obj.(*corev1.Pod)
			if before.UID != pod.UID {
				changed(before, true)
			}
			changed(pod, convert.IsTerminal(pod) && !convert.IsTerminal(before))
		},
		DeleteFunc: func(obj any) {
			if pod, ok := deleted[*corev1.Pod](obj); ok {
				changed(pod, true)
			}
		},
	})
	return err
}

// lineID is the ID under which a pod stands in line: that of its gang, if it has one. Of those of the same second, gangs go first, as
// in the queue: their IDs are less than any UID.
func lineID(pod *corev1.Pod) string {
	if name := groupOf(pod); name.Name != "" {
		return "/" + name.String()
	}
	return string(pod.UID)
}

// turn is a pod's place in line.
func (p *Plugin) turn(pod *corev1.Pod) pack.Turn {
	since, _ := p.inLineSince(pod)
	return pack.Turn{Priority: corev1helpers.PodPriority(pod), Since: since, ID: lineID(pod)}
}

// waits says whether the gang or pod still has no place.
func (r *reservations) waits(w *waiter) bool {
	p := r.plugin
	if w.gang.Name == "" {
		pod, err := p.pods.Pods(w.pod.Namespace).Get(w.pod.Name)
		return err == nil && string(pod.UID) == w.turn.ID && pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil && !convert.IsTerminal(pod)
	}
	g, err := p.gang(w.gang)
	if err != nil || g.missing() > 0 {
		return false
	}
	objects, err := p.podIndexer.ByIndex(byGang, w.gang.String())
	if err != nil {
		return false
	}
	bound := 0
	for _, obj := range objects {
		if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" && !convert.IsTerminal(pod) {
			bound++
		}
	}
	return bound < int(g.group.Spec.MinMember)
}

// beingPlaced says whether the waiter has places in the ledger, which then need no claim.
func (r *reservations) beingPlaced(w *waiter) bool {
	p := r.plugin
	if w.gang.Name == "" {
		return p.ledger.has(w.turn.ID)
	}
	p.gangs.mu.Lock()
	defer p.gangs.mu.Unlock()
	return p.gangs.byName[w.gang] != nil
}

// failed takes that a pod, or the gang of which it is a member, found no place.
func (r *reservations) failed(ctx context.Context, pod *corev1.Pod) {
	p := r.plugin
	if p.args.ReserveAfter.Duration <= 0 {
		return
	}
	pod = p.latest(pod)
	now := p.clock.Now()
	id := lineID(pod)
	r.mu.Lock()
	if len(*r.made.Load()) > 0 {
		r.refused[pod.Namespace+"/"+pod.Name] = pod
	}
	known := r.waiting[id]
	// Each member of a gang comes here.
	soon := known != nil && (now.Sub(known.seen) < wakeAfter || now.Sub(known.tried) < retryAfter)
	r.mu.Unlock()
	if soon {
		return
	}
	w, pods := r.waiter(pod, now)
	if w == nil {
		return
	}
	r.mu.Lock()
	if known = r.waiting[id]; known != nil && known.turn == w.turn {
		w = known
	} else {
		if known != nil && known.due != nil {
			known.due.Stop()
		}
		r.waiting[id] = w
	}
	w.seen = now
	r.mu.Unlock()
	if due := w.since.Add(p.args.ReserveAfter.Duration); due.After(now) {
		r.wakeAt(ctx, w, due)
		return
	}
	if r.first(w, now) {
		r.reserve(ctx, w, pods, now)
	}
}

// waiter describes the gang or pod that waits, and returns the pods that need a place; nil where places do not help it.
func (r *reservations) waiter(pod *corev1.Pod, now time.Time) (*waiter, []*corev1.Pod) {
	p := r.plugin
	w := &waiter{turn: p.turn(pod)}
	if name := groupOf(pod); name.Name != "" {
		g, err := p.gang(name)
		if err != nil || g.missing() > 0 || g.held >= int(g.group.Spec.MinMember) || len(g.pending) == 0 {
			return nil, nil
		}
		w.gang = name
		// It waits since there were enough members.
		created := make([]time.Time, len(g.pending))
		for i, member := range g.pending {
			created[i] = member.CreationTimestamp.Time
			w.turn.Priority = max(w.turn.Priority, corev1helpers.PodPriority(member))
		}
		slices.SortFunc(created, time.Time.Compare)
		w.since = created[min(g.need(), len(created))-1]
		if g.group.CreationTimestamp.After(w.since) {
			w.since = g.group.CreationTimestamp.Time
		}
		return w, g.pending
	}
	if !convert.AsksForGPU(pod) {
		return nil, nil
	}
	w.pod, w.since = types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, now
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			w.since = c.LastTransitionTime.Time
		}
	}
	return w, []*corev1.Pod{pod}
}

// first says whether the waiter is among those for which places are reserved: the first in line of those that have waited long
// enough and could have a place.
func (r *reservations) first(w *waiter, now time.Time) bool {
	r.mu.Lock()
	var before []*waiter
	for _, other := range r.waiting {
		if other != w && !other.nowhere && other.turn.Before(w.turn) && now.Sub(other.since) >= r.plugin.args.ReserveAfter.Duration {
			before = append(before, other)
		}
	}
	r.mu.Unlock()
	n := int(r.plugin.args.MaxReservations)
	for _, other := range before {
		if r.waits(other) {
			if n--; n == 0 {
				return false
			}
		}
	}
	return true
}

// reserve looks for the places of a waiter, anew where it has some.
func (r *reservations) reserve(ctx context.Context, w *waiter, pods []*corev1.Pod, now time.Time) {
	p := r.plugin
	var found *pack.Reservation
	defer func() {
		r.mu.Lock()
		was := w.nowhere
		w.tried, w.nowhere = now, found == nil
		r.mu.Unlock()
		if found == nil && !was {
			r.replace(ctx, w.turn.ID, nil)
			r.wakeNext(ctx)
		}
	}()
	r.wakeAt(ctx, w, now.Add(recheckAfter))
	fw, ok := p.handle.(framework.Framework)
	if !ok {
		return
	}
	infos, err := p.handle.SnapshotSharedLister().NodeInfos().List()
	if err != nil {
		return
	}
	constraints, err := newGangConstraints(ctx, fw, infos, pods)
	if err != nil {
		return
	}
	unit := &pack.Unit{Turn: w.turn, Classes: constraints.requests, Members: constraints.members, Need: 1, Domains: p.domains(w, infos)}
	if w.gang.Name != "" {
		g, err := p.gang(w.gang)
		if err != nil {
			return
		}
		unit.Need = min(g.need(), len(unit.Members))
	}
	occupied := make([]pack.Occupancy, len(infos))
	for i := range infos {
		occupied[i] = p.occupancy(infos[i], now)
	}
	var earlier []*pack.Reservation
	var before *pack.Reservation
	for _, other := range *r.made.Load() {
		switch {
		case other.Turn.ID == w.turn.ID:
			before = other.Reservation
		case other.Turn.Before(w.turn) && !r.beingPlaced(other.waiter):
			earlier = append(earlier, other.Reservation)
		}
	}
	outlook := func() pack.Outlook {
		c, err := newGangConstraints(ctx, fw, infos, pods)
		if err != nil {
			c = constraints
		}
		return &outlook{c}
	}
	found = p.chooser.Limits.Reserve(now, occupied, unit, outlook, earlier, before)
	if found == nil {
		return
	}
	r.replace(ctx, w.turn.ID, &reservation{Reservation: found, waiter: w})
	if before == nil {
		p.logger(ctx).V(2).Info("Reserved places", "for", w.String(), "nodes", len(found.Claims), "podsToLeave", len(found.Waits), "start", found.Start,
			"duration", p.clock.Since(now).Round(time.Microsecond))
		r.tell(pods[0], w, found, now)
	}
}

// planReserved plans a gang once more, on the places that are reserved for it; where there are none, the failure stands.
func (p *Plugin) planReserved(ctx context.Context, fw framework.Framework, infos []fwk.NodeInfo, nodes []*pack.Node, g *gang,
	domains *pack.Domains, tried *gangConstraints, failure *pack.GangFailure,
) ([]pack.Placement, *gangConstraints, *pack.GangFailure) {
	if len(g.pending) == 0 {
		return nil, tried, failure
	}
	id := lineID(g.pending[0])
	for _, m := range *p.reservations.made.Load() {
		if m.Turn.ID != id {
			continue
		}
		constraints, err := newGangConstraints(ctx, fw, infos, g.pending)
		if err != nil {
			break
		}
		placements, again := p.chooser.PlanGangIn(nodes, &pack.Gang{
			Classes: constraints.requests, Members: constraints.members, Need: g.need(), Domains: domains,
		}, m.Within(nodes, constraints.requests, constraints))
		if again == nil {
			return placements, constraints, nil
		}
	}
	return nil, tried, failure
}

// domains has the topology domain of each node, where the PodGroup says that its members must be in one; else nil.
func (p *Plugin) domains(w *waiter, infos []fwk.NodeInfo) []string {
	group, ok := p.groups.find(w.gang)
	if !ok {
		return nil
	}
	spec, err := convert.Gang(group)
	label, known := p.args.TopologyDomains[spec.Topology]
	if err != nil || !spec.TopologyRequired || !known {
		return nil
	}
	out := make([]string, len(infos))
	for i := range infos {
		out[i] = infos[i].Node().Labels[label]
	}
	return out
}

// tell writes an event on the PodGroup or pod.
func (r *reservations) tell(pod *corev1.Pod, w *waiter, made *pack.Reservation, now time.Time) {
	about := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
	if group, ok := r.plugin.groups.find(w.gang); ok {
		about = &corev1.ObjectReference{
			APIVersion: schedulingv1alpha1.SchemeGroupVersion.String(), Kind: "PodGroup", Namespace: group.Namespace, Name: group.Name, UID: group.UID,
		}
	}
	nodes := slices.Sorted(maps.Keys(made.Claims))
	if more := len(nodes) - 3; more > 0 {
		nodes = append(nodes[:3], fmt.Sprintf("%d more nodes", more))
	}
	free := "nobody knows when"
	if !made.Start.IsZero() {
		free = "at the latest at " + made.Start.UTC().Format(time.RFC3339)
	}
	r.plugin.handle.EventRecorder().Eventf(about, nil, corev1.EventTypeNormal, "Reserved", "Reserving",
		"after %s of waiting, places on %s are reserved: %d pods have to end there first, %s; until then others run there only if they do not delay it",
		minutes(now.Sub(w.since)), strings.Join(nodes, ", "), len(made.Waits), free)
}

// minutes writes a wait in a way that does not change all the time.
func minutes(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	}
	return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
}

// replace puts a reservation in the place of that which the waiter of that ID has; nil takes it away. Where that changes what others
// may have, those that were refused are tried again.
func (r *reservations) replace(ctx context.Context, id string, by *reservation) {
	r.mu.Lock()
	old := *r.made.Load()
	made := slices.DeleteFunc(slices.Clone(old), func(m *reservation) bool { return m.Turn.ID == id })
	if by != nil {
		made = append(made, by)
		slices.SortFunc(made, func(a, b *reservation) int {
			if a.Turn.Before(b.Turn) {
				return -1
			}
			return 1
		})
		made = made[:min(len(made), int(r.plugin.args.MaxReservations))]
	}
	if slices.EqualFunc(old, made, func(a, b *reservation) bool {
		return a.Turn == b.Turn && a.Start.Equal(b.Start) && maps.EqualFunc(a.Claims, b.Claims, func(x, y []pack.Claim) bool {
			return slices.EqualFunc(x, y, func(c, d pack.Claim) bool { return slices.Equal(c.GPUs, d.GPUs) })
		})
	}) {
		r.made.Store(&made)
		r.mu.Unlock()
		r.measure(made)
		return
	}
	r.made.Store(&made)
	r.version.Add(1)
	refused := r.refused
	r.refused = map[string]*corev1.Pod{}
	r.mu.Unlock()
	r.measure(made)
	if len(old) > 0 {
		r.plugin.handle.Activate(r.plugin.logger(ctx), refused)
	}
}

func (r *reservations) measure(made []*reservation) {
	profile := r.plugin.handle.ProfileName()
	reservationsMade.WithLabelValues(profile).Set(float64(len(made)))
	var oldest time.Duration
	for _, m := range made {
		oldest = max(oldest, r.plugin.clock.Since(m.waiter.since))
	}
	reservationWait.WithLabelValues(profile).Set(oldest.Seconds())
}

// end forgets a waiter that has its places or is gone, and wakes those that are next.
func (r *reservations) end(ctx context.Context, id string) {
	r.mu.Lock()
	if w, ok := r.waiting[id]; ok {
		if w.due != nil {
			w.due.Stop()
		}
		delete(r.waiting, id)
	}
	r.mu.Unlock()
	r.replace(ctx, id, nil)
	r.wakeNext(ctx)
}

// wakeNext wakes those that are next in line for a reservation, if there can be another.
func (r *reservations) wakeNext(ctx context.Context) {
	made := *r.made.Load()
	free := int(r.plugin.args.MaxReservations) - len(made)
	if free <= 0 {
		return
	}
	now := r.plugin.clock.Now()
	var next []*waiter
	r.mu.Lock()
	for _, w := range r.waiting {
		if !w.nowhere && now.Sub(w.since) >= r.plugin.args.ReserveAfter.Duration &&
			!slices.ContainsFunc(made, func(m *reservation) bool { return m.Turn.ID == w.turn.ID }) {
			next = append(next, w)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(next, func(a, b *waiter) int {
		if a.turn.Before(b.turn) {
			return -1
		}
		return 1
	})
	for _, w := range next[:min(len(next), free)] {
		r.wakeSoon(ctx, w)
	}
}

// left takes that a pod has left a node.
func (r *reservations) left(ctx context.Context, node string) {
	for _, m := range *r.made.Load() {
		if len(m.Claims[node]) > 0 {
			r.wakeSoon(ctx, m.waiter)
		}
	}
}

func (r *reservations) wakeSoon(ctx context.Context, w *waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.waking {
		return
	}
	w.waking = true
	r.plugin.clock.AfterFunc(wakeAfter, func() {
		r.mu.Lock()
		w.waking = false
		r.mu.Unlock()
		r.wake(ctx, w)
	})
}

func (r *reservations) wakeAt(ctx context.Context, w *waiter, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.due != nil {
		w.due.Stop()
	}
	w.due = r.plugin.clock.AfterFunc(max(wakeAfter, at.Sub(r.plugin.clock.Now())), func() { r.wake(ctx, w) })
}

// wake has a waiter tried again at once.
func (r *reservations) wake(ctx context.Context, w *waiter) {
	if !r.waits(w) {
		r.end(ctx, w.turn.ID)
		return
	}
	if w.gang.Name != "" {
		r.plugin.activate(ctx, w.gang)
		return
	}
	if pod, err := r.plugin.pods.Pods(w.pod.Namespace).Get(w.pod.Name); err == nil {
		r.plugin.handle.Activate(r.plugin.logger(ctx), map[string]*corev1.Pod{w.pod.String(): pod})
	}
}

// heldBack are the reservations of those that go before some pods; nil where there are none.
type heldBack struct {
	list []*reservation
	// views by node state, of *pack.Node.
	views sync.Map
}

// heldBack returns what keeps the pods, which are one or all of a gang, from places.
func (p *Plugin) heldBack(pods ...*corev1.Pod) *heldBack {
	made := *p.reservations.made.Load()
	if len(made) == 0 || len(pods) == 0 {
		return nil
	}
	now := p.clock.Now()
	turn := p.turn(pods[0])
	var ends time.Time
	for i, pod := range pods {
		turn.Priority = max(turn.Priority, corev1helpers.PodPriority(pod))
		end := endOf(pod, now.Add(endMargin))
		if end.IsZero() {
			ends = end
			break
		}
		if i == 0 || end.After(ends) {
			ends = end
		}
	}
	h := &heldBack{}
	for _, m := range made {
		if m.Binds(turn, ends) && !p.reservations.beingPlaced(m.waiter) && (m.waiter.gang.Name == "" || p.exists(m.waiter.gang)) {
			h.list = append(h.list, m)
		}
	}
	if len(h.list) == 0 {
		return nil
	}
	return h
}

func (p *Plugin) exists(group types.NamespacedName) bool {
	_, ok := p.groups.find(group)
	return ok
}

// node is the node as it is for pods that are held back.
func (h *heldBack) node(p *Plugin, info fwk.NodeInfo) *pack.Node {
	n := p.node(info)
	if h == nil || h.owner(n.Name) == nil {
		return n
	}
	if v, ok := h.views.Load(n); ok {
		return v.(*pack.Node)
	}
	list := make([]*pack.Reservation, len(h.list))
	for i, m := range h.list {
		list[i] = m.Reservation
	}
	now := p.clock.Now()
	o := p.occupancy(info, now)
	o.Node = n
	view := p.chooser.Limits.Beside(now, &o, list...)
	h.views.Store(n, view)
	return view
}

// owner is the first that has claims on the node, or nil.
func (h *heldBack) owner(node string) *reservation {
	for _, m := range h.list {
		if len(m.Claims[node]) > 0 {
			return m
		}
	}
	return nil
}

// refuse says why a pod for which the node has room cannot have it, or nil.
func (h *heldBack) refuse(p *Plugin, c *cycle, info fwk.NodeInfo) *fwk.Status {
	if h == nil {
		return nil
	}
	owner := h.owner(info.Node().Name)
	if owner == nil || p.chooser.Limits.FitHost(h.node(p, info), &c.request) == pack.ReasonFits {
		return nil
	}
	c.rejected[pack.ReasonReserved].Add(1)
	return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, fmt.Sprintf("reserved for %s, which has waited %s",
		owner.waiter, minutes(p.clock.Since(owner.waiter.since))))
}

// occupancy is a node with what its pods hold and until when.
func (p *Plugin) occupancy(info fwk.NodeInfo, now time.Time) pack.Occupancy {
	o := pack.Occupancy{Node: p.node(info)}
	for _, podInfo := range info.GetPods() {
		pod := podInfo.GetPod()
		// A pod of a DaemonSet or of the kubelet itself never leaves.
		if owner := metav1.GetControllerOf(pod); owner != nil && (owner.Kind == "DaemonSet" || owner.Kind == "Node") {
			continue
		}
		request, err := convert.Request(pod)
		if err != nil && !request.WantsGPU() {
			continue
		}
		h := pack.Holding{ID: string(pod.UID), Request: request, Since: pod.CreationTimestamp.Time}
		started := now
		if pod.Status.StartTime != nil {
			started = pod.Status.StartTime.Time
			h.Since = started
		}
		if h.Ends = endOf(pod, started); h.Ends.Before(now.Add(-overdue)) {
			h.Ends = time.Time{}
		}
		o.Holdings = append(o.Holdings, h)
	}
	return o
}

// endOf is when a pod that started then will have ended at the latest; zero where nobody knows.
func endOf(pod *corev1.Pod, started time.Time) time.Time {
	if pod.DeletionTimestamp != nil {
		return pod.DeletionTimestamp.Time
	}
	deadline := pod.Spec.ActiveDeadlineSeconds
	if deadline == nil {
		return time.Time{}
	}
	grace := podGrace
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	return started.Add(time.Duration(*deadline)*time.Second + grace)
}

// outlook asks the framework's filters about members once some pods have left.
type outlook struct {
	*gangConstraints
}

// Feasible implements pack.Outlook.
func (o *outlook) Feasible(class, node int, left []string) bool {
	if len(left) == 0 {
		ok, _ := o.gangConstraints.Feasible(class, node)
		return ok
	}
	k, info := o.classes[class], o.infos[node]
	state := k.state
	o.infos[node], k.state = o.without(class, node, left, state.Clone())
	ok, _ := o.gangConstraints.Feasible(class, node)
	o.infos[node], k.state = info, state
	return ok
}

// Placed implements pack.Outlook.
func (o *outlook) Placed(class, node int, left []string) bool {
	if len(left) > 0 {
		var after fwk.NodeInfo
		for i, k := range o.classes {
			if k.rejected == "" {
				after, k.state = o.without(i, node, left, k.state)
			}
		}
		if after != nil {
			o.infos[node], o.copied[node] = after, true
		}
	}
	return o.gangConstraints.Placed(class, node)
}

// without returns a copy of the node from which those pods are gone, and the class's state with that known to it.
func (o *outlook) without(class, node int, left []string, state fwk.CycleState) (fwk.NodeInfo, fwk.CycleState) {
	info := o.infos[node].Snapshot()
	k := o.classes[class]
	for _, podInfo := range slices.Clone(info.GetPods()) {
		if !slices.Contains(left, string(podInfo.GetPod().UID)) {
			continue
		}
		if err := info.RemovePod(klog.FromContext(o.ctx), podInfo.GetPod()); err == nil && k.rejected == "" {
			o.fw.RunPreFilterExtensionRemovePod(o.ctx, state, k.pod, podInfo, info)
		}
	}
	return info, state
}
