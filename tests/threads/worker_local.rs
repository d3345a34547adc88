//! `WorkerLocal`: one value for each worker, as long as the worker and the handle live, and not longer.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use concurrent_futures::{ThreadPoolExecutor, WorkerLocal};

use crate::support::{Gate, Probe, Tally, Watchdog, eventually};

fn probes(tally: &Tally) -> WorkerLocal<(Probe, Cell<u32>, ThreadId)> {
    let tally = tally.clone();
    WorkerLocal::new(move || (tally.probe(), Cell::new(0), std::thread::current().id()))
}

/// Made once for each worker, on it, and found again by all its tasks; dropped when it ends, before the shutdown returns.
#[test]
fn each_worker_has_a_value_of_its_own() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(4).unwrap();
    let local = probes(&tally);
    let gate = Gate::new();
    let futures: Vec<_> = (0..4)
        .map(|_| {
            let (local, passes) = (local.clone(), gate.clone());
            pool.spawn(move || {
                passes.pass();
                local.with(|(_, count, thread)| {
                    assert_eq!(*thread, std::thread::current().id());
                    count.set(count.get() + 1);
                });
            })
        })
        .collect();
    gate.wait_for_arrivals(4);
    gate.open();
    futures.into_iter().for_each(|future| future.result().unwrap());
    let inside = local.clone();
    let counts = pool.options().chunk_size(1).map(
        move |_| {
            inside.with(|(_, count, thread)| {
                count.set(count.get() + 1);
                (*thread, count.get())
            })
        },
        0..200,
    );
    let seen: BTreeSet<_> =
        counts.map(Result::unwrap).map(|(thread, count)| (format!("{thread:?}"), count)).collect();
    assert_eq!(seen.len(), 200, "no count was seen twice on one worker");
    assert_eq!(tally.counts(), (4, 0));
    pool.shutdown();
    assert_eq!(tally.alive(), 0, "they go with their workers");
    drop(local);
    tally.assert_balanced();
}

/// A worker that ends for want of work takes its value along, and its successor makes a new one.
#[test]
fn a_value_ends_with_its_worker() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool =
        ThreadPoolExecutor::builder().max_workers(1).keep_alive(Duration::from_micros(1)).build().unwrap();
    let local = probes(&tally);
    for _ in 0..20 {
        let inside = local.clone();
        let first = pool.spawn(move || inside.with(|(_, count, _)| count.replace(1))).result().unwrap();
        assert_eq!(first, 0, "nobody's leftovers");
        eventually(|| tally.alive() == 0);
    }
    assert_eq!(tally.counts().0, 20);
}

/// When the handle goes, so do the values of workers that live on.
#[test]
fn the_values_go_with_the_handle() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    for _ in 0..100 {
        let local = probes(&tally);
        let inside = local.clone();
        pool.spawn(move || inside.with(|_| ())).result().unwrap();
        local.with(|_| ()); // and one here
        eventually(|| tally.alive() == 2);
        drop(local);
        eventually(|| tally.alive() == 0); // the task's own handle goes a moment after its result
    }
    tally.assert_balanced();
}

/// In a task run in place it is the worker's, though the task around it is using it.
#[test]
fn a_task_run_in_place_finds_the_same_value() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let (local, inside) = (probes(&tally), pool.clone());
    let count = pool.spawn(move || {
        local.with(|(_, count, _)| {
            count.set(1);
            let inner = local.clone();
            let awaited = inside.spawn(move || inner.with(|(_, count, _)| count.set(count.get() + 1)));
            awaited.result().unwrap();
            count.get()
        })
    });
    assert_eq!(count.result().unwrap(), 2);
    pool.shutdown();
    tally.assert_balanced();
}

/// Collected: every worker's, once, spare ones included, and those of threads outside when they end.
#[test]
fn collected_values_are_all_there_after_the_shutdown() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let makes = tally.clone();
    let sums = WorkerLocal::collecting(move || (makes.probe(), Cell::new(0_u64)));
    let pool =
        ThreadPoolExecutor::builder().max_workers(3).keep_alive(Duration::from_micros(50)).build().unwrap();
    let add = |sums: &WorkerLocal<(Probe, Cell<u64>)>, n| sums.with(|(_, sum)| sum.set(sum.get() + n));
    for n in 0..2_000_u64 {
        let (inside, waits) = (sums.clone(), pool.clone());
        drop(pool.spawn(move || {
            if n % 100 == 0 {
                waits.blocking(std::thread::yield_now);
            }
            add(&inside, n);
        }));
    }
    pool.shutdown();
    let outside = sums.clone();
    std::thread::spawn(move || add(&outside, 1)).join().unwrap();
    let values = sums.drain();
    assert_eq!(values.iter().map(|(_, sum)| sum.get()).sum::<u64>(), 1_999_000 + 1);
    assert_eq!(tally.counts(), (values.len() as u64, 0));
    assert!(sums.drain().is_empty());
    drop(values);
    tally.assert_balanced();
}

/// What makes the value may fail, and use the value's own handle; the next call tries again.
#[test]
fn a_maker_that_panics_is_asked_again() {
    let _watchdog = Watchdog::start();
    let runs = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&runs);
    let local = WorkerLocal::new(move || {
        assert!(counts.fetch_add(1, Ordering::SeqCst) >= 1, "not yet");
        RefCell::new(vec![1])
    });
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let (first, second) = (local.clone(), local.clone());
    assert!(pool.spawn(move || first.with(|_| ())).result().unwrap_err().is_panic());
    let panics = move || {
        second.with(|values| -> () {
            values.borrow_mut().push(2);
            panic!("in use");
        })
    };
    assert!(pool.spawn(panics).result().unwrap_err().is_panic());
    assert_eq!(pool.spawn(move || local.with(|values| values.borrow().clone())).result().unwrap(), [1, 2]);
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    // A destructor that panics harms nobody.
    struct Bad;
    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("in a destructor");
        }
    }
    let bad = WorkerLocal::new(|| Bad);
    let inside = bad.clone();
    pool.spawn(move || inside.with(|_| ())).result().unwrap();
    assert!(pool.shutdown().is_complete());
    drop(bad);
}
