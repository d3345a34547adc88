//! What a piece of work costs: wall time and processor time, children included.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// The price of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// User and system time of this process and of every descendant that ended during the run.
    pub(crate) cpu: Duration,
}

/// Runs `work` and reads the clocks around it.
///
/// The workers of a process pool are our *grandchildren*: the fork server between is their parent. The kernel adds a
/// child's time, and what that child had collected from its own children, to `RUSAGE_CHILDREN` when the child is
/// reaped. So the whole life of the pool, `shutdown` included, has to be inside `work`; a reading taken before the
/// fork server is gone would miss every worker.
pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> Result<(T, Cost), nix::Error> {
    let cpu_before = cpu_time()?;
    let started = Instant::now();
    let value = work();
    let wall = started.elapsed();
    let cpu = cpu_time()?.saturating_sub(cpu_before);
    Ok((value, Cost { wall, cpu }))
}

fn cpu_time() -> Result<Duration, nix::Error> {
    let mut total = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        total += duration(usage.user_time()) + duration(usage.system_time());
    }
    Ok(total)
}

fn duration(time: TimeVal) -> Duration {
    // Processor times are never negative; a kernel that says otherwise is read as zero.
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}
