//! Panics wherever the user's code may panic: each is the outcome of its own task alone (S6, S8).

use std::fmt;

use concurrent_futures::{Executor, PanicReport, ProcessPoolExecutor, TaskError, ThreadPoolExecutor};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::scene::{assert_full, isolated, isolated_with};
use crate::support::Tally;

#[track_caller]
fn panic_of<T: fmt::Debug>(outcome: Result<T, TaskError>) -> PanicReport {
    match outcome {
        Err(TaskError::Panicked(report)) => report,
        other => panic!("not a panic: {other:?}"),
    }
}

fn a_panic_is_told(executor: &impl Executor, prefix: &str) {
    let line = line!() + 1;
    let task = |n: u32| -> u32 { panic!("number {n}") };
    let report = panic_of(executor.options().label("careless").submit(task, 13).result());
    assert_eq!(report.message, "number 13");
    assert_eq!(report.file, file!());
    assert_eq!((report.line, report.column), (line, 34));
    assert_eq!(report.label.as_deref(), Some("careless"));
    assert_eq!(report.worker, format!("{prefix}-0"));
    let asked = std::env::var_os("RUST_BACKTRACE").is_some_and(|asked| asked == "1");
    assert_eq!(report.backtrace.is_some(), asked);
    if let Some(backtrace) = &report.backtrace {
        assert!(backtrace.contains("a_panic_is_told"), "{backtrace}");
    }
    // The worker has gone on.
    assert_eq!(executor.submit(|n: u32| n, 1).result().unwrap(), 1);
}

#[test]
fn a_panic_on_a_thread_tells_where_it_was() {
    isolated_with(
        |command| {
            command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
        },
        || {
            let pool = ThreadPoolExecutor::builder().max_workers(1).name_prefix("thread").build().unwrap();
            a_panic_is_told(&pool, "thread");
        },
    );
}

#[test]
fn a_panic_in_a_process_tells_where_it_was() {
    isolated_with(
        |command| {
            command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
        },
        || {
            let pool = ProcessPoolExecutor::builder().max_workers(1).name_prefix("process").build().unwrap();
            let pid = pool.submit(|()| std::process::id(), ()).result().unwrap();
            a_panic_is_told(&pool, "process");
            assert_eq!(pool.submit(|()| std::process::id(), ()).result().unwrap(), pid);
            assert_full(&pool, 1);
        },
    );
}

#[test]
fn backtraces_arrive_from_threads_and_processes() {
    isolated_with(
        |command| {
            command.env("RUST_BACKTRACE", "1").env_remove("RUST_LIB_BACKTRACE");
        },
        || {
            let threads = ThreadPoolExecutor::builder().max_workers(1).name_prefix("thread").build().unwrap();
            a_panic_is_told(&threads, "thread");
            let pool = ProcessPoolExecutor::builder().max_workers(1).name_prefix("process").build().unwrap();
            a_panic_is_told(&pool, "process");
        },
    );
}

fn an_item_that_panics_costs_no_other(executor: &impl Executor) {
    let results = executor.options().chunk_size(5).map(
        |n: u32| {
            assert_ne!(n, 7, "seven");
            n
        },
        0..20,
    );
    for (n, result) in (0..).zip(results) {
        if n == 7 {
            assert!(panic_of(result).message.contains("seven"));
        } else {
            assert_eq!(result.unwrap(), n);
        }
    }
}

#[test]
fn an_item_that_panics_costs_no_other_item_of_its_chunk() {
    isolated(|| {
        an_item_that_panics_costs_no_other(&ThreadPoolExecutor::new(2).unwrap());
        let pool = ProcessPoolExecutor::new(2).unwrap();
        an_item_that_panics_costs_no_other(&pool);
        assert_full(&pool, 2);
    });
}

/// A payload that is no string, and one whose destructor panics with another like it.
#[test]
fn strange_payloads_are_survived() {
    struct Bomb(u32);
    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.0 > 0 {
                std::panic::panic_any(Self(self.0 - 1));
            }
        }
    }
    fn throw(executor: &impl Executor) {
        assert!(
            panic_of(executor.submit(|n: u64| -> () { std::panic::panic_any(n) }, 4).result())
                .message
                .contains("no string")
        );
        for fuse in 0..4 {
            let report =
                panic_of(executor.submit(|n: u32| -> () { std::panic::panic_any(Bomb(n)) }, fuse).result());
            assert!(report.message.contains("no string"));
            drop(report);
        }
        // And when nobody asks.
        drop(executor.submit(|n: u32| -> () { std::panic::panic_any(Bomb(n)) }, 1));
        assert_eq!(executor.submit(|n: u32| n, 1).result().unwrap(), 1);
    }
    isolated(|| {
        throw(&ThreadPoolExecutor::new(1).unwrap());
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let pid = pool.submit(|()| std::process::id(), ()).result().unwrap();
        throw(&pool);
        assert_eq!(pool.submit(|()| std::process::id(), ()).result().unwrap(), pid);
        assert_full(&pool, 1);
    });
}

