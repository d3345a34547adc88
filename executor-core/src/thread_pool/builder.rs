//! `ThreadPoolBuilder`: every option of a thread pool, checked once.

use std::fmt;
use std::time::Duration;

use crate::error::BuildError;
use crate::fork::PoolId;
use crate::panic_report::PanicReport;
use crate::sync::system::AtomicUsize;
use crate::sync::{Arc, Ordering};

use super::pool::ThreadPoolExecutor;
use super::registry::{Hook, PanicHandler, Registry, Settings};
use super::sleep::MOST_WORKERS;

/// Builds a [`ThreadPoolExecutor`].
///
/// ```
/// use executor_core::ThreadPoolExecutor;
/// use std::time::Duration;
///
/// let pool = ThreadPoolExecutor::builder()
///     .max_workers(4)
///     .name_prefix("fetch")
///     .queue_capacity(1_000)
///     .keep_alive(Duration::from_secs(10))
///     .build()?;
/// assert_eq!(pool.max_workers(), 4);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct ThreadPoolBuilder {
    max_workers: Option<usize>,
    name_prefix: Option<String>,
    stack_size: usize,
    keep_alive: Option<Duration>,
    queue_capacity: Option<usize>,
    initializer: Option<Hook>,
    on_worker_exit: Option<Hook>,
    panic_handler: Option<PanicHandler>,
}

/// What an initializer may return: nothing, or a `Result` whose error breaks the pool.
///
/// ```
/// use executor_core::InitOutcome;
/// assert_eq!(().into_result(), Ok(()));
/// assert_eq!(Err::<(), _>("no licence").into_result(), Err("no licence".to_owned()));
/// ```
pub trait InitOutcome {
    /// The error as text, if there is one.
    ///
    /// # Errors
    ///
    /// What the initializer returned as its error.
    fn into_result(self) -> Result<(), String>;
}

impl InitOutcome for () {
    fn into_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: fmt::Display> InitOutcome for Result<(), E> {
    fn into_result(self) -> Result<(), String> {
        self.map_err(|error| error.to_string())
    }
}

/// The stack of a worker, in bytes, unless `stack_size` says otherwise: what `std::thread` gives.
const STACK_SIZE: usize = 2 * 1024 * 1024;

/// The smallest stack a worker can live on, in bytes.
const SMALLEST_STACK: usize = 16 * 1024;

/// The most workers: the other half of what can be counted is for spare ones.
const MAX_WORKERS: usize = MOST_WORKERS / 2;

impl ThreadPoolBuilder {
    pub(super) const fn new() -> Self {
        Self {
            max_workers: None,
            name_prefix: None,
            stack_size: STACK_SIZE,
            keep_alive: None,
            queue_capacity: None,
            initializer: None,
            on_worker_exit: None,
            panic_handler: None,
        }
    }

    /// The number of tasks that may run at the same time, at least 1. Default: the processors this process may use,
    /// plus 4, at most 32.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// assert!(ThreadPoolExecutor::builder().max_workers(0).build().is_err());
    /// ```
    pub const fn max_workers(mut self, workers: usize) -> Self {
        self.max_workers = Some(workers);
        self
    }

    /// What the workers' names begin with; `-<index>` follows. Default: `ThreadPoolExecutor-<pool>`.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// let pool = ThreadPoolExecutor::builder().name_prefix("io").build()?;
    /// let name = pool.submit(|()| std::thread::current().name().map(str::to_owned), ()).result();
    /// assert_eq!(name.unwrap().as_deref(), Some("io-0"));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.name_prefix = Some(prefix.into());
        self
    }

