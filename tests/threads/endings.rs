//! S10: shutting down from 8 threads at once, a worker, a callback, while unwinding, and with tasks that do not end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use concurrent_futures::{SubmitError, TaskError, ThreadPoolExecutor};

use crate::support::{Gate, Probe, Tally, Watchdog, eventually, in_own_process, threads};

const LIMIT: Duration = Duration::from_secs(40);

/// All threads return when it is over, and together they report what was done, each what it has seen.
#[test]
fn eight_threads_may_shut_down_at_once() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    for round in 0..200 {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let ran = Arc::new(AtomicUsize::new(0));
        let futures: Vec<_> = (0..50)
            .map(|n| {
                let ran = Arc::clone(&ran);
                pool.submit(
                    move |probe: Probe| {
                        ran.fetch_add(1, Ordering::SeqCst);
                        probe
                    },
                    tally.carrying(n),
                )
            })
            .collect();
        let barrier = Barrier::new(8);
        let cancelled: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let (pool, barrier) = (&pool, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        let report = match (n + round) % 4 {
                            0 | 1 => pool.shutdown(),
                            2 if round % 2 == 0 => pool.shutdown_now(),
                            2 => pool.shutdown_timeout(Duration::from_secs(3_600)),
                            _ => {
                                pool.shutdown_background();
                                pool.shutdown_timeout(Duration::MAX)
                            }
                        };
                        assert!(report.is_complete(), "round {round}, thread {n}: {report}");
                        let stats = pool.stats();
                        assert_eq!((stats.workers, stats.running, stats.queued), (0, 0, 0), "{stats:?}");
                        report.cancelled
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let outcomes: Vec<_> = futures.into_iter().map(|future| future.result()).collect();
        let lost = outcomes.iter().filter(|outcome| matches!(outcome, Err(TaskError::Cancelled))).count();
        assert_eq!(lost as u64, cancelled, "round {round}");
        assert_eq!(ran.load(Ordering::SeqCst) + lost, 50, "round {round}");
        assert!(pool.workers().is_empty());
        assert!(pool.shutdown().is_complete() && pool.shutdown_now().is_complete(), "and again");
        let refused = pool.try_submit(|()| (), ()).unwrap_err();
        assert!(matches!(refused, SubmitError::ShutDown { .. }));
    }
    tally.assert_balanced();
}

/// On a worker it does not wait for itself, cancels what it should, and the rest ends.
#[test]
fn a_task_may_shut_its_pool_down() {
    let _watchdog = Watchdog::start();
    for now in [false, true] {
        for workers in [1, 2] {
            let pool = ThreadPoolExecutor::new(workers).unwrap();
            let gate = Gate::new();
            let _opens = gate.opens_at_the_end();
            let (passes, inside) = (gate.clone(), pool.clone());
            let first = pool.spawn(move || {
                passes.pass();
                let report = if now { inside.shutdown_now() } else { inside.shutdown() };
                let refused = inside.submit(|()| (), ()).result();
                (report, refused)
            });
            gate.wait_for_arrivals(1);
            // One that waits for a second worker keeps that one busy.
            let hold = Gate::new();
            let _holds = hold.opens_at_the_end();
            if workers == 2 {
                let holds = hold.clone();
                drop(pool.spawn(move || holds.pass()));
                hold.wait_for_arrivals(1);
            }
            let futures: Vec<_> = (0..10).map(|n| pool.submit(|n: u32| n, n)).collect();
            gate.open();
            let (report, refused) = first.result().unwrap();
            assert!(matches!(refused, Err(TaskError::ShutDown)));
            assert_eq!(report.cancelled, if now { 10 } else { 0 });
            assert!(report.unfinished >= 1, "itself: {report}");
            hold.open();
            for future in futures {
                let outcome = future.result();
                if now {
                    assert!(matches!(outcome, Err(TaskError::Cancelled)), "{outcome:?}");
                } else {
                    outcome.unwrap();
                }
            }
            assert!(pool.shutdown().is_complete());
        }
    }
}

