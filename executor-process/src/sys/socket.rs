//! Local sockets: byte streams to workers, and packets with descriptors to the fork server.
//!
//! Whether a call may block is said by the call, not by the socket: each end of a pair may be used both ways. No call
//! here raises SIGPIPE.
//!
//! * I1: a control message handed out by the kernel lies inside our buffer, is aligned for its header, and its length
//!   says how many descriptors follow.
//! * I2: every descriptor in an SCM_RIGHTS message is new, ours alone, and taken exactly once.

use super::retry;
use nix::errno::Errno;
#[cfg(test)]
use nix::sys::socket::recv as nix_recv;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, getsockopt, send as nix_send,
    sendmsg, socketpair, sockopt,
};
use std::ffi::c_void;
use std::io::{self, IoSlice};
use std::mem::{self, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Whether a call waits or answers `WouldBlock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocking {
    Wait,
    Never,
}

impl Blocking {
    const fn flags(self) -> MsgFlags {
        match self {
            Self::Wait => MsgFlags::MSG_NOSIGNAL,
            Self::Never => MsgFlags::MSG_NOSIGNAL.union(MsgFlags::MSG_DONTWAIT),
        }
    }
}

/// Two ends of a stream of bytes.
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    retry(|| socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC))
}

/// Two ends of a connection that keeps the borders of packets.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    retry(|| socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC))
}

/// Sends what fits; `WouldBlock` if nothing does.
#[inline]
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    retry(|| nix_send(socket.as_raw_fd(), bytes, Blocking::Never.flags()))
}

/// Receives what is there; 0 at the end of the stream, `WouldBlock` if there is nothing yet.
#[cfg(test)]
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| nix_recv(socket.as_raw_fd(), buffer, Blocking::Never.flags()))
}

/// Receives at least one byte, waiting for it; 0 at the end of the stream.
#[cfg(test)]
pub(crate) fn receive_blocking(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| nix_recv(socket.as_raw_fd(), buffer, Blocking::Wait.flags()))
}

/// Sends what fits, the first byte together with a copy of `fd`; `WouldBlock` if nothing does.
pub(crate) fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    send_with_fd(socket, bytes, fd, Blocking::Never)
}

/// Sends all of it, the first byte together with a copy of `fd`, waiting for room.
pub(crate) fn send_all_with(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let sent = send_with_fd(socket, bytes, fd, Blocking::Wait)?;
    send_all(socket, &bytes[sent..])
}

fn send_with_fd(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: BorrowedFd<'_>,
    blocking: Blocking,
) -> io::Result<usize> {
    let numbers = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&numbers)];
    retry(|| sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &rights, blocking.flags(), None))
}

/// Sends all of it, waiting for room.
pub(crate) fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = retry(|| nix_send(socket.as_raw_fd(), bytes, Blocking::Wait.flags()))?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Ends the connection for every copy of this descriptor, in forked children too. The other end sees its end.
pub(crate) fn shut_down(socket: BorrowedFd<'_>) {
    // The only failure is that it has ended already.
    let _ = retry(|| nix::sys::socket::shutdown(socket.as_raw_fd(), Shutdown::Both));
}

/// Ends our direction of the connection: the other end reads what was sent, and then its end.
pub(crate) fn close_writing(socket: BorrowedFd<'_>) {
    // The only failure is that it has ended already.
    let _ = retry(|| nix::sys::socket::shutdown(socket.as_raw_fd(), Shutdown::Write));
}

/// Sends one packet with copies of some descriptors, or nothing.
pub(crate) fn send_packet(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    blocking: Blocking,
) -> io::Result<()> {
    debug_assert!(fds.len() <= MAX_FDS, "receive_packet has room for {MAX_FDS} descriptors");
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
    retry(|| sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, blocking.flags(), None))?;
    Ok(())
}

/// What [`receive_packet`] got besides the bytes in the buffer.
#[derive(Debug)]
pub(crate) struct Packet {
    /// How many bytes; 0 when the other end is closed.
    pub(crate) length: usize,
    /// The descriptors that came along. Fewer than were sent if this process may not have that many.
    pub(crate) fds: Vec<OwnedFd>,
    /// Whether a descriptor was lost: this process may not have one more.
    pub(crate) is_cut: bool,
}

/// Receives at least one byte of a stream, and the descriptor that was sent with the first one, if any was; of two that
/// were sent, never both at once.
#[inline]
pub(crate) fn receive_stream(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    blocking: Blocking,
) -> io::Result<Packet> {
    receive_packet(socket, buffer, blocking)
}

/// The errno of a user with more descriptors in packets nobody has received than a process may have open.
pub(crate) const TOO_MANY_IN_FLIGHT: i32 = libc::ETOOMANYREFS;

/// The most descriptors in a packet.
pub(crate) const MAX_FDS: usize = 4;

/// Receives one packet. What does not fit into `buffer` is an `InvalidData` error.
pub(crate) fn receive_packet(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    blocking: Blocking,
) -> io::Result<Packet> {
    // Words, for the alignment of the headers; more than room enough for one message of MAX_FDS descriptors.
    let mut control = [0_u64; 8];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: zeros are a valid `msghdr`: no name, no parts, no control messages.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    #[cfg_attr(
        target_env = "gnu",
        expect(clippy::useless_conversion, reason = "the type differs in other C libraries")
    )]
    {
        header.msg_controllen = size_of_val(&control).try_into().unwrap_or_default();
    }
    let flags = blocking.flags().bits() | libc::MSG_CMSG_CLOEXEC;
    let length = retry(|| {
        // SAFETY: the header points to our buffers, which outlive the call, with their true lengths.
        let answer = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        Errno::result(answer)
    })?;
    // Before anything may fail: they are ours now, and must be closed if not used.
    let fds = take_fds(&header);
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet too long"));
    }
    let is_cut = header.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(Packet { length: usize::try_from(length).unwrap_or_default(), fds, is_cut })
}

fn take_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: I1: the kernel has filled the header in.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: I1.
        let head = unsafe { ptr::read(message) };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: I1: pure arithmetic on the header's address.
            let data: *const c_void = unsafe { libc::CMSG_DATA(message) }.cast();
            let start = data.addr() - message.addr();
            #[allow(
                clippy::unnecessary_cast,
                trivial_numeric_casts,
                reason = "the type differs between C libraries"
            )]
            let count = (head.cmsg_len as usize).saturating_sub(start) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: I1: the message holds `count` descriptors.
                let place = unsafe { data.cast::<RawFd>().add(index) };
                // SAFETY: I1, as above; the data need not be aligned.
                let number = unsafe { ptr::read_unaligned(place) };
                // SAFETY: I2.
                fds.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        // SAFETY: I1.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    fds
}

/// Who made the pair a socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) pid: u32,
    /// Its effective user when it made the pair.
    pub(crate) user: u32,
}

/// Who is at the other end; an error if this is no local packet socket.
pub(crate) fn peer_of_packet_socket(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    if retry(|| getsockopt(&socket, sockopt::SockType))? != SockType::SeqPacket {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a packet socket"));
    }
    let peer = retry(|| getsockopt(&socket, sockopt::PeerCredentials))?;
    // Anything but a local socket has no peer: process 0 or an error.
    let pid = u32::try_from(peer.pid()).ok().filter(|&pid| pid != 0);
    let pid =
        pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a socket without a local peer"))?;
    Ok(Peer { pid, user: peer.uid() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;
    use std::os::fd::AsFd;

    #[test]
    fn a_packet_arrives_whole_with_its_descriptors() {
        let (ours, theirs) = packet_pair().unwrap();
        let (left, right) = stream_pair().unwrap();
        send_packet(ours.as_fd(), b"one", &[left.as_fd(), right.as_fd()], Blocking::Never).unwrap();
        send_packet(ours.as_fd(), b"two", &[], Blocking::Never).unwrap();
        drop((left, right));
        let mut buffer = [0; 16];
        let packet = receive_packet(theirs.as_fd(), &mut buffer, Blocking::Never).unwrap();
        assert_eq!((&buffer[..packet.length], packet.fds.len()), (&b"one"[..], 2));
        send_all(packet.fds[0].as_fd(), b"through").unwrap();
        assert_eq!(receive(packet.fds[1].as_fd(), &mut buffer).unwrap(), 7);
        let packet = receive_packet(theirs.as_fd(), &mut buffer, Blocking::Wait).unwrap();
        assert_eq!((&buffer[..packet.length], packet.fds.len()), (&b"two"[..], 0));
        let nothing = receive_packet(theirs.as_fd(), &mut buffer, Blocking::Never).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        assert_eq!(receive_packet(theirs.as_fd(), &mut buffer, Blocking::Wait).unwrap().length, 0);
    }

    #[test]
    fn a_packet_longer_than_the_buffer_is_an_error() {
        let (ours, theirs) = packet_pair().unwrap();
        send_packet(ours.as_fd(), &[1; 64], &[ours.as_fd()], Blocking::Never).unwrap();
        let error = receive_packet(theirs.as_fd(), &mut [0; 16], Blocking::Never).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_full_stream_would_block_and_a_closed_one_breaks() {
        let (ours, theirs) = stream_pair().unwrap();
        let error = loop {
            if let Err(error) = send(ours.as_fd(), &[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(send(ours.as_fd(), b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (ours, _theirs) = packet_pair().unwrap();
        let peer = peer_of_packet_socket(ours.as_fd()).unwrap();
        assert_eq!(peer, Peer { pid: process::id(), user: process::effective_user() });
        let (stream, _other) = stream_pair().unwrap();
        peer_of_packet_socket(stream.as_fd()).unwrap_err();
    }
}
