// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// progress is a line on a terminal that says how far several runs are. On anything else, it says nothing.
type progress struct {
	w     io.Writer
	start time.Time
	// delay is how long nothing is said: what is done by then needs no progress.
	delay time.Duration
	// parts is how far each run is, in millionths.
	parts []atomic.Int64
	end   chan struct{}
	ended sync.WaitGroup
}

const (
	progressDelay = time.Second
	progressEvery = 100 * time.Millisecond
	progressBar   = 30
	progressWhole = 1_000_000
)

// newProgress begins to show that many runs. The caller must stop it.
func newProgress(w io.Writer, runs int, delay time.Duration) *progress {
	p := &progress{w: w, start: time.Now(), delay: delay, parts: make([]atomic.Int64, runs), end: make(chan struct{})}
	if isTerminal(w) && os.Getenv("TERM") != "dumb" {
		p.ended.Add(1)
		go p.show()
	}
	return p
}

// of returns the function to be told how far one run is.
func (p *progress) of(run int) func(done, total int) {
	return func(done, total int) {
		if total > 0 {
			p.parts[run].Store(int64(done) * progressWhole / int64(total))
		}
	}
}

// stop ends the line and leaves nothing of it.
func (p *progress) stop() {
	close(p.end)
	p.ended.Wait()
}

func (p *progress) show() {
	defer p.ended.Done()
	shown := false
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.end:
			if shown {
				fmt.Fprint(p.w, "\r\x1b[K")
			}
			return
		case now := <-tick.C:
			if elapsed := now.Sub(p.start); elapsed >= p.delay {
				shown = true
				fmt.Fprint(p.w, "\r\x1b[K"+p.line(elapsed))
			}
		}
	}
}

// line is what is shown after that time.
func (p *progress) line(elapsed time.Duration) string {
	var sum, runs int64
	for i := range p.parts {
		part := p.parts[i].Load()
		sum += part
		if part == progressWhole {
			runs++
		}
	}
	part := float64(sum) / progressWhole / float64(max(1, len(p.parts)))
	full := int(part * progressBar)
	left := "?"
	if part > 0 {
		left = fmt.Sprintf("%.0f s", math.Ceil(elapsed.Seconds()*(1-part)/part))
	}
	of := ""
	if len(p.parts) > 1 {
		of = fmt.Sprintf("%d of %d runs, ", runs, len(p.parts))
	}
	return fmt.Sprintf("%s%s %3.0f %%  %s%s left", strings.Repeat(glyphUsed, full), strings.Repeat(glyphFree, progressBar-full),
		math.Floor(100*part), of, left)
}
