//! `ThreadPoolExecutor`: the handle people hold.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Weak;
use std::time::Duration;

use crate::call::{CallOptions, Callable, Chunk, Payload};
use crate::error::{BuildError, SubmitError};
use crate::executor::{Again, Executor, Once, Options, Shutdown};
use crate::fork::PoolId;
use crate::future::{Promise, TaskFuture};
use crate::host::{self, Host};
use crate::map::{Map, Mapper};
use crate::stats::{PoolStats, ShutdownReport, WorkerInfo};
use crate::sync::Arc;
use crate::task::{self, Details};
use crate::trace::Here;

use super::builder::{ThreadPoolBuilder, check_max_workers};
use super::chunk;
use super::registry::{Admission, Registry, WhenFull};
use super::retry::{Encoded, Retry};

/// A pool of work-stealing threads.
///
/// The handle is a cheap clone. Dropping the last one shuts the pool down and waits, as Python's `with` does: see
/// [`shutdown`](Self::shutdown); while the thread unwinds from a panic, as [`shutdown_now`](Self::shutdown_now).
///
/// ```
/// use executor_core::ThreadPoolExecutor;
///
/// let pool = ThreadPoolExecutor::new(4)?;
/// let greeting = String::from("hello"); // closures may capture
/// let future = pool.submit(move |name: &str| format!("{greeting}, {name}"), "world");
/// assert_eq!(future.result()?, "hello, world");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ThreadPoolExecutor {
    handle: Arc<Handle>,
}

/// What all handles share; the workers hold the registry alone, so they keep no pool alive.
struct Handle {
    registry: Arc<Registry>,
}

/// See [`ThreadPoolExecutor::downgrade`].
pub(super) struct WeakExecutor(Weak<Handle>);

impl WeakExecutor {
    pub(super) fn upgrade(&self) -> Option<ThreadPoolExecutor> {
        self.0.upgrade().map(|handle| ThreadPoolExecutor { handle })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.registry.id.is_inherited() {
            // Its threads are not in this process, its locks may be held: leave it all as it is.
            std::mem::forget(Arc::clone(&self.registry));
            return;
        }
        let how = if std::thread::panicking() { Shutdown::Cancel } else { Shutdown::Finish };
        self.registry.shutdown(how);
    }
}

impl ThreadPoolExecutor {
    /// A pool of at most `max_workers` threads, which start when they are needed.
    ///
    /// # Errors
    ///
    /// [`BuildError::InvalidOption`] if `max_workers` is 0 or more than the pool can count.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// assert!(ThreadPoolExecutor::new(2).is_ok());
    /// assert!(ThreadPoolExecutor::new(0).is_err());
    /// ```
    pub fn new(max_workers: usize) -> Result<Self, BuildError> {
        Self::builder().max_workers(max_workers).build()
    }

