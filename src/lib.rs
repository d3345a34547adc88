//! Python's `concurrent.futures` for Rust: hand a function and its argument to an executor, get a future back.
//!
//! ```
//! use concurrent_futures::{Executor, ThreadPoolExecutor};
//!
//! let pool = ThreadPoolExecutor::new(4)?; // or ProcessPoolExecutor::new(4)?
//! let answer = pool.submit(power, 12); // a TaskFuture<u128>
//! answer.add_done_callback(|outcome| println!("done: {outcome:?}"));
//! for value in pool.map(power, 0..20) {
//!     println!("{}", value?); // in order, lazily
//! }
//! println!("{}", answer.result()?);
//!
//! fn power(n: u32) -> u128 {
//!     u128::from(n).pow(n)
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which executor?
//!
//! | | [`ThreadPoolExecutor`] | [`ProcessPoolExecutor`] |
//! |---|---|---|
//! | a task costs | about 0.1 µs | a few µs, and its data is copied |
//! | what it runs | any closure, borrowed from nothing | any `fn` that captures nothing; argument and result are serde types |
//! | a panic | is that task's error | is that task's error |
//! | a crash, `abort`, out of memory | ends the program | is that task's error: [`TaskError::WorkerDied`] |
//! | a task that never ends | can be asked to stop ([`current_task`]) | is killed by a [`timeout`](Options::timeout) |
//! | where | everywhere | Linux |
//!
//! Rust has no global interpreter lock: threads are as fast as processes on CPU-bound work. Processes are for isolation,
//! limits and killing. Code that is generic over [`Executor`] runs on both, and on executors of your own (see there).
//!
//! # Submitting
//!
//! `submit(f, arg)` never panics and never fails at the call: a task that is refused is a future that holds the reason.
//! Several arguments are a tuple. `try_submit` gives function and argument back instead of waiting for a place in a
//! bounded queue.
//!
//! ```
//! # use concurrent_futures::ThreadPoolExecutor;
//! # let pool = ThreadPoolExecutor::new(2)?;
//! let power = pool.submit(|(base, exponent): (u64, u32)| base.pow(exponent), (3, 4));
//! assert_eq!(power.result()?, 81);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`options`](Executor::options) gives a view of the same executor with settings for the calls made through it:
//!
//! ```
//! # use concurrent_futures::ThreadPoolExecutor;
//! # use std::time::Duration;
//! # let pool = ThreadPoolExecutor::new(2)?;
//! let careful = pool.options().label("parse").timeout(Duration::from_secs(5)).priority(1);
//! assert_eq!(careful.submit(|text: &str| text.len(), "four").result()?, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Mapping
//!
//! [`map`](Executor::map) starts at once, yields results in the order of the items, pulls the input lazily, and sizes its
//! messages by the measured cost of an item. An item that fails yields its error in its place, and the rest goes on.
//!
//! ```
//! # use concurrent_futures::ThreadPoolExecutor;
//! # let pool = ThreadPoolExecutor::new(2)?;
//! let (good, bad): (Vec<_>, Vec<_>) = pool.map(|n: u32| 100 / n, [5, 0, 20]).partition(Result::is_ok);
//! assert_eq!((good.len(), bad.len()), (2, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Waiting
//!
//! A [`TaskFuture`] can be waited for, looked at, called back from, and `.await`ed on any runtime. [`wait`] and
//! [`as_completed`] take several, of one executor or of many.
//!
//! Waiting *inside* a task is safe (on a fixed pool it is the commonest way to hang a program): an awaited task that has
//! not started runs in place, and otherwise a spare worker keeps the pool going. No unrelated task ever runs on the
//! waiting stack, so a lock held across the wait is safe too. Tasks that wait for each other in a ring end in
//! [`TaskError::Deadlock`], which names them.
//!
//! ```
//! # use concurrent_futures::ThreadPoolExecutor;
//! fn fibonacci(pool: &ThreadPoolExecutor, n: u64) -> u64 {
//!     if n < 2 {
//!         return n;
//!     }
//!     let inside = pool.clone();
//!     let left = pool.spawn(move || fibonacci(&inside, n - 1));
//!     fibonacci(pool, n - 2) + left.result().unwrap()
//! }
//! assert_eq!(fibonacci(&ThreadPoolExecutor::new(1)?, 15), 610);
//! # Ok::<(), concurrent_futures::BuildError>(())
//! ```
//!
//! # Failing
//!
//! [`TaskError`] says why a task has no value: it panicked ([`PanicReport`] has message, place, backtrace, worker, label),
//! its worker process died ([`WorkerDeath`] has pid, exit code or signal, processor time, memory), it was cancelled, timed
//! out, could not be encoded, … A function's own `Result` is an ordinary value.
//!
//! # Ending
//!
//! Dropping the last handle of a pool finishes every accepted task and waits, as Python's `with` does. `shutdown_now`
//! cancels what has not started, `shutdown_timeout` has a limit, `shutdown_background` does not wait; the processes' pool
//! also has `terminate_workers` and `kill_workers`.
//!
//! # Features
//!
//! * `process` (default): [`ProcessPoolExecutor`]. Linux only; elsewhere, build with `default-features = false`.
//! * `macros` (default): the [`task`] attribute.
//! * `tracing`: a task on a thread runs in the `tracing` span that was current where it was submitted.

#![forbid(unsafe_code)]

pub use executor_core::{
    Again, AsCompleted, AsCompletedTimeout, BuildError, CallLimits, CallMapper, CallOptions, Callable,
    Callee, Chunk, ClosureMapper, CurrentTask, DeathDetails, Executor, InitOutcome, Limit, LimitsCalls, Map,
    Mapper, Once, Options, PanicDetails, PanicReport, Payload, PoolStats, Promise, ReturnWhen, Scope,
    ScopedFuture, SharedContext, Shutdown, ShutdownReport, SubmitError, TaskError, TaskFuture,
    ThreadPoolBuilder, ThreadPoolExecutor, Unfinished, Waited, WorkerDeath, WorkerInfo, WorkerLocal,
    as_completed, as_completed_timeout, current_task, wait,
};
#[cfg(feature = "macros")]
pub use executor_macros::task;
#[cfg(feature = "process")]
pub use executor_process::{
    Fd, Plain, ProcessPoolBuilder, ProcessPoolExecutor, Shared, StartMethod, WorkerStdio,
};

/// The README's programs run as they stand there.
#[cfg(all(doctest, feature = "process"))]
#[doc = include_str!("../README.md")]
struct Readme;
