//! Large messages, those that are too large, and deaths in the middle of one.

use std::time::Duration;

use concurrent_futures::{Executor, ProcessPoolExecutor, TaskError};
use nix::sys::signal::Signal;

use crate::procfs::{state_of, workers};
use crate::scene::{Runs, assert_full, death, isolated, kill, note, spin};
use crate::support::{Random, eventually};

const LARGE: usize = 64 << 20;

fn pattern(length: usize, seed: u8) -> String {
    // ASCII: one byte each, and quick to encode in a debug build.
    String::from(char::from(b'a' + seed % 26)).repeat(length)
}

#[test]
fn sixty_four_megabytes_travel_both_ways() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let futures: Vec<_> = (0..2)
            .map(|seed| {
                pool.submit(
                    |text: String| {
                        assert!(text.len() == LARGE);
                        text
                    },
                    pattern(LARGE, seed),
                )
            })
            .collect();
        let small: Vec<_> = (0..100).map(|n| pool.submit(|n: u32| n, n)).collect();
        for (seed, future) in (0..).zip(futures) {
            assert!(future.result().unwrap() == pattern(LARGE, seed));
        }
        for (n, future) in (0..).zip(small) {
            assert_eq!(future.result().unwrap(), n);
        }
        assert_full(&pool, 2);
    });
}

#[test]
fn a_message_over_the_limit_is_refused_both_ways() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(1).message_limit(10_000).build().unwrap();
        let pid = pool.submit(|()| std::process::id(), ()).result().unwrap();
        let runs = Runs::new();
        for size in [9_000, 10_001, 200_000, 5_000_000] {
            let sent = pool.submit(
                |(text, runs): (String, String)| {
                    note(&runs, 1);
                    text.len()
                },
                (pattern(size, 0), runs.ticket()),
            );
            let received = pool.submit(|size: usize| pattern(size, 0), size);
            if size == 9_000 {
                assert_eq!(sent.result().unwrap(), size);
                assert_eq!(received.result().unwrap().len(), size);
                continue;
            }
            for outcome in [sent.result().map(|_| ()), received.result().map(|_| ())] {
                match outcome {
                    Err(TaskError::TooLarge { size: told, limit, .. }) => {
                        assert_eq!(limit, 10_000);
                        assert!((size..size + 200).contains(&usize::try_from(told).unwrap()), "{told}");
                    }
                    other => panic!("{size}: {other:?}"),
                }
            }
        }
        runs.assert_once([1]);
        let error = pool.submit(|()| -> u8 { panic!("{}", pattern(1_000_000, 3)) }, ()).result();
        match error {
            Err(TaskError::Panicked(_) | TaskError::TooLarge { .. } | TaskError::Encode(_)) => {}
            other => panic!("a long panic: {other:?}"),
        }
        assert_eq!(pool.submit(|()| std::process::id(), ()).result().unwrap(), pid, "no worker was lost");
        assert_full(&pool, 1);
    });
}

#[test]
fn an_item_over_the_limit_costs_no_other_item() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(2).message_limit(10_000).build().unwrap();
        let items = (0..20).map(|n| pattern(if n == 7 { 20_000 } else { 5_000 }, n));
        for (n, result) in pool.options().chunk_size(10).map(|text: String| text, items).enumerate() {
            match result {
                Err(TaskError::TooLarge { .. }) if n == 7 => {}
                Ok(text) if n != 7 => assert_eq!(text.len(), 5_000),
                other => panic!("item {n}: {other:?}"),
            }
        }
        assert_full(&pool, 2);
    });
}

/// The worker does not read, so most of the argument is still here when it is killed. The task has not begun.
#[test]
fn a_worker_killed_while_it_is_sent_a_large_argument() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        for round in 0..3 {
            let pid = pool.submit(|()| std::process::id(), ()).result().unwrap();
            kill(pid, Signal::SIGSTOP);
            eventually(|| state_of(pid) == Some('T'));
            let length = pool.submit(
                |(text, runs, round): (String, String, u64)| {
                    note(&runs, round);
                    text.len()
                },
                (pattern(LARGE / 4, 1), runs.ticket(), round),
            );
            eventually(|| pool.workers().first().is_some_and(|worker| worker.is_busy));
            kill(pid, Signal::SIGKILL);
            assert_eq!(length.result().unwrap(), LARGE / 4);
        }
        runs.assert_once(0..3);
        assert_full(&pool, 1);
    });
}

/// At random instants: while it is read, decoded, worked on, encoded, and written.
#[test]
fn workers_killed_at_random_among_large_messages() {
    isolated(|| {
        let mut random = Random::seeded("large");
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        let size = 4 << 20;
        let (mut well, mut ill) = (0, 0);
        for round in 0..40 {
            let seed = u8::try_from(round % 26).unwrap();
            let echo = pool.submit(
                |(runs, round, text): (String, u64, String)| {
                    note(&runs, round);
                    text
                },
                (runs.ticket(), round, pattern(size, seed)),
            );
            spin(Duration::from_micros(random.below(12_000)));
            workers().into_iter().for_each(|pid| kill(pid, Signal::SIGKILL));
            match echo.result() {
                Ok(text) => {
                    well += 1;
                    assert!(text == pattern(size, seed));
                    assert_eq!(runs.of(round).len(), 1);
                }
                outcome => {
                    ill += 1;
                    assert_eq!(death(outcome.map(|_| ())).signal, Some(9));
                }
            }
        }
        println!("{well} well, {ill} died");
        runs.assert_none_twice();
        assert_full(&pool, 1);
    });
}
