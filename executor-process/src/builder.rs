//! `ProcessPoolBuilder`: every option of a process pool, checked once.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use executor_core::fork::PoolId;
use executor_core::{BuildError, InitOutcome, TaskError, owner};

use crate::call;
use crate::dispatcher::Front;
use crate::pool::ProcessPoolExecutor;
use crate::shared::{Settings, Shared};
use crate::sync::{Arc, AtomicUsize, Ordering};
use crate::sys::poll::Doorbell;
use crate::sys::{limits, process};
use crate::wire::Setup;
use crate::zygote::{self, StartMethod, WorkerStdio, Zygote, ZygoteConfig};
use executor_core::codec;

/// Builds a [`ProcessPoolExecutor`].
///
/// ```
/// use executor_process::ProcessPoolExecutor;
///
/// let pool = ProcessPoolExecutor::builder()
///     .max_workers(2)
///     .name_prefix("parse")
///     .max_tasks_per_worker(1_000)
///     .env("LANG", "C")
///     .build()?;
/// assert_eq!(pool.max_workers(), 2);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct ProcessPoolBuilder {
    max_workers: Option<usize>,
    name_prefix: Option<String>,
    queue_capacity: Option<usize>,
    keep_alive: Option<Duration>,
    max_tasks_per_worker: Option<u64>,
    termination_grace: Duration,
    message_limit: u64,
    initializer: Option<Result<(u64, u64), TaskError>>,
    max_memory_growth: Option<u64>,
    memory_limit: Option<u64>,
    cpu_time_limit: Option<Duration>,
    open_files_limit: Option<u64>,
    affinity: Option<Vec<u32>>,
    preload: Option<Result<(u64, u64), TaskError>>,
    zygote: ZygoteConfig,
}

/// The largest argument or result, in bytes, unless `message_limit` says otherwise: 1 GiB.
const MESSAGE_LIMIT: u64 = 1 << 30;

/// Between SIGTERM and SIGKILL unless `termination_grace` says otherwise.
const TERMINATION_GRACE: Duration = Duration::from_secs(2);

/// The most pools inside each other: each level multiplies the processes.
const MOST_DEPTH: u32 = 8;

/// The most workers: twice as many processes as Linux allows by default.
const MOST_WORKERS: usize = 65_536;

impl ProcessPoolBuilder {
    pub(crate) fn new() -> Self {
        Self {
            max_workers: None,
            name_prefix: None,
            queue_capacity: None,
            keep_alive: None,
            max_tasks_per_worker: None,
            termination_grace: TERMINATION_GRACE,
            message_limit: MESSAGE_LIMIT,
            initializer: None,
            max_memory_growth: None,
            memory_limit: None,
            cpu_time_limit: None,
            open_files_limit: None,
            affinity: None,
            preload: None,
            zygote: ZygoteConfig::default(),
        }
    }

    /// The number of worker processes, at least 1. Default: the processors this process may use.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// assert!(ProcessPoolExecutor::builder().max_workers(0).build().is_err());
    /// ```
    pub const fn max_workers(mut self, workers: usize) -> Self {
        self.max_workers = Some(workers);
        self
    }

