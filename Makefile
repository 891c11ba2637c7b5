# Every target can be run alone on a bare Debian machine with Go, as root: it
# installs what it needs (scripts/setup).
GO ?= go
export CGO_ENABLED = 0

.PHONY: build test demo bench lint fuzz docs test-kernels

build:
	$(GO) build -trimpath -o berth ./cmd/berth
	$(GO) build -trimpath -o berth-cni ./cmd/berth-cni

test:
	scripts/setup
	$(GO) test -p 2 -timeout 20m ./...

demo: build
	[ $$(id -u) != 0 ] || scripts/setup
	./berth demo

bench:
	scripts/setup bench
	$(GO) run ./bench -o docs/benchmarks.md

lint:
	scripts/lint

fuzz:
	scripts/fuzz

docs:
	scripts/setup
	rm -rf docs/man && mkdir -p docs/man && $(GO) run ./cmd/berth-manual docs/man
	$(GO) test ./docs ./internal/cli ./internal/cni -update

test-kernels:
	scripts/test-kernels
