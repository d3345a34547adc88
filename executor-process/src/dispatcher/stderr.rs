//! What workers write to standard error: passed on to where it belongs, and its end kept for the report of a death.
//!
//! # Why a pipe for each worker, read by the dispatcher
//!
//! The last words of a dying process (an abort's reason, a C library's assertion, the runtime's report of a stack
//! overflow) are written to descriptor 2 and nowhere else, so only what stands behind that descriptor can keep them.
//!
//! * A memory file would cost no reader, but grows with everything that is printed, shows nothing while the program
//!   runs, and a shared offset in a file that wraps round is not to be had.
//! * One pipe for all workers does not tell whose line it was. One socket would (the kernel adds the process id), but a
//!   long write to it fails, and `/dev/stderr` cannot be opened.
//! * A thread or a process that copies would know nothing of the order of things. The dispatcher does: a line was
//!   written before the answer behind it, and is passed on before that answer is told, so what a task has printed is out
//!   when its result is known. Nothing is lost then by a program that ends at once.
//!
//! # The protocol
//!
//! * The worker's end blocks as any standard error does; a worker that dies in the middle of a line has its bytes in the
//!   pipe, which is read to its end when the death is settled. Nothing happens where nothing is printed: the pipes are in
//!   an epoll of their own, which is one descriptor among those the dispatcher waits for.
//! * Writing to this process's standard error never holds the dispatcher up: it is asked for room first, and given at most
//!   what a pipe with room takes at once. While it takes nothing, the pipes are not read either, so who prints waits as if
//!   he wrote there himself; dead workers' last bytes wait in `pending`, which is bounded by [`MOST_PENDING`].
//! * What a worker's children print comes the same way. When the worker is settled its pipe is closed, whoever else has
//!   it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::sys::fd;
use crate::sys::poll::{Epoll, EventBuffer, Interest, poll};
use crate::zygote::WorkerStdio;

/// How much of the end is kept for each worker that prints, in bytes.
const KEPT: usize = 4 * 1024;

/// How much is read at once, in bytes.
const READ: usize = 16 * 1024;

/// How much is written at once, in bytes: what a pipe that says it has room takes without waiting.
const WRITE: usize = 4 * 1024;

/// The most that waits for a standard error that takes nothing, in bytes; what dead workers leave beyond it is dropped.
const MOST_PENDING: usize = 1 << 20;

/// The most that is read of a dead worker's pipe, in bytes: as large as a pipe can be, since a child of it that still
/// writes shall not keep us for ever.
const MOST_REMAINS: usize = 1 << 20;

/// Between two looks at a standard error that takes nothing.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// How long the end of the pool waits for one.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Stderr {
    kind: WorkerStdio,
    epoll: Epoll,
    events: EventBuffer,
    pipes: BTreeMap<u64, Pipe>,
    buffer: Vec<u8>,
    /// Read, and not yet written.
    pending: Vec<u8>,
}

struct Pipe {
    reader: OwnedFd,
    /// The end of what came, at most twice [`KEPT`] and one read.
    tail: Vec<u8>,
    /// Whether a runtime has said that memory was refused. It may be far from the end: a backtrace follows.
    lacked_memory: bool,
}

/// What a worker has left on standard error.
#[derive(Debug, Default)]
pub(super) struct LastWords {
    /// The end, in whole lines if there were more than are kept.
    pub(super) text: String,
    /// Whether a runtime has said that memory was refused.
    pub(super) lacked_memory: bool,
}

/// What Rust's runtime, and C++'s, say before they give up for want of memory.
const LACKED_MEMORY: [&[u8]; 2] = [b"memory allocation of ", b"std::bad_alloc"];

impl Stderr {
    pub(super) fn new(kind: WorkerStdio) -> io::Result<Self> {
        Ok(Self {
            kind,
            epoll: Epoll::new()?,
            events: EventBuffer::with_capacity(64),
            pipes: BTreeMap::new(),
            buffer: Vec::new(),
            pending: Vec::new(),
        })
    }

    /// Readable when a worker has printed something.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// The end of a new pipe for this worker to write to; `None` if it writes to the parent's descriptor.
    pub(super) fn open(&mut self, worker: u64) -> io::Result<Option<OwnedFd>> {
        if self.kind == WorkerStdio::Direct {
            return Ok(None);
        }
        let (reader, writer) = fd::pipe()?;
        self.epoll.add(reader.as_fd(), Interest::Read, worker)?;
        self.pipes.insert(worker, Pipe { reader, tail: Vec::new(), lacked_memory: false });
        Ok(Some(writer))
    }