    /// A pool with as many threads as the processors this process may use, plus 4, at most 32, as in Python: threads
    /// are for waiting too.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// assert!(ThreadPoolExecutor::with_default_workers()?.max_workers() >= 5);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn with_default_workers() -> Result<Self, BuildError> {
        Self::builder().build()
    }

    /// All options.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// let pool = ThreadPoolExecutor::builder().max_workers(2).name_prefix("io").build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn builder() -> ThreadPoolBuilder {
        ThreadPoolBuilder::new()
    }

    pub(super) fn new_handle(registry: Arc<Registry>) -> Self {
        Self { handle: Arc::new(Handle { registry }) }
    }

    /// A reference that does not keep the pool from shutting down.
    pub(super) fn downgrade(&self) -> WeakExecutor {
        WeakExecutor(Arc::downgrade(&self.handle))
    }

    /// Whether `host` is one of its workers.
    pub(super) fn owns(&self, host: &dyn Host) -> bool {
        host.pool() == self.registry().id
    }

    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.handle.registry
    }

    /// Runs `f(arg)` on the pool. Never panics and never fails here: a refused task is a future that holds the reason.
    ///
    /// Waits while a bounded queue is full, except on one of the pool's own workers, which runs the task in place.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// assert_eq!(pool.submit(|n: u32| n * 2, 21).result()?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "dropping the future detaches the task, its error included; `spawn` is for that"]
    pub fn submit<F, A, R>(&self, f: F, arg: A) -> TaskFuture<R>
    where
        F: FnOnce(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        self.run_task(None, move || f(arg))
    }

    /// Runs `f(arg)` on the pool if it can be queued at once.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] gives function and argument back: the queue is full, the pool shut down or broken, or this is a
    /// forked child.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// assert_eq!(pool.try_submit(|n: u32| n, 7)?.result()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_submit<F, A, R>(&self, f: F, arg: A) -> Result<TaskFuture<R>, SubmitError<F, A>>
    where
        F: FnOnce(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        match self.registry().admit(WhenFull::Refuse) {
            Ok(admission) => Ok(self.queue_task(admission, None, move || f(arg))),
            Err(refusal) => Err(refusal.give_back(f, arg)),
        }
    }

    /// Runs a closure on the pool. The future may be dropped: then a panic goes to the pool's panic handler.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let (sender, receiver) = std::sync::mpsc::channel();
    /// pool.spawn(move || sender.send("done"));
    /// assert_eq!(receiver.recv()?, "done");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn<F, R>(&self, f: F) -> TaskFuture<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        self.run_task(None, f)
    }

    /// Runs `f` on every item, starting at once, and yields the results in order.
    ///
    /// The input is pulled lazily, within a window; items travel in chunks whose size follows the measured cost of an
    /// item. Dropping the iterator cancels what has not started.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(2)?;
    /// let factor = 3;
    /// let tripled: Result<Vec<u32>, _> = pool.map(move |n: u32| n * factor, [1, 2, 3]).collect();
    /// assert_eq!(tripled?, [3, 6, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<F, I, R>(&self, f: F, items: I) -> Map<I::IntoIter, ClosureMapper<F>>
    where
        F: Fn(I::Item) -> R + Send + Sync + 'static,
        I: IntoIterator,
        I::Item: Send + 'static,
        R: Send + 'static,
    {
        Map::new(items.into_iter(), ClosureMapper::new(self, f), CallOptions::default())
    }

    /// A view of the pool with settings for the calls made through it.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let outcome = pool.options().label("parse").submit(|text: &str| text.parse::<u8>(), "300").result()?;
    /// assert!(outcome.is_err(), "a user's own Result is an ordinary value");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn options(&self) -> Options<'_, Self> {
        Options::of(self)
    }

    /// Tells the pool that `f` blocks on something outside it: a spare worker runs other tasks meanwhile. On a thread
    /// that is no worker it just runs `f`.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let (sender, receiver) = std::sync::mpsc::channel();
    /// let inside = pool.clone();
    /// let waiting = pool.spawn(move || inside.blocking(|| receiver.recv()));
    /// pool.spawn(move || sender.send("from the only worker's spare"));
    /// assert_eq!(waiting.result()??, "from the only worker's spare");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn blocking<R>(&self, f: impl FnOnce() -> R) -> R {
        host::block_any(f)
    }

    /// The number of tasks that may run at the same time.
    ///
    /// ```
    /// assert_eq!(executor_core::ThreadPoolExecutor::new(3)?.max_workers(), 3);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn max_workers(&self) -> usize {
        self.registry().max_workers()
    }

    /// Changes the number of tasks that may run at the same time, while the pool is at work.
    ///
    /// With more, queued tasks start at once. With fewer, running tasks go on to their end, and the workers that are too
    /// many end after their task, or at once if they have none; a worker that is just about to start a task may still do
    /// so. No task is lost or cancelled. May be called from any thread and at any time; after a shutdown it changes nothing
    /// but the number.
    ///
    /// # Errors
    ///
    /// [`BuildError::InvalidOption`] if `max_workers` is 0 or more than the pool can count: then nothing changes.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// pool.set_max_workers(4)?;
    /// assert_eq!(pool.max_workers(), 4);
    /// let error = pool.set_max_workers(0).unwrap_err();
    /// assert_eq!(error.to_string(), "max_workers must be at least 1, got 0");
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn set_max_workers(&self, max_workers: usize) -> Result<(), BuildError> {
        check_max_workers(max_workers)?;
        if !self.registry().id.is_inherited() {
            self.registry().resize(max_workers);
        }
        Ok(())
    }

    /// The pool's counters, which add up at every instant.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// assert_eq!(pool.stats().submitted, 0);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn stats(&self) -> PoolStats {
        self.registry().stats()
    }

    /// The workers alive, by index.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(8)?;
    /// assert!(pool.workers().is_empty(), "they start when they are needed");
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn workers(&self) -> Vec<WorkerInfo> {
        self.registry().workers()
    }

    /// Accepts no more tasks, finishes every accepted one, and returns when the threads are gone, their thread-locals
    /// included. On one of the pool's own workers it does not wait, since it would wait for itself. May be called again,
    /// and from any thread.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let future = pool.submit(|n: u8| n, 1);
    /// assert!(pool.shutdown().is_complete());
    /// assert!(future.is_done());
    /// assert!(pool.submit(|n: u8| n, 1).result().is_err());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn shutdown(&self) -> ShutdownReport {
        self.registry().shutdown(Shutdown::Finish)
    }

    /// [`shutdown`](Self::shutdown) that first cancels what has not started.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let futures: Vec<_> = (0..100).map(|n| pool.submit(|n: u8| n, n)).collect();
    /// let report = pool.shutdown_now();
    /// let cancelled = futures.iter().filter(|future| future.is_cancelled()).count();
    /// assert_eq!(report.cancelled, cancelled as u64);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn shutdown_now(&self) -> ShutdownReport {
        self.registry().shutdown(Shutdown::Cancel)
    }

    /// [`shutdown`](Self::shutdown) that waits for at most `limit`, then cancels what has not started, and leaves what
    /// runs to itself.
    ///
    /// ```
    /// # use std::time::Duration;
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let (sender, receiver) = std::sync::mpsc::channel::<()>();
    /// let stuck = pool.spawn(move || receiver.recv());
    /// assert_eq!(pool.shutdown_timeout(Duration::from_millis(10)).unfinished, 1);
    /// drop(sender);
    /// stuck.wait();
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn shutdown_timeout(&self, limit: Duration) -> ShutdownReport {
        self.registry().shutdown(Shutdown::Within(limit))
    }

    /// [`shutdown`](Self::shutdown) that does not wait.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let future = pool.submit(|n: u8| n, 1);
    /// pool.shutdown_background();
    /// assert_eq!(future.result()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shutdown_background(&self) {
        self.registry().shutdown(Shutdown::Background);
    }

    fn retry(&self, options: &CallOptions) -> Retry {
        Retry::new(options.retries, self.registry())
    }

    pub(super) fn run_task<F, R>(&self, details: Option<Details>, work: F) -> TaskFuture<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        match self.registry().admit(WhenFull::Wait) {
            Ok(admission) => self.queue_task(admission, details, work),
            Err(refusal) => {
                let (task, future) = task::new(self.registry().id, details, work);
                task.refuse(refusal.into());
                TaskFuture::new(future)
            }
        }
    }

    fn queue_task<F, R>(&self, admission: Admission, details: Option<Details>, work: F) -> TaskFuture<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let registry = self.registry();
        let (task, future) = task::new(registry.id, details, Here::now().carry(work));
        if let Err(refusal) = registry.accept(task, admission)
            && future.refuse(refusal.into())
        {
            registry.withdrawn();
        }
        TaskFuture::new(future)
    }
}

