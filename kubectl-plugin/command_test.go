// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestUsageErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"unknown command": {[]string{"tpo"},
			"error: unknown command \"tpo\" for \"kubectl gpupack\": did you mean \"top\"?\nSee 'kubectl gpupack --help'.\n"},
		"unknown command without a suggestion": {[]string{"frobnicate"},
			"error: unknown command \"frobnicate\" for \"kubectl gpupack\"\nSee 'kubectl gpupack --help'.\n"},
		"unknown subcommand": {[]string{"top", "gpsu"},
			"error: unknown command \"gpsu\" for \"kubectl gpupack top\": did you mean \"gpus\"?\nSee 'kubectl gpupack top --help'.\n"},
		"unknown flag": {[]string{"top", "pods", "--sortby", "name"},
			"error: unknown flag: --sortby: did you mean --sort-by?\nSee 'kubectl gpupack top pods --help'.\n"},
		"sort-by": {[]string{"top", "--sort-by", "colour"},
			"error: --sort-by=colour is not a column: use one of node, model, gpus, used, requested, total, free, foreign, util, pods, notes\n" +
				"See 'kubectl gpupack top --help'.\n"},
		"sort-by of pods": {[]string{"top", "pods", "--sort-by", ""},
			"error: --sort-by= is not a column: use one of name, node, gpus, used, requested, over, util, gang, age\n" +
				"See 'kubectl gpupack top pods --help'.\n"},
		"output": {[]string{"top", "gpus", "-o", "xml"},
			"error: -o xml is not an output format: use one of table, wide, json, yaml, custom-columns=..., jsonpath=..., go-template=...\nSee 'kubectl gpupack top gpus --help'.\n"},
		"selector": {[]string{"top", "-l", "a in b"},
			"error: -l a in b is not a label selector: unable to parse requirement: found 'b' expected: '('\nSee 'kubectl gpupack top --help'.\n"},
		"explain nothing": {[]string{"explain"},
			"error: expected the name of a pod or of a PodGroup, got 0 arguments\nSee 'kubectl gpupack explain --help'.\n"},
		"version of something": {[]string{"version", "x"},
			"error: expected no arguments, got 1 arguments\nSee 'kubectl gpupack version --help'.\n"},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, result{exitUsage, "", tt.want}, invoke(t, nil, tt.args...))
		})
	}
}

func TestHelpNamesTheCommandAsItIsCalled(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"help", "top"}, {"top", "pods", "-h"}, {"explain", "--help"}, {"placements", "--help"},
		{"snapshot", "-h"}, {"simulate", "-h"}} {
		got := invoke(t, nil, args...)
		assert.Equal(t, exitOK, got.code, got.err)
		assert.Contains(t, got.out, "kubectl gpupack")
		assert.NotContains(t, got.out, "kubectl-gpupack")
		for line := range strings.Lines(got.out) {
			assert.LessOrEqual(t, len(line), 125, line)
		}
	}
}

func TestVersion(t *testing.T) {
	got := invoke(t, nil, "version")
	assert.Equal(t, exitOK, got.code, got.err)
	assert.True(t, strings.HasPrefix(got.out, "kubectl gpupack v"), got.out)
	got = invoke(t, nil, "version", "-o", "json")
	assert.Contains(t, got.out, `"gitVersion": "v`)
}

func TestCompletion(t *testing.T) {
	got := invoke(t, nil, "completion", "bash")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Contains(t, got.out, "__start_kubectl-gpupack")
	got = invoke(t, nil, "__complete", "top", "--sort-by", "")
	assert.Contains(t, got.out, "requested\n")
	got = invoke(t, cluster(t, fleet()), "__complete", "explain", "-n", "research", "")
	assert.Contains(t, got.out, "llama-worker-0\nllama-worker-1\n:4\n")
	got = invoke(t, nil, "__complete", "simulate", "--policy", "")
	assert.Contains(t, got.out, "best-fit\n")
	got = invoke(t, nil, "__complete", "to")
	assert.Contains(t, got.out, "top\t")
}

func TestAnErrorOfTheClusterIsOneLine(t *testing.T) {
	streams, _, _, errOut := genericiooptions.NewTestIOStreams()
	e := &env{IOStreams: streams, config: genericclioptions.NewConfigFlags(true)}
	e.reader = func() (client.Reader, error) { return nil, errors.New("invalid configuration: no such context") }
	assert.Equal(t, exitError, run(t.Context(), e.command(), streams, []string{"top", "nodes"}))
	assert.Equal(t, "error: invalid configuration: no such context\n", errOut.String())
}

func TestColour(t *testing.T) {
	spans := []span{{"a", bad}, {"b", plain}}
	var b bytes.Buffer
	s := screen{Writer: &b, color: true}
	assert.Equal(t, "\x1b[31ma\x1b[0mb", s.render(spans))
	s.color = false
	assert.Equal(t, "ab", s.render(spans))
	assert.False(t, newScreen(&b).color, "colour without a terminal")
}

// What the reference shows must be what the plugin prints.
func TestReferenceIsTrue(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "docs", "kubectl.md"))
	require.NoError(t, err)
	for _, name := range []string{"top-nodes-100", "top-pods-100", "placements-100", "placements-tree-100", "explain-pending-whole", "explain-podgroup", "explain-running", "gangs-100",
		"whatif-add-nodes", "whatif-drain", "simulate"} {
		want, err := os.ReadFile(filepath.Join("testdata", name+".golden"))
		require.NoError(t, err)
		assert.True(t, strings.Contains(withoutSecondsColumn(string(doc)), string(want)), "docs/kubectl.md does not show testdata/%s.golden", name)
	}
	job, err := os.ReadFile(filepath.Join("testdata", "job.yaml"))
	require.NoError(t, err)
	assert.Contains(t, string(doc), string(job))
}
