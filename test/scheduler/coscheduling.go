// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/test/embedded"
	"github.com/gpupack/gpupack/test/process"
)

// Coscheduling is the schedulerName of pods that StartCoscheduling's scheduler places.
const Coscheduling = "coscheduling"

var buildCoscheduling = sync.OnceValues(func() (string, error) { return process.Build("coscheduling", "./test/coscheduling") })

// BuildCoscheduling builds kube-scheduler with coscheduling.
func BuildCoscheduling() error {
	_, err := buildCoscheduling()
	return err
}

// StartCoscheduling runs kube-scheduler with the coscheduling plugin of scheduler-plugins and node scores by MostAllocated, and
// returns when it is ready. permit is how long it lets members wait for the others, in whole seconds.
func StartCoscheduling(t testing.TB, cp *embedded.ControlPlane, permit time.Duration) *Scheduler {
	t.Helper()
	path, err := buildCoscheduling()
	require.NoError(t, err)
	s, err := launchProgram(t, path, cp.Config(), func(path, kubeconfig string) error {
		return writeCoschedulingConfig(path, kubeconfig, permit)
	})
	require.NoError(t, err)
	s.AwaitReady(t, s.url)
	return s
}

func writeCoschedulingConfig(path, kubeconfig string, permit time.Duration) error {
	args := func(kind string, fields map[string]any) map[string]any {
		fields["apiVersion"], fields["kind"] = "kubescheduler.config.k8s.io/v1", kind
		return fields
	}
	config := args("KubeSchedulerConfiguration", map[string]any{
		"leaderElection":           map[string]any{"leaderElect": false},
		"clientConnection":         map[string]any{"kubeconfig": kubeconfig, "qps": 1000, "burst": 1000},
		"podInitialBackoffSeconds": 1, "podMaxBackoffSeconds": 2,
		"percentageOfNodesToScore": 100,
		"profiles": []any{map[string]any{
			"schedulerName": Coscheduling,
			"plugins": map[string]any{"multiPoint": map[string]any{
				"enabled":  []any{map[string]any{"name": "Coscheduling"}},
				"disabled": []any{map[string]any{"name": "PrioritySort"}},
			}},
			"pluginConfig": []any{
				map[string]any{"name": "Coscheduling", "args": args("CoschedulingArgs", map[string]any{
					"permitWaitingTimeSeconds": int(permit / time.Second),
				})},
				map[string]any{"name": "NodeResourcesFit", "args": args("NodeResourcesFitArgs", map[string]any{
					"scoringStrategy": map[string]any{
						"type":      "MostAllocated",
						"resources": []any{map[string]any{"name": "nvidia.com/gpu", "weight": 1}},
					},
				})},
			},
		}},
	})
	data, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
