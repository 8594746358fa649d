#!/bin/bash
# Copyright The gpupack Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Fails if generated files or go.mod are stale, or a downloaded module was changed. It generates in a copy of the checkout,
# so the checkout may have any changes and keeps them.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# Files that were deleted but not committed as such are still listed.
git ls-files -zco --exclude-standard | xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' - |
	tar --null -T - -cf - | tar -C "$copy" -xf -

make --no-print-directory --directory "$copy" generate >/dev/null
stale=$(cd "$copy" && find . -type f -print0 | xargs -0 sh -c '
	main=$0; for f; do cmp -s "$f" "$main/$f" || echo "${f#./}"; done' "$OLDPWD")
if [ -n "$stale" ]; then
	echo "stale, run make generate:"
	echo "$stale"
	exit 1
fi

# go list fails where a package needs what go.mod or go.sum lacks.
check_modules() {
	local dir=$1
	shift
	(cd "$dir" && go mod verify >/dev/null && go list -mod=readonly -deps "$@" >/dev/null)
}
check_modules . ./... tool
check_modules test/tools tool
check_modules test/embedded/tools/etcd ./...
check_modules test/embedded/tools/kwok tool
check_modules test/embedded/tools/jobset tool
check_modules test/embedded/tools/training-operator tool
check_modules test/html -test ./...
