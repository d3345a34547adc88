//! No pool at all: a thread for every task.

use std::thread::{self, JoinHandle};

use crate::pool::Pool;

pub(crate) struct StdThreads;

impl Pool for StdThreads {
    type Handle = JoinHandle<u64>;

    const SCALE: u64 = 50;

    fn build(_: usize) -> Self {
        Self
    }

    fn submit(&self, f: impl FnOnce() -> u64 + Send + 'static) -> Self::Handle {
        thread::spawn(f)
    }

    fn wait(&self, handle: Self::Handle) -> u64 {
        handle.join().unwrap_or_else(|_| panic!("a task panicked"))
    }

    fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        drop(thread::spawn(f));
    }
}
