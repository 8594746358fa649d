// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
)

// GangExplanation is the answer of kubectl gpupack explain podgroup/NAME.
type GangExplanation struct {
	metav1.TypeMeta `json:",inline"`
	GangState       `json:",inline"`
	// MemberPods are the members that have not ended.
	MemberPods []GangMember `json:"memberPods"`
	// Nodes and Reasons are of the first member without a node, where the gang waits for room.
	Nodes   *NodeCounts   `json:"nodes,omitempty"`
	Reasons []ReasonCount `json:"reasons,omitempty"`
	// NearestFixes would each let the gang in; those that cost least first.
	NearestFixes []Fix `json:"nearestFixes,omitempty"`
}

// GangMember is a pod of a gang.
type GangMember struct {
	Name    string `json:"name"`
	Phase   string `json:"phase"`
	Request string `json:"request"`
	// Placement is absent where the pod has no node, or gpupack did not place it there.
	Placement *PodPlacement `json:"placement,omitempty"`
}

// noGangError means that there is no PodGroup of a name and no pod that names it.
type noGangError struct{ namespace, name string }

func (e *noGangError) Error() string {
	return fmt.Sprintf("PodGroup %q not found in namespace %q", e.name, e.namespace)
}

// gangName takes the kind off podgroup/NAME.
func gangName(arg string) (string, bool) {
	for _, kind := range []string{"podgroup/", "podgroups/", "pg/", "podgroup.scheduling.x-k8s.io/"} {
		if name, ok := strings.CutPrefix(arg, kind); ok {
			return name, true
		}
	}
	return "", false
}

func (e *env) explainPodGroup(ctx context.Context, r client.Reader, namespace, name string, domains map[string]string,
	p printers.ResourcePrinter) error {
	s, items, err := e.gangs(ctx, r, namespace, nil, domains, func(g *GangState) bool { return g.Name == name })
	if err != nil {
		return err
	}
	if len(items) == 0 {
		return &noGangError{namespace, name}
	}
	answer := &GangExplanation{TypeMeta: typeMeta("GangExplanation"), GangState: items[0], MemberPods: []GangMember{}}
	key := types.NamespacedName{Namespace: namespace, Name: name}
	for i := range s.pods {
		pod := &s.pods[i]
		if gangKey(pod) != key || convert.IsTerminal(pod) {
			continue
		}
		m := GangMember{Name: pod.Name, Phase: string(pod.Status.Phase)}
		if request, err := convert.Request(pod); err != nil {
			m.Request = "invalid: " + err.Error()
		} else {
			m.Request = inWords(&request)
		}
		if placedByUs(pod) && pod.Spec.NodeName != "" {
			placement := s.placement(pod)
			m.Placement = &placement
		}
		answer.MemberPods = append(answer.MemberPods, m)
	}
	if f := answer.fixer; f != nil {
		if answer.NearestFixes, err = f.nearest(ctx); err != nil {
			return err
		}
		if request, err := convert.Request(f.waiting[0]); err == nil {
			v := f.c.judge(f.waiting[0], &request)
			answer.Nodes, answer.Reasons = &NodeCounts{Total: len(f.c.nodes), Fitting: v.fitting}, v.reasons
		}
	}
	if p != nil {
		return printObject(p, e.Out, answer)
	}
	printGangExplanation(newScreen(e.Out), s, answer)
	return nil
}

func printGangExplanation(sc screen, s *snapshot, x *GangExplanation) {
	line := func(format string, args ...any) { fmt.Fprintln(sc, wrap(fmt.Sprintf(format, args...), sc.width)) }
	fmt.Fprintln(sc, sc.render([]span{{fmt.Sprintf("Gang %s/%s", x.Namespace, x.Name), heading},
		{fmt.Sprintf(" (%s, created %s) asks for %s.", x.Phase, s.ago(x.CreationTimestamp), cmp.Or(strings.Join(x.Requests, ", "), "nothing")), plain}}))
	line("%s", x.text())
	if x.Topology != "" {
		how := "in as few as possible"
		if x.TopologyRequired {
			how = "in one"
		}
		where := make([]string, len(x.Domains))
		for i, d := range x.Domains {
			where[i] = fmt.Sprintf("%s (%d)", orDash(d.Name), d.Members)
		}
		line("Of the domains of kind %s it should be %s; it is in %s.", x.Topology, how, cmp.Or(strings.Join(where, ", "), "none yet"))
	}
	wait := duration.HumanDuration(time.Duration(x.WaitSeconds) * time.Second)
	switch {
	case x.WaitsFor != "":
		line("It has waited for %s: %s.", wait, x.WaitsFor)
	case x.Placed > 0:
		line("It waited for %s until enough members had a node.", wait)
	}
	if len(x.MemberPods) > 0 {
		fmt.Fprintf(sc, "\n%s\n", sc.render([]span{{"Members", heading}}))
		printMembers(sc, x.MemberPods)
	}
	if len(x.Reasons) > 0 {
		printReasons(sc, fmt.Sprintf("Nodes: %d, of which %d would fit one member more", x.Nodes.Total, x.Nodes.Fitting), x.Reasons)
	}
	printFixes(sc, x.NearestFixes)
}

func printMembers(sc screen, members []GangMember) {
	t := table{columns: []column{
		{titles: []string{"NAME"}, min: 12, low: 18},
		{titles: []string{"PHASE"}},
		{titles: []string{"REQUEST"}, min: 8, low: 16},
		{titles: []string{"NODE"}, min: 9, low: 16},
		{titles: []string{"GPUS"}},
		{titles: []string{"SCORE"}, right: true},
		{titles: []string{"RUNNER-UP"}, min: 12, low: 16},
	}}
	for i := range members {
		m := &members[i]
		node, gpus := "-", "-"
		var decision *v1alpha1.Decision
		if p := m.Placement; p != nil {
			node, gpus, decision = p.Node, p.indices(), p.Decision
		}
		score, runnerUp := scoreCells(decision)
		t.rows = append(t.rows, []cell{text(m.Name), text(m.Phase), text(m.Request), text(node), text(gpus), text(score), runnerUp})
	}
	t.print(sc, false, false)
}
