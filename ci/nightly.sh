# What miri.sh, tsan.sh and asan.sh begin with; to be sourced. They need a nightly toolchain with two components:
#     rustup toolchain install nightly --component miri --component rust-src
# It says what is missing and ends the script with 69 (EX_UNAVAILABLE), which .ci/run takes for "skipped".
need_nightly() {
    if ! rustc +nightly --version >/dev/null 2>&1; then
        echo "no nightly toolchain: rustup toolchain install nightly --component miri --component rust-src" >&2
        exit 69
    fi
    if [ ! -d "$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library" ]; then
        echo "the nightly toolchain lacks its source: rustup +nightly component add rust-src" >&2
        exit 69
    fi
}

# Runs the tests named by "$@" under sanitizer $1, with the standard library built for it, too: an allocation or a lock
# inside it would else not be seen.
sanitized() {
    local sanitizer=$1 host
    shift
    host=$(rustc +nightly -vV | sed -n 's/^host: //p')
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/$sanitizer" \
        cargo +nightly test -Zbuild-std --target "$host" --locked "$@"
}