/// Goes wrong where its fields say.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Fragile {
    encode: Fate,
    decode: Fate,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Fate {
    #[default]
    Well,
    Refuse,
    Panic,
    /// Ends the process, if that is not the one with this number.
    Abort(u32),
}

impl Fate {
    fn happens(self, what: &str) -> Result<(), String> {
        match self {
            Self::Refuse => Err(format!("{what} refused")),
            Self::Panic => panic!("{what} panicked"),
            Self::Abort(spared) if spared != std::process::id() => std::process::abort(),
            Self::Well | Self::Abort(_) => Ok(()),
        }
    }
}

impl Serialize for Fragile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encode.happens("encoding").map_err(S::Error::custom)?;
        self.decode.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let decode = Fate::deserialize(deserializer)?;
        decode.happens("decoding").map_err(D::Error::custom)?;
        Ok(Self { encode: Fate::Well, decode })
    }
}

/// Every combination, among good tasks: the error is `Encode` or `Decode` with what was said, and costs nobody else.
#[test]
fn what_cannot_be_encoded_or_decoded_fails_its_own_task() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let pid = pool.submit(|()| std::process::id(), ()).result().unwrap();
        let identity: fn(Fragile) -> u8 = |_| 1;
        let make: fn((Fate, Fate)) -> Fragile = |(encode, decode)| Fragile { encode, decode };
        for fate in [Fate::Refuse, Fate::Panic] {
            let said = if fate == Fate::Refuse { "refused" } else { "panicked" };
            let argument_encode = pool.submit(identity, Fragile { encode: fate, ..Fragile::default() });
            let argument_decode = pool.submit(identity, Fragile { decode: fate, ..Fragile::default() });
            let result_encode = pool.submit(make, (fate, Fate::Well));
            let result_decode = pool.submit(make, (Fate::Well, fate));
            let good = pool.submit(make, (Fate::Well, Fate::Well));
            match argument_encode.result() {
                Err(TaskError::Encode(text)) => assert!(text.contains(&format!("encoding {said}")), "{text}"),
                other => panic!("{other:?}"),
            }
            match argument_decode.result() {
                Err(TaskError::Decode(text)) => assert!(text.contains(&format!("decoding {said}")), "{text}"),
                other => panic!("{other:?}"),
            }
            match result_encode.result() {
                Err(TaskError::Encode(text)) => assert!(text.contains(&format!("encoding {said}")), "{text}"),
                other => panic!("{other:?}"),
            }
            match result_decode.result() {
                Err(TaskError::Decode(text)) => assert!(text.contains(&format!("decoding {said}")), "{text}"),
                other => panic!("{other:?}"),
            }
            assert_eq!(good.result().unwrap(), Fragile::default());
        }
        assert_eq!(pool.submit(|()| std::process::id(), ()).result().unwrap(), pid, "no worker was lost");
        assert_full(&pool, 1);
    });
}

/// In a chunk, one item each.
#[test]
fn what_cannot_be_encoded_or_decoded_fails_its_own_item() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        for fate in [Fate::Refuse, Fate::Panic] {
            let item = |n: u32| match n {
                3 => Fragile { encode: fate, ..Fragile::default() },
                5 => Fragile { decode: fate, ..Fragile::default() },
                _ => Fragile::default(),
            };
            let results: Vec<_> =
                pool.options().chunk_size(10).map(|_: Fragile| 1_u8, (0..20).map(item)).collect();
            assert_eq!(results.len(), 20);
            for (n, result) in results.into_iter().enumerate() {
                match (n, result) {
                    (3, Err(TaskError::Encode(_))) | (5, Err(TaskError::Decode(_))) => {}
                    (_, Ok(1)) if n != 3 && n != 5 => {}
                    (_, other) => panic!("item {n}: {other:?}"),
                }
            }
            let all_bad = (0..4).map(|_| Fragile { encode: fate, ..Fragile::default() });
            let results: Vec<_> = pool.options().chunk_size(2).map(|_: Fragile| 1_u8, all_bad).collect();
            assert_eq!(results.len(), 4);
            assert!(results.iter().all(|result| matches!(result, Err(TaskError::Encode(_)))), "{results:?}");
        }
        assert_full(&pool, 2);
    });
}

