//! S1, S4, S5: a queued task is started as soon as one more may run, whoever sleeps, blocks, retires or fails to start.
//!
//! Each of these hangs when it fails, so each runs in a process of its own.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use concurrent_futures::{TaskError, ThreadPoolExecutor};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::{Gate, eventually, in_own_process};

const LIMIT: Duration = Duration::from_secs(30);

/// S5: a limit too far away to have an instant is none.
#[test]
fn a_worker_kept_alive_for_ever_is_woken() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::builder().max_workers(1).keep_alive(Duration::MAX).build().unwrap();
        for n in 0..3 {
            assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n);
            eventually(|| pool.stats().idle_workers == 1);
        }
    });
}

/// S1: what the hook of a worker that ends submits is run.
#[test]
fn a_task_submitted_by_the_exit_hook_is_run() {
    in_own_process(LIMIT, || {
        let slot: Arc<std::sync::OnceLock<ThreadPoolExecutor>> = Arc::default();
        let there = Arc::clone(&slot);
        let (sender, receiver) = mpsc::channel();
        let has_run = AtomicBool::new(false);
        let pool = ThreadPoolExecutor::builder()
            .max_workers(1)
            .keep_alive(Duration::ZERO)
            .on_worker_exit(move || {
                if !has_run.swap(true, Ordering::SeqCst) {
                    let sender = sender.clone();
                    let pool = there.get().unwrap();
                    drop(pool.spawn(move || sender.send(()).unwrap()));
                }
            })
            .build()
            .unwrap();
        slot.set(pool.clone()).unwrap();
        pool.spawn(|| ()).wait();
        receiver.recv().unwrap();
        pool.shutdown();
    });
}

/// S5: a worker that still initializes itself does not keep an idle one asleep.
#[test]
fn an_idle_worker_is_used_while_another_one_initializes_itself() {
    in_own_process(LIMIT, || {
        let (second, hold) = (Gate::new(), Gate::new());
        let (is_there, holds) = (second.clone(), hold.clone());
        let count = AtomicUsize::new(0);
        let pool = ThreadPoolExecutor::builder()
            .max_workers(2)
            .initializer(move || {
                if count.fetch_add(1, Ordering::SeqCst) == 1 {
                    is_there.open();
                    holds.pass();
                }
            })
            .build()
            .unwrap();
        let busy = Gate::new();
        let passes = busy.clone();
        let first = pool.spawn(move || passes.pass());
        busy.wait_for_arrivals(1);
        let for_the_second = pool.spawn(|| ()); // starts the second worker
        second.pass();
        busy.open();
        first.result().unwrap();
        for_the_second.result().unwrap();
        eventually(|| pool.stats().idle_workers == 1);
        pool.spawn(|| ()).result().unwrap(); // with the first worker idle
        hold.open();
    });
}

/// S5: workers initialize themselves side by side: as many start as there are tasks.
#[test]
fn initializers_run_at_the_same_time() {
    in_own_process(LIMIT, || {
        let all = Arc::new(Barrier::new(4));
        let pool = ThreadPoolExecutor::builder()
            .max_workers(4)
            .initializer(move || {
                all.wait();
            })
            .build()
            .unwrap();
        let futures: Vec<_> = (0..4).map(|n| pool.submit(|n: u32| n, n)).collect();
        for future in futures {
            future.result().unwrap();
        }
    });
}

/// S5: a worker in its exit hook does not keep an idle one asleep.
#[test]
fn an_idle_worker_is_used_while_another_one_says_goodbye() {
    in_own_process(LIMIT, || {
        let (leaving, hold) = (Gate::new(), Gate::new());
        let (leaves, holds) = (leaving.clone(), hold.clone());
        let pool = ThreadPoolExecutor::builder()
            .max_workers(2)
            .keep_alive(Duration::from_millis(1))
            .on_worker_exit(move || {
                leaves.open();
                holds.pass();
            })
            .build()
            .unwrap();
        pool.spawn(|| ()).wait();
        leaving.pass();
        pool.spawn(|| ()).result().unwrap(); // the other worker could run it
        hold.open();
    });
}

/// S1, S5: a worker that retires leaves the wake-up it was counted on for behind, for a task in a busy worker's own
/// deque too.
#[test]
fn a_task_in_a_busy_workers_deque_is_run_when_another_one_retires() {
    in_own_process(LIMIT, || {
        let (leaving, hold) = (Gate::new(), Gate::new());
        let (leaves, holds) = (leaving.clone(), hold.clone());
        let pool = ThreadPoolExecutor::builder()
            .max_workers(2)
            .keep_alive(Duration::from_millis(1))
            .on_worker_exit(move || {
                leaves.open();
                holds.pass();
            })
            .build()
            .unwrap();
        // Two workers: one stays busy, the other one retires.
        let (busy, meeting) = (Gate::new(), Gate::new());
        let (inside, is_busy, meets) = (pool.clone(), busy.clone(), meeting);
        let first = pool.spawn(move || {
            is_busy.pass();
            let opens = meets.clone();
            let other = inside.spawn(move || opens.open());
            hold.open();
            meets.pass(); // not a wait the pool knows of
            other
        });
        busy.wait_for_arrivals(1);
        pool.spawn(|| ()).wait(); // the second worker's only task
        leaving.pass();
        busy.open();
        first.result().unwrap().result().unwrap();
    });
}

