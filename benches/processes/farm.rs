//! What a pool of processes must be able to do to be measured, and the tasks.

use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use cf_benches::{now_ns, spin};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// What crosses.
pub(crate) trait Data: Serialize + DeserializeOwned + Send + 'static {}

impl<T: Serialize + DeserializeOwned + Send + 'static> Data for T {}

/// A pool that is given functions.
pub(crate) trait Farm: Sized {
    type Handle<R: Data>;

    /// How many tasks may be handed over before the first result is taken.
    const WINDOW: usize = usize::MAX;

    fn build(workers: usize) -> Self;

    fn submit<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> Self::Handle<R>;

    /// The error says nothing but that the task failed.
    fn wait<R: Data>(handle: Self::Handle<R>) -> Result<R, String>;

    fn call<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> R {
        Self::wait(self.submit(f, arg)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// All results, in order.
    fn each<A: Data, R: Data>(&self, f: fn(A) -> R, args: impl Iterator<Item = A>) -> Vec<R> {
        let mut results = Vec::new();
        let mut open = VecDeque::new();
        for arg in args {
            if open.len() >= Self::WINDOW
                && let Some(handle) = open.pop_front()
            {
                results.push(Self::wait(handle));
            }
            open.push_back(self.submit(f, arg));
        }
        results.extend(open.into_iter().map(Self::wait));
        results.into_iter().map(|result| result.unwrap_or_else(|error| panic!("{error}"))).collect()
    }
}

pub(crate) fn increment(i: u64) -> u64 {
    i + 1
}

pub(crate) fn echo(bytes: ByteBuf) -> ByteBuf {
    bytes
}

/// Which process, when it began, and what it was asked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Stay {
    pub(crate) process: u32,
    pub(crate) began_ns: u64,
}

/// Sleeps for some milliseconds.
pub(crate) fn stay(ms: u64) -> Stay {
    let began_ns = now_ns();
    thread::sleep(Duration::from_millis(ms));
    Stay { process: std::process::id(), began_ns }
}

pub(crate) fn burn((seed, rounds): (u64, u64)) -> u64 {
    spin(seed, rounds)
}

/// Fails loudly: a fast wrong result is none.
#[track_caller]
pub(crate) fn check(found: u64, expected: u64) {
    assert_eq!(found, expected, "wrong result");
}
