// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/test/embedded"
)

func TestMain(m *testing.M) {
	os.Exit(embedded.RunMain(m, embedded.Options{}))
}

func writeFile(t *testing.T, name, content string) string {
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// newTestCommand returns the command without its setting up of logs, which a process may do once.
func newTestCommand(args ...string) *cobra.Command {
	cmd := NewCommand()
	cmd.PersistentPreRunE = nil
	cmd.SetArgs(args)
	return cmd
}

func TestCommandErrors(t *testing.T) {
	bad := writeFile(t, "bad.yaml", "nodes:\n- name: a\n  colour: red\n")
	good := "../../test/fixtures/scenarios/example.yaml"
	kubeconfig := embedded.Get(t).Kubeconfig()
	tests := map[string]struct {
		args []string
		want string
	}{
		"hardware, the default": {nil, "this build does not read hardware yet: use --source=simulated with --scenario FILE"},
		"hardware":              {[]string{"--source=hardware"}, "this build does not read hardware yet"},
		"unknown source":        {[]string{"--source=guess"}, "--source=guess is unknown: use hardware or simulated"},
		"no scenario":           {[]string{"--source=simulated"}, "--source=simulated needs --scenario FILE"},
		"no such file":          {[]string{"--source=simulated", "--scenario=none.yaml"}, "read the scenario: open none.yaml: no such file"},
		"bad scenario":          {[]string{"--source=simulated", "--scenario", bad}, bad + `:3: unknown field "colour"`},
		"bad interval":          {[]string{"--source=simulated", "--scenario", good, "--interval=0s"}, "--interval=0s must be above 0"},
		"bad write interval":    {[]string{"--source=simulated", "--scenario", good, "--min-write-interval=-1s"}, "--min-write-interval=-1s must be above 0"},
		"no kubeconfig":         {[]string{"--source=simulated", "--scenario", good, "--kubeconfig=none"}, "find the API server: stat none: no such file"},
		"no such node":          {[]string{"--source=simulated", "--scenario", good, "--kubeconfig", kubeconfig, "--node=x"}, `the scenario has no node "x"`},
		"argument":              {[]string{"--source=simulated", "more"}, `unknown command "more"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := newTestCommand(tt.args...)
			require.ErrorContains(t, cmd.ExecuteContext(t.Context()), tt.want)
		})
	}
}

func TestCommand(t *testing.T) {
	cp := embedded.Get(t)
	require.NoError(t, cp.InstallCRDs(t.Context(), "../../manifests/base/crds/gpupack.dev_gpunodes.yaml"))
	client, err := dynamic.NewForConfig(cp.Config())
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	cmd := newTestCommand("--source=simulated", "--scenario=../../test/fixtures/scenarios/example.yaml",
		"--kubeconfig", cp.Kubeconfig(), "--create-nodes")
	done := make(chan error)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		list, err := client.Resource(v1alpha1.GPUNodeGVR).List(ctx, metav1.ListOptions{})
		require.NoError(c, err)
		require.Len(c, list.Items, 3)
		for _, item := range list.Items {
			assert.Contains(c, item.Object, "status", item.GetName())
		}
	}, time.Minute, 50*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}
