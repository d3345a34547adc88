//! `test_future.py`: a future alone, without an executor. `test_class_str` has no meaning here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use concurrent_futures::{Promise, TaskError, TaskFuture, ThreadPoolExecutor};

use crate::panic_message;
use crate::support::Watchdog;

/// A future in each of its states, with the promise of those that are not over.
fn pending() -> (Promise<u64>, TaskFuture<u64>) {
    Promise::new()
}

fn running() -> (Promise<u64>, TaskFuture<u64>) {
    let (promise, future) = Promise::new();
    assert!(promise.set_running());
    (promise, future)
}

fn cancelled() -> (Promise<u64>, TaskFuture<u64>) {
    let (promise, future) = Promise::new();
    assert!(future.cancel());
    (promise, future)
}

fn failed() -> TaskFuture<u64> {
    let (promise, future) = running();
    promise.complete(Err(TaskError::Decode("garbled".into())));
    future
}

fn successful() -> TaskFuture<u64> {
    let (promise, future) = running();
    promise.complete(Ok(42));
    future
}

/// What a callback was called with, as text.
type Seen = Arc<Mutex<Vec<String>>>;

fn record(future: &TaskFuture<u64>, seen: &Seen) {
    let seen = Arc::clone(seen);
    future.add_done_callback(move |outcome| seen.lock().unwrap().push(format!("{outcome:?}")));
}

fn seen(seen: &Seen) -> Vec<String> {
    seen.lock().unwrap().clone()
}

/// test_done_callback_with_result
#[test]
fn a_callback_is_called_with_the_result() {
    let _watchdog = Watchdog::start();
    let (promise, future) = pending();
    let calls = Seen::default();
    record(&future, &calls);
    assert!(seen(&calls).is_empty());
    promise.complete(Ok(5));
    assert_eq!(seen(&calls), ["Ok(5)"]);
}

/// test_done_callback_with_exception
#[test]
fn a_callback_is_called_with_the_error() {
    let _watchdog = Watchdog::start();
    let (promise, future) = pending();
    let calls = Seen::default();
    record(&future, &calls);
    promise.complete(Err(TaskError::TimedOut));
    assert_eq!(seen(&calls), ["Err(TimedOut)"]);
}

/// test_done_callback_with_cancel
#[test]
fn a_callback_is_called_by_a_cancellation() {
    let _watchdog = Watchdog::start();
    let (_promise, future) = pending();
    let calls = Seen::default();
    record(&future, &calls);
    assert!(future.cancel());
    assert!(future.cancel(), "again");
    assert_eq!(seen(&calls), ["Err(Cancelled)"], "once");
}

/// test_done_callback_with_result: the future is in its final state when the callback runs.
#[test]
fn a_callback_sees_the_future_in_its_final_state() {
    let _watchdog = Watchdog::start();
    let (promise, future) = pending();
    let future = Arc::new(future);
    let (inside, (sender, receiver)) = (Arc::clone(&future), mpsc::channel());
    future.add_done_callback(move |_| sender.send((inside.is_done(), inside.is_running())).unwrap());
    promise.complete(Ok(1));
    assert_eq!(receiver.try_recv().unwrap(), (true, false));
}

/// test_done_callback_raises
#[test]
fn a_panicking_callback_does_not_stop_the_next_one() {
    let _watchdog = Watchdog::start();
    let (promise, future) = pending();
    let calls = Seen::default();
    future.add_done_callback(|_| panic!("first"));
    record(&future, &calls);
    promise.complete(Ok(5));
    assert_eq!(seen(&calls), ["Ok(5)"]);
    assert_eq!(future.result().unwrap(), 5);
}

/// test_done_callback_raises: the panic is reported, on a pool to its handler.
#[test]
fn a_panicking_callback_is_reported() {
    let _watchdog = Watchdog::start();
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let pool = ThreadPoolExecutor::builder()
        .max_workers(1)
        .panic_handler(move |report| sender.lock().unwrap().send(report.message.clone()).unwrap())
        .build()
        .unwrap();
    let future = pool.submit(|n: u64| n, 1);
    future.add_done_callback(|_| panic!("early or late"));
    assert_eq!(future.result().unwrap(), 1);
    assert_eq!(receiver.recv().unwrap(), "early or late");
}

