// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package chaos mixes, at random, what users do to gangs with what goes wrong under a scheduler, and checks that gangs are later
// whole or not at all, that no GPU is promised twice, and that nothing leaks.
package chaos

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/gpupack/gpupack/test/embedded"
	"github.com/gpupack/gpupack/test/scheduler"
)

var (
	duration = flag.Duration("chaos.duration", 10*time.Second, "how long to go on with new rounds; at least one runs to its end")
	seed     = flag.Uint64("chaos.seed", 0, "the seed of the first round; 0 for another each time")
	logs     = flag.String("chaos.logs", "", "a folder for the schedulers' logs of a round that failed")
)

func TestMain(m *testing.M) {
	// A round is one check. A failure ends it at once: to shrink it, rapid would run for hours.
	for name, value := range map[string]string{"rapid.checks": "1", "rapid.steps": "60", "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if err := scheduler.Build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(embedded.RunMain(m, embedded.Options{ControllerManager: true, Kwok: true}))
}