/// From a callback: on the worker, on the thread that cancels, and at once on the caller.
#[test]
fn a_callback_may_shut_its_pool_down() {
    let _watchdog = Watchdog::start();
    for place in 0..3 {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let gate = Gate::new();
        let _opens = gate.opens_at_the_end();
        let passes = gate.clone();
        let first = pool.spawn(move || passes.pass());
        gate.wait_for_arrivals(1);
        let queued = pool.submit(|n: u32| n, 1);
        let (sender, receiver) = mpsc::channel();
        let inside = pool.clone();
        let shut = move |_: &Result<_, _>| sender.send(inside.shutdown()).unwrap();
        match place {
            0 => {
                first.add_done_callback(shut);
                gate.open();
                let report = receiver.recv().unwrap();
                assert!(report.unfinished >= 1, "the queued one: {report}");
            }
            1 => {
                let cancelled = pool.spawn(|| ());
                cancelled.add_done_callback(shut);
                gate.open(); // else it would wait for the first one, which waits for us
                if cancelled.cancel() {
                    assert!(receiver.recv().unwrap().is_complete());
                }
            }
            _ => {
                gate.open();
                first.wait();
                first.add_done_callback(shut);
                assert!(receiver.try_recv().unwrap().is_complete());
            }
        }
        assert_eq!(queued.result().unwrap(), 1);
        first.result().unwrap();
        assert!(pool.shutdown().is_complete());
    }
}

/// Dropping the last handle finishes everything; while unwinding it cancels what has not started.
#[test]
fn the_last_handle_finishes_and_while_unwinding_cancels() {
    let _watchdog = Watchdog::start();
    for is_unwinding in [false, true] {
        let tally = Tally::local();
        let gate = Gate::new();
        let mut futures = Vec::new();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let pool = ThreadPoolExecutor::new(1).unwrap();
            let passes = gate.clone();
            drop(pool.spawn(move || passes.pass()));
            gate.wait_for_arrivals(1);
            futures.extend((0..20).map(|n| pool.submit(|probe: Probe| probe.number, tally.carrying(n))));
            // Opens when somebody has already cancelled, or else at once.
            let (opens, probes) = (gate.clone(), tally.clone());
            std::thread::spawn(move || {
                if is_unwinding {
                    eventually(|| probes.alive() == 0);
                }
                opens.open();
            });
            assert!(!is_unwinding, "unwinding");
        }));
        assert_eq!(ended.is_err(), is_unwinding);
        for (n, future) in (0..).zip(futures) {
            assert!(future.is_done());
            match future.result() {
                Ok(number) => assert!(!is_unwinding && number == n),
                Err(error) => assert!(is_unwinding && matches!(error, TaskError::Cancelled), "{error}"),
            }
        }
        tally.assert_balanced();
    }
}

/// The limit of a shutdown: it returns with what is stuck, cancels what is queued, and can be called again.
#[test]
fn a_shutdown_with_a_limit_leaves_stuck_tasks() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let stuck: Vec<_> = (0..2)
        .map(|_| {
            let passes = gate.clone();
            pool.spawn(move || passes.pass())
        })
        .collect();
    gate.wait_for_arrivals(2);
    let queued: Vec<_> = (0..5).map(|n| pool.submit(|n: u32| n, n)).collect();
    let (limit, start) = (Duration::from_millis(50), Instant::now());
    let report = pool.shutdown_timeout(limit);
    assert!(start.elapsed() >= limit);
    assert_eq!((report.finished, report.cancelled, report.unfinished), (0, 5, 2));
    assert!(queued.iter().all(|future| future.is_cancelled()));
    let report = pool.shutdown_timeout(Duration::ZERO);
    assert_eq!((report.finished, report.cancelled, report.unfinished), (0, 0, 2));
    assert!(stuck.iter().all(|future| future.is_running()));
    gate.open();
    let report = pool.shutdown();
    assert!(report.is_complete() && report.finished <= 2, "{report}");
    assert_eq!(pool.stats().finished, 7);
    stuck.into_iter().for_each(|future| future.result().unwrap());
}

/// A limit that is not needed is not waited for.
#[test]
fn a_shutdown_with_a_limit_returns_when_it_is_over() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let futures: Vec<_> = (0..100).map(|n| pool.submit(|n: u32| n, n)).collect();
    assert!(pool.shutdown_timeout(Duration::from_secs(3_600)).is_complete());
    assert!(futures.iter().all(|future| future.is_done()));
}

