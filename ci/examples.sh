#!/usr/bin/env bash
# The examples build. (The benchmarks are run by bench.sh.)
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --examples --locked
