//! A call on its way to somewhere else: what may travel, the function, its context, its options, its results.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::TaskError;
use crate::panic_report;
use crate::sync::system::AtomicU64;
use crate::sync::{Arc, Ordering};

/// What may be sent to another process: everything serde can write and read back.
///
/// ```
/// fn sendable<T: executor_core::Payload>() {}
/// sendable::<(u32, String, Option<Vec<f64>>)>();
/// ```
///
/// Borrowed data cannot be sent; own it:
///
/// ```compile_fail,E0277
/// fn sendable<T: executor_core::Payload>() {}
/// sendable::<std::rc::Rc<u32>>();
/// ```
pub trait Payload: Serialize + DeserializeOwned + Send + 'static {}

impl<T: Serialize + DeserializeOwned + Send + 'static> Payload for T {}

/// What a call asks for beyond function and argument.
///
/// ```
/// let options = executor_core::CallOptions::default();
/// assert_eq!(options.retries, 0);
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CallOptions {
    /// How long a run may last, from its start.
    pub timeout: Option<Duration>,
    /// When the task must have ended.
    pub deadline: Option<Instant>,
    /// How often a task is tried again.
    pub retries: u32,
    /// Higher runs earlier; 0 if not asked for.
    pub priority: i32,
    /// How errors and statistics call the task.
    pub label: Option<Arc<str>>,
    /// Items per message of a `map`.
    pub chunk_size: Option<NonZeroUsize>,
    /// Items a `map` may have taken from its input beyond the results it has yielded.
    pub buffer_size: Option<NonZeroUsize>,
    /// Whether a `map` yields results as they come.
    pub unordered: bool,
    /// What a run may use, where the executor can see to that.
    pub limits: CallLimits,
}

/// What a run may use of its worker process; see [`LimitsCalls`](crate::LimitsCalls).
///
/// ```
/// assert_eq!(executor_core::CallLimits::default().memory, None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallLimits {
    /// Bytes it may map beyond what its worker has mapped before.
    pub memory: Option<u64>,
    /// Processor time of its process.
    pub cpu_time: Option<Duration>,
    /// Files its process may have open.
    pub open_files: Option<u64>,
}

/// A function that can be called somewhere else, with its context if it has one.
///
/// ```
/// use executor_core::Callable;
///
/// let plain = Callable::<(), _, _>::plain(|n: u32| n + 1);
/// assert_eq!(plain.run(1).unwrap(), 2);
/// let scaled = Callable::with_context(10, |scale: &u32, n: u32| scale * n);
/// assert_eq!(scaled.run(4).unwrap(), 40);
/// ```
pub struct Callable<C, A, R>(Callee<C, A, R>);

/// The two shapes of a [`Callable`].
///
/// ```
/// use executor_core::{Callable, Callee};
/// let call = Callable::<(), u8, u8>::plain(|n| n);
/// assert!(matches!(call.callee(), Callee::Plain(_)));
/// ```
#[expect(clippy::exhaustive_enums, reason = "an executor that ships calls must know every shape")]
pub enum Callee<C, A, R> {
    /// A function of its argument.
    Plain(fn(A) -> R),
    /// A function of a context, which is sent once to each worker, and its argument.
    WithContext(Arc<SharedContext<C>>, fn(&C, A) -> R),
}

/// A context of calls, the same for all of them.
///
/// ```
/// use executor_core::{Callable, Callee};
/// let call = Callable::with_context(7, |c: &u8, a: u8| c + a);
/// let Callee::WithContext(context, _) = call.callee() else { unreachable!() };
/// assert_eq!(context.value, 7);
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct SharedContext<C> {
    /// The context.
    pub value: C,
    /// Distinguishes it from every other context of this process.
    pub id: u64,
    /// Where an executor keeps its encoded form, made once.
    pub encoded: OnceLock<Result<Arc<[u8]>, TaskError>>,
}

/// What a chunk of calls came to.
///
/// ```
/// let chunk = executor_core::Callable::<(), _, _>::plain(|n: u8| n).run_chunk(vec![1, 2]);
/// assert_eq!(chunk.results.len(), 2);
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Chunk<R> {
    /// One result for each argument, in order.
    pub results: Vec<Result<R, TaskError>>,
    /// How long the calls took together.
    pub run_time: Duration,
}

