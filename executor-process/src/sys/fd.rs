//! File descriptors: the standard three, pipes, and closing everything else by number.
//!
//! The numbers are used between the start of a child and its first task, when those inherited from another program are
//! still about.
//!
//! * I1: a number handed to a `_raw` call here is not owned by any `OwnedFd` of this process.

use super::retry;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, pipe2};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The first number after stdin, stdout and stderr.
pub(crate) const FIRST_FREE: RawFd = 3;

/// One of the three descriptors every program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standard {
    Input,
    Output,
    Error,
}

impl Standard {
    const fn number(self) -> RawFd {
        match self {
            Self::Input => libc::STDIN_FILENO,
            Self::Output => libc::STDOUT_FILENO,
            Self::Error => libc::STDERR_FILENO,
        }
    }

    /// Lets it point to `/dev/null`.
    pub(crate) fn set_null(self) -> io::Result<()> {
        let null = open_null()?;
        // Opening may have landed on the very number that was free.
        if null.as_raw_fd() == self.number() {
            keep_across_exec(null)?;
            return Ok(());
        }
        self.set(&null)
    }

    /// Lets it point to where `fd` does.
    pub(crate) fn set(self, fd: &OwnedFd) -> io::Result<()> {
        retry(|| match self {
            Self::Input => dup2_stdin(fd),
            Self::Output => dup2_stdout(fd),
            Self::Error => dup2_stderr(fd),
        })
    }

    /// Lets it point to `/dev/null` if it is closed, so that no other descriptor can take its number.
    pub(crate) fn repair(self) -> io::Result<()> {
        // SAFETY: I1: the flags of a number are read; nothing is closed, and a closed number is an error here.
        let flags = unsafe { libc::fcntl(self.number(), libc::F_GETFD) };
        if flags < 0 { self.set_null() } else { Ok(()) }
    }
}

/// A pipe: the end to read from, where nothing blocks, and the end to write to, where it does.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = retry(|| pipe2(OFlag::O_CLOEXEC))?;
    retry(|| fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)))?;
    Ok((reader, writer))
}

/// Reads what is there, as far as it fits; 0 at the end.
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| nix::unistd::read(fd, buffer))
}

/// Writes at least a part of `bytes`, waiting for room if `fd` is one that waits.
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    retry(|| nix::unistd::write(fd, bytes))
}

/// A copy of `fd` with the lowest free number after the standard three.
pub(crate) fn above_standard(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let number = retry(|| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_FREE)))?;
    // SAFETY: I1: the kernel has just made this number for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from number 3 on but `kept`.
///
/// # Safety
///
/// No code that runs later may use a descriptor other than the standard three and `kept` that was open before.
pub(crate) unsafe fn close_all_but(kept: &OwnedFd) -> io::Result<()> {
    let kept = kept.as_raw_fd();
    if kept > FIRST_FREE {
        close_range_raw(FIRST_FREE, kept - 1)?;
    }
    close_range_raw(kept + 1, RawFd::MAX)
}

/// Kernels before 5.9 have no `close_range`; there the list of open descriptors is read.
fn close_range_raw(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: I1, by the contract of `close_all_but`.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match Errno::result(answer) {
        Ok(_) => return Ok(()),
        Err(Errno::ENOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| (first..=last).contains(number))
        .collect();
    for number in open {
        // SAFETY: I1, by the contract of `close_all_but`; the directory's own number fails with EBADF by now.
        unsafe { libc::close(number) };
    }
    Ok(())
}

fn open_null() -> io::Result<OwnedFd> {
    retry(|| open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()))
}

/// Gives a descriptor up to its number, open for programs this one starts.
fn keep_across_exec(fd: OwnedFd) -> io::Result<()> {
    retry(|| fcntl(&fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())))?;
    std::mem::forget(fd);
    Ok(())
}
