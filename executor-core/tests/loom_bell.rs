//! Models of the process pool's bell, the word of `executor-process/src/bell.rs`: the very file, on loom's atomics; see
//! `loom_gate.rs`.

#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests")]

/// What the file finds at `crate::sync` here.
mod sync {
    pub(crate) use executor_core::sync::{AtomicU64, Ordering, fence};
}

#[path = "../../executor-process/src/bell.rs"]
mod bell;

use bell::{Bell, Told};
use executor_core::sync::{Arc, AtomicU64, Ordering, model, thread};

fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().spawn(body).unwrap()
}

#[derive(Default)]
struct Words {
    bell: AtomicU64,
    committed: AtomicU64,
    /// Frames on the socket that were not read.
    frames: AtomicU64,
}

impl Words {
    fn bell(&self) -> Bell<'_> {
        Bell::new(&self.bell)
    }

    /// The worker commits results one by one. A waiter that was woken needs no more: it is a thread that looks.
    fn work(&self, results: u64) {
        for result in 1..=results {
            self.committed.store(result, Ordering::Release);
            if self.bell().take() == Some(Told::Dispatcher) {
                self.frames.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// What the parent does before it sleeps; what it saw.
    fn set_and_look(&self) -> u64 {
        self.bell().set();
        self.committed.load(Ordering::Acquire)
    }

    /// Who waits: turns the bell, has slept enough at once, and looks if it was taken.
    fn wait_in_vain(&self) -> u64 {
        if self.bell().turn() && !self.bell().turn_back() { self.set_and_look() } else { 0 }
    }

    /// Nobody sleeps on a result that nobody was told of.
    fn check(&self, results: u64, seen: u64) {
        let is_awake = self.frames.load(Ordering::Acquire) > 0;
        assert!(seen == results || is_awake, "{results} results, {seen} seen, and the dispatcher sleeps");
        assert!(self.bell().is_set() || is_awake, "the next one is told to nobody");
    }
}

/// The dispatcher lies down while the worker commits.
#[test]
fn set_against_take() {
    model(4, || {
        let words = Arc::new(Words::default());
        let there = Arc::clone(&words);
        let worker = spawn(move || there.work(2));
        let seen = words.set_and_look();
        worker.join().unwrap();
        words.check(2, seen);
    });
}

/// A thread turns the bell and back while the worker commits: either it was taken, and the thread looks, or it is set.
#[test]
fn turn_against_take() {
    model(4, || {
        let words = Arc::new(Words::default());
        words.set_and_look();
        let there = Arc::clone(&words);
        let worker = spawn(move || there.work(2));
        let seen = words.wait_in_vain();
        worker.join().unwrap();
        words.check(2, seen);
    });
}

/// And the dispatcher lies down meanwhile, which sets a bell that is turned.
#[test]
fn turn_against_set_against_take() {
    model(3, || {
        let words = Arc::new(Words::default());
        words.set_and_look();
        let (there, beside) = (Arc::clone(&words), Arc::clone(&words));
        let worker = spawn(move || there.work(1));
        let waiter = spawn(move || beside.wait_in_vain());
        let seen = words.set_and_look();
        worker.join().unwrap();
        words.check(1, seen.max(waiter.join().unwrap()));
    });
}
