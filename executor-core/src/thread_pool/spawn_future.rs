//! `spawn_future`: the pool polls a future.
//!
//! The future is polled by tasks of the pool, one after the other; between two of them it lies in its [`AsyncTask`], which
//! is its waker. One word says who may schedule the next poll:
//!
//! ```text
//!   IDLE ──wake──► SCHEDULED ──a worker takes it──► POLLING ──pending──► IDLE
//!                      ▲                               │ wake
//!                      └──────────pending───────── NOTIFIED
//! ```
//!
//! A wake that finds SCHEDULED or NOTIFIED has nothing to do, since a poll comes that sees what it was about. (The states
//! of async-task and of tokio's task, without their reference counts.)
//!
//! # How it ends without being ready
//!
//! The pool has a table of its futures, [`Futures`]. An abort finds the future there and wakes it; the poll sees the token
//! and drops it. A shutdown wakes them all: their polls are refused, and a poll that is dropped unrun ([`Turn`]), for that
//! reason or because it was cancelled in the queue, ends its future. A poll that ends IDLE asks once more whether the pool
//! is ending, in case the shutdown's round came before.
//!
//! The table and the handle do not keep a future alive, only its wakers do: one that nobody can wake goes with the last of
//! them. What is left of it in the table then, a weak reference, goes too ([`AsyncTask`]'s destructor).
//!
//! A waker never waits: its poll takes a place in a bounded queue whether there is one or not. It holds no handle of the
//! pool, which it might be the last to drop.

#[cfg(all(test, loom))]
mod loom;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll, Wake, Waker};

use crate::error::TaskError;
use crate::fork::PoolId;
use crate::future::{Promise, TaskFuture};
use crate::owner::{self, Owner};
use crate::panic_report::{self, PanicReport};
use crate::sync::{Arc, AtomicU32, Mutex, Ordering};
use crate::trace::Here;

use super::pool::ThreadPoolExecutor;
use super::registry::{Registry, WhenFull};

impl ThreadPoolExecutor {
    /// Polls `future` on the pool until it is ready. It may wait for anything that wakes it: other tasks, or the timers
    /// and sockets of any runtime. (Those of tokio are made inside a runtime: enter one with `Handle::enter` where the
    /// future is made or, if it makes them itself, wrap it so that it is polled inside.)
    ///
    /// [`abort`](TaskFuture::abort) drops the future at its next await point, on the pool, whether it is woken there or
    /// not; the outcome is then [`TaskError::Cancelled`]. So does dropping a future with
    /// [`cancel_on_drop`](TaskFuture::cancel_on_drop). `cancel` does so only before the first poll.
    ///
    /// In the pool's counters each poll is a task.
    ///
    /// A shutdown does not wait for a future that waits: it drops it, and the outcome is [`TaskError::ShutDown`]. One that
    /// nobody can wake any more, because all its wakers are gone, is dropped at once: [`TaskError::Abandoned`].
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let slow = pool.submit(|n: u32| n * 2, 21);
    /// let answer = pool.spawn_future(async move { slow.await.map(|n| n + 1) });
    /// assert_eq!(answer.result()??, 43);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn_future<F>(&self, future: F) -> TaskFuture<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let registry = self.registry();
        if registry.id.is_inherited() {
            let (promise, handle) = Promise::of_pool(PoolId::NONE, None);
            promise.complete(Err(TaskError::ForkedChild));
            return handle;
        }
        let futures = registry.futures();
        let (promise, handle) = Promise::of_pool(futures.pool, None);
        let task = Arc::new(AsyncTask {
            state: AtomicU32::new(SCHEDULED),
            id: promise.id(),
            registry: Arc::downgrade(registry),
            span: Here::now(),
            errand: Mutex::new(Some((Box::pin(future), promise))),
        });
        let entry: Weak<AsyncTask<F>> = Arc::downgrade(&task);
        futures.table.lock().insert(task.id, entry);
        registry.enqueue(WhenFull::Wait, Turn::of(&task));
        handle.polled()
    }
}

/// The futures of a pool that are not over. They belong to a pool number of their own: no worker may claim one and run it
/// in place.
pub(super) struct Futures {
    pool: PoolId,
    table: Mutex<BTreeMap<usize, Weak<dyn Polled>>>,
}

trait Polled: Send + Sync {
    fn wake_up(self: Arc<Self>);
}

impl Futures {
    pub(super) fn new() -> Arc<Self> {
        let futures = Arc::new(Self { pool: PoolId::next(), table: Mutex::new(BTreeMap::new()) });
        let weak = Arc::downgrade(&futures);
        owner::register(futures.pool, weak);
        futures
    }

    pub(super) fn wake_all(&self) {
        let all: Vec<_> = self.table.lock().values().filter_map(Weak::upgrade).collect();
        all.into_iter().for_each(Polled::wake_up);
    }

