// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/gpupack/gpupack/test/embedded"
)

func TestMain(m *testing.M) {
	os.Exit(embedded.RunMain(m, embedded.Options{}))
}

// newTestCommand returns the command without its setting up of logs, which a process may do once.
func newTestCommand(args ...string) *cobra.Command {
	cmd := NewCommand()
	cmd.PersistentPreRunE = nil
	cmd.SetArgs(append([]string{"--metrics-bind-address=0", "--health-probe-bind-address=0"}, args...))
	return cmd
}

func TestCommandErrors(t *testing.T) {
	kubeconfig := embedded.Get(t).Kubeconfig()
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"no kubeconfig":   {[]string{"--kubeconfig=none"}, "find the API server: stat none: no such file"},
		"no CRDs":         {[]string{"--kubeconfig", kubeconfig}, "the API server has no PodGroup of scheduling.x-k8s.io/v1alpha1: apply the CRDs in manifests/base/crds first"},
		"bad delay":       {[]string{"--node-not-ready-after=0s"}, "--node-not-ready-after=0s must be above 0"},
		"bad back-off":    {[]string{"--repair-backoff=2s", "--repair-backoff-max=1s"}, "--repair-backoff-max=1s must not be below --repair-backoff=2s"},
		"bad limit":       {[]string{"--max-restarts=-1"}, "--max-restarts=-1 must not be below 0"},
		"bad interval":    {[]string{"--deletion-cost-interval=-1s"}, "--deletion-cost-interval=-1s must not be below 0"},
		"bad workers":     {[]string{"--workers=0"}, "--workers=0 must be above 0"},
		"bad rate":        {[]string{"--kube-api-qps=0"}, "--kube-api-qps=0 and --kube-api-burst=1000 must be above 0"},
		"no scheduler":    {[]string{"--scheduler-name="}, "--scheduler-name must name a scheduler, such as gpupack"},
		"no lease":        {[]string{"--leader-elect-resource-name="}, "--leader-elect needs --leader-elect-resource-namespace and"},
		"unknown command": {[]string{"more"}, `unknown command "more"`},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorContains(t, newTestCommand(tt.args...).ExecuteContext(t.Context()), tt.want)
		})
	}
}

// It takes the lease, and gives it back when it ends.
func TestCommand(t *testing.T) {
	cp := embedded.Get(t)
	require.NoError(t, cp.InstallCRDs(t.Context(), "../../manifests/base/crds/gpupack.dev_gpunodes.yaml",
		"../../manifests/base/crds/scheduling.x-k8s.io_podgroups.yaml"))
	client, err := kubernetes.NewForConfig(cp.Config())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- newTestCommand("--kubeconfig", cp.Kubeconfig(), "--leader-elect-resource-namespace=default").ExecuteContext(ctx)
	}()
	holder := func(c require.TestingT) string {
		lease, err := client.CoordinationV1().Leases("default").Get(t.Context(), "gpupack-controller", metav1.GetOptions{})
		require.NoError(c, err)
		require.NotNil(c, lease.Spec.HolderIdentity)
		return *lease.Spec.HolderIdentity
	}
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.NotEmpty(c, holder(c)) }, time.Minute, 50*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	require.Empty(t, holder(t))
}
