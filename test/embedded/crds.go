// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"context"
	"errors"
	"fmt"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// InstallCRDs applies the CustomResourceDefinitions in YAML files and returns when their resources are served. Those that
// exist already are updated.
func (cp *ControlPlane) InstallCRDs(ctx context.Context, paths ...string) error {
	client, err := apiextensions.NewForConfig(cp.config)
	if err != nil {
		return err
	}
	resources, err := dynamic.NewForConfig(cp.config)
	if err != nil {
		return err
	}
	var crds []*apiextensionsv1.CustomResourceDefinition
	for _, path := range paths {
		inFile, err := readCRDs(path)
		if err != nil {
			return fmt.Errorf("read CRDs from %s: %w", path, err)
		}
		crds = append(crds, inFile...)
	}
	for _, crd := range crds {
		data, err := yaml.Marshal(crd)
		if err != nil {
			return err
		}
		_, err = client.ApiextensionsV1().CustomResourceDefinitions().Patch(ctx, crd.Name, types.ApplyYAMLPatchType, data,
			metav1.PatchOptions{FieldManager: "gpupack-embedded", Force: ptr.To(true)})
		if err != nil {
			return fmt.Errorf("apply CRD %s: %w", crd.Name, err)
		}
	}
	for _, crd := range crds {
		if err := waitServed(ctx, resources, crd); err != nil {
			return fmt.Errorf("wait until CRD %s is served: %w", crd.Name, err)
		}
	}
	return nil
}

// waitServed waits until the resource can be listed, which is the case a moment after the CRD is Established.
func waitServed(ctx context.Context, client dynamic.Interface, crd *apiextensionsv1.CustomResourceDefinition) error {
	for _, v := range crd.Spec.Versions {
		if !v.Served {
			continue
		}
		resource := client.Resource(schema.GroupVersionResource{
			Group: crd.Spec.Group, Version: v.Name, Resource: crd.Spec.Names.Plural})
		var last error
		err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, readyTimeout, true, func(ctx context.Context) (bool, error) {
			_, last = resource.List(ctx, metav1.ListOptions{Limit: 1})
			return last == nil, nil
		})
		if err != nil {
			return errors.Join(err, last)
		}
	}
	return nil
}

func readCRDs(path string) ([]*apiextensionsv1.CustomResourceDefinition, error) {
	var crds []*apiextensionsv1.CustomResourceDefinition
	err := eachDocument(path, func(doc []byte) error {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(doc, crd); err != nil {
			return err
		}
		switch crd.Kind {
		case "CustomResourceDefinition":
			crds = append(crds, crd)
		case "": // a document of comments only
		default:
			return fmt.Errorf("%s %q is not a CustomResourceDefinition", crd.Kind, crd.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return crds, nil
}
