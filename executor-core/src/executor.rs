//! The `Executor` trait: one interface to run a function somewhere else, whatever the backend.
//!
//! Its bounds are those of a remote call. A function is a `fn` pointer, so that it is the same in another process of
//! this program; argument, context and result are [`Payload`]s. An executor implements three methods, and gets
//! `submit`, `map`, their forms with a context, [`options`](Executor::options) and the shutdowns from them.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use crate::call::{CallOptions, Callable, Chunk, Payload};
use crate::future::TaskFuture;
use crate::map::{Map, Mapper};
use crate::stats::ShutdownReport;

/// Runs functions somewhere else.
///
/// Code that is generic over it runs on every backend:
///
/// ```
/// use executor_core::{Executor, TaskError, ThreadPoolExecutor};
///
/// fn sum_of_squares(executor: &impl Executor, n: u64) -> Result<u64, TaskError> {
///     executor.map(|n: u64| n * n, 1..=n).sum()
/// }
///
/// let pool = ThreadPoolExecutor::new(2)?;
/// assert_eq!(sum_of_squares(&pool, 10)?, 385);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A handle is a cheap clone. Third parties implement the three methods without a body, with
/// [`Promise`](crate::Promise):
///
/// ```
/// use executor_core::{
///     CallOptions, Callable, Chunk, Executor, Payload, Promise, Shutdown, ShutdownReport, TaskFuture,
/// };
///
/// /// Runs everything at once, on the caller.
/// #[derive(Clone)]
/// struct Inline;
///
/// impl Executor for Inline {
///     fn submit_call<C, A, R>(&self, call: Callable<C, A, R>, arg: A, _: &CallOptions) -> TaskFuture<R>
///     where
///         C: Payload + Sync,
///         A: Payload,
///         R: Payload,
///     {
///         let (promise, future) = Promise::new();
///         promise.complete(call.run(arg));
///         future
///     }
///
///     fn submit_chunk<C, A, R>(&self, call: Callable<C, A, R>, args: Vec<A>, _: &CallOptions) -> TaskFuture<Chunk<R>>
///     where
///         C: Payload + Sync,
///         A: Payload,
///         R: Payload,
///     {
///         let (promise, future) = Promise::new();
///         promise.complete(Ok(call.run_chunk(args)));
///         future
///     }
///
///     fn shutdown_with(&self, _: Shutdown) -> ShutdownReport {
///         ShutdownReport::default()
///     }
/// }
///
/// assert_eq!(Inline.submit(|n: i32| -n, 1).result()?, -1);
/// assert_eq!(Inline.map(|n: i32| n + 1, [1, 2]).map(Result::unwrap).collect::<Vec<_>>(), [2, 3]);
/// # Ok::<(), executor_core::TaskError>(())
/// ```
pub trait Executor: Clone {
    /// Runs one call. Never panics and never fails here: a refused task is a future that holds the reason.
    fn submit_call<C, A, R>(&self, call: Callable<C, A, R>, arg: A, options: &CallOptions) -> TaskFuture<R>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload;

    /// Runs one function on several arguments in one message: what `map` is made of.
    fn submit_chunk<C, A, R>(
        &self,
        call: Callable<C, A, R>,
        args: Vec<A>,
        options: &CallOptions,
    ) -> TaskFuture<Chunk<R>>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload;

    /// Stops accepting tasks, in the manner asked for.
    fn shutdown_with(&self, how: Shutdown) -> ShutdownReport;