/// The last handle dropped inside a task: nobody joins itself, what is queued still runs, and the threads go.
#[test]
fn the_last_handle_may_be_dropped_inside_a_task() {
    in_own_process(LIMIT, || {
        let at_first = threads().len();
        for workers in [1, 3] {
            for round in 0..100 {
                let pool = ThreadPoolExecutor::new(workers).unwrap();
                let gate = Gate::new();
                let (passes, inside) = (gate.clone(), pool.clone());
                let first = pool.spawn(move || {
                    passes.pass();
                    drop(inside);
                });
                let others: Vec<_> = (0..round % 10).map(|n| pool.submit(|n: u32| n, n)).collect();
                drop({
                    let _opens = gate.opens_at_the_end();
                    drop(others.iter());
                    // The task holds the last handle once this one is gone; which of the two is dropped last is open.
                    let inside = pool;
                    std::thread::spawn(move || drop(inside))
                });
                first.result().unwrap();
                for (n, future) in (0..).zip(others) {
                    assert_eq!(future.result().unwrap(), n);
                }
            }
        }
        eventually(|| threads().len() <= at_first);
    });
}

/// A result, an argument and a thread outside that hold the last handle.
#[test]
fn the_last_handle_may_be_a_result_or_an_argument() {
    in_own_process(LIMIT, || {
        let at_first = threads().len();
        for _ in 0..100 {
            let pool = ThreadPoolExecutor::new(1).unwrap();
            let inside = pool.clone();
            let back = pool.spawn(move || inside);
            drop(pool);
            let pool = back.result().unwrap();
            let argument = pool.clone();
            let future = pool.submit(|pool: ThreadPoolExecutor| pool.max_workers(), argument);
            drop(pool);
            assert_eq!(future.result().unwrap(), 1);
            // A detached result is dropped on the worker.
            let pool = ThreadPoolExecutor::new(1).unwrap();
            let inside = pool.clone();
            drop(pool.spawn(move || inside));
            drop(pool);
        }
        eventually(|| threads().len() <= at_first);
    });
}

/// Inside `blocking`, with a spare worker about: it is a worker still, and does not wait.
#[test]
fn a_task_may_shut_down_inside_blocking() {
    in_own_process(LIMIT, || {
        for _ in 0..100 {
            let pool = ThreadPoolExecutor::new(1).unwrap();
            let inside = pool.clone();
            let first = pool.spawn(move || inside.blocking(|| inside.shutdown()));
            let second = pool.submit(|n: u32| n, 4);
            first.result().unwrap();
            assert!(matches!(second.result(), Ok(4) | Err(TaskError::ShutDown)));
            assert!(pool.shutdown().is_complete());
        }
    });
}

/// A worker may end another pool, which is busy, and its own goes on meanwhile.
#[test]
fn a_worker_may_shut_another_pool_down() {
    let _watchdog = Watchdog::start();
    let (left, right) = (ThreadPoolExecutor::new(1).unwrap(), ThreadPoolExecutor::new(1).unwrap());
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let busy = right.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let target = right;
    let ending = left.spawn(move || target.shutdown());
    let opens = gate;
    left.spawn(move || opens.open()).result().unwrap(); // on the only worker's spare
    assert!(ending.result().unwrap().is_complete());
    busy.result().unwrap();
}

/// S1: tasks that submit while the pool is shut down: every future says what became of it.
#[test]
fn tasks_that_submit_during_a_shutdown_are_accepted_or_refused() {
    fn grow(pool: &ThreadPoolExecutor, depth: u32, tally: &Tally, refused: &Arc<AtomicUsize>) {
        for _ in 0..if depth == 0 { 0 } else { 2 } {
            let (inside, probes, refusals) = (pool.clone(), tally.clone(), Arc::clone(refused));
            let future = pool.submit(
                move |probe: Probe| {
                    grow(&inside, depth - 1, &probes, &refusals);
                    drop(probe);
                },
                tally.probe(),
            );
            let refusals = Arc::clone(refused);
            future.add_done_callback(move |outcome| {
                if matches!(outcome, Err(TaskError::ShutDown)) {
                    refusals.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    }
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let mut all_refused = 0;
    for round in 0..300 {
        let pool = ThreadPoolExecutor::new(1 + round % 4).unwrap();
        let refused = Arc::new(AtomicUsize::new(0));
        grow(&pool, 5, &tally, &refused);
        for _ in 0..round % 100 * 20 {
            std::hint::spin_loop();
        }
        let report = pool.shutdown();
        assert!(report.is_complete(), "round {round}: {report}");
        let stats = pool.stats();
        assert_eq!((stats.submitted, stats.queued, stats.running), (stats.finished, 0, 0), "{stats:?}");
        drop(pool);
        all_refused += refused.load(Ordering::SeqCst);
    }
    println!("{all_refused} submits were refused");
    tally.assert_balanced();
}
