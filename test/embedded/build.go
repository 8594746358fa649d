// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"
	"golang.org/x/sys/unix"
)

// cacheEnv names the environment variable that moves the cache of binaries out of the checkout, e.g. for CI.
const cacheEnv = "GPUPACK_CACHE"

const mainModule = "github.com/gpupack/gpupack"

// Binaries are the paths of the programs that make up a control plane.
type Binaries struct {
	Etcd              string
	APIServer         string
	ControllerManager string
	Kwok              string
}

// tool is a program that is built from a Go module. Its version is what the go.mod in dir requires of module, so there
// is one place to change it.
type tool struct {
	name   string
	module string
	pkg    string
	dir    string // of the go.mod, relative to the root of the main module
}

var (
	etcdTool = tool{Etcd, "go.etcd.io/etcd/server/v3", ".", "test/embedded/tools/etcd"}
	kwokTool = tool{Kwok, "sigs.k8s.io/kwok", "sigs.k8s.io/kwok/cmd/kwok", "test/embedded/tools/kwok"}

	jobSetTool           = tool{"jobset", "sigs.k8s.io/jobset", "sigs.k8s.io/jobset", "test/embedded/tools/jobset"}
	trainingOperatorTool = tool{"training-operator", "github.com/kubeflow/training-operator",
		"github.com/kubeflow/training-operator/cmd/training-operator.v1", "test/embedded/tools/training-operator"}

	apiServerTool         = kubernetesTool(APIServer)
	controllerManagerTool = kubernetesTool(ControllerManager)
	kubectlTool           = kubernetesTool("kubectl")
)

func kubernetesTool(name string) tool {
	return tool{name, "k8s.io/kubernetes", "k8s.io/kubernetes/cmd/" + name, "."}
}

// Build returns the binaries of the control plane, and builds those that are not in the cache yet: some minutes the first
// time, nothing afterwards. It writes a line to progress for each tool it builds. Any number of processes may call it at
// once; one builds and the others wait. The working directory must be inside the gpupack module.
func Build(ctx context.Context, progress io.Writer) (Binaries, error) {
	paths, err := build(ctx, progress, etcdTool, apiServerTool, controllerManagerTool, kwokTool)
	if err != nil {
		return Binaries{}, err
	}
	return Binaries{Etcd: paths[0], APIServer: paths[1], ControllerManager: paths[2], Kwok: paths[3]}, nil
}

// BuildKubectl is Build for kubectl. It returns the path of the binary, whose name is kubectl.
func BuildKubectl(ctx context.Context, progress io.Writer) (string, error) {
	paths, err := build(ctx, progress, kubectlTool)
	if err != nil {
		return "", err
	}
	return paths[0], nil
}

// Operators are controllers of other projects whose gangs gpupack places: the paths of their programs, and the folders of their
// modules, which have their CRDs.
type Operators struct {
	JobSet, JobSetDir                     string
	TrainingOperator, TrainingOperatorDir string
}

// BuildOperators is Build for operators.
func BuildOperators(ctx context.Context, progress io.Writer) (Operators, error) {
	paths, err := build(ctx, progress, jobSetTool, trainingOperatorTool)
	if err != nil {
		return Operators{}, err
	}
	o := Operators{JobSet: paths[0], TrainingOperator: paths[1]}
	if o.JobSetDir, err = moduleDir(ctx, jobSetTool); err != nil {
		return Operators{}, err
	}
	o.TrainingOperatorDir, err = moduleDir(ctx, trainingOperatorTool)
	return o, err
}

// moduleDir returns the folder of a tool's module, which it downloads if need be.
func moduleDir(ctx context.Context, t tool) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", t.module)
	cmd.Dir = filepath.Join(root, t.dir)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := cmd.Output()
	var module struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &module); jsonErr != nil || module.Dir == "" {
		return "", fmt.Errorf("download %s: %w", t.module, errors.Join(err, jsonErr, errors.New(module.Error)))
	}
	return module.Dir, nil
}

