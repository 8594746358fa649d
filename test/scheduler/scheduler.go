// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scheduler runs gpupack-scheduler as a process of its own against an embedded control plane, as it runs on a
// cluster: with the configuration and the rights of manifests/base. A proxy between it and the API server lets tests hold or
// fail its requests, and the process can be killed at any moment.
package scheduler

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/plugins/gpupack"
	"github.com/gpupack/gpupack/test/embedded"
	"github.com/gpupack/gpupack/test/process"
)

// user is who gpupack-scheduler is on a cluster.
const user = "system:serviceaccount:gpupack-system:gpupack-scheduler"

// Options change how the scheduler runs.
type Options struct {
	// Args override GPUPackArgs of the shipped configuration.
	Args map[string]any
	// LeaderElection is on in the shipped configuration, and off here unless this is set. The lease then lasts three seconds.
	LeaderElection bool
}

// Scheduler is a running gpupack-scheduler.
type Scheduler struct {
	*process.Process
	*process.Proxy
	url string
}

var build = sync.OnceValues(func() (string, error) { return process.BuildOurs("gpupack-scheduler") })

// Build builds the scheduler, with the race detector where the test has it. TestMain calls it so that the time does not count
// against a test.
func Build() error {
	_, err := build()
	return err
}

// Start runs the scheduler and returns when it is ready. It is killed after the test, which fails if the race detector found
// anything or the scheduler panicked.
func Start(t testing.TB, cp *embedded.ControlPlane, o Options) *Scheduler {
	t.Helper()
	s, err := launch(t, cp, o)
	require.NoError(t, err)
	s.AwaitReady(t, s.url)
	return s
}

// StartExpectingExit runs the scheduler, waits for it to end by itself, and returns its exit code and output.
func StartExpectingExit(t testing.TB, cp *embedded.ControlPlane, o Options) (int, string) {
	t.Helper()
	s, err := launch(t, cp, o)
	require.NoError(t, err)
	select {
	case <-s.Exited():
	case <-time.After(time.Minute):
		require.Fail(t, "the scheduler goes on", s.Log())
	}
	return s.ExitCode(), s.Log()
}

func launch(t testing.TB, cp *embedded.ControlPlane, o Options) (*Scheduler, error) {
	path, err := build()
	if err != nil {
		return nil, err
	}
	as := cp.ConfigFor(user, "system:serviceaccounts", "system:serviceaccounts:gpupack-system")
	return launchProgram(t, path, as, func(path, kubeconfig string) error { return writeConfig(path, kubeconfig, o) })
}

// launchProgram runs a kube-scheduler behind a proxy. config writes its configuration to a path.
func launchProgram(t testing.TB, path string, as *rest.Config, config func(path, kubeconfig string) error) (*Scheduler, error) {
	s := &Scheduler{Process: process.New()}
	var err error
	if s.Proxy, err = s.NewProxy(t, as); err != nil {
		return nil, err
	}
	dir := t.TempDir()
	kubeconfig, err := s.Kubeconfig(dir)
	if err != nil {
		return nil, err
	}
	configFile := filepath.Join(dir, "config.yaml")
	if err := config(configFile, kubeconfig); err != nil {
		return nil, err
	}
	address := process.FreeAddress(t)
	s.url = "https://" + address
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return s, s.StartOurs(t, path, "--config="+configFile, "--secure-port="+port, "--bind-address="+host,
		"--cert-dir="+dir, "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig,
		"--authorization-always-allow-paths=/healthz,/readyz,/livez,/metrics", "--feature-gates=NominatedNodeNameForExpectation=false", "-v=2")
}

// Leads says whether the process has become the leader. It ends when it is no longer.
func (s *Scheduler) Leads() bool { return strings.Contains(s.Log(), "Successfully acquired lease") }

// Metrics returns what the scheduler serves under /metrics.
func (s *Scheduler) Metrics(t testing.TB) string {
	t.Helper()
	body := process.Get(s.url + "/metrics")
	require.NotNil(t, body, "no metrics")
	return string(body)
}

// writeConfig writes the shipped configuration with the changes that a test needs.
func writeConfig(path, kubeconfig string, o Options) error {
	data, err := os.ReadFile(filepath.Join(process.Root, "manifests", "base", "scheduler-config.yaml"))
	if err != nil {
		return err
	}
	var config map[string]any
	if err := yaml.Unmarshal(data, &config); err != nil {
		return err
	}
	election := config["leaderElection"].(map[string]any)
	election["leaderElect"] = o.LeaderElection
	election["leaseDuration"], election["renewDeadline"], election["retryPeriod"] = "3s", "2s", "500ms"
	config["clientConnection"] = map[string]any{"kubeconfig": kubeconfig, "qps": 1000, "burst": 1000}
	config["podInitialBackoffSeconds"], config["podMaxBackoffSeconds"] = 1, 2
	for _, entry := range config["profiles"].([]any)[0].(map[string]any)["pluginConfig"].([]any) {
		if plugin := entry.(map[string]any); plugin["name"] == gpupack.Name {
			maps.Copy(plugin["args"].(map[string]any), o.Args)
		}
	}
	if data, err = yaml.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
