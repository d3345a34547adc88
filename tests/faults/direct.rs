//! One task at a time to idle workers, waited for at once: the way past the dispatcher's thread, and everything that can
//! come in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use concurrent_futures::{Executor, ProcessPoolExecutor, TaskError, as_completed};
use nix::sys::signal::Signal;

use crate::procfs::workers;
use crate::scene::{Runs, assert_full, assert_timed_out, forever, isolated, kill, note};
use crate::support::{Gate, Random, Turnstile, eventually, pass};

fn double(n: u64) -> u64 {
    n * 2
}

/// Starts every worker of the pool, so that all of them are idle from here on.
fn warm(pool: &ProcessPoolExecutor) {
    let mut turnstile = Turnstile::new();
    let futures: Vec<_> =
        (0..pool.max_workers()).map(|_| pool.submit(|t: String| pass(&t), turnstile.ticket())).collect();
    turnstile.wait_for_arrivals(pool.max_workers());
    turnstile.open();
    futures.into_iter().for_each(|future| future.result().unwrap());
}

/// Bursts and single tasks by turns, from more threads than there are workers: a bell that is turned when the dispatcher has
/// just taken what it rings for must be set again.
#[test]
fn round_trips_between_bursts_all_come_back() {
    isolated(|| {
        for workers in [1, 2, 3] {
            let pool = ProcessPoolExecutor::new(workers).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4_u64 {
                    let pool = &pool;
                    scope.spawn(move || {
                        for round in 0..20 {
                            let burst: Vec<_> = (0..50).map(|n| pool.submit(double, n)).collect();
                            for single in 0..30 {
                                let n = thread * 1_000_000 + round * 1_000 + single;
                                assert_eq!(pool.submit(double, n).result().unwrap(), 2 * n);
                            }
                            for (n, future) in (0..).zip(burst) {
                                assert_eq!(future.result().unwrap(), 2 * n);
                            }
                        }
                    });
                }
            });
            let stats = pool.stats();
            assert_eq!((stats.submitted, stats.finished), (4 * 20 * 80, 4 * 20 * 80));
            assert_full(&pool, workers);
        }
    });
}

/// Every way to learn of the end of a task, for tasks that meet an idle worker.
#[test]
fn whoever_wants_to_know_learns_of_it() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        warm(&pool);
        let called = Arc::new(AtomicU64::new(0));
        for n in 0..300 {
            let mut future = pool.submit(double, n);
            match n % 6 {
                0 => assert_eq!(future.result().unwrap(), 2 * n),
                1 => {
                    let called = Arc::clone(&called);
                    future.add_done_callback(move |outcome| {
                        called.fetch_add(*outcome.as_ref().unwrap(), Ordering::Relaxed);
                    });
                    assert_eq!(future.result().unwrap(), 2 * n);
                }
                2 => assert_eq!(future.result_timeout(Duration::from_secs(60)).unwrap(), 2 * n),
                3 => {
                    future.wait();
                    assert_eq!(future.peek().unwrap().as_ref().unwrap(), &(2 * n));
                }
                4 => {
                    let [only] = as_completed([future]).collect::<Vec<_>>().try_into().unwrap();
                    assert_eq!(only.result().unwrap(), 2 * n);
                }
                _ => drop(future),
            }
        }
        assert_eq!(
            called.load(Ordering::Relaxed),
            (0..300).filter(|n| n % 6 == 1).map(|n| 2 * n).sum::<u64>()
        );
        eventually(|| pool.stats().finished == pool.stats().submitted);
        assert_full(&pool, 2);
    });
}

/// What does not come by the ring is told to who waits there, too: panics, large results, deaths, aborts, time limits.
#[test]
fn an_end_of_another_kind_reaches_who_waits_for_it() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        warm(&pool);
        for round in 0..20_u64 {
            let panicked = pool.submit(|n: u64| -> u64 { panic!("at {n}") }, round).result().unwrap_err();
            assert!(panicked.to_string().contains(&format!("at {round}")), "{panicked}");
            let large = pool.submit(|n: usize| vec![7_u8; n], 100_000).result().unwrap();
            assert_eq!(large.len(), 100_000);
            let died = pool.submit(|()| -> u64 { std::process::exit(3) }, ()).result();
            assert!(
                matches!(&died, Err(TaskError::WorkerDied(death)) if death.exit_code == Some(3)),
                "{died:?}"
            );
            let mut turnstile = Turnstile::new();
            let stuck = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
            turnstile.wait_for_arrivals(1);
            std::thread::scope(|scope| {
                let gate = Gate::new();
                let waits = scope.spawn({
                    let gate = gate.clone();
                    move || {
                        gate.open();
                        stuck.result()
                    }
                });
                gate.pass();
                match round % 2 {
                    0 => turnstile.open(),
                    _ => kill_busy(&pool),
                }
                let ended = waits.join().unwrap();
                assert_eq!(ended.is_ok(), round % 2 == 0, "{ended:?}");
            });
            let late = pool.options().timeout(Duration::from_millis(20)).submit(|()| forever::<u64>(), ());
            assert_timed_out(late.result());
        }
        assert_full(&pool, 2);
    });
}

