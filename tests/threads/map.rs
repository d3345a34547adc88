//! `Map`: its window, its order, and what becomes of items nobody asks for (S13, S14).

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use concurrent_futures::{
    CallOptions, Callable, Chunk, Executor, Payload, Promise, Shutdown, ShutdownReport, TaskError,
    TaskFuture, ThreadPoolExecutor,
};

use crate::support::{Gate, Probe, Tally, Watchdog, in_own_process};

const LIMIT: Duration = Duration::from_secs(40);

/// An endless input that counts how far it was read.
fn counted(taken: &Arc<AtomicUsize>) -> impl Iterator<Item = usize> + use<> {
    let taken = Arc::clone(taken);
    std::iter::repeat_with(move || taken.fetch_add(1, Ordering::SeqCst))
}

/// S13: exactly eight are taken, and then one for each result.
#[test]
fn the_window_is_exact() {
    let _watchdog = Watchdog::start();
    for (workers, chunk, unordered) in [
        (1, 1, false),
        (2, 1, false),
        (2, 3, false),
        (2, 100, false),
        (16, 1, false),
        (2, 1, true),
        (2, 3, true),
    ] {
        let what = format!("{workers} workers, chunks of {chunk}, unordered {unordered}");
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let (taken, gate) = (Arc::new(AtomicUsize::new(0)), Gate::new());
        let _opens = gate.opens_at_the_end();
        let passes = gate.clone();
        let mut options = pool.options().buffer_size(8).chunk_size(chunk);
        if unordered {
            options = options.unordered();
        }
        let mut map = options.map(
            move |n: usize| {
                passes.pass();
                n
            },
            counted(&taken),
        );
        assert_eq!(taken.load(Ordering::SeqCst), 8, "{what}");
        gate.open();
        let mut seen = BTreeSet::new();
        for yielded in 1..=100 {
            let n = map.next().unwrap().unwrap();
            assert!(seen.insert(n), "{what}: {n} twice");
            assert_eq!(taken.load(Ordering::SeqCst), yielded + 8, "{what}");
        }
        if !unordered {
            assert_eq!(seen, (0..100).collect());
        }
    }
}

/// Without a size of its own the window is bounded all the same, in chunks a worker.
#[test]
fn an_endless_input_is_read_no_further_than_the_window() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let (taken, gate) = (Arc::new(AtomicUsize::new(0)), Gate::new());
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let mut map = pool.map(
        move |n: usize| {
            passes.pass();
            n
        },
        counted(&taken),
    );
    let at_first = taken.load(Ordering::SeqCst);
    assert!((2..=64).contains(&at_first), "{at_first} taken for 2 workers");
    gate.open();
    for n in 0..10_000 {
        assert_eq!(map.next().unwrap().unwrap(), n);
    }
    let more = taken.load(Ordering::SeqCst) - 10_000;
    assert!(more <= 16 * 4_096, "{more} taken and not asked for");
}

/// Two workers whose calls all take the same time, by what they say: nothing runs but the clock of the test.
#[derive(Clone)]
struct Clocked {
    each: Duration,
    /// The sizes of the chunks it was sent.
    sizes: Arc<Mutex<Vec<usize>>>,
}

impl Clocked {
    fn new(each: Duration) -> Self {
        Self { each, sizes: Arc::default() }
    }
}

impl Executor for Clocked {
    fn submit_call<C, A, R>(&self, call: Callable<C, A, R>, arg: A, _: &CallOptions) -> TaskFuture<R>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload,
    {
        let (promise, future) = Promise::new();
        promise.complete(call.run(arg));
        future
    }

    fn submit_chunk<C, A, R>(
        &self,
        call: Callable<C, A, R>,
        args: Vec<A>,
        _: &CallOptions,
    ) -> TaskFuture<Chunk<R>>
    where
        C: Payload + Sync,
        A: Payload,
        R: Payload,
    {
        self.sizes.lock().unwrap().push(args.len());
        let run_time = self.each * u32::try_from(args.len()).unwrap();
        let (promise, future) = Promise::new();
        promise.complete(Ok(Chunk::new(call.run_chunk(args).results, run_time)));
        future
    }

    fn shutdown_with(&self, _: Shutdown) -> ShutdownReport {
        ShutdownReport::default()
    }

    fn max_workers(&self) -> usize {
        2
    }
}

