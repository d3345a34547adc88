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

#[cfg(all(test, loom))]
mod loom;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};

use crate::error::TaskError;
use crate::future::{Promise, TaskFuture};
use crate::panic_report;
use crate::sync::{Arc, AtomicU32, Mutex, Ordering};

use super::pool::{ThreadPoolExecutor, WeakExecutor};

impl ThreadPoolExecutor {
    /// Polls `future` on the pool until it is ready. It may wait for anything that wakes it: other tasks, or the timers
    /// and sockets of any runtime.
    ///
    /// A shutdown does not wait for a future that waits: when it is woken after that, it ends in
    /// [`TaskError::ShutDown`].
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
        let (promise, handle) = Promise::new();
        let task = Arc::new(AsyncTask {
            state: AtomicU32::new(SCHEDULED),
            pool: self.downgrade(),
            errand: Mutex::new(Some((Box::pin(future), promise))),
        });
        task.schedule();
        handle
    }
}

/// The future, and where its value goes.
type Errand<F> = (Pin<Box<F>>, Promise<<F as Future>::Output>);

struct AsyncTask<F: Future> {
    state: AtomicU32,
    pool: WeakExecutor,
    /// Not there while it is polled, and when it is over.
    errand: Mutex<Option<Errand<F>>>,
}

const IDLE: u32 = 0;
const SCHEDULED: u32 = 1;
const POLLING: u32 = 2;
const NOTIFIED: u32 = 3;

impl<F> AsyncTask<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    /// Has the pool poll it. SCHEDULED, by the caller.
    fn schedule(self: &Arc<Self>) {
        let refused = match self.pool.upgrade() {
            None => Some(TaskError::ShutDown),
            Some(pool) => {
                let task = Arc::clone(self);
                // Only a refused task is over with an error: `poll` catches every panic.
                pool.spawn(move || task.poll()).peek().and_then(|outcome| outcome.as_ref().err().cloned())
            }
        };
        if let Some(error) = refused {
            let ended = self.errand.lock().take();
            if let Some((future, promise)) = ended {
                panic_report::swallow(|| drop(future));
                promise.complete(Err(error));
            }
        }
    }

    fn poll(self: &Arc<Self>) {
        // ORDERING: acquire-release, here and below: whoever polls next sees what this poll, and every wake before it, did.
        self.state.store(POLLING, Ordering::SeqCst);
        let taken = self.errand.lock().take();
        let Some((mut future, promise)) = taken else { return };
        if !promise.set_running() {
            return panic_report::swallow(|| drop(future));
        }
        let waker = Waker::from(Arc::clone(self));
        match panic_report::catch(|| future.as_mut().poll(&mut Context::from_waker(&waker))) {
            Ok(Poll::Pending) => {
                *self.errand.lock() = Some((future, promise));
                let rests =
                    self.state.compare_exchange(POLLING, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_ok();
                if !rests {
                    self.state.store(SCHEDULED, Ordering::SeqCst);
                    self.schedule();
                }
            }
            Ok(Poll::Ready(value)) => {
                panic_report::swallow(|| drop(future));
                promise.complete(Ok(value));
            }
            Err(report) => {
                panic_report::swallow(|| drop(future));
                promise.complete(Err(TaskError::Panicked(report)));
            }
        }
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