    /// What the workers' names begin with; `-<index>` follows. Default: `ProcessPoolExecutor-<pool>`.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let pool = ProcessPoolExecutor::builder().max_workers(1).name_prefix("resize").build()?;
    /// pool.submit(|()| (), ()).wait();
    /// assert_eq!(pool.workers()[0].name, "resize-0");
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.name_prefix = Some(prefix.into());
        self
    }

    /// Bounds the queue to this many tasks, at least 1: `submit` then waits while it is full. Default: no bound.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let pool = ProcessPoolExecutor::builder().max_workers(1).queue_capacity(10).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn queue_capacity(mut self, tasks: usize) -> Self {
        self.queue_capacity = Some(tasks);
        self
    }

    /// Ends a worker that had nothing to do for this long; a later task starts a new one. Default: workers stay.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// # use std::time::Duration;
    /// let pool = ProcessPoolExecutor::builder().keep_alive(Duration::from_secs(60)).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn keep_alive(mut self, idle: Duration) -> Self {
        self.keep_alive = Some(idle);
        self
    }

    /// Replaces a worker after this many tasks, at least 1: memory that tasks leak goes with it. Default: never.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let pool = ProcessPoolExecutor::builder().max_workers(1).max_tasks_per_worker(1).build()?;
    /// let pids: Vec<u32> = pool.map(|()| std::process::id(), [(), ()]).map(Result::unwrap).collect();
    /// assert_ne!(pids[0], pids[1]);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn max_tasks_per_worker(mut self, tasks: u64) -> Self {
        self.max_tasks_per_worker = Some(tasks);
        self
    }

    /// Replaces a worker whose own memory has grown by more than this many bytes since it was set up: what tasks leak, or
    /// keep, goes with it. It is looked at between tasks, at most every 10 ms. Default: never.
    ///
    /// Its own is what it has in memory and shares with no file: pages that are still those of the fork server do not
    /// count, since they were there at the beginning.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let pool = ProcessPoolExecutor::builder().max_memory_growth(200 << 20).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn max_memory_growth(mut self, bytes: u64) -> Self {
        self.max_memory_growth = Some(bytes);
        self
    }

    /// How long a worker may take to end after SIGTERM, before SIGKILL ends it. Default: 2 seconds.
    ///
    /// It applies wherever a running task is ended: at its [`timeout`](executor_core::Options::timeout) and its
    /// [`deadline`](executor_core::Options::deadline), by [`abort`](executor_core::TaskFuture::abort), and in
    /// [`terminate_workers`](ProcessPoolExecutor::terminate_workers). SIGTERM goes to the task's own children, too, and
    /// ends at once whoever does not handle it; the future ends when the worker has. With a grace of zero there is
    /// only SIGKILL. Whatever a task has started is gone when its worker is.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// # use std::time::Duration;
    /// let pool = ProcessPoolExecutor::builder().termination_grace(Duration::from_millis(200)).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn termination_grace(mut self, grace: Duration) -> Self {
        self.termination_grace = grace;
        self
    }

    /// The largest argument or result, in bytes. A larger one fails its task with [`TaskError::TooLarge`]. Default:
    /// 1 GiB.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// # use executor_core::TaskError;
    /// let pool = ProcessPoolExecutor::builder().max_workers(1).message_limit(1024).build()?;
    /// let outcome = pool.submit(|text: String| text.len(), "x".repeat(2048)).result();
    /// assert!(matches!(outcome, Err(TaskError::TooLarge { .. })));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn message_limit(mut self, bytes: u64) -> Self {
        self.message_limit = bytes;
        self
    }

    /// Runs in every worker before its first task. If it panics, or returns an error, the pool is broken: whatever
    /// waits, and whatever is submitted later, ends in [`TaskError::Broken`].
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// use std::sync::OnceLock;
    /// static MODEL: OnceLock<String> = OnceLock::new();
    ///
    /// let pool = ProcessPoolExecutor::builder()
    ///     .max_workers(1)
    ///     .initializer(|| drop(MODEL.set("loaded once in each worker".to_owned())))
    ///     .build()?;
    /// let length = pool.submit(|()| MODEL.get().map_or(0, String::len), ());
    /// assert_eq!(length.result()?, 26);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn initializer<O: InitOutcome>(mut self, f: fn() -> O) -> Self {
        let name = call::name_of_initializer(f);
        self.initializer = Some(name.map(|name| (name.descriptor, name.function)));
        self
    }

    /// Runs once in the fork server, before the first worker is forked: what it loads is there in every worker, in memory
    /// they share until they write to it. If it panics, returns an error, ends the process, or leaves a thread running,
    /// the pool is broken: whatever waits, and whatever is submitted later, ends in [`TaskError::Broken`] with the reason.
    ///
    /// Random numbers drawn in it, those of hash maps too, are the same in all workers. It runs again should the fork server
    /// have to be replaced.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// use std::sync::OnceLock;
    /// static WORDS: OnceLock<Vec<String>> = OnceLock::new();
    ///
    /// let pool = ProcessPoolExecutor::builder()
    ///     .max_workers(2)
    ///     .preload(|| drop(WORDS.set(vec!["loaded once for all workers".to_owned()])))
    ///     .build()?;
    /// assert_eq!(pool.submit(|()| WORDS.get().map(Vec::len), ()).result()?, Some(1));
    /// assert!(WORDS.get().is_none(), "not in this process");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn preload<O: InitOutcome>(mut self, f: fn() -> O) -> Self {
        let name = call::name_of_initializer(f);
        self.preload = Some(name.map(|name| (name.descriptor, name.function)));
        self
    }

    /// Executes this file as the fork server, in place of the one this program was started from: for programs whose own
    /// file cannot be executed again where it lies. It must hold the same build of the same program, which is checked by
    /// its build id and its layout before anything is executed.
    ///
    /// Where this crate is part of a *shared object* in a foreign program, an extension module of an interpreter, say, that
    /// program is executed again with the shared object preloaded (`LD_PRELOAD`), and taken over before its `main`: workers
    /// have the functions of the shared object and nothing that the program would have set up, no interpreter for example.
    /// It must resolve what the shared object needs when it is loaded. This names another such program; it is not looked at
    /// before it is executed, and called with `--version`, should it load nothing.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let same = std::env::current_exe()?;
    /// let pool = ProcessPoolExecutor::builder().max_workers(1).worker_executable(same).build()?;
    /// assert_eq!(pool.submit(|n: u32| n + 1, 1).result()?, 2);
    ///
    /// let other = ProcessPoolExecutor::builder().worker_executable("/bin/sh").build();
    /// assert!(other.unwrap_err().to_string().contains("another program"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn worker_executable(mut self, file: impl Into<PathBuf>) -> Self {
        self.zygote.program = Some(file.into());
        self
    }

    /// Pins workers to processors: the one with index `i` runs on the `i`th of these alone, round and round. What it starts
    /// does, too. Default: workers run wherever the system lets them.
    ///
    /// Building the pool fails if the list is empty or names a processor this process may not use.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let error = ProcessPoolExecutor::builder().affinity([1_000_000]).build().unwrap_err();
    /// assert!(error.to_string().starts_with("affinity names processor 1000000"));
    /// ```
    pub fn affinity(mut self, processors: impl IntoIterator<Item = u32>) -> Self {
        self.affinity = Some(processors.into_iter().collect());
        self
    }

    /// Where the fork server comes from. Default: a fresh execution of this program.
    ///
    /// ```
    /// # use executor_process::{ProcessPoolExecutor, StartMethod};
    /// let pool = ProcessPoolExecutor::builder().start_method(StartMethod::ForkServer).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn start_method(mut self, method: StartMethod) -> Self {
        self.zygote.method = method;
        self
    }

    /// Limits what each worker may map, in bytes. Beyond it allocations fail: a task that asks in a way that can fail
    /// (`try_reserve`) is told, any other dies and ends in [`TaskError::LimitExceeded`] (in `WorkerDied` where its standard
    /// error is [`WorkerStdio::Direct`], since its last words tell). Default: no limit.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let pool = ProcessPoolExecutor::builder().memory_limit(1 << 30).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Limits the processor time of each worker in its life, rounded up to whole seconds: the task at which it runs out
    /// ends in [`TaskError::LimitExceeded`], and the worker is replaced. Default: no limit.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// # use std::time::Duration;
    /// let pool = ProcessPoolExecutor::builder().cpu_time_limit(Duration::from_secs(600)).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn cpu_time_limit(mut self, limit: Duration) -> Self {
        self.cpu_time_limit = Some(limit);
        self
    }

    /// Limits how many files each worker may have open. Default: what this process started with.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let pool = ProcessPoolExecutor::builder().open_files_limit(64).build()?;
    /// # drop(pool);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn open_files_limit(mut self, files: u64) -> Self {
        self.open_files_limit = Some(files);
        self
    }

    /// Sets a variable in the workers' environment, beside those of this process.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let pool = ProcessPoolExecutor::builder().max_workers(1).env("MODE", "worker").build()?;
    /// assert_eq!(pool.submit(|()| std::env::var("MODE").ok(), ()).result()?.as_deref(), Some("worker"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.zygote.env.push((name.into(), value.into()));
        self
    }

    /// Where the workers' standard output goes. Default: where that of this process goes.
    ///
    /// ```
    /// # use executor_process::{ProcessPoolExecutor, WorkerStdio};
    /// let pool = ProcessPoolExecutor::builder().max_workers(1).stdout(WorkerStdio::Null).build()?;
    /// pool.submit(|()| println!("unseen"), ()).wait();
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn stdout(mut self, stdout: WorkerStdio) -> Self {
        self.zygote.stdout = stdout;
        self
    }

    /// Where the workers' standard error goes. Default: where that of this process goes, by way of the pool, which keeps
    /// the last lines of each worker for [`WorkerDeath::stderr`](executor_core::DeathDetails::stderr). What a task has
    /// printed is out before its result is known. Programs that look whether they print to a terminal see a pipe; with
    /// [`WorkerStdio::Direct`] they see what this process has, and nothing is kept.
    ///
    /// ```
    /// # use executor_process::{ProcessPoolExecutor, WorkerStdio};
    /// let pool = ProcessPoolExecutor::builder().max_workers(1).stderr(WorkerStdio::Null).build()?;
    /// assert!(pool.submit(|()| -> u8 { panic!("not printed") }, ()).result().unwrap_err().is_panic());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub const fn stderr(mut self, stderr: WorkerStdio) -> Self {
        self.zygote.stderr = stderr;
        self
    }

    /// Builds the pool and starts its fork server; workers start when they are needed.
    ///
    /// # Errors
    ///
    /// [`BuildError::InvalidOption`] names the option and its value; the others say what the system refused, or that pools
    /// are nested too deep: a task may make a pool of its own, whose tasks may, down to eight.
    ///
    /// ```
    /// # use executor_process::ProcessPoolExecutor;
    /// let error = ProcessPoolExecutor::builder().max_tasks_per_worker(0).build().unwrap_err();
    /// assert_eq!(error.to_string(), "max_tasks_per_worker must be at least 1, got 0");
    /// ```
    pub fn build(self) -> Result<ProcessPoolExecutor, BuildError> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let max_workers = self.max_workers.unwrap_or_else(executor_core::usable_processors);
        check_max_workers(max_workers)?;
        at_least_one("queue_capacity", self.queue_capacity.map_or(1, |tasks| tasks as u64))?;
        at_least_one("max_tasks_per_worker", self.max_tasks_per_worker.unwrap_or(1))?;
        let initializer = self
            .initializer
            .transpose()
            .map_err(|error| BuildError::invalid("initializer", format!("cannot be sent: {error}")))?;
        let mut config = self.zygote;
        config.preload = self
            .preload
            .transpose()
            .map_err(|error| BuildError::invalid("preload", format!("cannot be sent: {error}")))?;
        if config.program.is_some() && config.method != StartMethod::ForkServer {
            let problem = "needs StartMethod::ForkServer: a fork executes nothing";
            return Err(BuildError::invalid("worker_executable", problem));
        }
        let affinity = check_affinity(self.affinity)?;
        let depth = zygote::depth();
        if depth >= MOST_DEPTH {
            return Err(BuildError::startup(format!(
                "pools of worker processes are nested {depth} deep here, in a task of a task: no deeper one is made \
                 (at most {MOST_DEPTH})"
            )));
        }
        let id = PoolId::next();
        let prefix = self.name_prefix.unwrap_or_else(|| {
            // ORDERING: relaxed, only uniqueness matters.
            format!("ProcessPoolExecutor-{}", NEXT.fetch_add(1, Ordering::Relaxed))
        });
        let setup = Setup {
            initializer,
            message_limit: self.message_limit,
            memory_limit: self.memory_limit,
            cpu_time_limit: self.cpu_time_limit.map(whole_seconds),
            open_files_limit: self.open_files_limit,
            max_memory_growth: self.max_memory_growth,
        };
        let mut encoded_setup = Vec::new();
        codec::encode(&setup, &mut encoded_setup).map_err(String::from).map_err(BuildError::startup)?;
        let settings = Settings {
            max_workers,
            prefix: prefix.clone(),
            keep_alive: self.keep_alive,
            max_tasks_per_worker: self.max_tasks_per_worker,
            termination_grace: self.termination_grace,
            message_limit: self.message_limit,
            zygote: config,
            affinity,
            setup: encoded_setup,
            cpu_time_limit: setup.cpu_time_limit.map(Duration::from_secs),
            uses_bulk: setup.memory_limit.is_none() && setup.open_files_limit.is_none(),
            memory_limit: setup.memory_limit,
        };
        // Three descriptors a worker; where the limit cannot be raised, starting workers will say so.
        let _ = limits::raise_open_files();
        let zygote = Zygote::start(&settings.zygote).map_err(BuildError::startup)?;
        let doorbell = Doorbell::new().map_err(|error| BuildError::system("make an eventfd", error))?;
        let shared = Arc::new(Shared::new(id, settings, self.queue_capacity, doorbell));
        let front = Front::new(Arc::clone(&shared), zygote);
        let front = Arc::new(front.map_err(|error| BuildError::system("make an epoll", error))?);
        let (for_dispatcher, for_owner) = (Arc::clone(&front), Arc::downgrade(&front));
        let dispatcher = std::thread::Builder::new()
            .name(format!("{prefix}-dispatcher"))
            .spawn(move || for_dispatcher.run())
            .map_err(|error| BuildError::system("start the dispatcher's thread", error))?;
        shared.keep_dispatcher(dispatcher);
        owner::register(id, for_owner);
        Ok(ProcessPoolExecutor::new_handle(front))
    }
}