func build(ctx context.Context, progress io.Writer, tools ...tool) ([]string, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	cache := os.Getenv(cacheEnv)
	if cache == "" {
		cache = filepath.Join(root, ".cache")
	}
	cache, err = filepath.Abs(filepath.Join(cache, "embedded"))
	if err != nil {
		return nil, err
	}

	versions := make([]string, len(tools))
	paths := make([]string, len(tools))
	for i, t := range tools {
		if versions[i], err = requiredVersion(filepath.Join(root, t.dir, "go.mod"), t.module); err != nil {
			return nil, err
		}
		folder := fmt.Sprintf("%s-%s-%s-%s", t.name, versions[i], runtime.GOOS, runtime.GOARCH)
		paths[i] = filepath.Join(cache, folder, t.name)
	}
	if allExist(paths) {
		return paths, nil
	}

	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("create the cache of binaries: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(cache, "lock"), progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for i, t := range tools {
		if exists(paths[i]) {
			continue
		}
		start := time.Now()
		if err := goBuild(ctx, t, versions[i], filepath.Join(root, t.dir), paths[i]); err != nil {
			return nil, err
		}
		fmt.Fprintf(progress, "built %s %s in %.0fs\n", t.name, versions[i], time.Since(start).Seconds())
	}
	return paths, nil
}

// goBuild builds a static binary. It appears at path only when it is complete. Whatever ends this process, the processes of
// the build and their files end with it.
func goBuild(ctx context.Context, t tool, version, dir, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create the cache folder of %s: %w", t.name, err)
	}
	// In the cache, since a file cannot be renamed to another file system.
	tmp := path + "-" + randomSuffix()
	reaper, err := startReaper(tmp)
	if err != nil {
		return fmt.Errorf("build %s: %w", t.name, err)
	}
	defer reaper.reap()

	built := filepath.Join(tmp, t.name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", ldflags(t, version), "-o", built, t.pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"CGO_ENABLED=0",
		"GOOS="+runtime.GOOS,
		"GOARCH="+runtime.GOARCH,
		"GOWORK=off",
		// Replaces what the caller has set: -race, -tags or -mod=mod would change or break these builds.
		"GOFLAGS=-mod=readonly",
		"GOTMPDIR="+tmp,
		"TMPDIR="+tmp,
	)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// The compilers do not end with the go command, but they are in its process group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("build %s: %w", t.name, err)
	}
	if err := writePIDFile(tmp, t.name, cmd.Process.Pid); err != nil {
		_ = killGroup(cmd.Process.Pid)
		_ = cmd.Wait()
		return fmt.Errorf("build %s: %w", t.name, err)
	}
	err = cmd.Wait()
	removePIDFile(tmp, t.name)
	if ctx.Err() != nil {
		return fmt.Errorf("build %s: %w", t.name, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("build %s %s: %w\n%s", t.name, version, err, lastLines(out.Bytes(), 20))
	}
	return os.Rename(built, path)
}

// ldflags strips the binary, and stamps Kubernetes binaries with their version, without which `kubectl version` and
// version-dependent defaults do not work.
func ldflags(t tool, version string) string {
	flags := []string{"-s", "-w"}
	if t.module != "k8s.io/kubernetes" {
		return strings.Join(flags, " ")
	}
	major, minor, _ := strings.Cut(strings.TrimPrefix(semver.MajorMinor(version), "v"), ".")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, kv := range []string{"gitVersion=" + version, "gitMajor=" + major, "gitMinor=" + minor, "gitTreeState=clean"} {
			flags = append(flags, "-X", pkg+"."+kv)
		}
	}
	return strings.Join(flags, " ")
}

// lock takes the lock file at path, for which it waits until ctx ends.
func lock(ctx context.Context, path string, progress io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the cache of binaries: %w", err)
	}
	poll := time.NewTicker(200 * time.Millisecond)
	defer poll.Stop()
	for waiting := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !waiting {
			waiting = true
			fmt.Fprintln(progress, "waiting for another process that builds the control plane")
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another process that builds the control plane: %w", context.Cause(ctx))
		case <-poll.C:
		}
	}
}

// moduleRoot returns the folder of gpupack's go.mod, upwards from the working directory.
func moduleRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && modfile.ModulePath(data) == mainModule {
			return dir, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod of %s in %s or above it: run this inside a checkout of gpupack", mainModule, wd)
		}
	}
}

// requiredVersion returns the version of module that the go.mod file requires.
func requiredVersion(gomod, module string) (string, error) {
	data, err := os.ReadFile(gomod)
	if err != nil {
		return "", fmt.Errorf("read the version of %s: %w", module, err)
	}
	f, err := modfile.Parse(gomod, data, nil)
	if err != nil {
		return "", fmt.Errorf("read the version of %s: %w", module, err)
	}
	for _, r := range f.Require {
		if r.Mod.Path == module {
			return r.Mod.Version, nil
		}
	}
	return "", fmt.Errorf("%s does not require %s", gomod, module)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func allExist(paths []string) bool {
	for _, p := range paths {
		if !exists(p) {
			return false
		}
	}
	return true
}
