# Everything that is done with this repository, from a bare Debian 12 with Rust and root.

CARGO ?= cargo
DEMO_DIR ?= /tmp/rbd-mirror-demo
export CARGO_TERM_COLOR ?= auto
release = $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: help deps build demo demo-down test check bench clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

deps: ## Install the Debian packages that building and testing need (as root)
	@scripts/install-deps

build: ## Build daemon and command, with the Debian packages for that: target/release/rbd-mirror, rbd-mirrorctl
	@scripts/install-deps build
	$(CARGO) build --release --locked -p daemon -p ctl

demo: deps ## Two clusters, a mirrored pool, and a tour of it; leaves the clusters running
	$(CARGO) build --release --locked -p daemon -p tests --bin rbd-mirror --bin demo
	@$(release)/demo up $(DEMO_DIR)

demo-down: ## End what the demo started and remove its folder
	@$(CARGO) build --release --locked --quiet -p daemon -p tests --bin rbd-mirror --bin demo
	@$(release)/demo down $(DEMO_DIR)

test: deps ## Run all tests, on real clusters
	$(CARGO) build --locked --workspace --all-targets
	@CARGO="$(CARGO)" scripts/test

check: deps ## Format, lints, documentation, licences of dependencies
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	$(CARGO) run --locked -q -p tests --bin licences

bench: deps build ## Time daemon and command against Ceph's on the same two clusters (BENCH_ARGS=--quick, --only NAME, …)
	$(CARGO) run --release --locked -p bench -- --rbd-mirror $(release)/rbd-mirror \
		--rbd-mirrorctl $(release)/rbd-mirrorctl $(BENCH_ARGS)

clean: ## Remove what was built
	$(CARGO) clean
