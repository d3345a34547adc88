//! The loaded objects of this process: the main program first, then shared libraries.
//!
//! * I1: during the callback of `dl_iterate_phdr` the record, its name and its program headers are valid; the loader
//!   holds the list, so no object is unloaded meanwhile.
//! * I2: `data` is the closure `visit` passed in; it is used by one callback at a time, inside that call.
//! * I3: bytes of a readable PT_LOAD segment of a loaded object are mapped and readable as long as I1 holds.

use std::ffi::{CStr, c_int, c_void};
use std::ops::{ControlFlow, Range};
use std::slice;

#[cfg(target_pointer_width = "64")]
pub(crate) type ProgramHeader = libc::Elf64_Phdr;
#[cfg(target_pointer_width = "32")]
pub(crate) type ProgramHeader = libc::Elf32_Phdr;

/// One loaded object, as the loader describes it.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    /// Empty for the main program.
    pub(crate) name: &'a CStr,
    /// What to add to an address in the file to get the address in memory.
    pub(crate) base: usize,
    headers: &'a [ProgramHeader],
}

/// One segment of an [`Object`], in the addresses of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) file_size: u64,
    pub(crate) size: u64,
    pub(crate) align: u64,
}

impl Segment {
    pub(crate) const LOAD: u32 = libc::PT_LOAD;
    pub(crate) const NOTE: u32 = libc::PT_NOTE;
    const DYNAMIC: u32 = libc::PT_DYNAMIC;

    pub(crate) const fn is_readable(&self) -> bool {
        self.flags & libc::PF_R != 0
    }

    pub(crate) const fn is_executable(&self) -> bool {
        self.flags & libc::PF_X != 0
    }

    fn contains(&self, address: u64, size: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|start| start <= self.size && size <= self.size - start)
    }
}

impl Object<'_> {
    pub(crate) fn segments(&self) -> impl Iterator<Item = Segment> {
        self.headers.iter().map(|header| Segment {
            kind: header.p_type,
            flags: header.p_flags,
            offset: widen(header.p_offset),
            address: widen(header.p_vaddr),
            file_size: widen(header.p_filesz),
            size: widen(header.p_memsz),
            align: widen(header.p_align),
        })
    }

    /// The bytes of a segment, if they lie in memory that was loaded to be read.
    pub(crate) fn bytes(&self, wanted: &Segment) -> Option<&[u8]> {
        let is_loaded = self.segments().any(|segment| {
            segment.kind == Segment::LOAD
                && segment.is_readable()
                && segment.contains(wanted.address, wanted.size)
        });
        if !is_loaded {
            return None;
        }
        let start = self.base.wrapping_add(usize::try_from(wanted.address).ok()?);
        let size = usize::try_from(wanted.size).ok()?;
        // SAFETY: I3, for every byte, as has just been checked.
        Some(unsafe { slice::from_raw_parts(std::ptr::with_exposed_provenance(start), size) })
    }

    /// Where in memory the table of its constructors lies, as the loader finds it; empty if it has none.
    pub(crate) fn constructors(&self) -> Range<usize> {
        const INIT_ARRAY: usize = 25;
        const INIT_ARRAY_SIZE: usize = 27;
        const WORD: usize = size_of::<usize>();
        let dynamic = self.segments().find(|segment| segment.kind == Segment::DYNAMIC);
        let entries = dynamic.as_ref().and_then(|segment| self.bytes(segment)).unwrap_or_default();
        let value = |tag: usize| {
            let mut entries = entries.chunks_exact(2 * WORD).map(|entry| entry.split_at(WORD));
            let (_, value) = entries.find(|(found, _)| *found == tag.to_ne_bytes())?;
            value.try_into().ok().map(usize::from_ne_bytes)
        };
        let start = value(INIT_ARRAY).map_or(0, |address| self.base.wrapping_add(address));
        start..start.wrapping_add(value(INIT_ARRAY_SIZE).unwrap_or(0))
    }

    /// Whether a loaded segment covers the address.
    pub(crate) fn covers(&self, address: usize) -> bool {
        let in_file = address.wrapping_sub(self.base) as u64;
        self.segments().any(|segment| segment.kind == Segment::LOAD && segment.contains(in_file, 1))
    }
}

/// Shows every loaded object to `look`, the main program first, until it breaks.
pub(crate) fn visit(mut look: impl FnMut(&Object<'_>) -> ControlFlow<()>) {
    let mut look: &mut dyn FnMut(&Object<'_>) -> ControlFlow<()> = &mut look;
    // SAFETY: I2: the closure outlives the call, and `relay` takes it for what it is.
    unsafe { libc::dl_iterate_phdr(Some(relay), (&raw mut look).cast()) };
}

unsafe extern "C" fn relay(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: I1.
    let info = unsafe { &*info };
    let name = if info.dlpi_name.is_null() {
        c""
    } else {
        // SAFETY: I1.
        unsafe { CStr::from_ptr(info.dlpi_name) }
    };
    let headers = if info.dlpi_phdr.is_null() {
        &[]
    } else {
        // SAFETY: I1.
        unsafe { slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) }
    };
    let Ok(base) = usize::try_from(info.dlpi_addr) else { return 0 };
    // SAFETY: I2.
    let look = unsafe { &mut *data.cast::<&mut dyn FnMut(&Object<'_>) -> ControlFlow<()>>() };
    match look(&Object { name, base, headers }) {
        ControlFlow::Continue(()) => 0,
        ControlFlow::Break(()) => 1,
    }
}

/// 32- and 64-bit headers have different widths.
fn widen(value: impl Into<u64>) -> u64 {
    value.into()
}