impl fmt::Debug for ThreadPoolExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPoolExecutor")
            .field("name_prefix", &self.registry().settings.prefix)
            .field("max_workers", &self.max_workers())
            .field("stats", &self.stats())
            .finish()
    }
}

/// On threads, the trait's methods do what the inherent ones do; nothing is encoded.
impl Executor for ThreadPoolExecutor {
    fn submit_call<C, A, R>(&self, call: Callable<C, A, R>, arg: A, options: &CallOptions) -> TaskFuture<R>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload,
    {
        if options.retries == 0 {
            return self.run_task(details(options), move || call.call(arg));
        }
        let retry = self.retry(options);
        match Encoded::new(arg) {
            Ok(arg) => self.run_task(details(options), move || retry.run_encoded(|arg| call.call(arg), arg)),
            Err(problem) => {
                let (promise, future) = Promise::of_pool(PoolId::NONE, options.label.clone());
                promise.complete(Err(problem));
                future
            }
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
        if options.retries == 0 {
            return chunk::submit(self, args, options, move |arg| Ok(call.call(arg)));
        }
        let retry = self.retry(options);
        // An argument that cannot be encoded fails alone.
        let args = args.into_iter().map(Encoded::new).collect();
        chunk::submit(self, args, options, move |arg| {
            arg.map(|arg| retry.run_encoded(|arg| call.call(arg), arg))
        })
    }

    fn shutdown_with(&self, how: Shutdown) -> ShutdownReport {
        self.registry().shutdown(how)
    }

    fn max_workers(&self) -> usize {
        Self::max_workers(self)
    }
}

/// The closures of the inherent methods, with options and retries.
impl Options<'_, ThreadPoolExecutor, Again> {
    /// Runs `f(arg)` with these options, and again if it panics; closures may capture.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let outcome = pool.options().retries(2).submit(|n: u32| 1 / n, 0).result();
    /// let Err(executor_core::TaskError::Panicked(report)) = outcome else { unreachable!() };
    /// assert_eq!(report.attempts, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "dropping the future detaches the task, its error included"]
    pub fn submit<F, A, R>(&self, f: F, arg: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Clone + Send + 'static,
        R: Send + 'static,
    {
        let (pool, options) = self.parts();
        let retry = pool.retry(options);
        pool.run_task(details(options), move || retry.run(f, arg))
    }

    /// Runs `f` on every item with these options, and on one that panics again; closures may capture.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let results: Vec<_> = pool.options().retries(1).map(|n: u8| 1 / n, [1, 0]).collect();
    /// assert!(results[0].is_ok() && results[1].is_err());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn map<F, I, R>(&self, f: F, items: I) -> Map<I::IntoIter, ClosureMapper<F, Again>>
    where
        F: Fn(I::Item) -> R + Send + Sync + 'static,
        I: IntoIterator,
        I::Item: Clone + Send + 'static,
        R: Send + 'static,
    {
        let (pool, options) = self.parts();
        Map::new(items.into_iter(), ClosureMapper::new(pool, f), options.clone())
    }
}

/// The closures of the inherent methods, with options.
impl Options<'_, ThreadPoolExecutor> {
    /// Runs `f(arg)` with these options; closures may capture.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let captured = 1;
    /// assert_eq!(pool.options().priority(1).submit(move |n: u8| n + captured, 1).result()?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "dropping the future detaches the task, its error included"]
    pub fn submit<F, A, R>(&self, f: F, arg: A) -> TaskFuture<R>
    where
        F: FnOnce(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let (pool, options) = self.parts();
        pool.run_task(details(options), move || f(arg))
    }

