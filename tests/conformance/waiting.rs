//! `test_wait.py`.

use std::time::{Duration, Instant};

use concurrent_futures::{Promise, ReturnWhen, TaskFuture, ThreadPoolExecutor, Waited, wait};

use crate::support::{Gate, Turnstile, Watchdog};
use crate::{Backend, fail, pass, power, square};

on_every_executor! {
    a_future_given_twice_counts_once,
    first_completed_returns_with_the_one_that_ended,
    first_completed_returns_at_once_with_what_is_over,
    first_error_returns_with_the_first_failure,
    first_error_returns_with_a_failure_among_finished_ones,
    first_error_returns_at_once_with_an_earlier_failure,
    all_completed_waits_for_every_ending,
    at_the_time_limit_the_rest_is_not_done,
}

/// A future that never ends by itself.
fn endless() -> (Promise<u64>, TaskFuture<u64>) {
    Promise::new()
}

fn cancelled() -> TaskFuture<u64> {
    let (_, future) = {
        let (promise, future) = Promise::new();
        assert!(future.cancel());
        (promise, future)
    };
    future
}

fn failed() -> TaskFuture<u64> {
    let (promise, future) = Promise::<u64>::new();
    drop(promise);
    future
}

fn successful() -> TaskFuture<u64> {
    let (promise, future) = Promise::new();
    promise.complete(Ok(42));
    future
}

/// Passes the turnstile, then gives the number.
fn after((ticket, n): (String, u64)) -> u64 {
    pass(ticket);
    n
}

fn fail_after(ticket: String) -> u64 {
    pass(ticket);
    fail("after".to_owned())
}

#[track_caller]
fn check(waited: &Waited<'_, u64>, done: &[&TaskFuture<u64>], not_done: &[&TaskFuture<u64>]) {
    let is_same = |a: &[&TaskFuture<u64>], b: &[&TaskFuture<u64>]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| std::ptr::eq(*a, *b))
    };
    assert!(is_same(&waited.done, done) && is_same(&waited.not_done, not_done), "{waited:?}");
}

/// test_20369
fn a_future_given_twice_counts_once<E: Backend>() {
    let pool = E::with_workers(2);
    let future = pool.submit(square, 2);
    let waited = wait([&future, &future], ReturnWhen::AllCompleted, None);
    check(&waited, &[&future], &[]);
}

/// test_first_completed (a cancelled future is done at once here: there is no state between)
fn first_completed_returns_with_the_one_that_ended<E: Backend>() {
    let pool = E::with_workers(2);
    let (_promise, pending) = endless();
    let mut turnstile = Turnstile::new();
    let gated = pool.submit(after, (turnstile.ticket(), 1));
    let quick = pool.submit(power, (21, 2));
    let waited = wait([&pending, &gated, &quick], ReturnWhen::FirstCompleted, None);
    check(&waited, &[&quick], &[&pending, &gated]);
    turnstile.open();
    let waited = wait([&pending, &gated], ReturnWhen::FirstCompleted, None);
    check(&waited, &[&gated], &[&pending]);
    let cancelled = cancelled();
    check(&wait([&cancelled, &pending], ReturnWhen::FirstCompleted, None), &[&cancelled], &[&pending]);
}

/// test_first_completed_some_already_completed
fn first_completed_returns_at_once_with_what_is_over<E: Backend>() {
    let pool = E::with_workers(2);
    let mut turnstile = Turnstile::new();
    let gated = pool.submit(after, (turnstile.ticket(), 1));
    turnstile.wait_for_arrivals(1);
    let (cancelled, successful) = (cancelled(), successful());
    let waited = wait([&cancelled, &gated, &successful], ReturnWhen::FirstCompleted, None);
    check(&waited, &[&cancelled, &successful], &[&gated]);
    turnstile.open();
}

/// test_first_exception
fn first_error_returns_with_the_first_failure<E: Backend>() {
    let pool = E::with_workers(3);
    let (mut turnstile, mut last) = (Turnstile::new(), Turnstile::new());
    let success = pool.submit(power, (2, 21));
    let failure = pool.submit(fail_after, turnstile.ticket());
    let pending = pool.submit(after, (last.ticket(), 1));
    success.wait();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait([&success, &failure, &pending], ReturnWhen::FirstError, None));
        turnstile.wait_for_arrivals(1);
        turnstile.open();
        check(&waiting.join().unwrap(), &[&success, &failure], &[&pending]);
    });
    last.open();
}

/// test_first_exception_some_already_complete
fn first_error_returns_with_a_failure_among_finished_ones<E: Backend>() {
    let pool = E::with_workers(2);
    let failure = pool.submit(fail, "now".to_owned());
    let ((_promise, pending), successful) = (endless(), successful());
    let waited = wait([&successful, &failure, &pending], ReturnWhen::FirstError, None);
    check(&waited, &[&successful, &failure], &[&pending]);
    let cancelled = cancelled();
    let waited = wait([&cancelled, &pending], ReturnWhen::FirstError, None);
    check(&waited, &[&cancelled], &[&pending]);
}

/// test_first_exception_one_already_failed
fn first_error_returns_at_once_with_an_earlier_failure<E: Backend>() {
    let pool = E::with_workers(1);
    let mut turnstile = Turnstile::new();
    let (failed, gated) = (failed(), pool.submit(after, (turnstile.ticket(), 1)));
    check(&wait([&failed, &gated], ReturnWhen::FirstError, None), &[&failed], &[&gated]);
    turnstile.open();
}

/// test_all_completed
fn all_completed_waits_for_every_ending<E: Backend>() {
    let pool = E::with_workers(2);
    let mut turnstile = Turnstile::new();
    let (success, failure) =
        (pool.submit(after, (turnstile.ticket(), 2)), pool.submit(fail_after, turnstile.ticket()));
    let (cancelled, failed, successful) = (cancelled(), failed(), successful());
    let all = [&cancelled, &failed, &successful, &success, &failure];
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(all, ReturnWhen::AllCompleted, None));
        turnstile.wait_for_arrivals(2);
        turnstile.open();
        check(&waiting.join().unwrap(), &all, &[]);
    });
}

/// test_timeout
fn at_the_time_limit_the_rest_is_not_done<E: Backend>() {
    const LIMIT: Duration = Duration::from_millis(50);
    let pool = E::with_workers(2);
    let mut turnstile = Turnstile::new();
    let (gated, quick) = (pool.submit(after, (turnstile.ticket(), 6)), pool.submit(square, 6));
    quick.wait();
    let (cancelled, failed, successful) = (cancelled(), failed(), successful());
    let start = Instant::now();
    let all = [&cancelled, &failed, &successful, &gated, &quick];
    let waited = wait(all, ReturnWhen::AllCompleted, LIMIT);
    assert!(start.elapsed() >= LIMIT);
    check(&waited, &[&cancelled, &failed, &successful, &quick], &[&gated]);
    turnstile.open();
}

/// test_pending_calls_race
#[test]
fn many_futures_that_end_together_are_all_counted() {
    let watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(100).unwrap();
    watchdog.knows(pool.clone());
    for _ in 0..5 {
        let gate = Gate::new();
        let futures: Vec<_> = (0..100)
            .map(|_| {
                let gate = gate.clone();
                pool.spawn(move || gate.pass())
            })
            .collect();
        gate.wait_for_arrivals(100);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&futures, ReturnWhen::AllCompleted, None));
            gate.open();
            assert_eq!(waiting.join().unwrap().done.len(), 100);
        });
    }
}
