//! `scope.map`: every item once, each result in its place, and what panics leave behind (S6, S14).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use concurrent_futures::ThreadPoolExecutor;

use crate::support::{Gate, Probe, Tally, Watchdog};

#[test]
fn results_are_in_order_and_every_item_runs_once() {
    let _watchdog = Watchdog::start();
    for workers in [1, 2, 3, 8, 64] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        for length in [0, 1, 2, 3, 63, 64, 1_000, 30_000] {
            let runs: Vec<AtomicU32> = (0..length).map(|_| AtomicU32::new(0)).collect();
            let items: Vec<usize> = (0..length).collect();
            let work = |item: &usize| {
                runs[*item].fetch_add(1, Ordering::Relaxed);
                (0..*item % 200).fold(*item, |sum, n| std::hint::black_box(sum + n) - n)
            };
            let outside = pool.scope(|s| s.map(&items, work));
            assert_eq!(outside, items, "{workers} workers");
            let inside = pool.join(|| pool.scope(|s| s.map(&items, work)), || ()).0;
            assert_eq!(inside, items, "{workers} workers");
            assert!(
                runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 2),
                "{workers} workers, {length} items"
            );
        }
    }
}

/// Slow items are shared among all workers, few as they may be.
#[test]
fn the_last_items_reach_every_worker() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(4).unwrap();
    let together = std::sync::Barrier::new(4);
    // Each of the four waits for the others: one worker alone would wait for ever. The first ones tell that items take long.
    let items: Vec<u32> = (0..12).collect();
    let results = pool.scope(|s| {
        s.map(&items, |item| {
            if *item < 8 {
                let start = std::time::Instant::now();
                while start.elapsed().as_micros() < 50 {}
            } else {
                together.wait();
            }
            *item
        })
    });
    assert_eq!(results, items);
}

/// Results may borrow from the items, and own what must be dropped.
#[test]
fn results_may_borrow_and_own() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let words: Vec<String> = (0..5_000).map(|n| format!("word {n}")).collect();
    let halves = pool.scope(|s| s.map(&words, |word| word.split_once(' ').unwrap()));
    assert!(halves.iter().enumerate().all(|(n, (word, number))| *word == "word" && *number == n.to_string()));
    let nothing = pool.scope(|s| s.map(&[(); 10_000], |()| ()));
    assert_eq!(nothing.len(), 10_000);
    let tally = Tally::local();
    drop(pool.scope(|s| s.map(&words, |_| tally.probe())));
    tally.assert_balanced();
}

/// A panic comes out with its payload; every result there is was dropped, once; the pool goes on.
#[test]
fn a_panic_drops_every_result_that_is_there() {
    let _watchdog = Watchdog::start();
    for workers in [1, 2, 4] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        for bad in [0, 1, 500, 2_000, 9_999] {
            let tally = Tally::local();
            drop(tally.probe()); // where the first item panics there is no other
            let items: Vec<usize> = (0..10_000).collect();
            let runs = AtomicUsize::new(0);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.scope(|s| {
                    s.map(&items, |item| -> Probe {
                        runs.fetch_add(1, Ordering::Relaxed);
                        if *item == bad {
                            std::panic::panic_any(bad);
                        }
                        tally.probe()
                    })
                })
            }));
            assert_eq!(caught.map(drop).unwrap_err().downcast_ref(), Some(&bad), "{workers} workers");
            tally.assert_balanced();
            assert!(runs.into_inner() > 0);
        }
        assert_eq!(pool.submit(|n: u32| n, 7).result().unwrap(), 7);
    }
}

/// A result whose destructor panics while others are dropped after a panic: the first payload counts.
#[test]
fn a_destructor_that_panics_after_a_panic_is_swallowed() {
    struct Bomb<'a>(&'a AtomicUsize);
    impl Drop for Bomb<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("in a destructor");
        }
    }
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let (made, dropped) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let items: Vec<usize> = (0..100).collect();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let results = pool.scope(|s| {
            s.map(&items, |item| {
                assert!(*item < 50, "no further");
                made.fetch_add(1, Ordering::Relaxed);
                Bomb(&dropped)
            })
        });
        std::mem::forget(results);
    }));
    assert!(caught.unwrap_err().downcast_ref::<&str>().is_some_and(|text| *text == "no further"));
    assert_eq!(dropped.into_inner(), made.into_inner());
}

/// Maps inside of maps, and several callers at once.
#[test]
fn maps_nest_and_run_side_by_side() {
    let _watchdog = Watchdog::start();
    for workers in [1, 2, 8] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let (rows, columns): (Vec<u64>, Vec<u64>) = ((0..100).collect(), (0..300).collect());
        let table = || {
            pool.scope(|s| {
                s.map(&rows, |row| {
                    let products = pool.scope(|s| s.map(&columns, |column| row * column));
                    products.into_iter().sum::<u64>()
                })
            })
        };
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| assert_eq!(table().into_iter().sum::<u64>(), 4_950 * 44_850));
            }
        });
    }
}

/// A running task finishes its map though the pool is being shut down; a caller outside is told.
#[test]
fn a_shutdown_does_not_stop_a_map_inside() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let (gate, inside, seen) = (Gate::new(), pool.clone(), std::sync::Arc::new(Mutex::new(Vec::new())));
    let (passes, sees) = (gate.clone(), std::sync::Arc::clone(&seen));
    let running = pool.spawn(move || {
        let items: Vec<u32> = (0..1_000).collect();
        passes.pass();
        let mapped = inside.scope(|s| s.map(&items, |n| n + 1));
        sees.lock().unwrap().extend(mapped);
    });
    gate.wait_for_arrivals(1);
    pool.shutdown_background();
    gate.open();
    running.result().unwrap();
    assert!(seen.lock().unwrap().iter().copied().eq(1..=1_000));
    let outside = catch_unwind(AssertUnwindSafe(|| pool.scope(|s| s.map(&[1], |n| n + 1))));
    assert!(outside.unwrap_err().downcast::<String>().unwrap().contains("shut down"));
}
