//! Workers that cannot be set up: the pool is broken with the reason, and does not fork for ever (S9).

use concurrent_futures::{Executor, ProcessPoolExecutor, SubmitError, TaskError, ThreadPoolExecutor};

use crate::scene::{Runs, assert_full, breakage, death, isolated, note};
use crate::support::{Gate, Turnstile, eventually, pass};

const RUNS: &str = "FAULTS_RUNS";

/// In an initializer, which takes no argument.
fn note_start() {
    note(&std::env::var(RUNS).unwrap(), 1);
}

/// Whatever waits and whatever comes later is told why, and it took few processes to find out.
fn breaks(runs: &Runs, pool: &ProcessPoolExecutor, starts: std::ops::RangeInclusive<usize>) -> String {
    let waiting: Vec<_> = (0..10).map(|n| pool.submit(|n: u32| n, n)).collect();
    let reasons: Vec<String> = waiting.into_iter().map(|future| breakage(future.result())).collect();
    assert!(reasons.iter().all(|reason| *reason == reasons[0]), "{reasons:?}");
    assert_eq!(breakage(pool.submit(|n: u32| n, 1).result()), reasons[0]);
    for item in pool.map(|n: u32| n, 0..5) {
        assert_eq!(breakage(item), reasons[0]);
    }
    match pool.try_submit(|n: u32| n, 1) {
        Err(SubmitError::Broken { reason, argument, .. }) => {
            assert_eq!((reason, argument), (reasons[0].clone(), 1))
        }
        other => panic!("{other:?}"),
    }
    assert!(pool.shutdown().is_complete());
    let ran = runs.of(1).len();
    assert!(starts.contains(&ran), "{ran} starts");
    assert_eq!(pool.stats().workers, 0);
    assert_eq!(breakage(pool.submit(|n: u32| n, 1).result()), reasons[0], "after the shutdown, too");
    reasons[0].clone()
}

#[test]
fn an_initializer_that_fails_breaks_the_pool_with_its_error() {
    isolated(|| {
        let runs = Runs::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(3)
            .env(RUNS, runs.ticket())
            .initializer(|| {
                note_start();
                Err::<(), _>("no model to load")
            })
            .build()
            .unwrap();
        let reason = breaks(&runs, &pool, 1..=3);
        assert!(reason.contains("no model to load"), "{reason}");
    });
}

#[test]
fn an_initializer_that_panics_breaks_the_pool_with_its_message() {
    isolated(|| {
        let runs = Runs::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(3)
            .env(RUNS, runs.ticket())
            .initializer(|| {
                note_start();
                assert!(std::env::var_os("PATH").is_none(), "not today");
            })
            .build()
            .unwrap();
        let reason = breaks(&runs, &pool, 1..=3);
        assert!(reason.contains("not today") && reason.contains("setup.rs"), "{reason}");
    });
}

#[test]
fn an_initializer_that_aborts_breaks_the_pool_after_some_tries() {
    isolated(|| {
        let runs = Runs::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(2)
            .env(RUNS, runs.ticket())
            .initializer(|| {
                note_start();
                std::process::abort();
                #[expect(unreachable_code, reason = "says what the outcome should be")]
                ()
            })
            .build()
            .unwrap();
        let reason = breaks(&runs, &pool, 4..=40);
        assert!(reason.contains("died while it started"), "{reason}");
    });
}

#[test]
fn an_initializer_that_exits_breaks_the_pool_after_some_tries() {
    isolated(|| {
        let runs = Runs::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(2)
            .env(RUNS, runs.ticket())
            .initializer(|| {
                note_start();
                if std::env::var_os(RUNS).is_some() {
                    std::process::exit(0);
                }
            })
            .build()
            .unwrap();
        breaks(&runs, &pool, 4..=40);
    });
}

/// What runs when the pool breaks may finish.
#[test]
fn a_pool_that_breaks_lets_finish_what_runs() {
    isolated(|| {
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(2)
            .env(RUNS, runs.ticket())
            .initializer(|| {
                note_start();
                let starts = std::fs::read(std::env::var(RUNS).unwrap()).unwrap().len() / 16;
                if starts > 1 { Err("one is enough") } else { Ok(()) }
            })
            .build()
            .unwrap();
        let running = pool.submit(
            |ticket: String| {
                pass(&ticket);
                7
            },
            turnstile.ticket(),
        );
        turnstile.wait_for_arrivals(1);
        assert!(breakage(pool.submit(|n: u32| n, 1).result()).contains("one is enough"));
        turnstile.open();
        assert_eq!(running.result().unwrap(), 7);
        assert!(pool.shutdown().is_complete());
    });
}

