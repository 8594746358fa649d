// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	configv1 "k8s.io/kube-scheduler/config/v1"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1}, 5},
		{[]float64{9, 1, 4}, 4},
		{[]float64{9, 1, 4, 2}, 3},
	} {
		before := slices.Clone(tc.values)
		assert.InDelta(t, tc.want, median(tc.values), 1e-9, "%v", tc.values)
		assert.Equal(t, before, tc.values, "the values are left as they are")
	}
	k := key{part: partGangs}
	r := results{}
	_, ok := r.median(k, fromLast)
	assert.False(t, ok, "nothing was measured")
	for _, s := range []float64{5, 1, 3} {
		r.add(k, sample{fromLast: s, fromFirst: 10 * s})
	}
	v, ok := r.median(k, fromLast)
	assert.True(t, ok)
	assert.InDelta(t, 3, v, 1e-9)
	v, _ = r.median(k, fromFirst)
	assert.InDelta(t, 30, v, 1e-9)
	v, ok = r.worst(k, fromLast)
	assert.True(t, ok)
	assert.InDelta(t, 5, v, 1e-9)
}

func TestRatio(t *testing.T) {
	for name, tc := range map[string]struct {
		ratio   ratio
		reached bool
		text    string
		short   string
	}{
		"just reached":     {ratio{ours: 1, theirs: 3, known: true}, true, "3.00 times: 1.00 s against 3.00 s", "3.00"},
		"just missed":      {ratio{ours: 1.01, theirs: 3, known: true}, false, "2.97 times: 1.01 s against 3.00 s", "2.97"},
		"peer gave up":     {ratio{ours: 1, theirs: 300, theirUp: true, known: true}, true, "more than 300.00 times: 1.00 s against more than 300.00 s", "> 300.00"},
		"we gave up":       {ratio{ours: 300, theirs: 1, oursUp: true, known: true}, false, "gave up after 300.00 s", "gave up"},
		"both gave up":     {ratio{ours: 300, theirs: 3000, oursUp: true, theirUp: true, known: true}, false, "gave up after 300.00 s", "gave up"},
		"nothing measured": {ratio{ours: 1, theirs: 30}, false, "not measured", ""},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, tc.reached, tc.ratio.reached(leastFaster))
			assert.Equal(t, tc.text, tc.ratio.String())
			assert.Equal(t, tc.short, tc.ratio.short())
		})
	}
}

// fullPlan is one of all parts.
func fullPlan() *plan {
	return &plan{
		parts: allParts(), nodes: []int{500, 5000}, sizes: []int{8, 256}, singles: 100, singleNodes: 5000, kaiMembers: 512, kaiJobs: 4000,
	}
}

// good are results that reach all goals, each of them just so.
func good(p *plan) results {
	r := results{}
	add := func(k key, fromLast, fromFirst float64) {
		r.add(k, sample{wanted: 10, bound: 10, fromLast: fromLast, fromFirst: fromFirst})
	}
	for _, nodes := range p.nodes {
		for _, size := range p.sizes {
			for _, how := range []way{created, held} {
				add(key{partGangs, nodes, size, string(how), ours}, 1, 1)
				add(key{partGangs, nodes, size, string(how), coscheduling}, 3, 3)
				add(key{partGangs, nodes, size, string(how), stock}, 1, 1)
				add(key{partGangs, nodes, size, string(how), nobody}, 0.5, 0.5)
			}
		}
	}
	for _, run := range singleRuns() {
		for _, want := range []int64{wantWhole, wantShare} {
			add(key{partSingles, p.singleNodes, p.singles, singleHow(want, run.telemetry, run.how), ours}, 2, 2)
		}
		add(key{partSingles, p.singleNodes, p.singles, singleHow(wantWhole, run.telemetry, run.how), stock}, 2, 2)
	}
	add(key{partContention, 500, 94, "", ours}, 1, 1)
	add(key{partKAI, 500, 512, kaiGang, ours}, 1, kaiGangSeconds/leastKAI)
	add(key{partKAI, 500, 4000, kaiRunning, ours}, 1, kaiRunningSeconds/leastKAI)
	add(key{partKAI, 500, 4000, kaiAfter, ours}, 1, kaiAfterSeconds/leastKAI)
	return r
}

