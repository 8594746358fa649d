// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
)

// savedDistribution is the form in which a Distribution is kept across restarts.
type savedDistribution struct {
	// Classes by falling weight.
	Classes []savedClass `json:"classes"`
}

type savedClass struct {
	GPUs      int      `json:"gpus,omitempty"`
	Milli     int64    `json:"milli,omitempty"`
	MiB       int64    `json:"mib,omitempty"`
	CPUMilli  int64    `json:"cpuMilli,omitempty"`
	MemoryMiB int64    `json:"memoryMiB,omitempty"`
	Models    []string `json:"models,omitempty"`
	// Weight in observations: how many pods of the class came, the older the less counted.
	Weight float64 `json:"weight"`
}

const (
	// mostSaved bounds what is written, to some 100 KiB.
	mostSaved = 1000
	// mostWeight is more than any class that was learned can have. A larger weight would outweigh all that comes.
	mostWeight = 1e6
)

// MarshalJSON writes what was learned, the 1000 heaviest classes at most.
func (d *Distribution) MarshalJSON() ([]byte, error) {
	if d.fixed {
		return nil, errors.New("a fixed distribution has learned nothing that could be saved")
	}
	d.mu.Lock()
	saved := savedDistribution{Classes: make([]savedClass, 0, len(d.weights))}
	for _, c := range d.weights {
		r := &c.Request
		saved.Classes = append(saved.Classes, savedClass{
			GPUs: r.GPUs, Milli: r.Milli, MiB: r.MiB, CPUMilli: r.CPUMilli, MemoryMiB: r.MemoryMiB, Models: r.Models,
			Weight: math.Round(c.Weight/d.scale*1000) / 1000,
		})
	}
	d.mu.Unlock()
	saved.Classes = slices.DeleteFunc(saved.Classes, func(c savedClass) bool { return c.Weight == 0 })
	slices.SortFunc(saved.Classes, func(a, b savedClass) int {
		ra, rb := a.request(), b.request()
		return cmp.Or(cmp.Compare(b.Weight, a.Weight), compareSize(&ra, &rb), slices.Compare(a.Models, b.Models))
	})
	saved.Classes = saved.Classes[:min(mostSaved, len(saved.Classes))]
	return json.Marshal(saved)
}

// UnmarshalJSON replaces what was learned, and the prior with it, by what MarshalJSON wrote. Where the text is wrong, the
// error says so and nothing changes.
func (d *Distribution) UnmarshalJSON(text []byte) error {
	if d.fixed {
		return errors.New("a fixed distribution learns nothing")
	}
	var saved savedDistribution
	if err := json.Unmarshal(text, &saved); err != nil {
		return err
	}
	if len(saved.Classes) == 0 {
		return errors.New("it has no classes")
	}
	for i := range saved.Classes {
		c := &saved.Classes[i]
		r := c.request()
		if err := r.Validate(); err != nil {
			return fmt.Errorf("classes[%d]: %w", i, err)
		}
		if !(c.Weight > 0 && c.Weight <= mostWeight) {
			return fmt.Errorf("classes[%d] has a weight of %g, not above 0 and at most %g", i, c.Weight, float64(mostWeight))
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.weights)
	d.scale, d.since = 1, 0
	for i := range saved.Classes {
		r := saved.Classes[i].request()
		slices.Sort(r.Models)
		d.add(&r, saved.Classes[i].Weight)
	}
	d.snapshot(d.current.Load().Version + 1)
	return nil
}

func (c *savedClass) request() Request {
	return Request{GPUs: c.GPUs, Milli: c.Milli, MiB: c.MiB, CPUMilli: c.CPUMilli, MemoryMiB: c.MemoryMiB, Models: c.Models}
}