/// A window of cheap items is no reason for a chunk of thousands behind it: each is at most eight times as large as one
/// that was measured.
#[test]
fn chunks_grow_by_what_was_measured() {
    let _watchdog = Watchdog::start();
    let executor = Clocked::new(Duration::from_micros(1));
    assert_eq!(executor.map(|n: u32| n, 0..1_000_000).count(), 1_000_000);
    let sizes = executor.sizes.lock().unwrap();
    assert_eq!(sizes[..8], [1; 8], "eight go out before the first comes back");
    for (sent, size) in sizes.iter().enumerate().skip(8) {
        let measured = sizes[..sent - 7].iter().max().unwrap();
        assert!(*size <= 8 * measured, "a chunk of {size} after one of {measured}: {sizes:?}");
    }
    assert_eq!(sizes.iter().max(), Some(&1_000), "a millisecond's");
}

/// What is on its way lasts longer than the consumer may have to wait for a core, and no longer if the calls are slow.
#[test]
fn the_window_follows_the_cost() {
    let _watchdog = Watchdog::start();
    for (each, most) in [(20, 32 * 50), (2_000, 16), (1_000_000, 8)] {
        let executor = Clocked::new(Duration::from_micros(each));
        let taken = Arc::new(AtomicUsize::new(0));
        let mut map = executor.map(|n: usize| n, counted(&taken));
        let mut ahead = taken.load(Ordering::SeqCst);
        assert_eq!(ahead, 8);
        for yielded in 1..=5_000 {
            map.next().unwrap().unwrap();
            ahead = ahead.max(taken.load(Ordering::SeqCst) - yielded);
        }
        assert!((most..=most + 50).contains(&ahead), "{ahead} ahead, {each} µs each");
    }
}

/// Dropping a map cancels what has not started and returns at once, whatever runs.
#[test]
fn dropping_a_map_cancels_and_returns_at_once() {
    let _watchdog = Watchdog::start();
    for unordered in [false, true] {
        let tally = Tally::local();
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let (gate, ran) = (Gate::new(), Arc::new(AtomicUsize::new(0)));
        let _opens = gate.opens_at_the_end();
        let (passes, runs) = (gate.clone(), Arc::clone(&ran));
        let mut options = pool.options().buffer_size(64).chunk_size(1);
        if unordered {
            options = options.unordered();
        }
        let probes = tally.clone();
        let map = options.map(
            move |probe: Probe| {
                runs.fetch_add(1, Ordering::SeqCst);
                passes.pass();
                probe
            },
            (0..).map(move |n| probes.carrying(n)),
        );
        gate.wait_for_arrivals(2);
        drop(map); // with both workers at the gate: returns, or the watchdog says so
        assert_eq!(ran.load(Ordering::SeqCst), 2);
        assert_eq!(tally.alive(), 2, "items that nobody will run are gone");
        gate.open();
        pool.shutdown();
        assert_eq!(ran.load(Ordering::SeqCst), 2);
        assert_eq!(pool.stats().cancelled, 62);
        tally.assert_balanced();
    }
}

/// `unordered` yields what is ready, and each result once.
#[test]
fn an_unordered_map_does_not_wait_for_the_first_item() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let work = move |n: u32| {
        if n == 0 {
            passes.pass();
        }
        n
    };
    let mut map = pool.options().unordered().chunk_size(1).map(work, 0..50);
    let mut seen: Vec<u32> = map.by_ref().take(49).map(Result::unwrap).collect();
    seen.sort_unstable();
    assert_eq!(seen, (1..50).collect::<Vec<_>>());
    assert_eq!(map.len(), 1);
    gate.open();
    assert_eq!(map.next().unwrap().unwrap(), 0);
    assert!(map.next().is_none() && map.next().is_none());
}

