//! What can go wrong: building a pool, submitting a task, running it.
//!
//! Texts are lower case and say what was being done; a cause in another layer, if there is one, is the
//! [`source`](std::error::Error::source). A user function's own `Result` is an ordinary value and never appears here.

use std::error::Error;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use crate::panic_report::PanicReport;

/// Why a pool could not be built.
///
/// ```
/// use executor_core::{BuildError, ThreadPoolExecutor};
///
/// let refused = ThreadPoolExecutor::new(0).unwrap_err();
/// assert!(matches!(refused, BuildError::InvalidOption { option: "max_workers", .. }));
/// assert_eq!(refused.to_string(), "max_workers must be at least 1, got 0");
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// An option of the builder has a value it cannot have.
    #[non_exhaustive]
    InvalidOption {
        /// The builder's method that set it.
        option: &'static str,
        /// The value, and what was wrong with it.
        problem: String,
    },
    /// The operating system refused something the pool cannot do without.
    #[non_exhaustive]
    System {
        /// What was being done.
        action: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The pool's start-up could not be carried out.
    Startup(Box<dyn Error + Send + Sync>),
}

impl BuildError {
    /// An option with a value it cannot have: `problem` completes the sentence `<option> …`.
    ///
    /// ```
    /// let error = executor_core::BuildError::invalid("max_workers", "must be at least 1, got 0");
    /// assert_eq!(error.to_string(), "max_workers must be at least 1, got 0");
    /// ```
    #[must_use]
    pub fn invalid(option: &'static str, problem: impl Into<String>) -> Self {
        Self::InvalidOption { option, problem: problem.into() }
    }

    /// The start-up failed for a reason of its own.
    ///
    /// ```
    /// assert!(executor_core::BuildError::startup("no licence").to_string().contains("no licence"));
    /// ```
    #[must_use]
    pub fn startup(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Startup(reason.into())
    }

    /// The system refused `action`.
    ///
    /// ```
    /// let source = std::io::Error::other("too many of them");
    /// let error = executor_core::BuildError::system("start a thread", source);
    /// assert!(error.to_string().contains("start a thread"));
    /// ```
    #[must_use]
    pub fn system(action: impl Into<String>, source: std::io::Error) -> Self {
        Self::System { action: action.into(), source }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidOption { option, problem } => write!(f, "{option} {problem}"),
            Self::System { action, .. } => write!(f, "could not {action}"),
            Self::Startup(reason) => reason.fmt(f),
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            Self::Startup(reason) => reason.source(),
            Self::InvalidOption { .. } => None,
        }
    }
}

/// Why `try_submit` refused a task. Function and argument come back.
///
/// ```
/// use executor_core::{SubmitError, ThreadPoolExecutor};
///
/// let pool = ThreadPoolExecutor::new(1)?;
/// pool.shutdown();
/// let refused = pool.try_submit(str::len, "given back").unwrap_err();
/// assert!(matches!(refused, SubmitError::ShutDown { .. }));
/// let (function, argument) = refused.into_parts();
/// assert_eq!(function(argument), 10);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[non_exhaustive]
pub enum SubmitError<F, A> {
    /// The bounded queue is full.
    Full {
        /// The function, untouched.
        function: F,
        /// Its argument, untouched.
        argument: A,
    },
    /// The pool was shut down.
    ShutDown {
        /// The function, untouched.
        function: F,
        /// Its argument, untouched.
        argument: A,
    },
    /// The pool is broken and runs nothing any more.
    Broken {
        /// The function, untouched.
        function: F,
        /// Its argument, untouched.
        argument: A,
        /// What broke it.
        reason: String,
    },
    /// This process is a forked child of the one that built the pool.
    ForkedChild {
        /// The function, untouched.
        function: F,
        /// Its argument, untouched.
        argument: A,
    },
    /// The argument could not be encoded for the journey.
    Encode {
        /// The function, untouched.
        function: F,
        /// Its argument, untouched.
        argument: A,
        /// What the encoder said.
        reason: String,
    },
}

impl<F, A> SubmitError<F, A> {
    /// The function and the argument that were not submitted.
    ///
    /// ```
    /// let pool = executor_core::ThreadPoolExecutor::new(1)?;
    /// pool.shutdown();
    /// let (function, argument) = pool.try_submit(|n: u32| n + 1, 41).unwrap_err().into_parts();
    /// assert_eq!(function(argument), 42);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn into_parts(self) -> (F, A) {
        match self {
            Self::Full { function, argument }
            | Self::ShutDown { function, argument }
            | Self::Broken { function, argument, .. }
            | Self::ForkedChild { function, argument }
            | Self::Encode { function, argument, .. } => (function, argument),
        }
    }

    fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { .. } => f.write_str("the pool's queue is full"),
            Self::ShutDown { .. } => f.write_str("the pool was shut down"),
            Self::Broken { reason, .. } => write!(f, "the pool is broken: {reason}"),
            Self::ForkedChild { .. } => f.write_str(FORKED_CHILD),
            Self::Encode { reason, .. } => write!(f, "the argument could not be encoded: {reason}"),
        }
    }
}

