//! The image this crate is part of: which build it is, and its addresses as offsets that hold in every process it is in.
//!
//! That is the main program, or a shared object which a foreign program has loaded (an extension module of an interpreter).
//! Two processes have it at different addresses (ASLR), but all in it at the same offsets from its base. So its data and
//! functions travel as offsets, together with the [`Identity`] they belong to, and are checked on arrival: data must lie
//! whole in a readable segment, code must start in an executable one. Addresses in other objects have no offset here and are
//! refused; [`Image::owner_name`] says whose they are.
//!
//! * I1: the loader keeps the image where it is, with its segments, until the process ends: the main program always, and a
//!   shared object unless somebody unloads it while its code is in use. A segment's memory can lose its write permission
//!   after relocation, but stays readable.

use crate::sys::objects::{self, Object, Segment};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;

/// Two processes with equal identities run the same build of the same program, or of the same shared object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The linker's build id, cut to [`MAX_BUILD_ID`](Self::MAX_BUILD_ID) bytes; empty if the program has none.
    pub(crate) build_id: Vec<u8>,
    /// A hash of where every segment lies in the file and in memory. Cheap, and all there is without a build id:
    /// then two builds that differ only inside the segments look alike.
    pub(crate) shape: u64,
}

impl Identity {
    /// Linkers make 8 to 20 bytes; somebody may have set more by hand.
    pub(crate) const MAX_BUILD_ID: usize = 64;

    /// The build id as it is usually written.
    pub(crate) fn shown(&self) -> String {
        if self.build_id.is_empty() {
            return "none".to_owned();
        }
        self.build_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// All of it as a word.
    pub(crate) fn code(&self) -> String {
        format!("{}-{:x}", self.shown(), self.shape)
    }

    /// The identity of the program or shared object in a file, without executing it; `None` if it is none for this machine's
    /// word size.
    pub(crate) fn of_file(file: &std::fs::File) -> io::Result<Option<Self>> {
        const NATIVE_64: [u8; 6] =
            [0x7f, b'E', b'L', b'F', 2, if cfg!(target_endian = "little") { 1 } else { 2 }];
        let mut header = [0; 64];
        let is_program = match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            other => other.map(|()| header.starts_with(&NATIVE_64))?,
        };
        // Words of 64 bits have their own layout, which is the one read here.
        if !is_program || !cfg!(target_pointer_width = "64") {
            return Ok(None);
        }
        let half = |at: usize| u64::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        let (start, size, count) = (long(&header, 32).unwrap_or(0), half(54), half(56));
        let mut segments = Vec::new();
        for index in 0..count {
            let mut entry = [0; 56];
            file.read_exact_at(&mut entry, start.saturating_add(index * size))?;
            let number = |at| long(&entry, at).unwrap_or(0);
            segments.push(Segment {
                kind: word(&entry, 0).unwrap_or(0),
                flags: word(&entry, 4).unwrap_or(0),
                offset: number(8),
                address: number(16),
                file_size: number(32),
                size: number(40),
                align: number(48),
            });
        }
        let mut build_id = Vec::new();
        for note in segments.iter().filter(|segment| segment.kind == Segment::NOTE) {
            let mut bytes = vec![0; usize::try_from(note.file_size.min(LONGEST_NOTES)).unwrap_or(0)];
            file.read_exact_at(&mut bytes, note.offset)?;
            if let Some(found) = find_build_id(&bytes, note.align) {
                build_id = found.iter().copied().take(Self::MAX_BUILD_ID).collect();
                break;
            }
        }
        Ok(Some(Self { build_id, shape: shape(segments.into_iter()) }))
    }
}

/// The most that is read of a file's notes, in bytes; a build id is among the first.
const LONGEST_NOTES: u64 = 64 * 1024;

/// What this crate is part of, as it is loaded in this process.
#[derive(Debug, Default)]
pub(crate) struct Image {
    identity: Identity,
    base: usize,
    segments: Vec<Loaded>,
    is_main_program: bool,
    constructors: Range<usize>,
}

#[derive(Debug)]
struct Loaded {
    /// In the addresses of the file.
    range: Range<u64>,
    is_readable: bool,
    is_executable: bool,
}

