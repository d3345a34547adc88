//! `executor.py` and `test_pool.py`: what every executor does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use concurrent_futures::{Executor, TaskError};
use serde::{Deserialize, Serialize};

use crate::support::{Journal, Probe, Tally, Turnstile, eventually, note};
use crate::{Backend, fail, occupy, panic_message, power, refusal, soon, square, until_cancelled};

on_every_executor! {
    submit_gives_the_value,
    arguments_of_every_shape_pass_through,
    map_equals_the_map_of_an_iterator,
    a_failing_item_of_a_map_fails_alone,
    a_failing_item_in_a_chunk_fails_alone,
    a_task_that_speaks_of_a_time_out_is_an_ordinary_failure,
    an_item_over_its_time_limit_fails_alone,
    a_map_past_its_deadline_yields_time_outs_and_ends,
    dropping_a_map_cancels_what_has_not_started,
    dropping_a_map_of_chunks_cancels_what_has_not_started,
    buffer_and_chunk_sizes_of_zero_are_refused,
    a_buffer_of_any_size_changes_no_result,
    a_buffer_of_any_size_changes_no_result_of_two_inputs,
    an_endless_input_is_mapped_lazily,
    two_endless_inputs_are_mapped_lazily,
    an_empty_input_ends_at_once,
    no_input_at_all_ends_at_once,
    a_buffer_takes_exactly_its_size_before_a_result_is_asked_for,
    a_buffer_goes_together_with_a_time_limit,
    map_and_an_immediate_shutdown_do_not_hang,
    a_finished_task_keeps_no_argument_alive,
    a_discarded_future_keeps_no_argument_alive,
    zero_workers_are_refused,
    too_many_workers_are_refused,
    a_map_keeps_no_result_it_handed_out,
    an_error_without_content_is_still_an_error,
}

