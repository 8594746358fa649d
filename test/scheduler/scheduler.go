// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scheduler runs gpupack-scheduler as a process of its own against an embedded control plane, as it runs on a
// cluster: with the configuration and the rights of manifests/base. A proxy between it and the API server lets tests hold or
// fail its requests, and the process can be killed at any moment.
package scheduler

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/plugins/gpupack"
	"github.com/gpupack/gpupack/test/embedded"
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
	cmd    *exec.Cmd
	log    *logBuffer
	exited chan struct{}
	port   string

	proxy *httptest.Server
	// inject, where set, is asked for each request what befalls it.
	inject atomic.Pointer[func(*http.Request) *Fault]
	paused atomic.Pointer[pause]
}

// root is the module's folder, seen from a test's package two levels below it.
const root = "../.."

var build = sync.OnceValues(func() (string, error) {
	return buildProgram("gpupack-scheduler"+raceSuffix, "./cmd/gpupack-scheduler", raceFlags...)
})

func buildProgram(name, pkg string, flags ...string) (string, error) {
	dir := filepath.Join(root, ".cache", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	args := append([]string{"build", "-o", path}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return path, nil
}

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
	s.awaitReady(t)
	return s
}

func (s *Scheduler) awaitReady(t testing.TB) {
	t.Helper()
	insecure := &http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	require.Eventually(t, func() bool {
		select {
		case <-s.exited:
			return true
		default:
		}
		resp, err := insecure.Get("https://127.0.0.1:" + s.port + "/readyz")
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusOK
	}, time.Minute, 50*time.Millisecond, "the scheduler did not become ready")
	select {
	case <-s.exited:
		require.Fail(t, "the scheduler ended", s.Log())
	default:
	}
}

// StartExpectingExit runs the scheduler, waits for it to end by itself, and returns its exit code and output.
func StartExpectingExit(t testing.TB, cp *embedded.ControlPlane, o Options) (int, string) {
	t.Helper()
	s, err := launch(t, cp, o)
	require.NoError(t, err)
	select {
	case <-s.exited:
	case <-time.After(time.Minute):
		require.Fail(t, "the scheduler goes on", s.Log())
	}
	return s.cmd.ProcessState.ExitCode(), s.Log()
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
	s := &Scheduler{log: &logBuffer{}, exited: make(chan struct{})}
	var err error
	if s.proxy, err = s.newProxy(as); err != nil {
		return nil, err
	}
	t.Cleanup(s.proxy.Close)
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: s.proxy.URL}},
		Contexts:       map[string]*clientcmdapi.Context{"c": {Cluster: "c"}},
		CurrentContext: "c",
	}, kubeconfig); err != nil {
		return nil, err
	}
	configFile := filepath.Join(dir, "config.yaml")
	if err := config(configFile, kubeconfig); err != nil {
		return nil, err
	}
	if s.port, err = freePort(); err != nil {
		return nil, err
	}
	s.cmd = exec.Command(path, "--config="+configFile, "--secure-port="+s.port, "--bind-address=127.0.0.1",
		"--cert-dir="+dir, "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig,
		"--authorization-always-allow-paths=/healthz,/readyz,/livez,/metrics", "--feature-gates=NominatedNodeNameForExpectation=false", "-v=2")
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = endWithParent()
	s.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1")
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	t.Cleanup(func() {
		s.Kill()
		log := s.Log()
		require.NotContains(t, log, "DATA RACE", "the race detector spoke")
		require.NotContains(t, log, "panic: ", "the scheduler panicked")
		if t.Failed() {
			t.Logf("end of the scheduler's log:\n%s", tail(log, 8<<10))
		}
	})
	return s, nil
}

// Kill ends the process at once, as a crash would.
func (s *Scheduler) Kill() {
	_ = s.cmd.Process.Signal(syscall.SIGKILL)
	<-s.exited
}

// Leads says whether the process has become the leader. It ends when it is no longer.
func (s *Scheduler) Leads() bool { return strings.Contains(s.Log(), "Successfully acquired lease") }

// Exited is closed when the process has ended.
func (s *Scheduler) Exited() <-chan struct{} { return s.exited }

// Stop asks the process to end and waits until it has.
func (s *Scheduler) Stop(t testing.TB) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-s.exited:
	case <-time.After(30 * time.Second):
		require.Fail(t, "the scheduler goes on after SIGTERM")
	}
}

// Metrics returns what the scheduler serves under /metrics.
func (s *Scheduler) Metrics(t testing.TB) string {
	t.Helper()
	insecure := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := insecure.Get("https://127.0.0.1:" + s.port + "/metrics")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

// Log returns what the process has printed.
func (s *Scheduler) Log() string { return s.log.String() }

// writeConfig writes the shipped configuration with the changes that a test needs.
func writeConfig(path, kubeconfig string, o Options) error {
	data, err := os.ReadFile(filepath.Join(root, "manifests", "base", "scheduler-config.yaml"))
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

func freePort() (string, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
