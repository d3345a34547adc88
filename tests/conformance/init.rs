//! `test_init.py`.

use std::cell::Cell;
use std::time::Duration;

use concurrent_futures::TaskError;

use crate::support::Turnstile;
use crate::{Backend, alone, pass, square};

on_every_executor! {
    the_initializer_runs_on_every_worker_before_its_first_task,
    an_initializer_changes_the_worker_alone,
    a_failing_initializer_breaks_the_pool,
    a_panicking_initializer_breaks_the_pool,
    a_failing_initializer_leaves_nothing_behind,
}

thread_local! {
    static INITIALIZED: Cell<&'static str> = const { Cell::new("uninitialized") };
}

fn initialize() {
    assert_eq!(INITIALIZED.replace("initialized"), "uninitialized", "once for each worker");
}

fn status(ticket: String) -> String {
    pass(ticket);
    INITIALIZED.get().to_owned()
}

/// InitializerMixin.test_initializer
fn the_initializer_runs_on_every_worker_before_its_first_task<E: Backend>() {
    const WORKERS: usize = 4;
    let pool = E::with_initializer(WORKERS, initialize);
    let mut turnstile = Turnstile::new();
    let first: Vec<_> = (0..WORKERS).map(|_| pool.submit(status, turnstile.ticket())).collect();
    turnstile.wait_for_arrivals(WORKERS);
    turnstile.open();
    let second: Vec<_> = (0..3 * WORKERS).map(|_| pool.submit(status, turnstile.ticket())).collect();
    for future in first.into_iter().chain(second) {
        assert_eq!(future.result().unwrap(), "initialized");
    }
}

/// test_interpreter_pool: test_init_func, test_init_with___main___global
fn an_initializer_changes_the_worker_alone<E: Backend>() {
    let pool = E::with_initializer(1, initialize);
    assert_eq!(pool.submit(|()| INITIALIZED.get().to_owned(), ()).result().unwrap(), "initialized");
    assert_eq!(INITIALIZED.get(), "uninitialized");
}

fn check_broken<E: Backend>(pool: &E, reason: &str) {
    let mut turnstile = Turnstile::new();
    let waiting: Vec<_> = (0..5).map(|_| pool.submit(status, turnstile.ticket())).collect();
    for future in waiting {
        let outcome = future.result();
        let Err(TaskError::Broken(told)) = outcome else { panic!("not broken: {outcome:?}") };
        assert!(told.contains(reason), "{told}");
    }
    let Err(TaskError::Broken(told)) = pool.submit(square, 1).result() else { panic!("not broken") };
    assert!(told.contains(reason), "{told}");
    let mapped: Vec<_> = pool.map(square, 0..3).collect();
    assert!(mapped.iter().all(|result| matches!(result, Err(TaskError::Broken(_)))), "{mapped:?}");
    turnstile.open();
    let report = pool.shutdown();
    assert!(report.is_complete(), "{report}");
}

fn refuse() -> Result<(), &'static str> {
    Err("no licence")
}

/// FailingInitializerMixin.test_initializer (the error is in what the futures tell, not in a log)
fn a_failing_initializer_breaks_the_pool<E: Backend>() {
    check_broken(&E::with_initializer(2, refuse), "no licence");
}

/// FailingInitializerMixin.test_initializer
fn a_panicking_initializer_breaks_the_pool<E: Backend>() {
    check_broken(&E::with_initializer(2, || -> () { panic!("out of order") }), "out of order");
}

/// FailingInitializerResourcesTest.test_spawn, test_forkserver
fn a_failing_initializer_leaves_nothing_behind<E: Backend>() {
    let ended = alone::<E, _>(Duration::from_secs(30), || {
        drop(E::with_workers(1)); // what is made once for all pools
        let (descriptors, threads) = (crate::support::descriptors(), crate::support::threads().len());
        for _ in 0..3 {
            let pool = E::with_initializer(2, refuse);
            pool.submit(square, 1).result().unwrap_err();
            drop(pool);
        }
        assert_eq!(crate::support::descriptors(), descriptors);
        assert!(children().is_empty(), "{:?}", children());
        crate::support::eventually(|| crate::support::threads().len() <= threads);
    });
    if let Some(ended) = ended {
        ended.assert_success();
    }
}

/// The processes this one has started and not reaped.
fn children() -> String {
    let path = format!("/proc/self/task/{}/children", std::process::id());
    std::fs::read_to_string(path).unwrap_or_default()
}