/// test_submit
fn submit_gives_the_value<E: Backend>() {
    let pool = E::with_workers(2);
    assert_eq!(pool.submit(power, (2, 8)).result().unwrap(), 256);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Arguments {
    itself: Option<Box<Self>>,
    function: BTreeMap<String, Vec<i128>>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Kind {
    Unit,
    Tuple(char, ()),
    Named { flag: bool },
}

/// test_submit_keyword (calls of a wrong shape do not compile: `tests/ui/wrong_call.rs`)
fn arguments_of_every_shape_pass_through<E: Backend>() {
    let pool = E::with_workers(2);
    let leaf = Arguments {
        itself: None,
        function: BTreeMap::from([("fn".to_owned(), vec![i128::MIN, 0, i128::MAX])]),
        kind: Kind::Tuple('ß', ()),
    };
    let tree = Arguments {
        itself: Some(Box::new(leaf)),
        function: BTreeMap::new(),
        kind: Kind::Named { flag: true },
    };
    assert_eq!(pool.submit(|arg: Arguments| arg, tree.clone()).result().unwrap(), tree);
    assert_eq!(pool.submit(|arg: Kind| arg, Kind::Unit).result().unwrap(), Kind::Unit);
    pool.submit(|()| (), ()).result().unwrap();
    let (text, float) =
        pool.submit(|(s, f): (String, f64)| (s + "!", -f), ("a".into(), 1.5)).result().unwrap();
    assert_eq!((text.as_str(), float), ("a!", -1.5));
    let scaled = pool.submit_with(vec![1_u8, 2], |context: &Vec<u8>, index: usize| context[index], 1);
    assert_eq!(scaled.result().unwrap(), 2);
}

/// test_map, test_map over two iterables
fn map_equals_the_map_of_an_iterator<E: Backend>() {
    let pool = E::with_workers(2);
    let pairs = || (0..10).zip((0..10).rev());
    let expected: Vec<u64> = pairs().map(power).collect();
    let mapped: Result<Vec<u64>, _> = pool.map(power, pairs()).collect();
    assert_eq!(mapped.unwrap(), expected);
    for size in [1, 3, 10, 1_000] {
        let mapped: Result<Vec<u64>, _> = pool.options().chunk_size(size).map(power, pairs()).collect();
        assert_eq!(mapped.unwrap(), expected, "chunks of {size}");
    }
    let context: Result<Vec<u64>, _> =
        pool.map_with(3, |base: &u64, exponent| base.pow(exponent), 0..5).collect();
    assert_eq!(context.unwrap(), [1, 3, 9, 27, 81]);
}

fn divide((a, b): (u64, u64)) -> u64 {
    a / b
}

/// The third of six fails.
fn check_failing_item(mut map: impl Iterator<Item = Result<u64, TaskError>>) {
    assert_eq!(map.next().unwrap().unwrap(), 12);
    assert_eq!(map.next().unwrap().unwrap(), 6);
    assert!(panic_message(&map.next().unwrap()).contains("divide by zero"));
    assert_eq!(map.by_ref().collect::<Result<Vec<_>, _>>().unwrap(), [4, 3, 2]);
    for _ in 0..3 {
        assert!(map.next().is_none(), "exhausted for good");
    }
}

const DIVISORS: [u64; 6] = [1, 2, 0, 3, 4, 5];

/// test_map_exception
fn a_failing_item_of_a_map_fails_alone<E: Backend>() {
    let pool = E::with_workers(2);
    check_failing_item(pool.map(divide, DIVISORS.map(|n| (12, n))));
}

/// test_map_exception with chunks
fn a_failing_item_in_a_chunk_fails_alone<E: Backend>() {
    let pool = E::with_workers(2);
    check_failing_item(pool.options().chunk_size(3).map(divide, DIVISORS.map(|n| (12, n))));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct TimeoutError;

/// test_map_timeout_from_callable
fn a_task_that_speaks_of_a_time_out_is_an_ordinary_failure<E: Backend>() {
    fn task(n: u64) -> Result<u64, TimeoutError> {
        match n {
            1 => Err(TimeoutError),
            2 => panic!("TimeoutError"),
            _ => Ok(n),
        }
    }
    let pool = E::with_workers(2);
    let patient = pool.options().timeout(Duration::from_secs(600));
    let mut map = patient.map(task, 0..4);
    assert_eq!(map.next().unwrap().unwrap(), Ok(0));
    assert_eq!(map.next().unwrap().unwrap(), Err(TimeoutError));
    assert_eq!(panic_message(&map.next().unwrap()), "TimeoutError");
    assert_eq!(map.next().unwrap().unwrap(), Ok(3));
    assert!(map.next().is_none());
}

/// test_map_timeout, for the time limit of an item
fn an_item_over_its_time_limit_fails_alone<E: Backend>() {
    fn task(n: u64) -> u64 {
        if n == 1 { until_cancelled(n) } else { square(n) }
    }
    let pool = E::with_workers(2);
    let mut map = pool.options().timeout(Duration::from_millis(400)).map(task, 0..4);
    assert_eq!(map.next().unwrap().unwrap(), 0);
    assert!(matches!(map.next().unwrap(), Err(TaskError::TimedOut)));
    assert_eq!(map.by_ref().collect::<Result<Vec<_>, _>>().unwrap(), [4, 9]);
    assert!(map.next().is_none());
}

/// test_map_timeout
fn a_map_past_its_deadline_yields_time_outs_and_ends<E: Backend>() {
    let pool = E::with_workers(1);
    let in_time = pool.options().deadline(soon() + Duration::from_secs(600)).map(square, 0..3);
    assert_eq!(in_time.collect::<Result<Vec<_>, _>>().unwrap(), [0, 1, 4]);

    let (mut turnstile, journal) = (Turnstile::new(), Journal::new());
    occupy(&pool, 1, &turnstile);
    let mut late = pool
        .options()
        .deadline(soon())
        .map(|ticket: String| note(&ticket, "ran"), [journal.ticket(), journal.ticket()]);
    assert!(matches!(late.next().unwrap(), Err(TaskError::TimedOut)));
    assert!(matches!(late.next().unwrap(), Err(TaskError::TimedOut)));
    assert!(late.next().is_none());
    turnstile.open();
    pool.shutdown();
    assert!(journal.lines().is_empty(), "what had not started by the deadline never runs");
}

fn check_dropped_map<E: Backend>(chunk_size: Option<usize>) {
    let pool = E::with_workers(1);
    let (mut turnstile, journal, tally) = (Turnstile::new(), Journal::new(), Tally::shared());
    occupy(&pool, 1, &turnstile);
    let options = pool.options();
    let options = if let Some(size) = chunk_size { options.chunk_size(size) } else { options };
    let taken = Arc::new(AtomicUsize::new(0));
    let items = {
        let (taken, tally, journal) = (Arc::clone(&taken), tally.clone(), journal.ticket());
        (0..100).map(move |_| {
            taken.fetch_add(1, Ordering::Relaxed);
            (tally.probe(), journal.clone())
        })
    };
    let map = options.map(|(_probe, journal): (Probe, String)| note(&journal, "ran"), items);
    let taken_before = taken.load(Ordering::Relaxed);
    assert!(taken_before > 0);
    drop(map);
    turnstile.open();
    let report = pool.shutdown();
    assert!(report.is_complete(), "{report}");
    assert!(journal.lines().is_empty(), "what had not started never runs");
    assert_eq!(taken.load(Ordering::Relaxed), taken_before);
    assert_eq!(pool.stats().cancelled, taken_before.div_ceil(chunk_size.unwrap_or(1)) as u64);
    tally.assert_balanced();
}

/// test_map_close
fn dropping_a_map_cancels_what_has_not_started<E: Backend>() {
    check_dropped_map::<E>(None);
}

/// test_map_close with chunks
fn dropping_a_map_of_chunks_cancels_what_has_not_started<E: Backend>() {
    check_dropped_map::<E>(Some(7));
}

/// test_map_buffersize_value_validation, test_pool.test_map_buffersize (test_map_buffersize_type_validation is the
/// compiler's)
fn buffer_and_chunk_sizes_of_zero_are_refused<E: Backend>() {
    let pool = E::with_workers(1);
    assert_eq!(refusal(|| pool.options().buffer_size(0)), "buffer_size must be at least 1, got 0");
    assert_eq!(refusal(|| pool.options().chunk_size(0)), "chunk_size must be at least 1, got 0");
}

/// test_map_buffersize
fn a_buffer_of_any_size_changes_no_result<E: Backend>() {
    let pool = E::with_workers(2);
    for size in [1, 2, 10, 20] {
        let mapped: Result<Vec<u64>, _> = pool.options().buffer_size(size).map(square, 0..10).collect();
        assert_eq!(mapped.unwrap(), (0..10).map(square).collect::<Vec<_>>(), "a buffer of {size}");
    }
}

/// test_map_buffersize_on_multiple_iterables
fn a_buffer_of_any_size_changes_no_result_of_two_inputs<E: Backend>() {
    let pool = E::with_workers(2);
    let pairs = || (0..10).zip(0..10);
    for size in [1, 2, 10, 20] {
        let mapped: Result<Vec<u64>, _> = pool.options().buffer_size(size).map(power, pairs()).collect();
        assert_eq!(mapped.unwrap(), pairs().map(power).collect::<Vec<_>>(), "a buffer of {size}");
    }
}

/// test_map_buffersize_on_infinite_iterable
fn an_endless_input_is_mapped_lazily<E: Backend>() {
    let pool = E::with_workers(2);
    let few: Result<Vec<u64>, _> = pool.options().buffer_size(2).map(square, 0..).take(4).collect();
    assert_eq!(few.unwrap(), [0, 1, 4, 9]);
    let without: Result<Vec<u64>, _> = pool.map(square, 0..).take(4).collect();
    assert_eq!(without.unwrap(), [0, 1, 4, 9]);
}

/// test_map_buffersize_on_multiple_infinite_iterables
fn two_endless_inputs_are_mapped_lazily<E: Backend>() {
    let pool = E::with_workers(2);
    let pairs = (0..).zip(std::iter::repeat(2));
    let few: Result<Vec<u64>, _> = pool.options().buffer_size(2).map(power, pairs).take(4).collect();
    assert_eq!(few.unwrap(), [0, 1, 4, 9]);
}

/// test_map_buffersize_on_empty_iterable
fn an_empty_input_ends_at_once<E: Backend>() {
    let pool = E::with_workers(2);
    let mut none = pool.options().buffer_size(2).map(square, 0..0);
    assert_eq!(none.size_hint(), (0, Some(0)));
    assert!(none.next().is_none());
    assert!(none.next().is_none());
    assert!(pool.map(square, []).next().is_none());
    assert_eq!(pool.stats().submitted, 0);
}

/// test_map_buffersize_without_iterable
fn no_input_at_all_ends_at_once<E: Backend>() {
    let pool = E::with_workers(2);
    assert!(pool.options().buffer_size(2).map(|()| 1_u8, std::iter::empty()).next().is_none());
    assert!(pool.options().unordered().map(|()| 1_u8, None).next().is_none());
}

/// test_map_buffersize_when_buffer_is_full, test_pool.test_map_buffersize
fn a_buffer_takes_exactly_its_size_before_a_result_is_asked_for<E: Backend>() {
    const SIZE: usize = 3;
    let pool = E::with_workers(2);
    let (journal, taken) = (Journal::new(), Arc::new(AtomicUsize::new(0)));
    let items = {
        let (ticket, taken) = (journal.ticket(), Arc::clone(&taken));
        std::iter::repeat_with(move || {
            taken.fetch_add(1, Ordering::Relaxed);
            ticket.clone()
        })
    };
    let mut map = pool.options().buffer_size(SIZE).map(|ticket: String| note(&ticket, "ran"), items);
    for yielded in 0..5 {
        assert_eq!(taken.load(Ordering::Relaxed), SIZE + yielded);
        eventually(|| journal.lines().len() == SIZE + yielded);
        map.next().unwrap().unwrap();
    }
}

/// test_pool.test_map_buffersize, which older versions refused together with a time limit
fn a_buffer_goes_together_with_a_time_limit<E: Backend>() {
    let pool = E::with_workers(2);
    let view = pool.options().buffer_size(2).timeout(Duration::from_secs(600));
    assert_eq!(view.map(square, 0..4).collect::<Result<Vec<_>, _>>().unwrap(), [0, 1, 4, 9]);
}

/// test_shutdown_race_issue12456
fn map_and_an_immediate_shutdown_do_not_hang<E: Backend>() {
    for _ in 0..5 {
        let pool = E::with_workers(5);
        let map = pool.map(square, 0..10);
        pool.shutdown();
        assert_eq!(map.collect::<Result<Vec<_>, _>>().unwrap(), (0..10).map(square).collect::<Vec<_>>());
    }
    // What a map takes from its input after the shutdown is refused, and the map still ends.
    let pool = E::with_workers(1);
    let map = pool.options().buffer_size(2).map(square, 0..100);
    pool.shutdown();
    let results: Vec<_> = map.collect();
    assert_eq!(results.len(), 100);
    assert!(results[..2].iter().all(Result::is_ok), "{results:?}");
    assert!(results[2..].iter().all(|result| matches!(result, Err(TaskError::ShutDown))), "{results:?}");
}

/// test_no_stale_references
fn a_finished_task_keeps_no_argument_alive<E: Backend>() {
    let (pool, tally) = (E::with_workers(1), Tally::shared());
    let future = pool.submit(|probe: Probe| probe.number, tally.carrying(7));
    future.wait();
    assert_eq!(tally.alive(), 0, "neither the pool nor the future holds the argument");
    assert_eq!(future.result().unwrap(), 7);
    tally.assert_balanced();
}

/// test_no_stale_references, with nobody asking
fn a_discarded_future_keeps_no_argument_alive<E: Backend>() {
    let (pool, tally) = (E::with_workers(1), Tally::shared());
    drop(pool.submit(|probe: Probe| probe, tally.probe()));
    eventually(|| tally.alive() == 0 && pool.stats().finished == 1);
    tally.assert_balanced();
}

/// test_max_workers_negative
fn zero_workers_are_refused<E: Backend>() {
    let error = E::try_with_workers(0).err().unwrap();
    assert_eq!(error.to_string(), "max_workers must be at least 1, got 0");
}

/// test_process_pool.test_max_workers_too_large, for the limits that are ours
fn too_many_workers_are_refused<E: Backend>() {
    let error = E::try_with_workers(usize::MAX).err().unwrap().to_string();
    assert!(error.starts_with("max_workers must be at most "), "{error}");
}

/// test_free_reference
fn a_map_keeps_no_result_it_handed_out<E: Backend>() {
    let pool = E::with_workers(2);
    let tallies: Vec<Tally> = (0..6).map(|_| Tally::shared()).collect();
    for chunk_size in [1, 3] {
        let items: Vec<Probe> = tallies.iter().map(Tally::probe).collect();
        let map = pool.options().chunk_size(chunk_size).map(|probe: Probe| probe, items);
        for (result, tally) in map.zip(&tallies) {
            assert!(tally.alive() > 0);
            drop(result.unwrap());
            assert_eq!(tally.alive(), 0);
        }
    }
    tallies.iter().for_each(Tally::assert_balanced);
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Falsey;

/// test_swallows_falsey_exceptions
fn an_error_without_content_is_still_an_error<E: Backend>() {
    let pool = E::with_workers(1);
    assert_eq!(pool.submit(|()| Err::<(), _>(Falsey), ()).result().unwrap(), Err(Falsey));
    assert_eq!(panic_message(&pool.submit(fail, String::new()).result()), "");
    let nothing = pool.submit(|()| -> u8 { std::panic::panic_any(()) }, ()).result();
    assert!(nothing.unwrap_err().is_panic());
    let callbacks = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&callbacks);
    let future = pool.submit(fail, String::new());
    future.add_done_callback(move |outcome| {
        seen.fetch_add(usize::from(outcome.is_err()), Ordering::Relaxed);
    });
    future.wait();
    assert_eq!(callbacks.load(Ordering::Relaxed), 1);
}
