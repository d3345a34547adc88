//! Workers that die: each costs one task, and its error tells which worker died of what (S7).

use std::collections::BTreeSet;
use std::time::Duration;

use concurrent_futures::{Executor, ProcessPoolExecutor};
use nix::libc;
use nix::sys::signal::Signal;

use crate::procfs::{fork_server, state_of, workers};
use crate::scene::{Runs, assert_full, death, isolated, kill, leave_running, note, replace_workers};
use crate::support::{Turnstile, arrive, eventually, pass};

#[test]
fn the_seventh_of_twenty_aborts_and_nineteen_are_right() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let futures: Vec<_> = (0..20)
            .map(|task| {
                pool.submit(
                    |(ticket, task): (String, u64)| {
                        note(&ticket, task);
                        if task == 7 {
                            std::process::abort();
                        }
                        task * task
                    },
                    (runs.ticket(), task),
                )
            })
            .collect();
        for (task, future) in (0..).zip(futures) {
            if task == 7 {
                let death = death(future.result());
                assert_eq!((death.signal, death.exit_code), (Some(libc::SIGABRT), None));
                assert_eq!(vec![death.pid], runs.of(7));
            } else {
                assert_eq!(future.result().unwrap(), task * task);
            }
        }
        runs.assert_once(0..20);
        assert_full(&pool, 2);
    });
}

/// In chunks, too: an item is a task.
#[test]
fn an_item_of_a_chunk_that_aborts_costs_no_other_item() {
    isolated(|| {
        for chunk_size in [1, 3, 20] {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            let runs = Runs::new();
            let items = (0..20).map(|task| (runs.ticket(), task));
            let results = pool.options().chunk_size(chunk_size).map(
                |(ticket, task): (String, u64)| {
                    note(&ticket, task);
                    if task == 7 {
                        std::process::abort();
                    }
                    task * task
                },
                items,
            );
            for (task, result) in (0..).zip(results) {
                if task == 7 {
                    assert_eq!(death(result).signal, Some(libc::SIGABRT));
                } else {
                    assert_eq!(result.unwrap(), task * task);
                }
            }
            runs.assert_once(0..20);
            assert_full(&pool, 2);
        }
    });
}

fn dies_of(end: fn((String, u64)) -> u64) -> concurrent_futures::WorkerDeath {
    let pool = ProcessPoolExecutor::new(2).unwrap();
    let runs = Runs::new();
    let before: Vec<_> = (10..20)
        .map(|n| {
            pool.submit(
                |(ticket, n): (String, u64)| {
                    note(&ticket, n);
                    n
                },
                (runs.ticket(), n),
            )
        })
        .collect();
    let doomed = pool.options().label("doomed").submit(end, (runs.ticket(), 1));
    let after: Vec<_> = (20..30)
        .map(|n| {
            pool.submit(
                |(ticket, n): (String, u64)| {
                    note(&ticket, n);
                    n
                },
                (runs.ticket(), n),
            )
        })
        .collect();
    let death = death(doomed.result());
    assert_eq!(vec![death.pid], runs.of(1));
    assert_eq!(death.label.as_deref(), Some("doomed"));
    assert!(death.peak_memory > 0, "{death:?}");
    for (n, future) in (10..).zip(before.into_iter().chain(after)) {
        assert_eq!(future.result().unwrap(), n);
    }
    runs.assert_once(10..30);
    assert!(state_of(death.pid).is_none(), "a zombie");
    assert_full(&pool, 2);
    death
}

#[test]
fn a_worker_that_aborts() {
    isolated(|| {
        let death = dies_of(|(ticket, task)| {
            note(&ticket, task);
            std::process::abort()
        });
        assert_eq!((death.signal, death.exit_code, death.core_dumped), (Some(libc::SIGABRT), None, false));
    });
}

#[test]
fn a_worker_that_exits_at_once() {
    isolated(|| {
        let death = dies_of(|(ticket, task)| {
            note(&ticket, task);
            // SAFETY: ends the process.
            unsafe { libc::_exit(3) }
        });
        assert_eq!((death.signal, death.exit_code), (None, Some(3)));
    });
}

/// With 0 it might look like a worker that has done its share.
#[test]
fn a_worker_that_exits_successfully() {
    isolated(|| {
        let death = dies_of(|(ticket, task)| {
            note(&ticket, task);
            std::process::exit(0)
        });
        assert_eq!((death.signal, death.exit_code), (None, Some(0)));
    });
}

#[test]
fn a_worker_that_exits_from_another_thread() {
    isolated(|| {
        let death = dies_of(|(ticket, task)| {
            note(&ticket, task);
            std::thread::spawn(|| std::process::exit(5));
            crate::scene::forever()
        });
        assert_eq!((death.signal, death.exit_code), (None, Some(5)));
    });
}

