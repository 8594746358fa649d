// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
)

// Gangs is the answer of kubectl gpupack gangs.
type Gangs struct {
	metav1.TypeMeta `json:",inline"`
	Items           []GangState `json:"items"`
}

// GangState is where a gang stands.
type GangState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Phase is a phase of PodGroups, from what the members do now.
	Phase podgroupv1alpha1.PodGroupPhase `json:"phase"`
	Gang  `json:",inline"`
	// Running and Failed count members; those that failed are not among the Members.
	Running int `json:"running"`
	Failed  int `json:"failed"`
	// Requests is what members ask for, in words.
	Requests []string `json:"requests"`
	// Topology is the kind of domain that the PodGroup names, if any.
	Topology         string `json:"topology,omitempty"`
	TopologyRequired bool   `json:"topologyRequired,omitempty"`
	// Domains are where the placed members are: nodes where the PodGroup names no kind of domain.
	Domains []GangDomain `json:"domains"`
	// Priority is the highest of a member.
	Priority int32 `json:"priority"`
	// WaitSeconds is how long it has waited, or waited until enough members had a node.
	WaitSeconds int64 `json:"waitSeconds"`
	// Fixes are what would let it in, each in a few words, the smallest first.
	Fixes             []string    `json:"fixes,omitempty"`
	CreationTimestamp metav1.Time `json:"creationTimestamp"`

	// fixer finds more of them; nil where the gang does not wait for room.
	fixer *fixer
}

// GangDomain is a domain and how many members are in it.
type GangDomain struct {
	// Name is empty for nodes that are in no domain.
	Name    string `json:"name"`
	Members int    `json:"members"`
}

var gangKeys = []sortKey[GangState]{
	{"name", func(a, b *GangState) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}},
	byName("phase", func(g *GangState) string { return string(g.Phase) }),
	byFigure("members", func(g *GangState) int64 { return int64(g.Members) }),
	byFigure("priority", func(g *GangState) int64 { return int64(g.Priority) }),
	byFigure("wait", func(g *GangState) int64 { return g.WaitSeconds }),
	{"age", func(a, b *GangState) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) }},
}

func (e *env) gangsCommand() *cobra.Command {
	out := output{keys: keyNames(gangKeys), names: true}
	var namespaces namespaceFlags
	domains := convert.DefaultTopologyDomains()
	cmd := &cobra.Command{
		Use:     "gangs [PODGROUP...]",
		Aliases: []string{"gang"},
		Short:   "Show each gang: its members, where they are, and what it waits for",
		Long: "Show the PodGroups and the pods that are their members: how many have a node, in which domains they are, and how long\n" +
			"the gang has waited. For one that waits: why, and what would let it in.",
		Example: "  kubectl gpupack gangs -A --sort-by=wait\n  kubectl gpupack gangs llama -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.begin(cmd, &out, &namespaces, nil)
			if err != nil {
				return err
			}
			s, items, err := e.gangs(cmd.Context(), c, c.namespace, args, domains, nil)
			if err != nil {
				return err
			}
			sortItems(items, gangKeys, out.sortBy)
			return printList(e, c, &out, &listing[GangState]{
				items:  items,
				answer: func(items []GangState) any { return &Gangs{typeMeta("Gangs"), items} },
				name: func(g *GangState) string {
					return fmt.Sprintf("podgroup.%s/%s", podgroupv1alpha1.SchemeGroupVersion.Group, g.Name)
				},
				none: fmt.Sprintf("No gangs found%s: a gang is a PodGroup and the pods with its name in the label %s.", inNamespace(c.namespace),
					podgroupv1alpha1.PodGroupLabel),
				table: func(sc screen) { printGangs(sc, s, items, &out, c.namespace == "") },
			})
		},
	}
	cmd.ValidArgsFunction = e.completeGangs()
	out.add(cmd)
	namespaces.add(cmd)
	e.addStaleAfter(cmd)
	addTopologyDomains(cmd, &domains)
	return cmd
}

func addTopologyDomains(cmd *cobra.Command, domains *map[string]string) {
	cmd.Flags().StringToStringVar(domains, "topology-domains", *domains,
		"Node label of each kind of domain, topologyDomains in the scheduler's GPUPackArgs: rack=LABEL,...")
	// The default is longer than a line of the help.
	cmd.Flags().Lookup("topology-domains").DefValue = ""
}

