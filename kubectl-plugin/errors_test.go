// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func typeName(o any) string { return fmt.Sprintf("%T", o) }

// readers are the commands that read a cluster, with arguments that suit the fleet.
var readers = [][]string{
	{"top"}, {"top", "gpus"}, {"top", "pods", "-A"}, {"placements", "-A"}, {"placements", "-A", "--tree"},
	{"explain", "-n", "research", "llama-worker-0"}, {"explain", "-n", "research", "podgroup/llama"}, {"gangs", "-A"}, {"snapshot"},
}

// runAgainst runs the plugin on a server that is none of the fake client's.
func runAgainst(t *testing.T, server string, args ...string) result {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	kubeconfig := filepath.Join(t.TempDir(), "config")
	if server != "" {
		require.NoError(t, os.WriteFile(kubeconfig, []byte("apiVersion: v1\nkind: Config\ncurrent-context: c\n"+
			"clusters: [{name: c, cluster: {server: '"+server+"'}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u}]\n"), 0o600))
	}
	t.Setenv("KUBECONFIG", kubeconfig)
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	streams, _, out, errOut := genericiooptions.NewTestIOStreams()
	code := Run(t.Context(), streams, args)
	return result{code, out.String(), errOut.String()}
}

func requireOneError(t *testing.T, got result, pattern string) {
	t.Helper()
	assert.Equal(t, exitError, got.code)
	assert.Empty(t, got.out)
	assert.Regexp(t, pattern, got.err)
	assert.Equal(t, 1, strings.Count(got.err, "\n"), got.err)
}

func TestNoClusterIsOneSentence(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := "http://" + closed.Addr().String()
	require.NoError(t, closed.Close())
	unauthorized := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
	}))
	defer unauthorized.Close()
	for _, args := range readers {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			requireOneError(t, runAgainst(t, "", args...), `^error: no cluster is configured: name a kubeconfig by --kubeconfig or KUBECONFIG\n`)
			requireOneError(t, runAgainst(t, server, args...),
				`^error: cannot reach the API server `+server+`: dial tcp .*: connect: connection refused: check --context and whether the cluster runs\n`)
			requireOneError(t, runAgainst(t, unauthorized.URL, args...), `^error: the API server does not accept your credentials \(.*\): see kubectl auth whoami\n`)
		})
	}
}

func TestNoRightsIsOneSentence(t *testing.T) {
	for _, args := range readers {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			requireOneError(t, invoke(t, denied(cluster(t, fleet()), &corev1.NodeList{}, &corev1.PodList{}), args...),
				`^error: list (nodes|pods): .* is forbidden: User "ada" cannot list resource "things": the ClusterRole gpupack-reader has what kubectl gpupack reads\n`)
		})
	}
}

func TestOtherErrorsAreLeftAlone(t *testing.T) {
	assert.Equal(t, "boom", sentence(errors.New("boom")))
}

// Nothing panics where the CRDs are missing, and what the API knows is shown.
func TestWithoutCRDs(t *testing.T) {
	for _, args := range readers {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			got := invoke(t, cluster(t, fleet(), "GPUNode", "PodGroup"), args...)
			assert.Equal(t, exitOK, got.code, got.err)
			assert.NotEmpty(t, got.out+got.err)
		})
	}
}

func TestCustomColumns(t *testing.T) {
	var r client.Reader = cluster(t, fleet())
	got := invoke(t, r, "placements", "-A", "-o", "custom-columns=POD:.name,WHERE:.node,SCORE:.decision.score")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Equal(t, []string{"POD", "WHERE", "SCORE"}, strings.Fields(strings.Split(got.out, "\n")[0]))
	assert.Equal(t, []string{"notebook-ada", "gpu-h100-01", "87"}, strings.Fields(strings.Split(got.out, "\n")[1]))
	assert.Len(t, strings.Split(strings.TrimSpace(got.out), "\n"), 8)
	got = invoke(t, r, "placements", "-A", "-o", "custom-columns=POD:.name", "--no-headers")
	assert.Len(t, strings.Split(strings.TrimSpace(got.out), "\n"), 7)
	got = invoke(t, r, "top", "-o", "go-template={{range .items}}{{.node}} {{end}}")
	assert.Contains(t, got.out, "gpu-h100-01 gpu-new-01 ")
	// An object that is no list has one row.
	got = invoke(t, r, "explain", "-n", "research", "llama-worker-0", "-o", "custom-columns=POD:.name", "--no-headers")
	assert.Equal(t, "llama-worker-0\n", got.out)
	for _, bad := range []string{"custom-columns=POD", "custom-columns", "go-template={{", "jsonpath={"} {
		got = invoke(t, nil, "gangs", "-o", bad)
		assert.Equal(t, exitUsage, got.code, bad)
		assert.Contains(t, got.err, "error: -o "+bad+": ")
	}
}

// Lists are read in pages, which a server bounds.
func TestListsAreChunked(t *testing.T) {
	var paths sync.Map
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The others get one object by its name.
		if one := strings.Contains(r.URL.Path, "/pods/") || strings.Contains(r.URL.Path, "/configmaps/"); !one {
			assert.Equal(t, "500", r.URL.Query().Get("limit"), r.URL)
		}
		paths.Store(r.URL.Path, true)
		http.Error(w, "gone", http.StatusTeapot)
	}))
	defer server.Close()
	for _, args := range readers {
		runAgainst(t, server.URL, args...)
	}
	for _, path := range []string{"/api/v1/nodes", "/apis/gpupack.dev/v1alpha1/gpunodes"} {
		_, read := paths.Load(path)
		assert.True(t, read, path)
	}
}
