// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"
)

// kind is one of the schedulers that are compared.
type kind string

// They are named as the pods name them.
const (
	ours         kind = "gpupack"
	coscheduling kind = "coscheduling"
	stock        kind = "default-scheduler"
	// nobody is no scheduler: we bind the pods ourselves, to see what the API server takes for that alone.
	nobody kind = "nobody"
)

// title is how a report calls the scheduler.
func (k kind) title() string {
	switch k {
	case coscheduling:
		return "coscheduling, MostAllocated"
	case stock:
		return "default profile, no gangs"
	case nobody:
		return "bindings alone, no scheduler"
	}
	return string(k)
}

// gangs says whether the scheduler knows PodGroups.
func (k kind) gangs() bool { return k == ours || k == coscheduling }

// programs are the schedulers' paths.
type programs struct{ ours, stock string }

// limits are the limits of a scheduler's client, requests a second.
type limits struct{ qps, burst int }

// shipped is the configuration that gpupack-scheduler is installed with, and shippedPod what it runs in.
const (
	shipped    = "manifests/base/scheduler-config.yaml"
	shippedPod = "manifests/base/scheduler.yaml"
)

// gates finds the feature gates that gpupack-scheduler is installed with.
var gates = regexp.MustCompile(`(?m)^\s*-\s*["']?(--feature-gates=[^\s"']+)`)

// gatesOf returns the flags with feature gates in a manifest.
func gatesOf(manifest []byte) []string {
	var flags []string
	for _, match := range gates.FindAllSubmatch(manifest, -1) {
		flags = append(flags, string(match[1]))
	}
	return flags
}

// permitSeconds is how long coscheduling holds members that wait for others.
type permitSeconds int

const (
	// permitDefault is coscheduling's default.
	permitDefault permitSeconds = 60
	// permitShipped is what the example in its repository has. Under contention it makes room sooner.
	permitShipped permitSeconds = 10
)

// configOf returns the configuration of a scheduler.
func configOf(k kind, base []byte, kubeconfig string, l limits, permit permitSeconds) ([]byte, error) {
	config := map[string]any{
		"apiVersion": "kubescheduler.config.k8s.io/v1",
		"kind":       "KubeSchedulerConfiguration",
	}
	switch k {
	case ours:
		if err := yaml.Unmarshal(base, &config); err != nil {
			return nil, fmt.Errorf("%s: %w", shipped, err)
		}
	case coscheduling:
		config["profiles"] = []any{map[string]any{
			"schedulerName": string(k),
			"plugins": map[string]any{
				"multiPoint": map[string]any{"enabled": []any{map[string]any{"name": "Coscheduling"}}},
				"queueSort": map[string]any{
					"enabled":  []any{map[string]any{"name": "Coscheduling"}},
					"disabled": []any{map[string]any{"name": "*"}},
				},
			},
			"pluginConfig": []any{
				map[string]any{"name": "Coscheduling", "args": map[string]any{"permitWaitingTimeSeconds": int(permit)}},
				map[string]any{"name": "NodeResourcesFit", "args": map[string]any{
					"scoringStrategy": map[string]any{
						"type": "MostAllocated",
						"resources": []any{
							map[string]any{"name": "cpu", "weight": 1},
							map[string]any{"name": "memory", "weight": 1},
							map[string]any{"name": "nvidia.com/gpu", "weight": 5},
						},
					},
				}},
			},
		}}
	}
	config["leaderElection"] = map[string]any{"leaderElect": false}
	connection := map[string]any{}
	if shipped, ok := config["clientConnection"].(map[string]any); ok {
		maps.Copy(connection, shipped)
	}
	connection["kubeconfig"] = kubeconfig
	if l.qps > 0 {
		connection["qps"], connection["burst"] = l.qps, l.burst
	}
	config["clientConnection"] = connection
	return yaml.Marshal(config)
}

// scheduler is one that runs beside us.
type scheduler struct {
	kind   kind
	log    string
	port   string
	cmd    *exec.Cmd
	exited chan struct{}
	// started is when the process was started.
	started time.Time
}

// startScheduler starts a scheduler whose files are in dir. Main's goroutine must call it. It does not wait.
func startScheduler(k kind, p programs, dir, kubeconfig string, l limits, permit permitSeconds) (*scheduler, error) {
	base, err := os.ReadFile(shipped)
	if err != nil {
		return nil, err
	}
	config, err := configOf(k, base, kubeconfig, l, permit)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, string(k)+".yaml")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return nil, err
	}
	s := &scheduler{kind: k, log: filepath.Join(dir, string(k)+".log"), exited: make(chan struct{})}
	if s.port, err = freePort(); err != nil {
		return nil, err
	}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	program := p.stock
	args := []string{
		"--config=" + path, "--secure-port=" + s.port, "--bind-address=127.0.0.1", "--cert-dir=" + dir,
		"--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--authorization-always-allow-paths=/readyz,/metrics,/debug/*",
		// There is no such configuration in this control plane, and to look for it would go on for ever.
		"--authentication-skip-lookup",
	}
	if k == ours {
		manifest, err := os.ReadFile(shippedPod)
		if err != nil {
			return nil, err
		}
		program, args = p.ours, append(args, gatesOf(manifest)...)
	}
	s.cmd = exec.Command(program, args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; we end it
	endWithParent(s.cmd.SysProcAttr)
	s.started = time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", k, err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	return s, nil
}

// waitReady waits until the scheduler has read the cluster.
func (s *scheduler) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		if err := s.died(); err != nil {
			return err
		}
		if _, err := s.get(ctx, "/readyz"); err == nil {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%s does not become ready: %w", s.kind, err)
		}
	}
}

var insecure = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

func (s *scheduler) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://127.0.0.1:"+s.port+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := insecure.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s of %s: %s", path, s.kind, resp.Status)
	}
	return body, err
}

// died returns an error with the end of the log if the process has ended.
func (s *scheduler) died() error {
	select {
	case <-s.exited:
	default:
		return nil
	}
	data, _ := os.ReadFile(s.log)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return fmt.Errorf("%s has ended: %s\n%s", s.kind, s.cmd.ProcessState, strings.Join(lines[max(0, len(lines)-20):], "\n"))
}

// hold stops the process where it is, and goOn lets it continue.
func (s *scheduler) hold() error { return s.cmd.Process.Signal(syscall.SIGSTOP) }
func (s *scheduler) goOn() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

func (s *scheduler) stop() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}

func freePort() (string, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
