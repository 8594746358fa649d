// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/agent/fleet"
	"github.com/gpupack/gpupack/kubectl-plugin/trace"
	"github.com/gpupack/gpupack/test/embedded"
)

// demo is a run of the demo and what it started.
type demo struct {
	options

	pools        []*pool
	controlPlane *embedded.ControlPlane
	client       kubernetes.Interface
	dynamic      dynamic.Interface
	stopFleet    func() error
	// programs are the schedulers and gpupack-controller.
	programs []*process

	// chatGPUs is how many GPUs only the Deployment was on, by pool and number of replicas.
	chatGPUs map[*pool]map[int32]int
}

const (
	scheduler  = "bin/gpupack-scheduler"
	controller = "bin/gpupack-controller"
	plugin     = "bin/kubectl-gpupack"
)

// run does everything up to the last promise. What it started goes on until stop.
func (d *demo) run(ctx context.Context) error {
	start := time.Now()
	d.pools = []*pool{gpupackPool, defaultPool}
	if d.short {
		d.pools = d.pools[:1]
	}
	d.chatGPUs = map[*pool]map[int32]int{}

	nodes, err := trace.ReadNodes("test/fixtures/openb/nodes.csv")
	if err != nil {
		return err
	}
	tasks, err := trace.ReadTasks("test/fixtures/openb/tasks.csv")
	if err != nil {
		return err
	}
	if err := d.startCluster(ctx, nodes); err != nil {
		return err
	}
	if err := d.submit(ctx, tasks); err != nil {
		return err
	}
	if err := d.report(ctx); err != nil {
		return err
	}
	fmt.Printf("\nEverything took %.0f s.\n", time.Since(start).Seconds())
	return nil
}

func (d *demo) startCluster(ctx context.Context, nodes []trace.Node) error {
	err := step("build the control plane's programs, which takes some minutes the first time", func() (string, error) {
		_, err := embedded.Build(ctx, indented{os.Stdout})
		return "", err
	})
	if err != nil {
		return err
	}
	err = step("build gpupack-scheduler, gpupack-controller, gpupack-agent and kubectl-gpupack", func() (string, error) {
		_, err := command(ctx, "make", "--no-print-directory", "build")
		return "", err
	})
	if err != nil {
		return err
	}
	err = step("start etcd, kube-apiserver, kube-controller-manager and kwok", func() (string, error) {
		return "", d.startControlPlane(ctx)
	})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("create %d nodes of the openb trace and publish what their GPUs read", len(nodes))
	if len(d.pools) > 1 {
		what += ", twice: for gpupack and for kube-scheduler's default profile"
	}
	err = step(what, func() (string, error) { return d.startFleet(ctx, nodes) })
	if err != nil {
		return err
	}
	return step("start the schedulers and gpupack-controller", func() (string, error) {
		if err := d.startSchedulers(); err != nil {
			return "", err
		}
		return "", d.startController()
	})
}

func (d *demo) startControlPlane(ctx context.Context) error {
	var err error
	d.controlPlane, err = embedded.Start(ctx, embedded.Options{ControllerManager: true, Kwok: true})
	if err != nil {
		return err
	}
	if d.client, err = kubernetes.NewForConfig(d.controlPlane.Config()); err != nil {
		return err
	}
	if d.dynamic, err = dynamic.NewForConfig(d.controlPlane.Config()); err != nil {
		return err
	}
	crds, err := filepath.Glob("manifests/base/crds/*.yaml")
	if err != nil {
		return err
	}
	if err := d.controlPlane.InstallCRDs(ctx, crds...); err != nil {
		return err
	}
	if err := d.controlPlane.Apply(ctx, "manifests/base/namespace.yaml", "manifests/base/rbac.yaml",
		"manifests/base/controller-rbac.yaml"); err != nil {
		return err
	}
	for _, p := range d.pools {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.namespace}}
		if _, err := d.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// startFleet returns when every node is ready and has a GPUNode.
