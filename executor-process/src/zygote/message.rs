//! What the parent and the fork server say to each other: packets of [`BYTES`] bytes on one local socket.
//!
//! | from | message | with descriptors | when |
//! |---|---|---|---|
//! | parent | `Setup` | | first, once, before the fork server exists |
//! | parent | `Fork` | the worker's socket, its page, perhaps its stderr | any time |
//! | server | `Hello` | | first, once, when it is ready to fork |
//! | server | `Preloaded` | | once, if there was something to preload: a text if it failed |
//! | server | `Forked` | a pidfd | once for each `Fork`, or else |
//! | server | `ForkFailed` | | |
//! | server | `Ended` | | once for each `Forked`, after it |
//!
//! Both sides run the same build, which `Hello` proves, so a packet is plain words in the machine's order. Still
//! nothing is believed: an unknown or short packet is `None`.

use crate::image::Identity;
use crate::sys::process::{Exit, Usage};
use std::time::Duration;

/// The size of every packet.
pub(super) const BYTES: usize = WORDS * size_of::<u64>();
/// Room for the longest of them: an identity, or the beginning of an error's text.
const WORDS: usize = 32;
const VERSION: u64 = 1;
const ID_BYTES: usize = Identity::MAX_BUILD_ID;

pub(super) type Bytes = [u8; BYTES];

/// From the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Setup {
        /// The soft limit of open files that tasks are to see.
        open_files: Option<u64>,
        /// How many pools are around the fork server's.
        depth: u32,
        /// What to call before the first fork: where it is described, and the function.
        preload: Option<(u64, u64)>,
    },
    Fork {
        worker: u64,
        /// Whether an end of a pipe comes along, to be its standard error.
        has_stderr: bool,
        /// The one processor it is to run on.
        processor: Option<u32>,
    },
}

/// From the fork server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    Hello { pid: u32, identity: Identity },
    Preloaded(Result<(), Box<str>>),
    Forked { worker: u64, pid: u32 },
    ForkFailed { worker: u64, errno: i32 },
    Ended { worker: u64, pid: u32, exit: Exit, usage: Usage },
}

const SETUP: u64 = 0x5e7;
const FORK: u64 = 0xf0;
const HELLO: u64 = 0x4e110;
const PRELOADED: u64 = 0x9e10;
const FORKED: u64 = 0xf1;
const FORK_FAILED: u64 = 0xf2;
const ENDED: u64 = 0xe0d;

const EXITED: u64 = 0;
const SIGNALLED: u64 = 1;
const DUMPED: u64 = 2;

