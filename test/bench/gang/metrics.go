// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"strconv"
	"strings"
)

// metrics are samples in Prometheus' text format: values by name and labels, as they are written.
type metrics map[string]float64

// parseMetrics reads those of the named metrics.
func parseMetrics(data []byte, names ...string) metrics {
	wanted := map[string]bool{}
	for _, name := range names {
		wanted[name] = true
	}
	m := metrics{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		end := strings.IndexAny(line, "{ ")
		if end < 0 || !wanted[line[:end]] {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		if v, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			m[line[:at]] = v
		}
	}
	return m
}

// sum adds up the samples of a metric that have all the labels, each of the form name="value".
func (m metrics) sum(name string, labels ...string) float64 {
	var sum float64
samples:
	for key, v := range m {
		base, rest, _ := strings.Cut(key, "{")
		if base != name {
			continue
		}
		for _, label := range labels {
			if !strings.HasPrefix(rest, label) && !strings.Contains(rest, ","+label) {
				continue samples
			}
		}
		sum += v
	}
	return sum
}

// since returns how much each sample has grown.
func (m metrics) since(before metrics) metrics {
	out := metrics{}
	for key, v := range m {
		out[key] = v - before[key]
	}
	return out
}
