//! The whole pool on the model's threads: submits, waits, shutdowns and waking wakers against each other.
//!
//! Everything is the real code but the deques, the clock (no time-out ever comes) and the system's threads; see
//! `sync/loom.rs`. So much code allows few preemptions in reasonable time: the protocols it is made of have models of
//! their own with more.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::sync::{Arc, AtomicUsize, Ordering, model, thread};
use crate::{TaskError, ThreadPoolExecutor};

fn pool(workers: usize) -> ThreadPoolExecutor {
    ThreadPoolExecutor::builder().max_workers(workers).build().unwrap()
}

#[test]
fn submit_against_shutdown() {
    model(3, || {
        let pool = pool(1);
        let there = pool.clone();
        let ran = Arc::new(AtomicUsize::new(0));
        let runs = Arc::clone(&ran);
        let submitter = thread::Builder::new()
            .spawn(move || {
                there.submit(
                    move |n: u32| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        n
                    },
                    7,
                )
            })
            .unwrap();
        let report = pool.shutdown();
        assert!(report.is_complete());
        let future = submitter.join().unwrap();
        // Accepted and run, or refused and never run; nothing in between, whenever the shutdown came.
        match future.result() {
            Ok(7) => assert_eq!(ran.load(Ordering::Relaxed), 1),
            Err(TaskError::ShutDown) => assert_eq!(ran.load(Ordering::Relaxed), 0),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn submit_and_wait() {
    model(3, || {
        let pool = pool(1);
        assert_eq!(pool.submit(|n: u32| n + 1, 6).result().unwrap(), 7);
    });
}

#[test]
fn cancel_against_the_run() {
    model(3, || {
        let pool = pool(1);
        let future = pool.submit(|n: u32| n, 7);
        let cancelled = future.cancel();
        assert_eq!(future.result().is_err(), cancelled);
        let report = pool.shutdown();
        assert!(report.is_complete());
        assert_eq!(pool.stats().cancelled, u64::from(cancelled));
    });
}
