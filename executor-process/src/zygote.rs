//! The fork server, as its parent sees it: a single-threaded process that forks every worker of a pool.
//!
//! # Protocol
//!
//! One packet socket, the *control socket*; the messages are in [`message`], the other side in [`server`].
//!
//! * States of a [`Zygote`]: started ([`start`](Zygote::start) has seen the fork server's hello) → gone
//!   ([`receive`](Zygote::receive) gave `UnexpectedEof`) or stopped ([`stop`](Zygote::stop), or drop).
//! * Each request for a worker is answered once, by `Forked` or `ForkFailed`, in the order of the requests; each
//!   `Forked` is followed later by one `Ended`. A parent short of descriptors gets `ForkFailed` for a worker that does
//!   exist; its `Ended` follows all the same, and is to be ignored. Close the worker's socket, and it ends.
//! * Neither side ever waits for the other: what does not fit is `WouldBlock` here, and a queue there. While it has
//!   such a queue the fork server reads no requests, so a parent that is told `WouldBlock` must go on receiving.
//! * When the fork server is gone, all its workers have got SIGKILL. When this process is gone, so has the fork server.
//!
//! Nobody but this module waits for the fork server's process, by a pidfd: a `waitpid(-1)` of the application may reap
//! it first, which costs only the exit code in an error message.
//!
//! * I1: [`StartMethod::Fork`] forks only after counting one thread, the caller, so no other can start meanwhile.

mod message;
mod server;
#[cfg(test)]
mod tests;

pub(crate) use self::server::{serve, settle};
pub(crate) use crate::sys::process::Exit;

use self::message::{Report, Request};
use crate::image::{Identity, Image};
use crate::startup::{self, Refusal};
use crate::sync::{AtomicU32, Ordering};
use crate::sys::fd::Standard;
use crate::sys::poll::{Interest, poll};
use crate::sys::socket::{self, Blocking};
use crate::sys::{limits, process};
use std::cell::Cell;
use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a pool of worker processes gets the process that forks its workers.
///
/// Workers are always forked from a *fork server*, a process with a single thread, so starting them is fast and safe in
/// programs with threads. The methods differ in what the fork server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartMethod {
    /// The fork server is a fresh execution of the running program, taken over before `main`.
    ///
    /// Workers start clean: statics have their first values, no file is open but the standard three, and no memory of
    /// the parent is copied. The program needs no preparation for it.
    #[default]
    ForkServer,
    /// The fork server is a fork of the calling process, so workers inherit its memory and its open files as they are
    /// when the pool is built.
    ///
    /// Large read-only tables need not be sent then. It is allowed only while the process has a single thread: building
    /// the pool fails otherwise. Random numbers and hash keys made before are the same in all workers.
    Fork,
}

/// Where a standard output stream of the workers goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerStdio {
    /// Where that of the parent goes.
    ///
    /// Standard error goes there by way of the parent, which keeps the last lines for
    /// [`WorkerDeath::stderr`](executor_core::DeathDetails::stderr): the worker writes into a pipe, so a terminal is none
    /// for it.
    #[default]
    Inherit,
    /// Nowhere. The last lines of standard error are kept all the same.
    Null,
    /// To the parent's own descriptor: a terminal stays a terminal. Nothing is kept.
    Direct,
}

/// What a fork server, and with it every worker, starts with.
#[derive(Clone, Debug, Default)]
pub(crate) struct ZygoteConfig {
    pub(crate) method: StartMethod,
    /// Added to the parent's environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) stdout: WorkerStdio,
    pub(crate) stderr: WorkerStdio,
    /// Executed in place of this program's own file; it holds the same build, or, if this is a shared object, loads it.
    pub(crate) program: Option<PathBuf>,
    /// Called once before the first fork: where it is described, and the function.
    pub(crate) preload: Option<(u64, u64)>,
}

/// How many pools are around this process: a worker's is one more than that of whoever made its pool.
static DEPTH: AtomicU32 = AtomicU32::new(0);

pub(crate) fn depth() -> u32 {
    // ORDERING: relaxed: set before this process, or the one it was forked from, had a second thread.
    DEPTH.load(Ordering::Relaxed)
}

pub(super) fn set_depth(depth: u32) {
    DEPTH.store(depth, Ordering::Relaxed);
}

/// A running fork server. Dropping it is [`stop`](Self::stop).
#[derive(Debug)]
pub(crate) struct Zygote {
    control: OwnedFd,
    sentinel: OwnedFd,
    pid: u32,
    /// Whether something was to be called first, and it has not said yet how that came out.
    preloads: Cell<bool>,
    /// The process that started it. A forked child of that has a copy, and must leave it alone.
    owner: u32,
}