impl<R> Chunk<R> {
    /// The results of a chunk.
    ///
    /// ```
    /// let chunk = executor_core::Chunk::new(vec![Ok(1)], std::time::Duration::ZERO);
    /// assert_eq!(chunk.results.len(), 1);
    /// ```
    #[must_use]
    pub const fn new(results: Vec<Result<R, TaskError>>, run_time: Duration) -> Self {
        Self { results, run_time }
    }

    /// Calls `f` on every argument; a panic is that argument's result alone.
    fn of<A>(args: Vec<A>, f: impl Fn(A) -> R) -> Self {
        let start = Instant::now();
        let mut results = Vec::with_capacity(args.len());
        let mut args = args.into_iter();
        // One guard around the loop, not one an argument. After a panic it goes on behind the argument that did.
        while args.len() > 0 {
            let caught = panic_report::catch(|| args.by_ref().for_each(|arg| results.push(Ok(f(arg)))));
            if let Err(report) = caught {
                results.push(Err(TaskError::Panicked(report)));
            }
        }
        Self { results, run_time: start.elapsed() }
    }
}

impl<C, A, R> Callable<C, A, R> {
    /// A function of its argument.
    ///
    /// ```
    /// let call = executor_core::Callable::<(), _, _>::plain(|n: u32| n * 2);
    /// assert_eq!(call.run(2).unwrap(), 4);
    /// ```
    pub const fn plain(f: fn(A) -> R) -> Self {
        Self(Callee::Plain(f))
    }

    /// A function of a context and its argument.
    ///
    /// ```
    /// let call = executor_core::Callable::with_context("hi ".to_owned(), |c: &String, a: String| c.clone() + &a);
    /// assert_eq!(call.run("you".to_owned()).unwrap(), "hi you");
    /// ```
    pub fn with_context(context: C, f: fn(&C, A) -> R) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // ORDERING: relaxed, only uniqueness matters.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Callee::WithContext(Arc::new(SharedContext { value: context, id, encoded: OnceLock::new() }), f))
    }

    /// Which shape it has.
    ///
    /// ```
    /// use executor_core::{Callable, Callee};
    /// assert!(matches!(Callable::<(), u8, u8>::plain(|n| n).callee(), Callee::Plain(_)));
    /// ```
    pub const fn callee(&self) -> &Callee<C, A, R> {
        &self.0
    }

    /// Calls the function here.
    ///
    /// # Errors
    ///
    /// [`TaskError::Panicked`] if it panics.
    ///
    /// ```
    /// let call = executor_core::Callable::<(), _, ()>::plain(|text: String| panic!("{text}"));
    /// assert!(call.run("no".to_owned()).unwrap_err().is_panic());
    /// ```
    pub fn run(&self, arg: A) -> Result<R, TaskError> {
        panic_report::catch(|| self.call(arg)).map_err(TaskError::Panicked)
    }

    /// Calls the function here on every argument; a panic is that argument's result alone.
    ///
    /// ```
    /// let chunk = executor_core::Callable::<(), _, _>::plain(|n: u32| 10 / n).run_chunk(vec![5, 0]);
    /// assert_eq!(*chunk.results[0].as_ref().unwrap(), 2);
    /// assert!(chunk.results[1].as_ref().unwrap_err().is_panic());
    /// ```
    pub fn run_chunk(&self, args: Vec<A>) -> Chunk<R> {
        Chunk::of(args, |arg| self.call(arg))
    }

    pub(crate) fn call(&self, arg: A) -> R {
        match &self.0 {
            Callee::Plain(f) => f(arg),
            Callee::WithContext(context, f) => f(&context.value, arg),
        }
    }
}

impl<C, A, R> Clone for Callable<C, A, R> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Callee::Plain(f) => Callee::Plain(*f),
            Callee::WithContext(context, f) => Callee::WithContext(Arc::clone(context), *f),
        })
    }
}

impl<C, A, R> fmt::Debug for Callable<C, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Callee::Plain(_) => "Callable(f)",
            Callee::WithContext(..) => "Callable(context, f)",
        })
    }
}

impl<C, A, R> fmt::Debug for Callee<C, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain(f)",
            Self::WithContext(..) => "WithContext(context, f)",
        })
    }
}
