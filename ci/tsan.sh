#!/usr/bin/env bash
# ThreadSanitizer: data races of the real code on real threads. In full, the tests of threads, scopes and conformance of
# threads; `ci/tsan.sh short`, those of executor-core/tests/miri.rs.
set -euo pipefail
cd "$(dirname "$0")/.."
source ci/nightly.sh
need_nightly
# It does not understand fences: `--cfg tsan` puts a load in the place of ours (sync::acquire_fence_after); the standard
# library and crossbeam do the same by themselves.
export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=thread --cfg tsan" RUST_BACKTRACE="${RUST_BACKTRACE:-0}"
# The longest memory for past accesses. There is nothing to suppress.
export TSAN_OPTIONS="${TSAN_OPTIONS:-history_size=7}"
if [ "${1:-}" = short ]; then
    sanitized thread -p executor-core --test miri
else
    # Not what forks in the middle of threads or measures how long many of them take: it makes all ten times as slow, and
    # its own threads are not there in a forked child.
    sanitized thread --test threads --test scope --test conformance -- --test-threads=2 \
        --skip fork:: --skip processes:: --skip process_pool --skip thousand "$@"
fi
