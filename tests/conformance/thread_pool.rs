//! `test_thread_pool.py`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use concurrent_futures::{Executor, TaskError, ThreadPoolExecutor};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::support::{Gate, Journal, Turnstile, Watchdog, eventually, in_own_process, note};
use crate::{Backend, occupy, soon, square};

on_every_executor! {
    map_starts_before_anybody_asks,
    what_a_map_did_not_start_in_time_never_runs,
    an_idle_worker_is_used_again,
    blocked_tasks_start_no_more_workers_than_allowed,
    more_blocking_tasks_than_workers_are_all_started,
}

/// test_map_submits_without_iteration
fn map_starts_before_anybody_asks<E: Backend>() {
    let (pool, journal) = (E::with_workers(2), Journal::new());
    let map = pool.map(|ticket: String| note(&ticket, "ran"), vec![journal.ticket(); 3]);
    eventually(|| journal.lines().len() == 3);
    drop(map);
}

/// test_executor_map_current_future_cancel
fn what_a_map_did_not_start_in_time_never_runs<E: Backend>() {
    let pool = E::with_workers(1);
    let (mut turnstile, journal) = (Turnstile::new(), Journal::new());
    occupy(&pool, 1, &turnstile);
    let items = (0..5).map(|n: u32| (journal.ticket(), n));
    let mut map = pool.options().deadline(soon()).map(|(ticket, n): (String, u32)| note(&ticket, n), items);
    assert!(matches!(map.next().unwrap(), Err(TaskError::TimedOut)));
    drop(map);
    turnstile.open();
    assert!(pool.shutdown().is_complete());
    assert!(journal.lines().is_empty(), "{:?}", journal.lines());
}

/// test_idle_thread_reuse, test_idle_process_reuse_one
fn an_idle_worker_is_used_again<E: Backend>() {
    let pool = E::with_workers(5);
    for n in 0..3 {
        assert_eq!(pool.submit(square, n).result().unwrap(), n * n);
        eventually(|| pool.stats().idle_workers == 1); // it is about to be, when the result is there
    }
    assert_eq!(pool.workers().len(), 1, "{:?}", pool.workers());
}

/// test_saturation, of test_process_pool and test_interpreter_pool too
fn blocked_tasks_start_no_more_workers_than_allowed<E: Backend>() {
    const WORKERS: usize = 4;
    let pool = E::with_workers(WORKERS);
    let mut turnstile = Turnstile::new();
    let futures: Vec<_> = (0..15 * WORKERS).map(|_| pool.submit(crate::pass, turnstile.ticket())).collect();
    turnstile.wait_for_arrivals(WORKERS);
    let stats = pool.stats();
    assert_eq!((stats.workers, pool.workers().len()), (WORKERS, WORKERS));
    assert_eq!((stats.running, stats.queued), (WORKERS as u64, 14 * WORKERS as u64), "{stats:?}");
    turnstile.open();
    futures.into_iter().for_each(|future| future.result().unwrap());
}

/// test_interpreter_pool: test_blocking, test_blocking_with_limited_workers
fn more_blocking_tasks_than_workers_are_all_started<E: Backend>() {
    let pool = E::with_workers(2);
    let mut turnstiles: Vec<Turnstile> = (0..10).map(|_| Turnstile::new()).collect();
    let futures: Vec<_> =
        turnstiles.iter().map(|turnstile| pool.submit(crate::pass, turnstile.ticket())).collect();
    for turnstile in &mut turnstiles {
        turnstile.wait_for_arrivals(1);
        turnstile.open();
    }
    futures.into_iter().for_each(|future| future.result().unwrap());
}

/// test_default_workers
#[test]
fn a_pool_has_some_more_threads_than_processors_by_default() {
    let _watchdog = Watchdog::start();
    let expected = (num_of_processors() + 4).min(32);
    assert_eq!(ThreadPoolExecutor::with_default_workers().unwrap().max_workers(), expected);
    assert_eq!(ThreadPoolExecutor::builder().build().unwrap().max_workers(), expected);
}

