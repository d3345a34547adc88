//! Threads by number: the system's, and our own.

use crate::sync::{AtomicU32, Ordering};

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
