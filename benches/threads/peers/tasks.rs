//! Pools with a handle of their own for the result.

use std::time::Duration;

use futures_lite::future;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::pool::Pool;

/// tokio's workers, which are meant for tasks that never block.
pub(crate) struct TokioSpawn(pub(crate) Runtime);

/// tokio's threads for blocking work.
pub(crate) struct TokioBlocking(Runtime);

/// smol's `blocking`: one pool for the process, its size in BLOCKING_MAX_THREADS, which the harness sets.
pub(crate) struct SmolBlocking;

/// The thread that waits runs the task itself if nobody else has.
pub(crate) struct Micropool(pub(crate) micropool::ThreadPool);

pub(crate) struct RustyPool(rusty_pool::ThreadPool);

fn runtime(builder: &mut Builder) -> Runtime {
    builder.build().unwrap_or_else(|error| panic!("{error}"))
}

async fn sum(handles: Vec<JoinHandle<u64>>) -> u64 {
    let mut sum = 0;
    for handle in handles {
        sum += handle.await.unwrap_or_else(|error| panic!("{error}"));
    }
    sum
}

impl Pool for TokioSpawn {
    type Handle = JoinHandle<u64>;

    fn build(workers: usize) -> Self {
        Self(runtime(Builder::new_multi_thread().worker_threads(workers)))
    }

    fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle {
        self.0.spawn(async move { f() })
    }

    fn wait(&self, handle: Self::Handle) -> u64 {
        self.0.block_on(handle).unwrap_or_else(|error| panic!("{error}"))
    }

    fn wait_all(&self, handles: Vec<Self::Handle>) -> u64 {
        self.0.block_on(sum(handles))
    }

    fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        drop(self.0.spawn(async move { f() }));
    }
}

impl Pool for TokioBlocking {
    type Handle = JoinHandle<u64>;

    fn build(workers: usize) -> Self {
        Self(runtime(Builder::new_multi_thread().worker_threads(1).max_blocking_threads(workers)))
    }

    fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle {
        self.0.spawn_blocking(f)
    }

    fn wait(&self, handle: Self::Handle) -> u64 {
        self.0.block_on(handle).unwrap_or_else(|error| panic!("{error}"))
    }

    fn wait_all(&self, handles: Vec<Self::Handle>) -> u64 {
        self.0.block_on(sum(handles))
    }

    fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        drop(self.0.spawn_blocking(f));
    }
}

impl Pool for SmolBlocking {
    type Handle = blocking::Task<u64>;

    fn build(_: usize) -> Self {
        Self
    }

    fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle {
        blocking::unblock(f)
    }

    fn wait(&self, handle: Self::Handle) -> u64 {
        future::block_on(handle)
    }

    fn wait_all(&self, handles: Vec<Self::Handle>) -> u64 {
        future::block_on(async {
            let mut sum = 0;
            for handle in handles {
                sum += handle.await;
            }
            sum
        })
    }

    fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        blocking::unblock(f).detach();
    }
}

impl Pool for Micropool {
    type Handle = micropool::OwnedTask<u64>;

    fn build(workers: usize) -> Self {
        Self(micropool::ThreadPoolBuilder::default().num_threads(workers).build())
    }

    fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle {
        self.0.spawn_owned(f)
    }

    fn wait(&self, handle: Self::Handle) -> u64 {
        handle.join()
    }

    fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        // Dropping the handle is its way to let a task run alone.
        drop(self.0.spawn_owned(f));
    }
}

impl Pool for RustyPool {
    type Handle = rusty_pool::JoinHandle<u64>;

    fn build(workers: usize) -> Self {
        Self(rusty_pool::ThreadPool::new(workers, workers, Duration::from_secs(60)))
    }

    /// It grows from its core size only when nobody is idle.
    fn build_for_blocking(workers: usize) -> Self {
        Self(rusty_pool::ThreadPool::new(1, workers, Duration::from_secs(60)))
    }

    fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle {
        self.0.evaluate(f)
    }

    fn wait(&self, handle: Self::Handle) -> u64 {
        handle.await_complete()
    }

    fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        self.0.execute(f);
    }
}