/// What the fork server reports.
#[derive(Debug)]
pub(crate) enum Notice {
    /// What was to be called before the first fork has returned, or failed: then the fork server ends.
    Preloaded(Result<(), Box<str>>),
    /// The worker runs. The pidfd stays valid after its end.
    Forked { worker: u64, pid: u32, pidfd: OwnedFd },
    /// There is no such worker, or none that this process can hold.
    ForkFailed { worker: u64, error: io::Error },
    /// The worker has ended, its process group with it.
    Ended { worker: u64, pid: u32, exit: Exit, cpu_time: Duration, peak_memory: u64 },
}

impl Zygote {
    /// Starts a fork server and waits, at most some seconds, until it is ready.
    pub(crate) fn start(config: &ZygoteConfig) -> Result<Self, StartError> {
        match config.method {
            StartMethod::ForkServer => Self::execute(config),
            StartMethod::Fork => Self::fork(config),
        }
    }

    /// Asks for a worker with this end of a socket pair, this shared page, and this end of a pipe as its standard error,
    /// or else the fork server's; all may be closed afterwards. Never blocks: on `WouldBlock` ask again when [`control`](Self::control) is writable, or after the next notice.
    pub(crate) fn request_worker(
        &self,
        worker: u64,
        socket: BorrowedFd<'_>,
        page: BorrowedFd<'_>,
        stderr: Option<BorrowedFd<'_>>,
        processor: Option<u32>,
    ) -> io::Result<()> {
        let request = Request::Fork { worker, has_stderr: stderr.is_some(), processor }.encode();
        let fds: Vec<BorrowedFd<'_>> = [socket, page].into_iter().chain(stderr).collect();
        let sent = socket::send_packet(self.control.as_fd(), &request, &fds, Blocking::Never);
        sent.map_err(|error| match error.raw_os_error() {
            // As much a matter of time as a full socket: the fork server takes them out.
            Some(socket::TOO_MANY_IN_FLIGHT) => io::ErrorKind::WouldBlock.into(),
            _ => error,
        })
    }

