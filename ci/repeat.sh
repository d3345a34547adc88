#!/usr/bin/env bash
# The fault tests (tests/faults), $1 times in a row (10), in release: what fails once in a hundred runs shows here, and nowhere else.
# Each run prints its number and what the test program said at its end; the first that fails prints all it said, and ends the script.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-10}
program=$(cargo test --release --test faults --locked --no-run --message-format=json-render-diagnostics \
    | grep -o '"executable":"[^"]*/faults-[^"]*"' | cut -d'"' -f4)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for run in $(seq "$runs"); do
    status=0
    "$program" >"$log" 2>&1 || status=$?
    echo "run $run of $runs: $(grep -a '^test result' "$log" || echo "no result, status $status")"
    if [ "$status" != 0 ]; then
        cat "$log"
        exit "$status"
    fi
done
