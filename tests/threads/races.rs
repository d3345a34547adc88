//! S1, S2: ran or cancelled, never both and never neither, whoever is faster.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use concurrent_futures::{TaskError, ThreadPoolExecutor};

use crate::support::{Tally, Watchdog};

/// A canceller races the workers for the same tasks.
#[test]
fn a_task_runs_or_is_cancelled() {
    let _watchdog = Watchdog::start();
    for workers in [1, 2, 8] {
        let tally = Tally::local();
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let (mut ran, mut cancelled) = (0, 0);
        for round in 0..4_000_u32 {
            let count = Arc::new(AtomicU32::new(0));
            let (counts, probe) = (Arc::clone(&count), tally.probe());
            let future = pool.spawn(move || {
                counts.fetch_add(1, Ordering::SeqCst);
                probe
            });
            for _ in 0..round % 200 {
                std::hint::spin_loop();
            }
            let is_cancelled = future.cancel();
            let outcome = future.result();
            match &outcome {
                Ok(_) => ran += 1,
                Err(TaskError::Cancelled) => cancelled += 1,
                Err(error) => panic!("{error}"),
            }
            assert_eq!(outcome.is_err(), is_cancelled);
            assert_eq!(count.load(Ordering::SeqCst), u32::from(!is_cancelled));
        }
        let report = pool.shutdown();
        assert!(report.is_complete(), "{report}");
        let stats = pool.stats();
        assert_eq!((stats.submitted, stats.finished, stats.cancelled), (4_000, 4_000, cancelled));
        println!("{workers} workers: {ran} ran, {cancelled} cancelled");
        tally.assert_balanced();
    }
}

/// Three threads and the workers after one task: two cancellers, one who would run it in place on a worker.
#[test]
fn a_task_is_claimed_cancelled_or_started_once() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(3).unwrap();
    let seen = Arc::new([const { AtomicU64::new(0) }; 2]);
    for round in 0..3_000_u32 {
        let barrier = Arc::new(Barrier::new(3));
        let count = Arc::new(AtomicU32::new(0));
        let (inside, counts, probes, there, seen) =
            (pool.clone(), Arc::clone(&count), tally.clone(), Arc::clone(&barrier), Arc::clone(&seen));
        let (sender, receiver) = std::sync::mpsc::channel();
        let outer = pool.spawn(move || {
            let probe = probes.probe();
            let future = Arc::new(inside.spawn(move || {
                counts.fetch_add(1, Ordering::SeqCst);
                drop(probe);
            }));
            sender.send(Arc::clone(&future)).unwrap();
            sender.send(Arc::clone(&future)).unwrap();
            there.wait();
            future.wait(); // runs it in place if nobody was faster
            future.is_cancelled()
        });
        let cancellers: Vec<_> = (0..2)
            .map(|_| {
                let (future, barrier) = (receiver.recv().unwrap(), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    barrier.wait();
                    for _ in 0..round % 100 {
                        std::hint::spin_loop();
                    }
                    future.cancel()
                })
            })
            .collect();
        let is_cancelled = outer.result().unwrap();
        for canceller in cancellers {
            assert_eq!(canceller.join().unwrap(), is_cancelled, "round {round}");
        }
        assert_eq!(count.load(Ordering::SeqCst), u32::from(!is_cancelled), "round {round}");
        seen[usize::from(is_cancelled)].fetch_add(1, Ordering::Relaxed);
    }
    println!("{seen:?} ran and were cancelled");
    let report = pool.shutdown();
    assert!(report.is_complete(), "{report}");
    tally.assert_balanced();
}

/// `cancel_on_drop` is a cancel like any other.
#[test]
fn a_future_dropped_with_cancel_on_drop_cancels_or_lets_run() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let ran = Arc::new(AtomicU64::new(0));
    for round in 0..4_000_u32 {
        let (counts, probe) = (Arc::clone(&ran), tally.probe());
        let future = pool
            .spawn(move || {
                counts.fetch_add(1, Ordering::SeqCst);
                probe
            })
            .cancel_on_drop();
        for _ in 0..round % 200 {
            std::hint::spin_loop();
        }
        drop(future);
    }
    pool.shutdown();
    let stats = pool.stats();
    assert_eq!(stats.finished, 4_000);
    assert_eq!(stats.cancelled + ran.load(Ordering::SeqCst), 4_000);
    tally.assert_balanced();
}
