//! `Shared<T>`: large data put once into memory that every worker maps.
//!
//! A [`Segment`] is a memory file, written once and sealed: nobody can change it any more, neither size nor contents, not
//! even who made it. It has no name, so it is gone with the last process that holds it. Its descriptor travels to each
//! worker once, ahead of the first task that needs it; a message carries its id.
//!
//! ```text
//!   this process   Shared<T> ──► Segment ◄── registry, by id (weak)       jobs hold the segments they refer to
//!   a worker       Shared<T> ──► Segment ◄── the worker's table, until the parent says `Drop`
//! ```
//!
//! * **I1** `value` of a [`Shared`] points to what its `segment` owns and never changes while it lives: its mapping, or
//!   its decoded value, a box that is set once.
//! * **I2** The mapping has the file's length, is aligned to a page, and its bytes never change: the file is sealed.
//! * **I3** Ids are unique among this process and its ancestors: the maker's process id, and a counter.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{OnceLock, Weak};

use executor_core::{Payload, codec};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::attach;
use crate::sync::{Arc, AtomicU32, Mutex, Ordering};
use crate::sys::memory::Frozen;
use crate::sys::process;

/// Large read-only data that every worker process maps instead of getting a copy.
///
/// It is put into memory once; a task carries a few bytes that name it. Cheap to clone. Use it as an argument, as a part
/// of one, or as a context; in a task it dereferences to the data. On a thread pool it is a counted reference.
///
/// ```
/// use executor_process::{ProcessPoolExecutor, Shared};
/// use executor_core::Executor;
///
/// let pool = ProcessPoolExecutor::new(2)?;
/// let table: Shared<[f64]> = Shared::from_slice(&vec![0.5; 1_000_000])?;
/// let parts = (0..10).map(|part| (table.clone(), part * 100_000));
/// let sums = pool.map(|(table, start): (Shared<[f64]>, usize)| table[start..][..100_000].iter().sum::<f64>(), parts);
/// assert_eq!(sums.sum::<Result<f64, _>>()?, 500_000.0);
///
/// // Any payload: encoded once, decoded once in each worker.
/// let names = Shared::new(vec!["one".to_owned(), "two".to_owned()])?;
/// let second = pool.submit_with(names, |names, index: usize| names[index].clone(), 1);
/// assert_eq!(second.result()?, "two");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The memory is freed when the last handle is dropped and no task needs it any more; the workers let go of it then. It
/// cannot be written to: a task that tries all the same, by a pointer, dies by SIGSEGV, alone.
///
/// Encoding it for anything but a process pool is an error, and so is returning one that was made in a worker.
pub struct Shared<T: ?Sized> {
    segment: Arc<Segment>,
    value: NonNull<T>,
}

// SAFETY: I1: a `Shared` gives `&T` and nothing else, and drops the segment, which is `Send` and `Sync` itself.
unsafe impl<T: ?Sized + Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send + Sync> Sync for Shared<T> {}

/// Types whose values are their bytes, so that a slice of them can lie in shared memory: numbers, and arrays of such.
///
/// # Safety
///
/// Every pattern of bits is a value of the type, it has no padding, no pointer, no interior mutability, and a size
/// above 0.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($number:ty)*) => {
        // SAFETY: a number: every pattern of bits is a value, and there is no padding.
        $(unsafe impl Plain for $number {})*
    };
}
plain!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

// SAFETY: as its elements, without padding between them.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

impl<T: Plain> Shared<[T]> {
    /// Copies `items` into shared memory.
    ///
    /// # Errors
    ///
    /// The system has no memory or no descriptor left.
    ///
    /// ```
    /// # use executor_process::Shared;
    /// let bytes = Shared::from_slice(b"many bytes")?;
    /// assert_eq!(bytes.len(), 10);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn from_slice(items: &[T]) -> io::Result<Self> {
        // SAFETY: `Plain`: initialised bytes, all of them.
        let bytes = unsafe { std::slice::from_raw_parts(items.as_ptr().cast::<u8>(), size_of_val(items)) };
        let segment = Segment::new(bytes)?;
        Ok(Self::view(segment).ok_or(io::ErrorKind::InvalidInput)?)
    }

    fn view(segment: Arc<Segment>) -> Option<Self> {
        let bytes = segment.memory.bytes();
        let count = bytes.len().checked_div(size_of::<T>())?;
        let start = NonNull::from(bytes).cast::<T>();
        if !bytes.len().is_multiple_of(size_of::<T>()) || !start.is_aligned() {
            return None;
        }
        Some(Self { value: NonNull::slice_from_raw_parts(start, count), segment })
    }
}

