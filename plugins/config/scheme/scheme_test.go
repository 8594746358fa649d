// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package scheme

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	schedulerv1 "k8s.io/kube-scheduler/config/v1"
	schedulerconfig "k8s.io/kubernetes/pkg/scheduler/apis/config"
	schedulerscheme "k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/validation"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/plugins/config"
	configv1 "github.com/gpupack/gpupack/plugins/config/v1"
)

// configuration wraps the lines of the plugin's args in a whole KubeSchedulerConfiguration.
func configuration(args string) []byte {
	return []byte(`apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: gpupack
  plugins:
    multiPoint:
      enabled:
      - name: GPUPack
        weight: 100
  pluginConfig:
  - name: GPUPack
    args:
      apiVersion: kubescheduler.config.k8s.io/v1
      kind: GPUPackArgs
` + args)
}

func decode(t *testing.T, data []byte) (*schedulerconfig.KubeSchedulerConfiguration, error) {
	t.Helper()
	obj, gvk, err := schedulerscheme.Codecs.UniversalDecoder().Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	cfg, ok := obj.(*schedulerconfig.KubeSchedulerConfiguration)
	require.True(t, ok, "decoded a %s into %T", gvk, obj)
	return cfg, nil
}

func argsOf(t *testing.T, cfg *schedulerconfig.KubeSchedulerConfiguration) *config.GPUPackArgs {
	t.Helper()
	for _, c := range cfg.Profiles[0].PluginConfig {
		if c.Name == "GPUPack" {
			args, ok := c.Args.(*config.GPUPackArgs)
			require.True(t, ok, "the plugin's args are %T", c.Args)
			return args
		}
	}
	require.Fail(t, "the profile has no args of GPUPack")
	return nil
}

func defaults() *config.GPUPackArgs {
	return &config.GPUPackArgs{
		Policy:             "gpupack",
		LoadWeight:         50,
		StaleAfter:         metav1.Duration{Duration: 3 * time.Minute},
		StalePolicy:        convert.StaleTrustRequests,
		WholeGPUForeignMiB: 512,
		GangTimeout:        metav1.Duration{Duration: time.Minute},
		ReserveAfter:       metav1.Duration{Duration: 5 * time.Minute},
		MaxReservations:    2,
		TopologyDomains: map[string]string{
			"zone": "topology.kubernetes.io/zone", "rack": "topology.kubernetes.io/rack", "nvlink": "nvidia.com/gpu.clique",
		},
	}
}

