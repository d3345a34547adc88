//! What travels beside the bytes of a message: descriptors, and memory shared with workers.
//!
//! serde hands a type nothing but its serializer, so what a [`Shared`](crate::Shared) or an [`Fd`](crate::Fd) needs from
//! the message around it is kept in this thread's hands while the message is encoded or decoded:
//!
//! * [`collect`] is around an encoding; in it [`add_segment`] and [`add_descriptor`] note what must go along.
//! * [`provide`] is around a decoding; in it [`take_descriptor`] gives what came along. What nobody took is closed.
//!   In a worker, where decoding, calling and encoding are one step, it is [`stage`] and [`unstage`], and what the result
//!   attaches is kept for [`take_reply`].
//!
//! Outside of them the answer is an error: bytes alone carry neither.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use crate::share::Segment;
use crate::sync::Arc;

/// What goes along with a message.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) descriptors: Vec<Arc<OwnedFd>>,
}

impl Attachments {
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.descriptors.is_empty()
    }
}

/// More descriptors in one argument or result are refused.
pub(crate) const MOST_DESCRIPTORS: usize = 64;

thread_local! {
    static OUTGOING: RefCell<Option<Attachments>> = const { RefCell::new(None) };
    static INCOMING: RefCell<Option<Arrived>> = const { RefCell::new(None) };
    static REPLY: RefCell<Option<Attachments>> = const { RefCell::new(None) };
}

/// Descriptors that came along; none where one could not be received.
pub(crate) type Arrived = Vec<Option<OwnedFd>>;

/// Runs `encode`, which must not unwind, and gives what its values attach.
pub(crate) fn collect<R>(encode: impl FnOnce() -> R) -> (R, Attachments) {
    let outer = OUTGOING.replace(Some(Attachments::default()));
    let encoded = encode();
    (encoded, OUTGOING.replace(outer).unwrap_or_default())
}

/// Runs `decode`, which must not unwind, with the descriptors that came along.
pub(crate) fn provide<R>(descriptors: Arrived, decode: impl FnOnce() -> R) -> R {
    let outer = INCOMING.replace(Some(descriptors));
    let decoded = decode();
    drop(INCOMING.replace(outer));
    decoded
}

/// The next argument decoded on this thread comes with these descriptors.
pub(crate) fn stage(descriptors: Arrived) {
    INCOMING.set(Some(descriptors));
}

/// The argument is decoded: what it did not take is closed.
pub(crate) fn unstage() {
    drop(INCOMING.take());
}

/// Keeps what a result attaches.
pub(crate) fn keep_reply(attachments: Attachments) {
    REPLY.set(Some(attachments));
}

/// Whether the last result attached anything.
pub(crate) fn has_reply() -> bool {
    REPLY.with_borrow(Option::is_some)
}

/// What the last result attached, if anything.
pub(crate) fn take_reply() -> Option<Attachments> {
    REPLY.take()
}

/// Notes that the message being encoded refers to this memory.
pub(crate) fn add_segment(segment: &Arc<Segment>) -> Result<(), &'static str> {
    OUTGOING.with_borrow_mut(|outgoing| {
        let attachments = outgoing.as_mut().ok_or(ALONE)?;
        if !attachments.segments.iter().any(|other| Arc::ptr_eq(other, segment)) {
            attachments.segments.push(Arc::clone(segment));
        }
        Ok(())
    })
}

/// Whether a descriptor may go along with what is being encoded.
pub(crate) fn may_add_descriptor() -> Result<(), &'static str> {
    OUTGOING.with_borrow(|outgoing| match outgoing {
        None => Err(ALONE),
        Some(attachments) if attachments.descriptors.len() == MOST_DESCRIPTORS => {
            Err("more than 64 descriptors in one argument or result")
        }
        Some(_) => Ok(()),
    })
}

/// Notes that this descriptor goes along; gives its place among them.
pub(crate) fn add_descriptor(descriptor: OwnedFd) -> Result<u32, &'static str> {
    OUTGOING.with_borrow_mut(|outgoing| {
        let descriptors = &mut outgoing.as_mut().ok_or(ALONE)?.descriptors;
        descriptors.push(Arc::new(descriptor));
        u32::try_from(descriptors.len() - 1).map_err(|_| ALONE)
    })
}

/// The descriptor at this place among those that came along; each once.
pub(crate) fn take_descriptor(place: u32) -> Result<OwnedFd, &'static str> {
    INCOMING.with_borrow_mut(|incoming| {
        let incoming = incoming.as_mut().ok_or(ALONE)?;
        let place = usize::try_from(place).map_err(|_| MISSING)?;
        incoming.get_mut(place).and_then(Option::take).ok_or(MISSING)
    })
}

const ALONE: &str =
    "descriptors and shared memory travel only as part of what is sent to a worker process or back";
const MISSING: &str = "the descriptor did not come along";