/// As the standard library counts them: by affinity and cgroup quota too.
fn num_of_processors() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// test_saturation: the threads themselves are counted.
#[test]
fn blocked_tasks_run_on_as_many_threads_as_allowed() {
    let _watchdog = Watchdog::start();
    let (pool, gate) = (ThreadPoolExecutor::new(4).unwrap(), Gate::new());
    let names = Arc::new(Mutex::new(BTreeSet::new()));
    let futures: Vec<_> = (0..60)
        .map(|_| {
            let (gate, names) = (gate.clone(), Arc::clone(&names));
            pool.spawn(move || {
                names.lock().unwrap().insert(std::thread::current().name().unwrap().to_owned());
                gate.pass();
            })
        })
        .collect();
    gate.wait_for_arrivals(4);
    assert_eq!(gate.arrivals(), 4);
    gate.open();
    futures.into_iter().for_each(|future| future.result().unwrap());
    assert_eq!(names.lock().unwrap().len(), 4);
}

/// Forks a child that leaves by `_exit(0)` after `body`; its exit code, or `None` if it hangs.
fn in_fork(body: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child calls only the library, which promises to answer there, and leaves by `_exit`.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: ends the child without the destructors of its parent.
            unsafe { nix::libc::_exit(i32::from(done.is_err())) }
        }
        ForkResult::Parent { child } => {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
                    WaitStatus::Exited(_, code) => return Some(code),
                    WaitStatus::Signaled(_, signal, _) => return Some(128 + signal as i32),
                    _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                    _ => {
                        kill(child, Signal::SIGKILL).unwrap();
                        waitpid(child, None).unwrap();
                        return None;
                    }
                }
            }
        }
    }
}

fn submit_again(pool: &ThreadPoolExecutor, stop: &Arc<AtomicBool>) {
    if !stop.load(Ordering::Relaxed) {
        let (inside, stop) = (pool.clone(), Arc::clone(stop));
        drop(pool.spawn(move || submit_again(&inside, &stop)));
    }
}

/// test_hang_global_shutdown_lock
#[test]
fn a_child_forked_while_a_pool_submits_to_itself_does_not_hang() {
    in_own_process(Duration::from_secs(40), || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        (0..2).for_each(|_| submit_again(&pool, &stop));
        for _ in 0..30 {
            let code = in_fork(|| {
                assert!(matches!(pool.submit(|n: u32| n, 1).result(), Err(TaskError::ForkedChild)));
                assert_eq!(ThreadPoolExecutor::new(1).unwrap().submit(square, 3).result().unwrap(), 9);
            });
            assert_eq!(code, Some(0));
        }
        // The workers of a process pool are children too, of a process of their own.
        #[cfg(all(feature = "process", target_os = "linux"))]
        for _ in 0..10 {
            let processes = concurrent_futures::ProcessPoolExecutor::new(2).unwrap();
            assert_eq!(processes.map(square, 0..4).map(Result::unwrap).sum::<u64>(), 14);
        }
        stop.store(true, Ordering::Relaxed);
        pool.shutdown();
    });
}

/// test_process_fork_from_a_threadpool
#[test]
fn a_child_forked_by_a_task_ends() {
    in_own_process(Duration::from_secs(40), || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let codes = pool.map(|()| in_fork(|| ()), [(); 10]);
        assert!(codes.map(Result::unwrap).all(|code| code == Some(0)));
    });
}

/// test_python_finalization_error, for threads
#[test]
fn a_pool_that_cannot_start_a_thread_is_broken() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::builder().max_workers(1).stack_size(1 << 60).build().unwrap();
    let outcome = pool.submit(|n: u32| n, 1).result();
    assert!(matches!(outcome, Err(TaskError::Broken(_))), "{outcome:?}");
    let outcome = pool.submit(|n: u32| n, 1).result();
    assert!(matches!(outcome, Err(TaskError::Broken(_))), "{outcome:?}");
    assert!(pool.shutdown().is_complete());
}