func TestDecode(t *testing.T) {
	tests := []struct {
		name string
		args string
		want func(*config.GPUPackArgs)
	}{
		{"all left out", "", func(*config.GPUPackArgs) {}},
		{"all set", `
      policy: fgd
      loadWeight: 200
      staleAfter: 90s
      stalePolicy: Reject
      wholeGPUForeignMiB: 1024
      gangTimeout: 2m30s
      reserveAfter: 10m
      maxReservations: 4
      topologyDomains: {row: example.com/row}
`, func(a *config.GPUPackArgs) {
			a.LoadWeight, a.StalePolicy, a.WholeGPUForeignMiB = 200, convert.StaleReject, 1024
			a.StaleAfter.Duration, a.GangTimeout.Duration = 90*time.Second, 150*time.Second
			a.ReserveAfter.Duration, a.MaxReservations = 10*time.Minute, 4
			a.Policy, a.TopologyDomains = "fgd", map[string]string{"row": "example.com/row"}
		}},
		{"zero is no default", `
      loadWeight: 0
      wholeGPUForeignMiB: 0
      reserveAfter: 0s
`, func(a *config.GPUPackArgs) { a.LoadWeight, a.WholeGPUForeignMiB, a.ReserveAfter.Duration = 0, 0, 0 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := decode(t, configuration(tt.args))
			require.NoError(t, err)
			want := defaults()
			tt.want(want)
			got := argsOf(t, cfg)
			assert.Equal(t, want, got)
			assert.Empty(t, got.Validate(nil))
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	tests := []struct{ name, args, err string }{
		{"an unknown field", "      loadWieght: 5\n", `strict decoding error: decoding .profiles[0].pluginConfig[0]: strict decoding error: decoding args for plugin GPUPack: strict decoding error: unknown field "loadWieght"`},
		{"a field twice", "      loadWeight: 5\n      loadWeight: 6\n", `"loadWeight" already set`},
		{"a weight that is no number", "      loadWeight: heavy\n", "cannot unmarshal string into Go struct field GPUPackArgs.loadWeight"},
		{"a fraction", "      loadWeight: 0.5\n", "cannot unmarshal number 0.5 into Go struct field GPUPackArgs.loadWeight"},
		{"a duration without unit", "      staleAfter: \"180\"\n", "missing unit in duration"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decode(t, configuration(tt.args))
			require.ErrorContains(t, err, tt.err)
		})
	}
}

// A wrong weight passes decoding and is refused with the field's path.
func TestDecodedWrongWeight(t *testing.T) {
	cfg, err := decode(t, configuration("      loadWeight: -5\n"))
	require.NoError(t, err)
	err = argsOf(t, cfg).Validate(nil).ToAggregate()
	require.EqualError(t, err, "loadWeight: Invalid value: -5: must be a percentage from 0 to 1000")
}

func TestRoundTrip(t *testing.T) {
	for _, args := range []*config.GPUPackArgs{
		defaults(),
		{
			Policy: "other", LoadWeight: 0, StaleAfter: metav1.Duration{Duration: time.Second}, StalePolicy: convert.StaleTrustTelemetry,
			WholeGPUForeignMiB: 7, GangTimeout: metav1.Duration{Duration: time.Hour}, ReserveAfter: metav1.Duration{Duration: 3}, MaxReservations: 9,
		},
	} {
		var external configv1.GPUPackArgs
		require.NoError(t, schedulerscheme.Scheme.Convert(args, &external, nil))
		var internal config.GPUPackArgs
		require.NoError(t, schedulerscheme.Scheme.Convert(&external, &internal, nil))
		assert.Equal(t, args, &internal)
	}
}

// What kube-scheduler writes with --write-config-to reads back as the same.
func TestEncodeAndDecodeAConfiguration(t *testing.T) {
	cfg, err := decode(t, configuration("      loadWeight: 70\n"))
	require.NoError(t, err)
	info, ok := runtime.SerializerInfoForMediaType(schedulerscheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeYAML)
	require.True(t, ok)
	encoder := schedulerscheme.Codecs.EncoderForVersion(info.Serializer, schedulerv1.SchemeGroupVersion)
	data, err := runtime.Encode(encoder, cfg)
	require.NoError(t, err)
	assert.Contains(t, string(data), "loadWeight: 70")
	assert.Contains(t, string(data), "kind: GPUPackArgs")
	again, err := decode(t, data)
	require.NoError(t, err)
	assert.Equal(t, argsOf(t, cfg), argsOf(t, again))
}

func TestManifestDecodes(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "..", "manifests", "base", "scheduler-config.yaml"))
	require.NoError(t, err)
	cfg, err := decode(t, data)
	require.NoError(t, err)
	require.NoError(t, validation.ValidateKubeSchedulerConfiguration(cfg))
	require.Len(t, cfg.Profiles, 1)
	profile := &cfg.Profiles[0]
	assert.Equal(t, "gpupack", profile.SchedulerName)
	assert.Contains(t, profile.Plugins.MultiPoint.Enabled, schedulerconfig.Plugin{Name: "GPUPack", Weight: 100})
	assert.Equal(t, []schedulerconfig.Plugin{{Name: "NodeResourcesFit"}, {Name: "NodeResourcesBalancedAllocation"}, {Name: "ImageLocality"}},
		profile.Plugins.Score.Disabled, "these would work against the packing")
	seen := 0
	for _, c := range profile.PluginConfig {
		switch args := c.Args.(type) {
		case *schedulerconfig.NodeResourcesFitArgs:
			assert.Equal(t, []string{"gpupack.dev"}, args.IgnoredResourceGroups, "no node lists such resources")
			seen++
		case *schedulerconfig.PodTopologySpreadArgs:
			assert.Equal(t, schedulerconfig.ListDefaulting, args.DefaultingType)
			assert.Empty(t, args.DefaultConstraints)
			seen++
		}
	}
	assert.Equal(t, 2, seen)
}