func TestGoals(t *testing.T) {
	p := fullPlan()
	for _, g := range good(p).goals(p) {
		assert.True(t, g.Reached, "%s: %s", g.What, g.Figure)
	}
	assert.Len(t, good(p).goals(p), 2*2+4+1+3)
	for _, g := range (results{}).goals(p) {
		assert.False(t, g.Reached, "nothing was measured: %s: %s", g.What, g.Figure)
	}

	slower := func(s *sample) { s.fromLast, s.fromFirst = s.fromLast*1.01, s.fromFirst*1.01 }
	for name, tc := range map[string]struct {
		key    key
		change func(*sample)
		missed []string
	}{
		"gang created, against coscheduling": {
			key{partGangs, 500, 256, string(created), ours}, slower,
			[]string{"a gang of 256 at 500 nodes: at least 3 times as fast as coscheduling"},
		},
		"gang held, against the default profile": {
			key{partGangs, 5000, 256, string(held), ours}, slower,
			[]string{"a gang of 256 at 5000 nodes: not slower than the default profile with as many single pods"},
		},
		"gang given up": {
			key{partGangs, 5000, 256, string(created), ours}, func(s *sample) { s.fromLast, s.gaveUp = 0.1, 1 },
			[]string{"a gang of 256 at 5000 nodes: at least 3 times as fast as coscheduling"},
		},
		"other sizes are not judged": {key{partGangs, 500, 8, string(created), ours}, slower, nil},
		"single, calm": {
			key{partSingles, 5000, 100, singleHow(wantWhole, calm, held), ours}, slower,
			[]string{"single pods with whole GPUs at 5000 nodes, telemetry calm: not slower than the default profile"},
		},
		"share, changing": {
			key{partSingles, 5000, 100, singleHow(wantShare, churnt, created), ours}, slower,
			[]string{"single pods with shares at 5000 nodes, telemetry changing: not slower than the default profile"},
		},
		"half a gang": {
			key{partContention, 500, 94, "", ours}, func(s *sample) { s.half = 1 },
			[]string{"contention: no gang is left half placed"},
		},
		"large Job": {
			key{partKAI, 500, 512, kaiGang, ours}, slower,
			[]string{"one Job of 512 pods: at least 5 times as fast as KAI-Scheduler"},
		},
		"Jobs, running": {
			key{partKAI, 500, 4000, kaiRunning, ours}, slower,
			[]string{"4000 Jobs while the scheduler runs: at least 5 times as fast as KAI-Scheduler"},
		},
		"Jobs, started after": {
			key{partKAI, 500, 4000, kaiAfter, ours}, slower,
			[]string{"4000 Jobs, scheduler started afterwards: at least 5 times as fast as KAI-Scheduler"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := good(p)
			require.Len(t, r[tc.key], 1)
			tc.change(&r[tc.key][0])
			var missed []string
			for _, g := range r.goals(p) {
				if !g.Reached {
					missed = append(missed, g.What)
				}
			}
			assert.Equal(t, tc.missed, missed)
		})
	}
	p.parts = []string{partLimits}
	assert.Empty(t, good(p).goals(p))
}

// One half-placed gang in one run of many is one too many, which a median would not show.
func TestWorstContention(t *testing.T) {
	p := fullPlan()
	p.parts = []string{partContention}
	r := good(p)
	k := key{partContention, 500, 94, "", ours}
	r.add(k, sample{half: 1})
	r.add(k, sample{})
	require.Len(t, r.goals(p), 1)
	assert.False(t, r.goals(p)[0].Reached)
	assert.Equal(t, "1 in the worst run", r.goals(p)[0].Figure)
}

// Every table has as many cells in each row as its header.
func TestReport(t *testing.T) {
	p := fullPlan()
	b := &bench{repeats: 3, limits: limits{5000, 5000}, results: good(p)}
	for _, results := range []results{b.results, {}} {
		b.results = results
		r := b.report(p, 90*time.Second)
		assert.Len(t, r.Tables, len(p.nodes)+1+4)
		for _, table := range r.Tables {
			assert.NotEmpty(t, table.Rows, table.Title)
			for _, row := range table.Rows {
				assert.Len(t, row, len(table.Header), table.Title)
				for _, cell := range row {
					assert.NotContains(t, cell, "NaN", table.Title)
				}
			}
		}
		if len(results) > 0 {
			require.NoError(t, r.Err())
		} else {
			require.Error(t, r.Err())
		}
	}
}

