//! The work-stealing thread pool. From a submit to its result, one direction:
//!
//! ```text
//!   pool (API) ─► registry (admits, owns the phases) ─► queue ─► worker (takes, runs) ─► the task's cell ─► future
//!                                  └─► sleep (wakes or starts a worker)      └─► timer
//! ```
//!
//! The queue is made of the workers' deques and the [`injector`] for tasks from outside. Beside that road lie the calls
//! that lend what they work on: `scope`, `join`, and [`slice`] (`scope.map`), which brings its own way to share work.

mod builder;
mod chunk;
mod injector;
mod join;
mod pool;
mod queue;
mod registry;
mod retry;
mod scope;
mod sleep;
mod slice;
mod spawn_future;
mod timer;
mod worker;

pub use builder::{InitOutcome, ThreadPoolBuilder};
pub use pool::{ClosureMapper, ThreadPoolExecutor};
pub use scope::{Scope, ScopedFuture};
