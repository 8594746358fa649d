// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Fault is what befalls a request of a process on its way to the API server.
type Fault struct {
	// Delay is how long the request waits before anything else happens to it; Until, where set, until when instead.
	Delay time.Duration
	Until <-chan struct{}
	// Status, where set, is answered in the API server's stead, which never gets the request.
	Status int
	// Cut ends the connection without an answer: before the API server gets the request or, with Applied, after it has done
	// what was asked.
	Cut, Applied bool
	// Hold makes the request wait until the process has ended. The API server never gets it or, with Applied, has done what was
	// asked.
	Hold bool
}

// Proxy stands between a process and the API server.
type Proxy struct {
	server *httptest.Server
	// exited is closed when the process has ended.
	exited <-chan struct{}
	// inject, where set, is asked for each request what befalls it.
	inject atomic.Pointer[func(*http.Request) *Fault]
	paused atomic.Pointer[pause]
}

// Kubeconfig writes a kubeconfig for the proxy to a folder and returns its path.
func (x *Proxy) Kubeconfig(dir string) (string, error) {
	path := filepath.Join(dir, "kubeconfig")
	return path, clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: x.server.URL}},
		Contexts:       map[string]*clientcmdapi.Context{"c": {Cluster: "c"}},
		CurrentContext: "c",
	}, path)
}

// Inject asks what befalls each request from now on: nil for nothing. It replaces what an earlier call said; nil ends it.
// Requests that wait already go on to wait.
func (x *Proxy) Inject(fault func(*http.Request) *Fault) {
	if fault == nil {
		x.inject.Store(nil)
		return
	}
	x.inject.Store(&fault)
}

// Hold makes every request for which match returns true wait until the process has ended; the API server never gets it.
func (x *Proxy) Hold(match func(*http.Request) bool) {
	x.Inject(func(r *http.Request) *Fault {
		if match(r) {
			return &Fault{Hold: true}
		}
		return nil
	})
}

// LoseAnswers makes every request for which match returns true take effect, while its answer is withheld until the process has
// ended.
func (x *Proxy) LoseAnswers(match func(*http.Request) bool) {
	x.Inject(func(r *http.Request) *Fault {
		if match(r) {
			return &Fault{Hold: true, Applied: true}
		}
		return nil
	})
}

// Pause keeps back what the API server sends from now on in answer to requests for which match returns true, those that are open
// already among them, until the function that it returns is called. Watches that are paused look as if nothing happened.
func (x *Proxy) Pause(match func(*http.Request) bool) (resume func()) {
	p := &pause{match: match, over: make(chan struct{})}
	x.paused.Store(p)
	return sync.OnceFunc(func() { close(p.over) })
}

type pause struct {
	match func(*http.Request) bool
	over  chan struct{}
}

// pausable waits with what it writes while its request is paused.
type pausable struct {
	http.ResponseWriter
	proxy   *Proxy
	request *http.Request
}

func (w *pausable) Write(data []byte) (int, error) {
	if p := w.proxy.paused.Load(); p != nil && p.match(w.request) {
		select {
		case <-p.over:
		case <-w.request.Context().Done():
			return 0, w.request.Context().Err()
		}
	}
	return w.ResponseWriter.Write(data)
}

// Unwrap lets the proxy flush.
func (w *pausable) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// CutConnections ends every connection to the API server, watches among them.
func (x *Proxy) CutConnections() { x.server.CloseClientConnections() }

// Watches matches watches of a resource, by its plural.
func Watches(resource string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return r.Method == http.MethodGet && r.URL.Query().Get("watch") != "" && strings.HasSuffix(r.URL.Path, "/"+resource)
	}
}

// IsBinding matches the binding of a pod.
func IsBinding(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/binding")
}

// NewProxy starts a proxy for a process that acts as the user of the configuration. It ends with the test.
func (p *Process) NewProxy(t testing.TB, as *rest.Config) (*Proxy, error) {
	transport, err := rest.TransportFor(as)
	if err != nil {
		return nil, err
	}
	target, err := url.Parse(as.Host)
	if err != nil {
		return nil, err
	}
	reverse := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1,
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	x := &Proxy{exited: p.exited}
	x.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w = &pausable{w, x, r}
		var fault *Fault
		if inject := x.inject.Load(); inject != nil {
			fault = (*inject)(r)
		}
		if fault == nil {
			reverse.ServeHTTP(w, r)
			return
		}
		if fault.Hold && fault.Applied {
			reverse.ServeHTTP(httptest.NewRecorder(), r)
		}
		if !x.wait(r, fault) {
			return
		}
		switch {
		case fault.Status != 0:
			answer(w, fault.Status)
			return
		case fault.Cut && fault.Applied:
			reverse.ServeHTTP(httptest.NewRecorder(), r)
		case !fault.Cut:
			reverse.ServeHTTP(w, r)
			return
		}
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(x.server.Close)
	return x, nil
}

// wait says whether the request goes on.
func (x *Proxy) wait(r *http.Request, fault *Fault) bool {
	var after <-chan time.Time
	switch {
	case fault.Hold:
	case fault.Until != nil:
		select {
		case <-x.exited:
		case <-r.Context().Done():
		case <-fault.Until:
			return true
		}
		return false
	case fault.Delay == 0:
		return true
	default:
		timer := time.NewTimer(fault.Delay)
		defer timer.Stop()
		after = timer.C
	}
	select {
	case <-x.exited:
	case <-r.Context().Done():
	case <-after:
		return true
	}
	return false
}

// answer writes an error as the API server does.
func answer(w http.ResponseWriter, code int) {
	status := metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Message: "injected by a test", Code: int32(code),
	}
	switch code {
	case http.StatusConflict:
		status.Reason = metav1.StatusReasonConflict
	case http.StatusTooManyRequests:
		status.Reason = metav1.StatusReasonTooManyRequests
		w.Header().Set("Retry-After", "1")
	default:
		status.Reason = metav1.StatusReasonInternalError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(&status)
}