// completeGangs offers the names of PodGroups.
func (e *env) completeGangs() cobra.CompletionFunc {
	return e.completeNames(func(ctx context.Context, r client.Reader, namespace string) ([]string, error) {
		s, err := read(ctx, r, e.now(), scope{podGroups: &namespace})
		if err != nil {
			return nil, err
		}
		names := make([]string, len(s.podGroups))
		for i := range s.podGroups {
			names[i] = s.podGroups[i].Name
		}
		return names, nil
	})
}

// gangs reads the gangs of a namespace, those of the names or all, and works out why those that wait do so. keep says which to look
// at; nil is all.
func (e *env) gangs(ctx context.Context, r client.Reader, namespace string, names []string, domains map[string]string,
	keep func(*GangState) bool) (*snapshot, []GangState, error) {
	// Pods of all namespaces take room; what ends a gang's wait is worked out on the whole cluster.
	s, err := read(ctx, r, e.now(), scope{nodes: everything(), gpuNodes: true, podGroups: &namespace, workloadClasses: true, pods: &podScope{}})
	if err != nil {
		return nil, nil, err
	}
	members := map[types.NamespacedName][]*corev1.Pod{}
	for i := range s.podGroups {
		members[types.NamespacedName{Namespace: s.podGroups[i].Namespace, Name: s.podGroups[i].Name}] = nil
	}
	for i := range s.pods {
		if key := gangKey(&s.pods[i]); key.Name != "" && (namespace == "" || key.Namespace == namespace) {
			members[key] = append(members[key], &s.pods[i])
		}
	}
	var items []GangState
	for key, pods := range members {
		if g := s.gangState(key, pods, domains); keep == nil || keep(&g) {
			items = append(items, g)
		}
	}
	if items, err = take(items, names, "PodGroup", func(g *GangState) string { return g.Name }); err != nil {
		return nil, nil, err
	}
	if !slices.ContainsFunc(items, func(g GangState) bool { return g.WaitsFor == unknownWait }) {
		return s, items, nil
	}
	taken := s.requests()
	chooser, _, err := newChooser(schedulerPolicy, s, e.view)
	if err != nil {
		return nil, nil, err
	}
	c := newCandidates(s, taken, chooser, e.view)
	for i := range items {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if g := &items[i]; g.WaitsFor == unknownWait {
			key := types.NamespacedName{Namespace: g.Namespace, Name: g.Name}
			if err := e.explainWait(s, c, g, s.podGroup(key), members[key], domains); err != nil {
				return nil, nil, err
			}
		}
	}
	return s, items, nil
}

// unknownWait marks a gang that waits for what only a plan tells.
const unknownWait = "?"

// gangState is what can be said of a gang without a plan.
func (s *snapshot) gangState(key types.NamespacedName, pods []*corev1.Pod, domains map[string]string) GangState {
	g := GangState{Namespace: key.Namespace, Name: key.Name, Gang: Gang{Name: key.Name}, Requests: []string{}, Domains: []GangDomain{}}
	group := s.podGroup(key)
	var spec convert.GangSpec
	var wrong error
	if group != nil {
		spec, wrong = convert.Gang(group)
		g.Exists, g.MinMember = true, spec.MinMember
		g.Topology, g.TopologyRequired = spec.Topology, spec.TopologyRequired
		g.CreationTimestamp = group.CreationTimestamp
	}
	var placedAt []time.Time
	byDomain := map[string]int{}
	asked := map[string]int{}
	succeeded := 0
	for _, pod := range pods {
		if pod.Status.Phase == corev1.PodFailed {
			g.Failed++
		}
		if pod.Status.Phase == corev1.PodSucceeded {
			succeeded++
		}
		if group == nil && (g.CreationTimestamp.IsZero() || pod.CreationTimestamp.Before(&g.CreationTimestamp)) {
			g.CreationTimestamp = pod.CreationTimestamp
		}
		if convert.IsTerminal(pod) {
			continue
		}
		g.Members++
		if pod.Spec.Priority != nil {
			g.Priority = max(g.Priority, *pod.Spec.Priority)
		}
		if request, err := convert.Request(pod); err == nil {
			asked[request.String()]++
		}
		if pod.Spec.NodeName == "" {
			continue
		}
		g.Placed++
		if pod.Status.Phase == corev1.PodRunning {
			g.Running++
		}
		placedAt = append(placedAt, scheduledAt(pod))
		byDomain[s.domainOf(pod.Spec.NodeName, domains[g.Topology])]++
	}
	for request, n := range asked {
		g.Requests = append(g.Requests, fmt.Sprintf("%dx %s", n, request))
	}
	slices.Sort(g.Requests)
	for name, n := range byDomain {
		g.Domains = append(g.Domains, GangDomain{name, n})
	}
	slices.SortFunc(g.Domains, func(a, b GangDomain) int {
		return cmp.Or(cmp.Compare(b.Members, a.Members), cmp.Compare(a.Name, b.Name))
	})
	enough := group != nil && g.Placed >= g.MinMember
	g.Phase = phaseOf(&g, group, enough, succeeded)
	g.WaitsFor = s.waitsFor(&g, group, wrong, enough, domains)
	g.WaitSeconds = int64(s.age(g.CreationTimestamp).Seconds())
	if enough {
		slices.SortFunc(placedAt, time.Time.Compare)
		g.WaitSeconds = int64(max(0, placedAt[max(0, min(g.MinMember, len(placedAt))-1)].Sub(g.CreationTimestamp.Time)).Seconds())
	} else if g.WaitsFor == "" {
		g.WaitSeconds = 0
	}
	return g
}

