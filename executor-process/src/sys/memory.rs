//! Memory that two processes see: sealed memory files, and the control words and the ring of one worker.
//!
//! The parent creates a [`SharedPage`], sends its descriptor to the fork server with the request for a worker, and
//! closes the descriptor; the worker maps it with [`SharedPage::open`] and closes it too. Each side's mapping lives
//! until that side drops it. The file has no name, so nothing is left when the last process is gone.
//!
//! * I1: `base` is a live mapping of `BYTES` bytes, shared, readable and writable, until `drop`.
//! * I2: the file behind it cannot shrink: it is sealed before the other side gets it, and `open` checks the seals.
//!   So an access inside the mapping never raises SIGBUS.
//! * I3: the mapping is only ever reached through `&AtomicU64`, on both sides: the other process may write any word
//!   at any time, and that is no data race.

use super::retry;
use crate::sync::{AtomicU8, AtomicU64, Ordering};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::uio::pwrite;
use nix::unistd::ftruncate;
use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::time::Duration;

/// The mapped atomic words that the parent and one worker share: a page of control words, and a ring behind it.
#[derive(Debug)]
pub(crate) struct SharedPage {
    base: NonNull<AtomicU64>,
}

impl SharedPage {
    /// The number of control words.
    pub(crate) const WORDS: usize = 4096 / size_of::<AtomicU64>();
    /// The size of the whole in bytes. What is never touched costs nothing.
    const BYTES: usize = (Self::WORDS + RING_WORDS) * size_of::<AtomicU64>();

    /// Makes it, all zeros, and the descriptor by which another process can open it.
    pub(crate) fn create() -> io::Result<(Self, OwnedFd)> {
        let file = memory_file(c"worker-page", Self::BYTES)?;
        Ok((Self::map(&file)?, file))
    }

    /// Maps the page another process created. The descriptor is not needed afterwards.
    pub(crate) fn open(file: BorrowedFd<'_>) -> io::Result<Self> {
        let size = retry(|| fstat(file))?.st_size;
        let seals = SealFlag::from_bits_retain(retry(|| fcntl(file, FcntlArg::F_GET_SEALS))?);
        if usize::try_from(size) != Ok(Self::BYTES) || !seals.contains(SEALS) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a page of control words"));
        }
        Self::map(file)
    }

    fn map(file: impl AsFd) -> io::Result<Self> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(SharedPage::BYTES).expect("a page has bytes");
        let file = file.as_fd();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: I1: a new mapping at a place the kernel chooses, which overlaps no other memory.
        let base = retry(|| unsafe { mmap(None, LENGTH, access, MapFlags::MAP_SHARED, file, 0) })?;
        Ok(Self { base: base.cast() })
    }

    /// The word at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`WORDS`](Self::WORDS).
    #[inline]
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < Self::WORDS, "word {index} of a page of {} words", Self::WORDS);
        // SAFETY: I1: inside the mapping, by the assertion.
        let word = unsafe { self.base.add(index) };
        // SAFETY: I1 and I2: mapped, aligned, and as long alive as `self`; I3: only atomics reach it.
        unsafe { word.as_ref() }
    }

    /// Sleeps as long as the word at `index` is `value`, for at most `limit`, and until [`wake`](Self::wake). May come back
    /// for no reason.
    pub(crate) fn sleep_while(&self, index: usize, value: u32, limit: Duration) {
        let limit = libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let word = self.futex(index);
        // SAFETY: I1: a word of the mapping, which `self` keeps; the kernel only reads it. The time outlives the call.
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, value, &raw const limit) };
    }

    /// Wakes whoever sleeps on the word at `index`, in any process.
    pub(crate) fn wake(&self, index: usize) {
        let word = self.futex(index);
        // SAFETY: I1: a word of the mapping, which `self` keeps; the kernel only takes its address.
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, i32::MAX) };
    }

    /// Where the lower half of a word is: what the kernel compares.
    fn futex(&self, index: usize) -> *const u32 {
        let lower = usize::from(cfg!(target_endian = "big"));
        ptr::from_ref(self.word(index)).cast::<u32>().wrapping_add(lower)
    }

    /// The words behind the control words.
    #[inline]
    pub(crate) fn ring_words(&self) -> &[AtomicU64] {
        // SAFETY: I1: inside the mapping, which has `RING_WORDS` words behind the control words.
        let start = unsafe { self.base.add(Self::WORDS) };
        // SAFETY: I1 and I2: mapped, aligned, and as long alive as `self`; I3: only atomics reach it.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), RING_WORDS) }
    }
}