/// test_done_callback_already_successful, _already_failed, _already_cancelled
#[test]
fn a_callback_added_late_runs_at_once() {
    let _watchdog = Watchdog::start();
    for (future, expected) in
        [(successful(), "Ok(42)"), (failed(), r#"Err(Decode("garbled"))"#), (cancelled().1, "Err(Cancelled)")]
    {
        let calls = Seen::default();
        record(&future, &calls);
        assert_eq!(seen(&calls), [expected]);
    }
}

/// test_done_callback_raises_already_succeeded
#[test]
fn a_callback_added_late_may_panic() {
    let _watchdog = Watchdog::start();
    let future = successful();
    let calls = Seen::default();
    future.add_done_callback(|_| panic!("late"));
    record(&future, &calls);
    assert_eq!(seen(&calls), ["Ok(42)"]);
}

/// test_repr
#[test]
fn the_debug_text_tells_the_state() {
    let _watchdog = Watchdog::start();
    let text = |future: &TaskFuture<u64>| format!("{future:?}");
    let ((_pending, pending), (_running, running)) = (pending(), running());
    for (text, state) in [
        (text(&pending), "state: pending"),
        (text(&running), "state: running"),
        (text(&cancelled().1), "state: cancelled"),
        (text(&failed()), "state: finished with an error"),
        (text(&successful()), "state: finished }"),
    ] {
        assert!(text.starts_with("TaskFuture { id: 0x") && text.contains(state), "{text}");
    }
}

/// test_cancel
#[test]
fn only_what_has_not_started_can_be_cancelled() {
    let _watchdog = Watchdog::start();
    let (_promise, future) = pending();
    assert!(future.cancel());
    assert!(future.is_cancelled());
    assert!(future.cancel(), "it stays cancelled");
    let (_promise, future) = running();
    assert!(!future.cancel());
    assert!(future.is_running());
    for future in [failed(), successful()] {
        assert!(!future.cancel());
        assert!(future.is_done() && !future.is_cancelled());
    }
}

/// test_cancelled, test_done, test_running
#[test]
fn the_states_exclude_each_other() {
    let _watchdog = Watchdog::start();
    let states = |future: &TaskFuture<u64>| {
        [future.is_pending(), future.is_running(), future.is_cancelled(), future.is_done()].map(u8::from)
    };
    let ((_p, pending), (_r, running), (_c, cancelled)) = (pending(), running(), cancelled());
    assert_eq!(states(&pending), [1, 0, 0, 0]);
    assert_eq!(states(&running), [0, 1, 0, 0]);
    assert_eq!(states(&cancelled), [0, 0, 1, 1]);
    assert_eq!(states(&failed()), [0, 0, 0, 1]);
    assert_eq!(states(&successful()), [0, 0, 0, 1]);
}

/// test_result_with_timeout, test_exception_with_timeout
#[test]
fn a_result_asked_for_with_no_time_tells_the_state() {
    let _watchdog = Watchdog::start();
    let ask = |future: &mut TaskFuture<u64>| future.result_timeout(Duration::ZERO);
    let ((_p, mut pending), (_r, mut running), (_c, mut cancelled)) = (pending(), running(), cancelled());
    assert!(matches!(ask(&mut pending), Err(TaskError::TimedOut)));
    assert!(matches!(ask(&mut running), Err(TaskError::TimedOut)));
    assert!(pending.is_pending() && running.is_running(), "a time-out changes nothing");
    assert!(matches!(ask(&mut cancelled), Err(TaskError::Cancelled)));
    assert!(matches!(ask(&mut failed()), Err(TaskError::Decode(_))));
    assert_eq!(ask(&mut successful()).unwrap(), 42);
    assert!(matches!(failed().peek(), Some(Err(TaskError::Decode(_)))));
    assert!(matches!(successful().peek(), Some(Ok(42))));
}

/// Has one thread wait by `wait`, another act by `act`, in both orders over the rounds.
fn race<R: Send>(wait: impl Fn(TaskFuture<u64>) -> R + Sync, act: impl Fn(Promise<u64>)) -> Vec<R> {
    (0..200)
        .map(|round| {
            let ((promise, future), barrier) = (pending(), Barrier::new(2));
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    barrier.wait();
                    wait(future)
                });
                barrier.wait();
                (0..round).for_each(|_| std::thread::yield_now());
                act(promise);
                waiting.join().unwrap()
            })
        })
        .collect()
}

