//! S2: one atomic step decides who runs, cancels or claims a task.

use std::sync::{Arc, Barrier};

use concurrent_futures::ThreadPoolExecutor;

use crate::support::{Gate, Watchdog};

/// S2: two threads that cancel the same task at once cancel one task.
#[test]
fn a_task_cancelled_twice_at_once_counts_once() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let inside = gate.clone();
    let first = pool.spawn(move || inside.pass());
    const ROUNDS: u64 = 20_000;
    let barrier = Arc::new(Barrier::new(2));
    let (sender, receiver) = std::sync::mpsc::channel::<Arc<concurrent_futures::TaskFuture<()>>>();
    let there = Arc::clone(&barrier);
    let other = std::thread::spawn(move || {
        for future in receiver {
            there.wait();
            assert!(future.cancel());
            there.wait();
        }
    });
    for _ in 0..ROUNDS {
        let future = Arc::new(pool.spawn(|| ()));
        sender.send(Arc::clone(&future)).unwrap();
        barrier.wait();
        assert!(future.cancel());
        barrier.wait();
    }
    drop(sender);
    other.join().unwrap();
    gate.open();
    first.result().unwrap();
    pool.shutdown();
    let stats = pool.stats();
    assert_eq!((stats.submitted, stats.cancelled, stats.finished), (ROUNDS + 1, ROUNDS, ROUNDS + 1));
}

/// S2: a task cancelled through its future while the pool shuts down is counted by one of the two.
#[test]
fn a_cancel_that_meets_a_shutdown_now_counts_once() {
    let _watchdog = Watchdog::start();
    for _ in 0..300 {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let (gate, barrier) = (Gate::new(), Arc::new(Barrier::new(2)));
        let inside = gate.clone();
        let first = pool.spawn(move || inside.pass());
        let futures: Vec<_> = (0..200).map(|_| pool.spawn(|| ())).collect();
        gate.wait_for_arrivals(1);
        let there = Arc::clone(&barrier);
        let other = std::thread::spawn(move || {
            there.wait();
            let cancelled = futures.iter().filter(|future| future.cancel()).count();
            assert_eq!(cancelled, 200);
        });
        let (opens, pool_there) = (gate.clone(), pool.clone());
        let ending = std::thread::spawn(move || {
            barrier.wait();
            pool_there.shutdown_now()
        });
        other.join().unwrap();
        opens.open();
        ending.join().unwrap();
        first.result().unwrap();
        let stats = pool.stats();
        assert_eq!((stats.submitted, stats.cancelled, stats.finished), (201, 200, 201));
    }
}
