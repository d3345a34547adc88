//! `Fd<T>`: an open file, socket or pipe as an argument or a result.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::attach;

/// An open file, socket or pipe that travels to a worker process, or back as a result.
///
/// `T` is anything around a descriptor: `TcpStream`, `TcpListener`, `UnixStream`, `File`, `OwnedFd`, ... The worker gets
/// a descriptor of its own for the same open file, close-on-exec; the sender's closes when the task is over, or before
/// if it was cancelled. On a thread pool the value just moves.
///
/// ```
/// use executor_process::{Fd, ProcessPoolExecutor};
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// let pool = ProcessPoolExecutor::new(1)?;
/// let (mut ours, theirs) = UnixStream::pair()?;
/// let greeting = pool.submit(
///     |mut stream: Fd<UnixStream>| write!(stream, "hello from {}", std::process::id()).is_ok(),
///     Fd::new(theirs),
/// );
/// assert!(greeting.result()?);
/// let mut text = String::new();
/// ours.read_to_string(&mut text)?; // to the end: nobody holds the other side any more
/// assert!(text.starts_with("hello from "));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It can be part of a structure or a collection, up to 64 in one argument or result. Encoding it for anything but a
/// process pool, with `serde_json` say, is an error, and so is one inside a context, which may go to any number of
/// workers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fd<T>(T);

impl<T> Fd<T> {
    /// Makes `file` ready to travel.
    ///
    /// ```
    /// # use executor_process::Fd;
    /// let fd = Fd::new(std::fs::File::open("/dev/null")?);
    /// assert!(fd.metadata().is_ok());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub const fn new(file: T) -> Self {
        Self(file)
    }

    /// The file itself.
    ///
    /// ```
    /// # use executor_process::Fd;
    /// let file: std::fs::File = Fd::new(std::fs::File::open("/dev/null")?).into_inner();
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Fd<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Fd<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> From<T> for Fd<T> {
    fn from(file: T) -> Self {
        Self(file)
    }
}

impl<T: fmt::Debug> fmt::Debug for Fd<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fd").field(&self.0).finish()
    }
}

impl<T: AsFd> Serialize for Fd<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        attach::may_add_descriptor().map_err(S::Error::custom)?;
        let copy =
            self.0.as_fd().try_clone_to_owned().map_err(|error| {
                S::Error::custom(format_args!("could not duplicate the descriptor: {error}"))
            })?;
        attach::add_descriptor(copy).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de, T: From<OwnedFd>> Deserialize<'de> for Fd<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let place = u32::deserialize(deserializer)?;
        attach::take_descriptor(place).map(|fd| Self(fd.into())).map_err(D::Error::custom)
    }
}
