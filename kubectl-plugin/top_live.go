// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/kubectl-plugin/dcgm"
	"github.com/gpupack/gpupack/kubectl-plugin/livecache"
)

const (
	// drawsPerSecond is the most that are drawn.
	drawsPerSecond = 10
	// newsEvery is the shortest time between two looks at what has changed.
	newsEvery = 250 * time.Millisecond
	// prometheusEvery is how often Prometheus is asked, which cannot be watched.
	prometheusEvery = 15 * time.Second
	// gcPercent trades some processor time for memory.
	gcPercent = 40
)

func addWatch(cmd *cobra.Command) {
	cmd.Flags().BoolP("watch", "w", false,
		"Show a live view, as is done on a terminal where no other output is asked for; --watch=false prints the table once")
}

// wantsLive says whether to show the live view.
func (e *env) wantsLive(cmd *cobra.Command) (bool, error) {
	in, _ := e.In.(*os.File)
	terminal := isTerminal(e.Out) && in != nil && isTerminal(in) && os.Getenv("TERM") != "dumb"
	table := !cmd.Flags().Changed("output") && !cmd.Flags().Changed("no-headers")
	if !cmd.Flags().Changed("watch") {
		return terminal && table, nil
	}
	watch, err := cmd.Flags().GetBool("watch")
	switch {
	case err != nil || !watch:
		return false, err
	case !table:
		return false, usagef(cmd, "--watch shows a live view, which has no -o and no --no-headers: leave out one of them")
	case !terminal:
		return false, usagef(cmd, "--watch needs a terminal: leave it out to print the table once")
	}
	return true, nil
}

// watchTop shows the live view until the user quits.
func (e *env) watchTop(cmd *cobra.Command, f *selectorFlag, p *prometheusFlag, sortBy string) error {
	selector, err := f.parse(cmd)
	if err != nil {
		return err
	}
	source, err := p.source(cmd)
	if err != nil {
		return err
	}
	r, err := e.reader()
	if err != nil {
		return err
	}
	watcher, ok := r.(client.WithWatch)
	if !ok {
		return errors.New("this client cannot watch: use --watch=false")
	}
	quietly()
	debug.SetGCPercent(gcPercent)
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	cache := livecache.New(watcher, livecache.Options{NodeSelector: selector, NodeLabels: append([]string{productLabel}, poolLabels...)})
	m := newLiveModel(newLiveData(e.view, selector != nil))
	m.color = newScreen(e.Out).color
	// Columns that the live view does not sort by leave it sorted by name.
	m.order.sortBy = max(0, slices.IndexFunc(liveKeys, func(k liveKey) bool { return k.name == sortBy }))
	m.feed = &liveFeed{ctx: ctx, env: e, reader: r, cache: cache, prometheus: source}
	return runLive(ctx, m, tea.WithInput(e.In), tea.WithOutput(e.Out))
}

func runLive(ctx context.Context, m *liveModel, options ...tea.ProgramOption) error {
	ctx, cancel := context.WithCancel(ctx)
	p := tea.NewProgram(m, append(options, tea.WithContext(ctx), tea.WithFPS(drawsPerSecond))...)
	// A panic beside the program, such as in a watch, must leave the terminal as it was.
	utilruntime.PanicHandlers = append(utilruntime.PanicHandlers, func(context.Context, any) { _ = p.ReleaseTerminal() })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.feed.cache.Run(ctx)
	}()
	_, err := p.Run()
	cancel()
	<-ended
	switch {
	case m.feed.failed != nil:
		return m.feed.failed
	case errors.Is(err, tea.ErrProgramPanic):
		return err
	case errors.Is(err, tea.ErrInterrupted), errors.Is(err, tea.ErrProgramKilled):
		return nil // as the user wished
	}
	return err
}

// quietly keeps client-go's log off the screen; what is wrong is said there.
func quietly() {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
}

// liveFeed brings the cluster to the live view.
type liveFeed struct {
	ctx        context.Context
	env        *env
	reader     client.Reader
	cache      *livecache.Cache
	prometheus *dcgm.Source
	// prometheusErr is why the last question to it had no answer.
	prometheusErr error
	settled       bool
	// failed is why nothing can be shown at all.
	failed error
}

type (
	// newsMsg says that something has changed.
	newsMsg struct{}
	// sampleMsg says that it is time for a sample of the history.
	sampleMsg struct{}
	// measuredMsg is an answer of Prometheus.
	measuredMsg struct {
		nodes map[string]*v1alpha1.GPUNode
		err   error
	}
)

// Init starts the feed.
func (m *liveModel) Init() tea.Cmd {
	if m.feed == nil {
		return nil
	}
	m.loading = "Reading the cluster ..."
	f := m.feed
	return tea.Batch(f.news, sampleLater(), f.measure)
}

