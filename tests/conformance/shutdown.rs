//! `test_shutdown.py`.

use std::time::Duration;

use concurrent_futures::{TaskError, ThreadPoolExecutor};

use crate::support::{Gate, Turnstile, Watchdog, eventually};
use crate::{Backend, alone, is_shut_down, occupy, pass, square};

on_every_executor! {
    submit_after_shutdown_is_refused,
    a_program_that_ends_runs_what_is_queued,
    submit_from_an_exit_hook_is_answered,
    shutdown_lets_every_future_resolve,
    shutdown_now_cancels_what_has_not_started,
    a_running_task_ends_though_nobody_waits_for_the_shutdown,
    shutdown_returns_after_a_task_was_cancelled_at_once,
    dropping_the_pool_waits_for_its_tasks,
    dropping_the_pool_under_a_map_finishes_its_tasks,
    shutdown_in_the_background_finishes_what_was_accepted,
    shutdown_now_in_the_background_never_hangs,
    a_pool_that_was_never_used_shuts_down,
}

const LIMIT: Duration = Duration::from_secs(30);

/// test_run_after_shutdown
fn submit_after_shutdown_is_refused<E: Backend>() {
    let pool = E::with_workers(1);
    assert_eq!(pool.submit(square, 3).result().unwrap(), 9);
    pool.shutdown();
    assert!(is_shut_down(&pool));
    let mapped: Vec<_> = pool.map(square, 0..3).collect();
    assert!(mapped.iter().all(|result| matches!(result, Err(TaskError::ShutDown))), "{mapped:?}");
    assert!(pool.shutdown().is_complete(), "again");
    assert!(pool.shutdown_now().is_complete(), "and in another manner");
}

fn say(word: String) {
    println!("{word}");
}

/// test_interpreter_shutdown
fn a_program_that_ends_runs_what_is_queued<E: Backend>() {
    let ended = alone::<E, _>(LIMIT, || {
        let pool = E::with_workers(5);
        drop(pool.submit(say, "apple".to_owned()));
    });
    if let Some(ended) = ended {
        ended.assert_success();
        assert_eq!(ended.output.matches("apple").count(), 1, "{}", ended.output);
    }
}

/// Submits when its thread ends.
struct ExitHook<E: Backend>(E, &'static str);

impl<E: Backend> Drop for ExitHook<E> {
    fn drop(&mut self) {
        let text = match self.0.submit(square, 3).result() {
            Ok(value) => format!("{} {value}", self.1),
            Err(TaskError::ShutDown) => format!("{} refused", self.1),
            Err(error) => format!("{} {error:?}", self.1),
        };
        println!("{text}");
    }
}

/// test_submit_after_interpreter_shutdown
fn submit_from_an_exit_hook_is_answered<E: Backend>() {
    thread_local! {
        static HOOKS: std::cell::RefCell<Vec<Box<dyn std::any::Any>>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let ended = alone::<E, _>(LIMIT, || {
        let (open, shut) = (E::with_workers(1), E::with_workers(1));
        std::thread::spawn(move || {
            shut.shutdown();
            HOOKS.with_borrow_mut(|hooks| {
                hooks.push(Box::new(ExitHook(open, "open")));
                hooks.push(Box::new(ExitHook(shut, "shut")));
            });
        })
        .join()
        .unwrap();
    });
    if let Some(ended) = ended {
        ended.assert_success();
        assert!(ended.output.contains("open 9") && ended.output.contains("shut refused"), "{}", ended.output);
    }
}

/// test_hang_issue12364
fn shutdown_lets_every_future_resolve<E: Backend>() {
    let pool = E::with_workers(5);
    let futures: Vec<_> = (0..50).map(|n| pool.submit(square, n)).collect();
    assert!(pool.shutdown().is_complete());
    for (n, future) in (0..).zip(futures) {
        assert!(future.is_done());
        assert_eq!(future.result().unwrap(), n * n);
    }
}

/// test_cancel_futures
fn shutdown_now_cancels_what_has_not_started<E: Backend>() {
    let pool = E::with_workers(2);
    let mut turnstile = Turnstile::new();
    let running: Vec<_> = (0..2).map(|_| pool.submit(pass, turnstile.ticket())).collect();
    turnstile.wait_for_arrivals(2);
    let queued: Vec<_> = (0..50).map(|n| pool.submit(square, n)).collect();
    let report = std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| pool.shutdown_now());
        eventually(|| queued.iter().all(|future| future.is_cancelled()));
        assert!(running.iter().all(|future| future.is_running()), "what runs is finished");
        turnstile.open();
        shutdown.join().unwrap()
    });
    assert_eq!((report.finished, report.cancelled, report.unfinished), (2, 50, 0), "{report}");
    for future in running {
        future.result().unwrap();
    }
}

fn pass_and_say((ticket, word): (String, String)) {
    pass(ticket);
    println!("{word}");
}

