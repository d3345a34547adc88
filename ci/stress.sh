#!/usr/bin/env bash
# The stress tests of threads (tests/threads/stress.rs), $1 rounds of them (3), each with a new seed and $2 seconds a test (2).
# A round that fails says with which seed: CONCURRENT_FUTURES_TEST_SEED=<seed> ci/stress.sh 1 makes the same choices again.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3}
export CONCURRENT_FUTURES_TEST_SECONDS=${2:-2}
cargo test --release --test threads --locked --no-run
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for round in $(seq "$rounds"); do
    status=0
    cargo test --release --quiet --test threads --locked stress:: -- --nocapture >"$log" 2>&1 || status=$?
    echo "round $round of $rounds: $(grep -o '[a-z_]*: CONCURRENT_FUTURES_TEST_SEED=[0-9]*' "$log" | tr '\n' ' ')"
    if [ "$status" != 0 ]; then
        cat "$log"
        exit "$status"
    fi
done
