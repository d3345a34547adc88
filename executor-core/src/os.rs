//! Threads by number, the system's and our own; a clock in two precisions, of which one costs almost nothing; and large memory.

use std::time::Duration;

use crate::sync::Ordering;
use crate::sync::system::AtomicU32;
use crate::sync::thread_local;

/// A clock that only goes forward, in steps of some milliseconds. A read costs about 5 ns, a fifth of `Instant::now`.
pub(crate) fn coarse_clock() -> Duration {
    #[cfg(target_os = "linux")]
    return read_clock(libc::CLOCK_MONOTONIC_COARSE);
    #[cfg(not(target_os = "linux"))]
    return fine_clock();
}

/// The same clock, precisely: never behind [`coarse_clock`].
pub(crate) fn fine_clock() -> Duration {
    #[cfg(target_os = "linux")]
    return read_clock(libc::CLOCK_MONOTONIC);
    #[cfg(not(target_os = "linux"))]
    {
        static EPOCH: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        EPOCH.get_or_init(std::time::Instant::now).elapsed()
    }
}

#[cfg(target_os = "linux")]
fn read_clock(clock: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both clocks exist on every Linux, and `now` is ours to write to.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
}

/// Memory of this size or more is worth a system call before it is filled.
const LARGE: usize = 4 << 20;

/// Says that this memory, none of which was touched yet, is about to be filled: see [`prefer_large_pages`]. Of what is small,
/// nothing changes.
pub(crate) fn expect_filling(start: *const u8, length: usize) {
    if length >= LARGE {
        prefer_large_pages(start, length);
    }
}

/// The system is to give this memory, of which nothing was touched yet, in large pages, where it does so when asked, and not
/// in thousands of small ones.
pub(crate) fn prefer_large_pages(start: *const u8, length: usize) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096; // a part of the true one is as good: what is not aligned is refused
        let skipped = start.align_offset(PAGE);
        let (start, length) = (start.wrapping_add(skipped), length.saturating_sub(skipped) / PAGE * PAGE);
        // SAFETY: the advice changes neither the contents of memory nor who may access it, whosever it is. That it is not taken
        // is no matter.
        unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, length);
}

/// The system's number of this thread; 0 where it has none that can be had.
pub(crate) fn thread_id() -> u64 {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: takes nothing, touches nothing, cannot fail.
        let id = unsafe { libc::gettid() };
        u64::try_from(id).unwrap_or(0)
    }
    #[cfg(not(target_os = "linux"))]
    {
        0
    }
}

/// The number of a thread; never given twice in one process. 0 stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ThreadSlot(u32);

impl ThreadSlot {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) const fn number(self) -> u32 {
        self.0
    }

    pub(crate) const fn of_number(number: u32) -> Self {
        Self(number)
    }

    pub(crate) fn current() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        thread_local! {
            static SLOT: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
        }
        Self(SLOT.with(|slot| {
            if slot.get() == 0 {
                // ORDERING: relaxed, only uniqueness matters.
                slot.set(NEXT.fetch_add(1, Ordering::Relaxed));
            }
            slot.get()
        }))
    }
}
