// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

// Package publish writes what an agent reads of a node's GPUs to the node's GPUNode: when something worth a write has
// changed, and as a heartbeat.
package publish

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// FieldManager owns the fields that the agent writes.
const FieldManager = "gpupack-agent"

// Reasons of the condition Ready.
const (
	ReasonGPUsRead = "GPUsRead"
	ReasonGPULost  = "GPULost"
)

// Reading is what was read of a node's GPUs at one time.
type Reading struct {
	Time          time.Time
	DriverVersion string
	Source        v1alpha1.Source
	Mode          v1alpha1.Mode
	// GPUs in the order of their indices.
	GPUs []v1alpha1.GPU
}

// Status is the status of a GPUNode with that reading. The conditions of the status before it, which may be nil, say since
// when a condition has been as it is.
func (r *Reading) Status(before []metav1.Condition) v1alpha1.GPUNodeStatus {
	healthy := 0
	model := ""
	var lost []string
	for i := range r.GPUs {
		g := &r.GPUs[i]
		if g.Healthy {
			healthy++
		}
		if g.UnhealthyReason == v1alpha1.ReasonLost || g.UnhealthyReason == v1alpha1.ReasonNotResponding {
			lost = append(lost, g.UUID)
		}
		if i == 0 {
			model = g.Model
		} else if model != g.Model {
			model = "mixed"
		}
	}
	ready := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: ReasonGPUsRead,
		Message: fmt.Sprintf("all %d GPUs are read", len(r.GPUs)), LastTransitionTime: metav1.NewTime(r.Time),
	}
	if len(lost) > 0 {
		ready.Status, ready.Reason = metav1.ConditionFalse, ReasonGPULost
		ready.Message = fmt.Sprintf("%d of %d GPUs cannot be read: %s", len(lost), len(r.GPUs), strings.Join(lost, ", "))
	}
	if old := apimeta.FindStatusCondition(before, ready.Type); old != nil && old.Status == ready.Status {
		ready.LastTransitionTime = old.LastTransitionTime
	}
	observed := metav1.NewMicroTime(r.Time)
	return v1alpha1.GPUNodeStatus{
		ObservedTime:  &observed,
		DriverVersion: r.DriverVersion,
		Source:        r.Source,
		Mode:          r.Mode,
		Summary:       v1alpha1.GPUNodeSummary{GPUs: fmt.Sprintf("%d/%d", healthy, len(r.GPUs)), Model: model},
		GPUs:          r.GPUs,
		Conditions:    []metav1.Condition{ready},
	}
}

// Client writes GPUNodes.
type Client struct{ rest rest.Interface }

// NewClient returns a client for the API server of the configuration.
func NewClient(cfg *rest.Config) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.APIPath = "/apis"
	cfg.GroupVersion = &v1alpha1.SchemeGroupVersion
	cfg.ContentType = runtime.ContentTypeJSON
	cfg.AcceptContentTypes = runtime.ContentTypeJSON
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client for GPUNodes: %w", err)
	}
	return &Client{client}, nil
}

// apply applies the object, or its subresource, and returns what the API server then has.
func (c *Client) apply(ctx context.Context, gn *v1alpha1.GPUNode, subresources ...string) (*v1alpha1.GPUNode, error) {
	gn.APIVersion, gn.Kind = v1alpha1.SchemeGroupVersion.String(), "GPUNode"
	data, err := json.Marshal(gn)
	if err != nil {
		return nil, err
	}
	result := &v1alpha1.GPUNode{}
	err = c.rest.Patch(types.ApplyPatchType).
		Resource(v1alpha1.GPUNodeGVR.Resource).
		Name(gn.Name).
		SubResource(subresources...).
		Param("fieldManager", FieldManager).
		Param("force", "true").
		Body(data).
		Do(ctx).
		Into(result)
	return result, err
}

// Publisher publishes the readings of one node. It is not safe for concurrent use.
type Publisher struct {
	client  *Client
	name    string
	decider *Decider

	// owner is the UID of the Node that the GPUNode is known to belong to; empty if the GPUNode may be missing.
	owner      types.UID
	conditions []metav1.Condition
}

// NewPublisher returns a publisher for the node with that name, which has published nothing yet.
func NewPublisher(client *Client, name string, t Thresholds) *Publisher {
	return &Publisher{client: client, name: name, decider: NewDecider(t)}
}

// Offer publishes the reading if it is time to, and returns after what time the next must be offered at the latest. The
// GPUNode belongs to the Node with that UID, so that it goes with it. After an error the same reading can be offered again.
func (p *Publisher) Offer(ctx context.Context, node types.UID, r Reading) (wait time.Duration, err error) {
	if p.owner != node {
		// Another Node of the same name has a new GPUNode, or will have.
		p.decider.Reset()
	}
	write, wait := p.decider.Decide(r.GPUs, r.Time)
	if !write {
		return wait, nil
	}
	status, err := p.write(ctx, node, r)
	if err != nil {
		return 0, fmt.Errorf("publish GPUNode %s: %w", p.name, err)
	}
	p.conditions = status.Conditions
	p.decider.Written(r.GPUs, r.Time)
	_, wait = p.decider.Decide(r.GPUs, r.Time)
	return wait, nil
}

func (p *Publisher) write(ctx context.Context, node types.UID, r Reading) (*v1alpha1.GPUNodeStatus, error) {
	known := p.owner == node
	for {
		if !known {
			if err := p.ensure(ctx, node); err != nil {
				return nil, err
			}
		}
		gn := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: p.name}, Status: r.Status(p.conditions)}
		_, err := p.client.apply(ctx, gn, "status")
		if apierrors.IsNotFound(err) && known {
			// Somebody deleted it since the last write.
			known = false
			continue
		}
		return &gn.Status, err
	}
}

// ensure creates the GPUNode, or gives it to the Node with that UID.
func (p *Publisher) ensure(ctx context.Context, node types.UID) error {
	gn, err := p.client.apply(ctx, &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{
		Name: p.name,
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Node", Name: p.name, UID: node,
		}},
	}})
	if err != nil {
		return err
	}
	p.owner, p.conditions = node, gn.Status.Conditions
	return nil
}
