//! `TaskFuture`, the handle to a value that will exist, and `Promise`, its writing end.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::error::TaskError;
use crate::fork::PoolId;
use crate::host::{self, Host, Target};
use crate::os::ThreadSlot;
use crate::owner;
use crate::panic_report;
use crate::sync::{Parker, thread, thread_local};
use crate::task::{self, Details, Handle, Listener, Outcome, Phase, Started, Task, Watch, Writer};

/// How long a waiting thread looks before it sleeps. A wake-up costs both sides together about as much; longer would keep a
/// core from whoever has work for it, shorter pays for a wake-up where a moment would have done. In a model it would only be
/// more of the same.
const LOOK_TIME: Duration = if cfg!(loom) { Duration::ZERO } else { Duration::from_micros(10) };

/// The handle to the value of a task: wait for it, look at it, be called back, or `.await` it.
///
/// Dropping it detaches the task, which runs all the same ([`cancel_on_drop`](Self::cancel_on_drop) changes that).
/// The outcome is then dropped on the worker as soon as it is there.
///
/// ```
/// use executor_core::ThreadPoolExecutor;
///
/// let pool = ThreadPoolExecutor::new(2)?;
/// let future = pool.submit(|(base, exponent): (u64, u32)| base.pow(exponent), (2, 10));
/// future.add_done_callback(|outcome| println!("done: {outcome:?}"));
/// assert_eq!(future.result()?, 1024);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Waiting on a worker
///
/// A wait on a worker of the same pool never hangs the pool and never runs another task on this stack: a task that has
/// not started is run in place, and for one that has, a spare worker keeps the pool's parallelism up meanwhile. Tasks
/// that wait for each other in a ring end in [`TaskError::Deadlock`].
pub struct TaskFuture<T> {
    cell: Handle<T>,
}

impl<T> TaskFuture<T> {
    pub(crate) const fn new(cell: Handle<T>) -> Self {
        Self { cell }
    }

    /// It is of a future that a pool polls: that can be dropped even when it has begun.
    pub(crate) fn polled(self) -> Self {
        self.cell.polled();
        self
    }

