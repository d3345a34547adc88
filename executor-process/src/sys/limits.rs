//! Resource limits: more descriptors for the parent of many workers, fewer things for a worker.
//!
//! A parent needs about two descriptors for each worker, and the usual soft limit is 1,024. [`raise_open_files`] moves
//! the soft limit to the hard one, once in a process, and remembers what it was; the fork server puts it back, so that
//! tasks see the limit they would see anywhere else (`select` breaks above 1,024).
//!
//! # Limits of one task
//!
//! [`Applied`] limits the process for the length of one task. It lowers *soft* limits only, which may be raised again up to
//! the hard ones, so nothing of them is left after the task. Processor time has no such limit that ends at the right
//! place (its clock never goes back, and counts whole seconds), so two timers of the process's own clock send the
//! signals, and are deleted afterwards.
//!
//! * I1: the calls here take numbers and memory of ours only.

use super::retry;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

static ORIGINAL_OPEN_FILES: OnceLock<u64> = OnceLock::new();

/// What a worker may be kept from using without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Bytes of address space; beyond it allocations fail.
    AddressSpace,
    /// Seconds of processor time; SIGXCPU at the soft limit, SIGKILL at the hard one.
    CpuTime,
    /// One more than the highest descriptor number.
    OpenFiles,
}

impl Limit {
    const fn resource(self) -> Resource {
        match self {
            Self::AddressSpace => Resource::RLIMIT_AS,
            Self::CpuTime => Resource::RLIMIT_CPU,
            Self::OpenFiles => Resource::RLIMIT_NOFILE,
        }
    }

    /// Limits the calling process, for good: to `soft`, and to `hard` past which it cannot raise `soft` again.
    /// Neither goes above the hard limit there is.
    pub(crate) fn set(self, soft: u64, hard: u64) -> io::Result<()> {
        let (_, ceiling) = retry(|| getrlimit(self.resource()))?;
        let hard = hard.min(ceiling);
        retry(|| setrlimit(self.resource(), soft.min(hard), hard))
    }

    /// The limits of the calling process, soft and hard.
    pub(crate) fn current(self) -> io::Result<(u64, u64)> {
        retry(|| getrlimit(self.resource()))
    }
}

/// Raises the soft limit of open files to the hard one and remembers the old soft limit.
pub(crate) fn raise_open_files() -> io::Result<()> {
    let (soft, hard) = Limit::OpenFiles.current()?;
    if soft >= hard {
        return Ok(());
    }
    let _ = ORIGINAL_OPEN_FILES.set(soft);
    retry(|| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
}

/// The soft limit of open files before [`raise_open_files`]; `None` if that changed nothing.
pub(crate) fn original_open_files() -> Option<u64> {
    ORIGINAL_OPEN_FILES.get().copied()
}

/// Puts the soft limit of open files to `soft` and leaves the hard one.
pub(crate) fn lower_open_files(soft: u64) -> io::Result<()> {
    let (_, hard) = Limit::OpenFiles.current()?;
    retry(|| setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard))
}

/// The limits of one task, while it runs.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// The soft limits before.
    before: Vec<(Limit, u64)>,
    timers: Vec<CpuTimer>,
}

impl Applied {
    /// Lowers a soft limit until [`take_off`](Self::take_off).
    pub(crate) fn lower(&mut self, limit: Limit, to: u64) -> io::Result<()> {
        let (soft, hard) = limit.current()?;
        if to < soft {
            retry(|| setrlimit(limit.resource(), to, hard))?;
            self.before.push((limit, soft));
        }
        Ok(())
    }

    /// Ends the process when it has used this much more processor time: by SIGXCPU, and a second later by SIGKILL.
    pub(crate) fn limit_cpu_time(&mut self, time: Duration) -> io::Result<()> {
        for (signal, after) in
            [(libc::SIGXCPU, time), (libc::SIGKILL, time.saturating_add(Duration::from_secs(1)))]
        {
            self.timers.push(CpuTimer::start(signal, after)?);
        }
        Ok(())
    }

    /// Restores what was; false if it cannot be, since the task has lowered a hard limit.
    pub(crate) fn take_off(self) -> bool {
        drop(self.timers);
        self.before.into_iter().all(|(limit, soft)| {
            limit.current().is_ok_and(|(_, hard)| {
                soft <= hard && retry(|| setrlimit(limit.resource(), soft, hard)).is_ok()
            })
        })
    }
}

/// Sends a signal to this process when it has used so much processor time. Deleted on drop.
#[derive(Debug)]
struct CpuTimer(libc::timer_t);

impl CpuTimer {
    fn start(signal: libc::c_int, after: Duration) -> io::Result<Self> {
        // SAFETY: zeros are a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = signal;
        let mut timer = ptr::null_mut();
        // SAFETY: I1.
        Errno::result(unsafe {
            libc::timer_create(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut event, &raw mut timer)
        })?;
        let timer = Self(timer);
        // SAFETY: zeros are a valid `itimerspec`: no interval.
        let mut when: libc::itimerspec = unsafe { MaybeUninit::zeroed().assume_init() };
        // Nothing at all would switch the timer off.
        let after = after.max(Duration::from_nanos(1));
        when.it_value.tv_sec = libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX);
        when.it_value.tv_nsec = libc::c_long::from(i32::try_from(after.subsec_nanos()).unwrap_or(0));
        // SAFETY: I1: the timer was made above.
        Errno::result(unsafe { libc::timer_settime(timer.0, 0, &raw const when, ptr::null_mut()) })?;
        Ok(timer)
    }
}

impl Drop for CpuTimer {
    fn drop(&mut self) {
        // SAFETY: I1: made by `start`, and deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// How much processor time this process has used.
pub(crate) fn cpu_time() -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: I1. This clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, time.as_mut_ptr()) };
    // SAFETY: zeros are a valid `timespec`, and the call fills it or leaves it.
    let time = unsafe { time.assume_init() };
    let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), nanos)
}

/// The memory of this process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Everything that is mapped, used or not.
    pub(crate) mapped: u64,
    /// What is there and belongs to no file.
    pub(crate) own: u64,
}

impl Memory {
    /// `None` where the kernel does not tell, or no file can be opened.
    pub(crate) fn now() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/statm").ok()?;
        let mut pages = text.split(' ').map(|number| number.trim().parse::<u64>().ok());
        let (mapped, resident, shared) = (pages.next()??, pages.next()??, pages.next()??);
        // SAFETY: I1.
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
        Some(Self { mapped: mapped * page, own: resident.saturating_sub(shared) * page })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_a_task_is_taken_off_as_if_it_had_not_been() {
        let before = Limit::OpenFiles.current().unwrap();
        let mut applied = Applied::default();
        applied.lower(Limit::OpenFiles, before.0 - 1).unwrap();
        applied.limit_cpu_time(Duration::from_secs(3600)).unwrap();
        assert_eq!(Limit::OpenFiles.current().unwrap(), (before.0 - 1, before.1));
        assert!(applied.take_off());
        assert_eq!(Limit::OpenFiles.current().unwrap(), before);
    }

    #[test]
    fn memory_that_is_used_is_own_and_mapped() {
        let before = Memory::now().unwrap();
        let hoard = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = Memory::now().unwrap();
        assert!(after.own >= before.own + (32 << 20), "{before:?} {after:?}");
        assert!(after.mapped >= after.own);
        drop(hoard);
    }
}
