//! Pools that take closures and give nothing back.

use executors::Executor;
use executors::crossbeam_channel_pool;
use executors::crossbeam_workstealing_pool::{self, dyn_pool};
use executors::parker::{DynamicThreadData, StaticParker};

use crate::pool::Pool;

/// `Pool` for a type with a way to run a closure.
macro_rules! closures {
    ($name:ident($inner:ty), $build:expr, $run:expr) => {
        pub(crate) struct $name(pub(crate) $inner);

        impl Pool for $name {
            type Handle = oneshot::Receiver<u64>;

            fn build(workers: usize) -> Self {
                let build: fn(usize) -> $inner = $build;
                Self(build(workers))
            }

            fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle {
                let (sender, receiver) = oneshot::channel();
                self.spawn(move || drop(sender.send(f())));
                receiver
            }

            fn wait(&self, handle: Self::Handle) -> u64 {
                handle.recv().unwrap_or_else(|error| panic!("{error}"))
            }

            fn spawn(&self, f: impl FnOnce() + Send + 'static) {
                $run(&self.0, f);
            }
        }
    };
}

fn rayon_pool(workers: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(workers).build().unwrap_or_else(|error| panic!("{error}"))
}

closures!(Rayon(rayon::ThreadPool), rayon_pool, rayon::ThreadPool::spawn);
closures!(Threadpool(threadpool::ThreadPool), threadpool::ThreadPool::new, threadpool::ThreadPool::execute);
closures!(
    Hyper(hyper_thread_pool::ThreadPool),
    hyper_thread_pool::ThreadPool::new,
    hyper_thread_pool::ThreadPool::execute
);
closures!(
    ExecutorsChannel(crossbeam_channel_pool::ThreadPool),
    crossbeam_channel_pool::ThreadPool::new,
    Executor::execute
);
closures!(
    ExecutorsStealing(crossbeam_workstealing_pool::ThreadPool<StaticParker<DynamicThreadData>>),
    dyn_pool,
    Executor::execute
);

/// rayon with the channel most people take.
pub(crate) struct RayonChannel(rayon::ThreadPool);

impl Pool for RayonChannel {
    type Handle = crossbeam_channel::Receiver<u64>;

    fn build(workers: usize) -> Self {
        Self(rayon_pool(workers))
    }

    fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.0.spawn(move || {
            let _ = sender.send(f());
        });
        receiver
    }

    fn wait(&self, handle: Self::Handle) -> u64 {
        handle.recv().unwrap_or_else(|error| panic!("{error}"))
    }

    fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        self.0.spawn(f);
    }
}