impl<T: Payload + Sync> Shared<T> {
    /// Encodes `value` into shared memory. Each worker decodes it once, when the first task brings it; here it is `value`
    /// itself.
    ///
    /// # Errors
    ///
    /// The value cannot be encoded, or the system has no memory or no descriptor left.
    ///
    /// ```
    /// # use executor_process::Shared;
    /// let words = Shared::new(vec!["large".to_owned(), "data".to_owned()])?;
    /// assert_eq!(words.len(), 2);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(value: T) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let (encoded, attachments) = attach::collect(|| codec::encode(&value, &mut bytes));
        let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidInput, problem);
        encoded.map_err(|problem| invalid(&problem))?;
        if !attachments.is_empty() {
            return Err(invalid("a `Shared` holds data alone: no descriptor, and no other `Shared`"));
        }
        let segment = Segment::new(&bytes)?;
        segment.value.get_or_init(|| Box::new(value));
        Self::of_value(segment).map_err(|problem| invalid(&problem))
    }

    /// The value of a segment, decoded if it was not yet.
    fn of_value(segment: Arc<Segment>) -> Result<Self, Box<str>> {
        if segment.value.get().is_none() {
            let value: T = codec::decode(segment.memory.bytes())?;
            segment.value.get_or_init(|| Box::new(value));
        }
        let value = segment.value.get().and_then(|value| value.downcast_ref::<T>());
        let value = NonNull::from(value.ok_or("the shared data is of another type")?);
        Ok(Self { segment, value })
    }
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: I1, I2.
        unsafe { self.value.as_ref() }
    }
}

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { segment: Arc::clone(&self.segment), value: self.value }
    }
}

impl<T: ?Sized> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("bytes", &self.segment.memory.bytes().len()).finish_non_exhaustive()
    }
}

impl<T: ?Sized> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        attach::add_segment(&self.segment).map_err(S::Error::custom)?;
        self.segment.id.serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for Shared<[T]> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let segment = find(u64::deserialize(deserializer)?).map_err(D::Error::custom)?;
        Self::view(segment).ok_or_else(|| D::Error::custom("the shared data is of another type"))
    }
}

impl<'de, T: Payload + Sync> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let segment = find(u64::deserialize(deserializer)?).map_err(D::Error::custom)?;
        Self::of_value(segment).map_err(D::Error::custom)
    }
}

/// Memory that is shared: see the head of this file.
pub(crate) struct Segment {
    pub(crate) id: u64,
    memory: Frozen,
    value: OnceLock<Box<dyn Any + Send + Sync>>,
    /// Who has sent it to workers.
    keepers: Mutex<Vec<Weak<dyn Keeper>>>,
}

/// Somebody whose workers hold segments.
pub(crate) trait Keeper: Send + Sync {
    /// A segment is gone here: the workers are to let go of it.
    fn forget(&self, id: u64);
}

impl Segment {
    fn new(bytes: &[u8]) -> io::Result<Arc<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // ORDERING: relaxed: only uniqueness matters.
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self::enter(u64::from(process::id()) << 32 | u64::from(count), Frozen::new(bytes)?))
    }

    /// The segment another process has made.
    pub(crate) fn open(id: u64, file: OwnedFd) -> io::Result<Arc<Self>> {
        Ok(Self::enter(id, Frozen::open(file)?))
    }

    fn enter(id: u64, memory: Frozen) -> Arc<Self> {
        let segment = Arc::new(Self { id, memory, value: OnceLock::new(), keepers: Mutex::default() });
        REGISTRY.lock().insert(id, Arc::downgrade(&segment));
        segment
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.memory.file()
    }

    /// From now on `keeper` is told when this is dropped.
    pub(crate) fn keep(&self, keeper: Weak<dyn Keeper>) {
        let mut keepers = self.keepers.lock();
        if !keepers.iter().any(|other| Weak::ptr_eq(other, &keeper)) {
            keepers.retain(|other| other.strong_count() > 0);
            keepers.push(keeper);
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let mut registry = REGISTRY.lock();
        if registry.get(&self.id).is_some_and(|entry| entry.strong_count() == 0) {
            registry.remove(&self.id);
        }
        drop(registry);
        let keepers = std::mem::take(&mut *self.keepers.lock());
        for keeper in keepers.iter().filter_map(Weak::upgrade) {
            keeper.forget(self.id);
        }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Every segment of this process.
static REGISTRY: Mutex<BTreeMap<u64, Weak<Segment>>> = Mutex::new(BTreeMap::new());

/// The segment with this id.
pub(crate) fn find(id: u64) -> Result<Arc<Segment>, &'static str> {
    let entry = REGISTRY.lock().get(&id).cloned();
    entry.and_then(|entry| entry.upgrade()).ok_or("the shared data is not here, or no more")
}
