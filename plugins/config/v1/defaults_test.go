// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package v1

import (
	"reflect"
	"testing"

	"github.com/stretchr/testify/assert"
	"k8s.io/utils/ptr"
)

// Each argument has a default, and none overrides what the user wrote.
func TestSetDefaults(t *testing.T) {
	var args GPUPackArgs
	SetDefaults(&args)
	v := reflect.ValueOf(args)
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Pointer || f.Kind() == reflect.Map {
			assert.False(t, f.IsNil(), "%s has no default", v.Type().Field(i).Name)
		}
	}

	again := *args.DeepCopy()
	SetDefaults(&again)
	assert.Equal(t, args, again)

	set := GPUPackArgs{LoadWeight: ptr.To[int32](0), Policy: ptr.To("other")}
	SetDefaults(&set)
	assert.Equal(t, int32(0), *set.LoadWeight)
	assert.Equal(t, "other", *set.Policy)
	assert.Equal(t, args.StaleAfter, set.StaleAfter)
}
