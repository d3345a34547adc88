//! Ours.

use concurrent_futures::{TaskFuture, ThreadPoolExecutor};

use crate::pool::Pool;

pub(crate) struct Ours(pub(crate) ThreadPoolExecutor);

impl Pool for Ours {
    type Handle = TaskFuture<u64>;

    fn build(workers: usize) -> Self {
        Self(ThreadPoolExecutor::new(workers).unwrap_or_else(|error| panic!("{error}")))
    }

    fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle {
        self.0.spawn(f)
    }

    fn wait(&self, handle: Self::Handle) -> u64 {
        handle.result().unwrap_or_else(|error| panic!("{error}"))
    }

    fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        drop(self.0.spawn(f));
    }
}
