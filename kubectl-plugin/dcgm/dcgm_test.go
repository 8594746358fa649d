// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package dcgm

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// prometheus answers instant queries with these samples, by metric.
func prometheus(t *testing.T, samples map[string][]map[string]any) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/query" {
			http.NotFound(w, r)
			return
		}
		result := []map[string]any{}
		for metric, s := range samples {
			if strings.HasSuffix(r.FormValue("query"), "("+metric+")") {
				result = s
			}
		}
		assert.NoError(t, json.NewEncoder(w).Encode(map[string]any{
			"status": "success", "data": map[string]any{"resultType": "vector", "result": result},
		}))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func sample(value string, labels ...string) map[string]any {
	metric := map[string]string{}
	for i := 0; i < len(labels); i += 2 {
		metric[labels[i]] = labels[i+1]
	}
	return map[string]any{"metric": metric, "value": []any{1764061200.0, value}}
}

func TestRead(t *testing.T) {
	first := []string{"Hostname", "gpu-01", "gpu", "0", "UUID", "GPU-a", "modelName", "NVIDIA A100-SXM4-80GB",
		"namespace", "monitoring", "pod", "dcgm-exporter-x"}
	taken := append([]string{"exported_namespace", "serving", "exported_pod", "chat"}, first...)
	second := []string{"Hostname", "gpu-01", "gpu", "1", "UUID", "GPU-b", "modelName", "NVIDIA A100-SXM4-80GB"}
	address := prometheus(t, map[string][]map[string]any{
		metricUsed:        {sample("0", second...), sample("2048", taken...), sample("NaN", "Hostname", "gpu-02", "gpu", "0", "UUID", "GPU-c"), sample("1", "gpu", "7")},
		metricFree:        {sample("78500", taken...), sample("80548", second...)},
		metricReserved:    {sample("600", taken...)},
		metricUtilization: {sample("37", taken...), sample("12", "Hostname", "gpu-09", "gpu", "0", "UUID", "switch")},
	})
	source, err := New(address)
	require.NoError(t, err)
	got, err := source.Read(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []GPU{
		{Node: "gpu-01", UUID: "GPU-a", Index: 0, Model: "NVIDIA A100-SXM4-80GB", UsedMiB: 2048, FreeMiB: 78500, ReservedMiB: 600,
			Utilization: 37, Pods: []Pod{{"serving", "chat"}, {"monitoring", "dcgm-exporter-x"}}},
		{Node: "gpu-01", UUID: "GPU-b", Index: 1, Model: "NVIDIA A100-SXM4-80GB", FreeMiB: 80548},
	}, got)
}

func TestWhatIsWrongIsSaidInOneSentence(t *testing.T) {
	for address, want := range map[string]string{
		"prometheus:9090": `"prometheus:9090" is not the URL of a Prometheus: write one such as http://localhost:9090`,
		"":                `"" is not the URL of a Prometheus: write one such as http://localhost:9090`,
		"ftp://x":         `"ftp://x" is not the URL of a Prometheus: write one such as http://localhost:9090`,
	} {
		_, err := New(address)
		assert.EqualError(t, err, want)
	}

	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/broken/"):
			http.Error(w, "<html>a long page</html>", http.StatusBadGateway)
		case strings.HasPrefix(r.URL.Path, "/text/"):
			_, _ = w.Write([]byte("hello"))
		case strings.HasPrefix(r.URL.Path, "/scalar/"):
			_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}`))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(page.Close)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, tt := range map[string]struct{ address, want string }{
		"nobody there": {gone.URL, "connection refused"},
		"not found":    {page.URL, "refuses the query (client error: 404): check the URL"},
		"bad gateway":  {page.URL + "/broken", "refuses the query (server error: 502): check the URL"},
		"no JSON":      {page.URL + "/text", "the Prometheus at " + page.URL + "/text "},
		"no vector":    {page.URL + "/scalar", "answers with a scalar instead of a vector: check the URL"},
		"nothing":      {prometheus(t, nil), "has no metric DCGM_FI_DEV_FB_USED: is dcgm-exporter installed, and scraped by this Prometheus?"},
	} {
		t.Run(name, func(t *testing.T) {
			source, err := New(tt.address)
			require.NoError(t, err)
			_, err = source.Read(t.Context())
			require.ErrorContains(t, err, tt.want)
			assert.True(t, strings.HasPrefix(err.Error(), "the Prometheus at "), err)
			assert.NotContains(t, err.Error(), "\n")
			assert.NotContains(t, err.Error(), "html")
		})
	}
}