/// test_hang_gh83386, which CPython skips for processes
fn a_running_task_ends_though_nobody_waits_for_the_shutdown<E: Backend>() {
    let ended = alone::<E, _>(LIMIT, || {
        let pool = E::with_workers(1);
        let mut turnstile = Turnstile::new();
        drop(pool.submit(pass_and_say, (turnstile.ticket(), "apple".to_owned())));
        turnstile.wait_for_arrivals(1);
        pool.shutdown_background();
        turnstile.open();
    });
    if let Some(ended) = ended {
        ended.assert_success();
        assert_eq!(ended.output.matches("apple").count(), 1, "{}", ended.output);
    }
}

/// test_hang_gh94440
fn shutdown_returns_after_a_task_was_cancelled_at_once<E: Backend>() {
    for _ in 0..5 {
        let pool = E::with_workers(1);
        pool.submit(square, 1).wait();
        let future = pool.submit(square, 2);
        future.cancel();
        assert!(pool.shutdown().is_complete());
        assert!(future.is_done());
    }
}

/// test_context_manager_shutdown
fn dropping_the_pool_waits_for_its_tasks<E: Backend>() {
    let futures: Vec<_> = {
        let pool = E::with_workers(5);
        (0..20).map(|n| pool.submit(square, n)).collect()
    };
    for (n, future) in (0..).zip(futures) {
        assert!(future.is_done(), "at the drop");
        assert_eq!(future.result().unwrap(), n * n);
    }
}

/// test_del_shutdown: a map that is still there keeps its pool alive.
fn dropping_the_pool_under_a_map_finishes_its_tasks<E: Backend>() {
    let pool = E::with_workers(5);
    let map = pool.map(square, 0..20);
    drop(pool);
    assert_eq!(map.collect::<Result<Vec<_>, _>>().unwrap(), (0..20).map(square).collect::<Vec<_>>());
}

/// test_shutdown_no_wait
fn shutdown_in_the_background_finishes_what_was_accepted<E: Backend>() {
    let pool = E::with_workers(2);
    let mut turnstile = Turnstile::new();
    occupy(&pool, 2, &turnstile);
    let futures: Vec<_> = (0..20).map(|n| pool.submit(square, n)).collect();
    pool.shutdown_background();
    assert!(is_shut_down(&pool), "at once");
    assert!(futures.iter().all(|future| !future.is_done()));
    turnstile.open();
    for (n, future) in (0..).zip(futures) {
        assert_eq!(future.result().unwrap(), n * n);
    }
    eventually(|| pool.stats().workers == 0);
}

/// test_cancel_futures_wait_false
fn shutdown_now_in_the_background_never_hangs<E: Backend>() {
    let ended = alone::<E, _>(LIMIT, || {
        for _ in 0..10 {
            let pool = E::with_workers(1);
            let future = pool.submit(say, "apple".to_owned());
            let inside = pool.clone();
            let shutdown = std::thread::spawn(move || inside.shutdown_now());
            drop(pool);
            let report = shutdown.join().unwrap();
            assert!(report.is_complete(), "{report}");
            assert!(matches!(future.result(), Ok(()) | Err(TaskError::Cancelled)));
        }
    });
    if let Some(ended) = ended {
        ended.assert_success();
    }
}

/// test_processes_terminate, test_threads_terminate, for a pool without a worker
fn a_pool_that_was_never_used_shuts_down<E: Backend>() {
    let pool = E::with_workers(3);
    assert!(pool.workers().is_empty(), "workers start on demand");
    let report = pool.shutdown();
    assert_eq!((report.finished, report.cancelled, report.unfinished), (0, 0, 0));
}

/// The threads of this process whose name begins so.
fn threads_named(prefix: &str) -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with(prefix))
        .count()
}

fn named(prefix: &str) -> ThreadPoolExecutor {
    ThreadPoolExecutor::builder().max_workers(5).name_prefix(prefix).build().unwrap()
}

/// test_threads_terminate
#[test]
fn three_blocked_tasks_have_three_threads_until_the_shutdown() {
    let _watchdog = Watchdog::start();
    let (pool, gate) = (named("cf-terminate"), Gate::new());
    for _ in 0..3 {
        let gate = gate.clone();
        drop(pool.spawn(move || gate.pass()));
    }
    gate.wait_for_arrivals(3);
    assert_eq!((threads_named("cf-terminate"), pool.workers().len()), (3, 3));
    gate.open();
    pool.shutdown();
    assert!(pool.workers().is_empty());
    eventually(|| threads_named("cf-terminate") == 0); // the system forgets them a moment after they were joined
}

/// test_context_manager_shutdown, test_del_shutdown: no thread is left after a drop.
#[test]
fn dropping_a_pool_ends_its_threads() {
    let _watchdog = Watchdog::start();
    let pool = named("cf-dropped");
    assert_eq!(pool.map(square, 0..10).map(Result::unwrap).sum::<u64>(), 285);
    drop(pool);
    eventually(|| threads_named("cf-dropped") == 0);
}

