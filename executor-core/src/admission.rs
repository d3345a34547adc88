//! What every pool asks before it accepts a task: why not, and whether a bounded queue has a place for it.

#[cfg(all(test, loom))]
mod loom;

use crate::error::{SubmitError, TaskError};
use crate::sync::{Condvar, Mutex};

/// Why a task is not accepted.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "internal to the workspace")]
pub enum Refusal {
    /// The bounded queue is full.
    Full,
    /// The pool was shut down.
    ShutDown,
    /// The pool is broken, for this reason.
    Broken(Box<str>),
    /// This process is a forked child of the one that built the pool.
    ForkedChild,
}

impl From<Refusal> for TaskError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Self::Broken("the queue is full".into()), // never: `submit` waits
            Refusal::ShutDown => Self::ShutDown,
            Refusal::Broken(reason) => Self::Broken(reason),
            Refusal::ForkedChild => Self::ForkedChild,
        }
    }
}

impl Refusal {
    /// The error of `try_submit`, which gives everything back.
    pub fn give_back<F, A>(self, function: F, argument: A) -> SubmitError<F, A> {
        match self {
            Self::Full => SubmitError::Full { function, argument },
            Self::ShutDown => SubmitError::ShutDown { function, argument },
            Self::Broken(reason) => SubmitError::Broken { function, argument, reason: reason.into() },
            Self::ForkedChild => SubmitError::ForkedChild { function, argument },
        }
    }
}

/// The places of a bounded queue.
#[derive(Debug)]
pub struct Capacity {
    limit: Option<usize>,
    taken: Mutex<usize>,
    free: Condvar,
}

impl Capacity {
    /// `limit` places; `None` for no bound.
    #[must_use]
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, taken: Mutex::new(0), free: Condvar::new() }
    }

    /// Whether there is a bound.
    #[must_use]
    pub const fn is_bounded(&self) -> bool {
        self.limit.is_some()
    }

    /// Takes a place if one is free.
    #[must_use]
    pub fn try_take(&self) -> bool {
        let Some(limit) = self.limit else { return true };
        let mut taken = self.taken.lock();
        let free = *taken < limit;
        if free {
            *taken += 1;
        }
        free
    }

    /// Takes a place whether one is free or not: for whoever must not wait.
    pub fn take_anyway(&self) {
        *self.taken.lock() += 1;
    }

    /// Waits for a place; gives up when `check` fails.
    ///
    /// # Errors
    ///
    /// That of `check`.
    pub fn take(&self, check: impl Fn() -> Result<(), Refusal>) -> Result<(), Refusal> {
        let Some(limit) = self.limit else { return Ok(()) };
        let mut taken = self.taken.lock();
        loop {
            check()?;
            if *taken < limit {
                *taken += 1;
                return Ok(());
            }
            taken = self.free.wait(taken);
        }
    }

    /// Frees a place.
    #[inline]
    pub fn give_back(&self) {
        if self.limit.is_some() {
            let mut taken = self.taken.lock();
            *taken = taken.saturating_sub(1);
            drop(taken);
            self.free.notify_one();
        }
    }

    /// Lets everybody who waits check again. Under the lock, so that nobody is between its check and its wait.
    pub fn wake_all(&self) {
        drop(self.taken.lock());
        self.free.notify_all();
    }
}
