//! Waiting for descriptors: epoll for the dispatcher, plain poll where there are three, and a doorbell to end a wait.
//!
//! Readiness is level-triggered throughout: what is not handled is reported again.

use super::{deadline_after, milliseconds_until, retry};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// What to wait for. That the other end is gone is reported in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    ReadWrite,
}

/// What a descriptor can do without blocking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// A read will not block: there are bytes, the end of the stream, or an error to take.
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The other end is gone, or the descriptor is in error. Bytes may still be there to read.
    pub(crate) closed: bool,
}

/// One answer of [`Epoll::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) token: u64,
    pub(crate) ready: Ready,
}

/// The memory [`Epoll::wait`] writes into, to be used again and again.
#[derive(Debug)]
pub(crate) struct EventBuffer(Vec<EpollEvent>);

impl EventBuffer {
    /// Room for `capacity` events from one call; with more than that ready, the rest comes in the next.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(vec![EpollEvent::empty(); capacity.max(1)])
    }
}

/// A set of descriptors to wait for, each with a token of the caller's.
#[derive(Debug)]
pub(crate) struct Epoll(nix::sys::epoll::Epoll);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(retry(|| nix::sys::epoll::Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC))?))
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>, interest: Interest, token: u64) -> io::Result<()> {
        retry(|| self.0.add(fd, EpollEvent::new(epoll_flags(interest), token)))
    }

    pub(crate) fn modify(&self, fd: BorrowedFd<'_>, interest: Interest, token: u64) -> io::Result<()> {
        retry(|| self.0.modify(fd, &mut EpollEvent::new(epoll_flags(interest), token)))
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        retry(|| self.0.delete(fd))
    }

    /// Waits until something is ready or the time is over; `None` waits for ever. No event at all means that the time
    /// is over, or a wait of more than a minute was cut: look at the clock.
    pub(crate) fn wait<'buffer>(
        &self,
        buffer: &'buffer mut EventBuffer,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Event> + use<'buffer>> {
        let deadline = deadline_after(timeout);
        let count = loop {
            let limit = milliseconds_until(deadline).map_or(EpollTimeout::NONE, EpollTimeout::from);
            match self.0.wait(&mut buffer.0, limit) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        Ok(buffer
            .0
            .iter()
            .take(count)
            .map(|event| Event { token: event.data(), ready: from_epoll(event.events()) }))
    }
}

/// Waits until one of a few descriptors is ready or the deadline is past (then nothing is ready).
pub(crate) fn poll<const N: usize>(
    watched: [(BorrowedFd<'_>, Interest); N],
    deadline: Option<Instant>,
) -> io::Result<[Ready; N]> {
    let mut entries = watched.map(|(fd, interest)| PollFd::new(fd, poll_flags(interest)));
    loop {
        let limit = milliseconds_until(deadline).map_or(PollTimeout::NONE, PollTimeout::from);
        match nix::poll::poll(&mut entries, limit) {
            Ok(0) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
            Err(Errno::EINTR) => {}
            Ok(_) => return Ok(entries.map(|entry| from_poll(entry.revents().unwrap_or(PollFlags::POLLERR)))),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends another thread's wait: an eventfd.
#[derive(Debug)]
pub(crate) struct Doorbell(EventFd);

impl Doorbell {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(retry(|| EventFd::from_value_and_flags(0, flags))?))
    }

    /// Makes the descriptor readable, until [`clear`](Self::clear). Never blocks.
    pub(crate) fn ring(&self) {
        // The only failure is a counter at its maximum: it is readable then.
        let _ = retry(|| self.0.write(1));
    }

    /// Makes the descriptor unreadable again; every ring so far is answered by it.
    pub(crate) fn clear(&self) {
        // The only failure is that nobody has rung.
        let _ = retry(|| self.0.read());
    }
}

impl AsFd for Epoll {
    /// Readable when something in the set is ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn epoll_flags(interest: Interest) -> EpollFlags {
    match interest {
        Interest::Read => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP,
        Interest::Write => EpollFlags::EPOLLOUT,
        Interest::ReadWrite => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLOUT,
    }
}

fn from_epoll(flags: EpollFlags) -> Ready {
    let closed = flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLRDHUP);
    Ready {
        readable: flags.contains(EpollFlags::EPOLLIN),
        writable: flags.contains(EpollFlags::EPOLLOUT),
        closed,
    }
}

fn poll_flags(interest: Interest) -> PollFlags {
    match interest {
        Interest::Read => PollFlags::POLLIN,
        Interest::Write => PollFlags::POLLOUT,
        Interest::ReadWrite => PollFlags::POLLIN | PollFlags::POLLOUT,
    }
}

fn from_poll(flags: PollFlags) -> Ready {
    let closed = flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL);
    Ready {
        readable: flags.contains(PollFlags::POLLIN),
        writable: flags.contains(PollFlags::POLLOUT),
        closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;

    #[test]
    fn a_doorbell_ends_a_wait_until_it_is_cleared() {
        let (epoll, bell) = (Epoll::new().unwrap(), Doorbell::new().unwrap());
        let mut buffer = EventBuffer::with_capacity(8);
        epoll.add(bell.as_fd(), Interest::Read, u64::MAX).unwrap();
        assert_eq!(epoll.wait(&mut buffer, Some(Duration::ZERO)).unwrap().count(), 0);
        bell.ring();
        bell.ring();
        let events: Vec<_> = epoll.wait(&mut buffer, None).unwrap().collect();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].token, events[0].ready.readable), (u64::MAX, true));
        bell.clear();
        assert_eq!(epoll.wait(&mut buffer, Some(Duration::ZERO)).unwrap().count(), 0);
    }

    #[test]
    fn a_closed_peer_is_seen_whatever_the_interest() {
        let (ours, theirs) = socket::stream_pair().unwrap();
        let epoll = Epoll::new().unwrap();
        let mut buffer = EventBuffer::with_capacity(1);
        epoll.add(ours.as_fd(), Interest::Read, 1).unwrap();
        assert_eq!(epoll.wait(&mut buffer, Some(Duration::ZERO)).unwrap().count(), 0);
        drop(theirs);
        assert!(epoll.wait(&mut buffer, None).unwrap().all(|event| event.ready.closed));
        epoll.remove(ours.as_fd()).unwrap();
        assert!(poll([(ours.as_fd(), Interest::Read)], None).unwrap()[0].closed);
    }

    #[test]
    fn poll_ends_at_its_deadline() {
        let (ours, _theirs) = socket::stream_pair().unwrap();
        let deadline = Instant::now() + Duration::from_millis(5);
        let [ready] = poll([(ours.as_fd(), Interest::Read)], Some(deadline)).unwrap();
        assert_eq!(ready, Ready::default());
        assert!(Instant::now() >= deadline);
    }
}
