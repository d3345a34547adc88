//! S1: no accepted task is left lying, whoever falls asleep, blocks, retires or ends at that moment.
//!
//! Each of these hangs when it fails, so each runs in a process of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use concurrent_futures::{TaskError, ThreadPoolExecutor};

use crate::support::{Gate, in_own_process};

const LIMIT: Duration = Duration::from_secs(20);

/// S1, S4: a spare worker that is one too many must not go to sleep on tasks in its own deque, where a blocked pool
/// does not look.
#[test]
fn a_task_left_with_a_surplus_worker_is_run_when_the_other_blocks() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let (spare_is_there, last) = (Gate::new(), Gate::new());
        let inside = pool.clone();
        let (there, end) = (spare_is_there.clone(), last.clone());
        let first = pool.spawn(move || {
            // The spare worker runs the second task, which leaves a third one in its deque.
            inside.blocking(|| there.pass());
            // Both are active now: the spare is one too many, and finds that out when its task has ended.
            while inside.stats().idle_workers == 0 {
                std::thread::yield_now();
            }
            inside.blocking(|| end.pass());
        });
        let inside = pool.clone();
        let second = pool.spawn(move || {
            spare_is_there.open();
            while inside.stats().blocked_workers > 0 {
                std::thread::yield_now();
            }
            inside.spawn(move || last.open())
        });
        let third = second.result().unwrap();
        third.result().unwrap();
        first.result().unwrap();
    });
}

/// S1, S4: what is submitted inside `blocking` lies in the deque of a worker that counts as blocked.
#[test]
fn a_task_submitted_inside_blocking_is_run_when_the_other_blocks() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let (spare_runs, submitted, last) = (Gate::new(), Gate::new(), Gate::new());
        let inside = pool.clone();
        let (runs, there, end) = (spare_runs.clone(), submitted.clone(), last.clone());
        let first = pool.spawn(move || {
            inside.clone().blocking(|| {
                runs.pass();
                let opens = end.clone();
                drop(inside.spawn(move || opens.open()));
                there.open();
                end.pass();
            });
        });
        let inside = pool.clone();
        let second = pool.spawn(move || {
            spare_runs.open();
            submitted.pass();
            inside.blocking(|| last.pass());
        });
        first.result().unwrap();
        second.result().unwrap();
    });
}

/// S1, S5: a worker that searches and finds another task must not swallow the wake-up of one pushed meanwhile into a
/// busy worker's deque: with workers to spare, both sides of a rendezvous run.
#[test]
fn a_task_pushed_by_a_busy_worker_is_started_by_an_idle_one() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(8).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (pool, stop) = (pool.clone(), Arc::clone(&stop));
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        pool.spawn(|| ()).wait();
                    }
                });
            }
            for _ in 0..20_000 {
                let inside = pool.clone();
                let meeting = pool.spawn(move || {
                    let here = Arc::new(Barrier::new(2));
                    let there = Arc::clone(&here);
                    let other = inside.spawn(move || {
                        there.wait();
                    });
                    here.wait(); // not a wait the pool knows of
                    other
                });
                meeting.result().unwrap().result().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

/// S5: the tasks one worker submits spread over all idle workers, not over the first that wakes.
#[test]
fn tasks_submitted_by_one_worker_spread_over_the_idle_ones() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(8).unwrap();
        for _ in 0..200 {
            let inside = pool.clone();
            let meeting = pool.spawn(move || {
                let all = Arc::new(Barrier::new(8));
                let others: Vec<_> = (0..7)
                    .map(|_| {
                        let all = Arc::clone(&all);
                        inside.spawn(move || {
                            all.wait();
                        })
                    })
                    .collect();
                all.wait(); // not a wait the pool knows of
                others
            });
            for other in meeting.result().unwrap() {
                other.result().unwrap();
            }
        }
    });
}

/// S5: the same from outside.
#[test]
fn tasks_submitted_from_outside_spread_over_the_idle_workers() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(8).unwrap();
        for _ in 0..200 {
            let all = Arc::new(Barrier::new(8));
            let futures: Vec<_> = (0..8)
                .map(|_| {
                    let all = Arc::clone(&all);
                    pool.spawn(move || {
                        all.wait();
                    })
                })
                .collect();
            for future in futures {
                future.result().unwrap();
            }
        }
    });
}

