//! Waiting for several futures: `wait` and `as_completed`.
//!
//! A [`Group`] is entered once into every future; a future that ends puts its index into the group's queue, so each
//! completion costs the same however many futures are waited for.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::future::{TaskFuture, run_in_place, wait_for};
use crate::host::{self, Target};
use crate::sync::{Arc, AtomicUsize, Condvar, Mutex, Ordering};
use crate::task::{Listener, Notify};

/// When [`wait`] returns.
///
/// ```
/// use executor_core::{Promise, ReturnWhen, wait};
///
/// let (_promise, future) = Promise::<()>::new();
/// let futures = [future];
/// let waited = wait(&futures, ReturnWhen::FirstCompleted, std::time::Duration::ZERO);
/// assert_eq!(waited.not_done.len(), 1);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the three conditions are the whole of it, as in Python")]
pub enum ReturnWhen {
    /// One of them is over.
    FirstCompleted,
    /// One of them failed or was cancelled, or all are over.
    FirstError,
    /// All of them are over.
    AllCompleted,
}

/// What [`wait`] found: every future once, on one side or the other, in the order given.
///
/// ```
/// use executor_core::{Promise, ReturnWhen, wait};
///
/// let (promise, first) = Promise::new();
/// let (_other, second) = Promise::new();
/// promise.complete(Ok(1));
/// let futures = [first, second];
/// let waited = wait(&futures, ReturnWhen::FirstCompleted, None);
/// assert!(waited.done[0].is_done());
/// assert!(!waited.not_done[0].is_done());
/// ```
#[derive(Debug)]
pub struct Waited<'a, T> {
    /// The futures that are over.
    pub done: Vec<&'a TaskFuture<T>>,
    /// The futures that are not.
    pub not_done: Vec<&'a TaskFuture<T>>,
}

/// Waits for several futures, of one executor or of several, until `return_when` holds or `timeout` has passed.
///
/// The same future given twice counts once. `timeout` is a [`Duration`] or `None`.
///
/// ```
/// use executor_core::{ReturnWhen, ThreadPoolExecutor, wait};
///
/// let pool = ThreadPoolExecutor::new(2)?;
/// let futures: Vec<_> = (0..10).map(|n| pool.submit(|n: u32| n * n, n)).collect();
/// let waited = wait(&futures, ReturnWhen::AllCompleted, None);
/// assert_eq!(waited.done.len(), 10);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
pub fn wait<'a, T, I>(
    futures: I,
    return_when: ReturnWhen,
    timeout: impl Into<Option<Duration>>,
) -> Waited<'a, T>
where
    T: 'a,
    I: IntoIterator<Item = &'a TaskFuture<T>>,
{
    let deadline = deadline_after(timeout.into());
    let mut futures: Vec<&TaskFuture<T>> = futures.into_iter().collect();
    let mut seen = std::collections::BTreeSet::new();
    futures.retain(|future| seen.insert(future.cell().id()));

    if return_when == ReturnWhen::AllCompleted && deadline.is_none() && host::current().is_some() {
        // On a worker: one after the other comes to the same, and each is run in place or is an edge in the wait-for graph.
        // Where waiting could never end, it ends.
        let _ = futures.iter().try_for_each(|future| wait_for(future.cell(), None).map(drop));
    } else {
        wait_for_some(&futures, return_when, deadline);
    }
    let (done, not_done) = futures.into_iter().partition(|future| future.is_done());
    Waited { done, not_done }
}

fn wait_for_some<T>(futures: &[&TaskFuture<T>], return_when: ReturnWhen, deadline: Option<Instant>) {
    let is_enough = |future: &TaskFuture<T>| match return_when {
        ReturnWhen::FirstCompleted => true,
        ReturnWhen::FirstError => !matches!(future.peek(), Some(Ok(_))),
        ReturnWhen::AllCompleted => false,
    };
    if futures.iter().any(|future| future.is_done() && is_enough(future)) {
        return;
    }
    let group = Arc::new(Group::default());
    for (index, future) in futures.iter().enumerate() {
        group.listen(future, index); // one that is over is in the queue at once
    }
    for left in (1..=futures.len()).rev() {
        match group.next(futures.iter(), 0, deadline, Some(left)) {
            Some(index) if !is_enough(futures[index]) => {}
            _ => break,
        }
    }
    group.leave(futures);
}

