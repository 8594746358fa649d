// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/gpupack/gpupack/api/convert"
	"github.com/gpupack/gpupack/pack/policy"
)

func valid() *GPUPackArgs {
	return &GPUPackArgs{
		Policy: "fgd", LoadWeight: 1000, StaleAfter: metav1.Duration{Duration: 1}, StalePolicy: convert.StaleTrustTelemetry,
		GangTimeout: metav1.Duration{Duration: 1}, MaxReservations: 1,
	}
}

func TestValidate(t *testing.T) {
	policies := `"` + strings.Join(policy.Names(), `", "`) + `"`
	tests := []struct {
		name   string
		change func(*GPUPackArgs)
		err    string
	}{
		{"unknown policy", func(a *GPUPackArgs) { a.Policy = "tetris" }, `args.policy: Unsupported value: "tetris": supported values: ` + policies},
		{"no policy", func(a *GPUPackArgs) { a.Policy = "" }, `args.policy: Unsupported value: "": supported values: ` + policies},
		{"negative weight", func(a *GPUPackArgs) { a.LoadWeight = -1 }, "args.loadWeight: Invalid value: -1: must be a percentage from 0 to 1000"},
		{"large weight", func(a *GPUPackArgs) { a.LoadWeight = 1001 }, "args.loadWeight: Invalid value: 1001: must be a percentage from 0 to 1000"},
		{"never stale", func(a *GPUPackArgs) { a.StaleAfter.Duration = 0 }, `args.staleAfter: Invalid value: "0s": must be above 0`},
		{"stale before read", func(a *GPUPackArgs) { a.StaleAfter.Duration = -time.Second }, `args.staleAfter: Invalid value: "-1s": must be above 0`},
		{"unknown stale policy", func(a *GPUPackArgs) { a.StalePolicy = "Hope" },
			`args.stalePolicy: Unsupported value: "Hope": supported values: "TrustRequests", "Reject", "TrustTelemetry"`},
		{"negative memory", func(a *GPUPackArgs) { a.WholeGPUForeignMiB = -1 }, "args.wholeGPUForeignMiB: Invalid value: -1: must be 0 MiB or more"},
		{"no label", func(a *GPUPackArgs) { a.TopologyDomains = map[string]string{"rack": "a rack"} },
			`args.topologyDomains[rack]: Invalid value: "a rack": must be the key of a node label: name part must consist of alphanumeric ` +
				`characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or ` +
				`'123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`},
		{"no time for gangs", func(a *GPUPackArgs) { a.GangTimeout.Duration = 0 }, `args.gangTimeout: Invalid value: "0s": must be above 0`},
		{"reserve before waiting", func(a *GPUPackArgs) { a.ReserveAfter.Duration = -1 }, `args.reserveAfter: Invalid value: "-1ns": must be 0s or more`},
		{"no reservations", func(a *GPUPackArgs) { a.MaxReservations = 0 }, "args.maxReservations: Invalid value: 0: must be 1 or more"},
	}
	require.Empty(t, valid().Validate(field.NewPath("args")))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := valid()
			tt.change(args)
			errs := args.Validate(field.NewPath("args"))
			require.Len(t, errs, 1)
			assert.EqualError(t, errs[0], tt.err)
		})
	}
	assert.Len(t, (&GPUPackArgs{LoadWeight: -1, WholeGPUForeignMiB: -1}).Validate(nil), 7, "everything that is wrong is told at once")
}
