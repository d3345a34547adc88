//! A little of everything the thread pool does, small enough for Miri (`ci/miri.sh`), which checks every access to memory
//! and every interleaving it happens to take. Under ordinary builds these are ordinary tests.
//!
//! Values are counted: each one made is dropped once.

#![allow(clippy::disallowed_types, reason = "tests watch the library from outside its models")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use executor_core::{Promise, ReturnWhen, TaskError, ThreadPoolExecutor, as_completed, current_task, wait};

/// Counts itself for as long as it lives; over-aligned, so that the slot of a cell is not where it mostly is.
#[repr(align(64))]
struct Probe(Arc<AtomicUsize>);

#[derive(Clone, Default)]
struct Tally(Arc<AtomicUsize>);

impl Tally {
    fn probe(&self) -> Probe {
        self.0.fetch_add(1, Ordering::Relaxed);
        Probe(Arc::clone(&self.0))
    }

    fn check(&self) {
        assert_eq!(self.0.load(Ordering::Relaxed), 0, "every probe is gone");
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn pool(workers: usize) -> ThreadPoolExecutor {
    ThreadPoolExecutor::new(workers).unwrap()
}

#[test]
fn values_come_back() {
    let tally = Tally::default();
    let pool = pool(2);
    let futures: Vec<_> = (0..8).map(|_| pool.submit(|probe: Probe| probe, tally.probe())).collect();
    for future in futures {
        drop(future.result().unwrap());
    }
    assert!(pool.shutdown().is_complete());
    tally.check();
}

/// Dropped before, while and after it runs; the outcome, if it is there, goes with whoever comes last.
#[test]
fn dropped_futures_leak_nothing() {
    let tally = Tally::default();
    let pool = pool(2);
    for _ in 0..8 {
        drop(pool.submit(|probe: Probe| probe, tally.probe()));
    }
    let future = pool.submit(|probe: Probe| probe, tally.probe());
    future.wait();
    assert!(future.peek().is_some());
    drop(future);
    assert!(pool.shutdown().is_complete());
    tally.check();
}

#[test]
fn cancelled_tasks_drop_their_closure() {
    let tally = Tally::default();
    let pool = pool(1);
    let (open, gate) = channel::<()>();
    let busy = pool.submit(move |()| gate.recv().is_ok(), ());
    let futures: Vec<_> = (0..4).map(|_| pool.submit(|probe: Probe| probe, tally.probe())).collect();
    assert!(futures[0].cancel() && futures[2].cancel());
    open.send(()).unwrap();
    assert!(busy.result().unwrap());
    let outcomes: Vec<bool> = futures.into_iter().map(|future| future.result().is_ok()).collect();
    assert_eq!(outcomes, [false, true, false, true]);
    assert!(pool.shutdown().is_complete());
    tally.check();
}

#[test]
fn shutdown_now_cancels_what_waits() {
    let tally = Tally::default();
    let pool = pool(1);
    let (open, gate) = channel::<()>();
    let (started, has_started) = channel();
    let busy = pool.submit(
        move |()| {
            started.send(()).unwrap();
            gate.recv().is_ok()
        },
        (),
    );
    has_started.recv().unwrap();
    let waiting: Vec<_> = (0..3).map(|_| pool.submit(|probe: Probe| probe, tally.probe())).collect();
    let there = pool.clone();
    let shutdown = std::thread::spawn(move || there.shutdown_now());
    for future in waiting {
        assert!(matches!(future.result(), Err(TaskError::Cancelled)));
    }
    open.send(()).unwrap();
    assert_eq!(shutdown.join().unwrap().cancelled, 3);
    assert!(busy.result().unwrap());
    assert!(matches!(pool.submit(|probe: Probe| probe, tally.probe()).result(), Err(TaskError::ShutDown)));
    tally.check();
}

#[test]
fn callbacks_see_the_outcome_once() {
    let tally = Tally::default();
    let pool = pool(2);
    for _ in 0..4 {
        let (told, tells) = channel();
        let future = pool.submit(|probe: Probe| probe, tally.probe());
        for number in 0..3 {
            let (told, probe) = (told.clone(), tally.probe());
            future.add_done_callback(move |outcome| {
                assert!(outcome.is_ok());
                told.send(number).unwrap();
                drop(probe);
            });
        }
        drop(told);
        drop(future.result().unwrap());
        assert_eq!(tells.iter().collect::<Vec<_>>(), [0, 1, 2]);
    }
    assert!(pool.shutdown().is_complete());
    tally.check();
}

#[test]
fn panics_become_errors() {
    let tally = Tally::default();
    let pool = pool(1);
    let future = pool.submit(
        |probe: Probe| {
            let _probe = probe;
            std::panic::resume_unwind(Box::new("by intention"));
        },
        tally.probe(),
    );
    let error: TaskError = future.result().map(|(): ()| ()).unwrap_err();
    assert!(error.is_panic());
    assert!(pool.shutdown().is_complete());
    tally.check();
}

#[test]
fn scopes_borrow() {
    let pool = pool(2);
    let words = [String::from("a"), String::from("bc"), String::from("def")];
    let mut lengths = [0; 3];
    pool.scope(|s| {
        for (word, length) in words.iter().zip(&mut lengths) {
            s.spawn(move || *length = word.len());
        }
    });
    assert_eq!(lengths, [1, 2, 3]);
    let total: usize = pool.scope(|s| {
        let futures: Vec<_> = words.iter().map(|word| s.spawn(|| word.len())).collect();
        futures.into_iter().map(|future| future.result().unwrap()).sum()
    });
    assert_eq!(total, 6);
    // A panic comes out of the scope, behind every borrow.
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pool.scope(|s| {
            s.spawn(|| std::panic::resume_unwind(Box::new(words[0].len())));
            s.spawn(|| words[1].len());
        });
    }));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&1_usize));
}

