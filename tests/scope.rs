//! Tasks that borrow, `join`, and futures the pool polls.

#![expect(clippy::disallowed_types, reason = "tests stand outside the crates whose locks can be replaced")]

#[path = "support/mod.rs"]
mod support;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};

use concurrent_futures::{Promise, TaskError, TaskFuture, ThreadPoolExecutor};
use support::{Gate, Watchdog, eventually};

/// S4: the program that hangs pools whose waiting workers run strangers' tasks: half of 200 tasks hold one mutex around a
/// nested scope. A thousand runs, on 1 to 16 workers.
#[test]
fn a_lock_held_around_a_nested_scope_hangs_nobody() {
    let _watchdog = Watchdog::start();
    for run in 0..1_008 {
        let workers = 1 + run % 16;
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let (lock, runs) = (Mutex::new(()), AtomicUsize::new(0));
        let inner = || {
            pool.scope(|s| {
                for _ in 0..8 {
                    s.spawn(|| runs.fetch_add(1, Ordering::Relaxed));
                }
            });
        };
        pool.scope(|s| {
            for i in 0..200 {
                let (lock, inner) = (&lock, &inner);
                s.spawn(move || {
                    let _guard = (i % 2 == 0).then(|| lock.lock().unwrap());
                    inner();
                });
            }
        });
        assert_eq!(runs.into_inner(), 1600, "{workers} workers");
    }
}

#[test]
fn join_divides_and_conquers() {
    let _watchdog = Watchdog::start();
    fn fibonacci(pool: &ThreadPoolExecutor, n: u32) -> u64 {
        if n < 2 {
            return u64::from(n);
        }
        let (a, b) = pool.join(|| fibonacci(pool, n - 1), || fibonacci(pool, n - 2));
        a + b
    }
    for workers in [1, 2, 8] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        assert_eq!(fibonacci(&pool, 16), 987);
    }
}

#[test]
fn a_scope_lends_mutably_and_gets_everything_back() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(3).unwrap();
    let mut numbers: Vec<u64> = (0..1000).collect();
    let sums: u64 = pool.scope(|s| {
        let sums: Vec<_> = numbers
            .chunks_mut(7)
            .map(|chunk| {
                s.spawn(move || {
                    chunk.iter_mut().for_each(|n| *n *= 2);
                    chunk.iter().sum::<u64>()
                })
            })
            .collect();
        sums.into_iter().map(|sum| sum.result().unwrap()).sum()
    });
    assert_eq!(sums, 999_000);
    assert_eq!(numbers[999], 1998);
}

#[test]
fn values_nobody_asks_for_are_dropped_before_the_scope_ends() {
    let _watchdog = Watchdog::start();
    struct Counts<'a>(&'a AtomicUsize);
    impl Drop for Counts<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for _ in 0..200 {
        let dropped = AtomicUsize::new(0);
        pool.scope(|s| {
            for _ in 0..4 {
                s.spawn(|| Counts(&dropped));
            }
            drop(s.spawn(|| Counts(&dropped)).result());
        });
        assert_eq!(dropped.into_inner(), 5);
    }
}

#[test]
fn a_panic_nobody_asked_about_comes_out_of_the_scope_after_its_siblings() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let ran = AtomicUsize::new(0);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pool.scope(|s| {
            s.spawn(|| std::panic::panic_any(7_u8));
            for _ in 0..10 {
                s.spawn(|| ran.fetch_add(1, Ordering::SeqCst));
            }
        });
    }));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
    assert_eq!(ran.into_inner(), 10);
    let seen = pool.scope(|s| s.spawn(|| -> u8 { panic!("seen") }).result());
    assert!(seen.unwrap_err().is_panic(), "and one that was asked about does not");
}

#[test]
fn a_scope_on_a_pool_that_was_shut_down_refuses_and_returns() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    pool.shutdown();
    let text = String::from("borrowed");
    let refused = pool.scope(|s| s.spawn(|| text.len()).result());
    assert!(matches!(refused, Err(TaskError::ShutDown)));
}

