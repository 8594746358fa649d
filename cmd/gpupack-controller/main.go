// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// gpupack-controller keeps the status of PodGroups true and repairs gangs that have lost a member.
package main

import (
	"fmt"
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json

	"github.com/gpupack/gpupack/controller/app"
)

func main() {
	if err := cli.RunNoErrOutput(app.NewCommand()); err != nil {
		fmt.Fprintln(os.Stderr, "gpupack-controller:", err)
		os.Exit(1)
	}
}
