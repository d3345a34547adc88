//! System calls. Nothing else in this crate names `libc` or `nix`.
//!
//! The rules kept by every file below:
//!
//! * EINTR never leaves this module: a call is repeated, with what is left of its time.
//! * Descriptors are `OwnedFd`/`BorrowedFd`, and every one made here is close-on-exec from its first instant.
//! * An errno becomes an `io::Error` at the call.
//! * Process ids are `u32`, as in the standard library.

pub(crate) mod fd;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod objects;
pub(crate) mod oom;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod signal;
pub(crate) mod socket;

use nix::errno::Errno;
use std::io;
use std::time::{Duration, Instant};

/// Repeats a call while a signal handler interrupts it.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// What is left until `deadline` in the milliseconds of `poll` and `epoll_wait`: rounded up, so that a wait never ends
/// early and spins; `None` is for ever.
fn milliseconds_until(deadline: Option<Instant>) -> Option<u16> {
    let left = deadline?.saturating_duration_since(Instant::now());
    // A longer wait than 65 s is cut; callers look at the clock again anyway.
    let rounded_up = left.saturating_add(Duration::from_nanos(999_999)).as_millis();
    Some(u16::try_from(rounded_up).unwrap_or(u16::MAX))
}

/// The instant `timeout` from now; `None`, for ever, if the clock cannot hold it.
fn deadline_after(timeout: Option<Duration>) -> Option<Instant> {
    Instant::now().checked_add(timeout?)
}
