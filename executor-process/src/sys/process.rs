//! Processes: making them, naming them by pidfd, hearing how they ended, ending them.
//!
//! * I1: the calls here take numbers and memory of ours only; the kernel checks the numbers.
//! * I2: a process id is used only by the parent of that process before it has reaped it, so it cannot name another.

use super::retry;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid, getppid, setpgid, setsid};
use std::ffi::{CString, c_int};
use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It ended itself, with this code.
    Code(i32),
    /// A signal ended it; `core` says whether it left a core file.
    Signal { number: i32, core: bool },
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(formatter, "exit code {code}"),
            Self::Signal { number, .. } => write!(formatter, "signal {number}"),
        }
    }
}

/// What a process had used by its end, with the children it had waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// In the program and in the kernel.
    pub(crate) cpu_time: Duration,
    /// The largest resident size in bytes.
    pub(crate) peak_memory: u64,
}

/// The errno of a process that may not have more descriptors.
pub(crate) const TOO_MANY_FILES: i32 = libc::EMFILE;

/// What the kernel says of a process that is gone.
pub(crate) fn no_such_process() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

/// The calling process.
pub(crate) fn id() -> u32 {
    std::process::id()
}

/// The process that started this one, or that took it over.
pub(crate) fn parent_id() -> u32 {
    getppid().as_raw().unsigned_abs()
}

/// The user this process acts for.
pub(crate) fn effective_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Whether the kernel started this program with more rights than its caller's (set-id, capabilities).
pub(crate) fn is_privileged() -> bool {
    // SAFETY: I1.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// How many threads the calling process has.
pub(crate) fn thread_count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// The children of the calling thread that have not been reaped, those it adopted included.
pub(crate) fn children() -> io::Result<Vec<u32>> {
    let list = fs::read_to_string("/proc/thread-self/children")?;
    Ok(list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// Splits the process in two. `None` in the child.
///
/// # Safety
///
/// The process has one thread, or the child only makes calls that are safe in a signal handler.
pub(crate) unsafe fn fork() -> io::Result<Option<u32>> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    // SAFETY: by the contract of this function.
    let pid = Errno::result(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid.unsigned_abs()))
}

/// The signal of a process that is over its limit of processor time.
pub(crate) const CPU_LIMIT_SIGNAL: i32 = libc::SIGXCPU;
/// The signal nobody can refuse, which the kernel sends too.
pub(crate) const KILL_SIGNAL: i32 = libc::SIGKILL;
/// The signal of a process that gave up.
pub(crate) const ABORT_SIGNAL: i32 = libc::SIGABRT;

/// Ends the process at once: no destructor, no exit handler, no flushing.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: I1.
    unsafe { libc::_exit(code) }
}

/// A descriptor for a process, readable when it has ended. It never comes to mean another process.
pub(crate) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let number = retry(|| {
        // SAFETY: I1.
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, raw(pid), 0) })
    })?;
    let number = RawFd::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends SIGKILL to the process of a pidfd. It having ended already is no error.
pub(crate) fn kill_by_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    signal_by_pidfd(pidfd, libc::SIGKILL)
}

/// Sends SIGTERM to the process of a pidfd, and to the group it leads where the kernel can do that by a pidfd (since
/// 6.9). One that is stopped goes on, so that it hears of it. It having ended already is no error.
pub(crate) fn terminate_by_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    /// `PIDFD_SIGNAL_PROCESS_GROUP`.
    const GROUP: c_int = 1 << 2;
    for signal in [libc::SIGTERM, libc::SIGCONT] {
        // An older kernel, or one that leads no group, not yet or not any more.
        if send_by_pidfd(pidfd, signal, GROUP).is_err() {
            signal_by_pidfd(pidfd, signal)?;
        }
    }
    Ok(())
}

fn signal_by_pidfd(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    match send_by_pidfd(pidfd, signal, 0) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

fn send_by_pidfd(pidfd: BorrowedFd<'_>, signal: c_int, flags: c_int) -> io::Result<()> {
    retry(|| {
        let none = ptr::null::<libc::siginfo_t>();
        // SAFETY: I1.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, flags)
        })
    })
    .map(drop)
}

/// Sends SIGKILL to a child that has not been reaped, and to the group it leads, if it leads one.
pub(crate) fn kill_with_group(pid: u32) {
    kill_group(pid);
    // SAFETY: I1 and I2. The only failure is that there is nothing to kill.
    unsafe { libc::kill(raw(pid), libc::SIGKILL) };
}

/// Sends SIGKILL to every member of the group led by a child that has not been reaped.
pub(crate) fn kill_group(leader: u32) {
    let leader = raw(leader);
    if leader <= 1 {
        return;
    }
    // SAFETY: I1 and I2: an unreaped leader keeps the number of its group. Nothing to kill is no failure.
    unsafe { libc::kill(-leader, libc::SIGKILL) };
}

