#!/usr/bin/env bash
# No warning from the compiler or from clippy, in any target, nor in the models (ci/loom.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
rustup component add clippy >/dev/null 2>&1 || true # a no-op where it is there
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" cargo clippy -p executor-core --all-targets --locked \
    --target-dir "${CARGO_TARGET_DIR:-target}/loom" -- -D warnings
