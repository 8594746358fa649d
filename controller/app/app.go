// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package app is the command gpupack-controller.
package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	schedulingv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	"github.com/gpupack/gpupack/api/v1alpha1"
	"github.com/gpupack/gpupack/controller/deletioncost"
	"github.com/gpupack/gpupack/controller/members"
	"github.com/gpupack/gpupack/controller/podgroup"
	"github.com/gpupack/gpupack/controller/repair"
	"github.com/gpupack/gpupack/internal/daemon"
)

const name = "gpupack-controller"

type options struct {
	kubeconfig     string
	leaderElect    bool
	leaseNamespace string
	leaseName      string
	metricsAddress string
	probeAddress   string
	qps            float32
	burst          int
	workers        int
	schedulers     []string
	repair         repair.Options
	costInterval   time.Duration
}

// AddFlags implements daemon.Options.
func (o *options) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.kubeconfig, "kubeconfig", o.kubeconfig, "kubeconfig file; by default that of the environment, or the pod's service account")
	flags.BoolVar(&o.leaderElect, "leader-elect", o.leaderElect, "work only while holding the lease, so that several replicas can run")
	flags.StringVar(&o.leaseNamespace, "leader-elect-resource-namespace", o.leaseNamespace, "namespace of the lease")
	flags.StringVar(&o.leaseName, "leader-elect-resource-name", o.leaseName, "name of the lease")
	flags.StringVar(&o.metricsAddress, "metrics-bind-address", o.metricsAddress, "where /metrics is served, over HTTP; 0 for nowhere")
	flags.StringVar(&o.probeAddress, "health-probe-bind-address", o.probeAddress, "where /healthz and /readyz are served, over HTTP; 0 for nowhere")
	flags.Float32Var(&o.qps, "kube-api-qps", o.qps, "requests a second to the API server")
	flags.IntVar(&o.burst, "kube-api-burst", o.burst, "requests to the API server in a burst")
	flags.IntVar(&o.workers, "workers", o.workers, "gangs looked at at once")
	flags.StringSliceVar(&o.schedulers, "scheduler-name", o.schedulers, "the spec.schedulerName of pods whose gangs are looked after; may be repeated")
	flags.DurationVar(&o.repair.NotReadyAfter, "node-not-ready-after", o.repair.NotReadyAfter, "how long a node must not be ready until its pods count as lost")
	flags.DurationVar(&o.repair.BackoffBase, "repair-backoff", o.repair.BackoffBase, "how long a gang's first repair waits after a loss; each further one waits twice as long")
	flags.DurationVar(&o.repair.BackoffMax, "repair-backoff-max", o.repair.BackoffMax, "how long a repair waits at most")
	flags.IntVar(&o.repair.MaxRestarts, "max-restarts", o.repair.MaxRestarts, "how often a gang is repaired until it is left as it is; a PodGroup's annotation gpupack.dev/max-restarts goes first")
	flags.DurationVar(&o.repair.ResetAfter, "restarts-reset-after", o.repair.ResetAfter, "how long a gang must run whole until its repairs are forgotten")
	flags.DurationVar(&o.costInterval, "deletion-cost-interval", o.costInterval, "how often the deletion costs of one ReplicaSet's pods change at most, for templates annotated with "+v1alpha1.AnnotationScaleDown+"; 0 never sets them")
}

// Validate implements daemon.Options.
func (o *options) Validate() error {
	for flag, d := range map[string]time.Duration{
		"node-not-ready-after": o.repair.NotReadyAfter, "repair-backoff": o.repair.BackoffBase, "restarts-reset-after": o.repair.ResetAfter,
	} {
		if d <= 0 {
			return fmt.Errorf("--%s=%s must be above 0", flag, d)
		}
	}
	switch {
	case o.repair.BackoffMax < o.repair.BackoffBase:
		return fmt.Errorf("--repair-backoff-max=%s must not be below --repair-backoff=%s", o.repair.BackoffMax, o.repair.BackoffBase)
	case o.repair.MaxRestarts < 0:
		return fmt.Errorf("--max-restarts=%d must not be below 0", o.repair.MaxRestarts)
	case o.costInterval < 0:
		return fmt.Errorf("--deletion-cost-interval=%s must not be below 0", o.costInterval)
	case o.workers < 1:
		return fmt.Errorf("--workers=%d must be above 0", o.workers)
	case o.qps <= 0 || o.burst <= 0:
		return fmt.Errorf("--kube-api-qps=%g and --kube-api-burst=%d must be above 0", o.qps, o.burst)
	case len(o.schedulers) == 0:
		return errors.New("--scheduler-name must name a scheduler, such as " + v1alpha1.SchedulerName)
	case o.leaderElect && (o.leaseNamespace == "" || o.leaseName == ""):
		return errors.New("--leader-elect needs --leader-elect-resource-namespace and --leader-elect-resource-name")
	}
	return nil
}