/// test_shutdown_no_wait: no thread is left after a shutdown nobody waited for.
#[test]
fn threads_end_after_a_shutdown_in_the_background() {
    let _watchdog = Watchdog::start();
    let pool = named("cf-background");
    let results = pool.map(square, 0..10);
    pool.shutdown_background();
    assert_eq!(results.map(Result::unwrap).sum::<u64>(), 285);
    eventually(|| threads_named("cf-background") == 0);
}

fn name_of_thread((): ()) -> Option<String> {
    std::thread::current().name().map(str::to_owned)
}

/// test_thread_names_assigned
#[test]
fn threads_are_named_by_the_prefix() {
    let _watchdog = Watchdog::start();
    let pool = named("SpecialPool");
    for _ in 0..20 {
        let name = pool.submit(name_of_thread, ()).result().unwrap().unwrap();
        let index: u32 = name.strip_prefix("SpecialPool-").unwrap().parse().unwrap();
        assert!(index < 5, "{name}");
    }
}

/// test_thread_names_default
#[test]
fn threads_of_different_pools_have_different_names() {
    let _watchdog = Watchdog::start();
    let names: Vec<String> = (0..2)
        .map(|_| ThreadPoolExecutor::new(5).unwrap().submit(name_of_thread, ()).result().unwrap().unwrap())
        .collect();
    for name in &names {
        let (pool, index) = name.strip_prefix("ThreadPoolExecutor-").unwrap().split_once('-').unwrap();
        assert!(pool.parse::<u32>().is_ok() && index == "0", "{name}");
    }
    assert_ne!(names[0], names[1]);
}

#[cfg(all(feature = "process", target_os = "linux"))]
mod of_processes {
    use concurrent_futures::ProcessPoolExecutor;

    use super::*;
    use crate::fail;

    fn is_alive(pid: u64) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    /// test_processes_terminate
    #[test]
    fn three_blocked_tasks_have_three_processes_until_the_shutdown() {
        let _watchdog = Watchdog::start();
        let (pool, mut turnstile) = (ProcessPoolExecutor::new(5).unwrap(), Turnstile::new());
        occupy(&pool, 3, &turnstile);
        let workers = pool.workers();
        assert_eq!(workers.len(), 3, "{workers:?}");
        assert!(workers.iter().all(|worker| is_alive(worker.id)));
        turnstile.open();
        assert!(pool.shutdown().is_complete());
        assert!(!workers.iter().any(|worker| is_alive(worker.id)), "gone and reaped");
        assert!(pool.workers().is_empty());
    }

    /// test_context_manager_shutdown, test_del_shutdown
    #[test]
    fn dropping_a_pool_ends_its_processes() {
        let _watchdog = Watchdog::start();
        let pool = ProcessPoolExecutor::new(5).unwrap();
        let pids: Vec<u32> = pool.map(|()| std::process::id(), [(); 10]).map(Result::unwrap).collect();
        drop(pool);
        assert!(!pids.iter().any(|&pid| is_alive(pid.into())));
    }

    /// test_shutdown_no_wait
    #[test]
    fn processes_end_after_a_shutdown_in_the_background() {
        let _watchdog = Watchdog::start();
        let pool = ProcessPoolExecutor::new(5).unwrap();
        let results = pool.map(|_: u64| std::process::id(), 0..10);
        pool.shutdown_background();
        let pids: Vec<u32> = results.map(Result::unwrap).collect();
        eventually(|| !pids.iter().any(|&pid| is_alive(pid.into())));
    }

    /// One task for each worker's life, one of the tasks fails, and nobody waits for the shutdown.
    fn check_gh_132969(workers: usize) {
        for _ in 0..5 {
            let pool =
                ProcessPoolExecutor::builder().max_workers(workers).max_tasks_per_worker(1).build().unwrap();
            let [first, failing, third] =
                [pool.submit(square, 3), pool.submit(fail, "sample".to_owned()), pool.submit(square, 4)];
            pool.shutdown_background();
            assert_eq!(first.result().unwrap(), 9);
            assert_eq!(crate::panic_message(&failing.result()), "sample");
            assert_eq!(third.result().unwrap(), 16);
        }
    }

    /// test_shutdown_gh_132969_case_1
    #[test]
    fn a_failure_and_fewer_workers_than_tasks_do_not_hang_a_shutdown() {
        let _watchdog = Watchdog::start();
        check_gh_132969(2);
    }

    /// test_shutdown_gh_132969_case_2
    #[test]
    fn a_failure_and_more_workers_than_tasks_do_not_hang_a_shutdown() {
        let _watchdog = Watchdog::start();
        check_gh_132969(4);
    }
}