/// S4, S5: the place of a worker that blocks is for any task, one in a busy worker's own deque too.
#[test]
fn a_task_in_a_busy_workers_deque_is_run_when_another_one_blocks() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let (both, pushed, meeting) = (Arc::new(Barrier::new(2)), Gate::new(), Gate::new());
        let (inside, together, push, meets) =
            (pool.clone(), Arc::clone(&both), pushed.clone(), meeting.clone());
        let first = pool.spawn(move || {
            together.wait();
            let opens = meets.clone();
            let other = inside.spawn(move || opens.open());
            push.open();
            meets.pass(); // not a wait the pool knows of
            other
        });
        let inside = pool.clone();
        let second = pool.spawn(move || {
            both.wait();
            pushed.pass();
            inside.blocking(|| meeting.pass());
        });
        first.result().unwrap().result().unwrap();
        second.result().unwrap();
    });
}

/// S1, S9: where a thread cannot be had the pool goes on with the workers it has, busy or about to sleep.
#[test]
fn a_worker_that_cannot_start_does_not_break_a_pool_with_an_idle_one() {
    const STACK: usize = 1 << 32;
    in_own_process(LIMIT, || {
        let mapped = |name: &str| {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
        };
        let pool = ThreadPoolExecutor::builder().max_workers(2).stack_size(STACK).build().unwrap();
        // Room for one such stack, and for all else.
        let limit = mapped("VmSize:") + STACK as u64 + (STACK as u64) / 2;
        let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
        setrlimit(Resource::RLIMIT_AS, limit, hard).unwrap();
        pool.spawn(|| ()).result().unwrap();
        let until = Instant::now() + Duration::from_secs(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while Instant::now() < until {
                        // Finds the only worker about to look, or to lie down.
                        let outcome = pool.spawn(|| ()).result();
                        assert!(outcome.is_ok(), "{outcome:?}");
                    }
                });
            }
        });
        assert_eq!(pool.stats().workers, 1);
    });
}

/// S4, S5: a task that is claimed to be run in place leaves those beside it in the worker's deque to the others, and
/// somebody awake for them.
#[test]
fn the_second_of_two_tasks_is_started_while_the_first_runs_in_place() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let inside = pool.clone();
        let rounds = pool.spawn(move || {
            let until = Instant::now() + Duration::from_secs(3);
            let mut rounds = 0_u64;
            while Instant::now() < until {
                let both = Arc::new(Barrier::new(2));
                let [first, second] = [(); 2].map(|()| {
                    let both = Arc::clone(&both);
                    inside.spawn(move || {
                        both.wait(); // not a wait the pool knows of
                    })
                });
                first.result().unwrap(); // mostly in place
                second.result().unwrap();
                rounds += 1;
            }
            rounds
        });
        println!("{} rounds", rounds.result().unwrap());
    });
}

/// S5: in a pool of many workers, too, a queued task is started while there are idle ones.
#[test]
fn tasks_pushed_by_many_busy_workers_are_started_by_idle_ones() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::builder().max_workers(1_000).stack_size(64 * 1024).build().unwrap();
        // All workers live, so that there are as many deques.
        let all = Arc::new(Barrier::new(1_000));
        let futures: Vec<_> = (0..1_000)
            .map(|_| {
                let all = Arc::clone(&all);
                pool.spawn(move || {
                    all.wait();
                })
            })
            .collect();
        futures.into_iter().for_each(|future| future.result().unwrap());
        for _ in 0..5 {
            let together = Arc::new(Barrier::new(300));
            let meetings: Vec<_> = (0..300)
                .map(|_| {
                    let (inside, together) = (pool.clone(), Arc::clone(&together));
                    pool.spawn(move || {
                        together.wait();
                        let here = Arc::new(Barrier::new(2));
                        let there = Arc::clone(&here);
                        let other = inside.spawn(move || {
                            there.wait();
                        });
                        here.wait(); // not a wait the pool knows of
                        other
                    })
                })
                .collect();
            for meeting in meetings {
                meeting.result().unwrap().result().unwrap();
            }
        }
    });
}