impl Request {
    pub(super) fn encode(self) -> Bytes {
        match self {
            // The largest number is no limit at all, and so says the same as none.
            Self::Setup { open_files, depth, preload } => {
                // No offset is the largest number.
                let (descriptor, function) = preload.unwrap_or((u64::MAX, 0));
                let open_files = open_files.unwrap_or(u64::MAX);
                to_bytes(&[SETUP, VERSION, open_files, depth.into(), descriptor, function])
            }
            Self::Fork { worker, has_stderr, processor } => {
                to_bytes(&[FORK, worker, has_stderr.into(), processor.map_or(u64::MAX, u64::from)])
            }
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match from_bytes(bytes)? {
            [SETUP, VERSION, open_files, depth, descriptor, function, ..] => Some(Self::Setup {
                open_files: (open_files != u64::MAX).then_some(open_files),
                depth: depth.try_into().ok()?,
                preload: (descriptor != u64::MAX).then_some((descriptor, function)),
            }),
            [FORK, worker, has_stderr @ 0..=1, processor, ..] => {
                Some(Self::Fork { worker, has_stderr: has_stderr == 1, processor: processor.try_into().ok() })
            }
            _ => None,
        }
    }
}

impl Report {
    pub(super) fn encode(&self) -> Bytes {
        match *self {
            Self::Preloaded(ref outcome) => {
                let mut bytes = to_bytes(&[PRELOADED, outcome.is_err().into()]);
                if let Err(text) = outcome {
                    let room = &mut bytes[2 * size_of::<u64>()..];
                    let size = text.len().min(room.len());
                    room[..size].copy_from_slice(&text.as_bytes()[..size]);
                }
                bytes
            }
            Self::Hello { pid, ref identity } => {
                let size = identity.build_id.len().min(ID_BYTES);
                let mut bytes = to_bytes(&[HELLO, VERSION, pid.into(), identity.shape, size as u64]);
                bytes[BYTES - ID_BYTES..][..size].copy_from_slice(&identity.build_id[..size]);
                bytes
            }
            Self::Forked { worker, pid } => to_bytes(&[FORKED, worker, pid.into()]),
            Self::ForkFailed { worker, errno } => {
                to_bytes(&[FORK_FAILED, worker, errno.unsigned_abs().into()])
            }
            Self::Ended { worker, pid, exit, usage } => {
                let (kind, number) = match exit {
                    Exit::Code(code) => (EXITED, code),
                    Exit::Signal { number, core } => (if core { DUMPED } else { SIGNALLED }, number),
                };
                let nanos = u64::try_from(usage.cpu_time.as_nanos()).unwrap_or(u64::MAX);
                let number = number.cast_unsigned().into();
                to_bytes(&[ENDED, worker, pid.into(), kind, number, nanos, usage.peak_memory])
            }
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match from_bytes(bytes)? {
            [HELLO, VERSION, pid, shape, size, ..] => {
                let id = bytes.get(BYTES - ID_BYTES..)?.get(..usize::try_from(size).ok()?)?;
                let identity = Identity { build_id: id.to_vec(), shape };
                Some(Self::Hello { pid: pid.try_into().ok()?, identity })
            }
            [PRELOADED, 0, ..] => Some(Self::Preloaded(Ok(()))),
            [PRELOADED, 1, ..] => {
                let text = String::from_utf8_lossy(&bytes[2 * size_of::<u64>()..]);
                Some(Self::Preloaded(Err(text.trim_end_matches('\0').into())))
            }
            [FORKED, worker, pid, ..] => Some(Self::Forked { worker, pid: pid.try_into().ok()? }),
            [FORK_FAILED, worker, errno, ..] => {
                Some(Self::ForkFailed { worker, errno: errno.try_into().ok()? })
            }
            [ENDED, worker, pid, kind, number, nanos, peak_memory, ..] => {
                let number = u32::try_from(number).ok()?.cast_signed();
                let exit = match kind {
                    EXITED => Exit::Code(number),
                    SIGNALLED | DUMPED => Exit::Signal { number, core: kind == DUMPED },
                    _ => return None,
                };
                let usage = Usage { cpu_time: Duration::from_nanos(nanos), peak_memory };
                Some(Self::Ended { worker, pid: pid.try_into().ok()?, exit, usage })
            }
            _ => None,
        }
    }
}

fn to_bytes(words: &[u64]) -> Bytes {
    let mut bytes = [0; BYTES];
    for (place, word) in bytes.chunks_exact_mut(size_of::<u64>()).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn from_bytes(bytes: &[u8]) -> Option<[u64; WORDS]> {
    if bytes.len() != BYTES {
        return None;
    }
    let (chunks, _) = bytes.as_chunks();
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u64::from_ne_bytes(*chunk);
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_as_it_went() {
        for request in [
            Request::Setup { open_files: None, depth: 0, preload: None },
            Request::Setup { open_files: Some(1024), depth: 3, preload: Some((0, 77)) },
            Request::Fork { worker: u64::MAX, has_stderr: false, processor: None },
            Request::Fork { worker: 1, has_stderr: true, processor: Some(0) },
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
            assert_eq!(Report::decode(&request.encode()), None);
        }
        let usage = Usage { cpu_time: Duration::from_micros(1_234_567), peak_memory: 1 << 40 };
        for report in [
            Report::Hello { pid: 7, identity: Identity { build_id: (1..=20).collect(), shape: 99 } },
            Report::Hello { pid: 7, identity: Identity { build_id: Vec::new(), shape: u64::MAX } },
            Report::Preloaded(Ok(())),
            Report::Preloaded(Err("the file is missing".into())),
            Report::Forked { worker: 3, pid: u32::MAX },
            Report::ForkFailed { worker: 3, errno: 11 },
            Report::Ended { worker: 3, pid: 8, exit: Exit::Code(-1), usage },
            Report::Ended { worker: 3, pid: 8, exit: Exit::Signal { number: 9, core: false }, usage },
            Report::Ended { worker: 3, pid: 8, exit: Exit::Signal { number: 11, core: true }, usage },
        ] {
            assert_eq!(Report::decode(&report.encode()), Some(report.clone()));
            assert_eq!(Request::decode(&report.encode()), None);
        }
    }

    #[test]
    fn garbage_is_no_message() {
        assert_eq!(Report::decode(&[]), None);
        assert_eq!(Report::decode(&[0xff; BYTES]), None);
        assert_eq!(Report::decode(&Report::Forked { worker: 0, pid: 0 }.encode()[1..]), None);
        assert_eq!(Report::decode(&to_bytes(&[HELLO, VERSION, 1, 1, 65])), None);
        assert_eq!(Report::decode(&to_bytes(&[HELLO, VERSION + 1, 1, 1, 8])), None);
        assert_eq!(Report::decode(&to_bytes(&[ENDED, 1, 1, 9])), None);
    }

    /// Every packet with one byte changed: none panics, and what is understood is what it says.
    #[test]
    fn packets_with_a_changed_byte_are_refused_or_mean_what_they_say() {
        let requests = [
            Request::Fork { worker: 7, has_stderr: true, processor: Some(3) },
            Request::Setup { open_files: Some(9), depth: 1, preload: Some((8, 16)) },
        ];
        for request in requests.map(Request::encode) {
            for (at, value) in (0..BYTES).flat_map(|at| (0..=255).map(move |value| (at, value))) {
                let mut bytes = request;
                bytes[at] = value;
                if let Some(understood) = Request::decode(&bytes) {
                    assert_eq!(Request::decode(&understood.encode()), Some(understood));
                }
                let _ = Report::decode(&bytes);
                assert_eq!(Report::decode(&bytes[..at]), None);
            }
        }
    }
}
