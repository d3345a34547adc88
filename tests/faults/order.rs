//! Long tasks among short ones, and workers that retire in between.

use std::collections::BTreeMap;
use std::time::Duration;

use concurrent_futures::{Executor, ProcessPoolExecutor};

use crate::scene::{Runs, assert_full, isolated, note, spin};
use crate::support::{Turnstile, pass};

/// One function, quick but for one task, which ends only after all the others have: none of them may wait behind it.
#[test]
fn short_tasks_do_not_wait_behind_a_long_one() {
    isolated(|| {
        fn task((ticket, runs, n): (String, String, u64)) -> u64 {
            note(&runs, n);
            if n == 100 {
                pass(&ticket);
            }
            n
        }
        for workers in [2, 3] {
            let pool = ProcessPoolExecutor::new(workers).unwrap();
            let runs = Runs::new();
            let mut turnstile = Turnstile::new();
            let mut futures: Vec<_> =
                (0..400).map(|n| pool.submit(task, (turnstile.ticket(), runs.ticket(), n))).collect();
            let long = futures.remove(100);
            for future in futures {
                future.result().unwrap();
            }
            assert!(!long.is_done());
            turnstile.open();
            assert_eq!(long.result().unwrap(), 100);
            runs.assert_once(0..400);
            assert_full(&pool, workers);
        }
    });
}

/// The same in chunks, however large.
#[test]
fn items_do_not_wait_behind_a_long_one_of_another_chunk() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let items = (0..200).map(|n| (turnstile.ticket(), runs.ticket(), n)).collect::<Vec<_>>();
        let mut results = pool.options().chunk_size(10).buffer_size(200).unordered().map(
            |(ticket, runs, n): (String, String, u64)| {
                note(&runs, n);
                if n == 55 {
                    pass(&ticket);
                }
                n
            },
            items,
        );
        let mut seen: Vec<u64> = results.by_ref().take(190).map(Result::unwrap).collect();
        assert!(!seen.contains(&55));
        turnstile.open();
        seen.extend(results.map(Result::unwrap));
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<_>>());
        runs.assert_once(0..200);
        assert_full(&pool, 2);
    });
}

/// A thousand of a millisecond, and one that ends only when all of them have: whoever holds the long one must give away
/// what waits behind it, and the other worker takes it all in the order it was submitted.
#[test]
fn what_waits_behind_a_long_task_starts_elsewhere_in_its_order() {
    isolated(|| {
        fn task((ticket, runs, n): (String, String, u64)) -> u64 {
            note(&runs, n);
            if n == 17 {
                pass(&ticket)
            } else {
                spin(Duration::from_millis(1))
            }
            n
        }
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let mut futures: Vec<_> =
            (0..1_000).map(|n| pool.submit(task, (turnstile.ticket(), runs.ticket(), n))).collect();
        let long = futures.remove(17);
        assert!(futures.into_iter().all(|future| future.result().is_ok()));
        assert!(!long.is_done());
        turnstile.open();
        long.result().unwrap();
        runs.assert_once(0..1_000);
        let starts: Vec<u64> = runs.all().into_iter().map(|(n, _)| n).collect();
        let late = |(place, n): (usize, &u64)| place.abs_diff(usize::try_from(*n).unwrap());
        let worst = starts.iter().enumerate().map(late).max().unwrap();
        assert!(worst <= 300, "one started {worst} places from its own");
        assert_full(&pool, 2);
    });
}

#[test]
fn workers_retire_after_their_share_and_lose_nothing() {
    isolated(|| {
        for chunk_size in [1, 7, 100] {
            let pool =
                ProcessPoolExecutor::builder().max_workers(2).max_tasks_per_worker(10).build().unwrap();
            let runs = Runs::new();
            let submitted: Vec<_> = (1000..1200)
                .map(|n| {
                    pool.submit(
                        |(runs, n): (String, u64)| {
                            note(&runs, n);
                            n
                        },
                        (runs.ticket(), n),
                    )
                })
                .collect();
            let mapped = pool.options().chunk_size(chunk_size).map(
                |(runs, n): (String, u64)| {
                    note(&runs, n);
                    spin(Duration::from_micros(n % 50));
                    n
                },
                (0..200).map(|n| (runs.ticket(), n)),
            );
            assert_eq!(mapped.map(Result::unwrap).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
            for (n, future) in (1000..).zip(submitted) {
                assert_eq!(future.result().unwrap(), n);
            }
            runs.assert_once((0..200).chain(1000..1200));
            let mut shares = BTreeMap::<u32, usize>::new();
            runs.all().into_iter().for_each(|(_, pid)| *shares.entry(pid).or_default() += 1);
            assert!(shares.values().all(|share| *share <= 10), "{shares:?}");
            assert!(shares.len() >= 40);
            assert_full(&pool, 2);
        }
    });
}

/// Idle workers go, and come back for more.
#[test]
fn workers_that_go_when_idle_lose_nothing() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder()
            .max_workers(2)
            .keep_alive(Duration::from_millis(1))
            .build()
            .unwrap();
        let runs = Runs::new();
        for n in 0..60 {
            let future = pool.submit(
                |(runs, n): (String, u64)| {
                    note(&runs, n);
                    n
                },
                (runs.ticket(), n),
            );
            assert_eq!(future.result().unwrap(), n);
            spin(Duration::from_micros(n * 40));
        }
        runs.assert_once(0..60);
    });
}
