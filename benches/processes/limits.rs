//! What the machine allows without any pool: a ping-pong over a socket pair, a copy, a fork.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, hint, io};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

/// What makes this program the other end of a [`PingPong`].
const ECHO: &str = "--echo-on-stdin";

/// About as long as the frame of a small task.
const FRAME: usize = 32;

pub(crate) fn is_echo() -> bool {
    env::args().nth(1).is_some_and(|argument| argument == ECHO)
}

/// Writes every frame back, until the other end is closed.
pub(crate) fn echo() -> ExitCode {
    let run = || -> io::Result<()> {
        let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut frame = [0; FRAME];
        loop {
            socket.read_exact(&mut frame)?;
            socket.write_all(&frame)?;
        }
    };
    let _ = run();
    ExitCode::SUCCESS
}

/// Another process at the other end of a socket pair.
pub(crate) struct PingPong {
    socket: UnixStream,
    other: Child,
}

impl PingPong {
    pub(crate) fn start() -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut command = Command::new(env::current_exe()?);
        let other = command.arg(ECHO).stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
        Ok(Self { socket, other })
    }

    pub(crate) fn round(&mut self) -> io::Result<()> {
        let mut frame = [1; FRAME];
        self.socket.write_all(&frame)?;
        self.socket.read_exact(&mut frame)
    }
}

impl Drop for PingPong {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

/// The fastest copy of so many bytes into memory that is there, of several.
pub(crate) fn copy(bytes: usize, times: usize) -> Duration {
    let from = vec![1_u8; bytes];
    let mut to = vec![2_u8; bytes];
    let copies = (0..times).map(|_| {
        let start = Instant::now();
        to.copy_from_slice(hint::black_box(&from));
        hint::black_box(&mut to);
        start.elapsed()
    });
    copies.min().unwrap_or_default()
}

/// A child that ends at once, waited for. Only for a process with one thread.
pub(crate) fn fork_and_wait() -> nix::Result<Duration> {
    let start = Instant::now();
    // SAFETY: the child calls nothing but `_exit`, which is safe after a fork in any program.
    match unsafe { fork() }? {
        // SAFETY: it ends the child without running anything of its parent's.
        ForkResult::Child => unsafe { libc::_exit(0) },
        ForkResult::Parent { child } => waitpid(child, None)?,
    };
    Ok(start.elapsed())
}