/// The size of the ring in words: two whole chunks of numbers fit, since it is emptied when it is half full. What was never
/// used of it takes no memory.
pub(crate) const RING_WORDS: usize = 16 * 1024;

/// Words as the bytes they are made of.
pub(crate) const fn bytes_of(words: &[u64]) -> &[u8] {
    // SAFETY: so many bytes, all of them initialised, which live and stay unchanged as long as the words do.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: I1: our own mapping in its whole length; borrows of its words have ended.
        let unmapped = unsafe { munmap(self.base.cast(), Self::BYTES) };
        debug_assert!(unmapped.is_ok(), "munmap of a shared page: {unmapped:?}");
    }
}

// SAFETY: I3: all access is by atomics, the mapping belongs to no thread, and it can be unmapped from any.
unsafe impl Send for SharedPage {}
// SAFETY: I3: `&SharedPage` gives `&AtomicU64` and nothing else.
unsafe impl Sync for SharedPage {}

const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// A nameless memory file of zeros whose size can never change. `label` is what `/proc` shows.
pub(crate) fn memory_file(label: &CStr, bytes: usize) -> io::Result<OwnedFd> {
    let file = unsealed_file(label, bytes)?;
    retry(|| fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS | SealFlag::F_SEAL_SEAL)))?;
    Ok(file)
}

fn unsealed_file(label: &CStr, bytes: usize) -> io::Result<OwnedFd> {
    let plain = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Since 6.3 a system may insist on files that can never be executed; older kernels do not know the flag.
    let inert = plain | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let file = match retry(|| memfd_create(label, inert)) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => retry(|| memfd_create(label, plain))?,
        other => other?,
    };
    let size = libc::off_t::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    retry(|| ftruncate(&file, size))?;
    Ok(file)
}

/// Bytes in a memory file that can never change again, mapped for reading.
///
/// * I4: `base` is a live read-only mapping of `length` bytes of `file`, until `drop`; without bytes there is none.
/// * I5: `file` is sealed against writing, by whomever, and against any other size: so the bytes never change, and an
///   access never raises SIGBUS.
#[derive(Debug)]
pub(crate) struct Frozen {
    file: OwnedFd,
    base: NonNull<u8>,
    length: usize,
}

const FROZEN: SealFlag = SEALS.union(SealFlag::F_SEAL_WRITE);

impl Frozen {
    /// A new file with a copy of `bytes`.
    pub(crate) fn new(mut bytes: &[u8]) -> io::Result<Self> {
        let file = unsealed_file(c"shared", bytes.len())?;
        // By writing and not through a mapping: there must be no writable one when the file is sealed.
        let mut at = 0;
        while !bytes.is_empty() {
            let written = retry(|| pwrite(&file, bytes, at))?;
            at += libc::off_t::try_from(written).unwrap_or_default();
            bytes = &bytes[written..];
        }
        retry(|| fcntl(&file, FcntlArg::F_ADD_SEALS(FROZEN | SealFlag::F_SEAL_SEAL)))?;
        Self::open(file)
    }

    /// Maps such a file.
    pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
        let size = retry(|| fstat(&file))?.st_size;
        let seals = SealFlag::from_bits_retain(retry(|| fcntl(&file, FcntlArg::F_GET_SEALS))?);
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a file of shared data");
        let length = usize::try_from(size).map_err(|_| wrong())?;
        if !seals.contains(FROZEN) {
            return Err(wrong());
        }
        let base = match NonZeroUsize::new(length) {
            None => NonNull::<u128>::dangling().cast(),
            Some(length) => {
                let (access, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
                // SAFETY: I4: a new mapping at a place the kernel chooses, which overlaps no other memory.
                retry(|| unsafe { mmap(None, length, access, flags, &file, 0) })?.cast()
            }
        };
        Ok(Self { file, base, length })
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: I4 and I5.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: I4: our own mapping in its whole length; borrows of its bytes have ended.
            let unmapped = unsafe { munmap(self.base.cast(), self.length) };
            debug_assert!(unmapped.is_ok(), "munmap of shared data: {unmapped:?}");
        }
    }
}

