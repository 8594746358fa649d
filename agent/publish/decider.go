// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"math/rand/v2"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// Thresholds say which changes of a reading are worth a write to the API server.
type Thresholds struct {
	// MemoryMiB and MemoryPercent (of the GPU's memory) are the changes in use from which memory counts as changed;
	// whichever is less.
	MemoryMiB     int64
	MemoryPercent int64
	// Utilization is the change from which utilisation counts as changed, in percentage points, once it has lasted for
	// UtilizationFor.
	Utilization    int32
	UtilizationFor time.Duration
	// Heartbeat is the longest time without a write. Each is up to a tenth shorter, so that agents do not write in step.
	Heartbeat time.Duration
	// MinInterval is the shortest time between two writes.
	MinInterval time.Duration
}

// DefaultThresholds suit a node of a cluster of thousands.
var DefaultThresholds = Thresholds{
	MemoryMiB:      256,
	MemoryPercent:  2,
	Utilization:    10,
	UtilizationFor: 10 * time.Second,
	Heartbeat:      time.Minute,
	MinInterval:    2 * time.Second,
}

// Decider decides when a node's reading is written. It is not safe for concurrent use.
type Decider struct {
	thresholds Thresholds
	// jitter returns a random number in [0, 1).
	jitter func() float64

	last      []v1alpha1.GPU // as last written
	written   time.Time      // zero before the first write
	heartbeat time.Duration
	// drifting is since when the utilisation of a GPU has been away from what was last written, by UUID.
	drifting map[string]time.Time
}

// NewDecider returns a Decider that has written nothing yet.
func NewDecider(t Thresholds) *Decider {
	return &Decider{thresholds: t, jitter: rand.Float64, drifting: map[string]time.Time{}}
}

// Decide says whether the reading is to be written now, and if not, after what time at the latest it must be asked again;
// earlier if the reading changes.
func (d *Decider) Decide(gpus []v1alpha1.GPU, now time.Time) (write bool, wait time.Duration) {
	if d.written.IsZero() {
		return true, 0
	}
	age := now.Sub(d.written)
	wait = d.heartbeat - age
	changed, settles := d.changed(gpus, now)
	switch {
	case changed:
		wait = 0
	case settles > 0:
		wait = min(wait, settles)
	}
	wait = max(wait, d.thresholds.MinInterval-age)
	return wait <= 0, max(0, wait)
}

// Written records that the reading was written.
func (d *Decider) Written(gpus []v1alpha1.GPU, now time.Time) {
	d.last, d.written = gpus, now
	d.heartbeat = time.Duration(float64(d.thresholds.Heartbeat) * (1 - d.jitter()/10))
	clear(d.drifting)
}

// Reset makes the next reading be written whatever it says.
func (d *Decider) Reset() { d.written = time.Time{} }

// changed says whether the reading differs by more than the thresholds from what was last written. If not, settles is the
// time after which a change of utilisation will have lasted long enough, or 0 where there is none.
func (d *Decider) changed(gpus []v1alpha1.GPU, now time.Time) (changed bool, settles time.Duration) {
	if len(gpus) != len(d.last) {
		return true, 0
	}
	for i := range gpus {
		now, then := &gpus[i], &d.last[i]
		if d.differs(now, then) {
			changed = true
		}
	}
	for i := range gpus {
		uuid := gpus[i].UUID
		if abs(gpus[i].Utilization-d.last[i].Utilization) < d.thresholds.Utilization {
			delete(d.drifting, uuid)
			continue
		}
		since, ok := d.drifting[uuid]
		if !ok {
			since = now
			d.drifting[uuid] = now
		}
		left := d.thresholds.UtilizationFor - now.Sub(since)
		if left <= 0 {
			changed = true
		} else if settles == 0 || left < settles {
			settles = left
		}
	}
	return changed, settles
}

// differs compares everything but utilisation.
func (d *Decider) differs(now, then *v1alpha1.GPU) bool {
	limit := min(d.thresholds.MemoryMiB, now.MemoryTotalMiB*d.thresholds.MemoryPercent/100)
	moved := func(now, then int64) bool { return now != then && abs(now-then) >= limit }
	if now.UUID != then.UUID || now.Index != then.Index || now.Model != then.Model ||
		now.MemoryTotalMiB != then.MemoryTotalMiB || now.MemoryReservedMiB != then.MemoryReservedMiB ||
		now.Healthy != then.Healthy || now.UnhealthyReason != then.UnhealthyReason ||
		now.UnhealthyMessage != then.UnhealthyMessage || len(now.Pods) != len(then.Pods) ||
		// The first process of no pod, or the end of the last.
		(now.MemoryForeignMiB == 0) != (then.MemoryForeignMiB == 0) ||
		moved(now.MemoryUsedMiB, then.MemoryUsedMiB) || moved(now.MemoryForeignMiB, then.MemoryForeignMiB) {
		return true
	}
	used := make(map[types.UID]int64, len(then.Pods))
	for i := range then.Pods {
		used[then.Pods[i].UID] = then.Pods[i].MemoryUsedMiB
	}
	for i := range now.Pods {
		memory, ok := used[now.Pods[i].UID]
		if !ok || moved(now.Pods[i].MemoryUsedMiB, memory) {
			return true
		}
	}
	return false
}

func abs[T int32 | int64](v T) T {
	if v < 0 {
		return -v
	}
	return v
}
