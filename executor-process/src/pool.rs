//! `ProcessPoolExecutor`: the handle people hold.

use std::fmt;
use std::time::Duration;

use executor_core::admission::Refusal;
use executor_core::{
    BuildError, CallMapper, CallOptions, Callable, Chunk, Executor, LimitsCalls, Map, Payload, PoolStats,
    Promise, Shutdown, ShutdownReport, SubmitError, TaskFuture, WorkerInfo,
};

use crate::builder::{ProcessPoolBuilder, check_max_workers};
use crate::dispatcher::Front;
use crate::job::{self, Prepared};
use crate::shared::{Command, Means, Shared};
use crate::sync::{Arc, Ordering};

/// A pool of worker processes: tasks may crash, leak or hang without taking the program down.
///
/// The handle is a cheap clone. Dropping the last one shuts the pool down and waits, as Python's `with` does: see
/// [`shutdown`](Self::shutdown); while the thread unwinds from a panic, as [`shutdown_now`](Self::shutdown_now).
///
/// A function is a `fn` pointer: any function, and any closure that captures nothing. Argument and result travel
/// encoded, so they are [`Payload`]s. Results are decoded and callbacks run on one thread of the pool, or on the thread that
/// waits for that very task.
///
/// A task that meets an idle worker goes there straight from the thread that submits it, and its result straight to the one
/// that waits for it. Large arguments and results (from 8 KiB to 256 MiB) go through memory that worker and parent share; a
/// worker that has had nothing to do for a second gives it up.
///
/// ```
/// use executor_process::ProcessPoolExecutor;
/// use executor_core::TaskError;
///
/// let pool = ProcessPoolExecutor::new(2)?;
/// assert_eq!(pool.submit(|n: u64| n * n, 12).result()?, 144);
///
/// // A crash costs one task, and the error tells which worker died of what.
/// match pool.submit(|()| -> u64 { std::process::abort() }, ()).result() {
///     Err(TaskError::WorkerDied(death)) => assert_eq!(death.signal, Some(6)),
///     other => unreachable!("{other:?}"),
/// }
/// assert_eq!(pool.submit(|n: u64| n + 1, 1).result()?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A closure that captures is refused by the compiler at the caller's line:
///
/// ```compile_fail,E0308
/// # let pool = executor_process::ProcessPoolExecutor::new(1).unwrap();
/// let captured = 3;
/// pool.submit(move |n: u64| n + captured, 1);
/// ```
#[derive(Clone)]
pub struct ProcessPoolExecutor {
    handle: Arc<Handle>,
}

/// What all handles share; the dispatcher's thread holds the front alone, so it keeps none alive.
struct Handle {
    front: Arc<Front>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let shared = &self.front.shared;
        if shared.id.is_inherited() {
            // Its dispatcher is not in this process, its locks may be held: leave it all as it is.
            std::mem::forget(Arc::clone(&self.front));
            return;
        }
        let how = if std::thread::panicking() { Shutdown::Cancel } else { Shutdown::Finish };
        shared.shutdown(how);
    }
}

impl ProcessPoolExecutor {
    /// A pool of at most `max_workers` processes, which start when they are needed.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if `max_workers` is 0, or the system refuses the fork server.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// assert!(ProcessPoolExecutor::new(2).is_ok());
    /// assert_eq!(ProcessPoolExecutor::new(0).unwrap_err().to_string(), "max_workers must be at least 1, got 0");
    /// ```
    pub fn new(max_workers: usize) -> Result<Self, BuildError> {
        Self::builder().max_workers(max_workers).build()
    }