    /// The next report: `None` if there is none now, `UnexpectedEof` if the fork server is gone and every report it
    /// sent before has been given.
    pub(crate) fn receive(&self) -> io::Result<Option<Notice>> {
        match self.receive_report() {
            Ok((report, fd)) => {
                if matches!(report, Report::Preloaded(_)) {
                    self.preloads.set(false);
                }
                Notice::new(report, fd).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The control socket, to wait for: readable when there is something to [`receive`](Self::receive).
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Whether it is still at what was to be called before the first fork.
    pub(crate) fn preloads(&self) -> bool {
        self.preloads.get()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends the fork server and all its workers, and waits until it has, two seconds at the very most.
    pub(crate) fn stop(self) {
        drop(self);
    }

    fn execute(config: &ZygoteConfig) -> Result<Self, StartError> {
        startup::check()?;
        let library = startup::library()?;
        match &config.program {
            None => {}
            Some(program) if library.is_some() => {
                return Self::execute_program(program, library.as_ref(), config);
            }
            Some(program) => return Self::execute_other(program, config),
        }
        let mut first_error = None;
        for program in startup::programs() {
            match Self::execute_program(&program, library.as_ref(), config) {
                Ok(zygote) => return Ok(zygote),
                // Another program in its place, perhaps: the next one may be right.
                Err(error @ (StartError::Execute { .. } | StartError::Gone { .. })) => {
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(first_error.unwrap_or(StartError::Gone { exit: None }))
    }

    /// Executes another file that holds this program; one that does not would reach its `main` (R1 of [`startup`]), so it
    /// is looked at first, and what was looked at is executed.
    fn execute_other(program: &Path, config: &ZygoteConfig) -> Result<Self, StartError> {
        let file = startup::open_same_build(program)?;
        Self::execute_program(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), None, config)
    }

    /// Executes a program: this one, or a foreign one that is to load this shared object first.
    fn execute_program(
        program: &Path,
        library: Option<&File>,
        config: &ZygoteConfig,
    ) -> Result<Self, StartError> {
        let (ours, theirs) = control_pair(config)?;
        let pid = startup::spawn(program, library, theirs, config)
            .map_err(|source| StartError::Execute { program: program.display().to_string(), source })?;
        Self::handshake(ours, pid, config)
    }

    fn fork(config: &ZygoteConfig) -> Result<Self, StartError> {
        let count =
            process::thread_count().map_err(StartError::system("count the threads of this process"))?;
        if count != 1 {
            return Err(StartError::Threads { count });
        }
        // What is buffered now would be printed by every worker again. It being unwritable is the caller's affair.
        let _ = io::stdout().flush();
        let (ours, theirs) = control_pair(config)?;
        let application = process::id();
        // SAFETY: I1.
        match unsafe { process::fork() }.map_err(StartError::system("fork this process"))? {
            Some(pid) => {
                drop(theirs);
                Self::handshake(ours, pid, config)
            }
            None => {
                drop(ours);
                serve_forked(theirs, application, config)
            }
        }
    }

    fn handshake(control: OwnedFd, pid: u32, config: &ZygoteConfig) -> Result<Self, StartError> {
        let sentinel = process::open_pidfd(pid).map_err(StartError::system("watch the fork server"))?;
        let preloads = Cell::new(config.preload.is_some());
        let zygote = Self { control, sentinel, pid, preloads, owner: process::id() };
        let deadline = Instant::now() + HANDSHAKE_LIMIT;
        let watched = [(zygote.control.as_fd(), Interest::Read), (zygote.sentinel.as_fd(), Interest::Read)];
        let [control, sentinel] =
            poll(watched, Some(deadline)).map_err(StartError::system("wait for the fork server"))?;
        if !(control.readable || control.closed || sentinel.readable) {
            return Err(StartError::TimedOut);
        }
        match zygote.receive_report() {
            Ok((Report::Hello { identity, .. }, _)) if &identity == Image::current().identity() => Ok(zygote),
            Ok(_) => Err(StartError::OtherBuild),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(StartError::OtherBuild),
            Err(_) => Err(zygote.why_gone()),
        }
    }

    /// A child that hung up has ended, or is about to.
    fn why_gone(self) -> StartError {
        let deadline = Instant::now() + STOP_LIMIT;
        let _ = poll([(self.sentinel.as_fd(), Interest::Read)], Some(deadline));
        let exit = process::reap_by_pidfd(self.sentinel.as_fd()).unwrap_or_default();
        match exit {
            Some(Exit::Code(code)) if Refusal::from_code(code).is_some() => {
                StartError::Refused(Refusal::from_code(code).unwrap_or(Refusal::Setup))
            }
            exit => StartError::Gone { exit },
        }
    }

    fn receive_report(&self) -> io::Result<(Report, Option<OwnedFd>)> {
        let mut buffer = [0; message::BYTES];
        let mut packet = match socket::receive_packet(self.control(), &mut buffer, Blocking::Never) {
            // The fork server ended with requests unread. The kernel says so once, ahead of what is there to read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                socket::receive_packet(self.control(), &mut buffer, Blocking::Never)?
            }
            other => other?,
        };
        if packet.length == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the fork server is gone"));
        }
        let report = Report::decode(&buffer[..packet.length])
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown report of the fork server"))?;
        Ok((report, packet.fds.pop()))
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        if process::id() != self.owner {
            return;
        }
        // For every copy of the socket, so that one in a forked child of the application keeps nothing alive.
        socket::shut_down(self.control());
        let sentinel = self.sentinel.as_fd();
        let has_ended = || {
            let deadline = Instant::now() + STOP_LIMIT;
            poll([(sentinel, Interest::Read)], Some(deadline)).is_ok_and(|[ready]| ready.readable)
        };
        if !has_ended() {
            let _ = process::kill_by_pidfd(sentinel);
            has_ended();
        }
        // Already reaped by the application, or about to end in the kernel: either way there is no more to do.
        let _ = process::reap_by_pidfd(sentinel);
    }
}

impl Notice {
    fn new(report: Report, fd: Option<OwnedFd>) -> io::Result<Self> {
        Ok(match report {
            Report::Preloaded(outcome) => Self::Preloaded(outcome),
            Report::Forked { worker, pid } => match fd {
                Some(pidfd) => Self::Forked { worker, pid, pidfd },
                None => {
                    let error = io::Error::from_raw_os_error(process::TOO_MANY_FILES);
                    Self::ForkFailed { worker, error }
                }
            },
            Report::ForkFailed { worker, errno } => {
                Self::ForkFailed { worker, error: io::Error::from_raw_os_error(errno) }
            }
            Report::Ended { worker, pid, exit, usage } => {
                Self::Ended { worker, pid, exit, cpu_time: usage.cpu_time, peak_memory: usage.peak_memory }
            }
            Report::Hello { .. } => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a second hello of the fork server"));
            }
        })
    }
}

/// Why there is no fork server.
#[derive(Debug)]
pub(crate) enum StartError {
    /// This crate's start hook has not run: the linker has left it out.
    NotHooked,
    /// The program runs with more rights than its caller has.
    Privileged,
    /// `StartMethod::Fork` in a process with threads.
    Threads { count: usize },
    /// The program could not be executed.
    Execute { program: String, source: io::Error },
    /// The program given is another one; its identity, if it is a program at all.
    OtherProgram { program: String, identity: Option<Identity> },
    /// The child saw the hook, and the hook declined.
    Refused(Refusal),
    /// The child ended without a word.
    Gone { exit: Option<Exit> },
    /// The child answered as another program or version.
    OtherBuild,
    /// The child neither answered nor ended.
    TimedOut,
    /// A call of the system failed.
    System { doing: &'static str, source: io::Error },
}

impl StartError {
    fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("cannot start the fork server: ")?;
        match self {
            Self::NotHooked => formatter.write_str(
                "the start hook of this crate has not run; it must be linked into the program, and worker processes \
                 cannot be used before `main`",
            ),
            Self::Privileged => formatter.write_str("the program runs with raised rights (set-user-id or capabilities)"),
            Self::Threads { count } => write!(
                formatter,
                "`StartMethod::Fork` needs a process with a single thread, and this one has {count}; build the pool \
                 earlier, or use `StartMethod::ForkServer`"
            ),
            Self::Execute { program, .. } => write!(formatter, "executing {program} failed"),
            Self::OtherProgram { program, identity: None } => {
                write!(formatter, "{program} is no program of this machine")
            }
            Self::OtherProgram { program, identity: Some(identity) } => write!(
                formatter,
                "{program} is another program than this one, and has not its functions (build id {}, here {})",
                identity.shown(),
                Image::current().identity().shown(),
            ),
            Self::Refused(refusal) => write!(formatter, "the new process declined: {refusal}"),
            Self::Gone { exit: None } => formatter.write_str("the new process ended before it was ready"),
            Self::Gone { exit: Some(Exit::Code(code)) } => {
                write!(formatter, "the new process exited with code {code} before it was ready")
            }
            Self::Gone { exit: Some(Exit::Signal { number, .. }) } => {
                write!(formatter, "signal {number} ended the new process before it was ready")
            }
            Self::OtherBuild => formatter
                .write_str("the file of this program now holds another build of it, which must not run its tasks"),
            Self::TimedOut => {
                write!(formatter, "the new process was not ready after {} s", HANDSHAKE_LIMIT.as_secs())
            }
            Self::System { doing, .. } => write!(formatter, "could not {doing}"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Execute { source, .. } | Self::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// How long the new process may take to its hello: with all the program's constructors, on a machine under load. At
/// the end of it `start` fails, so it is generous; a child that dies is noticed at once.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long the fork server may take to end its workers and itself before it is killed. Longer than `END_LIMIT` of the
/// server, and as long as a program that ends should be kept waiting at most.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// A new control connection with the parent's first message already in it.
fn control_pair(config: &ZygoteConfig) -> Result<(OwnedFd, OwnedFd), StartError> {
    let (ours, theirs) = socket::packet_pair().map_err(StartError::system("make the control socket"))?;
    let setup = Request::Setup {
        open_files: limits::original_open_files(),
        depth: depth() + 1,
        preload: config.preload,
    };
    socket::send_packet(ours.as_fd(), &setup.encode(), &[], Blocking::Never)
        .map_err(StartError::system("write to the control socket"))?;
    Ok((ours, theirs))
}

/// The forked child's side of [`StartMethod::Fork`]. Open files are left as they are: inherited memory owns them.
fn serve_forked(control: OwnedFd, application: u32, config: &ZygoteConfig) -> ! {
    let config = std::panic::AssertUnwindSafe(config);
    let outcome = catch_unwind(move || {
        for (stream, kind) in [(Standard::Output, config.stdout), (Standard::Error, config.stderr)] {
            match kind {
                WorkerStdio::Inherit | WorkerStdio::Direct => stream.repair()?,
                WorkerStdio::Null => stream.set_null()?,
            }
        }
        for (name, value) in &config.env {
            // SAFETY: I1: nobody else can read the environment meanwhile.
            unsafe { std::env::set_var(name, value) };
        }
        let preload = settle(&control)?;
        // SAFETY: I1, and settled.
        unsafe { serve(control, application, preload) }
    });
    let refusal = if outcome.is_ok() { Refusal::Setup } else { Refusal::Panicked };
    process::exit_now(refusal.code())
}
