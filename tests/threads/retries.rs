//! `options().retries(n)` on threads: a panic is tried again, and nothing else.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use concurrent_futures::{CallOptions, Executor, PanicReport, TaskError, ThreadPoolExecutor, current_task};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::support::{Gate, Probe, Tally, Watchdog};

#[track_caller]
fn report<T: std::fmt::Debug>(outcome: Result<T, TaskError>) -> PanicReport {
    match outcome {
        Err(TaskError::Panicked(report)) => report,
        other => panic!("{other:?}"),
    }
}

/// Panics the first `failures` times.
fn flaky(failures: u32) -> (Arc<AtomicU32>, impl Fn(Probe) -> u64 + Send + Sync + 'static) {
    let runs = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&runs);
    let f = move |probe: Probe| {
        let run = counts.fetch_add(1, Ordering::SeqCst);
        assert!(run >= failures, "run {run}");
        probe.number
    };
    (runs, f)
}

#[test]
fn a_panic_is_tried_again_as_often_as_asked_for() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for retries in 0..4 {
        for failures in 0..6 {
            let (runs, f) = flaky(failures);
            let options = pool.options().label("flaky").retries(retries);
            let outcome = options.submit(f, tally.carrying(7)).result();
            assert_eq!(runs.load(Ordering::SeqCst), failures.min(retries) + 1);
            if failures <= retries {
                assert_eq!(outcome.unwrap(), 7);
            } else {
                let report = report(outcome);
                assert_eq!(report.attempts, retries + 1);
                assert_eq!(report.message, format!("run {retries}"), "the last one");
                assert_eq!(report.label.as_deref(), Some("flaky"));
                assert!(report.file.ends_with("retries.rs") && report.line > 0, "{report}");
                assert_eq!(report.to_string().contains("attempts"), retries > 0, "{report}");
            }
        }
    }
    let stats = pool.stats();
    assert_eq!((stats.submitted, stats.finished), (24, 24), "each is one task");
    pool.shutdown();
    tally.assert_balanced();
}

/// Each item by itself, in order, whatever the chunk; through the trait too, where arguments need not be `Clone`.
#[test]
fn each_item_of_a_map_is_tried_again_by_itself() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let runs = Arc::new((0..100).map(|_| AtomicU32::new(0)).collect::<Vec<_>>());
    let counts = Arc::clone(&runs);
    let f = move |probe: Probe| {
        let run = counts[usize::try_from(probe.number).unwrap()].fetch_add(1, Ordering::SeqCst);
        assert!(u64::from(run) >= probe.number % 4);
        probe.number
    };
    let items: Vec<_> = (0..100).map(|n| tally.carrying(n)).collect();
    let results = pool.options().retries(2).chunk_size(7).map(f, items);
    for (n, result) in (0..).zip(results) {
        if n % 4 == 3 {
            assert_eq!(report(result).attempts, 3);
        } else {
            assert_eq!(result.unwrap(), n);
        }
    }
    for (n, runs) in runs.iter().enumerate() {
        assert_eq!(runs.load(Ordering::SeqCst) as usize, (n % 4).min(2) + 1);
    }
    pool.shutdown();
    tally.assert_balanced();
}

/// Not `Clone`; counts how often it was written and read.
struct Sheet(u32);
static WRITTEN: AtomicU32 = AtomicU32::new(0);
static READ: AtomicU32 = AtomicU32::new(0);

impl Serialize for Sheet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WRITTEN.fetch_add(1, Ordering::SeqCst);
        if self.0 == 99 {
            return Err(serde::ser::Error::custom("not this one"));
        }
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sheet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        READ.fetch_add(1, Ordering::SeqCst);
        u32::deserialize(deserializer).map(Self)
    }
}

#[test]
fn through_the_trait_the_argument_is_encoded_once() {
    static RUNS: Mutex<[u32; 100]> = Mutex::new([0; 100]);
    /// Panics as often as its number says.
    fn press(sheet: Sheet) -> u32 {
        let run = {
            let mut runs = RUNS.lock().unwrap();
            let run = &mut runs[sheet.0 as usize];
            *run += 1;
            *run
        };
        assert!(run > sheet.0, "run {run}");
        sheet.0
    }
    fn generic(executor: &impl Executor) -> [Result<u32, TaskError>; 3] {
        let submit = |n| executor.submit(press, Sheet(n)).result();
        [submit(2), submit(4), submit(99)]
    }
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let [good, bad, unwritten] = generic(&pool.options().retries(2));
    assert_eq!(good.unwrap(), 2);
    assert_eq!(report(bad).attempts, 3);
    assert!(matches!(unwritten, Err(TaskError::Encode(reason)) if reason.contains("not this one")));
    assert_eq!((WRITTEN.load(Ordering::SeqCst), READ.load(Ordering::SeqCst)), (3, 4));
    // Without retries nothing is encoded.
    let [good, ..] = generic(&pool);
    assert_eq!(good.unwrap(), 2);
    assert_eq!(WRITTEN.load(Ordering::SeqCst), 3);
    // In a map, one that cannot be encoded fails alone.
    *RUNS.lock().unwrap() = [0; 100];
    let view = pool.options().retries(1).chunk_size(3);
    let results: Vec<_> = Executor::map(&view, press, [Sheet(0), Sheet(99), Sheet(1), Sheet(2)]).collect();
    assert!(matches!(results[..], [Ok(0), Err(TaskError::Encode(_)), Ok(1), Err(TaskError::Panicked(_))]));
    assert_eq!(CallOptions::default().retries, 0);
}