    /// A pool with one process for each processor this process may use, by affinity and cgroup quota.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// assert!(ProcessPoolExecutor::with_default_workers()?.max_workers() >= 1);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn with_default_workers() -> Result<Self, BuildError> {
        Self::builder().build()
    }

    /// All options.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn builder() -> ProcessPoolBuilder {
        ProcessPoolBuilder::new()
    }

    pub(crate) fn new_handle(front: Arc<Front>) -> Self {
        Self { handle: Arc::new(Handle { front }) }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.front.shared
    }

    /// Runs `f(arg)` in a worker. Never panics and never fails here: a refused task is a future that holds the reason.
    /// Waits while a bounded queue is full.
    ///
    /// ```
    /// # let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// let pid = pool.submit(|()| std::process::id(), ()).result()?;
    /// assert_ne!(pid, std::process::id());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "dropping the future detaches the task, its error included"]
    pub fn submit<A: Payload, R: Payload>(&self, f: fn(A) -> R, arg: A) -> TaskFuture<R> {
        self.submit_call(Callable::<(), A, R>::plain(f), arg, &CallOptions::default())
    }

    /// Runs `f(arg)` in a worker if it can be queued at once.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] gives function and argument back: the queue is full, the pool shut down or broken, or this is a
    /// forked child.
    ///
    /// ```
    /// # let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// assert_eq!(pool.try_submit(|n: u32| n, 7)?.result()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[expect(clippy::type_complexity, reason = "what comes back is what went in")]
    pub fn try_submit<A: Payload, R: Payload>(
        &self,
        f: fn(A) -> R,
        arg: A,
    ) -> Result<TaskFuture<R>, SubmitError<fn(A) -> R, A>> {
        let shared = self.shared();
        if let Err(refusal) = shared.try_admit() {
            return Err(refusal.give_back(f, arg));
        }
        let (call, options) = (Callable::<(), A, R>::plain(f), CallOptions::default());
        Ok(self.send(job::one(shared.id, &call, arg, &options, shared.settings.message_limit)))
    }

    /// Runs `f` on every item in the workers, starting at once, and yields the results in order; see
    /// [`Executor::map`].
    ///
    /// ```
    /// # let pool = executor_process::ProcessPoolExecutor::new(2)?;
    /// let squares: Result<Vec<u64>, _> = pool.map(|n: u64| n * n, 0..5).collect();
    /// assert_eq!(squares?, [0, 1, 4, 9, 16]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<A, R, I>(&self, f: fn(A) -> R, items: I) -> Map<I::IntoIter, CallMapper<Self, (), A, R>>
    where
        A: Payload,
        R: Payload,
        I: IntoIterator<Item = A>,
    {
        Executor::map(self, f, items)
    }

    /// The largest number of worker processes.
    ///
    /// ```
    /// assert_eq!(executor_process::ProcessPoolExecutor::new(3)?.max_workers(), 3);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    #[must_use]
    pub fn max_workers(&self) -> usize {
        // ORDERING: relaxed: a number to look at.
        self.shared().max_workers.load(Ordering::Relaxed)
    }

    /// Changes the largest number of worker processes, from now on: more start when they are needed, and of too many
    /// those that are idle end at once and the others after the task they are at.
    ///
    /// # Errors
    ///
    /// [`BuildError::InvalidOption`] if it is 0, or more than 65,536.
    ///
    /// ```
    /// let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// pool.set_max_workers(4)?;
    /// assert_eq!(pool.max_workers(), 4);
    /// assert_eq!(pool.set_max_workers(0).unwrap_err().to_string(), "max_workers must be at least 1, got 0");
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn set_max_workers(&self, max_workers: usize) -> Result<(), BuildError> {
        check_max_workers(max_workers)?;
        let shared = self.shared();
        // ORDERING: relaxed: the dispatcher reads it after the command, which comes to it through a lock.
        shared.max_workers.store(max_workers, Ordering::Relaxed);
        shared.command(Command::Resize); // a pool that has ended has no size
        Ok(())
    }

    /// The pool's counters, which add up at every instant. A chunk of a `map` counts as one task.
    ///
    /// ```
    /// let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// pool.submit(|()| (), ()).wait();
    /// assert_eq!(pool.stats().finished, 1);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.shared().stats()
    }

    /// The worker processes, by index. From a callback of this pool, which runs on the thread that would answer, it is
    /// empty.
    ///
    /// ```
    /// let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// let pid = pool.submit(|()| std::process::id(), ()).result().unwrap();
    /// assert_eq!(pool.workers()[0].id, u64::from(pid));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerInfo> {
        self.shared().worker_infos()
    }

    /// Accepts no more tasks, finishes every accepted one, and returns when the workers and their fork server are gone.
    /// From a callback of this pool it does not wait, since it would wait for itself. May be called again, and from any
    /// thread.
    ///
    /// ```
    /// let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// let future = pool.submit(|n: u8| n, 1);
    /// assert!(pool.shutdown().is_complete());
    /// assert_eq!(future.result()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shutdown(&self) -> ShutdownReport {
        self.shared().shutdown(Shutdown::Finish)
    }

    /// [`shutdown`](Self::shutdown) that first cancels what has not started.
    ///
    /// ```
    /// let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// let futures: Vec<_> = (0..100).map(|n| pool.submit(|n: u8| n, n)).collect();
    /// assert!(pool.shutdown_now().is_complete());
    /// assert!(futures.iter().all(|future| future.is_done()));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn shutdown_now(&self) -> ShutdownReport {
        self.shared().shutdown(Shutdown::Cancel)
    }

    /// [`shutdown`](Self::shutdown) that waits for at most `limit`; then it cancels what has not started and kills the
    /// workers: what they run ends in `WorkerDied`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// let endless = pool.submit(|()| -> u8 { loop { std::thread::park() } }, ());
    /// pool.shutdown_timeout(Duration::from_millis(50));
    /// assert!(endless.is_done());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn shutdown_timeout(&self, limit: Duration) -> ShutdownReport {
        self.shared().shutdown(Shutdown::Within(limit))
    }

    /// [`shutdown`](Self::shutdown) that does not wait.
    ///
    /// ```
    /// let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// let future = pool.submit(|n: u8| n, 1);
    /// pool.shutdown_background();
    /// assert_eq!(future.result()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shutdown_background(&self) {
        self.shared().shutdown(Shutdown::Background);
    }

    /// Shuts the pool down at once: cancels what has not started, sends SIGTERM to every worker, and SIGKILL to those
    /// still there after the [`termination_grace`](crate::ProcessPoolBuilder::termination_grace). What was running ends in `WorkerDied`.
    ///
    /// ```
    /// let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// let endless = pool.submit(|()| -> u8 { loop { std::thread::park() } }, ());
    /// pool.terminate_workers();
    /// assert!(endless.is_done());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn terminate_workers(&self) -> ShutdownReport {
        self.shared().stop(Means::Terminate)
    }

    /// [`terminate_workers`](Self::terminate_workers) with SIGKILL.
    ///
    /// ```
    /// let pool = executor_process::ProcessPoolExecutor::new(1)?;
    /// let endless = pool.submit(|()| -> u8 { loop { std::thread::park() } }, ());
    /// pool.kill_workers();
    /// assert!(endless.is_done());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn kill_workers(&self) -> ShutdownReport {
        self.shared().stop(Means::Kill)
    }

    /// Sends what was admitted and encoded.
    fn send<T>(&self, prepared: Prepared<T>) -> TaskFuture<T> {
        match prepared.job {
            Some(job) => self.handle.front.submit(job),
            None => self.shared().capacity.give_back(),
        }
        prepared.future
    }
}

