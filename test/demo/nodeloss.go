// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gpupack/gpupack/test/embedded"
)

const (
	// nodeLostAfter is how long a node is not ready until gpupack-controller takes it for lost: less than by default, so that
	// nobody has to wait for it.
	nodeLostAfter = time.Second
	// nodeLossTimeout is how long a gang may take to come back.
	nodeLossTimeout = time.Minute
)

// loseNode lets a node die under the gang of each pool in which it runs, and brings it back when the gang of gpupack is whole on
// other nodes.
func (d *demo) loseNode(ctx context.Context) (outcome string, err error) {
	lost := map[*pool]string{}
	for _, p := range d.pools {
		pod, err := d.client.CoreV1().Pods(p.namespace).Get(ctx, memberName(0), metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		if pod.Spec.NodeName == "" {
			if p == gpupackPool {
				return "", fmt.Errorf("%s has no node", pod.Name)
			}
			continue
		}
		lost[p] = pod.Spec.NodeName
		if err := d.setNotReady(ctx, pod.Spec.NodeName, true); err != nil {
			return "", err
		}
	}
	start := time.Now()
	var took time.Duration
	for took == 0 {
		if err := d.died(); err != nil {
			return "", err
		}
		members, err := d.membersElsewhere(ctx, gpupackPool, lost[gpupackPool])
		switch {
		case err != nil:
			return "", err
		case members == gangMembers:
			took = time.Since(start)
		case time.Since(start) > nodeLossTimeout:
			return "", fmt.Errorf("only %d of %d members of %s run again %v after node %s died", members, gangMembers, gangName, nodeLossTimeout,
				lost[gpupackPool])
		default:
			if err := sleep(ctx, 50*time.Millisecond); err != nil {
				return "", err
			}
		}
	}
	var parts []string
	for _, p := range d.pools {
		if lost[p] == "" {
			parts = append(parts, p.title+": no member ran")
			continue
		}
		members, err := d.membersElsewhere(ctx, p, lost[p])
		if err != nil {
			return "", err
		}
		part := fmt.Sprintf("%d of %d members run", members, gangMembers)
		if p == gpupackPool {
			part += fmt.Sprintf(" again, on other nodes, after %.1f s", took.Seconds())
		}
		if len(d.pools) > 1 {
			part = p.title + ": " + part
		}
		parts = append(parts, part)
		if err := d.setNotReady(ctx, lost[p], false); err != nil {
			return "", err
		}
	}
	for _, node := range lost {
		if err := d.awaitReady(ctx, node); err != nil {
			return "", err
		}
	}
	return strings.Join(parts, "; "), nil
}

// membersElsewhere counts the gang's members that run on another node than that.
func (d *demo) membersElsewhere(ctx context.Context, p *pool, node string) (int, error) {
	pods, err := d.client.CoreV1().Pods(p.namespace).List(ctx, metav1.ListOptions{LabelSelector: appLabel + "=" + gangName})
	if err != nil {
		return 0, err
	}
	n := 0
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning && pod.Spec.NodeName != node {
			n++
		}
	}
	return n, nil
}

func (d *demo) setNotReady(ctx context.Context, node string, notReady bool) error {
	value := "null"
	if notReady {
		value = `"true"`
	}
	_, err := d.client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType,
		fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, embedded.KwokNotReadyLabel, value), metav1.PatchOptions{})
	return err
}

func (d *demo) awaitReady(ctx context.Context, name string) error {
	deadline := time.Now().Add(nodeLossTimeout)
	for {
		node, err := d.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if nodeReady(node) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("node %s is not ready again after %v", name, nodeLossTimeout)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}
