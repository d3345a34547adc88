//! Shutdowns from everywhere, while tasks run, wait, or are dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use concurrent_futures::{Executor, ProcessPoolExecutor, SubmitError, TaskError, ThreadPoolExecutor};
use nix::libc;
use nix::sys::signal::Signal;

use crate::procfs::workers;
use crate::scene::{Runs, assert_cancelled, death, forever, isolated, kill, note, spin};
use crate::support::{Gate, Random, Turnstile, arrive, eventually, pass};

fn refuses(executor: &impl Executor) {
    assert!(matches!(executor.submit(|n: u32| n, 1).result(), Err(TaskError::ShutDown)));
    let items: Vec<_> = executor.map(|n: u32| n, 0..3).collect();
    assert!(
        items.len() == 3 && items.iter().all(|item| matches!(item, Err(TaskError::ShutDown))),
        "{items:?}"
    );
    assert!(executor.shutdown().is_complete());
    assert!(executor.shutdown_now().is_complete());
    assert!(executor.shutdown_timeout(Duration::ZERO).is_complete());
    executor.shutdown_background();
}

#[test]
fn a_submit_after_the_shutdown_is_refused() {
    isolated(|| {
        for used in [false, true] {
            let processes = ProcessPoolExecutor::new(2).unwrap();
            let threads = ThreadPoolExecutor::new(2).unwrap();
            if used {
                processes.submit(|n: u32| n, 1).wait();
                threads.submit(|n: u32| n, 1).wait();
            }
            processes.shutdown();
            threads.shutdown();
            refuses(&processes);
            refuses(&threads);
            match processes.try_submit(|n: u32| n, 8) {
                Err(SubmitError::ShutDown { argument, function, .. }) => assert_eq!(function(argument), 8),
                other => panic!("{other:?}"),
            }
            assert!(processes.workers().is_empty());
            assert_eq!(processes.stats().workers, 0);
            processes.kill_workers();
            processes.terminate_workers();
        }
    });
}

fn from_eight_threads<E: Executor + Send + Sync>(executor: &E, runs: &Runs) {
    let futures: Vec<_> = (0..100)
        .map(|task| {
            executor.submit(
                |(ticket, task): (String, u64)| {
                    note(&ticket, task);
                    task
                },
                (runs.ticket(), task),
            )
        })
        .collect();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let executor = &executor;
            scope.spawn(move || match n {
                0 => executor.shutdown_background(),
                _ => assert!(executor.shutdown().is_complete()),
            });
        }
    });
    for (task, future) in (0..).zip(futures) {
        assert_eq!(future.result().unwrap(), task);
    }
    runs.assert_once(0..100);
}

#[test]
fn shutdown_from_eight_threads_finishes_everything() {
    isolated(|| {
        let runs = Runs::new();
        from_eight_threads(&ProcessPoolExecutor::new(2).unwrap(), &runs);
        let runs = Runs::new();
        from_eight_threads(&ThreadPoolExecutor::new(2).unwrap(), &runs);
    });
}

