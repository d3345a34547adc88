//! executor-process

#[cfg(not(target_os = "linux"))]
compile_error!(
    "the `process` feature of concurrent-futures needs Linux; build with default-features = false to use the thread \
     side alone"
);

#[cfg(target_os = "linux")]
mod image;
#[cfg(target_os = "linux")]
mod startup;
#[cfg(target_os = "linux")]
mod sync;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(target_os = "linux")]
mod worker_main;
#[cfg(target_os = "linux")]
mod zygote;

#[cfg(target_os = "linux")]
pub use self::zygote::{StartMethod, WorkerStdio};