    /// How many tasks can run at the same time: what `map` sizes its window by.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    /// assert_eq!(Executor::max_workers(&ThreadPoolExecutor::new(3)?), 3);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    fn max_workers(&self) -> usize {
        crate::usable_processors()
    }

    /// The options of calls made through this handle: the defaults, except for a view made by
    /// [`options`](Self::options).
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    /// assert!(ThreadPoolExecutor::new(1)?.call_options().label.is_none());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    fn call_options(&self) -> CallOptions {
        CallOptions::default()
    }

    /// Runs `f(arg)` and returns the future of its value.
    ///
    /// `f` is a function pointer: any function, and any closure that captures nothing, coerces to it. Several arguments
    /// are a tuple.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    ///
    /// fn double(executor: &impl Executor, n: u32) -> u32 {
    ///     executor.submit(|n: u32| n * 2, n).result().unwrap()
    /// }
    /// assert_eq!(double(&ThreadPoolExecutor::new(1)?, 21), 42);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    ///
    /// A closure that captures is refused by the compiler at the caller's line:
    ///
    /// ```compile_fail,E0308
    /// use executor_core::Executor;
    ///
    /// fn add(executor: &impl Executor, n: u32, captured: u32) {
    ///     executor.submit(|n: u32| n + captured, n);
    /// }
    /// ```
    #[must_use = "dropping the future detaches the task, its error included"]
    fn submit<A: Payload, R: Payload>(&self, f: fn(A) -> R, arg: A) -> TaskFuture<R> {
        self.submit_call(Callable::<(), A, R>::plain(f), arg, &self.call_options())
    }

    /// Runs `f(&context, arg)`.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    ///
    /// let pool = ThreadPoolExecutor::new(1)?;
    /// let found = pool.submit_with(vec!["a".to_owned(), "b".to_owned()], |names, i: usize| names[i].clone(), 1);
    /// assert_eq!(found.result()?, "b");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "dropping the future detaches the task, its error included"]
    fn submit_with<C, A, R>(&self, context: C, f: fn(&C, A) -> R, arg: A) -> TaskFuture<R>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload,
    {
        self.submit_call(Callable::with_context(context, f), arg, &self.call_options())
    }

    /// Runs `f` on every item, starting at once, and yields the results in order.
    ///
    /// The input is pulled lazily, within a window. Items travel in chunks whose size follows the measured cost of an
    /// item. Dropping the iterator cancels what has not started.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    ///
    /// fn lengths(executor: &impl Executor) -> Vec<usize> {
    ///     executor.map(|s: String| s.len(), ["a".to_owned(), "bc".to_owned()]).map(Result::unwrap).collect()
    /// }
    /// assert_eq!(lengths(&ThreadPoolExecutor::new(1)?), [1, 2]);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    fn map<A, R, I>(&self, f: fn(A) -> R, items: I) -> Map<I::IntoIter, CallMapper<Self, (), A, R>>
    where
        A: Payload,
        R: Payload,
        I: IntoIterator<Item = A>,
    {
        Map::new(items.into_iter(), CallMapper::new(self.clone(), Callable::plain(f)), self.call_options())
    }

    /// [`map`](Self::map) with a context, of which each call gets a reference: it is sent once to each worker, not with
    /// each item.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    ///
    /// let pool = ThreadPoolExecutor::new(2)?;
    /// let scaled: Vec<f64> = pool.map_with(2.5, |scale: &f64, x: f64| scale * x, [1.0, 2.0]).map(Result::unwrap).collect();
    /// assert_eq!(scaled, [2.5, 5.0]);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    fn map_with<C, A, R, I>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        items: I,
    ) -> Map<I::IntoIter, CallMapper<Self, C, A, R>>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload,
        I: IntoIterator<Item = A>,
    {
        let mapper = CallMapper::new(self.clone(), Callable::with_context(context, f));
        Map::new(items.into_iter(), mapper, self.call_options())
    }

    /// A view of the same executor with settings for the calls made through it. It is an executor itself.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    ///
    /// fn named(executor: &impl Executor) -> String {
    ///     format!("{:?}", executor.options().label("resize").submit(|()| (), ()))
    /// }
    /// assert!(named(&ThreadPoolExecutor::new(1)?).contains("resize"));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    fn options(&self) -> Options<'_, Self> {
        Options { executor: self, settings: self.call_options(), runs: PhantomData }
    }

    /// Accepts no more tasks, finishes every accepted one, and waits for that.
    ///
    /// On a worker of the same pool it does not wait, since it would wait for itself.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    /// let pool = ThreadPoolExecutor::new(1)?;
    /// assert!(Executor::shutdown(&pool).is_complete());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    fn shutdown(&self) -> ShutdownReport {
        self.shutdown_with(Shutdown::Finish)
    }

    /// Accepts no more tasks, cancels what has not started, finishes what runs, and waits for that.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    /// let pool = ThreadPoolExecutor::new(1)?;
    /// assert!(Executor::shutdown_now(&pool).is_complete());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    fn shutdown_now(&self) -> ShutdownReport {
        self.shutdown_with(Shutdown::Cancel)
    }

    /// [`shutdown`](Self::shutdown) that waits for at most `limit`. What has not started by then is cancelled; what
    /// still runs is left to itself on threads, and killed in worker processes.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    /// let pool = ThreadPoolExecutor::new(1)?;
    /// assert!(Executor::shutdown_timeout(&pool, std::time::Duration::from_secs(5)).is_complete());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    fn shutdown_timeout(&self, limit: Duration) -> ShutdownReport {
        self.shutdown_with(Shutdown::Within(limit))
    }

    /// [`shutdown`](Self::shutdown) that does not wait.
    ///
    /// ```
    /// use executor_core::{Executor, ThreadPoolExecutor};
    /// Executor::shutdown_background(&ThreadPoolExecutor::new(1)?);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    fn shutdown_background(&self) {
        self.shutdown_with(Shutdown::Background);
    }
}