func (d *demo) startFleet(ctx context.Context, nodes []trace.Node) (outcome string, err error) {
	s, err := scenario(nodes, d.pools)
	if err != nil {
		return "", err
	}
	f, err := fleet.New(d.controlPlane.Config(), s, fleet.Options{})
	if err != nil {
		return "", err
	}
	if err := f.CreateNodes(ctx); err != nil {
		return "", err
	}
	// The fleet goes on when ctx ends, for the order of things at the end is stop's.
	fleetCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- f.Run(fleetCtx) }()
	d.stopFleet = func() error {
		cancel()
		return <-ended
	}
	ctx, cancelWait := context.WithTimeout(ctx, time.Minute)
	defer cancelWait()
	if err := f.WaitPublished(ctx); err != nil {
		return "", err
	}
	for {
		list, err := d.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		ready, gpus := 0, 0
		for i := range list.Items {
			if nodeReady(&list.Items[i]) {
				ready++
			}
		}
		for i := range s.Nodes {
			gpus += s.Nodes[i].GPUCount()
		}
		if ready == len(s.Nodes) {
			return fmt.Sprintf("%d GPUs on %d nodes in each pool", gpus/len(d.pools), len(nodes)), nil
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return "", fmt.Errorf("%d of %d nodes are ready: %w", ready, len(s.Nodes), err)
		}
	}
}