/// S1, S10: a submit that meets a shutdown of a pool without workers leaves its refused task in the queue; nobody must
/// wait for it.
#[test]
fn a_submit_refused_by_a_shutdown_does_not_hold_it_up() {
    in_own_process(LIMIT, || {
        for round in 0..20_000_u32 {
            let pool = ThreadPoolExecutor::new(1).unwrap();
            let start = Arc::new(Barrier::new(2));
            let (there, inside) = (Arc::clone(&start), pool.clone());
            let submitter = std::thread::spawn(move || {
                there.wait();
                (0..4).map(|n| inside.submit(|n: u32| n, n).result()).collect::<Vec<_>>()
            });
            start.wait();
            for _ in 0..round % 64 {
                std::hint::spin_loop();
            }
            pool.shutdown();
            for outcome in submitter.join().unwrap() {
                assert!(matches!(outcome, Ok(_) | Err(TaskError::ShutDown)), "{outcome:?}");
            }
        }
    });
}

/// S1, S9: submits that meet the pool's breaking down leave refused tasks in the queue; the shutdown must end all the
/// same, and start no more workers.
#[test]
fn a_submit_refused_by_a_broken_pool_does_not_hold_up_its_shutdown() {
    in_own_process(LIMIT, || {
        for _ in 0..3_000 {
            let pool = ThreadPoolExecutor::builder()
                .max_workers(1)
                .stack_size(1 << 46) // no such thread can be had
                .build()
                .unwrap();
            let start = Arc::new(Barrier::new(3));
            let submitters: Vec<_> = (0..3)
                .map(|_| {
                    let (start, pool) = (Arc::clone(&start), pool.clone());
                    std::thread::spawn(move || {
                        start.wait();
                        (0..4).map(|n| pool.submit(|n: u32| n, n).result()).collect::<Vec<_>>()
                    })
                })
                .collect();
            for submitter in submitters {
                for outcome in submitter.join().unwrap() {
                    assert!(matches!(outcome, Err(TaskError::Broken(_))), "{outcome:?}");
                }
            }
            pool.shutdown();
        }
    });
}

/// S1, S9: the same with an initializer that fails.
#[test]
fn a_submit_refused_by_a_failing_initializer_does_not_hold_up_the_shutdown() {
    in_own_process(LIMIT, || {
        for _ in 0..3_000 {
            let pool = ThreadPoolExecutor::builder()
                .max_workers(2)
                .initializer(|| Err::<(), _>("never"))
                .build()
                .unwrap();
            let start = Arc::new(Barrier::new(2));
            let submitters: Vec<_> = (0..2)
                .map(|_| {
                    let (start, pool) = (Arc::clone(&start), pool.clone());
                    std::thread::spawn(move || {
                        start.wait();
                        (0..16).map(|n| pool.submit(|n: u32| n, n).result()).collect::<Vec<_>>()
                    })
                })
                .collect();
            for submitter in submitters {
                for outcome in submitter.join().unwrap() {
                    assert!(matches!(outcome, Err(TaskError::Broken(_))), "{outcome:?}");
                }
            }
            pool.shutdown();
        }
    });
}

/// S1: a worker that retires while a task is submitted does not take the wake-up with it.
#[test]
fn a_submit_that_meets_a_retiring_worker_is_run() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::builder().max_workers(2).keep_alive(Duration::ZERO).build().unwrap();
        for n in 0..20_000_u32 {
            assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n);
        }
    });
}

/// S4, S5: a task in place of which others are queued from a full queue does not grow the stack without end.
#[test]
fn submits_run_in_place_on_a_full_queue_do_not_overflow_the_stack() {
    in_own_process(LIMIT, || {
        fn chain(pool: &ThreadPoolExecutor, left: u32, end: Gate) {
            let inside = pool.clone();
            if left == 0 {
                end.open();
            } else {
                drop(pool.submit(move |left| chain(&inside, left, end), left - 1));
            }
        }
        let pool = ThreadPoolExecutor::builder()
            .max_workers(1)
            .queue_capacity(1)
            .stack_size(256 * 1024)
            .build()
            .unwrap();
        let (ready, go, end) = (Gate::new(), Gate::new(), Gate::new());
        let inside = pool.clone();
        let (is_ready, may_go, at_end) = (ready.clone(), go.clone(), end.clone());
        let first = pool.spawn(move || {
            is_ready.open();
            may_go.pass();
            chain(&inside, 100_000, at_end);
        });
        ready.pass();
        let filler = pool.spawn(|| ()); // the queue is full from here on
        go.open();
        end.pass();
        first.result().unwrap();
        filler.result().unwrap();
    });
}