/// The manners of [`Executor::shutdown_with`].
///
/// ```
/// use executor_core::{Executor, Shutdown, ThreadPoolExecutor};
/// ThreadPoolExecutor::new(1)?.shutdown_with(Shutdown::Finish);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an executor must handle every manner")]
pub enum Shutdown {
    /// Finish every accepted task, and wait.
    Finish,
    /// Cancel what has not started, finish what runs, and wait.
    Cancel,
    /// `Finish`, but wait for no longer than this.
    Within(Duration),
    /// `Finish`, without waiting.
    Background,
}

/// A view of an executor with settings for the calls made through it; see [`Executor::options`].
///
/// ```
/// use executor_core::ThreadPoolExecutor;
/// use std::time::Duration;
///
/// let pool = ThreadPoolExecutor::new(2)?;
/// let careful = pool.options().label("parse").timeout(Duration::from_secs(5));
/// assert_eq!(careful.submit(str::len, "four").result()?, 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a view does nothing by itself: submit or map through it"]
pub struct Options<'a, E, Runs = Once> {
    executor: &'a E,
    settings: CallOptions,
    runs: PhantomData<fn() -> Runs>,
}

/// [`Options`] whose tasks run once: those without [`retries`](Options::retries).
///
/// ```
/// use executor_core::{Once, Options, ThreadPoolExecutor};
/// let pool = ThreadPoolExecutor::new(1)?;
/// let plain: Options<'_, ThreadPoolExecutor, Once> = pool.options();
/// # drop(plain);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a mark in a type: it has no value")]
pub enum Once {}

/// [`Options`] whose tasks may run again, by [`retries`](Options::retries): what they are made of must be there again.
///
/// ```
/// use executor_core::{Again, Options, ThreadPoolExecutor};
/// let pool = ThreadPoolExecutor::new(1)?;
/// let stubborn: Options<'_, ThreadPoolExecutor, Again> = pool.options().retries(2);
/// # drop(stubborn);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a mark in a type: it has no value")]
pub enum Again {}

impl<'a, E> Options<'a, E> {
    pub(crate) fn of(executor: &'a E) -> Self {
        Self { executor, settings: CallOptions::default(), runs: PhantomData }
    }
}

impl<'a, E, Runs> Options<'a, E, Runs> {
    pub(crate) const fn parts(&self) -> (&'a E, &CallOptions) {
        (self.executor, &self.settings)
    }

