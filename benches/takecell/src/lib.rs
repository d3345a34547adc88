//! A cell whose value can be taken once through a shared reference: what micropool, a peer in the benchmarks, needs of
//! the published `takecell`. One atomic swap a take, as there.

#![no_std]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

/// A value that is taken at most once.
pub struct TakeOwnCell<T> {
    is_taken: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: the value is reached only by the one thread that turned `is_taken` on, which takes it out: it is moved to that
// thread, which `T: Send` allows, and never shared.
unsafe impl<T: Send> Sync for TakeOwnCell<T> {}

impl<T> TakeOwnCell<T> {
    /// A cell that holds `value`.
    pub const fn new(value: T) -> Self {
        Self { is_taken: AtomicBool::new(false), value: UnsafeCell::new(Some(value)) }
    }

    /// The value, for the first caller.
    pub fn take(&self) -> Option<T> {
        if self.is_taken.swap(true, Ordering::Relaxed) {
            return None;
        }
        // SAFETY: only one call ever finds `is_taken` off, and nothing else reaches the value before the drop.
        unsafe { (*self.value.get()).take() }
    }
}