#[test]
fn joins_nest() {
    fn sum(pool: &ThreadPoolExecutor, numbers: &[u64]) -> u64 {
        if numbers.len() <= 2 {
            return numbers.iter().sum();
        }
        let (left, right) = numbers.split_at(numbers.len() / 2);
        let (left, right) = pool.join(|| sum(pool, left), || sum(pool, right));
        left + right
    }
    let pool = pool(2);
    let numbers: Vec<u64> = (1..=16).collect();
    assert_eq!(sum(&pool, &numbers), 136);
}

#[test]
fn maps_keep_the_order() {
    let tally = Tally::default();
    let pool = pool(2);
    let probes = tally.clone();
    let items = (0..10_u32).map(move |n| (n, probes.probe()));
    let mapped: Vec<u32> =
        pool.options().chunk_size(3).map(|(n, _): (u32, Probe)| n * n, items).map(Result::unwrap).collect();
    assert_eq!(mapped, [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]);
    // Dropped half-way.
    let probes = tally.clone();
    let mut map = pool.map(|probe: Probe| probe, (0..6).map(move |_| probes.probe()));
    drop(map.next());
    drop(map);
    assert!(pool.shutdown().is_complete());
    tally.check();
}

#[test]
fn waits_inside_tasks() {
    let pool = pool(1);
    let there = pool.clone();
    let outer = pool.submit(
        move |n: u32| {
            // The first is run in place, the second is stolen by a spare worker or run in place too.
            let inner: Vec<_> = (0..3).map(|m| there.submit(move |n: u32| n + m, n)).collect();
            inner.into_iter().map(|future| future.result().unwrap()).sum::<u32>()
        },
        1,
    );
    assert_eq!(outer.result().unwrap(), 6);
}