/// Yields the futures in the order in which they end; those that are over come first.
///
/// Each is yielded once, takes the same time however many there are, and can be of different executors. Dropping the
/// iterator detaches the rest.
///
/// ```
/// use executor_core::{ThreadPoolExecutor, as_completed};
///
/// let pool = ThreadPoolExecutor::new(2)?;
/// let futures: Vec<_> = (1..=4).map(|n| pool.submit(|n: u32| n, n)).collect();
/// let mut sum = 0;
/// for future in as_completed(futures) {
///     sum += future.result()?;
/// }
/// assert_eq!(sum, 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn as_completed<T, I>(futures: I) -> AsCompleted<T>
where
    I: IntoIterator<Item = TaskFuture<T>>,
{
    let futures: Vec<Option<TaskFuture<T>>> = futures.into_iter().map(Some).collect();
    let group = Arc::new(Group::default());
    for (index, future) in futures.iter().flatten().enumerate() {
        group.listen(future, index);
    }
    AsCompleted { left: futures.len(), futures, group }
}

/// [`as_completed`] that gives up at `timeout`, counted from this call.
///
/// ```
/// use executor_core::{Promise, as_completed_timeout};
/// use std::time::Duration;
///
/// let (promise, first) = Promise::new();
/// let (_never, second) = Promise::new();
/// promise.complete(Ok(1));
/// let mut ended = as_completed_timeout([first, second], Duration::from_millis(1));
/// assert_eq!(ended.next().unwrap().unwrap().result().unwrap(), 1);
/// let unfinished = ended.next().unwrap().unwrap_err();
/// assert_eq!(unfinished.to_string(), "1 (of 2) futures unfinished");
/// assert!(ended.next().is_none());
/// ```
pub fn as_completed_timeout<T, I>(futures: I, timeout: Duration) -> AsCompletedTimeout<T>
where
    I: IntoIterator<Item = TaskFuture<T>>,
{
    AsCompletedTimeout { deadline: deadline_after(Some(timeout)), inner: Some(as_completed(futures)) }
}

/// A time-out so far away that it has no instant is none.
fn deadline_after(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// The iterator of [`as_completed`].
///
/// ```
/// let mut none = executor_core::as_completed(Vec::<executor_core::TaskFuture<()>>::new());
/// assert!(none.next().is_none());
/// ```
#[must_use = "iterators do nothing unless they are advanced"]
pub struct AsCompleted<T> {
    futures: Vec<Option<TaskFuture<T>>>,
    left: usize,
    group: Arc<Group>,
}

impl<T> AsCompleted<T> {
    fn next_until(&mut self, deadline: Option<Instant>) -> Option<TaskFuture<T>> {
        let index = self.group.next(self.futures.iter(), 0, deadline, Some(self.left))?;
        self.left -= 1;
        self.futures[index].take()
    }
}

impl<T> Iterator for AsCompleted<T> {
    type Item = TaskFuture<T>;

    fn next(&mut self) -> Option<TaskFuture<T>> {
        if self.left == 0 { None } else { self.next_until(None) }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> ExactSizeIterator for AsCompleted<T> {}

impl<T> fmt::Debug for AsCompleted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsCompleted").field("left", &self.left).finish_non_exhaustive()
    }
}

/// The iterator of [`as_completed_timeout`]: the futures that end in time, then once [`Unfinished`] if some do not.
///
/// ```
/// let none = executor_core::as_completed_timeout::<(), _>([], std::time::Duration::ZERO);
/// assert_eq!(none.count(), 0);
/// ```
#[must_use = "iterators do nothing unless they are advanced"]
pub struct AsCompletedTimeout<T> {
    inner: Option<AsCompleted<T>>,
    deadline: Option<Instant>,
}

impl<T> Iterator for AsCompletedTimeout<T> {
    type Item = Result<TaskFuture<T>, Unfinished<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        let inner = self.inner.as_mut()?;
        if inner.left == 0 {
            return None;
        }
        if let Some(future) = inner.next_until(self.deadline) {
            return Some(Ok(future));
        }
        let inner = self.inner.take()?;
        let of = inner.futures.len();
        Some(Err(Unfinished { futures: inner.futures.into_iter().flatten().collect(), of }))
    }
}

impl<T> fmt::Debug for AsCompletedTimeout<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsCompletedTimeout").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// Some futures did not end in time; here they are.
///
/// ```
/// let (_promise, future) = executor_core::Promise::<u8>::new();
/// let late = executor_core::as_completed_timeout([future], std::time::Duration::ZERO).next();
/// assert_eq!(late.unwrap().unwrap_err().futures.len(), 1);
/// ```
#[non_exhaustive]
pub struct Unfinished<T> {
    /// The futures that had not ended.
    pub futures: Vec<TaskFuture<T>>,
    of: usize,
}

impl<T> fmt::Display for Unfinished<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (of {}) futures unfinished", self.futures.len(), self.of)
    }
}

