//! The `ProcessPoolExecutor` of `concurrent-futures`: serialized tasks, shipped to forked worker processes.
//!
//! People use this crate through the facade, `concurrent-futures`, whose documentation has the guide. Here is the
//! inside, lower rows knowing nothing of higher ones (`tests/architecture.rs` of the facade sees to it):
//!
//! ```text
//!   this process                                              worker processes
//!   builder · pool       the API
//!   dispatcher           owns everything, one thread
//!   shared               what handles and dispatcher share
//!   worker · job         one child · what it is to run
//!   zygote · startup     the fork server and its start before `main`, on both sides
//!                                                             worker_main     the loop that runs tasks
//!   call · wire · gate · ring · bell · bulk                   what crosses, and how
//!   share · descriptor · attach                               what may travel beside the bytes
//!   image · sys · sync   addresses, system calls, locks
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!(
    "the `process` feature of concurrent-futures needs Linux; build with default-features = false to use the thread \
     side alone"
);

#[cfg(target_os = "linux")]
mod attach;
#[cfg(target_os = "linux")]
mod bell;
#[cfg(target_os = "linux")]
mod builder;
#[cfg(target_os = "linux")]
mod bulk;
#[cfg(target_os = "linux")]
mod call;
#[cfg(target_os = "linux")]
mod descriptor;
#[cfg(target_os = "linux")]
mod dispatcher;
#[cfg(all(test, target_os = "linux"))]
mod fuzz;
#[cfg(target_os = "linux")]
mod gate;
#[cfg(target_os = "linux")]
mod image;
#[cfg(target_os = "linux")]
mod job;
#[cfg(target_os = "linux")]
mod pool;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(target_os = "linux")]
mod share;
#[cfg(target_os = "linux")]
mod shared;
#[cfg(target_os = "linux")]
mod startup;
#[cfg(target_os = "linux")]
mod sync;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(target_os = "linux")]
mod wire;
#[cfg(target_os = "linux")]
mod worker;
#[cfg(target_os = "linux")]
mod worker_main;
#[cfg(target_os = "linux")]
mod zygote;

#[cfg(target_os = "linux")]
pub use builder::ProcessPoolBuilder;
#[cfg(target_os = "linux")]
pub use descriptor::Fd;
#[cfg(target_os = "linux")]
pub use pool::ProcessPoolExecutor;
#[cfg(target_os = "linux")]
pub use share::{Plain, Shared};
#[cfg(target_os = "linux")]
pub use zygote::{StartMethod, WorkerStdio};