/// An item that panics yields its error in its place; in the chunk of others too.
#[test]
fn an_item_that_panics_fails_alone() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for chunk in [1, 7, 100] {
        let results: Vec<_> = pool
            .options()
            .chunk_size(chunk)
            .label("odd")
            .map(
                |n: u32| {
                    assert_ne!(n % 10, 3, "no {n}");
                    n
                },
                0..50,
            )
            .collect();
        for (n, result) in (0..).zip(results) {
            match result {
                Ok(value) => assert_eq!(value, n),
                Err(TaskError::Panicked(report)) => {
                    assert_eq!(n % 10, 3);
                    assert!(report.message.contains(&format!("no {n}")), "{report}");
                    assert_eq!(report.label.as_deref(), Some("odd"));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// An input that panics: the panic is the consumer's, and what was taken before it still comes out, once.
#[test]
fn an_input_that_panics_loses_no_result() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    for (chunk, unordered) in [(1, false), (1, true), (4, false), (4, true)] {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let (probes, mut next) = (tally.clone(), 0_u64);
        let input = std::iter::from_fn(move || {
            next += 1;
            assert!(next % 50 != 0, "the input at {next}");
            (next <= 200).then(|| probes.carrying(next))
        });
        let mut options = pool.options().chunk_size(chunk);
        if unordered {
            options = options.unordered();
        }
        let mut map = options.map(|probe: Probe| probe, input);
        let (mut seen, mut panics) = (Vec::new(), 0);
        loop {
            match catch_unwind(AssertUnwindSafe(|| map.next())) {
                Ok(Some(result)) => seen.push(result.unwrap().number),
                Ok(None) => break,
                Err(_) => panics += 1,
            }
        }
        if unordered {
            seen.sort_unstable();
        }
        let expected: Vec<u64> = (1..=200).filter(|n| n % 50 != 0).collect();
        assert_eq!(panics, 4, "chunks of {chunk}, unordered {unordered}");
        assert_eq!(seen, expected, "chunks of {chunk}, unordered {unordered}");
    }
    tally.assert_balanced();
}

/// An input that panics while the map is made: nothing of it is left.
#[test]
fn an_input_that_panics_at_once_leaves_nothing() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let probes = tally.clone();
    let made = catch_unwind(AssertUnwindSafe(|| {
        let input = (0..10).map(move |n| {
            assert_ne!(n, 3, "the input");
            probes.carrying(n)
        });
        pool.options().chunk_size(2).map(|probe: Probe| probe, input)
    }));
    assert!(made.is_err());
    pool.shutdown();
    tally.assert_balanced();
}

/// S4: `next()` on a worker of the same pool, the only one and one of two, nested too.
#[test]
fn a_map_may_be_consumed_on_a_worker_of_its_pool() {
    in_own_process(LIMIT, || {
        for workers in [1, 2, 4] {
            for unordered in [false, true] {
                let pool = ThreadPoolExecutor::new(workers).unwrap();
                let inside = pool.clone();
                let map = move |pool: &ThreadPoolExecutor, count: u64, f: fn(u64) -> u64| {
                    let options = pool.options();
                    let options = if unordered { options.unordered() } else { options };
                    options.map(f, 0..count).map(Result::unwrap).sum::<u64>()
                };
                let nested = {
                    let pool = pool.clone();
                    move |n: u64| map(&pool, n, |n| n * 2)
                };
                let sum = pool.spawn(move || {
                    let flat = map(&inside, 1_000, |n| n);
                    let deep: u64 = inside.map(nested, 0..40).map(Result::unwrap).sum();
                    (flat, deep)
                });
                let deep = (0..40).map(|n| (0..n).map(|n| n * 2).sum::<u64>()).sum();
                assert_eq!(sum.result().unwrap(), ((0..1_000).sum(), deep));
            }
        }
    });
}

/// `len` is exact at every step, and `size_hint` never lies.
#[test]
fn the_length_is_exact_at_every_step() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for (count, chunk, unordered) in
        [(0, 1, false), (1, 1, false), (100, 1, false), (100, 7, false), (100, 7, true)]
    {
        let options = pool.options().chunk_size(chunk);
        let options = if unordered { options.unordered() } else { options };
        let mut map = options.map(|n: usize| n, 0..count);
        for left in (0..count).rev() {
            assert_eq!(map.len(), left + 1);
            assert_eq!(map.size_hint(), (left + 1, Some(left + 1)));
            map.next().unwrap().unwrap();
        }
        assert_eq!(map.len(), 0);
        assert!(map.next().is_none());
    }
    let some = pool.map(|n: u32| n, (0..100).filter(|n| n % 2 == 0));
    let (low, high) = some.size_hint();
    assert!(low <= 50 && high.is_some_and(|high| high >= 50), "{low} {high:?}");
    assert_eq!(some.count(), 50);
}

/// A chunk has the size asked for, and the last one what is left.
#[test]
fn chunks_have_the_size_asked_for() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for (items, chunk, tasks) in [(10, 3, 4), (9, 3, 3), (1, 100, 1), (0, 5, 0), (64, 1, 64)] {
        let before = pool.stats().submitted;
        let results: Vec<u32> =
            pool.options().chunk_size(chunk).map(|n: u32| n, 0..items).map(Result::unwrap).collect();
        assert_eq!(results, (0..items).collect::<Vec<_>>());
        assert_eq!(pool.stats().submitted - before, tasks, "{items} items by {chunk}");
    }
}

