//! Ours: the process pool, and the thread pool under the same tasks.

use concurrent_futures::{ProcessPoolExecutor, TaskFuture, ThreadPoolExecutor};

use crate::farm::{Data, Farm};

pub(crate) struct Ours(pub(crate) ProcessPoolExecutor);

impl Farm for Ours {
    type Handle<R: Data> = TaskFuture<R>;

    fn build(workers: usize) -> Self {
        Self(ProcessPoolExecutor::new(workers).unwrap_or_else(|error| panic!("{error}")))
    }

    fn submit<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> Self::Handle<R> {
        self.0.submit(f, arg)
    }

    fn wait<R: Data>(handle: Self::Handle<R>) -> Result<R, String> {
        handle.result().map_err(|error| error.to_string())
    }
}

pub(crate) struct OurThreads(ThreadPoolExecutor);

impl Farm for OurThreads {
    type Handle<R: Data> = TaskFuture<R>;

    fn build(workers: usize) -> Self {
        Self(ThreadPoolExecutor::new(workers).unwrap_or_else(|error| panic!("{error}")))
    }

    fn submit<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> Self::Handle<R> {
        self.0.submit(f, arg)
    }

    fn wait<R: Data>(handle: Self::Handle<R>) -> Result<R, String> {
        handle.result().map_err(|error| error.to_string())
    }
}