/// Submits race with the shutdown: each runs once or is refused, and the counters add up.
#[test]
fn submits_that_race_with_a_shutdown_run_or_are_refused() {
    isolated(|| {
        for round in 0..15 {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            let runs = Runs::new();
            let ticket = runs.ticket();
            let ran = std::thread::scope(|scope| {
                let submitters: Vec<_> = (0..3_u64)
                    .map(|n| {
                        let (pool, ticket) = (&pool, &ticket);
                        scope.spawn(move || {
                            let futures: Vec<_> = (n * 1000..n * 1000 + 100)
                                .map(|task| {
                                    pool.submit(
                                        |(ticket, task): (String, u64)| note(&ticket, task),
                                        (ticket.clone(), task),
                                    )
                                })
                                .collect();
                            let mut ran = Vec::new();
                            for (task, future) in (n * 1000..).zip(futures) {
                                match future.result() {
                                    Ok(()) => ran.push(task),
                                    Err(TaskError::ShutDown | TaskError::Cancelled) => {}
                                    Err(other) => panic!("{other}"),
                                }
                            }
                            ran
                        })
                    })
                    .collect();
                spin(Duration::from_micros(round * 150));
                if round % 2 == 0 {
                    pool.shutdown()
                } else {
                    pool.shutdown_now()
                };
                submitters.into_iter().flat_map(|submitter| submitter.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(runs.all().len(), ran.len());
            runs.assert_once(ran);
            let stats = pool.stats();
            assert_eq!((stats.queued, stats.running), (0, 0), "{stats:?}");
            assert_eq!(stats.submitted, stats.finished, "{stats:?}");
        }
    });
}

/// `shutdown_now` in the first moments, while workers start and tasks are handed to them: what has not begun is
/// cancelled, and says so.
#[test]
fn shutdown_now_at_any_moment_cancels_or_finishes() {
    isolated(|| {
        let mut random = Random::seeded("shutdown");
        for _ in 0..40 {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            let runs = Runs::new();
            let futures: Vec<_> = (0..20)
                .map(|task| {
                    pool.submit(
                        |(ticket, task): (String, u64)| {
                            note(&ticket, task);
                            spin(Duration::from_micros(50));
                        },
                        (runs.ticket(), task),
                    )
                })
                .collect();
            spin(Duration::from_micros(random.below(5_000)));
            let report = pool.shutdown_now();
            assert!(report.is_complete(), "{report}");
            for (task, future) in (0..).zip(futures) {
                match future.result() {
                    Ok(()) => assert_eq!(runs.of(task).len(), 1),
                    Err(TaskError::Cancelled) => assert_eq!(runs.of(task).len(), 0),
                    Err(other) => panic!("task {task}: {other}"),
                }
            }
        }
    });
}

/// The item that runs is finished; the others of its chunk are cancelled. None is abandoned.
#[test]
fn shutdown_now_in_the_middle_of_a_chunk() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let items: Vec<_> = (0..10).map(|task| (runs.ticket(), turnstile.ticket(), task)).collect();
        let mapped = pool.options().chunk_size(5).map(
            |(runs, ticket, task): (String, String, u64)| {
                note(&runs, task);
                pass(&ticket);
                task
            },
            items,
        );
        turnstile.wait_for_arrivals(1);
        std::thread::scope(|scope| {
            let ending = scope.spawn(|| pool.shutdown_now());
            eventually(|| matches!(pool.submit(|n: u32| n, 1).result(), Err(TaskError::ShutDown)));
            // The worker is told before it is let go.
            eventually(|| pool.stats().queued == 0);
            turnstile.open();
            assert!(ending.join().unwrap().is_complete());
        });
        for (task, result) in (0..).zip(mapped) {
            match result {
                Ok(value) => assert_eq!((value, runs.of(task).len()), (task, 1)),
                Err(TaskError::Cancelled) => assert_eq!(runs.of(task).len(), 0, "item {task} ran"),
                Err(other) => panic!("item {task}: {other}"),
            }
        }
        runs.assert_none_twice();
    });
}

#[test]
fn a_pool_dropped_while_unwinding_cancels_what_waits() {
    isolated(|| {
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let running = pool.submit(
            |(ticket, runs): (String, String)| {
                note(&runs, 1);
                pass(&ticket);
                7
            },
            (turnstile.ticket(), runs.ticket()),
        );
        turnstile.wait_for_arrivals(1);
        let waiting: Vec<_> = (2..20)
            .map(|task| {
                pool.submit(|(ticket, task): (String, u64)| note(&ticket, task), (runs.ticket(), task))
            })
            .collect();
        let dropper = std::thread::spawn(move || {
            let _pool = pool;
            std::panic::resume_unwind(Box::new("unwinding"));
        });
        // Only when these are over may the running one go on, for which the drop waits.
        for future in waiting {
            assert_cancelled(future.result());
        }
        turnstile.open();
        assert!(dropper.join().is_err());
        assert_eq!(running.result().unwrap(), 7);
        assert_eq!(runs.counts(), [(1, 1)].into());
    });
}