/// One bad start among good ones is bad luck.
#[test]
fn an_initializer_that_dies_now_and_then_is_survived() {
    isolated(|| {
        let runs = Runs::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(4)
            .env(RUNS, runs.ticket())
            .initializer(|| {
                note_start();
                let starts = std::fs::read(std::env::var(RUNS).unwrap()).unwrap().len() / 16;
                if starts % 3 == 1 {
                    std::process::abort();
                }
            })
            .build()
            .unwrap();
        for round in 0..5 {
            let values: Vec<u32> = pool.map(|n: u32| n, 0..40).map(Result::unwrap).collect();
            assert_eq!(values, (0..40).collect::<Vec<_>>(), "round {round}");
            drop(death(pool.submit(|()| -> u8 { std::process::abort() }, ()).result()));
        }
        assert_full(&pool, 4);
    });
}

/// On threads it is the same.
#[test]
fn a_thread_pools_initializer_that_fails_or_panics_breaks_it() {
    isolated(|| {
        let failing = ThreadPoolExecutor::builder().max_workers(2).initializer(|| Err("no")).build().unwrap();
        let panicking = ThreadPoolExecutor::builder()
            .max_workers(2)
            .initializer(|| assert!(std::env::var_os("PATH").is_none(), "not today"))
            .build()
            .unwrap();
        for (pool, said) in [(&failing, "no"), (&panicking, "not today")] {
            let futures: Vec<_> = (0..10).map(|n| pool.submit(|n: u32| n, n)).collect();
            for future in futures {
                assert!(breakage(future.result()).contains(said));
            }
            assert!(breakage(Executor::submit(pool, |n: u32| n, 1).result()).contains(said));
            assert!(matches!(pool.try_submit(|n: u32| n, 1), Err(SubmitError::Broken { .. })));
            pool.shutdown();
        }
    });
}

/// A submit that waits for room in the queue of a pool that breaks is told.
#[test]
fn a_submit_that_waits_for_room_is_told_that_the_pool_broke() {
    isolated(|| {
        let turnstile = Turnstile::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .queue_capacity(1)
            .env("FAULTS_TURNSTILE", turnstile.ticket())
            .initializer(|| {
                pass(&std::env::var("FAULTS_TURNSTILE").unwrap());
                Err::<(), _>("late refusal")
            })
            .build()
            .unwrap();
        let first = pool.submit(|n: u32| n, 1);
        turnstile.wait_for_arrivals(1);
        let gate = Gate::new();
        let submitter = std::thread::spawn({
            let (pool, gate) = (pool.clone(), gate.clone());
            move || {
                // One of these waits: there is one place.
                gate.open();
                (0..4).map(|n| pool.submit(|n: u32| n, n).result()).collect::<Vec<_>>()
            }
        });
        gate.pass();
        eventually(|| pool.stats().submitted >= 2);
        drop(turnstile);
        assert!(breakage(first.result()).contains("late refusal"));
        for outcome in submitter.join().unwrap() {
            assert!(breakage(outcome).contains("late refusal"));
        }
    });
}

#[test]
fn options_no_pool_can_have_are_errors() {
    isolated(|| {
        assert!(ProcessPoolExecutor::new(0).is_err());
        assert!(ThreadPoolExecutor::new(0).is_err());
        assert!(ProcessPoolExecutor::new(usize::MAX).is_err());
        assert!(ThreadPoolExecutor::new(usize::MAX).is_err());
        assert!(ProcessPoolExecutor::builder().queue_capacity(0).build().is_err());
        assert!(ProcessPoolExecutor::builder().max_tasks_per_worker(0).build().is_err());
    });
}

/// No stack is that large, so no thread can be started.
#[test]
fn threads_that_cannot_be_started_break_the_pool() {
    isolated(|| {
        let pool = ThreadPoolExecutor::builder().max_workers(2).stack_size(1 << 46).build().unwrap();
        let futures: Vec<_> = (0..10).map(|n| pool.submit(|n: u32| n, n)).collect();
        for future in futures {
            assert!(breakage(future.result()).contains("could not start a worker thread"));
        }
        assert!(matches!(pool.submit(|n: u32| n, 1).result(), Err(TaskError::Broken(_))));
        pool.shutdown();
    });
}
