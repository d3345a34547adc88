//! What a worker process does. A PLACEHOLDER, to be replaced: it echoes bytes until its socket is closed.

use crate::sys::memory::SharedPage;
use crate::sys::{process, socket};
use std::os::fd::{AsFd, OwnedFd};

/// Runs in a freshly forked worker, until the parent closes the socket.
pub(crate) fn run(socket: OwnedFd, page: SharedPage) -> ! {
    let _page = page;
    let mut buffer = [0; 4096];
    loop {
        let received = match socket::receive_blocking(socket.as_fd(), &mut buffer) {
            Ok(received) if received > 0 => received,
            _ => process::exit_now(0),
        };
        if socket::send_all(socket.as_fd(), &buffer[..received]).is_err() {
            process::exit_now(0);
        }
    }
}
