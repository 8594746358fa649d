// Copyright The gpupack Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"strconv"
	"strings"

	"github.com/gpupack/gpupack/pack"
)

// count writes a whole number with its thousands apart.
func count(n int) string {
	s := strconv.Itoa(n)
	sign := ""
	if n < 0 {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// decimal writes a number with that many places after the point and its thousands apart.
func decimal(v float64, places int) string {
	s := strconv.FormatFloat(v, 'f', places, 64)
	whole, rest, _ := strings.Cut(s, ".")
	n, err := strconv.Atoi(whole)
	if err != nil || n == 0 {
		return s // where it is between -1 and 0 the sign is in s alone
	}
	if rest == "" {
		return count(n)
	}
	return count(n) + "." + rest
}

// average writes a mean of counts: whole where it is whole.
func average(v float64) string {
	if v == math.Trunc(v) {
		return decimal(v, 0)
	}
	return decimal(v, 1)
}

// tenth writes a number to 0.1.
func tenth(v float64) string { return decimal(v, 1) }

// percent writes a percentage, without its sign, or seconds to 0.01.
func percent(v float64) string { return decimal(v, 2) }

// share is part of whole in percent; nothing of nothing is 0.
func share(part, whole float64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * part / whole
}

// gpus writes milli-GPU as GPUs, to a tenth.
func gpus(milli int64) string { return tenth(float64(milli) / pack.WholeMilli) }

// trimmed writes a number to 0.01 without the zeros at its end.
func trimmed(v float64) string {
	s := decimal(v, 2)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

// cores writes milli-CPU as CPUs.
func cores(milli int64) string { return trimmed(float64(milli) / 1000) }

// memory writes MiB in the unit that suits.
func memory(mib int64) string {
	const gib, tib = 1 << 10, 1 << 20
	switch {
	case mib >= tib:
		return trimmed(math.Round(float64(mib)/tib*10)/10) + " TiB"
	case mib >= gib:
		return trimmed(math.Round(float64(mib)/gib*10)/10) + " GiB"
	default:
		return count(int(mib)) + " MiB"
	}
}

// asks is the GPU part of a request, such as "8 GPUs" or "0.46 GPU".
func asks(r *pack.Request) string {
	switch {
	case r.GPUs == 1:
		return "1 GPU"
	case r.GPUs > 1:
		return count(r.GPUs) + " GPUs"
	case r.Milli > 0:
		return strconv.FormatFloat(float64(r.Milli)/pack.WholeMilli, 'f', -1, 64) + " GPU"
	case r.MiB > 0:
		return memory(r.MiB) + " of a GPU"
	default:
		return "no GPU"
	}
}

// milli is what a request takes of all GPUs, in milli-GPU.
func milli(r *pack.Request) int64 { return int64(r.GPUs)*pack.WholeMilli + r.Milli }

// plural is "1 node" or "2 nodes".
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return count(n) + " " + word + "s"
}

// list joins words as a sentence does.
func list(words []string) string {
	if n := len(words); n > 1 {
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
	return strings.Join(words, "")
}
