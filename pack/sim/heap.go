// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package sim

// A heap is a slice in which no element is before its parent. container/heap would box each element, in the simulator's
// innermost loop.

func heapPush[S ~[]T, T any](h S, v T, before func(a, b T) bool) S {
	h = append(h, v)
	siftUp(h, len(h)-1, before)
	return h
}

// heapInit makes a heap of any slice.
func heapInit[S ~[]T, T any](h S, before func(a, b T) bool) {
	for i := len(h)/2 - 1; i >= 0; i-- {
		siftDown(h, i, before)
	}
}

// heapRemove takes out the element at i.
func heapRemove[S ~[]T, T any](h S, i int, before func(a, b T) bool) S {
	last := len(h) - 1
	h[i] = h[last]
	h = h[:last]
	if i < last {
		siftUp(h, i, before)
		siftDown(h, i, before)
	}
	return h
}

func siftUp[S ~[]T, T any](h S, i int, before func(a, b T) bool) {
	for i > 0 {
		up := (i - 1) / 2
		if !before(h[i], h[up]) {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func siftDown[S ~[]T, T any](h S, i int, before func(a, b T) bool) {
	for {
		down := 2*i + 1
		if down >= len(h) {
			return
		}
		if down+1 < len(h) && before(h[down+1], h[down]) {
			down++
		}
		if !before(h[down], h[i]) {
			return
		}
		h[i], h[down] = h[down], h[i]
		i = down
	}
}
