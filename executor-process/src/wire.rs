//! The frames between the parent and a worker.
//!
//! ```text
//!   header, 32 bytes, native order: kind u8 · status u8 · 0 u16 · count u32 · number u64 · length u64 · time u64
//!   body, `length` bytes
//! ```
//!
//! | kind | way | number | body |
//! |---|---|---|---|
//! | `Setup` | to the worker, once, first | | [`Setup`], encoded |
//! | `Ready` | to the parent, once, first | | nothing; with status `Failed` the initializer's error as text |
//! | `Context` | to the worker | the context's id | where its type is described, and the encoded context |
//! | `Forget` | to the worker | the context's id | nothing: it is not needed any more |
//! | `Call` | to the worker | the number of the first of `count` tasks | [`CallHead`], then each argument behind its length |
//! | `Lift` | to the worker | | nothing: see [`gate`](crate::gate) |
//! | `Limits` | to the worker | | [`CallLimits`], for the calls that follow |
//! | `Reply` | to the parent | the number of the task | by status: the result, a [`Panic`], or an error as text |
//! | `Bell` | to the parent | | nothing: there are results in the [`ring`](crate::ring) |
//! | `Segment` | to the worker | the id of shared memory | nothing; its descriptor comes along |
//! | `Release` | to the worker | the id of shared memory | nothing: it is not needed any more |
//! | `Bulk` | to the worker | which way | nothing; the memory of [`bulk`](crate::bulk) comes along, or if the `count` is 0, is given up |
//! | `Descriptor` | both | the number of the task | nothing; a descriptor comes along, which is part of the argument or the result |
//!
//! A `Call` with a `time` has its arguments, so many bytes, in the [`bulk`](crate::bulk) memory and not in its body.
//!
//! The `count` of a `Reply` is 0, or [`WORN`](crate::worker_main::WORN) if the worker asks to be replaced.
//!
//! There is no message to end: the parent closes its side. A reader takes nothing on trust: an unknown kind, a length
//! over the limit or a reply out of turn ends the connection.

use std::time::Duration;

use executor_core::CallLimits;
use serde::{Deserialize, Serialize};

pub(crate) const HEADER: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Setup = 1,
    Ready,
    Context,
    Forget,
    Call,
    Lift,
    Reply,
    Limits,
    Bell,
    Segment,
    Release,
    Descriptor,
    Bulk,
}

/// How a task, or the set-up, came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Returned,
    Panicked,
    /// The result could not be encoded.
    EncodeFailed,
    /// The argument or the context could not be decoded.
    DecodeFailed,
    /// The initializer failed.
    Failed,
    /// The result is over the limit; `number` bytes, given as the body's text.
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) status: Status,
    pub(crate) count: u32,
    pub(crate) number: u64,
    pub(crate) length: u64,
    /// Of a reply, how long the task ran, in nanoseconds.
    pub(crate) time: u64,
}

impl Header {
    pub(crate) const fn new(kind: Kind, number: u64, length: u64) -> Self {
        Self { kind, status: Status::Returned, count: 0, number, length, time: 0 }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.kind as u8;
        bytes[1] = self.status as u8;
        bytes[4..8].copy_from_slice(&self.count.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.time.to_ne_bytes());
        bytes
    }

    /// The header at the beginning of `bytes`; `Ok(None)` if they are too few.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>, Garbage> {
        let Some((bytes, _)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let kind = match bytes[0] {
            1 => Kind::Setup,
            2 => Kind::Ready,
            3 => Kind::Context,
            4 => Kind::Forget,
            5 => Kind::Call,
            6 => Kind::Lift,
            7 => Kind::Reply,
            8 => Kind::Limits,
            9 => Kind::Bell,
            10 => Kind::Segment,
            11 => Kind::Release,
            12 => Kind::Descriptor,
            13 => Kind::Bulk,
            _ => return Err(Garbage),
        };
        let status = match bytes[1] {
            0 => Status::Returned,
            1 => Status::Panicked,
            2 => Status::EncodeFailed,
            3 => Status::DecodeFailed,
            4 => Status::Failed,
            5 => Status::TooLarge,
            _ => return Err(Garbage),
        };
        let count = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        Ok(Some(Self { kind, status, count, number: word(8), length: word(16), time: word(24) }))
    }
}

