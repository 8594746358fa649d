// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	tea "charm.land/bubbletea/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/kubectl-plugin/dcgm"
)

// prometheus knows of two GPUs of gpu-01, the first of which train has.
func prometheus(t *testing.T) string {
	t.Helper()
	values := map[string][2]string{
		"DCGM_FI_DEV_FB_USED": {"9216", "512"}, "DCGM_FI_DEV_FB_FREE": {"6144", "14848"}, "DCGM_FI_DEV_GPU_UTIL": {"71", "0"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		result := []any{}
		for metric, v := range values {
			if !strings.HasSuffix(r.FormValue("query"), "("+metric+")") {
				continue
			}
			for i, labels := range []map[string]string{
				{"Hostname": "gpu-01", "gpu": "0", "UUID": "GPU-a", "modelName": "Tesla T4", "namespace": "default", "pod": "train"},
				{"Hostname": "gpu-01", "gpu": "1", "UUID": "GPU-b", "modelName": "Tesla T4", "namespace": "monitoring", "pod": "dcgm-exporter-1"},
			} {
				result = append(result, map[string]any{"metric": labels, "value": []any{1764061200, v[i]}})
			}
		}
		assert.NoError(t, json.NewEncoder(w).Encode(map[string]any{
			"status": "success", "data": map[string]any{"resultType": "vector", "result": result},
		}))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func withoutAgent() []client.Object {
	return []client.Object{node("gpu-01", 2), pod("default", "train", asks(v1alpha1.ResourceGPU, "1"), func(p *corev1.Pod) {
		p.Spec.SchedulerName, p.Spec.NodeName, p.Status.Phase = "default-scheduler", "gpu-01", corev1.PodRunning
	})}
}

func TestTopFromPrometheus(t *testing.T) {
	for name, missing := range map[string][]string{"no CRD": {"GPUNode"}, "no agent": nil} {
		t.Run(name, func(t *testing.T) {
			got := invoke(t, cluster(t, withoutAgent(), missing...), "top", "gpus", "-o", "json", "--prometheus", prometheus(t))
			require.Equal(t, exitOK, got.code, got.err)
			var answer TopGPUs
			require.NoError(t, json.Unmarshal([]byte(got.out), &answer))
			require.Len(t, answer.Items, 2)
			g := answer.Items[0]
			assert.Equal(t, []any{"gpu-01", "GPU-a", "Tesla-T4", 71, int64(15360), int64(9216), int64(0)},
				[]any{g.Node, g.UUID, g.Model, g.Utilization, g.TotalMiB, g.UsedMiB, g.ForeignMiB})
			require.Len(t, g.Pods, 1)
			assert.Equal(t, []any{"train", int64(9216)}, []any{g.Pods[0].Name, g.Pods[0].UsedMiB})
			assert.Empty(t, answer.Items[1].Pods, "the exporter has no GPU")
		})
	}
}

func TestWithoutPrometheusWhatStillWorksIsShown(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(gone.Close)
	got := invoke(t, cluster(t, withoutAgent(), "GPUNode"), "top", "--no-headers", "--prometheus", gone.URL)
	assert.Equal(t, exitOK, got.code)
	assert.Contains(t, got.out, "gpu-01")
	assert.Contains(t, got.err, "the Prometheus at "+gone.URL+" refuses the query (client error: 404): check the URL.\n")
	got = invoke(t, nil, "top", "--prometheus", "prometheus")
	assert.Equal(t, exitUsage, got.code)
	assert.Contains(t, got.err, `error: --prometheus="prometheus" is not the URL of a Prometheus: write one such as http://localhost:9090`)
}

func TestLiveViewFromPrometheus(t *testing.T) {
	m := liveOf(t, cluster(t, withoutAgent(), "GPUNode"), 100, 20)
	assert.Contains(t, m.render(), "no telemetry")
	source, err := dcgm.New(prometheus(t))
	require.NoError(t, err)
	m.feed.prometheus = source
	m.Update(m.feed.measure())
	press(t, m, "e")
	m.Update(tea.WindowSizeMsg{Width: 100, Height: 20})
	assert.Contains(t, m.render(), "71%")
	assert.Contains(t, m.render(), "default/train")
	assert.NotContains(t, m.render(), "no telemetry")

	gone := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(gone.Close)
	m.feed.prometheus, err = dcgm.New(gone.URL)
	require.NoError(t, err)
	m.Update(m.feed.measure())
	assert.Contains(t, m.render(), "refuses the query")
	assert.Contains(t, m.render(), "default/train", "the last answer stays")
}
