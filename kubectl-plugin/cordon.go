// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gpupack/gpupack/api/v1alpha1"
)

// fieldManager is under which name the plugin writes.
const fieldManager = "kubectl-gpupack"

// maxReason is how long a reason may be; the CRD has the same limit.
const maxReason = 256

func (e *env) cordonGPUCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "cordon-gpu NODE GPU",
		Short: "Keep new pods off one GPU",
		Long: "Keep new pods off one GPU, named by its index or its UUID. The pods that it has stay. It is remembered in the node's\n" +
			"GPUNode, with the reason and who did it, until uncordon-gpu.\n\n" +
			"On a node in observe mode the device plugin of NVIDIA picks the GPU. gpupack then places no pods with whole GPUs on the\n" +
			"node as long as a cordoned GPU is free there.",
		Example: "  kubectl gpupack cordon-gpu gpu-h100-01 3 --reason \"fan is loud, ticket 4711\"",
		Args:    exactly(2, "the name of a node, and the index or UUID of a GPU"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len([]rune(reason)) > maxReason {
				return usagef(cmd, "--reason has %d characters, above %d", len([]rune(reason)), maxReason)
			}
			c, err := e.writer()
			if err != nil {
				return err
			}
			now := metav1.NewTime(e.now().UTC())
			by := e.user(cmd.Context(), c)
			return e.changeCordons(cmd.Context(), c, args[0], args[1], func(gn *v1alpha1.GPUNode, uuid string) (string, bool) {
				if gn.Spec.Cordon(uuid) != nil && reason == "" {
					return "already cordoned", false
				}
				gn.Spec.CordonedGPUs = append(withoutCordon(gn, uuid), v1alpha1.CordonedGPU{UUID: uuid, Reason: reason, By: by, Since: &now})
				return "cordoned", true
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "Why, for whoever meets it in top or explain")
	cmd.ValidArgsFunction = e.completeGPU(func(*v1alpha1.GPUNode, *v1alpha1.GPU) bool { return true })
	return cmd
}

func (e *env) uncordonGPUCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "uncordon-gpu NODE GPU",
		Short:   "Let new pods on a GPU that was cordoned",
		Long:    "Let new pods on a GPU again that cordon-gpu has cordoned. Pods that wait for it are looked at again at once.",
		Example: "  kubectl gpupack uncordon-gpu gpu-h100-01 3",
		Args:    exactly(2, "the name of a node, and the index or UUID of a GPU"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.writer()
			if err != nil {
				return err
			}
			return e.changeCordons(cmd.Context(), c, args[0], args[1], func(gn *v1alpha1.GPUNode, uuid string) (string, bool) {
				if gn.Spec.Cordon(uuid) == nil {
					return "already uncordoned", false
				}
				gn.Spec.CordonedGPUs = withoutCordon(gn, uuid)
				return "uncordoned", true
			})
		},
	}
	cmd.ValidArgsFunction = e.completeGPU(func(gn *v1alpha1.GPUNode, g *v1alpha1.GPU) bool { return gn.Spec.Cordon(g.UUID) != nil })
	return cmd
}

func withoutCordon(gn *v1alpha1.GPUNode, uuid string) []v1alpha1.CordonedGPU {
	return slices.DeleteFunc(slices.Clone(gn.Spec.CordonedGPUs), func(c v1alpha1.CordonedGPU) bool { return c.UUID == uuid })
}

// changeCordons changes the cordons of a node's GPUs and prints what change says of the one that is named. Others that change
// them at the same time are not overwritten.
func (e *env) changeCordons(ctx context.Context, c client.Client, node, gpu string,
	change func(gn *v1alpha1.GPUNode, uuid string) (done string, changed bool)) error {
	node = strings.TrimPrefix(node, "node/")
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		gn := &v1alpha1.GPUNode{}
		err := c.Get(ctx, client.ObjectKey{Name: node}, gn)
		if notServed(err) {
			return noGPUNode(ctx, c, node)
		}
		if err != nil {
			return fmt.Errorf("get gpunode %s: %w", node, err)
		}
		uuid, name, err := findGPU(gn, gpu)
		if err != nil {
			return err
		}
		before := gn.DeepCopy()
		done, changed := change(gn, uuid)
		want := len(gn.Spec.CordonedGPUs)
		if changed {
			patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
			if err := c.Patch(ctx, gn, patch, client.FieldOwner(fieldManager)); apierrors.IsConflict(err) {
				return err
			} else if err != nil {
				return fmt.Errorf("patch gpunode %s: %w", node, err)
			}
			if len(gn.Spec.CordonedGPUs) != want {
				return errors.New("the cluster's CRD of GPUNodes is of an older gpupack and has no spec.cordonedGPUs, so that nothing was " +
					"changed: apply manifests/base/crds of this version")
			}
		}
		printLine(e.Out, "%s of node/%s %s", name, node, done)
		return nil
	})
}

