//! Large arguments and results: through memory both processes see, instead of through the socket, which takes them in small
//! pieces, each with a wake-up, and copies them twice.
//!
//! ```text
//!   inbound    the arguments of one call, behind each other        written by the parent, read by the worker
//!   outbound   one result                                          written by the worker, read by the parent
//! ```
//!
//! Each is a [`Bulk`] of its worker alone, so that no worker can touch what is another's. The parent makes it when it is first
//! needed, of the size that is needed then and a little more, and sends its descriptor ahead of the frame that refers to it
//! (`Kind::Bulk`); a larger one takes its place later. What comes from [`SHORTEST`] to [`LONGEST`] bytes goes this way, if the
//! memory is free; else by the socket, as ever.
//!
//! * **Inbound** is free unless a call that came by it is with the worker: handed over, neither answered nor revoked. The
//!   worker reads an argument only after the task has begun, and a revoked one never begins; and it has read the argument
//!   before it answers. So while it reads, the parent does not write.
//! * **Outbound** is free when the parent has taken as many results as were put into it: the word TAKEN_BULK of the shared page.
//!   The record in the [`ring`](crate::ring) that commits the result says how long it is. It is written whole before, so the
//!   rule of deaths stays: what is committed is done.
//! * Hostile bytes: the parent believes no length beyond the memory's, copies each byte out once, and never refers to them. A
//!   worker that cannot map what it was sent fails the tasks that came by it, or goes on answering by the socket.
//! * What is kept is given up when the worker has had nothing to do for [`KEPT_FOR`]; so is what its allocator keeps meanwhile.
//!   Of a worker that goes on, each [`KEPT_FOR`] what is much larger than anything since the last time goes, once it has
//!   nothing to do for a moment. Under a limit of memory, which mappings count for, or of open
//!   files, which it comes by, all of this is not used.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use executor_core::codec::{self, Bytes};
use executor_core::{Payload, TaskError};

use crate::sync::{Arc, Ordering};
use crate::sys::memory::{Bulk, SharedPage};

/// The index, in the shared page, of the number of results the parent has taken out of the outbound memory.
pub(crate) const TAKEN_BULK: usize = 3;

/// Shorter ones gain nothing: the ring and one read of the socket take them.
pub(crate) const SHORTEST: usize = 8 * 1024;

/// Longer ones are for the socket: so much memory is not kept for each worker.
pub(crate) const LONGEST: usize = 256 << 20;

/// How long an idle worker keeps its memory. Longer keeps more; shorter makes it anew for work with pauses.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(1);

/// Which way: the `number` of a `Kind::Bulk`.
pub(crate) const INBOUND: u64 = 0;
pub(crate) const OUTBOUND: u64 = 1;

/// The sizes come in steps, so that slowly growing messages do not make it anew each time.
const STEP: usize = 64 * 1024;

/// More than so many times as large as what is sent is too large to keep.
const TOO_LARGE: usize = 4;

/// The parent's side of one way.
#[derive(Debug, Default)]
pub(crate) struct Channel {
    bulk: Option<Arc<Bulk>>,
    /// The longest message since the last look at that.
    longest: usize,
}

impl Channel {
    /// Whether a message of so many bytes may go this way.
    pub(crate) fn takes(length: usize) -> bool {
        (SHORTEST..=LONGEST).contains(&length)
    }

    /// The memory, if there is any.
    pub(crate) const fn get(&self) -> Option<&Arc<Bulk>> {
        self.bulk.as_ref()
    }

    /// Sees to it that there is memory for a message of so many bytes; gives its descriptor if it is new.
    pub(crate) fn make_room(&mut self, length: usize) -> io::Result<Option<OwnedFd>> {
        self.longest = self.longest.max(length);
        if self.bulk.as_ref().is_some_and(|bulk| bulk.len() >= length) {
            return Ok(None);
        }
        let (bulk, file) = Bulk::create((length + length / 8).next_multiple_of(STEP))?;
        self.bulk = Some(Arc::new(bulk));
        Ok(Some(file))
    }

    /// Gives the memory up; says whether there was any.
    pub(crate) fn clear(&mut self) -> bool {
        self.bulk.take().is_some()
    }

    /// Gives it up if it is much larger than anything since the last look; says whether it did.
    pub(crate) fn shrink(&mut self) -> bool {
        let most = TOO_LARGE * std::mem::take(&mut self.longest).max(STEP);
        self.bulk.take_if(|bulk| bulk.len() > most).is_some()
    }

    /// The result in the memory, of so many bytes as the worker says; none if that cannot be.
    pub(crate) fn result(&mut self, page: &Arc<SharedPage>, length: u64) -> Option<Outbound> {
        let bulk = self.bulk.as_ref()?;
        let end = usize::try_from(length).ok().filter(|end| *end <= bulk.len())?;
        self.longest = self.longest.max(end);
        Some(Outbound { bulk: Arc::clone(bulk), page: Arc::clone(page), at: 0, end })
    }
}

/// An encoded result.
pub(crate) enum Body<'a> {
    Here(&'a [u8]),
    Outbound(Outbound),
}

impl Body<'_> {
    pub(crate) fn decode<T: Payload>(self) -> Result<T, TaskError> {
        match self {
            Self::Here(bytes) => codec::decode_payload(bytes),
            Self::Outbound(result) => codec::decode_copied(result),
        }
        .map_err(TaskError::Decode)
    }
}

/// A result in outbound memory. When it is dropped it is taken, and the worker may put the next one there.
pub(crate) struct Outbound {
    bulk: Arc<Bulk>,
    page: Arc<SharedPage>,
    at: usize,
    end: usize,
}

impl Bytes for Outbound {
    fn left(&self) -> usize {
        self.end - self.at
    }

    fn take(&mut self, out: &mut [u8]) -> bool {
        let is_there = out.len() <= self.left() && self.bulk.read(self.at, out);
        if is_there {
            self.at += out.len();
        }
        is_there
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        // ORDERING: release: our reads come first; pairs with the acquire in the worker.
        self.page.word(TAKEN_BULK).fetch_add(1, Ordering::Release);
    }
}
