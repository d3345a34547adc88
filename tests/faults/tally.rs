//! How often each of many quick tasks has run: a byte each, in memory that the test and all workers see, so that counting
//! costs a few nanoseconds and a death loses nothing.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::support::TempDir;

pub(crate) struct Tally {
    dir: TempDir,
    counts: &'static [AtomicU8],
}

impl Tally {
    /// The tasks it can count.
    pub(crate) const TASKS: u64 = 64 << 20;

    pub(crate) fn new() -> Self {
        let dir = TempDir::new();
        let file = File::create(dir.path("tally")).unwrap();
        file.set_len(Self::TASKS).unwrap(); // with holes: what no task touches takes no place
        let counts = map(&dir.path("tally"));
        Self { dir, counts }
    }

    /// What a task needs in order to [`count`] itself.
    pub(crate) fn ticket(&self) -> String {
        self.dir.path("tally")
    }

    pub(crate) fn of(&self, task: u64) -> u8 {
        self.counts[usize::try_from(task).unwrap()].load(Ordering::Relaxed)
    }
}

/// Says that a task runs, for the one tally this process counts for.
pub(crate) fn count(ticket: &str, task: u64) {
    static COUNTS: OnceLock<&[AtomicU8]> = OnceLock::new();
    let counts = COUNTS.get_or_init(|| map(ticket));
    counts[usize::try_from(task).unwrap()].fetch_add(1, Ordering::Relaxed);
}

/// Maps it for the rest of this process.
fn map(path: &str) -> &'static [AtomicU8] {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let length = usize::try_from(Tally::TASKS).unwrap();
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, of a file that nobody makes shorter.
    let start: NonNull<_> =
        unsafe { mmap(None, NonZeroUsize::new(length).unwrap(), access, MapFlags::MAP_SHARED, &file, 0) }
            .unwrap();
    // SAFETY: so many bytes, mapped for ever, and only reached as atomics.
    unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), length) }
}
