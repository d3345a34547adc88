//! `join`: two closures, at the same time if somebody else has time for one of them.
//!
//! A fork costs a task, about 60 ns; a call costs 1. What makes forks worth their price is a thief, and a thief takes the
//! oldest ones, which are the largest. So a worker forks only while its own deque holds fewer than [`ENOUGH_FORKS`] tasks:
//! below that, `join` is two calls, and when thieves have been there it forks again. (The idea of lazy task creation; Mohr,
//! Kranz and Halstead 1991. That a look at the deque's length is enough to decide is due to Duran, Corbalán and Ayguadé 2008.)
//!
//! A fork is a task like any other, except that it borrows, and is *bound*: the stack below needs it, so it is neither
//! cancelled nor refused, whatever becomes of the pool. If no thief comes, the worker takes it back and runs it in place.
//!
//! * **J1** Nobody returns or unwinds from a `join` before its task is over and the outcome is taken. So whatever the task
//!   borrows from there outlives it. (In a forked child, a task that a thief had will never be over; nobody is left
//!   who could touch it, either.)
//! * **J2** [`HERE`] points to the registry and the deques of this thread's worker while that lives, and to nothing else.

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;

use crate::error::TaskError;
use crate::future::{claim, settle};
use crate::host::{self, Host};
use crate::sync::thread_local;
use crate::task::{self, Handle, Outcome};
use crate::trace::Here;

use super::pool::ThreadPoolExecutor;
use super::queue::Local;
use super::registry::{Registry, WhenFull};
use super::scope::raise;

/// With so many tasks for thieves to take, a worker makes no more. More of them cost forks nobody takes; fewer leave thieves
/// waiting for the next one.
const ENOUGH_FORKS: usize = 4;

thread_local! {
    static HERE: Cell<(*const Registry, *const Local)> = const { Cell::new((ptr::null(), ptr::null())) };
}

/// Lets `join` find the deques of this thread's worker, until the guard is dropped.
pub(super) fn enter<'worker>(registry: &'worker Registry, local: &'worker Local) -> Entered<'worker> {
    HERE.set((registry, local));
    Entered(PhantomData)
}

/// The proof that J2 holds. Never forgotten.
#[must_use]
pub(super) struct Entered<'worker>(PhantomData<&'worker Local>);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        HERE.set((ptr::null(), ptr::null()));
    }
}

/// Whether this is a worker of this pool that has made enough forks.
#[inline]
fn has_enough_forks(registry: &Registry) -> bool {
    let (here, local) = HERE.get();
    // SAFETY: J2: the registry is that of this thread's worker, so `local` is there.
    ptr::eq(here, registry) && unsafe { &*local }.forks() >= ENOUGH_FORKS
}

impl ThreadPoolExecutor {
    /// Runs both closures and returns both values: at the same time where a worker has time for the second one, else one
    /// after the other. On one of the pool's workers, `a` runs on it.
    ///
    /// Meant to be called inside itself, down to the smallest piece of work: a call costs a nanosecond or two where nobody
    /// has time. Neither closure may wait for the other one.
    ///
    /// # Panics
    ///
    /// If one of them panics, with the same payload; the other one has then ended or never started. Outside the pool's
    /// workers, if the pool was shut down.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(2)?;
    /// fn sum(pool: &executor_core::ThreadPoolExecutor, numbers: &[u64]) -> u64 {
    ///     if numbers.len() < 2 {
    ///         return numbers.iter().sum();
    ///     }
    ///     let (left, right) = numbers.split_at(numbers.len() / 2);
    ///     let (left, right) = pool.join(|| sum(pool, left), || sum(pool, right));
    ///     left + right
    /// }
    /// assert_eq!(sum(&pool, &[1, 2, 3, 4]), 10);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    #[inline]
    pub fn join<A, B, RA, RB>(&self, a: A, b: B) -> (RA, RB)
    where
        A: FnOnce() -> RA + Send,
        B: FnOnce() -> RB + Send,
        RA: Send,
        RB: Send,
    {
        if has_enough_forks(self.registry()) {
            return (a(), b());
        }
        match host::current().filter(|host| self.owns(&**host)) {
            Some(host) => self.fork(&*host, a, b),
            None => self.run_borrowed(|| self.join(a, b)),
        }
    }

    fn fork<A, B, RA, RB>(&self, host: &dyn Host, a: A, b: B) -> (RA, RB)
    where
        A: FnOnce() -> RA,
        B: FnOnce() -> RB + Send,
        RB: Send,
    {
        let registry = self.registry();
        let Some(admission) = host.has_room().then(|| registry.admit(WhenFull::Refuse)).and_then(Result::ok)
        else {
            return (a(), b());
        };
        let here = Here::now();
        // SAFETY: J1: `finish` waits for it and takes the outcome, and nothing before that unwinds.
        let (queued, forked) = unsafe { task::new_borrowed(registry.id, true, move || here.within(b)) };
        // Where the pool has begun to end meanwhile, it runs here at the latest.
        let _ = registry.accept(queued, admission);
        let a = catch_unwind(AssertUnwindSafe(a));
        let b = finish(host, forked);
        match (a, b) {
            (Ok(a), Ok(b)) => (a, b),
            (Err(payload), _) => resume_unwind(payload),
            (Ok(_), Err(error)) => raise_error(&error),
        }
    }

    /// Runs `work` on a worker; this thread, which is none, waits.
    pub(super) fn run_borrowed<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let registry = self.registry();
        let admission = match registry.admit(WhenFull::Wait) {
            Ok(admission) => admission,
            Err(refusal) => raise_error(&refusal.into()),
        };
        let here = Here::now();
        // SAFETY: J1: it is waited for and its outcome taken, and nothing before that unwinds.
        let (queued, mut sent) = unsafe { task::new_borrowed(registry.id, false, move || here.within(work)) };
        if let Err(refusal) = registry.accept(queued, admission)
            && sent.refuse(refusal.into())
        {
            registry.withdrawn();
        }
        settle(&sent);
        take(&mut sent).unwrap_or_else(|error| raise_error(&error))
    }
}

/// Runs the task here, or waits for the thief that does.
pub(super) fn finish<R>(host: &dyn Host, mut forked: Handle<R>) -> Outcome<R> {
    match claim(host, &forked) {
        Some(started) => host.run(started),
        None => settle(&forked),
    }
    take(&mut forked)
}

fn take<R>(over: &mut Handle<R>) -> Outcome<R> {
    over.take().expect("J1: it is over, and its outcome is taken here alone")
}

#[cold]
fn raise_error(error: &TaskError) -> ! {
    match error {
        TaskError::Panicked(report) => raise(report),
        other => panic!("a closure was not run: {other}"),
    }
}
