//! Time limits that are up at once, on the real [`Timer`]: in a model no time passes, so a limit lies in the past or never
//! comes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use super::*;
use crate::fork::PoolId;
use crate::sync::model;
use crate::task::{self, Details, Outcome};

type Token = Arc<&'static str>;

fn task(token: &Token) -> (Task, task::Handle<Token>) {
    let details = Details { timeout: Some(Duration::ZERO), ..Details::default() };
    let value = Arc::clone(token);
    task::new(PoolId::NONE, Some(details), move || value)
}

fn check(outcome: Option<Outcome<Token>>, ran: bool) {
    match outcome {
        Some(Ok(_)) => assert!(ran),
        Some(Err(crate::TaskError::TimedOut)) => {}
        other => panic!("{other:?}"),
    }
}

/// The limit is up while the task runs, ends and leaves; then the timer is stopped.
#[test]
fn expire_against_leave_against_stop() {
    let late = Instant::now();
    model(3, move || {
        let token: Token = Arc::new("task");
        let timer = Timer::default();
        let (task, mut handle) = task(&token);
        timer.enter(late, &task, "model");
        let started = task.clone().start();
        let ran = started.is_some();
        if let Some(started) = started {
            let executed = started.execute();
            timer.leave(late, executed.task());
            executed.publish();
        }
        timer.stop();
        // Whoever was at it has been joined.
        assert!(handle.is_finished());
        check(handle.take(), ran);
        drop((handle, task));
        assert_eq!(Arc::strong_count(&token), 1, "nothing is kept alive");
    });
}

/// Two tasks are late at once: the watch is handed over, and both end though the thread that ends the first may be kept
/// by its callbacks.
#[test]
fn two_late_tasks_and_a_callback_that_waits() {
    let late = Instant::now();
    // Not the same instant: tasks of one are ordered by their addresses, which a model does not repeat.
    let later = late + Duration::from_nanos(1);
    model(0, move || {
        let token: Token = Arc::new("task");
        let timer = Timer::default();
        let (first, first_handle) = task(&token);
        let (second, second_handle) = task(&token);
        let awaited = crate::TaskFuture::new(second_handle);
        let added = first_handle.add_callback(move |_| awaited.wait());
        assert!(added.is_ok());
        timer.enter(late, &first, "model");
        timer.enter(later, &second, "model");
        crate::TaskFuture::new(first_handle).wait();
        assert!(second.is_finished());
        timer.stop();
        drop((first, second));
        assert_eq!(Arc::strong_count(&token), 1, "nothing is kept alive");
    });
}

/// A limit is entered while the pool ends: it is not kept.
#[test]
fn enter_against_stop() {
    let late = Instant::now();
    model(4, move || {
        let token: Token = Arc::new("task");
        let timer = Arc::new(Timer::default());
        let (task, handle) = task(&token);
        let there = Arc::clone(&timer);
        let entering = thread::Builder::new()
            .spawn(move || {
                there.enter(late, &task, "model");
                there.leave(late, &task);
            })
            .unwrap();
        timer.stop();
        entering.join().unwrap();
        timer.stop();
        drop(handle);
        assert_eq!(Arc::strong_count(&token), 1, "nothing is kept alive");
    });
}