#[test]
fn a_ring_of_waits_is_found() {
    let pool = pool(2);
    let (give, take) = channel();
    let first = pool.submit(
        move |()| {
            let second: executor_core::TaskFuture<bool> = take.recv().unwrap();
            second.result().is_ok()
        },
        (),
    );
    let second = pool.submit(move |()| first.result().is_ok(), ());
    give.send(second).unwrap();
    assert!(pool.shutdown().is_complete(), "one of the two got an error and told the other");
}

#[test]
fn several_futures_at_once() {
    let pool = pool(2);
    let futures: Vec<_> = (0..5).map(|n: u32| pool.submit(|n: u32| n, n)).collect();
    assert!(!wait(&futures, ReturnWhen::FirstCompleted, None).done.is_empty());
    assert!(wait(&futures, ReturnWhen::AllCompleted, None).not_done.is_empty());
    assert_eq!(as_completed(futures).map(|future| future.result().unwrap()).sum::<u32>(), 10);
}

#[test]
fn priorities_bounds_and_blocking() {
    let tally = Tally::default();
    let pool = ThreadPoolExecutor::builder().max_workers(2).queue_capacity(2).build().unwrap();
    let futures: Vec<_> = (0..6)
        .map(|n| pool.options().priority(n % 3 - 1).submit(|probe: Probe| probe, tally.probe()))
        .collect();
    let there = pool.clone();
    assert_eq!(pool.submit(move |()| there.blocking(|| 7), ()).result().unwrap(), 7);
    drop(futures);
    assert!(pool.shutdown().is_complete());
    tally.check();
}

#[test]
fn time_limits() {
    let tally = Tally::default();
    let pool = pool(1);
    let late = pool.options().deadline(Instant::now()).submit(|probe: Probe| probe, tally.probe());
    assert!(matches!(late.result(), Err(TaskError::TimedOut)));
    let slow = pool.options().timeout(Duration::from_millis(1)).submit(
        |probe: Probe| {
            while !current_task().is_some_and(|task| task.is_cancelled()) {
                std::thread::yield_now();
            }
            probe
        },
        tally.probe(),
    );
    assert!(matches!(slow.result(), Err(TaskError::TimedOut)));
    let quick =
        pool.options().timeout(Duration::from_secs(3_600)).submit(|probe: Probe| probe, tally.probe());
    drop(quick.result().unwrap());
    assert!(pool.shutdown().is_complete());
    tally.check();
}

#[test]
fn futures_are_polled() {
    let tally = Tally::default();
    let pool = pool(2);
    let slow = pool.submit(|probe: Probe| probe, tally.probe());
    let answer = pool.spawn_future(async move { slow.await.map(drop).is_ok() });
    assert!(answer.result().unwrap());
    let (promise, future) = Promise::new();
    let waits = pool.spawn_future(async move { future.await.unwrap() });
    promise.complete(Ok(7));
    assert_eq!(waits.result().unwrap(), 7);
    assert!(pool.shutdown().is_complete());
    tally.check();
}

#[test]
fn promises() {
    let tally = Tally::default();
    let (promise, future) = Promise::new();
    let probe = tally.probe();
    let other = std::thread::spawn(move || {
        if promise.reserve() && promise.set_running() {
            promise.complete(Ok(probe));
        }
    });
    if !future.cancel() {
        drop(future.result().unwrap());
    }
    other.join().unwrap();
    let (promise, future) = Promise::<Probe>::new();
    assert!(future.cancel());
    promise.complete(Ok(tally.probe()));
    drop(future);
    tally.check();
}

/// The last handle goes on a worker.
#[test]
fn a_pool_dropped_by_its_own_task() {
    let tally = Tally::default();
    let pool = pool(1);
    let (there, probe) = (pool.clone(), tally.probe());
    let (give, take) = channel::<()>();
    let future = pool.submit(
        move |()| {
            take.recv().unwrap();
            drop(there);
            drop(probe);
        },
        (),
    );
    drop(pool);
    give.send(()).unwrap();
    future.result().unwrap();
    tally.check();
}