/// Only panics: not what the function returns, nor a time-out.
#[test]
fn nothing_but_a_panic_is_tried_again() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&runs);
    let refused = pool.options().retries(5).submit(
        move |()| {
            counts.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>("an ordinary value")
        },
        (),
    );
    assert!(refused.result().unwrap().is_err());
    assert_eq!(runs.swap(0, Ordering::SeqCst), 1);
    let counts = Arc::clone(&runs);
    let late = pool.options().retries(5).timeout(Duration::from_millis(5)).submit(
        move |()| {
            counts.fetch_add(1, Ordering::SeqCst);
            while !current_task().unwrap().is_cancelled() {}
            panic!("stopped");
        },
        (),
    );
    assert!(matches!(late.result(), Err::<(), _>(TaskError::TimedOut)));
    assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1, "the worker is free");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// The time-out is for each run, the deadline for all.
#[test]
fn each_run_has_the_whole_time_out() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let limit = Duration::from_secs(2);
    let wait = move |()| {
        let start = Instant::now();
        while start.elapsed() < limit / 2 && !current_task().unwrap().is_cancelled() {
            std::thread::yield_now();
        }
        panic!("half the time");
    };
    let outcome: Result<(), _> = pool.options().timeout(limit).retries(4).submit(wait, ()).result();
    assert_eq!(report(outcome).attempts, 5);
    let outcome: Result<(), _> =
        pool.options().deadline(Instant::now() + limit).retries(1_000).submit(wait, ()).result();
    assert!(matches!(outcome, Err(TaskError::TimedOut)), "{outcome:?}");
    // The last of several runs is the one that is late.
    let runs = AtomicU32::new(0);
    let late = move |()| {
        if runs.fetch_add(1, Ordering::SeqCst) == 2 {
            while !current_task().unwrap().is_cancelled() {}
        }
        panic!("again");
    };
    let short = Duration::from_millis(50);
    let outcome: Result<(), _> = pool.options().timeout(short).retries(4).submit(late, ()).result();
    assert!(matches!(outcome, Err(TaskError::TimedOut)), "{outcome:?}");
}

/// An abort, and a shutdown that cancels, end it between two runs: the last panic is the outcome.
#[test]
fn an_abort_or_a_shutdown_ends_it_between_two_runs() {
    let _watchdog = Watchdog::start();
    for by in ["abort", "shutdown_now", "shutdown_timeout", "shutdown"] {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let gate = Gate::new();
        let _opens = gate.opens_at_the_end();
        let passes = gate.clone();
        let future = pool.options().retries(3).submit(
            move |()| {
                passes.pass();
                panic!("again");
            },
            (),
        );
        gate.wait_for_arrivals(1);
        assert!(!future.cancel(), "it runs");
        std::thread::scope(|scope| {
            match by {
                "abort" => assert!(future.abort()),
                "shutdown_timeout" => assert_eq!(pool.shutdown_timeout(Duration::ZERO).unfinished, 1),
                by => {
                    let (now, pool) = (by == "shutdown_now", &pool);
                    // When this is cancelled, what is to be tried again has been ended before.
                    let queued = pool.submit(|()| (), ());
                    let ends = move || if now { pool.shutdown_now() } else { pool.shutdown() };
                    let (told, hears) = std::sync::mpsc::channel();
                    scope.spawn(move || {
                        told.send(()).unwrap();
                        ends()
                    });
                    hears.recv().unwrap();
                    while if now { !queued.is_done() } else { pool.try_submit(|()| (), ()).is_ok() } {
                        std::thread::yield_now();
                    }
                }
            }
            gate.open();
        });
        let report: PanicReport = report::<()>(future.result());
        assert_eq!(report.attempts, if by == "shutdown" { 4 } else { 1 }, "{by}");
    }
}
