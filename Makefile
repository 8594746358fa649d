# Copyright The gpupack Authors.
# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

# The last tag, and the commit where it is not the tag's own.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null || git describe --always --dirty --abbrev=12 2>/dev/null | sed 's/^/v0.0.0-g/' | grep . || echo v0.0.0)
COMMIT ?= $(shell git rev-parse --quiet --verify HEAD 2>/dev/null)
KUBERNETES_VERSION = $(shell go list -m -f '{{.Version}}' k8s.io/kubernetes)

# What a program says of itself. kube-scheduler derives its feature gates from this version, so in gpupack-scheduler it must
# stay that of Kubernetes, with ours added.
stamp = -s -w \
	-X k8s.io/component-base/version.gitVersion=$(1) -X k8s.io/component-base/version.gitCommit=$(COMMIT) \
	-X k8s.io/client-go/pkg/version.gitVersion=$(1) -X k8s.io/client-go/pkg/version.gitCommit=$(COMMIT)

# The tools of test/tools/go.mod, whose dependencies are nobody else's.
GO_TOOL := go tool -modfile=test/tools/go.mod
CRDS := manifests/base/crds

TESTFLAGS ?=
CHAOS_MINUTES ?= 15
# -chaos.seed=SEED repeats what a round did, -chaos.logs=FOLDER keeps the schedulers' logs of one that failed.
CHAOSFLAGS ?=
# make demo KEEP=1 leaves the demo's cluster running.
KEEP ?=
DEMOFLAGS ?=
# A folder with the CSV files of the openb traces, which docs/benchmarks/packing.md says where to get.
TRACES ?=
BENCHFLAGS ?=

.PHONY: help
help: ## Print this.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the programs into bin/, static and stamped with the version.
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(call stamp,$(KUBERNETES_VERSION)+gpupack-$(VERSION))' -o bin/ ./cmd/gpupack-scheduler
	CGO_ENABLED=0 go build -trimpath -ldflags '$(call stamp,$(VERSION))' -o bin/ ./cmd/gpupack-agent ./cmd/gpupack-controller ./cmd/kubectl-gpupack

.PHONY: test
test: test-deps ## Run all tests under the race detector.
	go test -race -timeout 20m $(TESTFLAGS) ./...

.PHONY: test-chaos
test-chaos: test-deps ## Mix failures under gangs at random for CHAOS_MINUTES=15 minutes; make test does so briefly.
	go test -count=1 -v -timeout $$(($(CHAOS_MINUTES) + 15))m $(TESTFLAGS) ./test/chaos -chaos.duration=$(CHAOS_MINUTES)m $(CHAOSFLAGS)

.PHONY: test-html
test-html: ## Open reports of simulate in headless Chromium, which must be installed.
	cd test/html && go test -count=1 $(TESTFLAGS) ./...

.PHONY: bench-packing
bench-packing: ## Replay the openb traces in TRACES=FOLDER under each policy; fails if gpupack misses a goal.
	@go run ./test/bench/packing --traces '$(TRACES)' $(BENCHFLAGS)

.PHONY: bench-packing-scale
bench-packing-scale: ## Measure what one placement costs in small and large clusters, from TRACES=FOLDER.
	@go run ./test/bench/packingscale --traces '$(TRACES)' $(BENCHFLAGS)

# Its programs run without the race detector, stamped as what they are built from: kube-scheduler derives its feature gates from that.
.PHONY: bench-gang
bench-gang: ## Time gangs beside coscheduling and the default profile, for about 40 minutes; fails if gpupack misses a goal.
	@mkdir -p bin
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(call stamp,$(KUBERNETES_VERSION)+gpupack-$(VERSION))' -o bin/ ./cmd/gpupack-scheduler
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(call stamp,$(KUBERNETES_VERSION))' -o bin/coscheduling-scheduler ./test/coscheduling
	@CGO_ENABLED=0 go build -trimpath -o bin/bench-gang ./test/bench/gang
	@bin/bench-gang $(BENCHFLAGS)

.PHONY: bench-docs
bench-docs: ## Run both and put what they print into docs/benchmarks.
	@status=0; \
	$(MAKE) bench-packing BENCHFLAGS='--artifact --into docs/benchmarks/packing.md' || status=1; \
	$(MAKE) bench-packing-scale BENCHFLAGS='--into docs/benchmarks/packing-scale.md' || status=1; \
	exit $$status

# The control plane's binaries are built here, because the go command ends a test that takes longer than its timeout.
.PHONY: test-deps
test-deps: bin/demo
	@bin/demo --build-only

# With the flags of the build, so that one compilation of Kubernetes serves both.
.PHONY: lint
lint: export CGO_ENABLED = 0
lint: export GOFLAGS = -trimpath
lint: ## Check with go vet, staticcheck and gofmt.
	go vet ./...
	$(GO_TOOL) staticcheck ./...
	@files=$$(git ls-files -co --exclude-standard '*.go'); \
	unformatted=$$(gofmt -l $$files); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; fi; \
	unlicensed=$$(grep -L 'SPDX-License-Identifier: Apache-2.0' $$files || true); \
	if [ -n "$$unlicensed" ]; then echo "without the licence header:"; echo "$$unlicensed"; exit 1; fi

.PHONY: generate
generate: ## Generate deepcopy functions and CRDs from the API types.
	$(GO_TOOL) controller-gen object:headerFile=test/tools/boilerplate.go.txt paths=./api/... paths=./plugins/config/...
	$(GO_TOOL) controller-gen crd:generateEmbeddedObjectMeta=false paths=./api/... output:crd:artifacts:config=$(CRDS)
	cat "$$(go list -m -f '{{.Dir}}' sigs.k8s.io/scheduler-plugins)/config/crd/bases/scheduling.x-k8s.io_podgroups.yaml" \
		> $(CRDS)/scheduling.x-k8s.io_podgroups.yaml

.PHONY: verify
verify: ## Fail if generated files or go.mod are stale, or a module was changed.
	@test/verify.sh

.PHONY: demo
demo: bin/demo ## Show the whole on a simulated cluster; KEEP=1 leaves it running.
	@bin/demo $(if $(filter-out 0,$(KEEP)),--keep) $(DEMOFLAGS)

.PHONY: demo-down
demo-down: bin/demo ## End what make demo KEEP=1 left running.
	@bin/demo --down

.PHONY: screenshot
screenshot: bin/demo ## Make docs/img/top.svg from a run of the demo.
	@bin/demo --screenshot docs/img/top.svg $(DEMOFLAGS)

# The go command knows what has changed.
.PHONY: bin/demo
bin/demo:
	@mkdir -p bin
	@[ -e bin/demo ] || echo "building the demo itself, which takes some minutes the first time"
	@CGO_ENABLED=0 go build -trimpath -o bin/demo ./test/demo

.PHONY: clean
clean: ## Remove bin/ and the cache of control plane binaries.
	rm -rf bin .cache