/// test_result_with_success
#[test]
fn a_blocked_result_is_woken_by_the_value() {
    let _watchdog = Watchdog::start();
    let results = race(TaskFuture::result, |promise| promise.complete(Ok(42)));
    assert!(results.iter().all(|result| matches!(result, Ok(42))), "{results:?}");
}

/// test_exception_with_success
#[test]
fn a_blocked_result_is_woken_by_the_error() {
    let _watchdog = Watchdog::start();
    let results = race(TaskFuture::result, |promise| promise.complete(Err(TaskError::TimedOut)));
    assert!(results.iter().all(|result| matches!(result, Err(TaskError::TimedOut))), "{results:?}");
    let results = race(TaskFuture::result, drop);
    assert!(results.iter().all(|result| matches!(result, Err(TaskError::Abandoned))), "{results:?}");
}

/// test_result_with_cancel
#[test]
fn a_blocked_wait_is_woken_by_a_cancellation() {
    let _watchdog = Watchdog::start();
    let results = race(TaskFuture::result, Promise::cancel);
    assert!(results.iter().all(|result| matches!(result, Err(TaskError::Cancelled))), "{results:?}");
    // From the reading end: another thread that shares the future cancels it.
    for _ in 0..200 {
        let (_promise, future) = pending();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                future.wait();
                future.is_cancelled()
            });
            assert!(future.cancel());
            assert!(waiting.join().unwrap());
        });
    }
}

/// test_multiple_set_result, test_multiple_set_exception (a second completion does not compile: `Promise`'s
/// documentation)
#[test]
fn completing_what_was_cancelled_changes_nothing() {
    let _watchdog = Watchdog::start();
    let (promise, future) = cancelled();
    assert!(!promise.set_running());
    promise.complete(Ok(1));
    assert!(future.is_cancelled());
    assert!(matches!(future.result(), Err(TaskError::Cancelled)));
}

/// test_get_snapshot
#[test]
fn state_and_outcome_are_read_together() {
    let _watchdog = Watchdog::start();
    const READERS: usize = 4;
    let _watchdog = Watchdog::start();
    for round in 0..1_000_u64 {
        let ((promise, future), barrier) = (pending(), Barrier::new(READERS + 1));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..READERS {
                scope.spawn(|| {
                    barrier.wait();
                    while !stop.load(Ordering::Relaxed) {
                        let outcome = future.peek();
                        if outcome.is_some() {
                            assert!(future.is_done() && !future.is_pending() && !future.is_running());
                        } else if future.is_done() {
                            assert!(future.peek().is_some(), "done without an outcome");
                        }
                        if let Some(outcome) = outcome {
                            assert_eq!(future.is_cancelled(), matches!(outcome, Err(TaskError::Cancelled)));
                            assert!(matches!(outcome, Ok(n) if *n == round) || outcome.is_err());
                        }
                    }
                });
            }
            barrier.wait();
            match round % 3 {
                0 => promise.complete(Ok(round)),
                1 => promise.complete(Err(TaskError::TimedOut)),
                _ => promise.cancel(),
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(future.is_done());
    }
}

/// test_interpreter_pool: test_run_in_executor, test_run_in_executor_cancel (asyncio is `.await` here)
#[test]
fn a_future_can_be_awaited_and_dropped_half_way() {
    let _watchdog = Watchdog::start();
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Wake, Waker};

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    let (promise, future) = pending();
    {
        let mut half_way = pin!(future);
        assert!(half_way.as_mut().poll(&mut context).is_pending());
        promise.complete(Ok(1));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        let Poll::Ready(outcome) = half_way.as_mut().poll(&mut context) else { panic!("woken for nothing") };
        assert_eq!(outcome.unwrap(), 1);
    }
    let (promise, future) = pending();
    {
        let mut dropped = pin!(future);
        assert!(dropped.as_mut().poll(&mut context).is_pending());
    }
    promise.complete(Ok(2));
}

/// test_interpreter_pool.test_submit_exception_in_func, for a future alone
#[test]
fn the_payload_of_a_panic_can_be_taken() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let outcome = pool.submit(|()| -> u64 { panic!("thrown") }, ()).result();
    assert_eq!(panic_message(&outcome), "thrown");
    let Err(TaskError::Panicked(report)) = outcome else { unreachable!() };
    assert_eq!(report.take_payload().unwrap().downcast_ref(), Some(&"thrown"));
}
