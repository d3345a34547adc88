//! Futures, the `Executor` trait and the work-stealing `ThreadPoolExecutor` of `concurrent-futures`.
//!
//! People use this crate through the facade, `concurrent-futures`, whose documentation has the guide. Here is the
//! inside, lower rows knowing nothing of higher ones (`tests/architecture.rs` of the facade sees to it):
//!
//! ```text
//!   thread_pool   builder · pool · scope · spawn_future · chunk · retry
//!                 registry · worker · queue · sleep · timer
//!   executor      trait Executor, options
//!   map           Map: window, chunks · call: what travels
//!   future        TaskFuture, Promise · wait, as_completed · current
//!   host          what a worker offers to a wait on it
//!   task          the one heap cell
//!   owner         the way from a task back to its pool
//!   admission · counters · stats
//!   codec · worker_local · trace
//!   error · panic_report · fork · os · sync
//!
//!   unsafe code: task (the cell), scope (lifetimes), fork and os (one system call each)
//! ```

pub mod admission;
mod call;
pub mod codec;
pub mod counters;
mod current;
mod error;
mod executor;
pub mod fork;
mod future;
pub mod host;
mod map;
mod os;
pub mod owner;
pub mod panic_report;
mod stats;
pub mod sync;
mod task;
mod thread_pool;
mod trace;
mod wait;
mod worker_local;

pub use call::{CallLimits, CallOptions, Callable, Callee, Chunk, Payload, SharedContext};
pub use current::{CurrentTask, current_task};
pub use error::{BuildError, DeathDetails, Limit, SubmitError, TaskError, WorkerDeath};
pub use executor::{Again, CallMapper, Executor, LimitsCalls, Once, Options, Shutdown};
pub use future::{Promise, TaskFuture};
pub use map::{Map, Mapper};
pub use panic_report::{PanicDetails, PanicReport};
pub use stats::{PoolStats, ShutdownReport, WorkerInfo};
pub use thread_pool::{
    ClosureMapper, InitOutcome, Scope, ScopedFuture, ThreadPoolBuilder, ThreadPoolExecutor,
};
pub use wait::{
    AsCompleted, AsCompletedTimeout, ReturnWhen, Unfinished, Waited, as_completed, as_completed_timeout, wait,
};
pub use worker_local::WorkerLocal;

/// How many processors this process may use, by affinity and cgroup quota: the one place that asks.
///
/// ```
/// assert!(executor_core::usable_processors() >= 1);
/// ```
#[must_use]
pub fn usable_processors() -> usize {
    num_cpus::get()
}
