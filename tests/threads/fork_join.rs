//! `join`: forks that are taken back, stolen, refused for want of room, and what their panics do (S2, S4, S6, S14).

use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use concurrent_futures::ThreadPoolExecutor;

use crate::support::{Gate, Tally, Watchdog};

/// Every join of a deep tree runs both halves once, whatever the number of workers, and several may be at it.
#[test]
fn both_halves_run_once_on_any_number_of_workers() {
    fn tree(pool: &ThreadPoolExecutor, depth: u32, runs: &AtomicU32) -> u32 {
        runs.fetch_add(1, Ordering::Relaxed);
        if depth == 0 {
            return 1;
        }
        let (a, b) = pool.join(|| tree(pool, depth - 1, runs), || tree(pool, depth - 1, runs));
        a + b
    }
    let _watchdog = Watchdog::start();
    for workers in [1, 2, 3, 8, 64] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let runs = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| assert_eq!(tree(&pool, 12, &runs), 1 << 12));
            }
        });
        assert_eq!(runs.into_inner(), 3 * ((1 << 13) - 1), "{workers} workers");
        let stats = pool.stats();
        assert_eq!(stats.submitted, stats.finished, "{stats:?}");
    }
}

/// A half that a thief has is waited for, and borrows from the waiting stack until it is over.
#[test]
fn a_stolen_half_is_waited_for() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for _ in 0..50 {
        let (stolen, mut left, mut right) = (Gate::new(), 0, 0);
        let opener = stolen.clone();
        let threads = pool.join(
            || {
                left = 1;
                // Nobody may rely on this; here, the other worker has nothing else to do.
                pool.blocking(|| stolen.pass());
                std::thread::current().id()
            },
            || {
                right = 2;
                opener.open();
                std::thread::current().id()
            },
        );
        assert_eq!((left, right), (1, 2));
        assert_ne!(threads.0, threads.1);
    }
}

/// Both values, or one payload; nothing is leaked or dropped twice, wherever the panic is.
#[test]
fn a_panic_in_either_half_comes_out_with_its_payload() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for round in 0..200 {
        for (left, right) in [(true, false), (false, true), (true, true)] {
            let (a, b) = (tally.probe(), tally.probe());
            let half = |fails: bool, probe, word: &'static str| {
                if fails {
                    std::panic::panic_any(word);
                }
                probe
            };
            let caught = catch_unwind(AssertUnwindSafe(|| {
                if round % 2 == 0 {
                    pool.join(move || half(left, a, "left"), move || half(right, b, "right"))
                } else {
                    // Deep enough that forks are calls.
                    let pool = &pool;
                    nest(pool, 6, move || {
                        pool.join(move || half(left, a, "left"), move || half(right, b, "right"))
                    })
                }
            }));
            let payload = caught.map(drop).unwrap_err();
            assert_eq!(payload.downcast_ref::<&str>(), Some(if left { &"left" } else { &"right" }));
        }
    }
    pool.shutdown();
    tally.assert_balanced();
}

/// Runs `inside` below some open forks.
fn nest<R: Send>(pool: &ThreadPoolExecutor, depth: u32, inside: impl FnOnce() -> R + Send) -> R {
    if depth == 0 { inside() } else { pool.join(|| nest(pool, depth - 1, inside), || ()).0 }
}

/// A shutdown cancels what has not started, but a running task gets its halves.
#[test]
fn a_shutdown_cancels_no_half_of_a_running_task() {
    let _watchdog = Watchdog::start();
    for workers in [1, 2, 4] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let (gate, inside) = (Gate::new(), pool.clone());
        let passes = gate.clone();
        let running = pool.spawn(move || {
            let (a, b) = inside.join(
                || {
                    passes.pass(); // the other half lies in the queue, or is stolen
                    nest(&inside, 3, || 20)
                },
                || 22,
            );
            a + b
        });
        gate.wait_for_arrivals(1);
        let ending = std::thread::spawn({
            let pool = pool.clone();
            move || pool.shutdown_now()
        });
        while pool.try_submit(|()| (), ()).is_ok() {}
        gate.open();
        assert_eq!(running.result().unwrap(), 42, "{workers} workers");
        assert!(ending.join().unwrap().is_complete());
    }
}