// NewCommand returns the command.
func NewCommand() *cobra.Command {
	o := &options{
		leaderElect:    true,
		leaseNamespace: v1alpha1.SystemNamespace,
		leaseName:      name,
		metricsAddress: ":8080",
		probeAddress:   ":8081",
		qps:            500,
		burst:          1000,
		workers:        8,
		schedulers:     []string{v1alpha1.SchedulerName},
		costInterval:   30 * time.Second,
		repair: repair.Options{
			NotReadyAfter: 30 * time.Second,
			BackoffBase:   time.Second,
			BackoffMax:    5 * time.Minute,
			MaxRestarts:   10,
			ResetAfter:    10 * time.Minute,
		},
	}
	return daemon.NewCommand(name, "Keeps the status of PodGroups true, repairs gangs that have lost a member, and makes scale-down free whole GPUs", o)
}

// Run implements daemon.Options.
func (o *options) Run(ctx context.Context) error {
	cfg, err := daemon.RESTConfig(o.kubeconfig, name)
	if err != nil {
		return err
	}
	cfg.QPS, cfg.Burst = o.qps, o.burst
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	utilruntime.Must(schedulingv1alpha1.AddToScheme(scheme))
	ctrl.SetLogger(klog.Background())

	mgr, err := ctrl.NewManager(cfg, manager.Options{
		Scheme:                        scheme,
		Cache:                         cacheOptions(),
		Metrics:                       metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress:        o.probeAddress,
		LeaderElection:                o.leaderElect,
		LeaderElectionNamespace:       o.leaseNamespace,
		LeaderElectionID:              o.leaseName,
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return fmt.Errorf("set up the controller: %w", err)
	}
	if err := requireCRDs(mgr.GetRESTMapper()); err != nil {
		return err
	}
	if err := errors.Join(members.Index(ctx, mgr.GetFieldIndexer()), deletioncost.Index(ctx, mgr.GetFieldIndexer())); err != nil {
		return fmt.Errorf("index pods: %w", err)
	}
	status := &podgroup.Reconciler{Client: mgr.GetClient(), Clock: clock.RealClock{}, Schedulers: o.schedulers, Workers: o.workers}
	if err := status.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("set up the status of PodGroups: %w", err)
	}
	repairs := &repair.Reconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: mgr.GetEventRecorderFor(name), Clock: clock.RealClock{},
		Schedulers: o.schedulers, Workers: o.workers, Options: o.repair,
	}
	if err := repairs.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("set up the repair of gangs: %w", err)
	}
	if o.costInterval > 0 {
		costs := &deletioncost.Reconciler{
			Client: mgr.GetClient(), Events: mgr.GetEventRecorderFor(name), Clock: clock.RealClock{}, Workers: o.workers, Interval: o.costInterval,
		}
		if err := costs.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("set up the costs of deletion: %w", err)
		}
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("ping", healthz.Ping)); err != nil {
		return fmt.Errorf("set up health checks: %w", err)
	}
	klog.InfoS("Starting", "version", version.Get().GitVersion, "leaderElect", o.leaderElect)
	return mgr.Start(ctx)
}

// requireCRDs fails if the API server lacks what the controller watches.
func requireCRDs(mapper meta.RESTMapper) error {
	for _, kind := range []schema.GroupVersionKind{
		schedulingv1alpha1.SchemeGroupVersion.WithKind("PodGroup"),
		v1alpha1.SchemeGroupVersion.WithKind("GPUNode"),
	} {
		_, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if meta.IsNoMatchError(err) {
			return fmt.Errorf("the API server has no %s of %s: apply the CRDs in manifests/base/crds first", kind.Kind, kind.GroupVersion())
		}
		if err != nil {
			return fmt.Errorf("ask the API server for %s of %s: %w", kind.Kind, kind.GroupVersion(), err)
		}
	}
	return nil
}

// cacheOptions keep only what is read.
func cacheOptions() cache.Options {
	having := func(label string) labels.Selector {
		r, err := labels.NewRequirement(label, selection.Exists, nil)
		utilruntime.Must(err)
		return labels.NewSelector().Add(*r)
	}
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:         {Transform: trimPod},
			&corev1.PodTemplate{}: {Label: having(v1alpha1.LabelRepairOf)},
			&corev1.Node{}:        {Transform: trimNode},
		},
	}
}
