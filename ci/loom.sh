#!/usr/bin/env bash
# The protocols model-checked by loom: every file called loom.rs, and executor-core/tests/loom_gate.rs and loom_bell.rs. Each
# model states the number of preemptions it allows; LOOM_MAX_PREEMPTIONS=5 ci/loom.sh asks for more (and hours), and a name
# after it runs the models with that in their path alone.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" RUST_BACKTRACE="${RUST_BACKTRACE:-0}"
target="${CARGO_TARGET_DIR:-target}/loom" # of its own: other builds have other flags
# A model that fails may abort its process, so the output is not captured: the last name is the one. One after the other:
# each makes and drops thousands of stacks a second, and two at once would wait for the kernel's lock on that.
cargo test --release -p executor-core --lib --test loom_gate --test loom_bell --target-dir "$target" --locked -- \
    --test-threads=1 --nocapture "${1:-}"