    /// Waits for the task and returns its value.
    ///
    /// # Errors
    ///
    /// Why there is no value: see [`TaskError`].
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// assert_eq!(pool.submit(|n: u32| n + 1, 41).result()?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn result(mut self) -> Result<T, TaskError> {
        if self.cell.is_in_own_callback() {
            return Err(asked_in_callback());
        }
        match wait_for(&self.cell, None) {
            Ok(_) => self.take(),
            Err(error) => Err(error),
        }
    }

    /// Waits for at most `timeout`, and returns the value if it is there by then.
    ///
    /// The value is moved out: asked again after that, this future answers [`TaskError::Abandoned`].
    ///
    /// # Errors
    ///
    /// [`TaskError::TimedOut`] if the task has not ended yet: the future stays usable. Otherwise as
    /// [`result`](Self::result).
    ///
    /// ```
    /// use executor_core::{Promise, TaskError};
    /// use std::time::Duration;
    ///
    /// let (promise, mut future) = Promise::new();
    /// assert!(matches!(future.result_timeout(Duration::ZERO), Err(TaskError::TimedOut)));
    /// promise.complete(Ok(7));
    /// assert_eq!(future.result_timeout(Duration::ZERO).unwrap(), 7);
    /// ```
    pub fn result_timeout(&mut self, timeout: Duration) -> Result<T, TaskError> {
        if self.cell.is_in_own_callback() {
            return Err(asked_in_callback());
        }
        match wait_for(&self.cell, Some(timeout)) {
            Ok(true) => self.take(),
            Ok(false) => Err(TaskError::TimedOut),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self) -> Result<T, TaskError> {
        self.cell.take().unwrap_or(Err(TaskError::Abandoned))
    }

    /// Waits until the task is over.
    ///
    /// Returns early only where waiting could never end: on a ring of tasks that wait for each other, and in a forked
    /// child. [`result`](Self::result) then says so.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let future = pool.submit(|n: u32| n, 1);
    /// future.wait();
    /// assert!(future.is_done());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn wait(&self) {
        // The error is not lost: `result` finds it again.
        let _ = wait_for(&self.cell, None);
    }

    /// Waits until the task is over, for at most `timeout`; says whether it is.
    ///
    /// ```
    /// # use std::time::Duration;
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// assert!(!future.wait_timeout(Duration::from_millis(1)));
    /// drop(promise);
    /// assert!(future.wait_timeout(Duration::MAX));
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        wait_for(&self.cell, Some(timeout)).unwrap_or(false)
    }

    /// The outcome, if it is there, without waiting and without taking it.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::new();
    /// assert!(future.peek().is_none());
    /// promise.complete(Ok("here"));
    /// assert!(matches!(future.peek(), Some(Ok("here"))));
    /// ```
    pub fn peek(&self) -> Option<&Result<T, TaskError>> {
        self.cell.peek()
    }

    /// Whether the task has not started yet.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// assert!(future.is_pending());
    /// promise.set_running();
    /// assert!(!future.is_pending());
    /// ```
    pub fn is_pending(&self) -> bool {
        self.cell.phase() == Phase::Pending
    }

    /// Whether the task is running.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// assert!(!future.is_running());
    /// promise.set_running();
    /// assert!(future.is_running());
    /// ```
    pub fn is_running(&self) -> bool {
        self.cell.phase() == Phase::Running
    }

    /// Whether the task is over: it has a value, failed, or was cancelled.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::new();
    /// assert!(!future.is_done());
    /// promise.complete(Ok(()));
    /// assert!(future.is_done());
    /// ```
    pub fn is_done(&self) -> bool {
        matches!(self.cell.phase(), Phase::Finished | Phase::Cancelled)
    }

    /// Whether the task was cancelled before it started.
    ///
    /// ```
    /// let (_promise, future) = executor_core::Promise::<()>::new();
    /// assert!(future.cancel());
    /// assert!(future.is_cancelled());
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.cell.phase() == Phase::Cancelled
    }

    /// Cancels the task if it has not started. Says whether the task is cancelled now.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// promise.set_running();
    /// assert!(!future.cancel(), "too late");
    /// ```
    pub fn cancel(&self) -> bool {
        if self.cell.pool().is_inherited() {
            return false;
        }
        self.cell.cancel() || self.cell.is_cancelled()
    }

    /// Cancels the task if it has not started, and asks for its end if it has: a process worker is killed and
    /// replaced, a task on a thread gets its cancel token set, which it can read through
    /// [`current_task`](crate::current_task). Says whether the task is over or was asked to end.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let future = pool.submit(
    ///     |()| while !executor_core::current_task().is_some_and(|task| task.is_cancelled()) {},
    ///     (),
    /// );
    /// assert!(future.abort());
    /// future.wait();
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn abort(&self) -> bool {
        if self.cancel() {
            return true;
        }
        if self.is_done() {
            return false;
        }
        self.cell.abort();
        owner::abort(self.cell.pool(), self.cell.id())
    }

    /// Calls `callback` with the outcome once the task is over: on the worker that finishes it, after the callbacks
    /// added before; or at once, here, if the task is over already. A panic in it goes to the pool's panic handler and
    /// does not stop the next one.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::new();
    /// future.add_done_callback(|outcome| assert!(outcome.is_ok()));
    /// promise.complete(Ok(1));
    /// ```
    pub fn add_done_callback<C>(&self, callback: C) -> &Self
    where
        C: FnOnce(&Result<T, TaskError>) + Send + 'static,
    {
        let is_lost = self.is_lost();
        let refused = if is_lost { Err(callback) } else { self.cell.add_callback(callback) };
        if let Err(callback) = refused {
            let called = panic_report::catch(|| match self.cell.peek() {
                Some(outcome) => callback(outcome),
                None if is_lost => callback(&Err(TaskError::ForkedChild)),
                None => callback(&Err(TaskError::Abandoned)), // its value was moved out by `result_timeout`
            });
            if let Err(report) = called {
                owner::report_panic(self.cell.pool(), &report);
            }
        }
        self
    }

    /// From now on, dropping this future cancels the task if it has not started. One that a pool polls
    /// ([`spawn_future`](crate::ThreadPoolExecutor::spawn_future)) it aborts, started or not.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// drop(future.cancel_on_drop());
    /// assert!(!promise.set_running(), "cancelled");
    /// ```
    #[must_use = "dropping it cancels the task"]
    pub fn cancel_on_drop(self) -> Self {
        self.cell.cancel_on_drop();
        self
    }

    pub(crate) const fn cell(&self) -> &Handle<T> {
        &self.cell
    }

    /// Whether nobody in this process can finish it: it is of a pool left behind in the parent of this forked child. Its
    /// locks may be held by threads that are not here.
    pub(crate) fn is_lost(&self) -> bool {
        self.cell.pool().is_inherited() && !self.cell.is_finished()
    }
}

