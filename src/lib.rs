//! Python's `concurrent.futures` for Rust.

pub use executor_core::{
    AsCompleted, AsCompletedTimeout, BuildError, CallMapper, CallOptions, Callable, Callee, Chunk,
    ClosureMapper, CurrentTask, DeathDetails, Executor, InitOutcome, Limit, Map, Mapper, Options,
    PanicDetails, PanicReport, Payload, PoolStats, Promise, ReturnWhen, SharedContext, Shutdown,
    ShutdownReport, SubmitError, TaskError, TaskFuture, ThreadPoolBuilder, ThreadPoolExecutor, Unfinished,
    Waited, WorkerDeath, WorkerInfo, as_completed, as_completed_timeout, current_task, wait,
};
#[cfg(feature = "macros")]
pub use executor_macros::task;
#[cfg(feature = "process")]
pub use executor_process::{ProcessPoolBuilder, ProcessPoolExecutor, StartMethod, WorkerStdio};
