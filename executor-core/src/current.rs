//! The running task, seen from inside.

use crate::task;

/// The task that is running on this thread, if any: to ask whether it should stop.
///
/// ```
/// let pool = executor_core::ThreadPoolExecutor::new(1)?;
/// let label = pool.options().label("deep").submit(
///     |()| executor_core::current_task().and_then(|task| task.label().map(str::to_owned)),
///     (),
/// );
/// assert_eq!(label.result().unwrap().as_deref(), Some("deep"));
/// assert!(executor_core::current_task().is_none(), "not on the caller's thread");
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[must_use]
pub fn current_task() -> Option<CurrentTask> {
    task::current().map(CurrentTask)
}

/// The running task, from inside; see [`current_task`].
///
/// ```
/// assert!(executor_core::current_task().is_none());
/// ```
#[derive(Debug)]
pub struct CurrentTask(task::Task);

impl CurrentTask {
    /// Whether the task was asked to stop: its future was aborted, or its time is up.
    ///
    /// ```
    /// fn poll_often() -> bool {
    ///     executor_core::current_task().is_some_and(|task| task.is_cancelled())
    /// }
    /// assert!(!poll_often());
    /// ```
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.is_aborted()
    }

    /// The task's label, if it has one.
    ///
    /// ```
    /// assert!(executor_core::current_task().is_none_or(|task| task.label().is_none()));
    /// ```
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        self.0.label()
    }
}
