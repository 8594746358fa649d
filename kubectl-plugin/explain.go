// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/pack"
)

// Explanation is the answer of kubectl gpupack explain.
type Explanation struct {
	metav1.TypeMeta `json:",inline"`
	Namespace       string    `json:"namespace"`
	Name            string    `json:"name"`
	UID             types.UID `json:"uid"`
	SchedulerName   string    `json:"schedulerName"`
	Phase           string    `json:"phase"`
	// Summary is the answer in one sentence.
	Summary string `json:"summary"`
	// Request is what the pod asks for, in words.
	Request           string      `json:"request"`
	CreationTimestamp metav1.Time `json:"creationTimestamp"`
	// Scheduler is the latest word of the scheduler on a pending pod.
	Scheduler *SchedulerWord `json:"scheduler,omitempty"`
	Gang      *Gang          `json:"gang,omitempty"`
	// Usage and Placement are those of a pod that has a node.
	Usage     *PodUsage     `json:"usage,omitempty"`
	Placement *PodPlacement `json:"placement,omitempty"`
	// Nodes, Reasons and Nearest are of a pending pod.
	Nodes *NodeCounts `json:"nodes,omitempty"`
	// Reasons count each node that does not fit once, by what is hardest to mend about it.
	Reasons []ReasonCount `json:"reasons,omitempty"`
	// Nearest are the nodes on which least is in the way.
	Nearest []NodeVerdict `json:"nearest,omitempty"`
	// Fixes would each let the pod in, or its gang; those that cost least first.
	Fixes []Fix `json:"nearestFixes,omitempty"`

	// brief is true where the summary says all.
	brief bool
}

// inWords is all that a pod asks for.
func inWords(r *pack.Request) string {
	words := r.String()
	if r.CPUMilli > 0 {
		words += ", cpu " + resource.NewMilliQuantity(r.CPUMilli, resource.DecimalSI).String()
	}
	if r.MemoryMiB > 0 {
		words += ", memory " + gib(r.MemoryMiB)
	}
	return words
}

// only sets the summary of a pod of which there is no more to say.
func (x *Explanation) only(format string, args ...any) {
	x.brief = true
	x.Summary = fmt.Sprintf("Pod %s/%s %s.", x.Namespace, x.Name, fmt.Sprintf(format, args...))
}

// SchedulerWord is what the scheduler said of a pod last.
type SchedulerWord struct {
	Reason  string      `json:"reason"`
	Message string      `json:"message"`
	Time    metav1.Time `json:"time"`
}

// NodeCounts counts the nodes that a pod was tried on.
type NodeCounts struct {
	Total int `json:"total"`
	// Fitting counts those where nothing that explain checks is in the way.
	Fitting int `json:"fitting"`
}

// ReasonCount is how many nodes a reason keeps a pod off.
type ReasonCount struct {
	// Reason is one CamelCase word.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Nodes   int    `json:"nodes"`
	// Example is the first of those nodes by name.
	Example string `json:"example"`
}

// NodeVerdict is what is in the way of a pod on one node.
type NodeVerdict struct {
	Node string `json:"node"`
	// Obstacles are sentences, the hardest to mend first; none where the pod fits.
	Obstacles []string     `json:"obstacles"`
	GPUs      []GPUVerdict `json:"gpus"`
}

