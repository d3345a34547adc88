//! S6: a panic in a task is its outcome, and tells where it happened.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::time::Duration;

use concurrent_futures::{TaskError, ThreadPoolExecutor};

use crate::support::{Gate, Watchdog};

/// S6: the panic of a detached task reaches the panic handler, with and without a time limit.
#[test]
fn a_panic_of_a_detached_task_reaches_the_handler() {
    for limit in [None, Some(Duration::from_secs(3600))] {
        let _watchdog = Watchdog::start();
        let (sender, receiver) = mpsc::channel();
        let pool = ThreadPoolExecutor::builder()
            .max_workers(1)
            .panic_handler(move |report| sender.send(report.message.clone()).unwrap())
            .build()
            .unwrap();
        let gate = Gate::new();
        let passes = gate.clone();
        let work = move |()| {
            passes.pass();
            panic!("nobody asks");
        };
        match limit {
            None => drop(pool.submit(work, ())),
            Some(limit) => drop(pool.options().timeout(limit).submit(work, ())),
        }
        gate.open();
        pool.shutdown();
        assert_eq!(receiver.try_recv().as_deref(), Ok("nobody asks"), "limit {limit:?}");
    }
}

/// S6: a payload thrown on does not get the place of a panic the task caught before.
#[test]
fn a_resumed_panic_does_not_borrow_the_place_of_an_earlier_one() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let outcome = pool
        .spawn(|| {
            let caught: Result<(), _> = catch_unwind(AssertUnwindSafe(|| panic!("caught and forgotten")));
            drop(caught);
            resume_unwind(Box::new("thrown without a place"));
        })
        .result();
    let Err(TaskError::Panicked(report)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((report.message.as_str(), report.line), ("thrown without a place", 0));
}