#[test]
fn a_worker_with_a_segmentation_fault() {
    isolated(|| {
        let death = dies_of(|(ticket, task)| {
            note(&ticket, task);
            let nowhere = std::ptr::without_provenance_mut::<u64>(8);
            // SAFETY: none: it is the fault.
            unsafe { nowhere.write_volatile(1) };
            0
        });
        assert_eq!(death.signal, Some(libc::SIGSEGV));
    });
}

#[test]
fn a_worker_with_an_endless_recursion() {
    #[expect(unconditional_recursion, reason = "the fault")]
    fn deeper(n: u64) -> u64 {
        let frame = std::hint::black_box([n; 512]);
        deeper(n + 1) + frame[usize::try_from(n % 512).unwrap_or(0)]
    }
    isolated(|| {
        let death = dies_of(|(ticket, task)| {
            note(&ticket, task);
            deeper(task)
        });
        // SIGABRT if the standard library explains it.
        assert!(matches!(death.signal, Some(libc::SIGSEGV | libc::SIGABRT)), "{death}");
    });
}

#[test]
fn a_worker_killed_from_outside_in_the_middle_of_a_task() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let turnstile = Turnstile::new();
        let task = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        let pid = u32::try_from(pool.workers()[0].id).unwrap();
        kill(pid, Signal::SIGKILL);
        let death = death(task.result());
        assert_eq!((death.pid, death.signal), (pid, Some(libc::SIGKILL)));
        assert_full(&pool, 2);
    });
}

#[test]
fn signals_that_end_a_worker_are_told_by_number() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        for signal in [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGTERM,
            libc::SIGUSR1,
            libc::SIGPIPE,
            libc::SIGRTMIN() + 3,
        ] {
            let outcome = pool
                .submit(
                    |signal: i32| {
                        // SAFETY: sends a signal to the own process. The pool may have had it ignored.
                        unsafe { libc::signal(signal, libc::SIG_DFL) };
                        // SAFETY: as above.
                        unsafe { libc::raise(signal) };
                        crate::scene::forever::<()>()
                    },
                    signal,
                )
                .result();
            assert_eq!(death(outcome).signal, Some(signal));
        }
        assert_full(&pool, 1);
    });
}

#[test]
fn all_workers_killed_at_once_cost_what_they_ran() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(4).unwrap();
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let futures: Vec<_> = (0..12)
            .map(|task| {
                pool.submit(
                    |(turnstile, runs, task): (String, String, u64)| {
                        note(&runs, task);
                        pass(&turnstile);
                        task
                    },
                    (turnstile.ticket(), runs.ticket(), task),
                )
            })
            .collect();
        turnstile.wait_for_arrivals(4);
        let victims: BTreeSet<u64> = runs.all().iter().map(|(task, _)| *task).collect();
        assert_eq!(victims.len(), 4);
        for pid in workers() {
            kill(pid, Signal::SIGKILL);
        }
        turnstile.wait_for_arrivals(4);
        turnstile.open();
        for (task, future) in (0..).zip(futures) {
            if victims.contains(&task) {
                assert_eq!(death(future.result()).signal, Some(libc::SIGKILL));
            } else {
                assert_eq!(future.result().unwrap(), task);
            }
        }
        runs.assert_once(0..12);
        assert_full(&pool, 4);
    });
}

#[test]
fn idle_workers_killed_cost_nothing() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(3).unwrap();
        for round in 0..20_u32 {
            assert_full(&pool, 3);
            for pid in workers() {
                kill(pid, Signal::SIGKILL);
            }
            // At once, while the deaths are on their way.
            let futures: Vec<_> = (0..6).map(|n| pool.submit(|n: u32| n, n + round)).collect();
            for (n, future) in (round..).zip(futures) {
                match future.result() {
                    Ok(value) => assert_eq!(value, n),
                    Err(error) => panic!("an idle worker's death cost a task: {error}"),
                }
            }
        }
        assert_full(&pool, 3);
    });
}

/// A worker that was stopped, got a task, and died without having begun it.
#[test]
fn a_worker_killed_before_it_has_begun_its_task_costs_nothing() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let pid = pool.submit(|()| std::process::id(), ()).result().unwrap();
        kill(pid, Signal::SIGSTOP);
        eventually(|| state_of(pid) == Some('T'));
        let runs = Runs::new();
        let task = pool.submit(
            |ticket: String| {
                note(&ticket, 1);
                std::process::id()
            },
            runs.ticket(),
        );
        // The task is on its way when it is shown as the worker's.
        eventually(|| pool.workers().first().is_some_and(|worker| worker.is_busy));
        kill(pid, Signal::SIGKILL);
        assert_ne!(task.result().unwrap(), pid);
        runs.assert_once([1]);
        assert_full(&pool, 1);
    });
}

