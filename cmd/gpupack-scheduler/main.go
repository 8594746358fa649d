// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Command gpupack-scheduler is kube-scheduler with the GPUPack plugin.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"

	_ "github.com/gpupack/gpupack/plugins/config/scheme"
	"github.com/gpupack/gpupack/plugins/gpupack"
)

func main() {
	command := app.NewSchedulerCommand(app.WithPlugin(gpupack.Name, gpupack.New))
	command.Use = "gpupack-scheduler"
	command.Long = `gpupack-scheduler is kube-scheduler with the GPUPack plugin: it places pods with
schedulerName: gpupack on GPUs by live telemetry, and whole gangs at once. All flags and
the configuration file are kube-scheduler's; the plugin's own arguments are GPUPackArgs.`
	os.Exit(cli.Run(command))
}
