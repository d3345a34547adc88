//! Resource limits: more descriptors for the parent of many workers, fewer things for a worker.
//!
//! A parent needs about two descriptors for each worker, and the usual soft limit is 1,024. [`raise_open_files`] moves
//! the soft limit to the hard one, once in a process, and remembers what it was; the fork server puts it back, so that
//! tasks see the limit they would see anywhere else (`select` breaks above 1,024).

use super::retry;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use std::sync::OnceLock;

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