/// The initializer is where a start can be held up.
#[test]
fn a_worker_killed_while_it_starts_costs_nothing() {
    isolated(|| {
        let turnstile = Turnstile::new();
        let runs = Runs::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .env("FAULTS_RUNS", runs.ticket())
            .env("FAULTS_TURNSTILE", turnstile.ticket())
            .initializer(|| {
                let runs = std::env::var("FAULTS_RUNS").unwrap();
                let starts = std::fs::read(&runs).unwrap().len() / 16;
                note(&runs, 1);
                if starts < 3 {
                    arrive(&std::env::var("FAULTS_TURNSTILE").unwrap());
                    crate::scene::forever::<()>();
                }
            })
            .build()
            .unwrap();
        let task = pool.submit(|n: u32| n + 1, 1);
        for _ in 0..3 {
            turnstile.wait_for_arrivals(1);
            let pids = runs.of(1);
            kill(*pids.last().unwrap(), Signal::SIGKILL);
        }
        assert_eq!(task.result().unwrap(), 2);
        assert_eq!(runs.of(1).len(), 4);
        assert_full(&pool, 1);
    });
}

/// `fork` returns twice, and so does the task. One of them answers; the other is no worker.
#[test]
fn a_task_that_forks_and_returns_twice_costs_at_most_itself() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        for round in 0..10 {
            let twice = pool.submit(
                |()| {
                    // SAFETY: the worker has one thread.
                    let twin = unsafe { nix::unistd::fork() };
                    twin.is_ok_and(|twin| twin.is_parent())
                },
                (),
            );
            let others: Vec<_> = (round * 10..(round + 1) * 10)
                .map(|task| {
                    pool.submit(
                        |(ticket, task): (String, u64)| {
                            note(&ticket, task);
                            task
                        },
                        (runs.ticket(), task),
                    )
                })
                .collect();
            match twice.result() {
                Ok(_) => {}
                outcome => drop(death(outcome)),
            }
            for future in others {
                // The twin may take a task of its worker's, and is killed with it.
                match future.result() {
                    Ok(_) => {}
                    outcome => drop(death(outcome)),
                }
            }
        }
        replace_workers(&pool); // a twin may still be about to answer
        runs.assert_none_twice();
        assert_full(&pool, 2);
    });
}

/// What a task leaves running goes with its worker.
#[test]
fn the_children_of_a_task_go_with_its_worker() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let child = pool
            .submit(|()| [leave_running("sleep", &["1000"]), leave_running("setsid", &["sleep", "1000"])], ())
            .result()
            .unwrap();
        assert!(child.iter().all(|pid| state_of(*pid).is_some()));
        kill(workers()[0], Signal::SIGKILL);
        eventually(|| child.iter().all(|pid| state_of(*pid).is_none()));
        assert_full(&pool, 1);
    });
}

/// Threads a task leaves behind neither keep its worker from working nor from ending.
#[test]
fn threads_started_by_a_task_do_not_hold_up_its_worker() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(1).max_tasks_per_worker(3).build().unwrap();
        let pids: BTreeSet<u32> = (0..9)
            .map(|_| {
                pool.submit(
                    |()| {
                        std::thread::spawn(crate::scene::forever::<()>);
                        std::process::id()
                    },
                    (),
                )
            })
            .map(|future| future.result().unwrap())
            .collect();
        assert_eq!(pids.len(), 3);
        assert_full(&pool, 1);
    });
}

/// A thread that ends the process between two tasks: nobody's task, or the next one's.
#[test]
fn a_thread_that_ends_its_worker_later_costs_at_most_one_task() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        let mut lost = 0;
        for round in 0..20_u64 {
            pool.submit(
                |delay: u64| {
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_micros(delay));
                        std::process::exit(4)
                    });
                },
                round * 20,
            )
            .wait();
            for task in round * 10..(round + 1) * 10 {
                let outcome = pool
                    .submit(
                        |(ticket, task): (String, u64)| {
                            note(&ticket, task);
                            task
                        },
                        (runs.ticket(), task),
                    )
                    .result();
                match outcome {
                    Ok(value) => assert_eq!(value, task),
                    outcome => {
                        assert_eq!(death(outcome).exit_code, Some(4));
                        lost += 1;
                    }
                }
            }
        }
        assert!(lost <= 20);
        replace_workers(&pool); // the last thread may still be about to end it
        runs.assert_none_twice();
        assert_full(&pool, 1);
    });
}

#[test]
fn a_worker_stopped_by_a_signal_ends_with_the_pool() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        assert_full(&pool, 2);
        let stopped = workers()[0];
        kill(stopped, Signal::SIGSTOP);
        eventually(|| state_of(stopped) == Some('T'));
        pool.shutdown();
        assert_eq!(state_of(stopped), None);
    });
}

#[test]
fn the_parent_of_a_worker_is_the_fork_server() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let parent = pool.submit(|()| nix::unistd::getppid().as_raw(), ()).result().unwrap();
        assert_eq!(parent, i32::try_from(fork_server()).unwrap());
    });
}