    /// The stack of a worker in bytes, at least 16 KiB. Default: 2 MiB.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// assert!(ThreadPoolExecutor::builder().stack_size(256 * 1024).build().is_ok());
    /// ```
    pub const fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = bytes;
        self
    }

    /// Ends a worker that had nothing to do for this long; a later task starts a new one. Default: workers stay.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// # use std::time::Duration;
    /// let pool = ThreadPoolExecutor::builder().keep_alive(Duration::from_secs(60)).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn keep_alive(mut self, idle: Duration) -> Self {
        self.keep_alive = Some(idle);
        self
    }

    /// Bounds the queue to this many tasks, at least 1: `submit` then waits while it is full, except on one of the
    /// pool's own workers, which runs the task itself; `try_submit` refuses. Default: no bound.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// let pool = ThreadPoolExecutor::builder().max_workers(1).queue_capacity(2).build()?;
    /// for n in 0..100 {
    ///     pool.spawn(move || drop(n)); // never more than two wait
    /// }
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn queue_capacity(mut self, tasks: usize) -> Self {
        self.queue_capacity = Some(tasks);
        self
    }

    /// Runs on every worker before its first task. If it panics, or returns an error, the pool is broken: whatever
    /// waits, and whatever is submitted later, ends in `TaskError::Broken`.
    ///
    /// ```
    /// # use executor_core::{TaskError, ThreadPoolExecutor};
    /// let pool = ThreadPoolExecutor::builder().initializer(|| Err("no licence")).build()?;
    /// let Err(TaskError::Broken(reason)) = pool.submit(|()| (), ()).result() else { unreachable!() };
    /// assert!(reason.contains("no licence"));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn initializer<O: InitOutcome>(mut self, f: impl Fn() -> O + Send + Sync + 'static) -> Self {
        self.initializer = Some(Box::new(move || f().into_result()));
        self
    }

    /// Runs on every worker after its last task.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// let pool = ThreadPoolExecutor::builder().on_worker_exit(|| println!("bye")).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn on_worker_exit(mut self, f: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_worker_exit = Some(Box::new(move || {
            f();
            Ok(())
        }));
        self
    }

    /// Is told of panics that no future shows: in a callback, or in a task whose future was dropped. Default: nothing
    /// beyond what the program's panic hook does, which by itself prints them.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// let pool = ThreadPoolExecutor::builder().panic_handler(|report| eprintln!("stray: {report}")).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn panic_handler(mut self, f: impl Fn(&PanicReport) + Send + Sync + 'static) -> Self {
        self.panic_handler = Some(Box::new(f));
        self
    }

    /// Builds the pool. Its threads start when they are needed.
    ///
    /// # Errors
    ///
    /// [`BuildError::InvalidOption`] names the option and its value.
    ///
    /// ```
    /// # use executor_core::ThreadPoolExecutor;
    /// let error = ThreadPoolExecutor::builder().queue_capacity(0).build().unwrap_err();
    /// assert_eq!(error.to_string(), "queue_capacity must be at least 1, got 0");
    /// ```
    pub fn build(self) -> Result<ThreadPoolExecutor, BuildError> {
        // ORDERING: relaxed, only uniqueness matters.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let max_workers = self.max_workers.unwrap_or_else(|| (crate::usable_processors() + 4).min(32));
        check_max_workers(max_workers)?;
        if self.queue_capacity == Some(0) {
            return Err(BuildError::invalid("queue_capacity", "must be at least 1, got 0"));
        }
        if self.stack_size < SMALLEST_STACK {
            let problem = format!("must be at least {SMALLEST_STACK} bytes, got {}", self.stack_size);
            return Err(BuildError::invalid("stack_size", problem));
        }
        let prefix = self
            .name_prefix
            .unwrap_or_else(|| format!("ThreadPoolExecutor-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        if prefix.contains('\0') {
            return Err(BuildError::invalid(
                "name_prefix",
                format!("must not contain a NUL, got {prefix:?}"),
            ));
        }
        let id = PoolId::next();
        let registry = Arc::new(Registry::new(
            id,
            Settings {
                max_workers,
                prefix,
                stack_size: self.stack_size,
                keep_alive: self.keep_alive,
                capacity: self.queue_capacity,
                initializer: self.initializer,
                on_worker_exit: self.on_worker_exit,
                panic_handler: self.panic_handler,
            },
        ));
        let weak = Arc::downgrade(&registry);
        crate::owner::register(id, weak);
        Ok(ThreadPoolExecutor::new_handle(registry))
    }
}

/// Whether a pool may have so many workers.
pub(super) fn check_max_workers(max_workers: usize) -> Result<(), BuildError> {
    let problem = match max_workers {
        0 => "must be at least 1, got 0".to_owned(),
        1..=MAX_WORKERS => return Ok(()),
        _ => format!("must be at most {MAX_WORKERS}, got {max_workers}"),
    };
    Err(BuildError::invalid("max_workers", problem))
}

impl fmt::Debug for ThreadPoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPoolBuilder")
            .field("max_workers", &self.max_workers)
            .field("name_prefix", &self.name_prefix)
            .field("queue_capacity", &self.queue_capacity)
            .finish_non_exhaustive()
    }
}
