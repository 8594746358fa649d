// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// The components of a control plane, by the names that StopComponent and StartComponent take.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Kwok              = "kwok"
)

// Options choose what a control plane has beside etcd and the API server.
type Options struct {
	// ControllerManager runs kube-controller-manager. Without it there are no service accounts and no conditions become
	// taints; the admission plugins that rely on these are then off, and pods and nodes can still be created.
	ControllerManager bool
	// Kwok runs nodes that have the annotation KwokNodeAnnotation, and the pods on them.
	Kwok bool

	// APIServerArgs and ControllerManagerArgs are further flags, e.g. "--feature-gates=InPlacePodVerticalScaling=false".
	// They override ours.
	APIServerArgs         []string
	ControllerManagerArgs []string

	// Verbosity is the log level (-v) of the Kubernetes components.
	Verbosity int
	// LogDir is an existing folder for the logs of the components, which stay there. By default logs are in the folder
	// of the control plane and go with it.
	LogDir string
	// Progress gets a line for each binary that must be built first. Nil discards them.
	Progress io.Writer
}

// ControlPlane is a running control plane. Its methods may be called from several goroutines.
type ControlPlane struct {
	dir        string
	kubeconfig clientcmdapi.Config
	config     *rest.Config
	client     kubernetes.Interface

	reaper      *reaper
	releasePort func()
	launcher    *launcher

	mu         sync.Mutex   // guards the state of the components
	components []*component // in the order of their start
	stopOnce   sync.Once
}

// Start starts a control plane and returns when it is ready: the API server serves, and the default namespace and, with a
// controller manager, its default service account exist. The context bounds the start alone; Stop ends the control plane,
// and so does the end of this process.
func Start(ctx context.Context, opts Options) (*ControlPlane, error) {
	if opts.Progress == nil {
		opts.Progress = io.Discard
	}
	bins, err := Build(ctx, opts.Progress)
	if err != nil {
		return nil, err
	}

	dir := filepath.Join(os.TempDir(), "gpupack-"+randomSuffix())
	// The limit of macOS, with its terminating zero; that of Linux is 108.
	if len(filepath.Join(dir, etcdSocket)) >= 104 {
		return nil, fmt.Errorf("the path of %s is too long for a unix socket: set TMPDIR to a shorter path", os.TempDir())
	}
	port, releasePort, err := reservePort()
	if err != nil {
		return nil, err
	}
	reaper, err := startReaper(dir)
	if err != nil {
		releasePort()
		return nil, err
	}
	cp := &ControlPlane{dir: dir, reaper: reaper, releasePort: releasePort, launcher: newLauncher()}
	if err := cp.configure(bins, opts, port); err != nil {
		cp.Stop()
		return nil, fmt.Errorf("configure the control plane: %w", err)
	}
	for _, c := range cp.components {
		if err := cp.StartComponent(ctx, c.name); err != nil {
			cp.Stop()
			return nil, err
		}
	}
	return cp, nil
}

// Stop kills the components in the reverse order of their start, and removes the folder of the control plane. It returns
// when both are gone. Further calls do nothing.
func (cp *ControlPlane) Stop() {
	cp.stopOnce.Do(func() {
		cp.mu.Lock()
		defer cp.mu.Unlock()
		for i := len(cp.components) - 1; i >= 0; i-- {
			cp.components[i].stop()
		}
		cp.components = nil
		cp.launcher.close()
		cp.reaper.reap()
		cp.releasePort()
	})
}

// StopComponent kills a component, as a crash would, and returns when it is gone. A component that does not run stays so.
func (cp *ControlPlane) StopComponent(name string) error {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	c, err := cp.component(name)
	if err != nil {
		return err
	}
	c.stop()
	return nil
}

// StartComponent starts a component that was stopped, with the data it had, and returns when it is ready.
func (cp *ControlPlane) StartComponent(ctx context.Context, name string) error {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	c, err := cp.component(name)
	if err != nil {
		return err
	}
	return c.start(ctx, cp.launcher)
}

// RestartAPIServer kills the API server and returns when a new one is ready at the same address.
func (cp *ControlPlane) RestartAPIServer(ctx context.Context) error {
	if err := cp.StopComponent(APIServer); err != nil {
		return err
	}
	return cp.StartComponent(ctx, APIServer)
}

func (cp *ControlPlane) component(name string) (*component, error) {
	for _, c := range cp.components {
		if c.name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("the control plane has no component %q, or is stopped", name)
}

// died returns an error if a component ended without being stopped.
func (cp *ControlPlane) died() error {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	for _, c := range cp.components {
		if err := c.died(); err != nil {
			return err
		}
	}
	return nil
}

// Dir returns the folder of the control plane, which has everything that it writes.
func (cp *ControlPlane) Dir() string { return cp.dir }

// Config returns a client configuration of a user in system:masters, without a limit on the rate of requests.
func (cp *ControlPlane) Config() *rest.Config { return rest.CopyConfig(cp.config) }

// ConfigFor returns a client configuration of a user with no more rights than RBAC gives to it and to its groups.
// The group system:authenticated, and those of a service account (system:serviceaccount:NAMESPACE:NAME), need not be
// given, unless other groups are.
func (cp *ControlPlane) ConfigFor(user string, groups ...string) *rest.Config {
	config := cp.Config()
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	return config
}

// Kubeconfig returns the path of a kubeconfig for Config. Its context is called gpupack.
func (cp *ControlPlane) Kubeconfig() string { return filepath.Join(cp.dir, "kubeconfig") }

// KubeconfigFor writes a kubeconfig for ConfigFor, and returns its path.
func (cp *ControlPlane) KubeconfigFor(user string, groups ...string) (string, error) {
	f, err := os.CreateTemp(cp.dir, "kubeconfig-")
	if err != nil {
		return "", fmt.Errorf("write the kubeconfig of %s: %w", user, err)
	}
	defer f.Close()
	kubeconfig := cp.kubeconfig.DeepCopy()
	for _, auth := range kubeconfig.AuthInfos {
		auth.Impersonate, auth.ImpersonateGroups = user, groups
	}
	if err := clientcmd.WriteToFile(*kubeconfig, f.Name()); err != nil {
		return "", fmt.Errorf("write the kubeconfig of %s: %w", user, err)
	}
	return f.Name(), nil
}

// etcdReady asks etcd for its health over its socket.
func (cp *ControlPlane) etcdReady(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(cp.dir, etcdSocket))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://etcd/health", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd's health: %s", resp.Status)
	}
	return nil
}

func (cp *ControlPlane) apiServerReady(ctx context.Context) error {
	if err := cp.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
		return err
	}
	_, err := cp.client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
	return err
}

func (cp *ControlPlane) defaultServiceAccountExists(ctx context.Context) error {
	_, err := cp.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
	return err
}
