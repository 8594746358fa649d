// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// warningInterval is the shortest time between two warnings of a kind. What fails for one node often fails for all.
const warningInterval = time.Minute

// warnings logs errors, of each kind at most one in warningInterval.
type warnings struct {
	clock clock.PassiveClock

	mu   sync.Mutex
	kind map[string]*warning
}

type warning struct {
	logged time.Time
	more   int // since then
}

func newWarnings(c clock.PassiveClock) *warnings {
	return &warnings{clock: c, kind: map[string]*warning{}}
}

func (w *warnings) error(ctx context.Context, kind string, err error, msg string, keysAndValues ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.clock.Now()
	last := w.kind[kind]
	if last != nil && now.Sub(last.logged) < warningInterval {
		last.more++
		return
	}
	if last != nil && last.more > 0 {
		keysAndValues = append(keysAndValues, "unloggedSinceLast", last.more)
	}
	w.kind[kind] = &warning{logged: now}
	klog.FromContext(ctx).Error(err, msg, keysAndValues...)
}