impl<T> fmt::Debug for TaskFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("TaskFuture");
        out.field("id", &format_args!("{:#x}", self.cell.id()));
        if let Some(label) = self.cell.label() {
            out.field("label", &label);
        }
        let state = match (self.cell.phase(), self.cell.peek()) {
            (Phase::Pending, _) => "pending",
            (Phase::Running, _) => "running",
            (Phase::Cancelled, _) => "cancelled",
            (Phase::Finished, Some(Err(_))) => "finished with an error",
            (Phase::Finished, _) => "finished",
        };
        out.field("state", &format_args!("{state}")).finish()
    }
}

/// The value is behind a pointer and never pinned.
impl<T> Unpin for TaskFuture<T> {}

/// Awaiting a future does not block the thread that polls it, on any runtime. Dropping it mid-way detaches the task.
///
/// # Panics
///
/// `poll` panics if it is called again after it returned the outcome.
impl<T> Future for TaskFuture<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.cell.is_finished() {
            if self.is_lost() {
                return Poll::Ready(Err(TaskError::ForkedChild));
            }
            if self.cell.is_in_own_callback() {
                return Poll::Ready(Err(asked_in_callback()));
            }
            if self.cell.set_waker(context.waker()) {
                return Poll::Pending;
            }
        }
        assert!(!self.cell.is_taken(), "a TaskFuture was polled after it had returned its outcome");
        Poll::Ready(self.take())
    }
}

fn asked_in_callback() -> TaskError {
    TaskError::Deadlock("a callback asked for the result it was called with".into())
}

/// Waits until `cell` is over or `timeout` has passed; says whether it is over.
pub(crate) fn wait_for<T>(cell: &Handle<T>, timeout: Option<Duration>) -> Result<bool, TaskError> {
    if cell.is_finished() || cell.is_in_own_callback() {
        return Ok(true);
    }
    if cell.pool().is_inherited() {
        return Err(TaskError::ForkedChild);
    }
    if host::serves(cell.pool()) {
        let problem = "a callback waited for a task of its own pool, on the thread that completes them";
        return Err(TaskError::Deadlock(problem.into()));
    }
    // A time-out so far away that it has no instant is none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let Some(host) = host::current() else {
        if cell.is_attended() {
            owner::attend(cell.pool(), cell.id(), timeout);
            if cell.is_finished() {
                return Ok(true);
            }
        }
        return Ok(look_for_end(cell, timeout) || park_until(cell, deadline));
    };
    // With a time limit the task is not run here: it might take longer.
    let has_run = deadline.is_none() && run_in_place(&*host, cell);
    if has_run && cell.is_finished() || look_for_end(cell, timeout) {
        return Ok(true);
    }
    let mut over = false;
    // A wait with a time limit ends by itself; and if the task has run here and is not over, its time was up before, and the
    // timer is at its callbacks.
    let is_edge = deadline.is_none() && !has_run;
    let waited = with_parker(|parker| {
        let alarm = || Listener::Thread(ThreadSlot::current(), parker.unparker().clone());
        let target = is_edge.then(|| Target { task: cell.task(), alarm: Some(alarm()) });
        host::block(&*host, target, || over = park_on(parker, cell, deadline))
    });
    match waited {
        Err(ring) if !over => Err(TaskError::Deadlock(ring)),
        _ => Ok(over),
    }
}

/// Waits until a task is over, whatever it takes: for whoever must not go on before. On a worker, an edge of the wait-for
/// graph that does not give way.
pub(crate) fn wait_out<T>(watch: &Watch<T>) {
    with_parker(|parker| {
        let wait = || {
            let listener = Listener::Thread(ThreadSlot::current(), parker.unparker().clone());
            if watch.listen(listener) {
                while !watch.is_finished() {
                    parker.park();
                }
            }
        };
        match host::current() {
            None => wait(),
            // Never an error: this wait does not give way.
            Some(host) => {
                let target = Target { task: watch.task(), alarm: None };
                let _ = host::block(&*host, Some(target), wait);
            }
        }
    });
}