// SAFETY: I5: the bytes are never written, and the mapping belongs to no thread.
unsafe impl Send for Frozen {}
// SAFETY: as above.
unsafe impl Sync for Frozen {}

/// Bytes that the parent and one worker pass by turns: memory of a fixed size, made once and used again and again.
///
/// * I6: `base` is a live mapping of `length` bytes, shared, readable and writable, until `drop`; the file behind it is sealed
///   as in I2, so an access never raises SIGBUS.
/// * I7: bytes that the other process may write are reached as atomics alone, and each is read once: whatever it does to them
///   meanwhile, what arrives is some bytes, and stays what it is. Bytes are written through a pointer, and not read by whoever
///   wrote them. The one reference to them is [`bytes`](Self::bytes), for who knows that nobody writes.
#[derive(Debug)]
pub(crate) struct Bulk {
    base: NonNull<u8>,
    length: usize,
}

impl Bulk {
    /// Makes it, and the descriptor by which the other process can open it.
    pub(crate) fn create(length: usize) -> io::Result<(Self, OwnedFd)> {
        let file = memory_file(c"worker-bulk", length)?;
        Ok((Self::open(file.as_fd())?, file))
    }

    /// Maps it. The descriptor is not needed afterwards.
    pub(crate) fn open(file: BorrowedFd<'_>) -> io::Result<Self> {
        let size = usize::try_from(retry(|| fstat(file))?.st_size).ok().and_then(NonZeroUsize::new);
        let seals = SealFlag::from_bits_retain(retry(|| fcntl(file, FcntlArg::F_GET_SEALS))?);
        let Some(length) = size.filter(|_| seals.contains(SEALS)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file to pass bytes in"));
        };
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: I6: a new mapping at a place the kernel chooses, which overlaps no other memory.
        let base = retry(|| unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) })?;
        Ok(Self { base: base.cast(), length: length.get() })
    }

    pub(crate) const fn len(&self) -> usize {
        self.length
    }

    /// Copies `bytes` to its beginning; false if they do not fit.
    pub(crate) fn write(&self, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= self.length;
        if fits {
            // SAFETY: I6: as many bytes are there, and the caller's are no part of them; I7.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr(), bytes.len()) };
        }
        fits
    }

    /// Copies what is at `from` on into `out`; false if it does not reach that far.
    #[inline]
    pub(crate) fn read(&self, from: usize, out: &mut [u8]) -> bool {
        let Some(bytes) = from.checked_add(out.len()).and_then(|end| self.atomics().get(from..end)) else {
            return false;
        };
        // SAFETY: an aligned word of bytes that may be anything is an atomic word.
        let (head, words, tail) = unsafe { bytes.align_to::<AtomicU64>() };
        let (start, rest) = out.split_at_mut(head.len());
        let (middle, end) = rest.split_at_mut(size_of_val(words));
        let copy = |from: &[AtomicU8], to: &mut [u8]| {
            for (byte, from) in to.iter_mut().zip(from) {
                // ORDERING: relaxed, here and below: the ring's record of it was acquired.
                *byte = from.load(Ordering::Relaxed);
            }
        };
        copy(head, start);
        for (place, word) in middle.chunks_exact_mut(size_of::<u64>()).zip(words) {
            place.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        copy(tail, end);
        true
    }

    fn atomics(&self) -> &[AtomicU8] {
        // SAFETY: I6: as many bytes are there, as long as `self`; I7.
        unsafe { std::slice::from_raw_parts(self.base.cast().as_ptr(), self.length) }
    }

    /// The first `length` bytes, as far as it has as many.
    ///
    /// # Safety
    ///
    /// Nobody writes to them as long as this is borrowed.
    pub(crate) unsafe fn bytes(&self, length: usize) -> Option<&[u8]> {
        // SAFETY: I6, and the caller's promise.
        (length <= self.length).then(|| unsafe { std::slice::from_raw_parts(self.base.as_ptr(), length) })
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        // SAFETY: I6: our own mapping in its whole length; borrows of its bytes have ended.
        let unmapped = unsafe { munmap(self.base.cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "munmap of bulk memory: {unmapped:?}");
    }
}

// SAFETY: I7: bytes are only copied through pointers, and the mapping belongs to no thread.
unsafe impl Send for Bulk {}
// SAFETY: as above; two threads that copied at the same time would get some bytes, as with the other process.
unsafe impl Sync for Bulk {}

/// From here on the allocator keeps what is freed, up to 64 MiB at the end of its heap, instead of giving it back to the system
/// and taking it again, page by page, for the next large message.
pub(crate) fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (option, bytes) in [(libc::M_MMAP_THRESHOLD, 32 << 20), (libc::M_TRIM_THRESHOLD, 64 << 20)] {
        // SAFETY: sets a number in the allocator, under its lock.
        unsafe { libc::mallopt(option, bytes) };
    }
}