/// Bytes no worker of this build would send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Garbage;

/// What a worker is told first.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Where the initializer is described, and the initializer.
    pub(crate) initializer: Option<(u64, u64)>,
    pub(crate) message_limit: u64,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) cpu_time_limit: Option<u64>,
    pub(crate) open_files_limit: Option<u64>,
    /// By how many bytes its own memory may grow before it asks to be replaced.
    pub(crate) max_memory_growth: Option<u64>,
}

/// What the tasks of one `Call` have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallHead {
    /// Where the call is described, as an offset in the program's image.
    pub(crate) descriptor: u64,
    /// The function, likewise.
    pub(crate) function: u64,
    /// The context's id; 0 for none.
    pub(crate) context: u64,
}

impl CallHead {
    pub(crate) const BYTES: usize = 24;

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for word in [self.descriptor, self.function, self.context] {
            out.extend_from_slice(&word.to_ne_bytes());
        }
    }

    /// The head of a body, and the rest of it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (descriptor, bytes) = take_word(bytes)?;
        let (function, bytes) = take_word(bytes)?;
        let (context, bytes) = take_word(bytes)?;
        Some((Self { descriptor, function, context }, bytes))
    }
}

/// Limits as they travel: three numbers, the largest of which stands for none.
pub(crate) fn encode_limits(limits: &CallLimits) -> [u8; 24] {
    let cpu_time = limits.cpu_time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let mut bytes = [0; 24];
    for (place, limit) in bytes.chunks_exact_mut(8).zip([limits.memory, cpu_time, limits.open_files]) {
        place.copy_from_slice(&limit.unwrap_or(u64::MAX).to_ne_bytes());
    }
    bytes
}

pub(crate) fn decode_limits(bytes: &[u8]) -> Option<CallLimits> {
    let (memory, bytes) = take_word(bytes)?;
    let (cpu_time, bytes) = take_word(bytes)?;
    let (open_files, _) = take_word(bytes)?;
    let limit = |word: u64| (word != u64::MAX).then_some(word);
    let mut limits = CallLimits::default();
    limits.memory = limit(memory);
    limits.cpu_time = limit(cpu_time).map(Duration::from_nanos);
    limits.open_files = limit(open_files);
    Some(limits)
}

/// The number at the beginning of `bytes`, and the rest.
pub(crate) fn take_word(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u64::from_ne_bytes(*word), rest))
}

/// The bytes behind their length at the beginning of `bytes`, and the rest.
pub(crate) fn take_sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = take_word(bytes)?;
    rest.split_at_checked(usize::try_from(length).ok()?)
}

/// A panic on its way to the parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Panic {
    pub(crate) message: String,
    pub(crate) file: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) backtrace: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_garbage_does_not() {
        let header =
            Header { status: Status::Panicked, count: 3, time: 9, ..Header::new(Kind::Reply, 1 << 40, 77) };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(Some(header)));
        assert_eq!(Header::decode(&bytes[..31]), Ok(None));
        for (at, value) in [(0, 0), (0, 14), (1, 6)] {
            let mut bad = bytes;
            bad[at] = value;
            assert_eq!(Header::decode(&bad), Err(Garbage));
        }
    }

    #[test]
    fn a_length_longer_than_the_bytes_is_refused() {
        let mut bytes = Vec::from(5_u64.to_ne_bytes());
        bytes.extend_from_slice(b"12345rest");
        assert_eq!(take_sized(&bytes), Some((&b"12345"[..], &b"rest"[..])));
        bytes[0] = 200;
        assert_eq!(take_sized(&bytes), None);
        bytes[7] = 255;
        assert_eq!(take_sized(&bytes), None);
    }
}