func sampleLater() tea.Cmd {
	return tea.Tick(historyEvery, func(time.Time) tea.Msg { return sampleMsg{} })
}

// news waits for a change.
func (f *liveFeed) news() tea.Msg {
	timer := time.NewTimer(newsEvery)
	defer timer.Stop()
	if f.settled {
		select {
		case <-timer.C:
		case <-f.ctx.Done():
			return nil
		}
	}
	select {
	case <-f.cache.Changed():
		return newsMsg{}
	case <-f.ctx.Done():
		return nil
	}
}

// measure asks Prometheus.
func (f *liveFeed) measure() tea.Msg {
	if f.prometheus == nil {
		return nil
	}
	nodes, err := measure(f.ctx, f.prometheus, f.env.now())
	return measuredMsg{nodes, err}
}

// update takes over what the feed's commands bring.
func (f *liveFeed) update(m *liveModel, msg tea.Msg) tea.Cmd {
	switch msg := msg.(type) {
	case newsMsg:
		if f.refuse(); f.failed != nil {
			return tea.Quit
		}
		f.take(m, nil)
		return f.news
	case sampleMsg:
		f.take(m, m.data.aged(f.env.now()))
		m.data.sample()
		return sampleLater()
	case measuredMsg:
		if f.prometheusErr = msg.err; msg.err == nil {
			m.data.measured = msg.nodes
		}
		var names []string
		for name := range m.data.measured {
			names = append(names, name)
		}
		f.take(m, names)
		return tea.Tick(prometheusEvery, func(time.Time) tea.Msg { return f.measure() })
	}
	return nil
}

// refuse gives up where nothing at all can be read.
func (f *liveFeed) refuse() {
	statuses := f.statuses()
	for _, s := range statuses {
		if s.Synced || s.Err == nil {
			return
		}
	}
	f.failed = statuses[0].Err
}

// statuses are those of all resources.
func (f *liveFeed) statuses() []livecache.Status {
	return []livecache.Status{f.cache.Status(livecache.Nodes), f.cache.Status(livecache.GPUNodes), f.cache.Status(livecache.Pods)}
}

// take takes over what has changed, and these nodes besides.
func (f *liveFeed) take(m *liveModel, besides []string) {
	statuses := f.statuses()
	if !f.settled {
		m.loading = fmt.Sprintf("Reading the cluster: %s, %d with telemetry, %s ...", plural(statuses[0].Read, "node"), statuses[1].Read,
			plural(statuses[2].Read, "pod"))
		for _, s := range statuses {
			if !s.Settled() {
				return
			}
		}
		f.settled = true
	}
	m.loading = ""
	now := f.env.now()
	for _, name := range append(f.cache.Take(), besides...) {
		node, gn, pods := f.cache.Node(name)
		m.data.set(now, name, node, gn, pods)
	}
	m.data.sum()
	if m.data.history.count == 0 {
		m.data.history.add(m.data.totals.Utilization)
	}
	m.messages = f.messages(m, statuses)
	m.arrange()
}

// messages says what is wrong, in a sentence each.
func (f *liveFeed) messages(m *liveModel, statuses []livecache.Status) []string {
	var messages []string
	agents := false
	for _, n := range m.data.nodes {
		agents = agents || n.Telemetry != TelemetryNone
	}
	for i, s := range statuses {
		switch {
		case s.Err == nil:
		case livecache.Resource(i) == livecache.GPUNodes && notServed(s.Err):
			if !agents {
				messages = append(messages, "This cluster has no GPUNode resource: "+installHint+
					"; what is shown are the requests that the API knows.")
			}
		case s.Synced:
			messages = append(messages, fmt.Sprintf("What is shown may be out of date: %v.", s.Err))
		default:
			messages = append(messages, fmt.Sprintf("A part is missing: %v.", s.Err))
		}
	}
	if statuses[livecache.GPUNodes].Err == nil && !agents && len(m.data.nodes) > 0 {
		messages = append(messages, "No gpupack-agent has reported GPUs yet; what is shown are the requests that the API knows.")
	}
	if f.prometheusErr != nil {
		messages = append(messages, f.prometheusErr.Error()+".")
	}
	return messages
}

// explain reads the explanation of a pod.
func (f *liveFeed) explain(namespace, name string, width int) tea.Cmd {
	title := namespace + "/" + name
	return func() tea.Msg {
		x, s, err := f.env.explain(f.ctx, f.reader, namespace, name, convert.DefaultTopologyDomains())
		if err != nil {
			return explanationMsg{title, "error: " + err.Error()}
		}
		return explanationMsg{title, explanationText(s, x, width)}
	}
}
