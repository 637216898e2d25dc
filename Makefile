# Everything that is done to this repository by hand or by CI. `make` lists it.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# A check that fails half way leaves no half-made file behind.
.DELETE_ON_ERROR:
# The targets share one Python environment and one cargo folder, and cargo keeps the cores busy alone.
.NOTPARALLEL:

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
VENV := $(TARGET)/venv

# One selection of packages and features for every cargo command, so that cargo unifies the features
# of the dependencies in one way and compiles each of them once a profile.
WORKSPACE := --locked --workspace --features test-hooks
# The tests run the binary under load: optimised, without the minutes that LTO takes. Unit tests use
# the same profile, so that the tree is compiled once.
TESTED := $(WORKSPACE) --profile ci

# What runs tests finds the servers that test-tools installs.
CARGO_TEST := scripts/with-servers $(VENV) cargo test

# The end-to-end tests start a client of another language with it.
export RED_ENVELOPE_PYTHON := $(VENV)/bin/python

SHELL_FILES := .ci/run scripts/install scripts/lint-proto scripts/with-servers

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- the daily loop

.PHONY: quick
quick: test-tools fmt clippy tidy ## The daily loop: fmt, clippy, tidy and the unit tests (up to 3 minutes when warm)
	$(CARGO_TEST) $(WORKSPACE) --lib

# ---------------------------------------------------------------- what must pass before a change lands

.PHONY: check
check: check-tools fmt clippy tidy deny doc proto spelling scripts ## Everything that reads the source and runs nothing of it

.PHONY: test
test: test-tools ## Every test; installs what the tests need first
	$(CARGO_TEST) $(TESTED) --no-fail-fast --lib --bins
	$(CARGO_TEST) $(TESTED) --no-fail-fast --doc
	$(CARGO_TEST) $(TESTED) --no-fail-fast --test '*'

# Which histories `make simulate` plays; empty: those of the test.
SEEDS ?=
SEED ?=

.PHONY: simulate
simulate: ## Play SEEDS=n histories of the protocol on simulated stores, from SEED=s; names the first that breaks a promise
	RED_ENVELOPE_SIMULATE_SEEDS=$(SEEDS) RED_ENVELOPE_SIMULATE_SEED=$(SEED) \
		cargo test $(TESTED) --test sim -- --exact --nocapture every_history_keeps_the_promises

.PHONY: faults
faults: test-tools ## Faults that last longer than the suite has time for, or need a machine that does nothing else: five minutes without PostgreSQL, a process that stands still for two, small envelopes beside one of ten million shares, somebody good beside peers that mean harm
	RED_ENVELOPE_FAULTS=long $(CARGO_TEST) $(TESTED) --test it -- --nocapture --exact \
		ledger_faults::a_postgresql_that_hangs_turns_creates_away_before_any_grab \
		paused::a_process_that_is_stopped_between_grant_and_answer_acknowledges_nothing_too_late
	RED_ENVELOPE_FAULTS=long $(CARGO_TEST) $(TESTED) --test it -- --nocapture --test-threads 1 mega:: hostile::

.PHONY: soak
soak: test-tools ## Thirty minutes with a random fault every 5 to 15 seconds: what was told is paid, and memory does not grow
	RED_ENVELOPE_FAULTS=long $(CARGO_TEST) $(TESTED) --test it -- --nocapture --exact \
		soak::whatever_fails_next_what_was_told_is_paid_and_nothing_grows

.PHONY: bench
bench: bench-tools ## Measure on this machine (installs redis-server, postgresql and h2load); figures for programs in bench/summary.json under cargo's target folder
	cargo bench --locked --bench ledger --bench redis --bench embedded
	scripts/with-servers $(VENV) cargo bench --locked --features test-hooks --bench settle --bench burst --bench overload

.PHONY: rehearse
rehearse: test-tools ## Every profile of the load test on every stack (some 25 minutes after the build), as a table; pages in rehearse/ under cargo's target folder
	cargo build $(TESTED) --bins
	scripts/with-servers $(VENV) $(VENV)/bin/python scripts/rehearse.py $(TARGET)/ci $(TARGET)/rehearse

.PHONY: crosscheck
crosscheck: crosscheck-tools ## An independent generator (h2load) and loadtest agree on rate and p50, on a machine that does nothing else
	cargo build $(TESTED) --bins
	$(VENV)/bin/python scripts/crosscheck.py $(TARGET)/ci

# ---------------------------------------------------------------- the parts of check

.PHONY: fmt
fmt: ## One format
	cargo fmt --all --check

.PHONY: clippy
clippy: ## The lints of Cargo.toml and clippy.toml, warnings denied
	cargo clippy $(WORKSPACE) --all-targets -- -D warnings

# The house rules need no crate, so rustc alone builds them in a second. As a test of the package
# (`cargo test --test tidy`) they would wait for all its dependencies.
.PHONY: tidy
tidy: ## The house rules: layers, names, sizes, words (tests/tidy.rs)
	@mkdir -p $(TARGET)
	CARGO_MANIFEST_DIR=$(CURDIR) rustc --edition 2024 --test tests/tidy.rs -o $(TARGET)/tidy
	RUST_BACKTRACE=0 $(TARGET)/tidy --quiet

.PHONY: deny
deny: check-tools ## Licences, banned crates and sources of the lock file
	PATH="$(VENV)/bin:$$PATH" cargo deny --locked check --hide-inclusion-graph bans licenses sources

# Written for those who work here, so private items are documented, and links to them resolve.
.PHONY: doc
doc: ## The documentation builds without a warning, private items included
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc $(WORKSPACE) --no-deps --document-private-items

.PHONY: proto
proto: check-tools ## The contract keeps buf's rules and format
	scripts/lint-proto $(VENV) $(TARGET)/contract

.PHONY: spelling
spelling: check-tools ## Prose and names are spelled right
	$(VENV)/bin/typos

.PHONY: scripts
scripts: check-tools ## Shell and Python files are sound
	$(VENV)/bin/shellcheck $(SHELL_FILES)
	$(VENV)/bin/ruff check --isolated --target-version py311 --select E4,E7,E9,F --cache-dir $(TARGET)/ruff

# ---------------------------------------------------------------- the tools

.PHONY: check-tools
check-tools:
	@scripts/install $(VENV) scripts/requirements-check.txt

.PHONY: crosscheck-tools
crosscheck-tools:
	@scripts/install $(VENV) scripts/requirements-check.txt h2load

.PHONY: bench-tools
bench-tools: test-tools
	@scripts/install $(VENV) scripts/requirements-test.txt h2load

.PHONY: test-tools
test-tools:
	@scripts/install $(VENV) scripts/requirements-test.txt redis-server postgresql