impl Image {
    /// The image of this process. A forked child has its parent's.
    pub(crate) fn current() -> &'static Self {
        static CURRENT: OnceLock<Image> = OnceLock::new();
        CURRENT.get_or_init(|| {
            let (mut image, mut is_main_program) = (Self::default(), true);
            objects::visit(|object| {
                if object.covers(here()) {
                    image = Self::of(object, is_main_program);
                    return ControlFlow::Break(());
                }
                is_main_program = false;
                ControlFlow::Continue(())
            });
            image
        })
    }

    /// Whether it is the main program, and not a shared object in a foreign one.
    pub(crate) fn is_main_program(&self) -> bool {
        self.is_main_program
    }

    /// Where its constructors are listed.
    pub(crate) fn constructors(&self) -> Range<usize> {
        self.constructors.clone()
    }

    /// The file it was loaded from, by the name that has now.
    pub(crate) fn file() -> io::Result<PathBuf> {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let file = maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let bound = |text| usize::from_str_radix(text, 16).ok();
            let path = rest.find('/').map(|at| &rest[at..]);
            path.filter(|_| bound(start) <= Some(here()) && Some(here()) < bound(end))
        });
        file.map(PathBuf::from).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn of(object: &Object<'_>, is_main_program: bool) -> Self {
        let loaded = object.segments().filter(|segment| segment.kind == Segment::LOAD);
        let segments = loaded
            .map(|segment| Loaded {
                range: segment.address..segment.address.saturating_add(segment.size),
                is_readable: segment.is_readable(),
                is_executable: segment.is_executable(),
            })
            .collect();
        let mut notes = object.segments().filter(|segment| segment.kind == Segment::NOTE);
        let build_id = notes.find_map(|note| find_build_id(object.bytes(&note)?, note.align));
        let build_id = build_id.unwrap_or_default().iter().copied().take(Identity::MAX_BUILD_ID).collect();
        let identity = Identity { build_id, shape: shape(object.segments()) };
        Self { identity, base: object.base, segments, is_main_program, constructors: object.constructors() }
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The offset of something that lies in its readable memory: a static, a constant, a string.
    pub(crate) fn offset_of_data(&self, address: usize) -> Option<u64> {
        let offset = self.offset(address);
        self.segments
            .iter()
            .any(|segment| segment.is_readable && segment.range.contains(&offset))
            .then_some(offset)
    }

    /// The address of `size` bytes at an offset, if all of them lie in one readable segment and the first is aligned.
    /// What is there is for the caller to check. `align` is a power of two.
    pub(crate) fn address_of_data(&self, offset: u64, size: usize, align: usize) -> Option<*const u8> {
        let end = offset.checked_add(u64::try_from(size).ok()?)?;
        let inside = |segment: &Loaded| segment.is_readable && holds(&segment.range, offset, end);
        if !self.segments.iter().any(inside) {
            return None;
        }
        let address = self.address(offset)?;
        address.is_multiple_of(align).then(|| ptr::with_exposed_provenance(address))
    }

    /// The offset of one of its functions.
    pub(crate) fn offset_of_code(&self, address: usize) -> Option<u64> {
        let offset = self.offset(address);
        self.is_code(offset).then_some(offset)
    }

    /// The address of the function at an offset, if it has code there.
    pub(crate) fn address_of_code(&self, offset: u64) -> Option<usize> {
        if self.is_code(offset) { self.address(offset) } else { None }
    }

    /// The name of the shared object that holds an address; `None` if it is the main program or nothing loaded.
    pub(crate) fn owner_name(address: usize) -> Option<String> {
        let (mut name, mut is_main) = (None, true);
        objects::visit(|object| {
            let is_owner = object.covers(address);
            if is_owner && !is_main {
                name = Some(object.name.to_string_lossy().into_owned());
            }
            is_main = false;
            if is_owner { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        name
    }

    fn is_code(&self, offset: u64) -> bool {
        self.segments.iter().any(|segment| segment.is_executable && segment.range.contains(&offset))
    }

    // Wrapping, both: an address below the base gives an offset no segment has.
    fn offset(&self, address: usize) -> u64 {
        address.wrapping_sub(self.base) as u64
    }

    fn address(&self, offset: u64) -> Option<usize> {
        Some(self.base.wrapping_add(usize::try_from(offset).ok()?))
    }
}

/// Somewhere in this crate's code.
fn here() -> usize {
    here as fn() -> usize as usize
}

fn holds(range: &Range<u64>, start: u64, end: u64) -> bool {
    range.start <= start && end <= range.end && start < range.end
}

/// FNV-1a over the numbers that say where the segments are.
fn shape(segments: impl Iterator<Item = Segment>) -> u64 {
    let words = segments.flat_map(|segment| {
        let kind = u64::from(segment.kind) << 32 | u64::from(segment.flags);
        [kind, segment.offset, segment.address, segment.file_size, segment.size]
    });
    words
        .flat_map(u64::to_ne_bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Finds the build id among the notes of a program: each is three lengths and kinds, a name, and a description, the
/// last two padded.
fn find_build_id(notes: &[u8], align: u64) -> Option<&[u8]> {
    const BUILD_ID: u32 = 3;
    let align = if align == 8 { 8 } else { 4 };
    let mut at = 0_usize;
    loop {
        let name_size = usize::try_from(word(notes, at)?).ok()?;
        let size = usize::try_from(word(notes, at + 4)?).ok()?;
        let kind = word(notes, at + 8)?;
        let name_at = at + 12;
        let start = name_at.checked_add(name_size)?.checked_next_multiple_of(align)?;
        let end = start.checked_add(size)?;
        if kind == BUILD_ID && notes.get(name_at..name_at + name_size)? == b"GNU\0" {
            return notes.get(start..end);
        }
        at = end.checked_next_multiple_of(align)?;
    }
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    static DATA: [u64; 2] = [17, 18];

    fn function(input: u32) -> u32 {
        input.rotate_left(3)
    }

    #[test]
    fn a_file_has_the_identity_of_the_program_it_holds() {
        let own = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(Identity::of_file(&own).unwrap().as_ref(), Some(Image::current().identity()));
        let other = std::fs::File::open("/bin/sh").unwrap();
        assert_ne!(Identity::of_file(&other).unwrap().as_ref(), Some(Image::current().identity()));
        let none = std::fs::File::open("/proc/self/cmdline").unwrap();
        assert_eq!(Identity::of_file(&none).unwrap(), None);
    }

    #[test]
    fn data_of_the_program_goes_there_and_back() {
        let image = Image::current();
        let address = (&raw const DATA).addr();
        let offset = image.offset_of_data(address).unwrap();
        let back = image.address_of_data(offset, size_of_val(&DATA), align_of_val(&DATA)).unwrap();
        assert_eq!(back.addr(), address);
        assert_eq!(image.address_of_data(offset + 1, 8, 8), None, "misaligned");
        assert!(image.address_of_data(offset + 1, 8, 1).is_some());
    }

    #[test]
    fn code_of_the_program_goes_there_and_back() {
        let image = Image::current();
        let address = function as fn(u32) -> u32 as usize;
        let offset = image.offset_of_code(address).unwrap();
        assert_eq!(image.address_of_code(offset), Some(address));
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let image = Image::current();
        let end = image
            .segments
            .iter()
            .filter(|segment| segment.is_readable)
            .map(|segment| segment.range.end)
            .max();
        let end = end.unwrap();
        assert!(image.address_of_data(end - 1, 1, 1).is_some());
        for (offset, size) in
            [(end - 1, 2), (end, 0), (end, 1), (u64::MAX, 1), (u64::MAX - 7, 8), (0, usize::MAX)]
        {
            assert_eq!(image.address_of_data(offset, size, 1), None, "{size} bytes at {offset:#x}");
        }
        for offset in [end, u64::MAX, 1 << 50] {
            assert_eq!(image.address_of_code(offset), None, "{offset:#x}");
        }
        let heap = Box::new(1_u64);
        assert_eq!(image.offset_of_data((&raw const *heap).addr()), None);
        assert_eq!(image.offset_of_data(0), None);
    }

    #[test]
    fn the_owner_of_a_foreign_address_is_named() {
        unsafe extern "C" {
            fn getpid() -> std::ffi::c_int;
        }
        let foreign = getpid as unsafe extern "C" fn() -> std::ffi::c_int as usize;
        let image = Image::current();
        if image.offset_of_code(foreign).is_some() {
            return; // The C library is part of the program.
        }
        let name = Image::owner_name(foreign).unwrap();
        assert!(name.contains("libc") || name.contains("musl"), "{name}");
        assert_eq!(Image::owner_name(function as fn(u32) -> u32 as usize), None);
        assert_eq!(Image::owner_name(1), None);
        assert!(image.is_main_program());
        assert_eq!(Image::file().unwrap(), std::env::current_exe().unwrap());
    }

    #[test]
    fn a_build_id_is_found_among_other_notes() {
        let note = |kind: u32, name: &[u8], text: &[u8]| {
            let mut note = Vec::new();
            let sizes = [name.len(), text.len()].map(|size| u32::try_from(size).unwrap());
            for number in [sizes[0], sizes[1], kind] {
                note.extend(number.to_ne_bytes());
            }
            for part in [name, text] {
                note.extend(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let mut notes = note(1, b"GNU\0", &[9; 16]);
        notes.extend(note(3, b"other\0", b"no"));
        assert_eq!(find_build_id(&notes, 4), None);
        notes.extend(note(3, b"GNU\0", b"identity"));
        assert_eq!(find_build_id(&notes, 4), Some(&b"identity"[..]));
        assert_eq!(find_build_id(&notes[..notes.len() - 1], 4), None, "cut short");
        assert_eq!(find_build_id(&[0xff; 64], 4), None, "garbage");
        assert_eq!(find_build_id(&[], 8), None);
    }
}
