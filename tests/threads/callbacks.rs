//! S3: callbacks, and what they may do to their own future.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use concurrent_futures::{Promise, TaskError, TaskFuture, ThreadPoolExecutor, as_completed};

use crate::support::{Gate, Watchdog, in_own_process};

const LIMIT: Duration = Duration::from_secs(10);

/// Completes a future whose callback gets that very future.
fn with_own_future(act: impl FnOnce(TaskFuture<u32>) + Send + 'static) {
    let (promise, future) = Promise::new();
    let own = Arc::new(Mutex::new(None));
    let inside = Arc::clone(&own);
    future.add_done_callback(move |_| {
        let future = inside.lock().unwrap().take();
        act(future.unwrap());
    });
    *own.lock().unwrap() = Some(future);
    promise.complete(Ok(7));
}

/// S3: a callback that asks for its own result would wait for itself, and is told so.
#[test]
fn a_callback_that_asks_for_its_own_result_is_refused() {
    let _watchdog = Watchdog::start();
    let (sender, receiver) = mpsc::channel();
    with_own_future(move |future| sender.send(future.result()).unwrap());
    let answer = receiver.recv().unwrap();
    assert!(matches!(answer, Err(TaskError::Deadlock(_))), "{answer:?}");
}

/// S3: to its own callback the future is done, and can be looked at.
#[test]
fn a_callback_finds_its_own_future_done() {
    let _watchdog = Watchdog::start();
    let (sender, receiver) = mpsc::channel();
    with_own_future(move |future| {
        future.wait();
        let seen =
            (future.is_done(), future.wait_timeout(Duration::ZERO), matches!(future.peek(), Some(Ok(7))));
        sender.send(seen).unwrap();
    });
    assert_eq!(receiver.recv().unwrap(), (true, true, true));
}

/// S3: `as_completed` over the own future does not wait for the callback to end.
#[test]
fn a_callback_may_pass_its_own_future_to_as_completed() {
    in_own_process(LIMIT, || with_own_future(|future| assert_eq!(as_completed([future]).count(), 1)));
}

/// S3: polling the own future gives an answer, not a `Pending` nobody will wake.
#[test]
fn a_callback_that_polls_its_own_future_gets_an_answer() {
    let _watchdog = Watchdog::start();
    let (sender, receiver) = mpsc::channel();
    with_own_future(move |future| {
        let polled = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
        sender.send(matches!(polled, Poll::Ready(_))).unwrap();
    });
    assert!(receiver.recv().unwrap());
}

/// S3, S1: the callback of a task whose time is up holds up neither the clock of other tasks nor the pool.
#[test]
fn a_callback_of_a_late_task_may_wait_for_another_time_limit() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let (gate, ready) = (Gate::new(), Gate::new());
        let (sender, receiver) = mpsc::channel();
        let stuck = |limit| {
            let (gate, ready) = (gate.clone(), ready.clone());
            pool.options().timeout(Duration::from_millis(limit)).submit(
                move |()| {
                    ready.pass();
                    gate.pass();
                },
                (),
            )
        };
        let (first, second) = (stuck(20), stuck(60));
        first.add_done_callback(move |_| sender.send(second.result()).unwrap());
        ready.open();
        let outcome = receiver.recv().unwrap();
        assert!(matches!(outcome, Err(TaskError::TimedOut)), "{outcome:?}");
        gate.open();
        first.wait();
    });
}
