#!/usr/bin/env bash
# Random input for everything the parent decodes. FUZZ_SECONDS for each target (3 unless told), FUZZ_SEED to repeat a run.
set -euo pipefail
cd "$(dirname "$0")/.."
export FUZZ_SECONDS="${FUZZ_SECONDS:-3}"
cargo test -p executor-process --lib --locked -- fuzz --nocapture
