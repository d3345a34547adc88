//! `test_as_completed.py`.

use std::time::{Duration, Instant};

use concurrent_futures::{Promise, TaskError, TaskFuture, as_completed, as_completed_timeout};

use crate::support::{Probe, Tally, Turnstile};
use crate::{Backend, pass, square};

on_every_executor! {
    every_future_is_yielded_once,
    at_the_time_limit_the_finished_ones_were_yielded,
    any_iterator_of_futures_is_taken,
    the_iterator_keeps_nothing_it_yielded,
    the_error_counts_what_is_unfinished,
}

fn after((ticket, n): (String, u64)) -> u64 {
    pass(ticket);
    n
}

fn cancelled() -> TaskFuture<u64> {
    let (_promise, future) = Promise::new();
    assert!(future.cancel());
    future
}

fn successful() -> TaskFuture<u64> {
    let (promise, future) = Promise::new();
    promise.complete(Ok(42));
    future
}

/// test_no_timeout
fn every_future_is_yielded_once<E: Backend>() {
    let pool = E::with_workers(2);
    let mut turnstile = Turnstile::new();
    let futures = [
        pool.submit(after, (turnstile.ticket(), 1)),
        pool.submit(square, 7),
        cancelled(),
        successful(),
        Promise::new().1,
    ];
    let mut ended = as_completed(futures);
    assert_eq!(ended.len(), 5);
    let mut first: Vec<_> = ended.by_ref().take(4).map(TaskFuture::result).collect();
    turnstile.open();
    let last = ended.next().unwrap().result();
    assert_eq!(last.unwrap(), 1, "what ends last comes last");
    assert!(ended.next().is_none());
    first.sort_by_key(|outcome| format!("{outcome:?}"));
    assert!(
        matches!(first[..], [Err(TaskError::Abandoned), Err(TaskError::Cancelled), Ok(42), Ok(49)]),
        "{first:?}"
    );
}

/// test_future_times_out
fn at_the_time_limit_the_finished_ones_were_yielded<E: Backend>() {
    let pool = E::with_workers(1);
    let mut turnstile = Turnstile::new();
    for limit in [Duration::ZERO, Duration::from_millis(100)] {
        let start = Instant::now();
        let gated = pool.submit(after, (turnstile.ticket(), 1));
        let mut ended = as_completed_timeout([cancelled(), gated, successful()], limit);
        for _ in 0..2 {
            ended.next().unwrap().unwrap().result().ok();
        }
        let unfinished = ended.next().unwrap().unwrap_err();
        assert!(start.elapsed() >= limit);
        assert_eq!(unfinished.futures.len(), 1);
        assert!(!unfinished.futures[0].is_done());
        assert!(ended.next().is_none(), "the error ends it");
    }
    turnstile.open();
}

/// test_duplicate_futures (a future is owned, so there is no second one; what is left is: any iterable is accepted)
fn any_iterator_of_futures_is_taken<E: Backend>() {
    let pool = E::with_workers(2);
    let lazily = (0..5).map(|n| pool.submit(square, n));
    let mut sum: Vec<u64> = as_completed(lazily).map(|future| future.result().unwrap()).collect();
    sum.sort_unstable();
    assert_eq!(sum, [0, 1, 4, 9, 16]);
    assert_eq!(as_completed(Some(successful())).count(), 1);
    assert_eq!(as_completed(Vec::<TaskFuture<u64>>::new()).count(), 0);
}

/// test_free_reference_yielded_future
fn the_iterator_keeps_nothing_it_yielded<E: Backend>() {
    let pool = E::with_workers(2);
    let tallies: Vec<Tally> = (0..8).map(|_| Tally::shared()).collect();
    let submit = |number: usize| pool.submit(|probe: Probe| probe, tallies[number].carrying(number as u64));
    for future in as_completed((0..8).map(submit)) {
        let probe = future.result().unwrap();
        let tally = &tallies[usize::try_from(probe.number).unwrap()];
        assert_eq!(tally.alive(), 1);
        drop(probe);
        assert_eq!(tally.alive(), 0);
    }
    tallies.iter().for_each(Tally::assert_balanced);
}

/// test_correct_timeout_exception_msg
fn the_error_counts_what_is_unfinished<E: Backend>() {
    let pool = E::with_workers(2);
    let mut turnstile = Turnstile::new();
    let gated = || pool.submit(after, (turnstile.ticket(), 1));
    let futures = [cancelled(), gated(), gated(), successful()];
    let last = as_completed_timeout(futures, Duration::ZERO).last().unwrap();
    assert_eq!(last.unwrap_err().to_string(), "2 (of 4) futures unfinished");
    turnstile.open();
}