func TestFinish(t *testing.T) {
	now := time.Now()
	pod := func(name, node, group string) *corev1.Pod {
		p := podFor(ours, name, 2)
		p.UID, p.Spec.NodeName = types.UID(name), node
		p.Labels[v1alpha1.LabelPodGroup] = group
		return p
	}
	tr := newTracker()
	for _, e := range []struct {
		pod   *corev1.Pod
		after time.Duration
	}{
		{pod("a", "", "g"), 0},
		{pod("b", "", "g"), 1},
		{pod("c", "", "h"), 2},
		{pod("a", "n", "g"), 5},
		{pod("a", "n", "g"), 9}, // told again, of something else
		{pod("b", "n", "g"), 7},
		{pod("c", "n", "h"), 8},
	} {
		tr.observe(watch.Event{Type: watch.Modified, Object: e.pod}, now.Add(e.after*time.Second))
	}
	tr.observe(watch.Event{Type: watch.Deleted, Object: pod("d", "n", "h")}, now.Add(time.Minute))
	seen, bound, lastSeen, lastBound, err := tr.counts()
	require.NoError(t, err)
	assert.Equal(t, 3, seen)
	assert.Equal(t, 3, bound)
	assert.Equal(t, now.Add(2*time.Second), lastSeen)
	assert.Equal(t, now.Add(8*time.Second), lastBound)
	assert.Equal(t, int64(6), tr.gpus)

	half, whole := tr.halves(map[string]int{"g": 2, "h": 2, "none": 4})
	assert.Equal(t, 1, half, "h has one of two")
	assert.Equal(t, 1, whole, "g is whole, and none of the third are bound")

	var s sample
	s.finish(tr, now, now.Add(2*time.Second), true, time.Minute)
	assert.InDelta(t, 8, s.fromFirst, 1e-9)
	assert.InDelta(t, 6, s.fromLast, 1e-9)
	assert.Zero(t, s.gaveUp)
	s.finish(tr, now, now.Add(9*time.Second), true, time.Minute)
	assert.Positive(t, s.fromLast, "never zero or less, of which rates would make nonsense")
	s.finish(tr, now, now, false, time.Minute)
	assert.InDelta(t, 1, s.gaveUp, 0)
	assert.InDelta(t, 60, s.fromFirst, 1e-9)

	tr.observe(watch.Event{Type: watch.Error, Object: &metav1.Status{Message: "too old"}}, now)
	_, _, _, _, err = tr.counts()
	assert.ErrorContains(t, err, "the watch of pods ended")
}

func TestMetrics(t *testing.T) {
	const text = `# HELP apiserver_request_total [STABLE] ...
# TYPE apiserver_request_total counter
apiserver_request_total{code="201",component="apiserver",resource="pods",scope="resource",subresource="binding",verb="POST"} 20
apiserver_request_total{code="409",component="apiserver",resource="pods",scope="resource",subresource="binding",verb="POST"} 5
apiserver_request_total{code="201",component="apiserver",resource="pods",scope="resource",subresource="",verb="POST"} 99
apiserver_request_total{code="200",component="apiserver",resource="pods",scope="resource",subresource="status",verb="PATCH"} 1.2e+01
apiserver_request_total{code="201",component="apiserver",resource="events",scope="resource",subresource="",verb="POST"} 10
apiserver_request_duration_seconds{resource="pods"} 1000
scheduler_pending_pods{queue="active"} 3
scheduler_framework_extension_point_duration_seconds_sum{extension_point="Bind",profile="gpupack",status="Success"} 2.5
scheduler_framework_extension_point_duration_seconds_sum{extension_point="PreBind",profile="gpupack",status="Success"} 1
scheduler_scheduling_algorithm_duration_seconds_sum 0.25
`
	before := parseMetrics([]byte("apiserver_request_total{code=\"201\",component=\"apiserver\",resource=\"pods\",scope=\"resource\",subresource=\"binding\",verb=\"POST\"} 15\n"),
		"apiserver_request_total")
	requests := parseMetrics([]byte(text), "apiserver_request_total")
	assert.Len(t, requests, 5)
	var s sample
	s.wanted = 10
	s.count(requests.since(before), parseMetrics([]byte(text), "scheduler_framework_extension_point_duration_seconds_sum",
		"scheduler_scheduling_algorithm_duration_seconds_sum"))
	assert.InDelta(t, 1.0, s.bindings, 1e-9, "5 of the first kind since then, and 5 of the other")
	assert.InDelta(t, 1.2, s.patches, 1e-9)
	assert.InDelta(t, 1.0, s.events, 1e-9)
	assert.InDelta(t, 3.2, s.calls, 1e-9, "pods are created by us")
	assert.InDelta(t, 3.5, s.binding, 1e-9)
	assert.InDelta(t, 0.25, s.cycles, 1e-9)
}

// Gangs of all shapes together ask for what was asked, and each for what it should.
func TestContended(t *testing.T) {
	w := contended(ours, 6000)
	var gpus int64
	perGang := map[string]int64{}
	for _, pod := range w.pods {
		q := pod.Spec.Containers[0].Resources.Requests[v1alpha1.ResourceGPU]
		gpus += q.Value()
		perGang[pod.Labels[v1alpha1.LabelPodGroup]] += q.Value()
	}
	assert.Equal(t, int64(6016), gpus)
	assert.Len(t, perGang, len(w.groups))
	for name, n := range perGang {
		assert.Equal(t, int64(64), n, name)
	}
}

