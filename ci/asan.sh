#!/usr/bin/env bash
# AddressSanitizer with its leak detector: memory used after it was freed, out of bounds, freed twice or never, on real
# threads. In full, the tests of threads, scopes and conformance of threads; `ci/asan.sh short`, those of
# executor-core/tests/miri.rs.
set -euo pipefail
cd "$(dirname "$0")/.."
source ci/nightly.sh
need_nightly
export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address --cfg asan" RUST_BACKTRACE="${RUST_BACKTRACE:-0}"
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=1}"
if [ "${1:-}" = short ]; then
    sanitized address -p executor-core --test miri
else
    # Not what forks, or asks how deep stacks are and how much memory is left: redzones and the quarantine change that.
    sanitized address --test threads --test scope --test conformance -- --test-threads=2 \
        --skip fork:: --skip processes:: --skip process_pool --skip thousand --skip leave_no_memory_behind \
        --skip small_stacks --skip overflow_the_stack "$@"
fi
