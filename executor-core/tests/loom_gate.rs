//! Models of the process pool's gate, the word of `executor-process/src/gate.rs`: the very file, on loom's atomics. Here,
//! because the rest of that crate has no meaning on a model's threads.
//!
//! In the page the word lies in, the other side is another process; to the word that is one more thread.

#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests")]

/// What the file finds at `crate::sync` here.
mod sync {
    pub(crate) use executor_core::sync::{AtomicU64, Ordering};
}

#[path = "../../executor-process/src/gate.rs"]
mod gate;

use executor_core::sync::{Arc, AtomicU64, Mutex, model, thread};
use gate::Gate;

fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().spawn(body).unwrap()
}

/// What the parent learns of a revocation is what the worker has begun, and nothing begins after it.
#[test]
fn begin_against_close() {
    model(4, || {
        let word = Arc::new(AtomicU64::new(0));
        let there = Arc::clone(&word);
        let worker =
            spawn(move || (1..=3).filter(|number| Gate::new(&there).begin(*number)).max().unwrap_or(0));
        let closed_at = Gate::new(&word).close();
        let begun = worker.join().unwrap();
        assert_eq!(closed_at, Some(begun));
        assert_eq!(Gate::new(&word).begun(), begun);
        assert_eq!(Gate::new(&word).close(), None, "once, until it is lifted");
    });
}

/// A worker and its twin, forked by a task: each number begins once.
#[test]
fn begin_against_the_twin_against_close() {
    model(3, || {
        let word = Arc::new(AtomicU64::new(0));
        let [one, other] = [(); 2].map(|()| {
            let there = Arc::clone(&word);
            spawn(move || [1, 2].map(|number| Gate::new(&there).begin(number)))
        });
        let closed_at = Gate::new(&word).close().unwrap();
        let (one, other) = (one.join().unwrap(), other.join().unwrap());
        for number in 0..2 {
            assert!(!(one[number] && other[number]), "twice: {}", number + 1);
        }
        let begun = (1..=2).filter(|number| one[number - 1] || other[number - 1]).max().unwrap_or(0);
        assert_eq!(closed_at, begun as u64);
    });
}

/// Revoked, given to somebody else, and open again: what was revoked does not begin here, what is sent later does.
#[test]
fn close_against_begin_and_lift() {
    const LIFT: u64 = 0;
    model(4, || {
        let word = Arc::new(AtomicU64::new(0));
        // The worker's stream: two tasks, and what the parent adds.
        let stream = Arc::new(Mutex::new(vec![1, 2]));
        let (there, reads) = (Arc::clone(&word), Arc::clone(&stream));
        let worker = spawn(move || {
            let (mut begun, mut read) = (Vec::new(), 0);
            while begun.last() != Some(&3) {
                let next = reads.lock().get(read).copied();
                match next {
                    None => thread::yield_now(),
                    Some(LIFT) => Gate::new(&there).lift(),
                    Some(number) => begun.extend(Gate::new(&there).begin(number).then_some(number)),
                }
                read += usize::from(next.is_some());
            }
            begun
        });
        let closed_at = Gate::new(&word).close().unwrap();
        stream.lock().extend([LIFT, 3]);
        let expected: Vec<u64> = (1..=closed_at).chain([3]).collect();
        assert_eq!(worker.join().unwrap(), expected);
        assert_eq!(Gate::new(&word).close(), Some(3), "it is open again");
    });
}
