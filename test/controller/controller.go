// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package controller runs gpupack-controller as a process of its own against an embedded control plane, with the rights of
// manifests/base. A proxy between it and the API server lets tests hold its requests, and the process can be killed at any moment.
package controller

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpupack/gpupack/test/embedded"
	"github.com/gpupack/gpupack/test/process"
)

// user is who gpupack-controller is on a cluster.
const user = "system:serviceaccount:gpupack-system:gpupack-controller"

// Controller is a running gpupack-controller.
type Controller struct {
	*process.Process
	*process.Proxy
	metrics string
}

var build = sync.OnceValues(func() (string, error) { return process.BuildOurs("gpupack-controller") })

// Build builds the controller, with the race detector where the test has it. TestMain calls it so that the time does not count
// against a test.
func Build() error {
	_, err := build()
	return err
}

// Install applies the controller's rights from manifests/base. The CRDs and the namespace must be there.
func Install(ctx context.Context, cp *embedded.ControlPlane) error {
	return cp.Apply(ctx, filepath.Join(process.Root, "manifests", "base", "controller-rbac.yaml"))
}

// Start runs the controller and returns when it is ready. It is killed after the test, which fails if the race detector found
// anything or the controller panicked. args are further flags.
func Start(t testing.TB, cp *embedded.ControlPlane, args ...string) *Controller {
	t.Helper()
	path, err := build()
	require.NoError(t, err)
	c := &Controller{Process: process.New()}
	c.Proxy, err = c.NewProxy(t, cp.ConfigFor(user, "system:serviceaccounts", "system:serviceaccounts:gpupack-system"))
	require.NoError(t, err)
	kubeconfig, err := c.Kubeconfig(t.TempDir())
	require.NoError(t, err)
	probes := process.FreeAddress(t)
	c.metrics = process.FreeAddress(t)
	require.NoError(t, c.StartOurs(t, path, append([]string{"--kubeconfig=" + kubeconfig, "--leader-elect=false",
		"--metrics-bind-address=" + c.metrics, "--health-probe-bind-address=" + probes, "-v=2"}, args...)...))
	t.Cleanup(func() {
		c.Kill()
		require.NotContains(t, c.Log(), "forbidden", "the controller lacks a right")
	})
	c.AwaitReady(t, "http://"+probes)
	return c
}

// Metrics returns what the controller serves under /metrics.
func (c *Controller) Metrics(t testing.TB) string {
	t.Helper()
	body := process.Get("http://" + c.metrics + "/metrics")
	require.NotNil(t, body, "no metrics")
	return string(body)
}
