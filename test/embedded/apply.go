// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// Apply applies the objects in YAML files, in the order in which they stand there. Custom resources must be served already.
func (cp *ControlPlane) Apply(ctx context.Context, paths ...string) error {
	groups, err := restmapper.GetAPIGroupResources(cp.client.Discovery())
	if err != nil {
		return err
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	client, err := dynamic.NewForConfig(cp.config)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := applyFile(ctx, client, mapper, path); err != nil {
			return fmt.Errorf("apply %s: %w", path, err)
		}
	}
	return nil
}

func applyFile(ctx context.Context, client dynamic.Interface, mapper meta.RESTMapper, path string) error {
	return eachDocument(path, func(doc []byte) error {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &object.Object); err != nil {
			return err
		}
		if len(object.Object) == 0 {
			return nil // a document of comments only
		}
		kind := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if meta.IsNoMatchError(err) {
			return fmt.Errorf("the API server does not know %s", kind)
		}
		if err != nil {
			return err
		}
		_, err = client.Resource(mapping.Resource).Namespace(object.GetNamespace()).Apply(ctx, object.GetName(), object,
			metav1.ApplyOptions{FieldManager: "gpupack-embedded", Force: true})
		return err
	})
}

// eachDocument calls do for each document of a YAML file, until one fails.
func eachDocument(path string, do func(doc []byte) error) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data))); ; {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := do(doc); err != nil {
			return err
		}
	}
}