func nodeReady(node *corev1.Node) bool {
	if len(node.Spec.Taints) > 0 {
		return false
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// startSchedulers starts gpupack-scheduler with the configuration and the rights that manifests/base gives to it, and again
// as kube-scheduler, which it is where no profile names our plugin.
func (d *demo) startSchedulers() error {
	data, err := os.ReadFile("manifests/base/scheduler-config.yaml")
	if err != nil {
		return err
	}
	shipped := map[string]any{}
	if err := yaml.Unmarshal(data, &shipped); err != nil {
		return fmt.Errorf("manifests/base/scheduler-config.yaml: %w", err)
	}
	for _, p := range d.pools {
		name, user, config := "gpupack-scheduler", "system:serviceaccount:gpupack-system:gpupack-scheduler", shipped
		if p != gpupackPool {
			name, user = "kube-scheduler", "system:kube-scheduler"
			config = map[string]any{"apiVersion": shipped["apiVersion"], "kind": shipped["kind"]}
		}
		kubeconfig, err := d.controlPlane.KubeconfigFor(user)
		if err != nil {
			return err
		}
		connection, _ := shipped["clientConnection"].(map[string]any)
		if connection == nil {
			connection = map[string]any{}
		}
		connection["kubeconfig"] = kubeconfig
		config["clientConnection"] = connection
		config["leaderElection"] = map[string]any{"leaderElect": false}
		data, err := yaml.Marshal(config)
		if err != nil {
			return err
		}
		path := filepath.Join(d.controlPlane.Dir(), name+".yaml")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
		// Nobody asks for its metrics.
		s, err := startProcess(name, d.controlPlane.Dir(), scheduler, "--config="+path, "--secure-port=0")
		if err != nil {
			return err
		}
		d.programs = append(d.programs, s)
	}
	return nil
}

// startController starts gpupack-controller with the rights that manifests/base gives to it. It waits for less time than it does by
// default until it takes a node for lost.
func (d *demo) startController() error {
	kubeconfig, err := d.controlPlane.KubeconfigFor("system:serviceaccount:gpupack-system:gpupack-controller")
	if err != nil {
		return err
	}
	p, err := startProcess("gpupack-controller", d.controlPlane.Dir(), controller, "--kubeconfig="+kubeconfig, "--leader-elect=false",
		"--metrics-bind-address=0", "--health-probe-bind-address=0", "--node-not-ready-after="+nodeLostAfter.String())
	if err != nil {
		return err
	}
	d.programs = append(d.programs, p)
	return nil
}

func (d *demo) submit(ctx context.Context, tasks []trace.Task) error {
	half := len(tasks) / 2
	err := step(fmt.Sprintf("submit %d tasks of the trace", half), func() (string, error) {
		err := createPods(ctx, d.client, d.pools, func(p *pool) []*corev1.Pod { return p.taskPods(tasks[:half]) })
		if err != nil {
			return "", err
		}
		return d.settle(ctx)
	})
	if err != nil {
		return err
	}
	err = step(fmt.Sprintf("submit a training gang of %d x %d GPUs", gangMembers, gangGPUs), func() (string, error) {
		for _, p := range d.pools {
			if err := createGang(ctx, d.dynamic, p.namespace); err != nil {
				return "", err
			}
		}
		if err := createPods(ctx, d.client, d.pools, (*pool).gangPods); err != nil {
			return "", err
		}
		return d.settle(ctx)
	})
	if err != nil {
		return err
	}
	if err := step(fmt.Sprintf("let the node of %s die for a while", memberName(0)), func() (string, error) { return d.loseNode(ctx) }); err != nil {
		return err
	}
	what := fmt.Sprintf("submit %d pods that each want all %d GPUs of a %s node, of which one has a sick GPU and one foreign memory",
		finetunePods, finetuneGPUs, finetuneModel)
	err = step(what, func() (string, error) {
		if err := createPods(ctx, d.client, d.pools, (*pool).finetunePods); err != nil {
			return "", err
		}
		return d.settle(ctx)
	})
	if err != nil {
		return err
	}
	err = step(fmt.Sprintf("deploy %s, 2 replicas of 8 GiB of a GPU each", chatName), func() (string, error) {
		for _, p := range d.pools {
			if err := p.createChat(ctx, d.client, 2); err != nil {
				return "", err
			}
		}
		return d.settleChat(ctx, 2)
	})
	if err != nil {
		return err
	}
	if !d.short {
		err = step(fmt.Sprintf("submit the other %d tasks of the trace", len(tasks)-half), func() (string, error) {
			err := createPods(ctx, d.client, d.pools, func(p *pool) []*corev1.Pod { return p.taskPods(tasks[half:]) })
			if err != nil {
				return "", err
			}
			return d.settle(ctx)
		})
		if err != nil {
			return err
		}
	}
	for _, replicas := range []int32{12, 4} {
		err = step(fmt.Sprintf("scale %s to %d replicas", chatName, replicas), func() (string, error) {
			for _, p := range d.pools {
				if err := p.scaleChat(ctx, d.client, replicas); err != nil {
					return "", err
				}
			}
			return d.settleChat(ctx, replicas)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// settleChat waits as settle does, and says on how many GPUs the Deployment then is.
func (d *demo) settleChat(ctx context.Context, replicas int32) (outcome string, err error) {
	if outcome, err = d.settle(ctx); err != nil {
		return "", err
	}
	var where []string
	for _, p := range d.pools {
		state, err := d.readPool(ctx, p)
		if err != nil {
			return "", err
		}
		if d.chatGPUs[p] == nil {
			d.chatGPUs[p] = map[int32]int{}
		}
		_, gpus, alone := state.app(chatName)
		d.chatGPUs[p][replicas] = alone
		where = append(where, fmt.Sprintf("%s on %d GPUs, %d of them to itself", chatName, gpus, alone))
	}
	return outcome + "; " + strings.Join(where, " and "), nil
}

// died returns an error if a program has ended.
func (d *demo) died() error {
	var errs []error
	for _, s := range d.programs {
		errs = append(errs, s.died())
	}
	return errors.Join(errs...)
}

// watch returns when ctx ends, or when a program does.
func (d *demo) watch(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := d.died(); err != nil {
			return err
		}
		_ = sleep(ctx, time.Second)
	}
	return nil
}

// stop ends everything and removes the folder of the control plane, with the logs and the configuration of the programs.
func (d *demo) stop() {
	for _, s := range d.programs {
		s.stop()
	}
	if d.stopFleet != nil {
		_ = d.stopFleet()
	}
	if d.controlPlane != nil {
		d.controlPlane.Stop()
	}
}

// indented writes lines below a step's first.
type indented struct{ io.Writer }

func (w indented) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if _, err := io.WriteString(w.Writer, "    "+line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