/// A full queue, a blocked worker and a stack without room make two calls of a join.
#[test]
fn without_room_for_a_fork_it_is_two_calls() {
    fn deep(pool: &ThreadPoolExecutor, depth: u32) -> u32 {
        if depth == 0 { 0 } else { pool.join(|| deep(pool, depth - 1), || 1).0 + 1 }
    }
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::builder()
        .max_workers(1)
        .queue_capacity(1)
        .stack_size(256 * 1024)
        .build()
        .unwrap();
    let inside = pool.clone();
    let sums = pool.spawn(move || {
        let filler = inside.submit(|()| (), ());
        let full = inside.join(|| 1, || 2);
        filler.wait();
        let blocked = inside.blocking(|| inside.join(|| 3, || 4));
        (full, blocked, deep(&inside, 300))
    });
    assert_eq!(sums.result().unwrap(), ((1, 2), (3, 4), 300));
}

/// Two pools: a worker of one is a stranger to the other.
#[test]
fn joins_of_two_pools_nest() {
    let _watchdog = Watchdog::start();
    let (one, other) = (ThreadPoolExecutor::new(1).unwrap(), ThreadPoolExecutor::new(2).unwrap());
    let values = one.join(|| other.join(|| one.join(|| 1, || 2), || 3), || other.join(|| 4, || 5));
    assert_eq!(values, (((1, 2), 3), (4, 5)));
}

#[test]
fn outside_a_pool_that_was_shut_down_a_join_panics() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    pool.shutdown();
    let runs = AtomicUsize::new(0);
    let half = || runs.fetch_add(1, Ordering::Relaxed);
    let caught = catch_unwind(AssertUnwindSafe(|| pool.join(half, half)));
    let message = caught.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("shut down"), "{message}");
    assert_eq!(runs.into_inner(), 0);
}

/// S4: whatever is borrowed or locked across a join is seen by its own halves alone, as if they were called.
#[test]
fn a_lock_held_across_a_join_hangs_nobody() {
    let _watchdog = Watchdog::start();
    for workers in 1..=8 {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let (lock, runs) = (Mutex::new(()), AtomicUsize::new(0));
        for _ in 0..20 {
            pool.scope(|s| {
                for i in 0..100 {
                    let (pool, lock, runs) = (&pool, &lock, &runs);
                    s.spawn(move || {
                        let _guard = (i % 2 == 0).then(|| lock.lock().unwrap());
                        let count = || runs.fetch_add(1, Ordering::Relaxed);
                        pool.join(|| nest(pool, 5, count), || nest(pool, 5, count));
                    });
                }
            });
        }
        assert_eq!(runs.into_inner(), 20 * 200, "{workers} workers");
    }
}

/// S4: no half of a stranger's join runs on a stack that waits.
#[test]
fn a_thread_local_borrowed_across_a_join_is_not_seen_by_strangers() {
    thread_local! {
        static HOLDER: Cell<Option<usize>> = const { Cell::new(None) };
    }
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(3).unwrap();
    let seen = Mutex::new(BTreeSet::new());
    pool.scope(|s| {
        for task in 0..300 {
            let (pool, seen) = (&pool, &seen);
            s.spawn(move || {
                let before = HOLDER.replace(Some(task));
                let look = move || {
                    if let Some(holder) = HOLDER.get().filter(|holder| *holder != task) {
                        seen.lock().unwrap().insert((holder, task));
                    }
                };
                pool.join(|| nest(pool, 4, look), || nest(pool, 4, look));
                HOLDER.set(before);
            });
        }
    });
    assert_eq!(seen.into_inner().unwrap(), BTreeSet::new());
}
