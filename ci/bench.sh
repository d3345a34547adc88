#!/usr/bin/env bash
# The benchmarks run, small and once: every row is there, and ours gives right results in each. Figures mean nothing here,
# so the profile is the one that builds faster.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

rows() { grep -o '"id": "[A-Z0-9a-z]*"' "$1" | cut -d'"' -f4 | tr '\n' ' '; }
for suite in threads scaling processes; do
    cargo bench --profile release --bench "$suite" --locked -- \
        --test --json "$out/$suite.json" --svg "$out/$suite.svg"
    grep -q "</svg>" "$out/$suite.svg" || { echo "no chart of $suite"; exit 1; }
done
[[ "$(rows "$out/threads.json")" == "T1 T2 T3a T3b T4a T4b T5a T5b T6a T6b T7 T8a T8b T8c T9a T9b T10 " ]]
[[ "$(rows "$out/scaling.json")" == *"T1x1 "*"T4ax1 "*"T6ax1 "*"T6bx1 "* ]]
[[ "$(rows "$out/processes.json")" == "P1a P1b P2a P2b P3a P3b P3c P4a P4am P4b P4bm P4c P4cm P5 P6a P6b P7a P7b " ]]
