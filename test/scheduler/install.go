// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/test/embedded"
)

// Install applies from manifests/base what the scheduler needs: CRDs, namespace and rights.
func Install(ctx context.Context, cp *embedded.ControlPlane) error {
	base := filepath.Join(root, "manifests", "base")
	crds, err := filepath.Glob(filepath.Join(base, "crds", "*.yaml"))
	if err != nil {
		return err
	}
	if err := cp.InstallCRDs(ctx, crds...); err != nil {
		return err
	}
	for _, file := range []string{"namespace.yaml", "rbac.yaml"} {
		if err := apply(ctx, cp, filepath.Join(base, file)); err != nil {
			return fmt.Errorf("applying %s: %w", file, err)
		}
	}
	return nil
}

func apply(ctx context.Context, cp *embedded.ControlPlane, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cp.Config())
	if err != nil {
		return err
	}
	groups, err := restmapper.GetAPIGroupResources(disco)
	if err != nil {
		return err
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	client, err := dynamic.NewForConfig(cp.Config())
	if err != nil {
		return err
	}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		obj := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &obj.Object); err != nil {
			return err
		}
		if len(obj.Object) == 0 {
			continue
		}
		gvk := obj.GroupVersionKind()
		mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return err
		}
		if _, err := client.Resource(mapping.Resource).Namespace(obj.GetNamespace()).Apply(ctx, obj.GetName(), obj,
			metav1.ApplyOptions{FieldManager: "gpupack-test", Force: true}); err != nil {
			return err
		}
	}
}