    /// The longest a run may last, counted from its start: then it ends in [`TimedOut`](crate::TaskError::TimedOut). In a worker process
    /// the run is ended, by a signal first and then without mercy, and the future ends with it; on a thread its cancel token
    /// is set.
    ///
    /// ```
    /// use executor_core::{TaskError, ThreadPoolExecutor, current_task};
    /// use std::time::Duration;
    ///
    /// let pool = ThreadPoolExecutor::new(1)?;
    /// let endless = |()| while !current_task().unwrap().is_cancelled() {};
    /// let outcome = pool.options().timeout(Duration::from_millis(5)).submit(endless, ()).result();
    /// assert!(matches!(outcome, Err(TaskError::TimedOut)));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = Some(timeout);
        self
    }

    /// When the task must have ended, time in the queue included: then it ends in [`TimedOut`](crate::TaskError::TimedOut).
    ///
    /// ```
    /// use executor_core::{TaskError, ThreadPoolExecutor};
    /// use std::time::Instant;
    ///
    /// let pool = ThreadPoolExecutor::new(1)?;
    /// let outcome = pool.options().deadline(Instant::now()).submit(|()| (), ()).result();
    /// assert!(matches!(outcome, Err(TaskError::TimedOut)));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn deadline(mut self, deadline: Instant) -> Self {
        self.settings.deadline = Some(deadline);
        self
    }

    /// How often a task is tried again if it fails for a reason that may not come again; what that is depends on where it
    /// runs:
    ///
    /// * in a worker process: the worker died. The next run follows after a pause of some 15 ms, and of about twice as long
    ///   each further time, up to 10 s. A task that has ended one worker more than that is given up, and its
    ///   [`WorkerDeath`](crate::WorkerDeath) tells how many attempts there were. A panic is not tried again there, nor is
    ///   anything after `shutdown_now`.
    /// * on a thread: the task panicked. The next run follows at once, on the same worker; [`timeout`](Self::timeout) is for
    ///   each run, [`deadline`](Self::deadline) for all of them. Between two runs the end comes if the future was aborted,
    ///   or the pool shut down by `shutdown_now` or a `shutdown_timeout` that ran out: the outcome is then the last panic.
    ///   A [`PanicReport`](crate::PanicReport) says how many runs there were, in `attempts`. Panics that a later run made
    ///   good are shown by no future and told to no panic handler. The task counts as one, and cannot be cancelled once
    ///   its first run has begun, only aborted.
    ///
    /// Neither tries again after a time-out, a cancellation or an error that the function returned. In a `map` each item is
    /// tried again by itself on threads; in worker processes the message it travelled in, less what is done.
    ///
    /// What is to run again must be there again. On threads, therefore, the function is `Fn` and the argument `Clone`;
    /// through the [`Executor`] trait, whose arguments need not be, the argument is encoded once, as for another process, and
    /// decoded for each further run.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU32, Ordering};
    ///
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let runs = AtomicU32::new(0);
    /// let flaky = move |text: String| {
    ///     assert!(runs.fetch_add(1, Ordering::Relaxed) >= 2, "not yet");
    ///     text
    /// };
    /// let third_time = pool.options().retries(3).submit(flaky, "lucky".to_owned());
    /// assert_eq!(third_time.result().unwrap(), "lucky");
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    ///
    /// What cannot be tried again is refused by the compiler:
    ///
    /// ```compile_fail,E0277
    /// struct Ticket;
    /// # let pool = executor_core::ThreadPoolExecutor::new(1).unwrap();
    /// pool.options().retries(1).submit(|_: Ticket| (), Ticket);
    /// ```
    pub fn retries(mut self, retries: u32) -> Options<'a, E, Again> {
        self.settings.retries = retries;
        Options { executor: self.executor, settings: self.settings, runs: PhantomData }
    }

    /// Tasks with a higher priority start earlier; the default is 0. Among equal ones those that came from outside the
    /// pool start in the order they came; a worker that submits without a priority starts what it submitted last first.
    ///
    /// On threads nothing starves, however much that is more urgent keeps coming. Of the tasks that a worker takes from
    /// the queues, every 61st is not the most urgent but one that has waited longest: in turn the oldest of those without a
    /// priority from outside, of those above 0, of those below 0, and of those without a priority that the worker has
    /// submitted itself. So a task that has `n` older ones before it among those of its kind is taken before any worker has
    /// taken `244 * (n + 1)` tasks (244 is 4 times 61), itself included. (A task without a priority may by then be with one
    /// worker, which took some from outside at once or has submitted it: then this is about that worker's tasks.) Counted in
    /// tasks, not in time: a worker in a long task takes nothing.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// pool.options().priority(10).submit(|()| "first", ()).wait();
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn priority(mut self, priority: i32) -> Self {
        self.settings.priority = priority;
        self
    }

    /// How errors and statistics call the task.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let future = pool.options().label("resize").submit(|()| (), ());
    /// assert!(format!("{future:?}").contains("resize"));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.settings.label = Some(label.into().into());
        self
    }

    /// How many items a `map` sends in one message; without it, the measured cost of an item decides.
    ///
    /// # Panics
    ///
    /// If `items` is 0.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(2)?;
    /// let sum: u32 = pool.options().chunk_size(10).map(|n: u32| n, 0..100).map(Result::unwrap).sum();
    /// assert_eq!(sum, 4950);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    #[track_caller]
    pub const fn chunk_size(mut self, items: usize) -> Self {
        assert!(items > 0, "chunk_size must be at least 1, got 0");
        self.settings.chunk_size = NonZeroUsize::new(items);
        self
    }

    /// How many items a `map` may take from its input beyond those whose results were yielded: never one more.
    ///
    /// # Panics
    ///
    /// If `items` is 0.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(2)?;
    /// let mut endless = pool.options().buffer_size(8).map(|n: u64| n * n, 0..);
    /// assert_eq!(endless.next().unwrap().unwrap(), 0);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    #[track_caller]
    pub const fn buffer_size(mut self, items: usize) -> Self {
        assert!(items > 0, "buffer_size must be at least 1, got 0");
        self.settings.buffer_size = NonZeroUsize::new(items);
        self
    }

    /// Makes `map` yield results as they come, not in the order of the input.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(2)?;
    /// let mut all: Vec<u32> = pool.options().unordered().map(|n: u32| n, 0..10).map(Result::unwrap).collect();
    /// all.sort();
    /// assert_eq!(all, (0..10).collect::<Vec<_>>());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn unordered(mut self) -> Self {
        self.settings.unordered = true;
        self
    }
}