    /// Runs `f` on every item with these options; closures may capture.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// assert_eq!(pool.options().chunk_size(2).map(|n: u8| n, [1, 2, 3]).count(), 3);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn map<F, I, R>(&self, f: F, items: I) -> Map<I::IntoIter, ClosureMapper<F>>
    where
        F: Fn(I::Item) -> R + Send + Sync + 'static,
        I: IntoIterator,
        I::Item: Send + 'static,
        R: Send + 'static,
    {
        let (pool, options) = self.parts();
        Map::new(items.into_iter(), ClosureMapper::new(pool, f), options.clone())
    }
}

/// Sends the items of a [`Map`] to a closure on a thread pool.
///
/// ```
/// use executor_core::{ClosureMapper, Map, ThreadPoolExecutor};
/// use std::ops::Range;
///
/// let pool = ThreadPoolExecutor::new(1)?;
/// let map: Map<Range<u8>, ClosureMapper<fn(u8) -> u8>> = pool.map(|n| n, 0..3);
/// assert_eq!(map.count(), 3);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
pub struct ClosureMapper<F, Runs = Once> {
    pool: ThreadPoolExecutor,
    f: Arc<F>,
    /// Where the map was made.
    span: Here,
    runs: PhantomData<fn() -> Runs>,
}

impl<F, Runs> ClosureMapper<F, Runs> {
    fn new(pool: &ThreadPoolExecutor, f: F) -> Self {
        Self { pool: pool.clone(), f: Arc::new(f), span: Here::now(), runs: PhantomData }
    }
}

impl<F, A, R> Mapper<A> for ClosureMapper<F, Again>
where
    F: Fn(A) -> R + Send + Sync + 'static,
    A: Clone + Send + 'static,
    R: Send + 'static,
{
    type Output = R;

    fn send(&self, items: Vec<A>, options: &CallOptions) -> TaskFuture<Chunk<R>> {
        let (f, retry) = (Arc::clone(&self.f), self.pool.retry(options));
        self.span.within(|| chunk::submit(&self.pool, items, options, move |item| Ok(retry.run(&*f, item))))
    }

    fn max_workers(&self) -> usize {
        self.pool.max_workers()
    }
}

impl<F, A, R> Mapper<A> for ClosureMapper<F>
where
    F: Fn(A) -> R + Send + Sync + 'static,
    A: Send + 'static,
    R: Send + 'static,
{
    type Output = R;

    fn send(&self, items: Vec<A>, options: &CallOptions) -> TaskFuture<Chunk<R>> {
        let f = Arc::clone(&self.f);
        self.span.within(|| chunk::submit(&self.pool, items, options, move |item| Ok(f(item))))
    }

    fn max_workers(&self) -> usize {
        self.pool.max_workers()
    }
}

impl<F, Runs> fmt::Debug for ClosureMapper<F, Runs> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClosureMapper").field(&self.pool).finish()
    }
}

/// What a task must carry of the options; most carry nothing.
pub(super) fn details(options: &CallOptions) -> Option<Details> {
    let CallOptions { timeout, deadline, priority, label, .. } = options;
    let any = timeout.is_some() || deadline.is_some() || *priority != 0 || label.is_some();
    any.then(|| Details {
        label: label.clone(),
        timeout: *timeout,
        deadline: *deadline,
        priority: *priority,
        run_limit: (options.retries > 0 && timeout.is_some()).then(Arc::default),
    })
}