// phaseOf is the phase that the members show. Only the controller can know of a gang whose pods are gone how it ended.
func phaseOf(g *GangState, group *podgroupv1alpha1.PodGroup, enough bool, succeeded int) podgroupv1alpha1.PodGroupPhase {
	switch {
	case group != nil && (group.Status.Phase == podgroupv1alpha1.PodGroupFailed || group.Status.Phase == podgroupv1alpha1.PodGroupFinished):
		return group.Status.Phase
	case g.Members == 0 && g.Failed > 0:
		return podgroupv1alpha1.PodGroupFailed
	case g.Members == 0 && succeeded > 0:
		return podgroupv1alpha1.PodGroupFinished
	case enough && g.Running >= g.MinMember:
		return podgroupv1alpha1.PodGroupRunning
	case enough:
		return podgroupv1alpha1.PodGroupScheduling
	case g.Placed > 0:
		return podgroupv1alpha1.PodGroupUnknown
	}
	return podgroupv1alpha1.PodGroupPending
}

// waitsFor is what keeps the gang from its start, in one sentence; empty if nothing, unknownWait where a plan must tell.
func (s *snapshot) waitsFor(g *GangState, group *podgroupv1alpha1.PodGroup, wrong error, enough bool, domains map[string]string) string {
	switch {
	case enough, g.Phase == podgroupv1alpha1.PodGroupFailed, g.Phase == podgroupv1alpha1.PodGroupFinished:
		return ""
	case group == nil:
		return fmt.Sprintf("PodGroup %s does not exist in namespace %s", g.Name, g.Namespace)
	case wrong != nil:
		return wrong.Error()
	case g.Topology != "" && domains[g.Topology] == "":
		return fmt.Sprintf("its topology %q is none of the scheduler's topologyDomains", g.Topology)
	case g.Members < g.MinMember:
		return fmt.Sprintf("%s to be created (%d of %d exist)", plural(g.MinMember-g.Members, "more member"), g.Members, g.MinMember)
	}
	return unknownWait
}

// domainOf is the domain of a node, the node itself where no label is asked for.
func (s *snapshot) domainOf(node, label string) string {
	if label == "" {
		return node
	}
	if at, ok := slices.BinarySearchFunc(s.nodes, node, func(n corev1.Node, name string) int { return cmp.Compare(n.Name, name) }); ok {
		return s.nodes[at].Labels[label]
	}
	return ""
}

// scheduledAt is when a pod got its node.
func scheduledAt(pod *corev1.Pod) time.Time {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	return pod.CreationTimestamp.Time
}

// explainWait fills in why a gang that has its members waits, and what would let it in.
func (e *env) explainWait(s *snapshot, c *candidates, g *GangState, group *podgroupv1alpha1.PodGroup, pods []*corev1.Pod,
	domains map[string]string) error {
	var held, waiting []*corev1.Pod
	for _, pod := range pods {
		switch {
		case convert.IsTerminal(pod):
		case pod.Spec.NodeName != "":
			held = append(held, pod)
		case len(pod.Spec.SchedulingGates) > 0:
			g.WaitsFor = fmt.Sprintf("member %s is held back by the scheduling gate %s", pod.Name, pod.Spec.SchedulingGates[0].Name)
			return nil
		default:
			waiting = append(waiting, pod)
		}
	}
	_, failure, err := c.planGang(group, held, waiting, domains)
	switch {
	case err != nil:
		g.WaitsFor = err.Error()
		return nil
	case failure == nil:
		g.Room, g.WaitsFor = len(waiting), "the scheduler, though there is room: it is about to be placed, or held up by what kubectl describe says of its pods"
		return nil
	}
	g.Room, g.WaitsFor = failure.Placed, failure.Error()
	g.fixer = &fixer{s: s, c: c, view: e.view, waiting: waiting, group: group, held: held, labels: domains}
	for _, fix := range []*Fix{g.fixer.uncordonNodes(), g.fixer.addNodes(), g.fixer.lowerMinMember()} {
		if fix != nil {
			g.Fixes = append(g.Fixes, fix.with)
		}
	}
	return nil
}

