// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// Placements is the answer of kubectl gpupack placements.
type Placements struct {
	metav1.TypeMeta `json:",inline"`
	Items           []PodPlacement `json:"items"`
}

// PodPlacement is where gpupack placed a pod and why.
type PodPlacement struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	Node      string    `json:"node"`
	// GPUs are those chosen. A device plugin in observe mode can have handed out others: see TopPods.
	GPUs    []PlacedGPU `json:"gpus"`
	Request string      `json:"request"`
	Gang    string      `json:"gang,omitempty"`
	// Decision is the scheduler's record; absent where the pod has none that can be read.
	Decision          *v1alpha1.Decision `json:"decision,omitempty"`
	DecisionError     string             `json:"decisionError,omitempty"`
	CreationTimestamp metav1.Time        `json:"creationTimestamp"`

	shortRequest string
}

// PlacedGPU is a GPU that was chosen for a pod.
type PlacedGPU struct {
	UUID string `json:"uuid"`
	// Index is -1 where telemetry does not know the GPU.
	Index int `json:"index"`
}

var placementKeys = []sortKey[PodPlacement]{
	{"name", func(a, b *PodPlacement) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}},
	byName("node", func(p *PodPlacement) string { return p.Node }),
	byFigure("gpus", func(p *PodPlacement) int64 { return int64(len(p.GPUs)) }),
	byFigure("score", func(p *PodPlacement) int64 {
		if p.Decision == nil {
			return -1
		}
		return p.Decision.Score
	}),
	byName("gang", func(p *PodPlacement) string { return p.Gang }),
	{"age", func(a, b *PodPlacement) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) }},
}

func (e *env) placementsCommand() *cobra.Command {
	out := output{keys: keyNames(placementKeys), names: true}
	var selector selectorFlag
	var namespaces namespaceFlags
	var tree bool
	var by, onNode string
	cmd := &cobra.Command{
		Use:     "placements [POD...]",
		Aliases: []string{"placement"},
		Short:   "Show where gpupack placed pods, and why",
		Long: "Show the pods that gpupack placed: the GPUs chosen, the score of the node, and the next best node.\n" +
			"-o wide adds how many nodes were rejected for which reason. --tree puts them below their GPUs and nodes, --by gang below\n" +
			"their gangs.",
		Example: "  kubectl gpupack placements -A --sort-by=score\n  kubectl gpupack placements -A --tree\n" +
			"  kubectl gpupack placements -n research --by gang\n  kubectl gpupack placements trainer-0 -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if by != "" && by != byNodeTree && by != byGangTree {
				return usagef(cmd, "--by=%s is not node or gang", by)
			}
			if tree && by == "" {
				by = byNodeTree
			}
			c, err := e.begin(cmd, &out, &namespaces, &selector)
			if err != nil {
				return err
			}
			s, err := read(cmd.Context(), c, e.now(), scope{gpuNodes: true, gpuNodesIfAllowed: true,
				pods: &podScope{namespace: c.namespace, selector: c.selector, node: onNode, bound: true, keep: placedByUs}})
			if err != nil {
				return err
			}
			items, err := take(s.placements(), args, "pod placed by gpupack", func(p *PodPlacement) string { return p.Name })
			if err != nil {
				return err
			}
			if s.notAllowed {
				printLine(e.ErrOut, "You may not list gpunodes, so that GPUs are shown by UUID: the ClusterRole gpupack-reader lets you.")
			}
			sortItems(items, placementKeys, out.sortBy)
			return printList(e, c, &out, &listing[PodPlacement]{
				items:  items,
				answer: func(items []PodPlacement) any { return &Placements{typeMeta("Placements"), items} },
				name:   func(p *PodPlacement) string { return "pod/" + p.Name },
				none: fmt.Sprintf("No pods placed by gpupack found%s: a pod is with schedulerName: %s.", inNamespace(c.namespace),
					v1alpha1.SchedulerName),
				table: func(sc screen) {
					if by != "" {
						printPlacementTree(sc, s, items, by, &out)
					} else {
						printPlacements(sc, s, items, &out, c.namespace == "")
					}
				},
			})
		},
	}
	cmd.ValidArgsFunction = e.completePods(placedByUs)
	out.add(cmd)
	selector.add(cmd, "pods")
	namespaces.add(cmd)
	cmd.Flags().BoolVar(&tree, "tree", false, "Print a tree: nodes, GPUs, pods")
	cmd.Flags().StringVar(&by, "by", "", "Print a tree by node or gang")
	cmd.Flags().StringVar(&onNode, "node", "", "Pods of this node alone")
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions([]string{byNodeTree, byGangTree}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("node", e.completeGPU(func(*v1alpha1.GPUNode, *v1alpha1.GPU) bool { return true }))
	return cmd
}

// placedByUs says whether gpupack placed the pod.
func placedByUs(pod *corev1.Pod) bool {
	if pod.Annotations[v1alpha1.AnnotationDecision] != "" {
		return true
	}
	return pod.Annotations[v1alpha1.AnnotationGPUs] != ""
}

