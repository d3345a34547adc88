#!/usr/bin/env bash
# Formatted as rustfmt.toml says.
set -euo pipefail
cd "$(dirname "$0")/.."
rustup component add rustfmt >/dev/null 2>&1 || true # a no-op where it is there
cargo fmt --all -- --check
