#!/usr/bin/env bash
# The thread side alone, without the process feature.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo check --no-default-features --locked
cargo check -p executor-core --locked
