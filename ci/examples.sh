#!/usr/bin/env bash
# The examples and benchmarks build.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --examples --benches --locked