    /// Passes on what has come. Says whether standard error takes it: if not, ask [`flush`](Self::flush) first.
    pub(super) fn copy(&mut self) -> bool {
        let Ok(events) = self.epoll.wait(&mut self.events, Some(Duration::ZERO)) else { return true };
        let ready: Vec<u64> = events.map(|event| event.token).collect();
        for worker in ready {
            if self.read(worker) == 0
                && let Some(pipe) = self.pipes.get(&worker)
            {
                // At its end. Not a word more comes, but the tail is still asked for.
                let _ = self.epoll.remove(pipe.reader.as_fd());
            }
        }
        self.takes_more()
    }

    /// Passes on what this worker has printed until now. Says whether standard error takes it, as [`copy`](Self::copy).
    pub(super) fn copy_of(&mut self, worker: u64) -> bool {
        // As much as a pipe holds, and no more of one that goes on writing.
        let mut left = MOST_REMAINS;
        while self.takes_more() && left > 0 {
            match self.read(worker) {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        self.takes_more()
    }

    /// Whether nothing waits for standard error.
    pub(super) fn takes_more(&self) -> bool {
        self.pending.is_empty()
    }

    /// Writes what waits, as far as standard error takes it. Says whether that was all.
    pub(super) fn flush(&mut self) -> bool {
        let pending = std::mem::take(&mut self.pending);
        self.pass_on(&pending);
        self.pending.is_empty()
    }

    /// The worker is gone: takes what it has left.
    pub(super) fn close(&mut self, worker: u64) -> LastWords {
        let mut read = 0;
        while read < MOST_REMAINS {
            match self.read(worker) {
                0 => break,
                more => read += more,
            }
        }
        let Some(Pipe { mut tail, lacked_memory, .. }) = self.pipes.remove(&worker) else {
            return LastWords::default();
        };
        if tail.len() > KEPT {
            let cut = tail.len() - KEPT;
            let line = tail[cut..].iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            tail.drain(..cut + if cut + line < tail.len() { line } else { 0 });
        }
        LastWords { text: String::from_utf8_lossy(&tail).into_owned(), lacked_memory }
    }

    /// Everybody is gone: passes on what is left, waiting a little for a standard error that takes nothing.
    pub(super) fn end(&mut self) {
        let workers: Vec<u64> = self.pipes.keys().copied().collect();
        for worker in workers {
            self.close(worker);
        }
        let deadline = Instant::now() + LAST_PATIENCE;
        while !self.flush() && Instant::now() < deadline {
            let _ = poll([(io::stderr().as_fd(), Interest::Write)], Some(deadline));
        }
    }

    /// Reads once; 0 at the end, or when there is nothing.
    fn read(&mut self, worker: u64) -> usize {
        let Some(pipe) = self.pipes.get_mut(&worker) else { return 0 };
        self.buffer.resize(READ, 0);
        let Ok(read @ 1..) = fd::read(pipe.reader.as_fd(), &mut self.buffer) else { return 0 };
        let seam = pipe.tail.len().saturating_sub(LACKED_MEMORY[0].len());
        pipe.tail.extend_from_slice(&self.buffer[..read]);
        pipe.lacked_memory =
            pipe.lacked_memory || LACKED_MEMORY.iter().any(|text| contains(&pipe.tail[seam..], text));
        if pipe.tail.len() > 2 * KEPT {
            pipe.tail.drain(..pipe.tail.len() - KEPT - 1);
        }
        let buffer = std::mem::take(&mut self.buffer);
        self.pass_on(&buffer[..read]);
        self.buffer = buffer;
        read
    }

    fn pass_on(&mut self, mut bytes: &[u8]) {
        if self.kind == WorkerStdio::Null {
            return;
        }
        let stderr = io::stderr(); // its descriptor alone: its lock may be held for ever
        while self.pending.is_empty() && !bytes.is_empty() {
            match poll([(stderr.as_fd(), Interest::Write)], Some(Instant::now())) {
                Ok([ready]) if ready.closed => return, // nobody will ever read it
                Ok([ready]) if ready.writable => {
                    let part = &bytes[..bytes.len().min(WRITE)];
                    match fd::write(stderr.as_fd(), part) {
                        Ok(written) => bytes = &bytes[written..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(_) => return, // as who prints there himself, we can do nothing about it
                    }
                }
                _ => break,
            }
        }
        let room = MOST_PENDING.saturating_sub(self.pending.len());
        self.pending.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