func (s *snapshot) placements() []PodPlacement {
	var out []PodPlacement
	for i := range s.pods {
		out = append(out, s.placement(&s.pods[i]))
	}
	return out
}

func (s *snapshot) placement(pod *corev1.Pod) PodPlacement {
	p := PodPlacement{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Spec.NodeName, GPUs: []PlacedGPU{},
		Gang: gangOf(pod), CreationTimestamp: pod.CreationTimestamp,
	}
	if r, err := convert.Request(pod); err != nil {
		p.Request, p.shortRequest = "invalid: "+err.Error(), "invalid"
	} else {
		p.Request, p.shortRequest = r.String(), shortRequest(&r)
	}
	var err error
	if p.Decision, err = decisionOf(pod); err != nil {
		p.DecisionError = err.Error()
	}
	gn := s.gpuNode(pod.Spec.NodeName)
	for _, uuid := range convert.GPUs(pod) {
		g := PlacedGPU{UUID: uuid, Index: -1}
		if gn != nil {
			for i := range gn.Status.GPUs {
				if gn.Status.GPUs[i].UUID == uuid {
					g.Index = int(gn.Status.GPUs[i].Index)
				}
			}
		}
		p.GPUs = append(p.GPUs, g)
	}
	slices.SortFunc(p.GPUs, func(a, b PlacedGPU) int { return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.UUID, b.UUID)) })
	return p
}

// indices writes the GPUs in short.
func (p *PodPlacement) indices() string { return placedIndices(p.GPUs) }

// placedIndices writes GPUs in short: their indices, or the head of a UUID where the index is not known.
func placedIndices(gpus []PlacedGPU) string {
	var known []int
	var parts []string
	for _, g := range gpus {
		if g.Index >= 0 {
			known = append(known, g.Index)
		} else {
			parts = append(parts, shortUUID(g.UUID))
		}
	}
	if len(known) > 0 {
		parts = append([]string{joinIndices(known)}, parts...)
	}
	return orDash(strings.Join(parts, ","))
}

// shortUUID is the part of a GPU's UUID that people compare: GPU-8f6b4c2e-... becomes GPU-8f6b4c2e.
func shortUUID(uuid string) string {
	if len(uuid) > 12 {
		return uuid[:12]
	}
	return uuid
}

// rejections writes counts by reason, the largest first.
func rejections(counts map[string]int) string {
	reasons := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	for i, reason := range reasons {
		reasons[i] = fmt.Sprintf("%d %s", counts[reason], reason)
	}
	return orDash(strings.Join(reasons, ", "))
}

// scoreCells are the score of the node chosen, and the next best node.
func scoreCells(d *v1alpha1.Decision) (score string, runnerUp cell) {
	score, runnerUp = "-", text("-")
	if d != nil {
		score = fmt.Sprint(d.Score)
		if d.RunnerUp != "" {
			runnerUp = tailedCell{d.RunnerUp, fmt.Sprintf(" (%d)", d.RunnerUpScore)}
		}
	}
	return score, runnerUp
}

func printPlacements(sc screen, s *snapshot, items []PodPlacement, out *output, allNamespaces bool) {
	t := table{columns: []column{
		{titles: []string{"NAMESPACE"}, min: 9, wide: !allNamespaces},
		{titles: []string{"NAME"}, min: 12, low: 18},
		{titles: []string{"NODE"}, min: 9, low: 16},
		{titles: []string{"GPUS"}},
		{titles: []string{"UUIDS"}, wide: true},
		{titles: []string{"REQUEST"}, min: 8, low: 16},
		{titles: []string{"SCORE"}, right: true},
		{titles: []string{"RUNNER-UP"}, min: 12, low: 16},
		{titles: []string{"GANG"}, min: 5, low: 12},
		{titles: []string{"AGE"}, right: true, optional: true},
		{titles: []string{"POLICY"}, wide: true},
		{titles: []string{"FITTED"}, right: true, wide: true},
		{titles: []string{"REJECTED"}, wide: true},
	}}
	for i := range items {
		p := &items[i]
		score, runnerUp := scoreCells(p.Decision)
		policy, feasible, rejected := "-", "-", "-"
		if d := p.Decision; d != nil {
			policy, feasible, rejected = d.Policy, fmt.Sprint(d.Feasible), rejections(d.Rejected)
		} else if p.DecisionError != "" {
			score, rejected = "?", p.DecisionError
		}
		uuids := make([]string, len(p.GPUs))
		for j, g := range p.GPUs {
			uuids[j] = g.UUID
		}
		t.rows = append(t.rows, []cell{
			text(p.Namespace), text(p.Name), text(p.Node), text(p.indices()), text(orDash(strings.Join(uuids, ","))),
			text(p.shortRequest), text(score), runnerUp, text(orDash(p.Gang)), text(duration.HumanDuration(s.age(p.CreationTimestamp))),
			text(policy), text(feasible), text(rejected),
		})
	}
	t.print(sc, out.wide(), out.noHeaders)
}
