// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Root is the module's folder, seen from a test's package two levels below it.
const Root = "../.."

// BuildOurs is Build with the race detector where the test has it.
func BuildOurs(name string) (string, error) {
	return build(name+raceSuffix, "./cmd/"+name, raceFlags...)
}

// Build builds a program of the module and returns its path.
func Build(name, pkg string) (string, error) { return build(name, pkg) }

func build(name, pkg string, flags ...string) (string, error) {
	dir := filepath.Join(Root, ".cache", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	args := append([]string{"build", "-o", path}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = Root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return path, nil
}
