//! The one thing asked of the operating system beyond threads and `fork`.

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