impl<F, A> fmt::Display for SubmitError<F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text(f)
    }
}

impl<F, A> fmt::Debug for SubmitError<F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Full { .. } => "Full",
            Self::ShutDown { .. } => "ShutDown",
            Self::Broken { .. } => "Broken",
            Self::ForkedChild { .. } => "ForkedChild",
            Self::Encode { .. } => "Encode",
        };
        write!(f, "{name}(")?;
        self.text(f)?;
        f.write_str(")")
    }
}

impl<F, A> Error for SubmitError<F, A> {}

/// Why a task has no value.
///
/// ```
/// use executor_core::{TaskError, ThreadPoolExecutor};
///
/// let pool = ThreadPoolExecutor::new(1)?;
/// let failed = pool.submit(|n: i32| if n < 0 { panic!("{n} is negative") }, -3).result();
/// match failed {
///     Err(TaskError::Panicked(report)) => assert_eq!(report.message, "-3 is negative"),
///     other => unreachable!("{other:?}"),
/// }
/// # Ok::<(), executor_core::BuildError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TaskError {
    /// The task panicked.
    Panicked(PanicReport),
    /// The task was cancelled before it started.
    Cancelled,
    /// The task did not end within its time-out or by its deadline; or, from `result_timeout`, has not ended yet.
    TimedOut,
    /// The worker process died while it ran the task.
    WorkerDied(WorkerDeath),
    /// The task went over a limit set for it.
    LimitExceeded(Limit),
    /// The argument, the context or the result could not be encoded.
    Encode(Box<str>),
    /// The argument, the context or the result could not be decoded on the other side.
    Decode(Box<str>),
    /// An argument or a result was larger than the pool allows.
    #[non_exhaustive]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The largest size allowed, in bytes.
        limit: u64,
    },
    /// The tasks named wait for each other in a ring, so none of them could ever end.
    Deadlock(Box<str>),
    /// The pool is broken, for the reason given.
    Broken(Box<str>),
    /// The pool was shut down before the task was accepted.
    ShutDown,
    /// This process is a forked child of the one the task was submitted in.
    ForkedChild,
    /// Nobody is left who could give the value: the [`Promise`](crate::Promise) was dropped, or the value was
    /// already moved out.
    Abandoned,
}

impl TaskError {
    /// A message of `size` bytes where `limit` are allowed.
    ///
    /// ```
    /// let error = executor_core::TaskError::too_large(5_000, 4_096);
    /// assert_eq!(error.to_string(), "the message is too large: 5000 bytes, and 4096 are allowed");
    /// ```
    #[must_use]
    pub const fn too_large(size: u64, limit: u64) -> Self {
        Self::TooLarge { size, limit }
    }

    /// Whether the task panicked.
    ///
    /// ```
    /// use executor_core::{Promise, TaskError};
    /// let (promise, future) = Promise::<()>::new();
    /// drop(promise);
    /// assert!(!future.result().unwrap_err().is_panic());
    /// ```
    #[must_use]
    pub const fn is_panic(&self) -> bool {
        matches!(self, Self::Panicked(_))
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(report) => write!(f, "the task panicked: {report}"),
            Self::Cancelled => f.write_str("the task was cancelled"),
            Self::TimedOut => f.write_str("the task did not end in time"),
            Self::WorkerDied(death) => death.fmt(f),
            Self::LimitExceeded(limit) => write!(f, "the task went over its limit on {limit}"),
            Self::Encode(reason) => write!(f, "could not encode: {reason}"),
            Self::Decode(reason) => write!(f, "could not decode: {reason}"),
            Self::TooLarge { size, limit } => {
                write!(f, "the message is too large: {size} bytes, and {limit} are allowed")
            }
            Self::Deadlock(ring) => write!(f, "deadlock: {ring}"),
            Self::Broken(reason) => write!(f, "the pool is broken: {reason}"),
            Self::ShutDown => f.write_str("the pool was shut down"),
            Self::ForkedChild => f.write_str(FORKED_CHILD),
            Self::Abandoned => f.write_str("the task was abandoned: nobody is left to finish it"),
        }
    }
}

/// The text says everything, so that it does so wherever only that is printed; the report of a panic or a death is the
/// source too, for those who look for it there.
impl Error for TaskError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Panicked(report) => Some(report),
            Self::WorkerDied(death) => Some(death),
            _ => None,
        }
    }
}

const FORKED_CHILD: &str = "this process is a forked child; the pool belongs to its parent";

