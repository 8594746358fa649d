// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/utils/ptr"

	"github.com/gpupack/gpupack/api/v1alpha1"
	kubectlplugin "github.com/gpupack/gpupack/kubectl-plugin"
	"github.com/gpupack/gpupack/test/scheduler"
)

// kubectl runs kubectl gpupack and returns what it prints.
func (k *cluster) kubectl(t *testing.T, args ...string) []byte {
	t.Helper()
	var out, errOut bytes.Buffer
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: &out, ErrOut: &errOut}
	args = append(args, "--kubeconfig", k.cp.Kubeconfig(), "--namespace", k.namespace)
	require.Equal(t, 0, kubectlplugin.Run(t.Context(), streams, args), errOut.String())
	require.Empty(t, errOut.String())
	return out.Bytes()
}

// priorityClass makes a PriorityClass of that value that preempts nobody, and returns its name.
func (k *cluster) priorityClass(t *testing.T, value int) string {
	t.Helper()
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", k.namespace, value)}, Value: int32(value),
		PreemptionPolicy: ptr.To(corev1.PreemptNever)}
	if err := k.Create(t.Context(), class); !apierrors.IsAlreadyExists(err) {
		require.NoError(t, err)
		t.Cleanup(func() { _ = k.Delete(context.Background(), class) })
	}
	return class.Name
}

// What simulate says of a snapshot with waiting pods is what the scheduler then does.
func TestWhatIfForetellsTheScheduler(t *testing.T) {
	k := newCluster(t, 4, func(int) []v1alpha1.GPU { return a100s(4) }, func(i int, node *corev1.Node) {
		if i == 3 {
			node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: "reserved", Effect: corev1.TaintEffectNoSchedule})
		}
	})
	// What runs already: a share on a GPU, and memory of a process outside any pod.
	gpu := &k.gpus[k.nodes[1]][2]
	gpu.MemoryUsedMiB, gpu.MemoryForeignMiB = 50*gib, 50*gib
	k.publish(t, k.nodes[1])
	runs := k.create(t, "runs", shareMemory("30Gi"), annotated(v1alpha1.AnnotationGPUs, k.gpus[k.nodes[0]][1].UUID),
		func(p *corev1.Pod) { p.Spec.NodeName = k.nodes[0] })
	require.Eventually(t, func() bool { return k.get(t, runs.Name).Status.Phase == corev1.PodRunning }, eventually, tick)

	// Priorities give the order in which the scheduler takes the pods; nobody preempts.
	k.group(t, "whole", 3)
	k.group(t, "hopeless", 2)
	waiting := []string{}
	wait := func(name string, class int, options ...podOption) {
		className := k.priorityClass(t, class)
		pod := k.pod(name, append(options, func(p *corev1.Pod) { p.Spec.PriorityClassName = className })...)
		// Admission learns of the class a moment after it is there.
		require.EventuallyWithT(t, func(t *assert.CollectT) { require.NoError(t, k.Create(context.Background(), pod)) }, eventually, tick)
		waiting = append(waiting, name)
	}
	for i := range 3 {
		wait(fmt.Sprintf("gang-%d", i), 95, wholeGPUs(2), inGroup("whole"))
	}
	for i := range 2 {
		wait(fmt.Sprintf("hopeless-%d", i), 90, wholeGPUs(4), inGroup("hopeless"))
	}
	cpu := func(q string) podOption {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse(q)
		}
	}
	for i, options := range [][]podOption{
		{shareMilli(300), cpu("3")}, {shareMemory("20Gi")}, {shareMilli(700)}, {wholeGPUs(1), cpu("2")}, {shareMemory("24Gi"), cpu("4")},
		{shareMilli(300)}, {wholeGPUs(2)}, {shareMemory("70Gi")}, {shareMilli(450)}, {wholeGPUs(1)},
	} {
		wait(fmt.Sprintf("pod-%d", i), 97-i, options...)
	}

	path := filepath.Join(t.TempDir(), "snapshot.yaml")
	require.NoError(t, os.WriteFile(path, k.kubectl(t, "snapshot"), 0o600))
	var foretold kubectlplugin.WhatIf
	require.NoError(t, json.Unmarshal(k.kubectl(t, "simulate", "--snapshot", path, "-o", "json"), &foretold))
	places := map[string]string{}
	for _, p := range foretold.Pods {
		if p.Namespace != k.namespace {
			continue
		}
		places[p.Name] = p.Node
		for _, g := range p.GPUs {
			places[p.Name] += " " + g.UUID
		}
	}

	scheduler.Start(t, k.cp, scheduler.Options{Args: map[string]any{"policy": "gpupack"}})
	got, want := map[string]string{}, map[string]string{}
	for _, name := range waiting {
		want[name] = places[name]
		if places[name] == "" {
			k.pendingFor(t, name, "nodes are available")
			got[name] = ""
			continue
		}
		pod := k.placed(t, name)
		got[name] = pod.Spec.NodeName
		for _, uuid := range gpusOf(pod) {
			got[name] += " " + uuid
		}
	}
	require.Equal(t, want, got)
	require.Empty(t, places["hopeless-0"], "the test has a gang that does not fit")
	require.NotEmpty(t, places["gang-0"], "and one that does")
	k.requireNoDoubleBooking(t)
}
