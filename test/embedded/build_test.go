// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// fakeGo puts a go command into PATH that appends its arguments to a file and then runs the script, in which "$out" is the
// file that the caller wants built. It also sets an empty cache. It returns the file of the arguments.
func fakeGo(t *testing.T, script string) (calls string) {
	dir := t.TempDir()
	calls = filepath.Join(dir, "calls")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), []byte(`#!/bin/sh
echo "CGO_ENABLED=$CGO_ENABLED GOFLAGS=$GOFLAGS $*" >> "`+calls+`"
while [ "$1" != -o ]; do shift; done
out=$2
`+script), 0o755))
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv(cacheEnv, t.TempDir())
	return calls
}

func readLines(t *testing.T, path string) []string {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func TestBuildOnce(t *testing.T) {
	t.Setenv("GOFLAGS", "-mod=mod -race")
	calls := fakeGo(t, `echo built > "$out"`)

	const callers = 8
	var progress [callers]bytes.Buffer
	var results [callers]Binaries
	var group errgroup.Group
	for i := range callers {
		group.Go(func() (err error) {
			results[i], err = Build(t.Context(), &progress[i])
			return err
		})
	}
	require.NoError(t, group.Wait())

	require.Len(t, readLines(t, calls), 4, "each tool is built once")
	for _, call := range readLines(t, calls) {
		require.Contains(t, call, "CGO_ENABLED=0 GOFLAGS=-mod=readonly build -trimpath")
	}
	built := 0
	for i := range callers {
		require.Equal(t, results[0], results[i])
		built += strings.Count(progress[i].String(), "built ")
	}
	require.Equal(t, 4, built, "a line for each tool")

	// With everything in the cache there is no need for a go command.
	t.Setenv("PATH", "")
	var out bytes.Buffer
	again, err := Build(t.Context(), &out)
	require.NoError(t, err)
	require.Equal(t, results[0], again)
	require.Empty(t, out.String())
}

func TestBuildStampsVersion(t *testing.T) {
	calls := fakeGo(t, `echo built > "$out"`)
	path, err := BuildKubectl(t.Context(), io.Discard)
	require.NoError(t, err)
	require.Equal(t, "kubectl", filepath.Base(path))

	root, err := moduleRoot()
	require.NoError(t, err)
	version, err := requiredVersion(filepath.Join(root, "go.mod"), "k8s.io/kubernetes")
	require.NoError(t, err)
	require.Contains(t, path, "kubectl-"+version+"-")
	require.Contains(t, readLines(t, calls)[0], "-X k8s.io/component-base/version.gitVersion="+version+" ")
}

func TestBuildFails(t *testing.T) {
	calls := fakeGo(t, `echo half > "$out"; echo "main.go:1:1: undefined: x" >&2; exit 1`)
	_, err := Build(t.Context(), io.Discard)
	require.ErrorContains(t, err, "build etcd v")
	require.ErrorContains(t, err, "main.go:1:1: undefined: x")

	_, err = Build(t.Context(), io.Discard)
	require.Error(t, err, "what a failed build left is not taken for a binary")
	require.Len(t, readLines(t, calls), 2)
}

func TestBuildIsCancelled(t *testing.T) {
	fakeGo(t, `echo built > "$out"`)
	ctx, cancel := context.WithCancel(t.Context())
	unlock, err := lock(ctx, filepath.Join(t.TempDir(), "lock"), io.Discard)
	require.NoError(t, err)
	unlock()

	// Somebody else holds the lock.
	cache := filepath.Join(os.Getenv(cacheEnv), "embedded")
	require.NoError(t, os.Mkdir(cache, 0o755))
	unlock, err = lock(ctx, filepath.Join(cache, "lock"), io.Discard)
	require.NoError(t, err)
	defer unlock()
	cancel()
	_, err = Build(ctx, io.Discard)
	require.ErrorIs(t, err, context.Canceled)
}

func TestModuleRoot(t *testing.T) {
	t.Chdir(t.TempDir())
	_, err := Build(t.Context(), io.Discard)
	require.ErrorContains(t, err, "run this inside a checkout of gpupack")
}

func TestRequiredVersion(t *testing.T) {
	gomod := filepath.Join(t.TempDir(), "go.mod")
	require.NoError(t, os.WriteFile(gomod, []byte("module m\n\nrequire (\n\texample.com/a v1.2.3 // indirect\n)\n"), 0o644))
	version, err := requiredVersion(gomod, "example.com/a")
	require.NoError(t, err)
	require.Equal(t, "v1.2.3", version)

	_, err = requiredVersion(gomod, "example.com/b")
	require.ErrorContains(t, err, "does not require example.com/b")
}
