#!/usr/bin/env bash
# The main job in its quick form: three tables with the right number of rows, and an error where one is due.
set -euo pipefail
cd "$(dirname "$0")/.."
compare=target/release/examples/compare
cargo build --release --example compare --locked

output=$("$compare" --quick)
printf '%s\n' "$output"
for table in "CPU-bound" "IO-bound" "URL"; do
    grep -q "$table" <<<"$output" || { echo "no table '$table'"; exit 1; }
done
for row in serial threads processes; do
    grep -qi "$row" <<<"$output" || { echo "no row '$row'"; exit 1; }
done

"$compare" --quick --json | tr -d '[:space:]' | grep -q '^{.*}$' || { echo "--json is not one JSON object"; exit 1; }

code=0
"$compare" --urls /does/not/exist 2>/tmp/compare-error.$$ || code=$?
grep -q "/does/not/exist" /tmp/compare-error.$$ || { echo "the error does not name the file"; exit 1; }
rm -f /tmp/compare-error.$$
[ "$code" = 2 ] || { echo "a missing URL file gave exit code $code, not 2"; exit 1; }
