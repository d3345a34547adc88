//! What a pool tells about itself: counters, workers, and the report of its shutdown.

use std::fmt;
use std::time::Duration;

/// The counters of a pool at one instant. They add up: `submitted == queued + running + finished`.
///
/// ```
/// let pool = executor_core::ThreadPoolExecutor::new(2)?;
/// let futures: Vec<_> = (0..5).map(|n| pool.submit(|n: u32| n, n)).collect();
/// let now = pool.stats();
/// assert_eq!(now.submitted, now.queued + now.running + now.finished);
/// pool.shutdown();
/// assert_eq!(pool.stats().finished, 5);
/// # drop(futures);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Tasks accepted since the pool was built.
    pub submitted: u64,
    /// Tasks that wait for a worker.
    pub queued: u64,
    /// Tasks that are running.
    pub running: u64,
    /// Tasks that are over, for whatever reason.
    pub finished: u64,
    /// Of the finished ones, those that were cancelled before they started.
    pub cancelled: u64,
    /// Of the finished ones, those that panicked.
    pub panicked: u64,
    /// Workers alive, spare ones included.
    pub workers: usize,
    /// Of the workers, those that have nothing to do.
    pub idle_workers: usize,
    /// Of the workers, those whose task waits for another one; a spare worker may run in the place of each.
    pub blocked_workers: usize,
}

/// One worker of a pool at one instant.
///
/// ```
/// let pool = executor_core::ThreadPoolExecutor::builder().max_workers(1).name_prefix("loom").build()?;
/// pool.submit(|()| (), ()).wait();
/// assert_eq!(pool.workers()[0].name, "loom-0");
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Its name, `<prefix>-<index>`.
    pub name: String,
    /// The system's id of its process, or of its thread where there is one process for all.
    pub id: u64,
    /// Whether it runs a task.
    pub is_busy: bool,
    /// The label of the task it runs, if that has one.
    pub label: Option<String>,
    /// For how long it has been running that task. On threads, some milliseconds too much at most: its start is taken from a
    /// coarse clock.
    pub busy_for: Option<Duration>,
}

impl WorkerInfo {
    /// A worker that runs nothing.
    ///
    /// ```
    /// assert!(!executor_core::WorkerInfo::idle("w-0", 17).is_busy);
    /// ```
    #[must_use]
    pub fn idle(name: impl Into<String>, id: u64) -> Self {
        Self { name: name.into(), id, is_busy: false, label: None, busy_for: None }
    }

    /// The same worker, running a task.
    ///
    /// ```
    /// use std::time::Duration;
    /// let worker = executor_core::WorkerInfo::idle("w-0", 17).running(Some("resize"), Duration::ZERO);
    /// assert_eq!(worker.label.as_deref(), Some("resize"));
    /// ```
    #[must_use]
    pub fn running(mut self, label: Option<&str>, busy_for: Duration) -> Self {
        self.is_busy = true;
        self.label = label.map(str::to_owned);
        self.busy_for = Some(busy_for);
        self
    }
}

/// What a shutdown did, counted from its call to its return.
///
/// ```
/// let pool = executor_core::ThreadPoolExecutor::new(1)?;
/// let report = pool.shutdown();
/// assert!(report.is_complete());
/// assert_eq!(report.cancelled, 0);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Tasks that ran to their end.
    pub finished: u64,
    /// Tasks that had not started and were cancelled.
    pub cancelled: u64,
    /// Tasks that were still queued or running at the return: after a time limit, or called on a worker of the pool,
    /// which cannot wait for itself.
    pub unfinished: u64,
}

impl ShutdownReport {
    /// A report with these counts.
    ///
    /// ```
    /// assert!(!executor_core::ShutdownReport::new(3, 2, 1).is_complete());
    /// ```
    #[must_use]
    pub const fn new(finished: u64, cancelled: u64, unfinished: u64) -> Self {
        Self { finished, cancelled, unfinished }
    }

    /// Whether nothing was left at the return.
    ///
    /// ```
    /// assert!(executor_core::ShutdownReport::default().is_complete());
    /// ```
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.unfinished == 0
    }
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { finished, cancelled, unfinished } = self;
        write!(f, "{finished} finished, {cancelled} cancelled, {unfinished} left")
    }
}