impl Executor for ProcessPoolExecutor {
    fn submit_call<C, A, R>(&self, call: Callable<C, A, R>, arg: A, options: &CallOptions) -> TaskFuture<R>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload,
    {
        let shared = self.shared();
        match shared.admit() {
            Ok(()) => self.send(job::one(shared.id, &call, arg, options, shared.settings.message_limit)),
            Err(refusal) => refused(refusal),
        }
    }

    fn submit_chunk<C, A, R>(
        &self,
        call: Callable<C, A, R>,
        args: Vec<A>,
        options: &CallOptions,
    ) -> TaskFuture<Chunk<R>>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload,
    {
        let shared = self.shared();
        match shared.admit() {
            Ok(()) => self.send(job::many(shared.id, &call, args, options, shared.settings.message_limit)),
            Err(refusal) => refused(refusal),
        }
    }

    fn shutdown_with(&self, how: Shutdown) -> ShutdownReport {
        self.shared().shutdown(how)
    }

    fn max_workers(&self) -> usize {
        Self::max_workers(self)
    }
}

/// ```
/// # use executor_process::ProcessPoolExecutor;
/// use executor_core::{Executor, Limit, TaskError};
/// use std::time::Duration;
///
/// let pool = ProcessPoolExecutor::new(1)?;
/// let careful = pool.options().memory_limit(64 << 20).cpu_time_limit(Duration::from_millis(100));
/// let endless = careful.submit(|()| -> u8 { loop { std::hint::spin_loop() } }, ());
/// assert!(matches!(endless.result(), Err(TaskError::LimitExceeded(Limit::CpuTime(_)))));
/// # Ok::<(), executor_core::BuildError>(())
/// ```
impl LimitsCalls for ProcessPoolExecutor {}

/// A future that holds the reason.
fn refused<T: Send + 'static>(refusal: Refusal) -> TaskFuture<T> {
    let (promise, future) = Promise::new();
    promise.complete(Err(refusal.into()));
    future
}

impl fmt::Debug for ProcessPoolExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessPoolExecutor")
            .field("name_prefix", &self.shared().settings.prefix)
            .field("max_workers", &self.max_workers())
            .field("stats", &self.stats())
            .finish()
    }
}