#[test]
fn a_pool_dropped_finishes_what_waits() {
    isolated(|| {
        let runs = Runs::new();
        let futures: Vec<_> = {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            (0..50)
                .map(|task| {
                    pool.submit(|(ticket, task): (String, u64)| note(&ticket, task), (runs.ticket(), task))
                })
                .collect()
        };
        assert!(futures.iter().all(|future| future.is_done()));
        runs.assert_once(0..50);
    });
}

/// Running, waiting, and one that is dead already.
fn stopped_by(stop: fn(&ProcessPoolExecutor) -> concurrent_futures::ShutdownReport) -> (i32, Duration) {
    let pool = ProcessPoolExecutor::new(3).unwrap();
    let turnstile = Turnstile::new();
    let futures: Vec<_> = (0..10)
        .map(|_| {
            pool.submit(
                |ticket: String| {
                    arrive(&ticket);
                    forever::<()>();
                },
                turnstile.ticket(),
            )
        })
        .collect();
    turnstile.wait_for_arrivals(3);
    // They run; the pool knows them, too.
    eventually(|| pool.workers().iter().filter(|worker| worker.id != 0).count() == 3);
    let running = workers();
    let dead = running[0];
    kill(dead, Signal::SIGKILL);
    let start = std::time::Instant::now();
    let report = stop(&pool);
    let took = start.elapsed();
    assert!(report.is_complete(), "{report}");
    assert!(workers().is_empty());
    let (mut died, mut cancelled, mut signal) = (0, 0, 0);
    for future in futures {
        match future.result() {
            Err(TaskError::Cancelled) => cancelled += 1,
            outcome => {
                died += 1;
                let death = death(outcome);
                if running[1..].contains(&death.pid) {
                    signal = death.signal.unwrap();
                }
            }
        }
    }
    // The dead one's place may have been taken before the stop.
    assert!((3..=4).contains(&died) && died + cancelled == 10, "{died} died, {cancelled} cancelled");
    assert!(matches!(pool.submit(|n: u32| n, 1).result(), Err(TaskError::ShutDown)));
    (signal, took)
}

#[test]
fn terminate_workers_ends_everything() {
    isolated(|| {
        let (signal, took) = stopped_by(|pool| pool.terminate_workers());
        // Two seconds later, on a machine with much else to do, SIGKILL.
        assert!(signal == libc::SIGTERM || took >= Duration::from_secs(2), "{signal} after {took:?}");
    });
}

#[test]
fn kill_workers_ends_everything() {
    isolated(|| {
        let (signal, took) = stopped_by(|pool| pool.kill_workers());
        assert_eq!(signal, libc::SIGKILL);
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
}

#[test]
fn shutdown_timeout_ends_everything_in_time() {
    isolated(|| {
        let (signal, took) = stopped_by(|pool| pool.shutdown_timeout(Duration::from_millis(100)));
        assert_eq!(signal, libc::SIGKILL);
        assert!(took >= Duration::from_millis(100));
    });
}

/// The task runs already when the pool hears of its worker: it is asked first, like every other.
#[test]
fn terminate_workers_asks_the_youngest_worker_first_too() {
    isolated(|| {
        for _ in 0..50 {
            let pool = ProcessPoolExecutor::new(1).unwrap();
            let turnstile = Turnstile::new();
            let running = pool.submit(
                |ticket: String| {
                    arrive(&ticket);
                    forever::<()>();
                },
                turnstile.ticket(),
            );
            turnstile.wait_for_arrivals(1);
            pool.terminate_workers();
            assert_eq!(death(running.result()).signal, Some(libc::SIGTERM));
        }
    });
}

/// SIGTERM is ignored, so SIGKILL follows after the two seconds of grace.
#[test]
fn terminate_workers_kills_who_ignores_it() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let turnstile = Turnstile::new();
        let deaf = pool.submit(
            |ticket: String| {
                // SAFETY: ignores a signal in this process.
                unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
                arrive(&ticket);
                forever::<()>();
            },
            turnstile.ticket(),
        );
        turnstile.wait_for_arrivals(1);
        let start = std::time::Instant::now();
        assert!(pool.terminate_workers().is_complete());
        assert!(start.elapsed() >= Duration::from_secs(2));
        assert_eq!(death(deaf.result()).signal, Some(libc::SIGKILL));
    });
}

