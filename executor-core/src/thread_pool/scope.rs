//! Tasks that borrow: `scope`.
//!
//! A scope's tasks may borrow whatever outlives the scope, because the scope does not end before they do. The pool knows
//! nothing of that: to it they are tasks like any other, with their lifetime erased.
//!
//! * **I1** A [`Job`], and everything borrowed in it, is gone when its [`Guard`] is dropped: the closure is consumed or
//!   dropped first, its value lies in the [`Slot`], and the job's own reference to that is dropped before the guard. What
//!   is left of the task in the pool is a cell that holds `()`.
//! * **I2** [`scope`] returns, or unwinds, only after every guard is dropped: it waits for the count in [`Scope`], whatever
//!   its body does. A job that is refused or cancelled is dropped unrun, and its guard with it.
//!
//! So no borrow is used after the scope (the argument of `std::thread::scope`).

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::error::TaskError;
use crate::future::{TaskFuture, wait_out};
use crate::host;
use crate::panic_report::{self, PanicReport};
use crate::sync::{Arc, Condvar, Mutex};
use crate::task::Watch;

use super::pool::ThreadPoolExecutor;

/// Where tasks that borrow are spawned; see [`ThreadPoolExecutor::scope`].
///
/// ```
/// # let pool = executor_core::ThreadPoolExecutor::new(2)?;
/// let words = ["a", "bc", "def"];
/// let total: usize = pool.scope(|s| {
///     let lengths: Vec<_> = words.iter().map(|word| s.spawn(|| word.len())).collect();
///     lengths.into_iter().map(|length| length.result().unwrap()).sum()
/// });
/// assert_eq!(total, 6);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
pub struct Scope<'scope, 'env: 'scope> {
    pool: &'scope ThreadPoolExecutor,
    open: Arc<Open>,
    /// Tasks that may not be over, for a worker that waits for the scope: those that have not started it runs in place
    /// (S4), and each of the others is an edge in the wait-for graph.
    tasks: Mutex<Vec<Watch<()>>>,
    /// Whether the scope was made on a worker, of whatever pool.
    is_on_worker: bool,
    // Invariant in both lifetimes, as in `std::thread::Scope`.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

/// How many jobs are not gone yet, and the first panic nobody else will see.
#[derive(Default)]
struct Open {
    state: Mutex<(usize, Option<PanicReport>)>,
    changed: Condvar,
}

/// The value of a task in a [`Scope`].
///
/// Dropping it lets the task run; a panic then comes out of the scope.
///
/// ```
/// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
/// let text = String::from("borrowed");
/// let length = pool.scope(|s| s.spawn(|| text.len()).result());
/// assert_eq!(length.unwrap(), 8);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
pub struct ScopedFuture<'scope, T> {
    /// Tells when the job is over, or why it never ran. `None` once asked.
    over: Option<TaskFuture<()>>,
    slot: Arc<Slot<T>>,
    open: Arc<Open>,
    scope: PhantomData<&'scope ()>,
}

/// Where a job leaves its value.
struct Slot<T>(Mutex<Contents<T>>);

enum Contents<T> {
    Empty,
    /// The future was dropped: nobody will ask.
    Unwanted,
    Value(Result<T, PanicReport>),
}

/// What the pool runs. Its fields are dropped in this order: see I1.
struct Job<F, T> {
    f: Option<F>,
    slot: Option<Arc<Slot<T>>>,
    guard: Guard,
}

struct Guard(Arc<Open>);

impl<F: FnOnce() -> T, T> Job<F, T> {
    fn run(mut self) {
        let (Some(f), Some(slot)) = (self.f.take(), self.slot.take()) else { return };
        let value = panic_report::catch(f);
        let mut contents = slot.0.lock();
        if matches!(*contents, Contents::Unwanted) {
            drop(contents);
            match value {
                Ok(value) => panic_report::swallow(|| drop(value)),
                Err(report) => self.guard.0.keep(report),
            }
        } else {
            *contents = Contents::Value(value);
            drop(contents);
        }
        drop(slot); // before the guard, which goes with `self`
    }
}

impl Open {
    fn keep(&self, report: PanicReport) {
        self.state.lock().1.get_or_insert(report);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.state.lock().0 -= 1;
        self.0.changed.notify_all();
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Runs `f` on the pool; it may borrow what outlives the scope.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let mut count = 0;
    /// pool.scope(|s| {
    ///     s.spawn(|| count += 1);
    /// });
    /// assert_eq!(count, 1);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn spawn<F, T>(&'scope self, f: F) -> ScopedFuture<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        self.open.state.lock().0 += 1;
        let slot = Arc::new(Slot(Mutex::new(Contents::Empty)));
        let job = Job { f: Some(f), slot: Some(Arc::clone(&slot)), guard: Guard(Arc::clone(&self.open)) };
        let work: Box<dyn FnOnce() + Send + 'scope> = Box::new(move || job.run());
        // SAFETY: I1 and I2: the closure, and all it borrows, is gone before the scope ends; the types differ in the
        // lifetime alone.
        let work: Box<dyn FnOnce() + Send> = unsafe { std::mem::transmute(work) };
        let over = self.pool.spawn(work);
        if self.is_on_worker {
            let mut tasks = self.tasks.lock();
            if tasks.len() == tasks.capacity() {
                tasks.retain(|task| !task.is_finished()); // before it grows: a scope may spawn for long
            }
            tasks.push(over.cell().watch());
        }
        ScopedFuture { over: Some(over), slot, open: Arc::clone(&self.open), scope: PhantomData }
    }

