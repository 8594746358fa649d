// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package dcgm reads what NVIDIA's dcgm-exporter told Prometheus of the GPUs of a cluster, for clusters without an agent of ours.
package dcgm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// The metrics of dcgm-exporter that are read. Memory is in MiB, utilisation in percent.
const (
	metricUsed        = "DCGM_FI_DEV_FB_USED"
	metricFree        = "DCGM_FI_DEV_FB_FREE"
	metricReserved    = "DCGM_FI_DEV_FB_RESERVED"
	metricUtilization = "DCGM_FI_DEV_GPU_UTIL"
)

// timeout of one query.
const timeout = 10 * time.Second

// GPU is the last reading of one GPU.
type GPU struct {
	// Node is the name of the host, which dcgm-exporter takes from its node.
	Node  string
	UUID  string
	Index int
	Model string
	// UsedMiB, FreeMiB and ReservedMiB make up the memory of the GPU.
	UsedMiB, FreeMiB, ReservedMiB int64
	// Utilization is percent.
	Utilization int
	// Pods may have the GPU: those that the labels name. The exporter's own can be among them.
	Pods []Pod
}

// Pod is the name of a pod.
type Pod struct{ Namespace, Name string }

// Source is a Prometheus.
type Source struct {
	address string
	api     promv1.API
}

// New returns the Prometheus at that URL, which is asked by Read alone.
func New(address string) (*Source, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is not the URL of a Prometheus: write one such as http://localhost:9090", address)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	client, err := api.NewClient(api.Config{Address: address, RoundTripper: transport})
	if err != nil {
		return nil, fmt.Errorf("%q is not the URL of a Prometheus: %w", address, err)
	}
	return &Source{address: u.Redacted(), api: promv1.NewAPI(client)}, nil
}

// Read returns the last reading of each GPU, by node and index. An error is one sentence for people.
func (s *Source) Read(ctx context.Context) ([]GPU, error) {
	gpus := map[[2]string]*GPU{}
	for _, q := range []struct {
		metric string
		set    func(g *GPU, value int64)
	}{
		{metricUsed, func(g *GPU, v int64) { g.UsedMiB = v }},
		{metricFree, func(g *GPU, v int64) { g.FreeMiB = v }},
		{metricReserved, func(g *GPU, v int64) { g.ReservedMiB = v }},
		{metricUtilization, func(g *GPU, v int64) { g.Utilization = int(min(v, 100)) }},
	} {
		samples, err := s.query(ctx, q.metric)
		if err != nil {
			return nil, err
		}
		for _, sample := range samples {
			value := float64(sample.Value)
			if math.IsNaN(value) || value < 0 || value > math.MaxInt32 {
				continue
			}
			// Only what has memory is a GPU to us; the exporter tells of NVSwitches too.
			g := find(gpus, sample.Metric, q.metric == metricUsed)
			if g != nil {
				q.set(g, int64(value))
			}
		}
		if len(gpus) == 0 {
			return nil, fmt.Errorf("the Prometheus at %s has no metric %s: is dcgm-exporter installed, and scraped by this Prometheus?",
				s.address, metricUsed)
		}
	}
	out := make([]GPU, 0, len(gpus))
	for _, g := range gpus {
		out = append(out, *g)
	}
	slices.SortFunc(out, func(a, b GPU) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Index, b.Index), cmp.Compare(a.UUID, b.UUID))
	})
	return out, nil
}

// labels are those that a GPU is told by; pod and namespace are the exporter's own where Prometheus renamed the metric's.
var labels = []model.LabelName{"Hostname", "gpu", "UUID", "modelName", "exported_namespace", "exported_pod", "namespace", "pod"}

func (s *Source) query(ctx context.Context, metric string) (model.Vector, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	by := ""
	for i, l := range labels {
		if i > 0 {
			by += ", "
		}
		by += string(l)
	}
	value, _, err := s.api.Query(ctx, fmt.Sprintf("max by (%s) (%s)", by, metric), time.Now())
	var refused *promv1.Error
	switch {
	case errors.As(err, &refused):
		// The detail would be a page of HTML where the URL is that of something else.
		return nil, fmt.Errorf("the Prometheus at %s refuses the query (%s): check the URL", s.address, refused.Msg)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("the Prometheus at %s has not answered for %v", s.address, timeout)
	case err != nil:
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return nil, fmt.Errorf("the Prometheus at %s cannot be asked: %w", s.address, err)
	}
	vector, ok := value.(model.Vector)
	if !ok {
		return nil, fmt.Errorf("the Prometheus at %s answers with a %s instead of a vector: check the URL", s.address, value.Type())
	}
	return vector, nil
}

func find(gpus map[[2]string]*GPU, m model.Metric, create bool) *GPU {
	node, uuid := string(m["Hostname"]), string(m["UUID"])
	if node == "" || uuid == "" {
		return nil
	}
	g := gpus[[2]string{node, uuid}]
	if g == nil {
		index, err := strconv.Atoi(string(m["gpu"]))
		if !create || err != nil || index < 0 {
			return nil
		}
		g = &GPU{Node: node, UUID: uuid, Index: index, Model: string(m["modelName"])}
		gpus[[2]string{node, uuid}] = g
	}
	for _, pod := range []Pod{
		{string(m["exported_namespace"]), string(m["exported_pod"])}, {string(m["namespace"]), string(m["pod"])},
	} {
		if pod.Name != "" && !slices.Contains(g.Pods, pod) {
			g.Pods = append(g.Pods, pod)
		}
	}
	return g
}
