//! Large messages, those that are too large, and deaths in the middle of one.

use std::time::Duration;

use concurrent_futures::{Executor, ProcessPoolExecutor, TaskError};
use nix::sys::signal::Signal;

use crate::procfs::{state_of, workers};
use crate::scene::{Runs, assert_full, death, isolated, kill, note, spin};
use crate::support::{Random, Turnstile, eventually, pass};

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

/// Bytes that tell where they stand and whose they are.
fn marked(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// How many mappings of memory for large messages this process has.
fn bulk_mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().matches("worker-bulk").count()
}

/// Around the borders of every way a message can take, growing and shrinking, on one worker.
#[test]
fn messages_of_every_size_keep_every_byte() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let sizes =
            [0, 1, 8_000, 8_191, 8_192, 8_193, 65_535, 65_536, 70_000, 1 << 20, 200_000, 3 << 20, 9_000];
        for (seed, size) in (0..).zip(sizes.into_iter().chain(sizes)) {
            let bytes = marked(size, seed);
            assert!(pool.submit(|bytes: Vec<u8>| bytes, bytes.clone()).result().unwrap() == bytes, "{size}");
            // By serde, and two of them at once: one by memory, one by the socket.
            let nested = (seed, Some(bytes.clone()));
            let echo = |pair: (u64, Option<Vec<u8>>)| pair;
            let (first, second) = (pool.submit(echo, nested.clone()), pool.submit(echo, nested.clone()));
            assert!(first.result().unwrap() == nested && second.result().unwrap() == nested, "{size}");
        }
        assert!(bulk_mappings() > 0);
        assert_full(&pool, 1);
    });
}

/// The arguments of a chunk lie in memory together; one of the items is stuck, so the rest of its chunk is taken back, and the
/// memory used again, while the worker has read only some of it.
#[test]
fn large_items_of_a_chunk_behind_a_stuck_one_run_elsewhere() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let mut turnstile = Turnstile::new();
        let items: Vec<_> = (0..24_u64).map(|n| (turnstile.ticket(), n, marked(20_000, n))).collect();
        let mut results = pool.options().chunk_size(6).buffer_size(24).unordered().map(
            |(ticket, n, bytes): (String, u64, Vec<u8>)| {
                if n == 1 {
                    pass(&ticket);
                }
                (n, bytes)
            },
            items,
        );
        let mut seen = Vec::new();
        // All but the chunk of the stuck one, which is answered as a whole.
        for result in results.by_ref().take(18) {
            let (n, bytes) = result.unwrap();
            assert!(bytes == marked(20_000, n), "{n}");
            seen.push(n);
        }
        turnstile.open();
        for result in results {
            let (n, bytes) = result.unwrap();
            assert!(bytes == marked(20_000, n), "{n}");
            seen.push(n);
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..24));
        assert_full(&pool, 2);
    });
}

/// A worker may write what it likes into that memory, also while its result is being read there: what arrives is some bytes
/// or an error, in this task alone.
#[test]
fn a_worker_that_scribbles_in_its_memory_spoils_its_own_results() {
    isolated(|| {
        fn scribble(bytes: Vec<u8>) -> (u64, String, Vec<u8>) {
            static SCRIBBLES: std::sync::Once = std::sync::Once::new();
            SCRIBBLES.call_once(|| {
                drop(std::thread::spawn(|| {
                    for round in 0_u64.. {
                        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                        for line in maps.lines().filter(|line| line.contains("worker-bulk")) {
                            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
                            let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
                            for at in (start..end).step_by(64) {
                                let place = std::ptr::with_exposed_provenance_mut::<u64>(at);
                                // SAFETY: mapped when we looked; if it is no more, this process ends, as is fair.
                                unsafe { place.write_volatile(round.wrapping_mul(0x9e37_79b9_7f4a_7c15)) };
                            }
                        }
                    }
                }));
            });
            (7, "text".repeat(20_000), bytes)
        }
        let pool = ProcessPoolExecutor::new(1).unwrap();
        for round in 0..60 {
            match pool.submit(scribble, marked(100_000, round)).result() {
                Ok((_, text, bytes)) => assert!(text.len() + bytes.len() < 10_000_000),
                Err(TaskError::Decode(_) | TaskError::WorkerDied(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        pool.kill_workers();
    });
}

/// The memory is given up by a worker that has nothing to do, and made again; there is none where memory is limited.
#[test]
fn the_memory_of_large_messages_goes_with_the_work() {
    isolated(|| {
        let echo = |bytes: Vec<u8>| bytes;
        let pool = ProcessPoolExecutor::new(1).unwrap();
        for round in 0..2 {
            for seed in 0..3 {
                let bytes = marked(500_000, round + seed);
                assert!(pool.submit(echo, bytes.clone()).result().unwrap() == bytes);
            }
            assert_eq!(bulk_mappings(), 2, "one each way");
            eventually(|| bulk_mappings() == 0);
        }
        drop(pool);
        let limited = ProcessPoolExecutor::builder().max_workers(1).memory_limit(1 << 30).build().unwrap();
        let bytes = marked(500_000, 9);
        assert!(limited.submit(echo, bytes.clone()).result().unwrap() == bytes);
        assert_eq!(bulk_mappings(), 0);
    });
}

/// One huge message among many that are merely large does not keep its memory for as long as they come.
#[test]
fn the_memory_of_a_huge_message_goes_while_large_ones_come() {
    isolated(|| {
        fn kept() -> usize {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let size = |line: &str| {
                let (start, end) = line.split(' ').next()?.split_once('-')?;
                Some(usize::from_str_radix(end, 16).ok()? - usize::from_str_radix(start, 16).ok()?)
            };
            maps.lines().filter(|line| line.contains("worker-bulk")).filter_map(size).sum()
        }
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let echo = |seed: u64, length: usize| {
            let bytes = marked(length, seed);
            assert!(pool.submit(|bytes: Vec<u8>| bytes, bytes.clone()).result().unwrap() == bytes);
        };
        (0..3).for_each(|seed| echo(seed, 4 << 20));
        assert!(kept() >= 8 << 20);
        // As long as it takes: a second or two.
        (0..).take_while(|_| kept() >= 1 << 20).for_each(|seed| echo(seed, 20_000));
        (0..3).for_each(|seed| echo(seed, 20_000));
        assert!(bulk_mappings() > 0, "they still go by memory");
        (0..3).for_each(|seed| echo(seed, 4 << 20));
        assert_full(&pool, 1);
    });
}