// cordoned are the names of the cordoned nodes with GPUs.
func (s *snapshot) cordoned() []string {
	var out []string
	for i := range s.nodes {
		if s.nodes[i].Spec.Unschedulable && s.gpuNode(s.nodes[i].Name) != nil {
			out = append(out, s.nodes[i].Name)
		}
	}
	return out
}

// mostModels bounds for how many models nodes are added to see whether a gang then fits.
const mostModels = 4

// models of GPUs, those of which there are most first.
func (s *snapshot) models() []string {
	supply := s.supply()
	out := make([]string, 0, len(supply))
	for model := range supply {
		out = append(out, model)
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(supply[b], supply[a]), cmp.Compare(a, b)) })
	return out
}

// shortList writes names, at most n of them.
func shortList(names []string, n int) string {
	if len(names) <= n {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:n], ", "), len(names)-n)
}

func printGangs(sc screen, s *snapshot, items []GangState, out *output, allNamespaces bool) {
	t := table{columns: []column{
		{titles: []string{"NAMESPACE"}, min: 9, wide: !allNamespaces},
		{titles: []string{"NAME"}, min: 12, low: 18},
		{titles: []string{"PHASE"}},
		{titles: []string{"PLACED"}, right: true},
		{titles: []string{"NEEDED", "MIN"}, right: true},
		{titles: []string{"MEMBERS"}, right: true},
		{titles: []string{"RUNNING"}, right: true, optional: true},
		{titles: []string{"FAILED"}, right: true, wide: true},
		{titles: []string{"ASKS FOR"}, min: 11, low: 16},
		{titles: []string{"TOPOLOGY"}, optional: true},
		{titles: []string{"WHERE"}, min: 12, low: 20},
		{titles: []string{"PRIORITY"}, right: true, wide: true},
		{titles: []string{"WAIT"}, right: true},
		{titles: []string{"AGE"}, right: true, optional: true},
	}}
	for i := range items {
		g := &items[i]
		topology := orDash(g.Topology)
		if g.TopologyRequired {
			topology += "!"
		}
		where := listCell{}
		for _, d := range g.Domains {
			where = append(where, span{fmt.Sprintf("%s (%d)", orDash(d.Name), d.Members), plain})
		}
		if len(where) == 0 {
			where = listCell{{"-", plain}}
		}
		needed := "?"
		if g.Exists {
			needed = fmt.Sprint(g.MinMember)
		}
		wait := "-"
		if g.WaitsFor != "" || g.Placed > 0 {
			wait = duration.HumanDuration(time.Duration(g.WaitSeconds) * time.Second)
		}
		t.rows = append(t.rows, []cell{
			text(g.Namespace), text(g.Name), text(string(g.Phase)), text(fmt.Sprint(g.Placed)), text(needed), text(fmt.Sprint(g.Members)),
			text(fmt.Sprint(g.Running)), text(fmt.Sprint(g.Failed)), text(orDash(strings.Join(g.Requests, ", "))), text(topology), where,
			text(fmt.Sprint(g.Priority)), text(wait),
			text(duration.HumanDuration(s.age(g.CreationTimestamp))),
		})
	}
	t.print(sc, out.wide(), out.noHeaders)
	if out.noHeaders {
		return
	}
	for i := range items {
		g := &items[i]
		if g.WaitsFor == "" {
			continue
		}
		fmt.Fprintf(sc, "\n%s\n", wrap(fmt.Sprintf("%s/%s waits: %s.", g.Namespace, g.Name, g.WaitsFor), sc.width))
		if len(g.Fixes) > 0 {
			fmt.Fprintln(sc, wrap("It would start with "+strings.Join(g.Fixes, ", or with ")+".", sc.width))
		}
	}
}
