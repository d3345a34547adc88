#!/usr/bin/env bash
# Undefined behaviour and data races, as Miri sees them: executor-core/tests/miri.rs, once for each of a few seeds, which
# choose the interleaving and what weak loads return. MIRI_SEEDS=64 ci/miri.sh tries more.
set -euo pipefail
cd "$(dirname "$0")/.."
source ci/nightly.sh
need_nightly
if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "the nightly toolchain lacks Miri: rustup +nightly component add miri" >&2
    exit 69
fi
# All three for crossbeam-epoch, under the deques: it goes from a field to its whole (not allowed by stacked borrows), keeps
# pointers as integers, and leaves its last garbage to the end of the process. Our own values are counted by the tests,
# and asan.sh looks for leaks.
flags="-Zmiri-tree-borrows -Zmiri-permissive-provenance -Zmiri-ignore-leaks"
MIRIFLAGS="$flags -Zmiri-many-seeds=0..${MIRI_SEEDS:-2}" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri" \
    cargo +nightly miri test -p executor-core --test miri --locked -- "$@"