/// S5: two pushed at the same time there: whoever is woken for one of them sees to the other, wherever it lies.
#[test]
fn two_tasks_pushed_at_once_in_a_large_pool_are_both_started() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::builder().max_workers(1_000).stack_size(64 * 1024).build().unwrap();
        let all = Arc::new(Barrier::new(1_000));
        let futures: Vec<_> = (0..1_000)
            .map(|_| {
                let all = Arc::clone(&all);
                pool.spawn(move || {
                    all.wait();
                })
            })
            .collect();
        futures.into_iter().for_each(|future| future.result().unwrap());
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            let together = Arc::new(Barrier::new(2));
            let meetings: Vec<_> = (0..2)
                .map(|_| {
                    let (inside, together) = (pool.clone(), Arc::clone(&together));
                    pool.spawn(move || {
                        together.wait();
                        let here = Arc::new(Barrier::new(2));
                        let there = Arc::clone(&here);
                        let other = inside.spawn(move || {
                            there.wait();
                        });
                        here.wait(); // not a wait the pool knows of
                        other
                    })
                })
                .collect();
            for meeting in meetings {
                meeting.result().unwrap().result().unwrap();
            }
        }
    });
}

/// S1, S3: the callback of a task whose deadline has passed may wait, on a worker, for a task that an idle worker could
/// run.
#[test]
fn a_callback_of_a_late_task_on_a_worker_does_not_keep_others_asleep() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            // The timer and a worker are equally fast to find the task late; the callback runs where it was found.
            let late =
                pool.options().deadline(Instant::now() + Duration::from_micros(20)).submit(|()| (), ());
            let inside = pool.clone();
            late.add_done_callback(move |_| {
                let (sender, receiver) = mpsc::channel();
                drop(inside.spawn(move || sender.send(()).unwrap()));
                receiver.recv().unwrap(); // not a wait the pool knows of
            });
            let outcome = late.result();
            assert!(matches!(outcome, Ok(()) | Err(TaskError::TimedOut)), "{outcome:?}");
        }
    });
}

/// S4: what ran in place and whose time was up meanwhile may still have a callback that needs this pool.
#[test]
fn a_callback_of_a_task_late_in_place_may_wait_for_the_pool() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let inside = pool.clone();
        let outer = pool.spawn(move || {
            let called = Gate::new();
            let passes = called.clone();
            let late =
                inside.options().timeout(Duration::from_millis(20)).submit(move |()| passes.pass(), ());
            let (other_pool, opens) = (inside, called);
            late.add_done_callback(move |_| {
                let other = other_pool.spawn(|| 7);
                opens.open(); // the late task ends now, on the only worker
                assert_eq!(other.result().unwrap(), 7);
            });
            late.result()
        });
        assert!(matches!(outer.result().unwrap(), Err(TaskError::TimedOut)));
    });
}

/// S4: a task run in place that waits itself does not hide what the wait below it waits for.
#[test]
fn a_ring_is_found_below_a_task_that_was_run_in_place() {
    use concurrent_futures::{ReturnWhen, TaskFuture, wait};
    use std::sync::Mutex;

    in_own_process(LIMIT, || {
        let (pool, elsewhere) = (ThreadPoolExecutor::new(2).unwrap(), ThreadPoolExecutor::new(1).unwrap());
        let slots: Arc<[Mutex<Option<TaskFuture<()>>>; 2]> = Arc::default();
        let (go, hold, in_place) = (Gate::new(), Gate::new(), Gate::new());
        let (sender, receiver) = mpsc::channel();
        let first = {
            let (slots, go, hold, in_place, inside, sender) = (
                Arc::clone(&slots),
                go.clone(),
                hold.clone(),
                in_place.clone(),
                pool.clone(),
                sender.clone(),
            );
            pool.spawn(move || {
                go.pass();
                let other = slots[1].lock().unwrap().take().unwrap();
                let passes = hold;
                let awaited = elsewhere.spawn(move || passes.pass());
                let nested = inside.spawn(move || {
                    awaited.result().unwrap(); // enters the graph, and leaves it
                    in_place.open();
                });
                let waited = wait([&nested, &other], ReturnWhen::AllCompleted, None);
                sender.send(waited.not_done.is_empty()).unwrap();
            })
        };
        let second = {
            let (slots, go) = (Arc::clone(&slots), go.clone());
            pool.spawn(move || {
                go.pass();
                hold.open();
                in_place.pass();
                let other = slots[0].lock().unwrap().take().unwrap();
                sender.send(!matches!(other.result(), Err(TaskError::Deadlock(_)))).unwrap();
            })
        };
        *slots[0].lock().unwrap() = Some(first);
        *slots[1].lock().unwrap() = Some(second);
        go.wait_for_arrivals(2);
        go.open();
        let told: Vec<_> = receiver.into_iter().collect();
        assert_eq!(told.iter().filter(|&&went_on| !went_on).count(), 1, "one of the two is told: {told:?}");
    });
}