/// Gives back what the allocator has kept.
pub(crate) fn give_freed_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator's own affair, under its lock.
    unsafe {
        libc::malloc_trim(0)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_show_the_same_words() {
        let (ours, file) = SharedPage::create().unwrap();
        let theirs = SharedPage::open(file.as_fd()).unwrap();
        drop(file);
        ours.word(SharedPage::WORDS - 1).store(7, Ordering::Release);
        assert_eq!(theirs.word(SharedPage::WORDS - 1).load(Ordering::Acquire), 7);
        assert_eq!(theirs.word(0).load(Ordering::Relaxed), 0);
    }

    #[test]
    #[should_panic(expected = "word 512 of a page of 512 words")]
    fn a_word_past_the_end_is_refused() {
        let (page, _file) = SharedPage::create().unwrap();
        page.word(SharedPage::WORDS);
    }

    #[test]
    fn frozen_bytes_can_be_opened_and_never_written() {
        for bytes in [&b""[..], b"some bytes", &[7; 100_000]] {
            let frozen = Frozen::new(bytes).unwrap();
            assert_eq!(frozen.bytes(), bytes);
            let other = Frozen::open(frozen.file().try_clone_to_owned().unwrap()).unwrap();
            assert_eq!(other.bytes(), bytes);
            assert!(pwrite(frozen.file(), b"x", 0).is_err());
            assert!(ftruncate(frozen.file(), 1).is_err());
        }
        Frozen::open(memory_file(c"test", 4096).unwrap()).unwrap_err();
    }

    #[test]
    fn bulk_passes_bytes_within_its_size() {
        let (ours, file) = Bulk::create(10_000).unwrap();
        let theirs = Bulk::open(file.as_fd()).unwrap();
        assert_eq!((ours.len(), theirs.len()), (10_000, 10_000));
        assert!(ours.write(&[7; 10_000]) && !ours.write(&[7; 10_001]));
        let mut out = [0; 100];
        assert!(theirs.read(9_900, &mut out) && out == [7; 100]);
        let bytes: Vec<u8> = (0..=255).collect();
        assert!(ours.write(&bytes));
        for (from, length) in [(0, 100), (1, 7), (3, 100), (5, 2), (8, 16), (13, 0), (15, 25)] {
            let mut out = vec![0; length];
            assert!(theirs.read(from, &mut out) && out == bytes[from..][..length], "{length} from {from}");
        }
        assert!(!theirs.read(9_901, &mut out) && !theirs.read(usize::MAX, &mut out));
        // SAFETY: nobody writes.
        let bytes = [0, 10_000, 10_001].map(|length| unsafe { theirs.bytes(length) }.map(<[u8]>::len));
        assert_eq!(bytes, [Some(0), Some(10_000), None]);
        Bulk::open(unsealed_file(c"test", 100).unwrap().as_fd()).unwrap_err();
    }

    #[test]
    fn a_memory_file_cannot_be_resized() {
        let file = memory_file(c"test", 100).unwrap();
        assert!(ftruncate(&file, 0).is_err());
        assert!(ftruncate(&file, 4096).is_err());
        assert!(SharedPage::open(file.as_fd()).is_err());
    }
}
