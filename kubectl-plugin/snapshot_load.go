// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podgroupv1alpha1 "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// loadSnapshot reads a file that kubectl gpupack snapshot wrote, or a v1 List of such objects as kubectl get prints it.
func loadSnapshot(path string) (*snapshot, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s, err := parseSnapshot(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

const howToSnapshot = `take one with "kubectl gpupack snapshot"`

func parseSnapshot(data []byte) (*snapshot, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("the file is empty: " + howToSnapshot)
	}
	data, err := toJSON(data)
	if err != nil {
		return nil, err
	}
	var list struct {
		metav1.TypeMeta `json:",inline"`
		TakenAt         metav1.MicroTime  `json:"takenAt"`
		Items           []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("not a snapshot: %w", err)
	}
	ours := list.Kind == kindSnapshot && list.APIVersion == apiVersion
	if !ours && (list.Kind != "List" || list.APIVersion != "v1") {
		return nil, fmt.Errorf("not a snapshot: it is of kind %q of %q, want %s of %s; %s", list.Kind, list.APIVersion, kindSnapshot,
			apiVersion, howToSnapshot)
	}
	s := &snapshot{now: list.TakenAt.Time}
	for i, item := range list.Items {
		if err := s.add(item); err != nil {
			return nil, fmt.Errorf("item %d of the list: %w", i+1, err)
		}
	}
	if len(s.nodes) == 0 {
		return nil, errors.New("there are no nodes in it: " + howToSnapshot)
	}
	s.sort()
	for i := 1; i < len(s.nodes); i++ {
		if s.nodes[i].Name == s.nodes[i-1].Name {
			return nil, fmt.Errorf("node %q is in it twice", s.nodes[i].Name)
		}
	}
	if s.now.IsZero() {
		s.now = s.newestReading()
	}
	return s, nil
}

// toJSON turns YAML into JSON and says on which line there is neither.
func toJSON(data []byte) ([]byte, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		out, err := yaml.YAMLToJSON(data)
		if err != nil {
			return nil, fmt.Errorf("neither YAML nor JSON: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		}
		return out, nil
	}
	var bad *json.SyntaxError
	if err := json.Unmarshal(data, new(json.RawMessage)); errors.As(err, &bad) {
		return nil, fmt.Errorf("no JSON: line %d: %w", 1+bytes.Count(data[:bad.Offset], []byte("\n")), err)
	}
	return data, nil
}

// add takes an object into the snapshot; of kinds that no decision depends on, it takes none.
func (s *snapshot) add(data []byte) error {
	var meta metav1.PartialObjectMetadata
	if err := json.Unmarshal(data, &meta); err != nil {
		return err
	}
	var err error
	switch meta.GroupVersionKind() {
	case corev1.SchemeGroupVersion.WithKind("Node"):
		s.nodes, err = decoded(s.nodes, data)
	case v1alpha1.SchemeGroupVersion.WithKind("GPUNode"):
		s.gpuNodes, err = decoded(s.gpuNodes, data)
	case podgroupv1alpha1.SchemeGroupVersion.WithKind("PodGroup"):
		s.podGroups, err = decoded(s.podGroups, data)
	case schedulingv1.SchemeGroupVersion.WithKind("PriorityClass"):
		s.priorityClasses, err = decoded(s.priorityClasses, data)
	case corev1.SchemeGroupVersion.WithKind("ConfigMap"):
		if meta.Namespace != v1alpha1.SystemNamespace || meta.Name != v1alpha1.WorkloadClassesConfigMap {
			return nil
		}
		s.workloadClasses = &corev1.ConfigMap{}
		err = json.Unmarshal(data, s.workloadClasses)
	case corev1.SchemeGroupVersion.WithKind("Pod"):
		if s.pods, err = decoded(s.pods, data); err != nil {
			break
		}
		pod := &s.pods[len(s.pods)-1]
		if pod.UID == "" {
			pod.UID = types.UID(pod.Namespace + "/" + pod.Name)
		}
		if !matters(pod) {
			s.pods = s.pods[:len(s.pods)-1]
		}
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", meta.Kind, strings.TrimPrefix(meta.Namespace+"/"+meta.Name, "/"), err)
	}
	if meta.Name == "" {
		return fmt.Errorf("a %s has no name", meta.Kind)
	}
	return nil
}

func decoded[T any](list []T, data []byte) ([]T, error) {
	var object T
	if err := json.Unmarshal(data, &object); err != nil {
		return list, err
	}
	return append(list, object), nil
}

// newestReading is the time of a list that does not tell its time.
func (s *snapshot) newestReading() time.Time {
	var newest time.Time
	for i := range s.gpuNodes {
		if t := s.gpuNodes[i].Status.ObservedTime; t != nil && t.After(newest) {
			newest = t.Time
		}
	}
	return newest
}
