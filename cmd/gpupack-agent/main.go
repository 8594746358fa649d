// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// gpupack-agent reads the GPUs of a node and publishes them as the node's GPUNode.
package main

import (
	"fmt"
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json

	"github.com/gpupack/gpupack/agent/app"
)

func main() {
	if err := cli.RunNoErrOutput(app.NewCommand()); err != nil {
		fmt.Fprintln(os.Stderr, "gpupack-agent:", err)
		os.Exit(1)
	}
}
