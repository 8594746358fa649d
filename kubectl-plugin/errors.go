// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectlplugin

import (
	"errors"
	"fmt"
	"net"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// sentence says what is wrong and what to do, where the error alone does not.
func sentence(err error) string {
	var request *url.Error
	var network net.Error
	switch {
	case errors.As(err, &request) && errors.As(request.Err, &network):
		host := request.URL
		if u, parsed := url.Parse(request.URL); parsed == nil {
			host = u.Scheme + "://" + u.Host
		}
		return fmt.Sprintf("cannot reach the API server %s: %v: check --context and whether the cluster runs", host, request.Err)
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("the API server does not accept your credentials (%v): see kubectl auth whoami", err)
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("%v: the ClusterRole gpupack-reader has what kubectl gpupack reads", err)
	}
	return err.Error()
}
