// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"
)

// patience is how long a step may be silent.
const patience = 20 * time.Second

// step says what begins, does it, and says how long that took and what came of it.
func step(what string, do func() (outcome string, err error)) error {
	start := time.Now()
	fmt.Printf("==> %s\n", what)
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(patience)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				fmt.Printf("    still at it after %.0f s\n", time.Since(start).Seconds())
			}
		}
	}()
	outcome, err := do()
	close(done)
	<-stopped
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if outcome != "" {
		outcome = ": " + outcome
	}
	fmt.Printf("    %.1f s%s\n", time.Since(start).Seconds(), outcome)
	return nil
}
