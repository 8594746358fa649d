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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/kubectl-plugin/dcgm"
)

// sourcePrometheus is the source of figures that dcgm-exporter measured.
const sourcePrometheus v1alpha1.Source = "prometheus"

// prometheusFlag is the URL of a Prometheus that dcgm-exporter's metrics are read from.
type prometheusFlag struct{ url string }

func (f *prometheusFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.url, "prometheus", "",
		"URL of a Prometheus that scrapes dcgm-exporter, for nodes without gpupack-agent, such as http://localhost:9090")
}

// source returns nil where no URL was given.
func (f *prometheusFlag) source(cmd *cobra.Command) (*dcgm.Source, error) {
	if !cmd.Flags().Changed("prometheus") {
		return nil, nil
	}
	s, err := dcgm.New(f.url)
	if err != nil {
		return nil, usagef(cmd, "--prometheus=%v", err)
	}
	return s, nil
}

// measure returns what Prometheus tells of, as telemetry by node.
func measure(ctx context.Context, source *dcgm.Source, now time.Time) (map[string]*v1alpha1.GPUNode, error) {
	gpus, err := source.Read(ctx)
	if err != nil {
		return nil, err
	}
	observed := metav1.NewMicroTime(now)
	out := map[string]*v1alpha1.GPUNode{}
	for i := range gpus {
		g := &gpus[i]
		gn := out[g.Node]
		if gn == nil {
			gn = &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: g.Node}, Status: v1alpha1.GPUNodeStatus{
				ObservedTime: &observed, Source: sourcePrometheus, Mode: v1alpha1.ModeObserve,
			}}
			out[g.Node] = gn
		}
		reading := v1alpha1.GPU{
			UUID: g.UUID, Index: int32(g.Index), Model: strings.ReplaceAll(strings.TrimPrefix(g.Model, "NVIDIA "), " ", "-"),
			MemoryTotalMiB: g.UsedMiB + g.FreeMiB + g.ReservedMiB, MemoryReservedMiB: g.ReservedMiB, MemoryUsedMiB: g.UsedMiB,
			Utilization: int32(g.Utilization), Healthy: true,
		}
		for _, p := range g.Pods {
			reading.Pods = append(reading.Pods, v1alpha1.GPUPod{Namespace: p.Namespace, Name: p.Name})
		}
		gn.Status.GPUs = append(gn.Status.GPUs, reading)
	}
	return out, nil
}

// attribute gives the memory of each GPU to the pod that has it. Of pods that share one, Prometheus does not tell who uses how
// much: they get equal parts. Memory of a GPU whose pods are not known counts for no pod, though it may well be one's.
func attribute(measured *v1alpha1.GPUNode, pods []convert.Pod) *v1alpha1.GPUNode {
	out := measured.DeepCopy()
	for i := range out.Status.GPUs {
		g := &out.Status.GPUs[i]
		named := g.Pods
		g.Pods = nil
		for _, p := range pods {
			if !slices.Contains(p.GPUs, g.UUID) && !slices.ContainsFunc(named, func(n v1alpha1.GPUPod) bool {
				return n.Namespace == p.Pod.Namespace && n.Name == p.Pod.Name
			}) {
				continue
			}
			g.Pods = append(g.Pods, v1alpha1.GPUPod{Namespace: p.Pod.Namespace, Name: p.Pod.Name, UID: p.Pod.UID})
		}
		for j := range g.Pods {
			n := int64(len(g.Pods))
			g.Pods[j].MemoryUsedMiB = g.MemoryUsedMiB / n
			g.Pods[j].Utilization = g.Utilization / int32(n)
			if j == 0 {
				g.Pods[j].MemoryUsedMiB += g.MemoryUsedMiB % n
			}
		}
	}
	return out
}

// addMeasured puts what Prometheus tells of nodes that have no agent into the snapshot.
func (s *snapshot) addMeasured(ctx context.Context, source *dcgm.Source) error {
	measured, err := measure(ctx, source, s.now)
	if err != nil {
		return err
	}
	pods := s.podsByNode()
	var added []v1alpha1.GPUNode
	for name, gn := range measured {
		if known := s.gpuNode(name); known == nil || len(known.Status.GPUs) == 0 {
			added = append(added, *attribute(gn, pods[name]))
		}
	}
	s.gpuNodes = slices.DeleteFunc(s.gpuNodes, func(g v1alpha1.GPUNode) bool {
		return len(g.Status.GPUs) == 0 && measured[g.Name] != nil
	})
	s.gpuNodes = append(s.gpuNodes, added...)
	slices.SortFunc(s.gpuNodes, func(a, b v1alpha1.GPUNode) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// sayMeasured adds what Prometheus tells, and says on the error stream if it tells nothing.
func (e *env) sayMeasured(ctx context.Context, s *snapshot, source *dcgm.Source) {
	if source == nil {
		return
	}
	if err := s.addMeasured(ctx, source); err != nil {
		fmt.Fprintf(e.ErrOut, "%v.\n", err)
	}
}