/// An executor that can limit what a call uses: worker processes can, threads cannot, so there the methods are missing.
///
/// The limits hold for one run and are taken off after it: the next task on the same worker has those of its own, or none.
///
/// ```compile_fail,E0277
/// # let pool = executor_core::ThreadPoolExecutor::new(1).unwrap();
/// # use executor_core::Executor;
/// Executor::options(&pool).memory_limit(1 << 20); // nobody can take memory from a thread
/// ```
pub trait LimitsCalls: Executor {}

impl<E: LimitsCalls, Runs> LimitsCalls for Options<'_, E, Runs> {}

impl<E: LimitsCalls, Runs> Options<'_, E, Runs> {
    /// The most memory a run may map, in bytes, beyond what its worker has mapped before. A run that asks for more in a
    /// way that can fail is told; any other dies, and ends in [`LimitExceeded`](crate::TaskError::LimitExceeded).
    pub const fn memory_limit(mut self, bytes: u64) -> Self {
        self.settings.limits.memory = Some(bytes);
        self
    }

    /// The most processor time a run may use, all threads of its process together: then SIGXCPU ends it, and SIGKILL a second
    /// later, in [`LimitExceeded`](crate::TaskError::LimitExceeded).
    pub const fn cpu_time_limit(mut self, time: Duration) -> Self {
        self.settings.limits.cpu_time = Some(time);
        self
    }

    /// The most files the process of a run may have open: opening another fails, which the task sees as an error of the
    /// system.
    pub const fn open_files_limit(mut self, files: u64) -> Self {
        self.settings.limits.open_files = Some(files);
        self
    }
}

impl<E, Runs> Clone for Options<'_, E, Runs> {
    fn clone(&self) -> Self {
        Self { executor: self.executor, settings: self.settings.clone(), runs: PhantomData }
    }
}

impl<E, Runs> fmt::Debug for Options<'_, E, Runs> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Options").field(&self.settings).finish()
    }
}

impl<E: Executor, Runs> Executor for Options<'_, E, Runs> {
    fn submit_call<C, A, R>(&self, call: Callable<C, A, R>, arg: A, options: &CallOptions) -> TaskFuture<R>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload,
    {
        self.executor.submit_call(call, arg, options)
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
        self.executor.submit_chunk(call, args, options)
    }

    fn shutdown_with(&self, how: Shutdown) -> ShutdownReport {
        self.executor.shutdown_with(how)
    }

    fn max_workers(&self) -> usize {
        self.executor.max_workers()
    }

    fn call_options(&self) -> CallOptions {
        self.settings.clone()
    }
}

/// Sends items to an [`Executor`].
///
/// ```
/// use executor_core::{CallMapper, Executor, Map, ThreadPoolExecutor};
/// use std::ops::Range;
///
/// let pool = ThreadPoolExecutor::new(1)?;
/// let map: Map<Range<u8>, CallMapper<ThreadPoolExecutor, (), u8, u8>> = Executor::map(&pool, |n| n, 0..3);
/// assert_eq!(map.count(), 3);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[derive(Debug)]
pub struct CallMapper<E, C, A, R> {
    executor: E,
    call: Callable<C, A, R>,
}

impl<E, C, A, R> CallMapper<E, C, A, R> {
    pub(crate) const fn new(executor: E, call: Callable<C, A, R>) -> Self {
        Self { executor, call }
    }
}

impl<E, C, A, R> Mapper<A> for CallMapper<E, C, A, R>
where
    E: Executor,
    C: Payload + Sync,
    A: Payload,
    R: Payload,
{
    type Output = R;

    fn send(&self, items: Vec<A>, options: &CallOptions) -> TaskFuture<Chunk<R>> {
        self.executor.submit_chunk(self.call.clone(), items, options)
    }

    fn max_workers(&self) -> usize {
        self.executor.max_workers()
    }
}
