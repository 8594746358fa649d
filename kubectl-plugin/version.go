// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apimachineryversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/component-base/version"
)

// Version is the answer of kubectl gpupack version.
type Version struct {
	metav1.TypeMeta `json:",inline"`
	Client          apimachineryversion.Info `json:"clientVersion"`
}

func (e *env) versionCommand() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of the plugin",
		Args:  exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := out.printer(cmd)
			if err != nil {
				return err
			}
			answer := &Version{typeMeta("Version"), version.Get()}
			if p != nil {
				return printObject(p, e.Out, answer)
			}
			printLine(e.Out, "kubectl gpupack %s (%s, %s)", answer.Client.GitVersion, answer.Client.GoVersion, answer.Client.Platform)
			return nil
		},
	}
	out.add(cmd)
	_ = cmd.Flags().MarkHidden("no-headers")
	return cmd
}