// GPUVerdict is what one GPU says to a pod.
type GPUVerdict struct {
	UUID    string `json:"uuid"`
	Index   int    `json:"index"`
	Fits    bool   `json:"fits"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// NeedMiB is the memory that the pod would take of the GPU, FreeMiB what the GPU has, TotalMiB what pods could have of it
	// if it were empty.
	NeedMiB  int64 `json:"memoryNeedMiB"`
	FreeMiB  int64 `json:"memoryFreeMiB"`
	TotalMiB int64 `json:"memoryUsableMiB"`
	// NeedMilli and FreeMilli are the compute, milli-GPU.
	NeedMilli int64 `json:"computeNeedMilli"`
	FreeMilli int64 `json:"computeFreeMilli"`
}

// Gang is the state of the PodGroup that a pod is a member of.
type Gang struct {
	Name string `json:"name"`
	// Exists is false where the PodGroup was not created.
	Exists    bool `json:"exists"`
	MinMember int  `json:"minMember"`
	// Members have not ended; Placed of them have a node.
	Members int `json:"members"`
	Placed  int `json:"placed"`
	// Room is how many of the members without a node would fit at once.
	Room int `json:"room"`
	// WaitsFor is what the gang waits for, in one sentence; empty if nothing.
	WaitsFor string `json:"waitsFor,omitempty"`
}

func (e *env) explainCommand() *cobra.Command {
	var out output
	domains := convert.DefaultTopologyDomains()
	cmd := &cobra.Command{
		Use:   "explain (POD | podgroup/NAME)",
		Short: "Say why a pod or a gang is pending, or why it is where it is",
		Long: "For a pending pod: what it asks for, what the scheduler said last, how many nodes do not fit for which reason, what would\n" +
			"let it in at which cost, and what is in the way on the nearest nodes, GPU by GPU. For a pod that runs: where, and why there.\n" +
			"For a PodGroup: the same of the gang as a whole. What would let it in has been tried on the state of the cluster by the\n" +
			"scheduler's own code.",
		Example: "  kubectl gpupack explain trainer-0\n  kubectl gpupack explain -n research trainer-0 -o json\n" +
			"  kubectl gpupack explain -n research podgroup/llama",
		Args: exactly(1, "the name of a pod or of a PodGroup"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := out.printer(cmd)
			if err != nil {
				return err
			}
			namespace, err := (&namespaceFlags{}).resolve(e)
			if err != nil {
				return err
			}
			r, err := e.reader()
			if err != nil {
				return err
			}
			if name, ok := gangName(args[0]); ok {
				return e.explainPodGroup(cmd.Context(), r, namespace, name, domains, p)
			}
			answer, s, err := e.explain(cmd.Context(), r, namespace, podName(args[0]), domains)
			if apierrors.IsNotFound(err) && podName(args[0]) != args[0] {
				return fmt.Errorf("pod %q not found in namespace %q", podName(args[0]), namespace)
			}
			if apierrors.IsNotFound(err) {
				// Who knows that it is a gang's need not say so.
				var none *noGangError
				if err := e.explainPodGroup(cmd.Context(), r, namespace, args[0], domains, p); !errors.As(err, &none) {
					return err
				}
				return fmt.Errorf("there is neither a pod nor a PodGroup %q in namespace %q", args[0], namespace)
			}
			if err != nil {
				return err
			}
			if p != nil {
				return printObject(p, e.Out, answer)
			}
			printExplanation(newScreen(e.Out), s, answer)
			return nil
		},
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if head, ok := strings.CutPrefix(prefix, "podgroup/"); ok {
			names, directive := e.completeGangs()(cmd, args, head)
			for i := range names {
				names[i] = "podgroup/" + names[i]
			}
			return names, directive
		}
		return e.completePods(convert.AsksForGPU)(cmd, args, prefix)
	}
	out.add(cmd)
	addTopologyDomains(cmd, &domains)
	e.addStaleAfter(cmd)
	_ = cmd.Flags().MarkHidden("no-headers")
	return cmd
}

// podName takes the kind off pod/NAME.
func podName(arg string) string {
	for _, kind := range []string{"pod/", "pods/", "po/"} {
		if name, ok := strings.CutPrefix(arg, kind); ok {
			return name
		}
	}
	return arg
}

func (e *env) explain(ctx context.Context, r client.Reader, namespace, name string, domains map[string]string) (*Explanation, *snapshot, error) {
	pod := &corev1.Pod{}
	err := r.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, pod)
	if err != nil {
		return nil, nil, fmt.Errorf("get pod: %w", err)
	}
	answer := &Explanation{
		TypeMeta: typeMeta("Explanation"), Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		SchedulerName: pod.Spec.SchedulerName, Phase: string(pod.Status.Phase), CreationTimestamp: pod.CreationTimestamp,
	}
	s := &snapshot{now: e.now()}
	request, err := convert.Request(pod)
	if err != nil {
		answer.Request = "invalid: " + err.Error()
		answer.only("has a request that gpupack cannot place: %v", err)
		return answer, s, nil
	}
	answer.Request = inWords(&request)
	switch {
	case !request.WantsGPU():
		answer.only("asks for no GPU, so gpupack has no say in where it goes")
		return answer, s, nil
	case convert.IsTerminal(pod):
		answer.only("has ended (%s) and holds no GPU", pod.Status.Phase)
		return answer, s, nil
	case pod.Spec.NodeName != "":
		s, err = e.explainPlaced(ctx, r, answer, pod)
	default:
		s, err = e.explainPending(ctx, r, answer, pod, &request, domains)
	}
	return answer, s, err
}

// explainPlaced fills in why a pod is where it is.
func (e *env) explainPlaced(ctx context.Context, r client.Reader, answer *Explanation, pod *corev1.Pod) (*snapshot, error) {
	s, err := read(ctx, r, e.now(), scope{gpuNodes: true,
		pods: &podScope{bound: true, node: pod.Spec.NodeName, keep: convert.HoldsGPUs}})
	if err != nil {
		return nil, err
	}
	if _, err := e.explainGang(ctx, r, answer, pod, nil, nil); err != nil {
		return nil, err
	}
	for _, u := range s.podUsage(e.view) {
		if u.UID == pod.UID {
			answer.Usage = &u
		}
	}
	if placedByUs(pod) {
		p := s.placement(pod)
		answer.Placement = &p
	}
	answer.Summary = fmt.Sprintf("It is on node %s.", pod.Spec.NodeName)
	return s, nil
}

// explainPending fills in why a pod has no node.
func (e *env) explainPending(ctx context.Context, r client.Reader, answer *Explanation, pod *corev1.Pod,
	request *pack.Request, domains map[string]string) (*snapshot, error) {
	taken := requests{}
	s, err := read(ctx, r, e.now(), scope{nodes: everything(), gpuNodes: true, workloadClasses: true,
		pods: &podScope{bound: true, keep: func(p *corev1.Pod) bool {
			taken.add(p)
			return convert.HoldsGPUs(p)
		}}})
	if err != nil {
		return nil, err
	}
	if answer.Scheduler, err = lastWord(ctx, r, pod); err != nil {
		return nil, err
	}
	chooser, _, err := newChooser(schedulerPolicy, s, e.view)
	if err != nil {
		return nil, err
	}
	c := newCandidates(s, taken, chooser, e.view)
	answer.judge(c, pod, request)
	f := &fixer{s: s, c: c, view: e.view, waiting: []*corev1.Pod{pod}, labels: domains}
	gang, err := e.explainGang(ctx, r, answer, pod, c, domains)
	if err != nil {
		return nil, err
	}
	answer.Summary = summary(answer, pod)
	if len(pod.Spec.SchedulingGates) > 0 || pod.Spec.SchedulerName != v1alpha1.SchedulerName {
		return s, nil
	}
	switch {
	case gang == nil && answer.Nodes.Fitting == 0:
		answer.Fixes, err = f.nearest(ctx)
	case gang != nil && gang.noRoom:
		f.group, f.waiting, f.held = gang.group, gang.waiting, gang.held
		answer.Fixes, err = f.nearest(ctx)
	}
	return s, err
}

// summary is the answer in one sentence.
func summary(answer *Explanation, pod *corev1.Pod) string {
	switch {
	case len(pod.Spec.SchedulingGates) > 0:
		return fmt.Sprintf("It is held back by the scheduling gate %s.", pod.Spec.SchedulingGates[0].Name)
	case pod.Spec.SchedulerName != v1alpha1.SchedulerName:
		return fmt.Sprintf("It is left to scheduler %q: gpupack places pods with schedulerName: %s.", pod.Spec.SchedulerName,
			v1alpha1.SchedulerName)
	case answer.Gang != nil && answer.Gang.WaitsFor != "":
		return fmt.Sprintf("Its gang %s waits: %s.", answer.Gang.Name, answer.Gang.WaitsFor)
	case answer.Nodes.Fitting == 0:
		return fmt.Sprintf("None of %s fits.", plural(answer.Nodes.Total, "node"))
	case answer.Scheduler == nil:
		return fmt.Sprintf("%d of %s would fit, but no scheduler has looked at it yet: is gpupack-scheduler running?",
			answer.Nodes.Fitting, plural(answer.Nodes.Total, "node"))
	}
	return fmt.Sprintf("%d of %s would fit by their GPUs, resources, taints and labels: it is about to be placed, or held up by "+
		"what the scheduler said.", answer.Nodes.Fitting, plural(answer.Nodes.Total, "node"))
}

// lastWord is what the scheduler said last, in an event or in the pod's condition; nil if it said nothing.
func lastWord(ctx context.Context, r client.Reader, pod *corev1.Pod) (*SchedulerWord, error) {
	var word *SchedulerWord
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Message != "" {
			word = &SchedulerWord{c.Reason, c.Message, c.LastTransitionTime}
		}
	}
	events, err := listAll(ctx, r, &corev1.EventList{}, func(l *corev1.EventList) []corev1.Event { return l.Items }, nil,
		client.InNamespace(pod.Namespace),
		client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("involvedObject.uid", string(pod.UID))})
	if apierrors.IsForbidden(err) {
		// The condition is enough.
		return word, nil
	}
	if err != nil {
		return nil, describe(err, "events")
	}
	for i := range events {
		ev := &events[i]
		at := eventTime(ev)
		if ev.Reason == "FailedScheduling" && (word == nil || !at.Time.Before(word.Time.Time)) {
			word = &SchedulerWord{ev.Reason, ev.Message, at}
		}
	}
	return word, nil
}

// eventTime is when an event happened last. The scheduler writes EventTime and Series, older writers LastTimestamp.
func eventTime(e *corev1.Event) metav1.Time {
	at := e.LastTimestamp.Time
	if e.EventTime.After(at) {
		at = e.EventTime.Time
	}
	if e.Series != nil && e.Series.LastObservedTime.After(at) {
		at = e.Series.LastObservedTime.Time
	}
	return metav1.NewTime(at)
}

// nearestNodes is how many nodes are shown in detail.
const nearestNodes = 3

// judge fills in what is in the way of the pod on each node.
func (x *Explanation) judge(c *candidates, pod *corev1.Pod, request *pack.Request) {
	v := c.judge(pod, request)
	x.Nodes, x.Reasons = &NodeCounts{Total: len(c.states), Fitting: v.fitting}, v.reasons
	for _, n := range v.nearest(nearestNodes) {
		x.Nearest = append(x.Nearest, c.nodeVerdict(n.at, n.obstacles, request))
	}
}

func (c *candidates) nodeVerdict(at int, obstacles []obstacle, request *pack.Request) NodeVerdict {
	state := c.states[at]
	out := NodeVerdict{Node: state.Name, Obstacles: []string{}, GPUs: []GPUVerdict{}}
	for _, o := range obstacles {
		sentence := o.message
		if o.figures != "" {
			sentence += " (" + o.figures + ")"
		}
		out.Obstacles = append(out.Obstacles, sentence)
	}
	for i, g := range c.chooser.Limits.Explain(state, request) {
		out.GPUs = append(out.GPUs, GPUVerdict{
			UUID: g.UUID, Index: g.Index, Fits: g.Reason == pack.ReasonFits, Reason: g.Reason.String(),
			Message: c.gpuMessage(&state.GPUs[i], &g, request),
			NeedMiB: g.NeedMiB, FreeMiB: g.FreeMiB, TotalMiB: state.GPUs[i].UsableMiB(),
			NeedMilli: g.NeedMilli, FreeMilli: g.FreeMilli,
		})
	}
	return out
}

// gpuMessage is a GPU's verdict in figures.
func (c *candidates) gpuMessage(g *pack.GPU, v *pack.GPUVerdict, request *pack.Request) string {
	memory := fmt.Sprintf("%d MiB free of %d, needs %d", v.FreeMiB, g.UsableMiB(), v.NeedMiB)
	foreign := fmt.Sprintf("%s is used outside any pod", gib(g.ForeignMiB))
	switch v.Reason {
	case pack.ReasonFits:
		return "fits: " + memory
	case pack.ReasonModel:
		return fmt.Sprintf("is of model %s, the pod accepts %s", g.Model, strings.Join(request.Models, " or "))
	case pack.ReasonTooLarge:
		return fmt.Sprintf("has %d MiB for pods, needs %d", g.UsableMiB(), v.NeedMiB)
	case pack.ReasonUnhealthy:
		return "is sick: " + g.Unhealthy
	case pack.ReasonCordoned:
		return "is " + g.Unhealthy
	case pack.ReasonBusy:
		return fmt.Sprintf("is %d%% busy, the pod accepts up to %d%%", g.Utilization, request.MaxUtilization)
	case pack.ReasonOccupied:
		return fmt.Sprintf("%s; held by %s", memory, plural(len(g.Tenants), "pod"))
	case pack.ReasonCompute:
		return fmt.Sprintf("%d milli-GPU free of 1000, needs %d; held by %s", v.FreeMilli, v.NeedMilli, plural(len(g.Tenants), "pod"))
	}
	var why []string
	if g.ForeignMiB > 0 {
		why = append(why, foreign)
	}
	if n := len(g.Tenants); n > 0 {
		held := int64(0)
		for i := range g.Tenants {
			held += g.Tenants[i].MiB()
		}
		why = append(why, fmt.Sprintf("%s held by %s", gib(held), plural(n, "pod")))
	}
	return strings.Join(append([]string{memory}, why...), "; ")
}

// gangMembers are the pods of a gang.
type gangMembers struct {
	group         *podgroupv1alpha1.PodGroup
	held, waiting []*corev1.Pod
	// noRoom is true where all members are there, but not the room for them.
	noRoom bool
}

// explainGang fills in the state of the pod's gang; nil is returned for a pod of none. c is nil for a pod that has a node.
func (e *env) explainGang(ctx context.Context, r client.Reader, answer *Explanation, pod *corev1.Pod, c *candidates,
	domains map[string]string) (*gangMembers, error) {
	name := gangOf(pod)
	if name == "" {
		return nil, nil
	}
	members, err := read(ctx, r, e.now(), scope{podGroups: &pod.Namespace, pods: &podScope{namespace: pod.Namespace,
		selector: labels.SelectorFromSet(labels.Set{v1alpha1.LabelPodGroup: name}),
		keep:     func(p *corev1.Pod) bool { return !convert.IsTerminal(p) && p.DeletionTimestamp == nil }}})
	if err != nil {
		return nil, err
	}
	gang := &Gang{Name: name, Members: len(members.pods)}
	out := &gangMembers{}
	for i := range members.pods {
		if m := &members.pods[i]; m.Spec.NodeName != "" {
			out.held = append(out.held, m)
		} else {
			out.waiting = append(out.waiting, m)
		}
	}
	gang.Placed = len(out.held)
	answer.Gang = gang
	group := members.podGroup(types.NamespacedName{Namespace: pod.Namespace, Name: name})
	if group == nil {
		if pod.Spec.NodeName == "" {
			gang.WaitsFor = fmt.Sprintf("PodGroup %s does not exist in namespace %s", name, pod.Namespace)
		}
		return out, nil
	}
	out.group = group
	gang.Exists, gang.MinMember = true, int(group.Spec.MinMember)
	if c == nil {
		return out, nil
	}
	if missing := gang.MinMember - gang.Members; missing > 0 {
		gang.WaitsFor = fmt.Sprintf("%s to be created (%d of %d exist)", plural(missing, "more member"), gang.Members, gang.MinMember)
	}
	_, failure, err := c.planGang(group, out.held, out.waiting, domains)
	switch {
	case err != nil:
		gang.WaitsFor = err.Error()
	case failure != nil:
		gang.Room = failure.Placed
		if gang.WaitsFor == "" {
			gang.WaitsFor, out.noRoom = failure.Error(), true
		}
	default:
		gang.Room = len(out.waiting)
	}
	return out, nil
}

// ago writes how long ago t was.
func (s *snapshot) ago(t metav1.Time) string {
	if t.IsZero() {
		return "at an unknown time"
	}
	return duration.HumanDuration(s.age(t)) + " ago"
}
