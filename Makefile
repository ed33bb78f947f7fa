# GridVFS. `make` lists the targets; each is one command on a fresh machine.

PREFIX ?= /usr/local
DESTDIR ?=
# What `make install` installs.
BINARY ?= target/release/gridvfs
# Where mount(8) and umount(8) look for the helpers of a file system type, and nowhere else.
MOUNT_HELPERS ?= /usr/sbin
# PROFILE=release tests what is shipped, at the price of a longer build.
PROFILE ?= dev
CARGO ?= cargo

# Where rustup puts cargo, and where Debian puts mke2fs, sshd and ip, none of
# which an ordinary user's PATH need name.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

DEPS := tests/support/deps.sh
SCRIPTS := .ci/run $(wildcard bench/*.sh bench/cache/*.sh bench/experiments/*.sh tests/support/*.sh bench/guest/*) \
	packaging/libvirt/qemu packaging/slurm/prolog packaging/slurm/epilog packaging/slurm/task-prolog

.DEFAULT_GOAL := help
.PHONY: help deps deps-bench build demo test test-systemd test-slurm test-libvirt test-nfs-client test-coherence test-crash bench bench-quick bench-link bench-cache bench-fetch bench-clone bench-fleet bench-coherence fmt lint clean install bench-meta

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

deps: ## Install what is missing from the distribution (uses sudo when not root)
	@$(DEPS) build demo test

deps-bench: ## The same, with the programs that the benchmarks compare with
	@$(DEPS) build demo test bench

build: ## Build everything, optimised, into target/release
	@$(DEPS) build
	$(CARGO) build --release --workspace

demo: ## Boot and clone a small VM whose state lies behind an emulated 32 ms link
	@$(DEPS) build demo
	$(CARGO) build --release --workspace
	@bench/demo.sh

test: ## Formatting, lints and all tests; says which tests were skipped
	@$(DEPS) build test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --profile $(PROFILE) -- -D warnings
	$(CARGO) build --workspace --bins --profile $(PROFILE)
	@tests/support/run-tests.sh --profile $(PROFILE)

test-systemd: ## Units and mount(8) helpers in a container with a real systemd (needs root; builds its image once)
	@$(DEPS) build test systemd
	@tests/support/systemd.sh image $(or $(CARGO_TARGET_DIR),target)/systemd
	$(CARGO) test -p gridvfs --profile $(PROFILE) --test systemd -- --show-output

test-slurm: ## The recipe of packaging/slurm in a Slurm of its own (needs root)
	@$(DEPS) build test slurm
	$(CARGO) test -p gridvfs --profile $(PROFILE) --test slurm -- --show-output

test-libvirt: ## The recipe for libvirt: a pool on a mount, and the hook (needs root)
	@$(DEPS) build test libvirt
	$(CARGO) test -p gridvfs --profile $(PROFILE) --test libvirt -- --show-output

test-nfs-client: ## A Linux kernel's NFS client, in a guest under QEMU, mounts a standing proxy (builds the guest once)
	@$(DEPS) build test
	@bench/guest/nfs-client.sh build $(or $(CARGO_TARGET_DIR),target)/nfs-client
	$(CARGO) test -p gridvfs --profile $(PROFILE) --test nfs_client -- --show-output

test-coherence: ## Sessions that hear of each other's changes, at random (GRIDVFS_SEED=n: another run)
	$(CARGO) test -p gridvfs --profile $(PROFILE) --test coherence -- --show-output two_sessions writers_that

test-crash: ## The crash harness at length: 1,000 kills, 150 power losses
	GRIDVFS_CRASH_KILLS=1000 GRIDVFS_CRASH_LOSSES=150 $(CARGO) test -p gridvfs-cache \
		--profile $(PROFILE) --test crash -- --show-output nothing_acknowledged power_loss

bench: ## The whole evaluation: hours; resumes where it was (BENCH_OPTIONS="--minutes 40 --results DIR table1")
	@$(DEPS) build test bench
	$(CARGO) build --release --workspace
	@$(or $(CARGO_TARGET_DIR),target)/release/gridvfs-bench run $(BENCH_OPTIONS)

bench-quick: ## Every ratio that has a goal, beside it, in ten minutes
	@$(DEPS) build test bench
	$(CARGO) build --release --workspace
	@bench/quick.sh $(BENCH_OPTIONS)

bench-link: ## Measure sequential transfer over the emulated link against iperf3
	@$(DEPS) build test bench
	$(CARGO) build --release --workspace
	@bench/link.sh

bench-cache: ## Measure the disk cache against local disk, bare FUSE and the link (ROWS=a,b ROUNDS=n)
	@$(DEPS) build test bench
	$(CARGO) build --release --workspace
	@bench/cache.sh $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_OPTIONS)

bench-fetch: ## Measure the ways to read a whole memory file over the emulated link
	@$(DEPS) build test bench
	$(CARGO) build --release --workspace
	@bench/fetch.sh $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_OPTIONS)

bench-clone: ## Measure clones of a suspended Debian over the link against a local clone and others (ROWS=, ROUNDS=)
	@$(DEPS) build test bench
	$(CARGO) build --release --workspace
	@bench/clone.sh $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_OPTIONS)

bench-fleet: ## Measure eight clones at once through one LAN cache against one (ROUNDS=n BENCH_OPTIONS=…)
	@$(DEPS) build test bench
	$(CARGO) build --release --workspace
	@bench/fleet.sh $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_OPTIONS)

bench-coherence: ## Measure how soon a change by one session is seen by another, and what looking again costs
	@$(DEPS) build test bench
	$(CARGO) build --release --workspace
	@bench/coherence.sh $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_OPTIONS)

bench-meta: ## Measure how fast meta build reads, against plain reading (BENCH_OPTIONS=…)
	@$(DEPS) build test bench
	$(CARGO) build --release --workspace
	@bench/meta.sh $(BENCH_OPTIONS)

fmt: ## Format the source
	$(CARGO) fmt --all

lint: ## Lints only: clippy, and shellcheck where it is installed
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck -x $(SCRIPTS); \
	else echo "shellcheck is not installed: the shell scripts were not checked"; fi

clean: ## Remove everything that was built, guests included
	$(CARGO) clean

install: ## Install into $(DESTDIR)$(PREFIX) what `make build` built: command, units, mount(8) helpers, man pages
	@test -x $(BINARY) || { echo "nothing to install: run 'make build' first" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/gridvfs
	for side in user system; do \
		install -d $(DESTDIR)$(PREFIX)/lib/systemd/$$side && \
		for unit in gridvfs@ gridvfs-proxy@; do \
			sed 's,=\(-\?\)gridvfs ,=\1$(PREFIX)/bin/gridvfs ,' packaging/systemd/$$side/$$unit.service \
				>$(DESTDIR)$(PREFIX)/lib/systemd/$$side/$$unit.service || exit 1; \
		done; \
	done
	install -d $(DESTDIR)$(MOUNT_HELPERS)
	for helper in mount umount; do \
		ln -sf $(PREFIX)/bin/gridvfs $(DESTDIR)$(MOUNT_HELPERS)/$$helper.fuse.gridvfs || exit 1; \
	done
	pages=$$(mktemp -d) && trap 'rm -rf "$$pages"' EXIT && $(BINARY) pages "$$pages" && \
		install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 "$$pages"/man/*.1 && \
		install -D -m 644 "$$pages/completions/gridvfs.bash" $(DESTDIR)$(PREFIX)/share/bash-completion/completions/gridvfs && \
		install -D -m 644 "$$pages/completions/_gridvfs" $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_gridvfs && \
		install -D -m 644 "$$pages/completions/gridvfs.fish" $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/gridvfs.fish
