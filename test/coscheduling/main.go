// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Command coscheduling is kube-scheduler with the coscheduling plugin of scheduler-plugins, to which tests and benchmarks compare
// gpupack. Without a profile that names the plugin, it is kube-scheduler and nothing else.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	_ "sigs.k8s.io/scheduler-plugins/apis/config/scheme"
	"sigs.k8s.io/scheduler-plugins/pkg/coscheduling"
)

func main() {
	os.Exit(cli.Run(app.NewSchedulerCommand(app.WithPlugin(coscheduling.Name, coscheduling.New))))
}
