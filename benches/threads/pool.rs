//! What a pool must be able to do to be measured: run closures.

/// A pool that takes closures from outside.
pub(crate) trait Pool: Sized + Sync + Send + 'static {
    type Handle: Send;

    /// For pools so slow that the full number of tasks would take minutes: every figure is per task.
    const SCALE: u64 = 1;

    fn build(workers: usize) -> Self;

    /// For tasks that block: as [`build`](Self::build) where the pool has no way of its own.
    fn build_for_blocking(workers: usize) -> Self {
        Self::build(workers)
    }

    fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle;

    fn wait(&self, handle: Self::Handle) -> u64;

    /// In order, and their sum.
    fn wait_all(&self, handles: Vec<Self::Handle>) -> u64 {
        handles.into_iter().map(|handle| self.wait(handle)).sum()
    }

    /// Nothing is kept.
    fn spawn(&self, f: impl FnOnce() + Send + 'static);

    /// Every worker has run something.
    fn warm(&self) {
        for _ in 0..20 {
            let handles = (0..100).map(|i| self.submit(move || i)).collect();
            assert_eq!(self.wait_all(handles), 4_950);
        }
    }

    fn warmed(workers: usize) -> Self {
        let pool = Self::build(workers);
        pool.warm();
        pool
    }
}

/// Fails loudly: a fast wrong result is none.
#[track_caller]
pub(crate) fn check(found: u64, expected: u64) {
    assert_eq!(found, expected, "wrong result");
}

/// Time per task, in nanoseconds.
pub(crate) fn per_task(elapsed: std::time::Duration, tasks: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let tasks = tasks as f64;
    elapsed.as_secs_f64() * 1e9 / tasks
}