/// How a worker process ended while it ran a task.
///
/// Exactly one of [`exit_code`](DeathDetails::exit_code) and [`signal`](DeathDetails::signal) is set, or neither when the system
/// could not tell any more (the fork server was killed with its workers).
///
/// ```
/// use executor_core::WorkerDeath;
/// use std::time::Duration;
///
/// let mut death = WorkerDeath::new(4711, Duration::from_millis(12));
/// death.signal = Some(6);
/// death.label = Some("resize".into());
/// assert_eq!(death.to_string(), "worker process 4711 died of SIGABRT while it ran `resize`, after 12ms");
///
/// death.stderr = "loading\nfree(): invalid pointer\n".into();
/// assert!(death.to_string().ends_with("; the last line of its stderr: free(): invalid pointer"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerDeath(Box<DeathDetails>);

/// What a [`WorkerDeath`] tells: its fields are read through the death itself, `death.signal`.
///
/// ```
/// let death = executor_core::WorkerDeath::new(4711, std::time::Duration::ZERO);
/// assert_eq!(death.pid, 4711);
/// assert_eq!(death.signal, None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeathDetails {
    /// The process id of the worker.
    pub pid: u32,
    /// The exit code, if the process exited.
    pub exit_code: Option<i32>,
    /// The number of the signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether the system wrote a core file.
    pub core_dumped: bool,
    /// Processor time the worker used in its life.
    pub cpu_time: Duration,
    /// The most memory the worker had resident, in bytes.
    pub peak_memory: u64,
    /// The label of the task, if it had one.
    pub label: Option<String>,
    /// How long the task had been running.
    pub run_time: Duration,
    /// Which attempt at the task this was: 1 for the first, one more for each retry.
    pub attempt: u32,
    /// Whether the kernel killed it for want of memory, as far as the kernel tells.
    pub out_of_memory: bool,
    /// The end of what the worker had written to its standard error, a few KiB at the most: the last lines of the
    /// task, and before them perhaps lines of earlier ones. What is not UTF-8 is replaced.
    pub stderr: String,
}

impl WorkerDeath {
    /// A death of which only the process and the task's run time are known yet.
    ///
    /// ```
    /// let death = executor_core::WorkerDeath::new(17, std::time::Duration::from_secs(1));
    /// assert_eq!((death.pid, death.exit_code), (17, None));
    /// ```
    #[must_use]
    pub fn new(pid: u32, run_time: Duration) -> Self {
        Self(Box::new(DeathDetails {
            pid,
            exit_code: None,
            signal: None,
            core_dumped: false,
            cpu_time: Duration::ZERO,
            peak_memory: 0,
            label: None,
            run_time,
            attempt: 1,
            out_of_memory: false,
            stderr: String::new(),
        }))
    }
}

impl Deref for WorkerDeath {
    type Target = DeathDetails;

    fn deref(&self) -> &DeathDetails {
        &self.0
    }
}

impl DerefMut for WorkerDeath {
    fn deref_mut(&mut self) -> &mut DeathDetails {
        &mut self.0
    }
}

impl fmt::Display for WorkerDeath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker process {} ", self.pid)?;
        match (self.exit_code, self.signal) {
            (Some(code), _) => write!(f, "exited with code {code}")?,
            (None, Some(signal)) => match signal_name(signal) {
                Some(name) => write!(f, "died of {name}")?,
                None => write!(f, "died of signal {signal}")?,
            },
            (None, None) => f.write_str("died of an unknown cause")?,
        }
        if self.core_dumped {
            f.write_str(" (core dumped)")?;
        }
        if self.out_of_memory {
            f.write_str(" (killed by the kernel: out of memory)")?;
        }
        match &self.label {
            Some(label) => write!(f, " while it ran `{label}`")?,
            None => f.write_str(" while it ran a task")?,
        }
        write!(f, ", after {:?}", self.run_time)?;
        if self.attempt > 1 {
            write!(f, ", at attempt {}: it has ended as many workers and is given up", self.attempt)?;
        }
        match self.stderr.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(last) => write!(f, "; the last line of its stderr: {}", Shortened(last.trim())),
            None => Ok(()),
        }
    }
}

impl Error for WorkerDeath {}

/// A line of somebody's output inside a message of ours: without control characters, and not too long.
struct Shortened<'a>(&'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 200;
        for (count, sign) in self.0.chars().enumerate() {
            if count == LONGEST {
                return f.write_str("…");
            }
            write!(f, "{}", if sign.is_control() { ' ' } else { sign })?;
        }
        Ok(())
    }
}

/// The names of the signals that end processes, with their Linux numbers.
const fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// A limit a task can go over, with what was allowed.
///
/// ```
/// use executor_core::Limit;
/// use std::time::Duration;
///
/// assert_eq!(Limit::CpuTime(Duration::from_secs(2)).to_string(), "processor time (2s)");
/// assert_eq!(Limit::Memory(1 << 20).to_string(), "memory (1048576 bytes)");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// Memory the worker process may map, in bytes.
    Memory(u64),
    /// Processor time the worker process may use.
    CpuTime(Duration),
    /// Files the worker process may have open.
    OpenFiles(u64),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(f, "memory ({bytes} bytes)"),
            Self::CpuTime(time) => write!(f, "processor time ({time:?})"),
            Self::OpenFiles(files) => write!(f, "open files ({files})"),
        }
    }
}