impl<T> fmt::Debug for Unfinished<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unfinished").field("futures", &self.futures).field("of", &self.of).finish()
    }
}

impl<T> std::error::Error for Unfinished<T> {}

/// In the place of an index: the wait for the last future is condemned to end (see `host`).
const ALARM: usize = usize::MAX;

/// Several futures of which somebody waits for the next to end.
#[derive(Default)]
pub(crate) struct Group {
    ended: Mutex<VecDeque<usize>>,
    some: Condvar,
    /// How many of the futures, from the first, are known to have started.
    passed: AtomicUsize,
}

impl Notify for Group {
    fn notify(&self, index: usize) {
        self.ended.lock().push_back(index);
        self.some.notify_one();
    }
}

impl Group {
    /// Enters the group into a future; one that is over is put into the queue at once.
    pub(crate) fn listen<T>(self: &Arc<Self>, future: &TaskFuture<T>, index: usize) {
        let is_over = future.is_lost() || future.cell().is_in_own_callback();
        if is_over || !future.cell().listen(Listener::Group(Arc::<Self>::clone(self), index)) {
            self.notify(index);
        }
    }

    fn leave<T>(self: &Arc<Self>, futures: &[&TaskFuture<T>]) {
        for (index, future) in futures.iter().enumerate().filter(|(_, future)| !future.is_lost()) {
            future.cell().unlisten(&Listener::Group(Arc::<Self>::clone(self), index));
        }
    }

    fn pop(&self) -> Option<usize> {
        let mut ended = self.ended.lock();
        std::iter::from_fn(|| ended.pop_front()).find(|index| *index != ALARM) // one that came too late
    }

    /// The index of the next future to end, among those entered, of which `left` are left (`None` if that does not
    /// matter) and `before` have gone from the front of `futures`; `None` at the deadline, or where it could never end.
    ///
    /// On a worker (S4) a future that has not started is run in place; if all have, a spare worker takes over.
    pub(crate) fn next<'f, T, F>(
        self: &Arc<Self>,
        futures: impl Iterator<Item = &'f F> + Clone,
        before: usize,
        deadline: Option<Instant>,
        left: Option<usize>,
    ) -> Option<usize>
    where
        T: 'f,
        F: AsFuture<T> + 'f,
    {
        if let Some(index) = self.pop() {
            return Some(index);
        }
        let Some(host) = host::current() else {
            let would_wait_for_itself =
                |future: &TaskFuture<T>| host::serves(future.cell().pool()) && !future.is_done();
            if host::is_servant() && futures.filter_map(AsFuture::future).any(would_wait_for_itself) {
                return None;
            }
            return self.block(deadline);
        };
        if deadline.is_none() {
            // A task that has started never becomes pending again: those passed are not looked at twice.
            let passed = self.passed.load(Ordering::Relaxed);
            for future in futures.clone().skip(passed.saturating_sub(before)) {
                let has_run = future.future().is_some_and(|future| run_in_place(&*host, future.cell()));
                if let Some(index) = self.pop() {
                    return Some(index);
                }
                if has_run {
                    break;
                }
                self.passed.fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut futures = futures.filter_map(AsFuture::future);
        // The last one is waited for; of several, any may end first.
        let is_last = left == Some(1) && deadline.is_none();
        let last = if is_last { futures.find(|future| !future.is_done()) } else { None };
        let target = last.map(|future| Target {
            task: future.cell().task(),
            alarm: Some(Listener::Group(Arc::<Self>::clone(self), ALARM)),
        });
        let mut next = None;
        // Where it is a ring, `None` says enough: whoever asks the future itself hears of it.
        let _ = host::block(&*host, target, || next = self.block(deadline));
        next
    }

    fn block(&self, deadline: Option<Instant>) -> Option<usize> {
        let mut ended = self.ended.lock();
        loop {
            if let Some(index) = ended.pop_front() {
                return (index != ALARM).then_some(index);
            }
            ended = match deadline {
                None => self.some.wait(ended),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.some.wait_timeout(ended, left)
                }
            };
        }
    }
}

/// What holds a future, or held one: the three shapes in which a group is given its futures.
pub(crate) trait AsFuture<T> {
    fn future(&self) -> Option<&TaskFuture<T>>;
}

impl<T> AsFuture<T> for &TaskFuture<T> {
    fn future(&self) -> Option<&TaskFuture<T>> {
        Some(self)
    }
}

impl<T> AsFuture<T> for Option<TaskFuture<T>> {
    fn future(&self) -> Option<&TaskFuture<T>> {
        self.as_ref()
    }
}
