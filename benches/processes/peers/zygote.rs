//! zygote: a forked process for each `Zygote`, which is called and waited for.
//!
//! It forks from where it is made, so all of them are made before any thread is.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use zygote::Zygote;

use super::Caller;
use crate::farm::{Data, increment};

/// Several, each called from a thread of ours.
pub(crate) struct Zygotes(Vec<Arc<Zygote>>);

impl Zygotes {
    pub(crate) fn start(workers: usize) -> Self {
        Self((0..workers).map(|_| Arc::new(Zygote::new())).collect())
    }

    /// A call to each of them, at the same time.
    pub(crate) fn all<A: Data + Clone, R: Data>(&self, f: fn(A) -> R, arg: &A) -> Vec<R> {
        let callers: Vec<JoinHandle<R>> = self
            .0
            .iter()
            .map(|zygote| {
                let (zygote, arg) = (Arc::clone(zygote), arg.clone());
                thread::Builder::new()
                    .stack_size(128 * 1024)
                    .spawn(move || zygote.run(f, arg))
                    .unwrap_or_else(|error| panic!("{error}"))
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap_or_else(|_| panic!("a call failed"))).collect()
    }

    /// All calls, given out to whichever process is free.
    pub(crate) fn each<A: Data + Sync + Clone, R: Data>(&self, f: fn(A) -> R, args: &[A]) -> Vec<R> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        thread::scope(|s| {
            let callers: Vec<_> = self
                .0
                .iter()
                .map(|zygote| {
                    s.spawn(|| {
                        let mut results = Vec::new();
                        // ORDERING: Relaxed, the arguments were there before the threads.
                        while let Some(arg) =
                            args.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                        {
                            results.push(zygote.run(f, arg.clone()));
                        }
                        results
                    })
                })
                .collect();
            callers
                .into_iter()
                .flat_map(|caller| caller.join().unwrap_or_else(|_| panic!("a call failed")))
                .collect()
        })
    }
}

impl Caller for Zygote {
    fn start() -> Self {
        Self::new()
    }

    fn increment(&mut self, i: u64) -> u64 {
        self.run(increment, i)
    }
}