    /// Runs `f` on every item of a slice, on all workers, and returns the results in order when all are there.
    ///
    /// No size of chunks to choose: the workers share the slice out among themselves, as small as it needs to be for all of
    /// them to end at the same time. Of all ways to run a cheap function on many items this is the cheapest.
    ///
    /// # Panics
    ///
    /// If `f` does, with the same payload: then no further items are begun. If the pool was shut down, unless this is one
    /// of its workers.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(2)?;
    /// let words = ["to", "be", "or", "not", "to", "be"];
    /// let lengths = pool.scope(|s| s.map(&words, |word| word.len()));
    /// assert_eq!(lengths, [2, 2, 2, 3, 2, 2]);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn map<'a, T, R, F>(&self, items: &'a [T], f: F) -> Vec<R>
    where
        T: Sync,
        R: Send,
        F: Fn(&'a T) -> R + Sync,
    {
        self.pool.map_slice(items, &f)
    }

    /// Waits until every job is gone.
    fn wait(&self) {
        if let Some(host) = host::current() {
            let mut elsewhere = Vec::new();
            loop {
                // The one spawned last is the one least likely to have started.
                let next = self.tasks.lock().pop();
                if let Some(watch) = next {
                    if self.pool.owns(&*host) && host.has_room() {
                        let task = watch.task();
                        drop(host.take_back(task.id()));
                        if let Some(started) = task.start() {
                            host.run(started);
                        }
                    }
                    if !watch.is_finished() {
                        elsewhere.push(watch);
                    }
                } else if let Some(watch) = elsewhere.pop() {
                    // One after the other comes to the same as all at once; meanwhile those may spawn more.
                    wait_out(&watch);
                } else {
                    break;
                }
            }
        }
        if self.open.state.lock().0 == 0 {
            return;
        }
        host::block_any(|| {
            let mut state = self.open.state.lock();
            while state.0 > 0 {
                state = self.open.changed.wait(state);
            }
        });
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("open", &self.open.state.lock().0).finish_non_exhaustive()
    }
}

impl<T> ScopedFuture<'_, T> {
    /// Waits for the task and returns its value.
    ///
    /// # Errors
    ///
    /// As [`TaskFuture::result`].
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// let failed = pool.scope(|s| s.spawn(|| -> () { panic!("no") }).result());
    /// assert!(failed.unwrap_err().is_panic());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn result(mut self) -> Result<T, TaskError> {
        match self.over.take() {
            Some(over) => over.result()?,
            None => return Err(TaskError::Abandoned),
        }
        match std::mem::replace(&mut *self.slot.0.lock(), Contents::Empty) {
            Contents::Value(value) => value.map_err(TaskError::Panicked),
            Contents::Empty | Contents::Unwanted => Err(TaskError::Abandoned),
        }
    }

    /// Whether the task is over.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// pool.scope(|s| {
    ///     let future = s.spawn(|| 1);
    ///     while !future.is_done() {}
    /// });
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn is_done(&self) -> bool {
        self.over.as_ref().is_none_or(TaskFuture::is_done)
    }
}

impl<T> Drop for ScopedFuture<'_, T> {
    fn drop(&mut self) {
        let contents = std::mem::replace(&mut *self.slot.0.lock(), Contents::Unwanted);
        if self.over.is_some()
            && let Contents::Value(Err(report)) = contents
        {
            self.open.keep(report);
        }
    }
}

impl<T> fmt::Debug for ScopedFuture<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ScopedFuture").field(&self.over).finish()
    }
}

impl ThreadPoolExecutor {
    /// Runs `body`, in which tasks that borrow can be spawned, and returns when all of them are over.
    ///
    /// # Panics
    ///
    /// If `body` panics, or a task whose future was dropped, with the same payload; after all tasks are over.
    ///
    /// ```
    /// # let pool = executor_core::ThreadPoolExecutor::new(2)?;
    /// let mut halves = [vec![3, 1], vec![4, 2]];
    /// pool.scope(|s| {
    ///     for half in &mut halves {
    ///         s.spawn(|| half.sort());
    ///     }
    /// });
    /// assert_eq!(halves, [[1, 3], [2, 4]]);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    ///
    /// What is borrowed must outlive the scope:
    ///
    /// ```compile_fail,E0373
    /// # let pool = executor_core::ThreadPoolExecutor::new(2).unwrap();
    /// pool.scope(|s| {
    ///     let inside = 1;
    ///     s.spawn(|| inside + 1);
    /// });
    /// ```
    pub fn scope<'env, R>(&self, body: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R) -> R {
        let scope = Scope {
            pool: self,
            open: Arc::default(),
            tasks: Mutex::new(Vec::new()),
            is_on_worker: host::current().is_some(),
            scope: PhantomData,
            env: PhantomData,
        };
        let result = catch_unwind(AssertUnwindSafe(|| body(&scope)));
        scope.wait();
        let stray = scope.open.state.lock().1.take();
        match (result, stray) {
            (Err(payload), _) => resume_unwind(payload),
            (Ok(_), Some(report)) => raise(&report),
            (Ok(result), None) => result,
        }
    }
}

/// Goes on with a panic that was caught elsewhere.
pub(super) fn raise(report: &PanicReport) -> ! {
    match report.take_payload() {
        Some(payload) => resume_unwind(payload),
        None => panic!("{report}"),
    }
}