/// Kills the worker that is at a task.
fn kill_busy(pool: &ProcessPoolExecutor) {
    let busy = pool.workers().into_iter().find(|worker| worker.is_busy).unwrap();
    kill(u32::try_from(busy.id).unwrap(), Signal::SIGKILL);
}

/// A callback runs without the pool's lock, whichever thread it is on: it may submit, and ask.
#[test]
fn a_callback_on_the_thread_that_waits_may_use_the_pool() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        warm(&pool);
        let started = Arc::new(AtomicUsize::new(0));
        for n in 0..100 {
            let future = pool.submit(double, n);
            let (inner, started) = (pool.clone(), Arc::clone(&started));
            future.add_done_callback(move |_| {
                assert!(inner.stats().submitted > n);
                let started = Arc::clone(&started);
                inner.submit(double, n).add_done_callback(move |_| {
                    started.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert_eq!(future.result().unwrap(), 2 * n);
        }
        pool.shutdown();
        assert_eq!(started.load(Ordering::Relaxed), 100);
    });
}

/// Workers are killed at random instants while threads wait for single tasks: each is right and has run once, or has died,
/// having run at most once.
#[test]
fn kills_among_round_trips_cost_the_task_at_work_alone() {
    isolated(|| {
        let mut random = Random::seeded("round trips");
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let ticket = runs.ticket();
        let mut answered = Vec::new();
        let mut died = Vec::new();
        let mut killers = Vec::new();
        for n in 0..600_u64 {
            if n % 5 == 0 {
                let workers = workers();
                if !workers.is_empty() {
                    let victim = workers[usize::try_from(random.below(workers.len() as u64)).unwrap()];
                    let pause = Duration::from_micros(random.below(300));
                    killers.push(std::thread::spawn(move || {
                        std::thread::sleep(pause);
                        kill(victim, Signal::SIGKILL);
                    }));
                }
            }
            let outcome = pool
                .submit(
                    |(ticket, n): (String, u64)| {
                        note(&ticket, n);
                        n * 2
                    },
                    (ticket.clone(), n),
                )
                .result();
            match outcome {
                Ok(result) => {
                    assert_eq!(result, 2 * n);
                    answered.push(n);
                }
                Err(TaskError::WorkerDied(_)) => died.push(n),
                Err(error) => panic!("{error}"),
            }
        }
        killers.into_iter().for_each(|killer| killer.join().unwrap());
        let counts = runs.counts();
        assert!(answered.iter().all(|n| counts.get(n) == Some(&1)), "answered, and not run once");
        assert!(died.iter().all(|n| counts.get(n).copied().unwrap_or(0) <= 1), "run twice");
        assert_full(&pool, 2);
    });
}

/// Shutdowns of every kind while threads submit one task after the other and wait for it: each ends.
#[test]
fn a_shutdown_among_round_trips_leaves_nobody_waiting() {
    isolated(|| {
        for round in 0..12 {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            warm(&pool);
            let gate = Gate::new();
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    let (pool, gate) = (pool.clone(), gate.clone());
                    scope.spawn(move || {
                        for n in 0.. {
                            if n == 20 {
                                gate.open();
                            }
                            match pool.submit(double, n).result() {
                                Ok(result) => assert_eq!(result, 2 * n),
                                Err(
                                    TaskError::ShutDown | TaskError::Cancelled | TaskError::WorkerDied(_),
                                ) => break,
                                Err(error) => panic!("{error}"),
                            }
                        }
                    });
                }
                gate.pass();
                match round % 4 {
                    0 => drop(pool.shutdown()),
                    1 => drop(pool.shutdown_now()),
                    2 => drop(pool.kill_workers()),
                    _ => pool.shutdown_background(),
                }
            });
            let stats = pool.shutdown();
            assert!(stats.is_complete());
        }
    });
}
