//! Telling a child made by the user's own `fork` from the process that built a pool (S11).
//!
//! The child has the pools' memory but none of their threads: whoever waited there would wait for ever, and a lock
//! held by another thread at the fork stays held. So nothing but one atomic is read before the answer is known:
//!
//! * every pool takes a [`PoolId`] from one counter, which only grows;
//! * the fork handler, which runs in the child before `fork` returns there, copies the counter to `INHERITED_BELOW`;
//! * a pool is inherited, and refuses every call, if its number is below that mark. A pool built in the child has a
//!   higher number and works.
//!
//! A child made by a raw `clone` system call runs no handlers and is not recognised.

use crate::sync::Ordering;
use crate::sync::system::AtomicU32;

/// The number of a pool; unique in this process and its forked children. 0 stands for "no pool".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(u32);

impl PoolId {
    /// The owner of tasks that no pool can run in place, such as a bare `Promise`.
    pub const NONE: Self = Self(0);

    /// Takes a number for a new pool.
    #[must_use]
    pub fn next() -> Self {
        install_handler();
        // ORDERING: relaxed, only uniqueness matters.
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether the pool was built before a `fork` whose child this process is.
    #[must_use]
    #[inline]
    pub fn is_inherited(self) -> bool {
        // ORDERING: relaxed: written by this very thread, inside `fork`, or before any other thread of the child existed.
        self.0 != 0 && self.0 < INHERITED_BELOW.load(Ordering::Relaxed)
    }
}

/// A static that a forked child gets afresh: the parent's may be locked there by a thread that does not exist.
pub(crate) struct PerProcess<T>([T; GENERATIONS]);

/// A line of so many forked children, each the child of the one before, may build pools without meeting.
pub(crate) const GENERATIONS: usize = 16;

impl<T> PerProcess<T> {
    pub(crate) const fn new(copies: [T; GENERATIONS]) -> Self {
        Self(copies)
    }

    pub(crate) fn here(&self) -> &T {
        // ORDERING: relaxed, as in `is_inherited`.
        &self.0[GENERATION.load(Ordering::Relaxed) as usize % GENERATIONS]
    }
}

/// How often this process's line has forked since the first pool.
static GENERATION: AtomicU32 = AtomicU32::new(0);
static NEXT: AtomicU32 = AtomicU32::new(1);
static INHERITED_BELOW: AtomicU32 = AtomicU32::new(0);

#[cfg(unix)]
fn install_handler() {
    static INSTALLED: std::sync::Once = std::sync::Once::new();

    extern "C" fn in_child() {
        // ORDERING: relaxed: the child has one thread here. Atomic accesses only: safe in a signal handler, so here too.
        INHERITED_BELOW.store(NEXT.load(Ordering::Relaxed), Ordering::Relaxed);
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }

    INSTALLED.call_once(|| {
        // SAFETY: `in_child` neither locks, allocates nor unwinds, which is all that may happen between `fork` and
        // `exec` in the child of a threaded process.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

#[cfg(not(unix))]
fn install_handler() {}
