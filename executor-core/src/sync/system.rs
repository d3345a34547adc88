//! The standard library's atomics and locks, and `crossbeam`'s parker and deques: what runs.

#![expect(clippy::disallowed_types, reason = "this is the facade the lint points to")]

pub use std::sync::atomic::{Ordering, fence};
pub use std::sync::{Arc, MutexGuard};
pub use std::thread_local;

pub use crossbeam_utils::sync::{Parker, Unparker};

use std::sync::{PoisonError, TryLockError};
use std::time::Duration;

// Aliases: the lint looks through a re-export, and would complain at every use of one.
/// [`std::cell::UnsafeCell`].
pub type UnsafeCell<T> = std::cell::UnsafeCell<T>;
/// [`std::sync::atomic::AtomicPtr`].
pub type AtomicPtr<T> = std::sync::atomic::AtomicPtr<T>;
/// [`std::sync::atomic::AtomicBool`].
pub type AtomicBool = std::sync::atomic::AtomicBool;
/// [`std::sync::atomic::AtomicU8`].
pub type AtomicU8 = std::sync::atomic::AtomicU8;
/// [`std::sync::atomic::AtomicU32`].
pub type AtomicU32 = std::sync::atomic::AtomicU32;
/// [`std::sync::atomic::AtomicU64`].
pub type AtomicU64 = std::sync::atomic::AtomicU64;
/// [`std::sync::atomic::AtomicUsize`].
pub type AtomicUsize = std::sync::atomic::AtomicUsize;

/// [`std::sync::Mutex`] without poisoning.
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A mutex around `value`.
    pub const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    /// What it guarded.
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> Mutex<T> {
    /// The lock, if nobody holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`std::sync::Condvar`] for [`Mutex`].
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    /// A condition nobody waits for.
    #[must_use]
    pub const fn new() -> Self {
        Self(std::sync::Condvar::new())
    }

    /// Waits to be told.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits to be told, for at most `limit`.
    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, limit: Duration) -> MutexGuard<'a, T> {
        self.0.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Tells everybody who waits.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Tells one who waits.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }
}

/// An acquire fence behind a relaxed or releasing access to `word`, whose earlier writers it orders before what follows.
#[inline]
pub fn acquire_fence_after(word: &AtomicU64) {
    // ThreadSanitizer does not understand fences. (`--cfg tsan` is ours: the compiler's own name for it is not stable.)
    if cfg!(tsan) {
        word.load(Ordering::Acquire);
    } else {
        fence(Ordering::Acquire);
    }
}

/// Threads.
pub mod thread {
    pub use std::thread::{Builder, JoinHandle, ThreadId, current, yield_now};
}

/// The work-stealing deques.
pub mod deque {
    pub use crossbeam_deque::{Steal, Stealer, Worker};
}

/// Where memory is accessed through raw pointers: says to a model checker what an [`UnsafeCell`] would. Here, nothing.
#[derive(Debug, Default)]
pub struct Access(());

impl Access {
    /// An access not watched yet.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self(())
    }

    /// The memory is read, maybe by others too.
    #[inline]
    pub const fn reads(&self) {}

    /// The memory is read or written by this thread alone.
    #[inline]
    pub const fn writes(&self) {}
}