fn check_affinity(affinity: Option<Vec<u32>>) -> Result<Vec<u32>, BuildError> {
    let Some(affinity) = affinity else { return Ok(Vec::new()) };
    if affinity.is_empty() {
        return Err(BuildError::invalid("affinity", "must name at least one processor"));
    }
    let usable = process::usable_processors()
        .map_err(|error| BuildError::system("ask which processors may be used", error))?;
    match affinity.iter().find(|processor| !usable.contains(processor)) {
        Some(processor) => {
            let problem = format!("names processor {processor}, and this process may use {usable:?}");
            Err(BuildError::invalid("affinity", problem))
        }
        None => Ok(affinity),
    }
}

pub(crate) fn check_max_workers(max_workers: usize) -> Result<(), BuildError> {
    at_least_one("max_workers", max_workers as u64)?;
    if max_workers > MOST_WORKERS {
        let problem = format!("must be at most {MOST_WORKERS}, got {max_workers}");
        return Err(BuildError::invalid("max_workers", problem));
    }
    Ok(())
}

fn at_least_one(option: &'static str, value: u64) -> Result<(), BuildError> {
    if value == 0 { Err(BuildError::invalid(option, "must be at least 1, got 0")) } else { Ok(()) }
}

/// Rounded up: no limit is shorter than asked for.
fn whole_seconds(limit: Duration) -> u64 {
    limit.as_secs() + u64::from(limit.subsec_nanos() > 0)
}