func TestOrder(t *testing.T) {
	kinds := []kind{ours, coscheduling, stock}
	first := map[kind]bool{}
	for repeat := range 3 {
		got := order(kinds, repeat)
		assert.ElementsMatch(t, kinds, got)
		first[got[0]] = true
	}
	assert.Len(t, first, 3, "each is the first once")
}

// All schedulers have the same limits, gpupack what it ships with else, and nobody has what would let it start late.
func TestConfig(t *testing.T) {
	base, err := os.ReadFile("../../../" + shipped)
	require.NoError(t, err)
	for _, k := range []kind{ours, coscheduling, stock} {
		data, err := configOf(k, base, "/kubeconfig", limits{300, 600}, permitShipped)
		require.NoError(t, err)
		var config configv1.KubeSchedulerConfiguration
		require.NoError(t, yaml.UnmarshalStrict(data, &config), string(k))
		assert.Equal(t, "/kubeconfig", config.ClientConnection.Kubeconfig)
		assert.InDelta(t, 300, config.ClientConnection.QPS, 0)
		assert.Equal(t, int32(600), config.ClientConnection.Burst)
		assert.False(t, *config.LeaderElection.LeaderElect)
		if k == stock {
			assert.Empty(t, config.Profiles)
			continue
		}
		require.Len(t, config.Profiles, 1)
		assert.Equal(t, string(k), *config.Profiles[0].SchedulerName)
	}
	data, err := configOf(ours, base, "/kubeconfig", limits{}, permitShipped)
	require.NoError(t, err)
	var config configv1.KubeSchedulerConfiguration
	require.NoError(t, yaml.UnmarshalStrict(data, &config))
	assert.Positive(t, config.ClientConnection.QPS, "its own")

	data, err = configOf(coscheduling, base, "/kubeconfig", limits{}, permitShipped)
	require.NoError(t, err)
	assert.Contains(t, string(data), "permitWaitingTimeSeconds: 10")
	assert.Contains(t, string(data), "MostAllocated")
}

func TestGates(t *testing.T) {
	assert.Equal(t, []string{"--feature-gates=A=false,B=true"}, gatesOf([]byte("        args:\n        - --config=x\n        - --feature-gates=A=false,B=true\n")))
	assert.Equal(t, []string{"--feature-gates=A=false"}, gatesOf([]byte("        - \"--feature-gates=A=false\"\n")))
	assert.Empty(t, gatesOf([]byte("args:\n- --config=x\n")))
}

func TestParse(t *testing.T) {
	o, err := parse(nil)
	require.NoError(t, err)
	assert.Equal(t, allParts(), o.plan.parts)
	assert.Equal(t, []int{500, 2000, 5000}, o.plan.nodes)
	assert.Equal(t, 5000, o.plan.singleNodes)
	assert.Equal(t, 256, judged(&o.plan))
	o, err = parse([]string{"--quick", "--only", "kai,gangs"})
	require.NoError(t, err)
	assert.Equal(t, []string{"kai", "gangs"}, o.plan.parts)
	assert.Equal(t, 1, o.bench.repeats)
	assert.Equal(t, 64, judged(&o.plan), "there is no gang of 256")
	for want, args := range map[string][]string{
		`there is no part "x"`:                  {"--only", "x"},
		`"y" is not a number of nodes`:          {"--nodes", "5,y"},
		`"0" is not a number of members`:        {"--sizes", "0"},
		`unknown output format "x"`:             {"-o", "x"},
		`unexpected argument "x"`:               {"x"},
		"must be at least 1":                    {"--repeats", "0"},
		"4000 pods of all Jobs want more than ": {"--nodes", "400", "--sizes", "8"},
	} {
		_, err := parse(args)
		assert.ErrorContains(t, err, want)
	}
}

// The clock of our own process goes on, and its memory has a peak, where either can be told.
func TestProcess(t *testing.T) {
	start, err := cpuSeconds(os.Getpid())
	require.NoError(t, err)
	for x, end := 1.0, time.Now().Add(50*time.Millisecond); time.Now().Before(end); {
		x = math.Sqrt(x + 1)
	}
	now, err := cpuSeconds(os.Getpid())
	require.NoError(t, err)
	assert.GreaterOrEqual(t, now, start)
	peak, err := peakMiB(os.Getpid())
	require.NoError(t, err)
	assert.GreaterOrEqual(t, peak, 0.0)
}

func TestReading(t *testing.T) {
	patch := reading(3)
	require.Len(t, patch, 1+gpusPerNode)
	for i, op := range patch[1:] {
		assert.Equal(t, fmt.Sprintf("/status/gpus/%d/utilization", i), op["path"])
		assert.LessOrEqual(t, op["value"], 100)
	}
	assert.NotEqual(t, reading(4)[1]["value"], patch[1]["value"])
	assert.True(t, strings.HasPrefix(nodeName(7), "node-"))
}