/// S14: every item and every result is dropped once, however much of the map is consumed.
#[test]
fn items_and_results_are_dropped_once() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    for chunk in [1, 5] {
        for unordered in [false, true] {
            for consumed in [0, 1, 7, 50, 100] {
                let pool = ThreadPoolExecutor::new(2).unwrap();
                let probes = tally.clone();
                let items = (0..100).map(move |n| probes.carrying(n));
                let options = pool.options().chunk_size(chunk);
                let options = if unordered { options.unordered() } else { options };
                let mut map = options.map(
                    |probe: Probe| {
                        assert_ne!(probe.number % 13, 5, "an unlucky one");
                        (probe.clone(), probe)
                    },
                    items,
                );
                for _ in 0..consumed {
                    drop(map.next().unwrap());
                }
                drop(map);
                pool.shutdown();
                tally.assert_balanced();
            }
        }
    }
}

/// The function and what it captures are dropped with the map's last task.
#[test]
fn the_function_is_dropped_once() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let probe = tally.probe();
    let mut map = pool.map(
        move |n: u32| {
            let held = &probe;
            n + u32::try_from(held.number).unwrap()
        },
        0..,
    );
    assert_eq!(map.next().unwrap().unwrap(), 0);
    drop(map);
    pool.shutdown();
    tally.assert_balanced();
}

/// A map keeps its pool alive, and ends it with itself.
#[test]
fn a_map_outlives_its_handle() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let map = pool.map(|n: u32| n, 0..1_000);
    drop(pool);
    assert_eq!(map.map(Result::unwrap).sum::<u32>(), 499_500);
}

/// A shutdown in the middle: what was accepted comes out, the rest says why not, and the map ends.
#[test]
fn a_map_ends_when_its_pool_is_shut_down() {
    let _watchdog = Watchdog::start();
    for unordered in [false, true] {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let options = pool.options().chunk_size(1);
        let options = if unordered { options.unordered() } else { options };
        let mut map = options.map(|n: u32| n, 0..100);
        map.next().unwrap().unwrap();
        pool.shutdown();
        let outcomes: Vec<_> = map.collect();
        assert_eq!(outcomes.len(), 99);
        for outcome in &outcomes {
            assert!(matches!(outcome, Ok(_) | Err(TaskError::ShutDown)), "{outcome:?}");
        }
        assert!(outcomes.iter().any(Result::is_err), "the input was not read to its end before");
    }
}

/// Items that run at the same time do: with `chunk_size(1)`, and by themselves when they turn out to be slow.
#[test]
fn items_run_at_the_same_time() {
    let _watchdog = Watchdog::start();
    for workers in [2, 4] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let all = Arc::new(Barrier::new(workers));
        let count = pool
            .options()
            .chunk_size(1)
            .map(
                move |_: usize| {
                    all.wait();
                },
                0..10 * workers,
            )
            .count();
        assert_eq!(count, 10 * workers);
    }
}

/// Two maps of one pool, consumed in step, and from two threads.
#[test]
fn maps_of_one_pool_do_not_disturb_each_other() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let (left, right) = (pool.map(|n: u64| n, 0..2_000), pool.map(|n: u64| n * n, 0..2_000));
    for (n, (left, right)) in (0..).zip(left.zip(right)) {
        assert_eq!((left.unwrap(), right.unwrap()), (n, n * n));
    }
    let sums = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let sum: u64 = pool.options().unordered().map(|n: u64| n, 0..5_000).map(Result::unwrap).sum();
                sums.lock().unwrap().push(sum);
            });
        }
    });
    assert_eq!(*sums.lock().unwrap(), [12_497_500; 4]);
}

/// A bounded queue, of one place too, and a map on it: from outside and on a worker.
#[test]
fn a_map_on_a_bounded_queue_ends() {
    in_own_process(LIMIT, || {
        for (workers, capacity) in [(1, 1), (2, 1), (2, 16)] {
            let pool =
                ThreadPoolExecutor::builder().max_workers(workers).queue_capacity(capacity).build().unwrap();
            let sum: u64 = pool.map(|n: u64| n, 0..2_000).map(Result::unwrap).sum();
            assert_eq!(sum, 1_999_000);
            let inside = pool.clone();
            let sum = pool.spawn(move || inside.map(|n: u64| n, 0..2_000).map(Result::unwrap).sum::<u64>());
            assert_eq!(sum.result().unwrap(), 1_999_000);
        }
    });
}
