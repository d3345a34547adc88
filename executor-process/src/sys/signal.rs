//! Signals of the fork server and its workers.
//!
//! The fork server has every signal blocked, reads SIGCHLD from a descriptor, and gives each worker an empty mask. The
//! dispositions are made right once, in the fork server, and inherited.
//!
//! * I1: only dispositions are changed to the default or to "ignore": no handler of ours is ever installed.

use super::retry;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;

/// Blocks everything that can be blocked, for the calling thread and the threads it starts.
pub(crate) fn block_all() -> io::Result<()> {
    retry(|| sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None))
}

/// Blocks nothing.
pub(crate) fn block_none() -> io::Result<()> {
    retry(|| sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None))
}

/// Undoes what the program that started this one, or this one before a fork, did to its signals: all are back to the
/// default, but SIGPIPE is ignored as in every Rust program, and handlers of *faults* stay: the standard library's
/// report of a stack overflow and a sanitizer's of a bad access are worth as much in a worker.
pub(crate) fn reset_dispositions() {
    for signal in 1..=libc::SIGRTMAX() {
        let disposition = match signal {
            libc::SIGKILL | libc::SIGSTOP => continue,
            libc::SIGPIPE => libc::SIG_IGN,
            _ if is_fault(signal) && has_handler(signal) => continue,
            _ => libc::SIG_DFL,
        };
        // SAFETY: I1. The C library keeps two signals for itself and answers EINVAL for them, which is as well.
        unsafe { libc::signal(signal, disposition) };
    }
}

const fn is_fault(signal: c_int) -> bool {
    matches!(
        signal,
        libc::SIGSEGV
            | libc::SIGBUS
            | libc::SIGILL
            | libc::SIGFPE
            | libc::SIGTRAP
            | libc::SIGSYS
            | libc::SIGABRT
    )
}

fn has_handler(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: I1: with no new action the call only reads the old one into memory of ours.
    let answer = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeros are a valid `sigaction`, and the call fills it or leaves it.
    let action = unsafe { action.assume_init() };
    answer == 0 && action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN
}

/// A descriptor that is readable when a child has ended. SIGCHLD must be blocked.
#[derive(Debug)]
pub(crate) struct ChildSignals(SignalFd);

impl ChildSignals {
    pub(crate) fn new() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        Ok(Self(retry(|| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))?))
    }

    /// Takes what is there. One signal may stand for many children: ask for all that have ended *afterwards*.
    pub(crate) fn clear(&self) {
        while let Ok(Some(_)) = retry(|| self.0.read_signal()) {}
    }
}

impl AsFd for ChildSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