    /// The pool is gone.
    pub(super) fn strike_out(&self) {
        owner::unregister(self.pool);
    }
}

impl Owner for Futures {
    fn cancelled(&self) {} // its first poll finds out, and drops the future

    fn abort(&self, task: usize) -> bool {
        let found = self.table.lock().get(&task).and_then(Weak::upgrade);
        found.is_some_and(|task| {
            task.wake_up();
            true
        })
    }

    fn report_panic(&self, _: &PanicReport) {} // of a callback: the pool's own number is not known to it
}

/// The future, and where its value goes.
type Errand<F> = (Pin<Box<F>>, Promise<<F as Future>::Output>);

struct AsyncTask<F: Future> {
    state: AtomicU32,
    /// What it is called in the table.
    id: usize,
    registry: Weak<Registry>,
    /// Where it was spawned.
    span: Here,
    /// Not there while it is polled, and when it is over.
    errand: Mutex<Option<Errand<F>>>,
}

const IDLE: u32 = 0;
const SCHEDULED: u32 = 1;
const POLLING: u32 = 2;
const NOTIFIED: u32 = 3;

/// A poll in the queue. Dropped unrun, it ends the future.
struct Turn<F>(Option<Arc<AsyncTask<F>>>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static;

impl<F> Turn<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn of(task: &Arc<AsyncTask<F>>) -> impl FnOnce() + Send + 'static {
        let turn = Self(Some(Arc::clone(task)));
        move || turn.run()
    }

    fn run(mut self) {
        if let Some(task) = self.0.take() {
            task.poll();
        }
    }
}

impl<F> Drop for Turn<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            let refusal = task.registry.upgrade().and_then(|registry| registry.refusal());
            task.end(refusal.unwrap_or(TaskError::ShutDown));
        }
    }
}

impl<F> AsyncTask<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    /// Has the pool poll it. SCHEDULED, by the caller.
    fn schedule(self: &Arc<Self>) {
        let turn = Turn::of(self);
        match self.registry.upgrade() {
            Some(registry) => registry.enqueue(WhenFull::Exceed, turn),
            None => drop(turn),
        }
    }

    fn poll(self: &Arc<Self>) {
        // ORDERING: seq-cst, here and below: whoever polls next sees what this poll, and every wake before it, did; and see
        // the end of a poll.
        self.state.store(POLLING, Ordering::SeqCst);
        let taken = self.errand.lock().take();
        let Some((mut future, promise)) = taken else { return };
        // Aborted, or cancelled before it began.
        if promise.is_aborted() || !promise.set_running() {
            return self.finish(future, promise, Err(TaskError::Cancelled));
        }
        let waker = Waker::from(Arc::clone(self));
        let poll = || self.span.within(|| future.as_mut().poll(&mut Context::from_waker(&waker)));
        match panic_report::catch(poll) {
            Ok(Poll::Pending) => {
                *self.errand.lock() = Some((future, promise));
                let rests =
                    self.state.compare_exchange(POLLING, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_ok();
                if !rests {
                    self.state.store(SCHEDULED, Ordering::SeqCst);
                    self.schedule();
                } else if self.registry.upgrade().is_none_or(|registry| registry.is_ending()) {
                    // ORDERING: the phase is read after IDLE was written, and a shutdown writes the phase before it wakes
                    // everybody, all seq-cst: so that wake finds IDLE, or this one follows.
                    Arc::clone(self).wake();
                }
            }
            Ok(Poll::Ready(value)) => self.finish(future, promise, Ok(value)),
            Err(report) => {
                if promise.is_detached()
                    && let Some(registry) = self.registry.upgrade()
                {
                    owner::report_panic(registry.id, &report);
                }
                self.finish(future, promise, Err(TaskError::Panicked(report)));
            }
        }
    }

    /// Ends it where it lies.
    fn end(&self, error: TaskError) {
        let taken = self.errand.lock().take();
        if let Some((future, promise)) = taken {
            self.finish(future, promise, Err(error));
        }
    }

    /// The future goes first: who sees the outcome sees it gone.
    fn finish(
        &self,
        future: Pin<Box<F>>,
        promise: Promise<F::Output>,
        outcome: Result<F::Output, TaskError>,
    ) {
        panic_report::swallow(|| self.span.within(|| drop(future)));
        if let Some(registry) = self.registry.upgrade() {
            let entry = registry.futures().table.lock().remove(&self.id);
            drop(entry);
        }
        promise.complete(outcome);
    }
}

impl<F> Polled for AsyncTask<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn wake_up(self: Arc<Self>) {
        self.wake();
    }
}

impl<F> Wake for AsyncTask<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn wake(self: Arc<Self>) {
        let woken = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| match state {
            IDLE => Some(SCHEDULED),
            POLLING => Some(NOTIFIED),
            _ => None,
        });
        if woken == Ok(IDLE) {
            self.schedule();
        }
    }
}
