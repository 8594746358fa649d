// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/kubectl-plugin/trace"
	"github.com/gpupack/gpupack/pack"
)

func gpu(foreignMiB int64, tenants ...tenant) *gpuState {
	return &gpuState{
		GPU:     v1alpha1.GPU{MemoryTotalMiB: 1100, MemoryReservedMiB: 100, MemoryForeignMiB: foreignMiB, Healthy: true},
		tenants: tenants,
	}
}

func on(name string, r pack.Request, usedMiB int64) tenant {
	return tenant{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}, r, usedMiB}
}

func TestBeyondMemory(t *testing.T) {
	for name, tc := range map[string]struct {
		gpu  *gpuState
		want []string
	}{
		"nobody":                   {gpu(1000), nil},
		"shares that fit":          {gpu(0, on("a", pack.Request{MiB: 500}, 0), on("b", pack.Request{Milli: 500}, 0)), nil},
		"shares promised too much": {gpu(0, on("a", pack.Request{MiB: 501}, 0), on("b", pack.Request{Milli: 500}, 0)), []string{"a", "b"}},
		"a share uses more":        {gpu(0, on("a", pack.Request{MiB: 500}, 600), on("b", pack.Request{MiB: 500}, 0)), []string{"a", "b"}},
		"foreign memory":           {gpu(501, on("a", pack.Request{MiB: 500}, 0)), []string{"a"}},
		"whole":                    {gpu(0, on("a", pack.Request{GPUs: 1}, 900)), nil},
		"whole, little foreign":    {gpu(512, on("a", pack.Request{GPUs: 1}, 0)), nil},
		"whole, much foreign":      {gpu(513, on("a", pack.Request{GPUs: 1}, 0)), []string{"a"}},
		"whole and a share":        {gpu(0, on("a", pack.Request{GPUs: 1}, 0), on("b", pack.Request{MiB: 1}, 0)), []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, tc.gpu.beyond()) })
	}
}

func TestPromises(t *testing.T) {
	kept := func() *totals {
		return &totals{
			gang: gangMembers, gangNodes: map[string]bool{"a": true, "b": true, "c": true, "d": true}, unhealthy: []string{"GPU 2 of c"},
		}
	}
	require.NoError(t, promises(kept()))
	for want, spoil := range map[string]func(*totals){
		"3 of 4 members of the gang pretrain run, on 4 nodes": func(t *totals) { t.gang = 3 },
		"4 of 4 members of the gang pretrain run, on 3 nodes": func(t *totals) { delete(t.gangNodes, "a") },
		"one GPU should be sick, not 0":                       func(t *totals) { t.unhealthy = nil },
		"pods are on the sick GPU: x":                         func(t *totals) { t.onSick = []string{"x"} },
		"pods do not get their memory: x, y":                  func(t *totals) { t.beyondMemory = []string{"x", "y"} },
		"GPUs are promised more than once: x":                 func(t *totals) { t.sharedMore = []string{"x"} },
	} {
		spoilt := kept()
		spoil(spoilt)
		require.ErrorContains(t, promises(spoilt), "broken promise: "+want)
	}
}

// TestPods has the same task ask for a share of gpupack and for a whole GPU of the default scheduler.
func TestPods(t *testing.T) {
	task := []trace.Task{{Name: "a", CPUMilli: 1500, MemoryMiB: 10, GPUs: 1, GPUMilli: 460, Models: []string{"P100", "T4"}}}

	pod := gpupackPool.taskPods(task)[0]
	r, err := convert.Request(pod)
	require.NoError(t, err)
	require.Equal(t, pack.Request{CPUMilli: 1500, MemoryMiB: 10, Milli: 460, Models: []string{"P100", "T4"}}, r)
	require.Equal(t, "gpupack", pod.Spec.SchedulerName)
	require.Nil(t, pod.Spec.Affinity)

	pod = defaultPool.taskPods(task)[0]
	r, err = convert.Request(pod)
	require.NoError(t, err)
	require.Equal(t, pack.Request{CPUMilli: 1500, MemoryMiB: 10, GPUs: 1}, r)
	terms := pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	require.Equal(t, []string{"P100", "T4"}, terms[0].MatchExpressions[0].Values)
}

func TestScenario(t *testing.T) {
	nodes, err := trace.ReadNodes("../fixtures/openb/nodes.csv")
	require.NoError(t, err)
	s, err := scenario(nodes, []*pool{gpupackPool, defaultPool})
	require.NoError(t, err)
	require.Empty(t, s.Validate())
	require.Len(t, s.Nodes, 2*len(nodes))
	processes, events := 0, 0
	for _, n := range s.Nodes {
		processes += len(n.Processes)
		events += len(n.Events)
	}
	require.Equal(t, 2, processes, "one in each pool")
	require.Equal(t, 2, events, "one in each pool")

	_, err = scenario([]trace.Node{{Name: "n", GPUs: 1, Model: "B9"}}, []*pool{gpupackPool})
	require.EqualError(t, err, `node n has GPUs of model "B9", whose memory the demo does not know`)
}

func TestDrawSVG(t *testing.T) {
	var out bytes.Buffer
	drawSVG(&out, "$ a <b>\r\n\x1b[1mNAME\x1b[0m   X\n  \x1b[36m██\x1b[2m░\x1b[0m 5%\n")
	decoder := xml.NewDecoder(&out)
	type word struct{ x, class, text string }
	var words []word
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		start, ok := token.(xml.StartElement)
		if !ok || start.Name.Local != "tspan" {
			continue
		}
		var w word
		for _, a := range start.Attr {
			switch a.Name.Local {
			case "x":
				w.x = a.Value
			case "class":
				w.class = a.Value
			}
		}
		require.NoError(t, decoder.DecodeElement(&w.text, &start))
		words = append(words, w)
	}
	require.Equal(t, []word{
		{"16.0", "", "$ a <b>"},
		{"16.0", "s1", "NAME"}, {"74.8", "", "X"},
		{"32.8", "s36", "██"}, {"49.6", "s36 s2", "░"}, {"66.4", "", "5%"},
	}, words)
}

func TestCommandLine(t *testing.T) {
	require.Equal(t, "kubectl gpupack top -l 'a in (b,c)'", commandLine([]string{"top", "-l", "a in (b,c)"}))
}
