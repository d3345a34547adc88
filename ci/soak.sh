#!/usr/bin/env bash
# Kills at random instants (tests/faults/storms.rs) for $1 minutes (10), by hand: each test again and again, with $2 kills (5000)
# each time and new seeds. Prints what the tests said, and at the end the sums.
set -euo pipefail
cd "$(dirname "$0")/.."
end=$((SECONDS + ${1:-10} * 60))
export CONCURRENT_FUTURES_TEST_KILLS=${2:-5000}
cargo test --release --test faults --locked --no-run
log=$(mktemp)
trap 'rm -f "$log" "$log.now"' EXIT
round=0
while [ "$SECONDS" -lt "$end" ]; do
    round=$((round + 1))
    status=0
    cargo test --release --quiet --test faults --locked storms:: -- --nocapture --test-threads=1 >"$log.now" 2>&1 || status=$?
    if [ "$status" != 0 ]; then
        cat "$log.now"
        exit "$status"
    fi
    cat "$log.now" >>"$log"
    echo "round $round: $(grep -a 'test result: ok' "$log.now" | tail -1)"
done
grep -aE ' tasks, [0-9]+ killed, [0-9]+ died' "$log" | awk '
    { tasks += $1; for (i = 2; i <= NF; i++) { if ($i ~ /^killed/) killed += $(i - 1); if ($i == "died") died += $(i - 1) } }
    END { print tasks " tasks, " killed " workers killed, " died " tasks died with them, none lost, none run twice" }'
