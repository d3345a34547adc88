//! CPython's `Lib/test/test_concurrent_futures` for this library: one suite, run on every executor.
//!
//! A module is a file of CPython's; the doc comment of a test names the case it answers, and `tests/CONFORMANCE.md` lists
//! all of them. Where our semantics promise more than CPython's (a crash costs one task, not the pool), the test asks for
//! ours.
//!
//! A case is a function generic over [`Backend`]; `on_every_executor!` makes tests of it. Tasks are plain functions, and
//! what they need to meet the test again travels in strings.

#![allow(clippy::disallowed_types, reason = "tests watch the library from outside its models")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

#[path = "../support/mod.rs"]
mod support;

/// Makes a test of each case on each executor.
macro_rules! on_every_executor {
    ($($case:ident),* $(,)?) => {
        on_executor!(threads, concurrent_futures::ThreadPoolExecutor, $($case)*);
        #[cfg(all(feature = "process", target_os = "linux"))]
        on_executor!(processes, concurrent_futures::ProcessPoolExecutor, $($case)*);
    };
}

macro_rules! on_executor {
    ($name:ident, $executor:ty, $($case:ident)*) => {
        mod $name {
            $(
                #[test]
                fn $case() {
                    let _watchdog = crate::support::Watchdog::start();
                    super::$case::<$executor>();
                }
            )*
        }
    };
}

mod completed;
mod futures;
mod init;
mod shutdown;
mod submit_map;
mod thread_pool;
mod waiting;

#[cfg(all(feature = "process", target_os = "linux"))]
mod deadlock;
#[cfg(all(feature = "process", target_os = "linux"))]
mod process_pool;

use std::time::{Duration, Instant};

use concurrent_futures::{
    BuildError, Executor, InitOutcome, PoolStats, TaskError, ThreadPoolExecutor, WorkerInfo, current_task,
};

use support::{Ended, Turnstile, watch_test};

/// What the executors under test have in common beyond the trait.
trait Backend: Executor + Send + Sync + 'static {
    /// The module of its tests.
    const NAME: &'static str;

    fn try_with_workers(workers: usize) -> Result<Self, BuildError>;

    fn with_workers(workers: usize) -> Self {
        Self::try_with_workers(workers).unwrap()
    }

    fn with_initializer<O: InitOutcome + 'static>(workers: usize, initializer: fn() -> O) -> Self;

    fn stats(&self) -> PoolStats;

    fn workers(&self) -> Vec<WorkerInfo>;
}

impl Backend for ThreadPoolExecutor {
    const NAME: &'static str = "threads";

    fn try_with_workers(workers: usize) -> Result<Self, BuildError> {
        Self::new(workers)
    }

    fn with_initializer<O: InitOutcome + 'static>(workers: usize, initializer: fn() -> O) -> Self {
        Self::builder().max_workers(workers).initializer(initializer).build().unwrap()
    }

    fn stats(&self) -> PoolStats {
        Self::stats(self)
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        Self::workers(self)
    }
}

#[cfg(all(feature = "process", target_os = "linux"))]
impl Backend for concurrent_futures::ProcessPoolExecutor {
    const NAME: &'static str = "processes";

    fn try_with_workers(workers: usize) -> Result<Self, BuildError> {
        Self::new(workers)
    }

    fn with_initializer<O: InitOutcome + 'static>(workers: usize, initializer: fn() -> O) -> Self {
        Self::builder().max_workers(workers).initializer(initializer).build().unwrap()
    }

    fn stats(&self) -> PoolStats {
        Self::stats(self)
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        Self::workers(self)
    }
}

/// Runs `body` alone in a process of its own, and tells how that ended; `None` inside it. To be called from the case
/// itself, with a closure.
fn alone<E: Backend, F: FnOnce()>(limit: Duration, body: F) -> Option<Ended> {
    // `conformance::shutdown::case<E>::{{closure}}` is the test `shutdown::threads::case`.
    let path = std::any::type_name::<F>();
    let path = path.split(['<', '{']).next().unwrap_or(path).trim_end_matches(':');
    let (module, case) = path.rsplit_once("::").unwrap();
    let module = module.rsplit("::").next().unwrap();
    watch_test(&format!("{module}::{}::{case}", E::NAME), limit, body)
}

/// Makes `count` workers busy until the turnstile opens, and waits until they are.
fn occupy<E: Backend>(pool: &E, count: usize, turnstile: &Turnstile) {
    for _ in 0..count {
        drop(pool.submit(pass, turnstile.ticket()));
    }
    turnstile.wait_for_arrivals(count);
}

/// `support::pass` as a task.
fn pass(ticket: String) {
    support::pass(&ticket);
}

fn square(n: u64) -> u64 {
    n * n
}

fn power((base, exponent): (u64, u32)) -> u64 {
    base.pow(exponent)
}

fn fail(message: String) -> u64 {
    panic!("{message}")
}

/// Runs until it is asked to end, or killed.
fn until_cancelled(_: u64) -> u64 {
    while !current_task().is_some_and(|task| task.is_cancelled()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    0
}

/// Whether the pool refuses tasks because it is shut down.
fn is_shut_down<E: Backend>(pool: &E) -> bool {
    matches!(pool.submit(square, 1).result(), Err(TaskError::ShutDown))
}

/// The message of a panic.
#[track_caller]
fn panic_message<T: std::fmt::Debug>(outcome: &Result<T, TaskError>) -> &str {
    match outcome {
        Err(TaskError::Panicked(report)) => &report.message,
        other => panic!("{other:?}"),
    }
}

/// The message of what `body` panics with.
#[track_caller]
fn refusal<T>(body: impl FnOnce() -> T) -> String {
    let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) else {
        panic!("it does not panic");
    };
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(50)
}