// noGPUNode says why there is no GPUNode of that name.
func noGPUNode(ctx context.Context, r client.Reader, node string) error {
	gpuNodes, err := listAll(ctx, r, &v1alpha1.GPUNodeList{}, func(l *v1alpha1.GPUNodeList) []v1alpha1.GPUNode { return l.Items }, nil)
	switch {
	case notServed(err):
		return fmt.Errorf("this cluster has no GPUNode resource: %s", installHint)
	case err != nil:
		return describe(err, "gpunodes")
	}
	var names []string
	for i := range gpuNodes {
		names = append(names, gpuNodes[i].Name)
	}
	return fmt.Errorf("no agent has reported GPUs of node %q%s", node, didYouMean(node, names))
}

// findGPU returns the UUID of a GPU that is named by its index or UUID, or by the head of its UUID, and how to call it. One that
// is cordoned need not be there any more.
func findGPU(gn *v1alpha1.GPUNode, named string) (uuid, name string, err error) {
	index, notIndex := strconv.Atoi(named)
	var found []string
	var known []string
	for i := range gn.Status.GPUs {
		g := &gn.Status.GPUs[i]
		if notIndex == nil && int(g.Index) == index || g.UUID == named {
			return g.UUID, fmt.Sprintf("GPU %d (%s)", g.Index, g.UUID), nil
		}
		if notIndex != nil && strings.HasPrefix(g.UUID, named) {
			found = append(found, g.UUID)
			name = fmt.Sprintf("GPU %d (%s)", g.Index, g.UUID)
		}
		known = append(known, fmt.Sprintf("%d (%s)", g.Index, g.UUID))
	}
	if gn.Spec.Cordon(named) != nil {
		return named, "GPU " + named, nil
	}
	switch {
	case len(found) == 1:
		return found[0], name, nil
	case len(found) > 1:
		return "", "", fmt.Errorf("node %s has several GPUs of which the UUID begins with %q: %s", gn.Name, named, strings.Join(found, ", "))
	case len(known) == 0:
		return "", "", fmt.Errorf("node %s has no GPU %q: its agent sees no GPU", gn.Name, named)
	}
	return "", "", fmt.Errorf("node %s has no GPU %q: it has %s", gn.Name, named, strings.Join(known, ", "))
}

// user is as whom the API server knows the caller; empty where it does not say.
func (e *env) user(ctx context.Context, c client.Client) string {
	review := &authenticationv1.SelfSubjectReview{}
	if err := c.Create(ctx, review); err != nil {
		return ""
	}
	name := []rune(review.Status.UserInfo.Username)
	return string(name[:min(len(name), maxReason)])
}

// completeGPU offers nodes, then the indices of those of its GPUs that keep accepts.
func (e *env) completeGPU(keep func(*v1alpha1.GPUNode, *v1alpha1.GPU) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		r, err := e.reader()
		if err != nil || len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		s, err := read(cmd.Context(), r, e.now(), scope{gpuNodes: true})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var out []string
		for i := range s.gpuNodes {
			gn := &s.gpuNodes[i]
			any := false
			for j := range gn.Status.GPUs {
				g := &gn.Status.GPUs[j]
				if !keep(gn, g) {
					continue
				}
				any = true
				if len(args) == 1 && args[0] == gn.Name {
					out = append(out, fmt.Sprintf("%d\t%s %s", g.Index, g.Model, g.UUID))
				}
			}
			if len(args) == 0 && any {
				out = append(out, gn.Name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