/// Ready when it was polled so often; wakes itself from another thread each time.
struct Patient(u32);

impl Future for Patient {
    type Output = &'static str;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.0 == 0 {
            return Poll::Ready("done");
        }
        self.0 -= 1;
        let waker = context.waker().clone();
        std::thread::spawn(move || waker.wake());
        Poll::Pending
    }
}

#[test]
fn the_pool_polls_a_future_until_it_is_ready() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let futures: Vec<_> = (0..20).map(|polls| pool.spawn_future(Patient(polls))).collect();
    assert!(futures.into_iter().all(|future| future.result().unwrap() == "done"));
    let panicking = pool.spawn_future(async { panic!("in a poll") });
    assert!(panicking.result().unwrap_err().is_panic());
}

#[test]
fn a_future_woken_after_the_shutdown_says_so() {
    let _watchdog = Watchdog::start();
    let kept: Arc<Mutex<Option<Waker>>> = Arc::default();
    let keeper = Arc::clone(&kept);
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let waiting = pool.spawn_future(std::future::poll_fn(move |context| {
        *keeper.lock().unwrap() = Some(context.waker().clone());
        Poll::<()>::Pending
    }));
    pool.shutdown();
    kept.lock().unwrap().take().expect("it was polled before the shutdown was through").wake();
    assert!(matches!(waiting.result(), Err(TaskError::ShutDown)));
}

/// A ring that goes through a scope ends too, whichever wait closes it: a scope cannot give way, so another wait does.
#[test]
fn a_ring_through_a_scope_is_a_deadlock() {
    let _watchdog = Watchdog::start();
    for closes_last in ["the scope", "the waiter"] {
        let pool = ThreadPoolExecutor::new(3).unwrap();
        let (give_first, takes_first) = mpsc::channel::<TaskFuture<bool>>();
        let (give_second, takes_second) = mpsc::channel::<TaskFuture<bool>>();
        let (inside, seen) = (pool.clone(), pool.clone());
        let is_deadlock = |outcome: Result<bool, TaskError>| match outcome {
            Err(TaskError::Deadlock(ring)) => {
                assert!(ring.contains("`second`"), "{ring}");
                true
            }
            other => {
                other.unwrap();
                false
            }
        };
        let first = pool.options().label("first").submit(
            move |()| {
                inside
                    .scope(|s| {
                        let found = Arc::new(AtomicBool::new(false));
                        let finds = Arc::clone(&found);
                        let starts = Gate::new();
                        let started = starts.clone();
                        s.spawn(move || {
                            started.open();
                            let second = takes_second.recv().unwrap();
                            finds.store(is_deadlock(second.result()), Ordering::SeqCst);
                        });
                        starts.pass();
                        if closes_last == "the scope" {
                            eventually(|| inside.stats().blocked_workers == 2);
                        }
                        found
                    })
                    .load(Ordering::SeqCst)
            },
            (),
        );
        let second = pool.options().label("second").submit(
            move |()| {
                let first = takes_first.recv().unwrap();
                if closes_last == "the waiter" {
                    eventually(|| seen.stats().blocked_workers == 2);
                }
                match first.result() {
                    Err(TaskError::Deadlock(ring)) => {
                        assert!(ring.contains("`first`"), "{ring}");
                        true
                    }
                    other => other.unwrap(),
                }
            },
            (),
        );
        eventually(|| first.is_running()); // here and below: so that it is not run in place
        give_first.send(first).unwrap();
        let (promise, over) = Promise::new();
        let promise = Mutex::new(Some(promise));
        second.add_done_callback(move |outcome| {
            promise.lock().unwrap().take().unwrap().complete(Ok(*outcome.as_ref().unwrap()));
        });
        eventually(|| second.is_running());
        give_second.send(second).unwrap();
        assert!(over.result().unwrap(), "with {closes_last} last");
    }
}