/// Waits until `cell` is over, whatever it takes: somebody's stack needs it. Where it never will be, in a forked child, panics.
pub(crate) fn settle<T>(cell: &Handle<T>) {
    assert!(!cell.pool().is_inherited() || cell.is_finished(), "{}", TaskError::ForkedChild);
    if !cell.is_finished() && !look_for_end(cell, None) {
        wait_out(&cell.watch());
    }
}

/// Claims and runs the task on this worker, if it is of its pool and has not started.
pub(crate) fn run_in_place<T>(host: &dyn Host, cell: &Handle<T>) -> bool {
    if host.pool() != cell.pool() || cell.phase() != Phase::Pending || !host.has_room() {
        return false;
    }
    claim(host, cell).map(|started| host.run(started)).is_some()
}

/// Claims a task of this worker's pool, unless it has started or is cancelled: at the least price where it lies on top of the
/// worker's own deque, as it mostly does.
pub(crate) fn claim<T>(host: &dyn Host, cell: &Handle<T>) -> Option<Started> {
    match host.take_back(cell.id()) {
        Some(queued) => cell.start_alone(queued).map_or_else(Task::start, Some),
        None => cell.task().start(),
    }
}

/// Looks whether the task is over for about as long as falling asleep and being woken would take: a short task is over by
/// then, and nobody makes a system call to wake anybody. Yields in between, since whoever runs the task may need this core.
fn look_for_end<T>(cell: &Handle<T>, timeout: Option<Duration>) -> bool {
    let limit = timeout.map_or(LOOK_TIME, |timeout| timeout.min(LOOK_TIME));
    let start = Instant::now();
    while start.elapsed() < limit {
        thread::yield_now();
        if cell.is_finished() {
            return true;
        }
    }
    false
}

/// Blocks this thread until the task is over or the deadline has come; says whether it is over.
fn park_until<T>(cell: &Handle<T>, deadline: Option<Instant>) -> bool {
    with_parker(|parker| park_on(parker, cell, deadline))
}

/// [`park_until`] on this parker; also ends when the thread's wait was condemned (see `host`).
fn park_on<T>(parker: &Parker, cell: &Handle<T>, deadline: Option<Instant>) -> bool {
    let listener = || Listener::Thread(ThreadSlot::current(), parker.unparker().clone());
    if !cell.listen(listener()) {
        return true;
    }
    loop {
        match deadline {
            None => parker.park(),
            Some(deadline) if Instant::now() < deadline => parker.park_deadline(deadline),
            Some(_) => {}
        }
        if cell.is_finished() {
            return true;
        }
        let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if is_late || host::is_condemned() {
            cell.unlisten(&listener());
            return cell.is_finished();
        }
    }
}

/// Each thread has a parker of its own for this, apart from its park token, which belongs to the user's code. A stale
/// token in it only makes one look more.
fn with_parker<R>(wait: impl FnOnce(&Parker) -> R) -> R {
    thread_local! {
        static PARKER: RefCell<Option<Parker>> = const { RefCell::new(None) };
    }
    // Taken out while in use: a destructor of a thread-local may wait too, when this one is gone already.
    let parker = PARKER.try_with(RefCell::take).ok().flatten().unwrap_or_default();
    let result = wait(&parker);
    let _ = PARKER.try_with(|slot| slot.replace(Some(parker)));
    result
}

/// The writing end of a [`TaskFuture`], for those who write an executor.
///
/// Dropping it unfinished completes the future with [`TaskError::Abandoned`]. Setting twice cannot be written, since
/// [`complete`](Self::complete) consumes it:
///
/// ```compile_fail,E0382
/// let (promise, _future) = executor_core::Promise::new();
/// promise.complete(Ok(1));
/// promise.complete(Ok(2));
/// ```
///
/// ```
/// use executor_core::Promise;
///
/// let (promise, future) = Promise::new();
/// std::thread::spawn(move || {
///     if promise.set_running() {
///         promise.complete(Ok(6 * 7));
///     }
/// });
/// assert_eq!(future.result().unwrap(), 42);
/// ```
#[must_use = "dropping a promise abandons its future"]
pub struct Promise<T> {
    cell: Writer<T>,
    completed: bool,
}

