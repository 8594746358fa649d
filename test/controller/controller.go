// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package controller runs gpupack-controller as a process of its own against an embedded control plane, with the rights of
// manifests/base. A proxy between it and the API server lets tests hold its requests, and the process can be killed at any moment.
package controller

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/gpupack/gpupack/test/embedded"
)

// user is who gpupack-controller is on a cluster.
const user = "system:serviceaccount:gpupack-system:gpupack-controller"

// Controller is a running gpupack-controller.
type Controller struct {
	*Process
	metrics string

	// hold, where set, is asked for each request whether it must wait until the process ends.
	hold atomic.Pointer[func(*http.Request) bool]
}

// root is the module's folder, seen from a test's package two levels below it.
const root = "../.."

var build = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(root, ".cache", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path, err := filepath.Abs(filepath.Join(dir, "gpupack-controller"+raceSuffix))
	if err != nil {
		return "", err
	}
	args := append([]string{"build", "-o", path}, raceFlags...)
	cmd := exec.Command("go", append(args, "./cmd/gpupack-controller")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building gpupack-controller: %w\n%s", err, out)
	}
	return path, nil
})

// Build builds the controller, with the race detector where the test has it. TestMain calls it so that the time does not count
// against a test.
func Build() error {
	_, err := build()
	return err
}

// Install applies the controller's rights from manifests/base. The CRDs and the namespace must be there.
func Install(ctx context.Context, cp *embedded.ControlPlane) error {
	return cp.Apply(ctx, filepath.Join(root, "manifests", "base", "controller-rbac.yaml"))
}

// Start runs the controller and returns when it is ready. It is killed after the test, which fails if the race detector found
// anything or the controller panicked. args are further flags.
func Start(t testing.TB, cp *embedded.ControlPlane, args ...string) *Controller {
	t.Helper()
	path, err := build()
	require.NoError(t, err)
	c := &Controller{Process: newProcess()}
	proxy, err := c.proxy(cp.ConfigFor(user, "system:serviceaccounts", "system:serviceaccounts:gpupack-system"))
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: proxy.URL}},
		Contexts:       map[string]*clientcmdapi.Context{"c": {Cluster: "c"}},
		CurrentContext: "c",
	}, kubeconfig))
	probes := FreeAddress(t)
	c.metrics = FreeAddress(t)
	c.launch(t, path, []string{"GORACE=halt_on_error=1"}, append([]string{"--kubeconfig=" + kubeconfig, "--leader-elect=false",
		"--metrics-bind-address=" + c.metrics, "--health-probe-bind-address=" + probes, "-v=2"}, args...)...)
	t.Cleanup(func() {
		c.Kill()
		log := c.Log()
		require.NotContains(t, log, "DATA RACE", "the race detector spoke")
		require.NotContains(t, log, "panic: ", "the controller panicked")
		require.NotContains(t, log, "forbidden", "the controller lacks a right")
	})
	c.AwaitReady(t, probes)
	return c
}

// Hold makes every request for which match returns true wait until the process has ended; the API server never gets it.
func (c *Controller) Hold(match func(*http.Request) bool) { c.hold.Store(&match) }

// Metrics returns what the controller serves under /metrics.
func (c *Controller) Metrics(t testing.TB) string {
	t.Helper()
	body := get(c.metrics + "/metrics")
	require.NotNil(t, body, "no metrics")
	return string(body)
}

func (c *Controller) proxy(config *rest.Config) (*httptest.Server, error) {
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, err
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		return nil, err
	}
	reverse := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1,
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hold := c.hold.Load(); hold != nil && (*hold)(r) {
			<-c.exited
			return
		}
		reverse.ServeHTTP(w, r)
	})), nil
}

// get returns the body of a good answer, or nil.
func get(address string) []byte {
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + address)
	if err != nil {
		return nil
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil
	}
	return body
}
