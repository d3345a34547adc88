//! `set_max_workers` on a pool at work: more, fewer, and nothing lost on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use concurrent_futures::{Executor, TaskError, ThreadPoolExecutor};

use crate::support::{Gate, Random, Tally, Watchdog, eventually};

/// A pool of `workers`, each in a task at the gate, and `queued` more tasks of the same kind.
fn held(workers: usize, queued: usize, gate: &Gate) -> ThreadPoolExecutor {
    let pool = ThreadPoolExecutor::new(workers).unwrap();
    for _ in 0..workers + queued {
        let passes = gate.clone();
        drop(pool.spawn(move || passes.pass()));
    }
    gate.wait_for_arrivals(workers);
    pool
}

#[test]
fn a_number_that_cannot_be_is_refused_and_named() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(3).unwrap();
    let error = pool.set_max_workers(0).unwrap_err();
    assert_eq!(error.to_string(), "max_workers must be at least 1, got 0");
    let error = pool.set_max_workers(usize::MAX).unwrap_err().to_string();
    assert!(error.ends_with(&format!("got {}", usize::MAX)), "{error}");
    assert_eq!(pool.max_workers(), 3);
    pool.set_max_workers(5).unwrap();
    assert_eq!((pool.max_workers(), Executor::max_workers(&pool)), (5, 5));
    assert!(format!("{pool:?}").contains("max_workers: 5"));
}

/// What is queued starts at once, as far as there are workers now.
#[test]
fn growing_starts_what_is_queued() {
    let _watchdog = Watchdog::start();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let pool = held(1, 6, &gate);
    assert_eq!(gate.arrivals(), 1);
    pool.set_max_workers(4).unwrap();
    gate.wait_for_arrivals(4);
    let stats = pool.stats();
    assert_eq!((stats.running, stats.queued, stats.workers), (4, 3, 4), "{stats:?}");
    gate.open();
    assert!(pool.shutdown().is_complete());
    assert_eq!(pool.stats().finished, 7);
}

/// A worker that queued tasks in its own deque while none could help shares them.
#[test]
fn growing_shares_what_a_worker_holds() {
    let _watchdog = Watchdog::start();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let (inside, passes) = (pool.clone(), gate.clone());
    let task = pool.spawn(move || {
        for _ in 0..3 {
            let passes = passes.clone();
            drop(inside.spawn(move || passes.pass()));
        }
        inside.set_max_workers(3).unwrap();
        passes.pass();
    });
    gate.wait_for_arrivals(3);
    gate.open();
    task.result().unwrap();
}

/// Workers that are too many end after their task, those that sleep end at once, and the others do all the work.
#[test]
fn shrinking_ends_workers_and_loses_nothing() {
    let _watchdog = Watchdog::start();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let pool = held(6, 20, &gate);
    pool.set_max_workers(2).unwrap();
    let stats = pool.stats();
    assert_eq!((stats.running, stats.workers), (6, 6), "what runs goes on: {stats:?}");
    let now = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    gate.open();
    eventually(|| pool.stats().finished == 26 && pool.stats().workers <= 2);
    for _ in 0..200 {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        drop(pool.spawn(move || {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
        }));
    }
    eventually(|| pool.stats().finished == 226);
    assert!(most.load(Ordering::SeqCst) <= 2);
    assert!(pool.workers().iter().all(|worker| worker.name.ends_with("-0") || worker.name.ends_with("-1")));
    // All asleep, and one too many.
    eventually(|| pool.stats().idle_workers == pool.stats().workers);
    pool.set_max_workers(1).unwrap();
    eventually(|| pool.stats().workers <= 1);
    assert_eq!(pool.submit(|n: u32| n, 4).result().unwrap(), 4);
    assert!(pool.shutdown().is_complete());
}

/// A waiting task needs a spare worker, whatever the number is by then.
#[test]
fn tasks_that_wait_go_on_in_a_pool_that_shrinks() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(4).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let futures: Vec<_> = (0..4_u32)
        .map(|n| {
            let (inside, passes) = (pool.clone(), gate.clone());
            pool.spawn(move || inside.blocking(|| passes.pass_within(Duration::from_secs(30)).then_some(n)))
        })
        .collect();
    eventually(|| pool.stats().blocked_workers == 4);
    pool.set_max_workers(1).unwrap();
    assert_eq!(pool.submit(|n: u32| n, 7).result().unwrap(), 7, "a spare worker runs it");
    gate.open();
    for (n, future) in (0..).zip(futures) {
        assert_eq!(future.result().unwrap(), Some(n));
    }
    eventually(|| pool.stats().workers <= 1);
    assert!(pool.shutdown().is_complete());
}

/// Resized all the time, under every load, and shut down in the middle of it.
#[test]
fn a_storm_of_resizing_loses_and_doubles_nothing() {
    let _watchdog = Watchdog::start();
    let mut random = Random::seeded("resizing");
    for round in 0..30 {
        let tally = Tally::local();
        let pool = ThreadPoolExecutor::builder()
            .max_workers(2)
            .keep_alive(Duration::from_micros(200))
            .build()
            .unwrap();
        let stop = AtomicBool::new(false);
        let (accepted, ran) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (pool, stop, mut random) = (&pool, &stop, random.fork());
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let workers = 1 + usize::try_from(random.below(9)).unwrap();
                        pool.set_max_workers(workers).unwrap();
                        std::thread::yield_now();
                    }
                });
            }
            let submitters: Vec<_> = (0..2)
                .map(|_| {
                    let (pool, accepted, ran, tally) = (&pool, &accepted, &ran, &tally);
                    let mut random = random.fork();
                    scope.spawn(move || {
                        let mut futures = Vec::new();
                        for n in 0..300 {
                            let (inside, probe, ran) = (pool.clone(), tally.carrying(n), Arc::clone(ran));
                            let kind = random.below(4);
                            futures.push(pool.spawn(move || {
                                ran.fetch_add(1, Ordering::Relaxed);
                                match kind {
                                    0 => inside.blocking(std::thread::yield_now),
                                    1 => drop(inside.submit(|n: u32| n, 1).result()),
                                    2 => drop(inside.spawn(std::thread::yield_now)),
                                    _ => {}
                                }
                                probe
                            }));
                        }
                        for (n, future) in futures.into_iter().enumerate() {
                            match future.result() {
                                Ok(probe) => {
                                    assert_eq!(probe.number, n as u64);
                                    accepted.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(TaskError::ShutDown) if round % 2 == 1 => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                    })
                })
                .collect();
            if round % 2 == 1 {
                std::thread::yield_now();
                assert!(pool.shutdown().is_complete());
            }
            for submitter in submitters {
                submitter.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(pool.shutdown().is_complete());
        assert_eq!(accepted.into_inner(), ran.load(Ordering::Relaxed));
        tally.assert_balanced();
        assert_eq!(pool.stats().workers, 0);
    }
}