/// A context is decoded in the worker when the first of its tasks asks for it.
#[test]
fn a_context_that_cannot_be_decoded_fails_its_own_tasks() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        for fate in [Fate::Refuse, Fate::Panic] {
            let decode = Fragile { decode: fate, ..Fragile::default() };
            for result in pool.map_with(decode, |_: &Fragile, n: u32| n, 0..5) {
                assert!(matches!(result, Err(TaskError::Decode(_))), "{result:?}");
            }
            let encode = Fragile { encode: fate, ..Fragile::default() };
            for result in pool.map_with(encode, |_: &Fragile, n: u32| n, 0..5) {
                assert!(matches!(result, Err(TaskError::Encode(_))), "{result:?}");
            }
        }
        assert_full(&pool, 1);
    });
}

/// A process may die where a panic may happen, too.
#[test]
fn a_worker_that_dies_while_it_decodes_or_encodes() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let spared = std::process::id();
        let argument = Fragile { decode: Fate::Abort(spared), ..Fragile::default() };
        let decoded = pool.submit(|_: Fragile| 1_u8, argument).result();
        assert_eq!(crate::scene::death(decoded).signal, Some(6));
        let encoded = pool
            .submit(|spared: u32| Fragile { encode: Fate::Abort(spared), ..Fragile::default() }, spared)
            .result();
        assert_eq!(crate::scene::death(encoded).signal, Some(6));
        assert_full(&pool, 2);
    });
}

/// Panics when it is dropped, as often as it is dropped; so it is dropped once in each process.
#[derive(Serialize, Deserialize)]
struct Sharp {
    probe: crate::support::Probe,
    /// Spared: the process of the test, where its owner drops it.
    spared: u32,
}

impl Drop for Sharp {
    fn drop(&mut self) {
        if self.spared != std::process::id() {
            panic!("sharp");
        }
    }
}

#[test]
fn an_argument_whose_destructor_panics_is_the_tasks_panic() {
    isolated(|| {
        let tally = Tally::shared();
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let argument = Sharp { probe: tally.probe(), spared: std::process::id() };
        let report = panic_of(pool.submit(drop::<Sharp>, argument).result());
        assert_eq!(report.message, "sharp");
        assert_full(&pool, 1);
        pool.shutdown();
        tally.assert_balanced();
    });
}

/// In the parent after it was encoded, whatever becomes of it.
#[test]
fn an_argument_whose_destructor_panics_in_the_parent_harms_nobody() {
    isolated(|| {
        let tally = Tally::shared();
        let pool = ProcessPoolExecutor::new(1).unwrap();
        for n in 0..3 {
            let argument = Sharp { probe: tally.probe(), spared: 0 };
            let kept = pool.submit(
                |argument: Sharp| {
                    std::mem::forget(argument);
                    7
                },
                argument,
            );
            if n == 0 {
                drop(kept);
            } else {
                assert_eq!(kept.result().unwrap(), 7);
            }
        }
        let arguments = (0..4).map(|_| Sharp { probe: tally.probe(), spared: 0 });
        let results: Vec<_> = pool.map(|argument: Sharp| std::mem::forget(argument), arguments).collect();
        assert!(results.len() == 4 && results.iter().all(Result::is_ok));
        assert_full(&pool, 1);
    });
}

/// In the worker after it was encoded, and in the parent if nobody takes it.
#[test]
fn a_result_whose_destructor_panics_harms_nobody() {
    isolated(|| {
        let tally = Tally::shared();
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let make: fn((crate::support::Probe, u32)) -> Sharp = |(probe, spared)| Sharp { probe, spared };
        let mine = std::process::id();
        drop(pool.submit(make, (tally.probe(), mine)).result().unwrap());
        // Nobody takes these: they are dropped by the pool, and panic there.
        for _ in 0..3 {
            drop(pool.submit(make, (tally.probe(), 0)));
        }
        drop(pool.options().chunk_size(2).map(make, (0..6).map(|_| (tally.probe(), 0))));
        assert_full(&pool, 1);
        pool.shutdown();
        tally.assert_balanced();
    });
}

#[test]
fn destructors_that_panic_harm_no_thread_pool() {
    isolated(|| {
        let tally = Tally::shared();
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let argument = Sharp { probe: tally.probe(), spared: 0 };
        assert_eq!(panic_of(pool.submit(drop::<Sharp>, argument).result()).message, "sharp");
        for _ in 0..3 {
            let argument = Sharp { probe: tally.probe(), spared: 0 };
            drop(pool.submit(|argument: Sharp| argument, argument));
        }
        let cancelled = pool.submit(drop::<Sharp>, Sharp { probe: tally.probe(), spared: 0 });
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cancelled.cancel()));
        drop(cancelled);
        assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1);
        pool.shutdown();
        tally.assert_balanced();
    });
}
