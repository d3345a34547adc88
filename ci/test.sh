#!/usr/bin/env bash
# The README's command: unit, integration and documentation tests of every crate.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo test --workspace --locked