/// The group a process is in.
pub(crate) fn group_of(pid: u32) -> io::Result<u32> {
    Ok(retry(|| getpgid(Some(Pid::from_raw(raw(pid)))))?.as_raw().unsigned_abs())
}

/// Makes the calling process the leader of a new group.
pub(crate) fn lead_own_group() -> io::Result<()> {
    retry(|| setpgid(Pid::from_raw(0), Pid::from_raw(0)))
}

/// Makes the calling process the leader of a new session without a terminal: no Ctrl-C reaches it.
pub(crate) fn lead_own_session() -> io::Result<()> {
    retry(setsid).map(drop)
}

/// Lets the kernel SIGKILL the calling process when the *thread* that forked it ends. If it ended before this call
/// nothing happens: compare [`parent_id`] afterwards.
pub(crate) fn die_with_parent() -> io::Result<()> {
    retry(|| prctl::set_pdeathsig(Signal::SIGKILL))
}

/// Makes descendants whose parent ends children of the calling process.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    retry(|| prctl::set_child_subreaper(true))
}

/// The processors the calling thread may use, by number.
pub(crate) fn usable_processors() -> io::Result<Vec<u32>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: I1: the kernel writes into `set`, which is ours.
    Errno::result(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) })?;
    // SAFETY: zeros are a valid `cpu_set_t`, and the call fills it or leaves it.
    let set = unsafe { set.assume_init() };
    let size = u32::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: I1: below the size of the set.
    Ok((0..size).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu as usize, &set) }).collect())
}

/// Lets the calling thread, and what it starts, run on this processor alone.
pub(crate) fn pin_to(processor: u32) -> io::Result<()> {
    if i64::from(processor) >= i64::from(libc::CPU_SETSIZE) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: zeros are a valid, empty, `cpu_set_t`.
    let set = unsafe { set.assume_init_mut() };
    // SAFETY: I1: below the size of the set.
    unsafe { libc::CPU_SET(processor as usize, set) };
    // SAFETY: I1.
    Errno::result(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) })?;
    Ok(())
}

/// Sets the name `ps` and `top` show, cut to 15 bytes.
pub(crate) fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // A name is only for looking at.
        let _ = retry(|| prctl::set_name(&name));
    }
}

/// A child of the calling process that has ended, and how. It stays a zombie, so its id and its group stay its own.
/// `None` if none has ended; the error ECHILD if there is no child at all.
pub(crate) fn next_ended() -> io::Result<Option<(u32, Exit)>> {
    wait_id(libc::P_ALL, 0, libc::WNOWAIT)
}

/// Reaps the child of a pidfd if it has ended. Somebody else having reaped it is an error, ECHILD.
pub(crate) fn reap_by_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    Ok(wait_id(libc::P_PIDFD, pidfd.as_raw_fd().unsigned_abs(), 0)?.map(|(_, exit)| exit))
}

fn wait_id(kind: libc::idtype_t, id: libc::id_t, flags: c_int) -> io::Result<Option<(u32, Exit)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    retry(|| {
        // SAFETY: I1: the kernel writes into `info`, which is ours.
        Errno::result(unsafe {
            libc::waitid(kind, id, info.as_mut_ptr(), flags | libc::WEXITED | libc::WNOHANG)
        })
    })?;
    // SAFETY: zeros are a valid `siginfo_t`, and the call fills it or leaves it.
    let info = unsafe { info.assume_init() };
    // SAFETY: all zeros, or filled in by `waitid`, which sets this field.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: filled in by `waitid`, which sets this field.
    let status = unsafe { info.si_status() };
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        code => Exit::Signal { number: status, core: code == libc::CLD_DUMPED },
    };
    Ok(Some((pid.unsigned_abs(), exit)))
}

/// Reaps a child that [`next_ended`] has named.
pub(crate) fn reap(pid: u32) -> io::Result<Usage> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    retry(|| {
        // SAFETY: I1 and I2: the kernel writes into `usage`, which is ours.
        Errno::result(unsafe { libc::wait4(raw(pid), ptr::null_mut(), libc::WNOHANG, usage.as_mut_ptr()) })
    })?;
    // SAFETY: zeros are a valid `rusage`, and the call fills it or leaves it.
    let usage = unsafe { usage.assume_init() };
    Ok(Usage {
        cpu_time: duration(usage.ru_utime) + duration(usage.ru_stime),
        peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or_default().saturating_mul(1024),
    })
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let micros = u64::try_from(time.tv_usec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

const fn raw(pid: u32) -> libc::pid_t {
    pid.cast_signed()
}