/// One thread waits for the end, another one hurries it.
#[test]
fn kill_workers_ends_a_shutdown_that_waits() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let turnstile = Turnstile::new();
        let endless = pool.submit(
            |ticket: String| {
                arrive(&ticket);
                forever::<()>();
            },
            turnstile.ticket(),
        );
        turnstile.wait_for_arrivals(1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.shutdown());
            eventually(|| matches!(pool.try_submit(|n: u32| n, 1), Err(SubmitError::ShutDown { .. })));
            assert!(pool.kill_workers().is_complete());
            assert!(waiting.join().unwrap().is_complete());
        });
        assert_eq!(death(endless.result()).signal, Some(libc::SIGKILL));
    });
}

/// Full, then with room again; the refused argument comes back.
#[test]
fn try_submit_to_a_full_queue_gives_everything_back() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(1).queue_capacity(2).build().unwrap();
        let mut turnstile = Turnstile::new();
        let running = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        let waiting: Vec<_> = (0..2).map(|n| pool.try_submit(|n: u32| n, n).unwrap()).collect();
        match pool.try_submit(|text: String| text.len(), "given back".to_owned()) {
            Err(SubmitError::Full { function, argument, .. }) => assert_eq!(function(argument), 10),
            other => panic!("{other:?}"),
        }
        turnstile.open();
        running.result().unwrap();
        for (n, future) in (0..).zip(waiting) {
            assert_eq!(future.result().unwrap(), n);
        }
        assert_eq!(pool.try_submit(|n: u32| n, 9).unwrap().result().unwrap(), 9);
    });
}

/// A cancelled task gives its place in the queue back, or nobody could ever use it while the worker is busy.
#[test]
fn a_cancelled_task_leaves_a_full_queue() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(1).queue_capacity(1).build().unwrap();
        let mut turnstile = Turnstile::new();
        let running = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        let waiting = pool.try_submit(|n: u32| n, 1).unwrap();
        assert!(waiting.cancel());
        let mut second = None;
        eventually(|| {
            second = pool.try_submit(|n: u32| n, 2).ok();
            second.is_some()
        });
        turnstile.open();
        running.result().unwrap();
        assert_eq!(second.unwrap().result().unwrap(), 2);
    });
}

/// A submit that waits for room is woken by a shutdown.
#[test]
fn a_submit_that_waits_for_room_is_refused_by_a_shutdown() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(1).queue_capacity(1).build().unwrap();
        let mut turnstile = Turnstile::new();
        let running = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        let waiting = pool.submit(|n: u32| n, 1);
        let gate = Gate::new();
        let refused = Arc::new(AtomicUsize::new(0));
        let submitter = std::thread::spawn({
            let (pool, gate, refused) = (pool.clone(), gate.clone(), Arc::clone(&refused));
            move || {
                gate.open();
                if matches!(pool.submit(|n: u32| n, 2).result(), Err(TaskError::ShutDown)) {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        gate.pass();
        pool.shutdown_background();
        submitter.join().unwrap();
        assert_eq!(refused.load(Ordering::Relaxed), 1);
        turnstile.open();
        running.result().unwrap();
        assert_eq!(waiting.result().unwrap(), 1);
    });
}

/// Dropped by the task that runs on it, a thread pool does not join itself.
#[test]
fn a_thread_pool_may_be_dropped_and_shut_down_by_its_own_task() {
    isolated(|| {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let inside = pool.clone();
        let gate = Gate::new();
        let passed = gate.clone();
        let future = pool.spawn(move || {
            passed.pass();
            inside.shutdown();
            drop(inside);
            5
        });
        drop(pool.submit(|n: u32| n, 1));
        let dropper = std::thread::spawn(move || drop(pool));
        gate.open();
        assert_eq!(future.result().unwrap(), 5);
        dropper.join().unwrap();
    });
}
