# The short front door: every target is a `cargo xtask` command. `make help` lists them.

PREFIX ?= $(HOME)/.local
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help build install quickstart test smoke bench-create bench lint toolchain

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: toolchain ## banger, bangerd and banger-vsock-agent into build/bin/
	@cargo xtask build

install: toolchain ## Build, and install below PREFIX (~/.local)
	@cargo xtask install --prefix "$(PREFIX)"

quickstart: ## Host packages, build, install, and a first command in a VM
	@scripts/host-packages run
	@scripts/toolchain
	@cargo xtask quickstart --prefix "$(PREFIX)"

test: ## Everything that must hold: installs what the tests need, then passes them
	@scripts/host-packages test
	@scripts/toolchain
	@cargo xtask test $(ARGS)

smoke: toolchain ## One real VM: boots, runs a command, leaves nothing
	@cargo xtask smoke

bench-create: toolchain ## Times of `vm create`: make bench-create ARGS="--runs 3 --image NAME"
	@cargo xtask bench create $(ARGS)

bench: toolchain ## Every benchmark of docs/performance.md
	@cargo xtask bench all $(ARGS)

lint: toolchain ## Formatting, clippy, dependencies and documentation
	@cargo xtask lint

toolchain:
	@scripts/toolchain