impl<T: Send + 'static> Promise<T> {
    /// A promise and its future.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::new();
    /// promise.complete(Ok("kept"));
    /// assert_eq!(future.result().unwrap(), "kept");
    /// ```
    pub fn new() -> (Self, TaskFuture<T>) {
        Self::of_pool(PoolId::NONE, None)
    }

    /// A promise whose future belongs to a pool: a forked child is refused, `cancel` and `abort` reach the
    /// [`Owner`](crate::owner::Owner).
    ///
    /// ```
    /// use executor_core::{Promise, fork::PoolId};
    /// let (promise, future) = Promise::of_pool(PoolId::next(), Some("resize".into()));
    /// assert!(format!("{future:?}").contains("resize"));
    /// promise.complete(Ok(()));
    /// ```
    pub fn of_pool(pool: PoolId, label: Option<crate::sync::Arc<str>>) -> (Self, TaskFuture<T>) {
        let details = label.map(|label| Details { label: Some(label), ..Details::default() });
        let (promise, future) = task::promise(pool, details);
        (Self { cell: promise, completed: false }, TaskFuture::new(future))
    }
}

impl<T> Promise<T> {
    /// Says that the task runs now; false if it was cancelled, and must not run.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// assert!(promise.set_running());
    /// assert!(future.is_running());
    /// ```
    #[must_use = "a cancelled task must not run"]
    pub fn set_running(&self) -> bool {
        self.cell.set_running()
    }

    /// Hands the task over to a worker that may start it at any moment: the future still shows it as pending, but it
    /// can no longer be cancelled. False if it was cancelled before.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// assert!(promise.reserve());
    /// assert!(future.is_pending() && !future.cancel());
    /// promise.unreserve();
    /// assert!(future.cancel());
    /// ```
    #[must_use = "a cancelled task must not run"]
    pub fn reserve(&self) -> bool {
        self.cell.reserve()
    }

    /// Takes a task back that was handed over and has not started.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// assert!(promise.reserve());
    /// promise.unreserve();
    /// assert!(promise.set_running());
    /// ```
    pub fn unreserve(&self) {
        self.cell.unreserve();
    }

    /// Says that the pool's [`Owner`](crate::owner::Owner) sees to this task if it is told that a thread waits for it:
    /// [`Owner::attend`](crate::owner::Owner::attend). To be said before the future is given away.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::new();
    /// promise.attend(); // no owner is told anything of a promise without a pool
    /// promise.complete(Ok(1));
    /// assert_eq!(future.result().unwrap(), 1);
    /// ```
    pub fn attend(&self) {
        self.cell.attend();
    }

    /// Completes the future; does nothing if it was cancelled.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::new();
    /// promise.complete(Ok(1));
    /// assert_eq!(future.result().unwrap(), 1);
    /// ```
    pub fn complete(mut self, outcome: Result<T, TaskError>) {
        self.completed = true;
        if let Err(outcome) = self.cell.complete(outcome) {
            panic_report::swallow(|| drop::<Outcome<T>>(outcome));
        }
    }

    /// Cancels the future, as its own `cancel` would: what a pool does with what has not started when it shuts down.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// promise.cancel();
    /// assert!(future.is_cancelled());
    /// ```
    pub fn cancel(mut self) {
        // One that had started already is abandoned when `self` goes.
        self.completed = self.cell.cancel();
    }

    /// Whether the future was cancelled.
    ///
    /// ```
    /// let (promise, future) = executor_core::Promise::<()>::new();
    /// future.cancel();
    /// assert!(promise.is_cancelled());
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.cell.is_cancelled()
    }

    /// Whether the future was aborted.
    pub(crate) fn is_aborted(&self) -> bool {
        self.cell.is_aborted()
    }

    /// Whether the future was dropped: nobody will look at the outcome.
    pub(crate) fn is_detached(&self) -> bool {
        self.cell.is_detached()
    }

    /// Distinguishes the task from every other one alive; what [`Owner::abort`](crate::owner::Owner::abort) is called
    /// with.
    ///
    /// ```
    /// use executor_core::Promise;
    /// let (first, _kept) = Promise::<()>::new();
    /// let (second, _kept) = Promise::<()>::new();
    /// assert_ne!(first.id(), second.id());
    /// ```
    pub fn id(&self) -> usize {
        self.cell.id()
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        if !self.completed {
            // Cancelled already, or abandoned now.
            let _ = self.cell.complete(Err(TaskError::Abandoned));
        }
    }
}

impl<T> fmt::Debug for Promise<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Promise").field("id", &format_args!("{:#x}", self.cell.id())).finish_non_exhaustive()
    }
}
