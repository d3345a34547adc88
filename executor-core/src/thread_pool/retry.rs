//! Runs that follow a panic: `Options::retries` on threads.
//!
//! All runs are one task: the loop is inside its function, on the worker that took it. So the task is counted once, can be
//! awaited, run in place and labelled like any other, and nothing is queued between two runs that could be lost.
//!
//! Between two runs this asks whether there is to be another: not if the task was aborted or its time is up (both set its
//! token), nor if the pool cancels what has not started. Then the clock of the next run starts.

use std::sync::Weak;
use std::time::Instant;

use crate::call::Payload;
use crate::codec;
use crate::error::TaskError;
use crate::panic_report;
use crate::sync::Arc;
use crate::task;

use super::registry::Registry;

/// How often, and whom to ask before.
#[derive(Clone)]
pub(super) struct Retry {
    retries: u32,
    /// A task keeps no pool alive.
    registry: Weak<Registry>,
}

/// An argument that can be had again without being `Clone`.
pub(super) struct Encoded<A> {
    first: A,
    bytes: Vec<u8>,
}

impl<A: Payload> Encoded<A> {
    /// # Errors
    ///
    /// [`TaskError::Encode`].
    pub(super) fn new(first: A) -> Result<Self, TaskError> {
        let mut bytes = Vec::new();
        codec::encode(&first, &mut bytes).map_err(TaskError::Encode)?;
        Ok(Self { first, bytes })
    }
}

impl Retry {
    pub(super) fn new(retries: u32, registry: &Arc<Registry>) -> Self {
        Self { retries, registry: Arc::downgrade(registry) }
    }

    /// Calls `f` with clones of `arg`, and the last time with `arg` itself.
    pub(super) fn run<A: Clone, R>(&self, f: impl Fn(A) -> R, arg: A) -> R {
        let mut kept = Some(arg);
        self.run_each(|is_last| {
            let arg = if is_last { kept.take() } else { kept.clone() };
            f(arg.expect("only the last run takes it"))
        })
    }

    /// Calls `f` with the argument, and then with what its encoding says.
    pub(super) fn run_encoded<A: Payload, R>(&self, f: impl Fn(A) -> R, arg: Encoded<A>) -> R {
        let mut first = Some(arg.first);
        self.run_each(|_| {
            let again = || match codec::decode(&arg.bytes) {
                Ok(again) => again,
                Err(problem) => panic!("the argument could not be decoded for another run: {problem}"),
            };
            f(first.take().unwrap_or_else(again))
        })
    }

    /// Calls `run` until it returns; it is told whether this time is the last.
    fn run_each<R>(&self, mut run: impl FnMut(bool) -> R) -> R {
        let mut attempts = 0;
        loop {
            let is_last = attempts == self.retries;
            attempts = attempts.saturating_add(1);
            match panic_report::catch(|| run(is_last)) {
                Ok(value) => return value,
                Err(mut report) => {
                    report.attempts = attempts;
                    if is_last || !self.may_go_on() {
                        panic_report::forward(report);
                    }
                }
            }
        }
    }

    /// Whether there may be another run; if so, its time begins.
    fn may_go_on(&self) -> bool {
        let (Some(registry), Some(task)) = (self.registry.upgrade(), task::current()) else { return false };
        if registry.is_cancelling() || task.is_aborted() {
            return false;
        }
        let Some(details) = task.details() else { return true };
        let (Some(run_limit), Some(timeout)) = (&details.run_limit, details.timeout) else { return true };
        let last = run_limit.lock().take();
        // One that is not there any more: the timer has it, and ends the task.
        if last.is_some_and(|limit| !registry.timer.leave(limit, &task)) {
            return false;
        }
        let limit = Instant::now().checked_add(timeout);
        *run_limit.lock() = limit;
        if let Some(limit) = limit {
            registry.timer.enter(limit, &task, &registry.settings.prefix);
        }
        true
    }
}
