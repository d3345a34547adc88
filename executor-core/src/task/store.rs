//! Memory for cells, kept for the next ones.
//!
//! A task is often made by one thread and freed by another, and that is what general allocators do worst: the freeing
//! thread takes the lock of the other one's heap, once for each task, and the two get into each other's way. So a thread
//! keeps what it frees in *magazines* of [`ROUNDS`], and takes from there what it needs; full and empty magazines change
//! hands in the *depot*, under a lock that is taken once for a magazine. (The magazine layer of Bonwick and Adams 2001.)
//! What is new is carved out of *slabs*, whose memory is asked for once for thousands of cells, and of which only what was
//! used is there. A thread that needs a second one has so many cells at once that large pages pay: the system's part in a
//! fresh cell, more than everything else there, all but disappears.
//!
//! Nobody waits for the lock of the depot: who does not get it carves. So a forked child, which may have inherited it locked,
//! is none the worse. What does not fit into a class goes to the allocator. What is kept is bounded: for each thread two
//! magazines and the rest of a slab, which go when it ends, and [`MOST_KEPT`] in the depot.
//!
//! * **K1** A block in a magazine is one of its class's, carved out of a slab that is there, and nobody uses it.
//! * **K2** A cell's memory comes from `take` and goes back by `give` with the same layout, so it is of the same class.
//! * **K3** A slab is `SLAB` bytes, aligned to as many; its head counts its blocks that are out: in use, in a magazine, or not
//!   carved yet. Whoever gives the last of them back frees it, and nobody else has one.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

use crate::os;
use crate::sync::system::{AtomicU32, Mutex, Ordering, fence};

/// Blocks in a magazine. More makes fewer trips to the depot; fewer keeps less.
const ROUNDS: usize = 64;

/// The size of a slab in bytes, and its alignment: a large page, on most machines. More asks the allocator less often; fewer
/// is pinned by one cell that stays.
const SLAB: usize = 2 << 20;

const SLAB_LAYOUT: Layout = match Layout::from_size_align(SLAB, SLAB) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

/// Full magazines in the depot, for each class: half a megabyte of the smaller.
const MOST_KEPT: usize = 128;

/// The sizes of the classes in bytes. Without options, a closure of up to three words makes a cell of the first.
const CLASSES: [usize; 2] = [64, 128];

/// What the allocator aligns to anyway.
const ALIGNMENT: usize = 16;

/// Memory checkers follow a block from its allocation to its end: keeping it would hide a use after that.
const IS_ON: bool = !cfg!(any(loom, miri, tsan, asan));

/// K1.
#[derive(Debug)]
struct Block(NonNull<u8>);

/// The head of a slab, in the place of its first block.
struct Slab {
    /// How many of its blocks are out (K3).
    out: AtomicU32,
}

/// What was not carved yet of a slab.
#[derive(Debug)]
struct Fresh {
    next: NonNull<u8>,
    left: usize,
}

// SAFETY: K1: nobody uses it, and memory belongs to no thread.
unsafe impl Send for Block {}

type Magazine = Vec<Block>;

#[derive(Debug)]
struct Depot {
    full: Vec<Magazine>,
    empty: Vec<Magazine>,
}

static DEPOTS: [Mutex<Depot>; CLASSES.len()] =
    [const { Mutex::new(Depot { full: Vec::new(), empty: Vec::new() }) }; CLASSES.len()];

/// What a thread keeps of one class. Two magazines, so that one who takes and gives by turns does not go to the depot each
/// time.
#[derive(Debug)]
struct Pair {
    class: usize,
    current: Magazine,
    other: Magazine,
    fresh: Option<Fresh>,
    /// Whether there was one before that.
    has_carved: bool,
}

thread_local! {
    static KEPT: RefCell<[Pair; CLASSES.len()]> = const { RefCell::new([Pair::new(0), Pair::new(1)]) };
}

/// Memory of this layout.
#[inline]
pub(super) fn take(layout: Layout) -> NonNull<u8> {
    let Some(class) = class_of(layout) else {
        // SAFETY: a cell's layout is never empty.
        let memory = unsafe { alloc(layout) };
        return NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
    };
    let kept = KEPT.try_with(|kept| kept.try_borrow_mut().ok().map(|mut kept| kept[class].take()));
    kept.ok().flatten().unwrap_or_else(|| carve_one(class)).0
}

/// A block for a thread that keeps none any more, since it is being torn down.
#[cold]
fn carve_one(class: usize) -> Block {
    let mut fresh = Fresh::new(class, false);
    fresh.left -= 1;
    let block = Block(fresh.next);
    // SAFETY: inside the slab, which has more than one block.
    fresh.next = unsafe { fresh.next.add(CLASSES[class]) };
    fresh.give_up();
    block
}

/// Gives memory back.
///
/// # Safety
///
/// It came from [`take`] with this layout, and nobody uses it any more.
#[inline]
pub(super) unsafe fn give(memory: NonNull<u8>, layout: Layout) {
    let Some(class) = class_of(layout) else {
        // SAFETY: K2: it was allocated with this layout.
        unsafe { dealloc(memory.as_ptr(), layout) };
        return;
    };
    let mut block = Some(Block(memory));
    // Not while the thread is being torn down.
    let _ = KEPT.try_with(|kept| {
        if let Ok(mut kept) = kept.try_borrow_mut() {
            block.take().into_iter().for_each(|block| kept[class].give(block));
        }
    });
    if let Some(Block(memory)) = block {
        give_back(memory, 1);
    }
}

#[inline]
fn class_of(layout: Layout) -> Option<usize> {
    let fits = IS_ON && layout.align() <= ALIGNMENT;
    CLASSES.iter().position(|size| fits && layout.size() <= *size)
}

impl Fresh {
    /// A new slab; `is_large` asks for large pages.
    fn new(class: usize, is_large: bool) -> Self {
        let left = SLAB / CLASSES[class] - 1;
        // SAFETY: it has bytes.
        let slab =
            NonNull::new(unsafe { alloc(SLAB_LAYOUT) }).unwrap_or_else(|| handle_alloc_error(SLAB_LAYOUT));
        if is_large {
            os::prefer_large_pages(slab.as_ptr(), SLAB);
        }
        let head = Slab { out: AtomicU32::new(u32::try_from(left).unwrap_or(u32::MAX)) };
        // SAFETY: the beginning of new memory, which is aligned for it and has room.
        unsafe { slab.cast::<Slab>().write(head) };
        // SAFETY: inside the slab, whose first block is the head.
        let next = unsafe { slab.add(CLASSES[class]) };
        Self { next, left }
    }

    /// Puts the next blocks into an empty magazine, so that the first comes out first, and says whether any is left. None of
    /// them is touched.
    fn carve(&mut self, class: usize, magazine: &mut Magazine) -> bool {
        let count = self.left.min(ROUNDS);
        for at in (0..count).rev() {
            // SAFETY: `left` blocks lie there, all inside the slab.
            magazine.push(Block(unsafe { self.next.add(at * CLASSES[class]) }));
        }
        self.left -= count;
        // SAFETY: inside the slab, or at its end.
        self.next = unsafe { self.next.add(count * CLASSES[class]) };
        self.left > 0
    }

    /// Gives back what was not carved.
    fn give_up(self) {
        if self.left > 0 {
            give_back(self.next, u32::try_from(self.left).unwrap_or(u32::MAX));
        }
    }
}

/// Gives so many blocks back to the slab of one of them, which is freed if they were the last (K3).
fn give_back(block: NonNull<u8>, count: u32) {
    let slab = block.as_ptr().map_addr(|address| address & !(SLAB - 1)).cast::<Slab>();
    // SAFETY: K3: the slab is there, since blocks of it are out.
    let out = unsafe { &(*slab).out };
    // ORDERING: release, for the last one: what others did with their blocks comes before the slab is freed.
    if out.fetch_sub(count, Ordering::Release) == count {
        // ORDERING: acquire: pairs with the release of all the others.
        fence(Ordering::Acquire);
        // SAFETY: K3: allocated with this layout by `Fresh::new`, and nobody has a block of it any more.
        unsafe { dealloc(slab.cast(), SLAB_LAYOUT) };
    }
}

impl Pair {
    const fn new(class: usize) -> Self {
        Self { class, current: Vec::new(), other: Vec::new(), fresh: None, has_carved: false }
    }

    #[inline]
    fn take(&mut self) -> Block {
        self.current.pop().unwrap_or_else(|| self.take_from_other())
    }

    #[cold]
    fn take_from_other(&mut self) -> Block {
        std::mem::swap(&mut self.current, &mut self.other);
        if self.current.is_empty() {
            let full = DEPOTS[self.class].try_lock().and_then(|mut depot| {
                let full = depot.full.pop()?;
                depot.empty.push(std::mem::take(&mut self.current));
                Some(full)
            });
            match full {
                Some(full) => self.current = full,
                None => self.carve(),
            }
        }
        self.current.pop().expect("filled just now")
    }

    /// Fills the empty magazine with what was never used.
    fn carve(&mut self) {
        self.current.reserve_exact(ROUNDS);
        let mut fresh = self.fresh.take().unwrap_or_else(|| {
            let is_large = std::mem::replace(&mut self.has_carved, true);
            Fresh::new(self.class, is_large)
        });
        if fresh.carve(self.class, &mut self.current) {
            self.fresh = Some(fresh);
        }
    }

    /// Keeps a block.
    #[inline]
    fn give(&mut self, block: Block) {
        if self.current.len() == ROUNDS {
            self.make_room();
        }
        self.current.push(block);
    }

    #[cold]
    fn make_room(&mut self) {
        std::mem::swap(&mut self.current, &mut self.other);
        if self.current.len() == ROUNDS {
            match DEPOTS[self.class].try_lock() {
                Some(mut depot) if depot.full.len() < MOST_KEPT => {
                    let empty = depot.empty.pop().unwrap_or_default();
                    depot.full.push(std::mem::replace(&mut self.current, empty));
                }
                // All of it, so that the next time is as far away as ever.
                _ => free_all(&mut self.current),
            }
        }
        if self.current.capacity() == 0 {
            self.current.reserve_exact(ROUNDS);
        }
    }
}

/// Gives back all blocks of a magazine; neighbours together.
fn free_all(magazine: &mut Magazine) {
    let slab_of = |block: &Block| block.0.addr().get() & !(SLAB - 1);
    for neighbours in magazine.chunk_by(|one, other| slab_of(one) == slab_of(other)) {
        if let Some(Block(memory)) = neighbours.first() {
            give_back(*memory, u32::try_from(neighbours.len()).unwrap_or(u32::MAX));
        }
    }
    magazine.clear();
}

/// A thread ends: what it kept goes.
impl Drop for Pair {
    fn drop(&mut self) {
        free_all(&mut self.current);
        free_all(&mut self.other);
        if let Some(fresh) = self.fresh.take() {
            fresh.give_up();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn layouts() -> [Layout; 3] {
        [Layout::new::<[u64; 7]>(), Layout::new::<[u64; 16]>(), Layout::new::<[u64; 25]>()]
    }

    /// Takes `count` of each layout, each filled with a number of its own.
    fn take_marked(count: u8) -> Vec<(Block, Layout, u8)> {
        let marks = (0..count).flat_map(|mark| layouts().map(|layout| (layout, mark)));
        marks
            .map(|(layout, mark)| {
                let memory = take(layout);
                assert!(memory.addr().get().is_multiple_of(layout.align()));
                // SAFETY: memory of this layout, and ours.
                unsafe { memory.write_bytes(mark, layout.size()) };
                (Block(memory), layout, mark)
            })
            .collect()
    }

    /// Nobody else has written to them; gives them back.
    fn give_marked(blocks: Vec<(Block, Layout, u8)>) {
        for (Block(memory), layout, mark) in blocks {
            // SAFETY: memory of this layout, written as a whole, and ours.
            let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr(), layout.size()) };
            assert!(bytes.iter().all(|byte| *byte == mark), "{mark} of {layout:?}");
            // SAFETY: taken with this layout.
            unsafe { give(memory, layout) };
        }
    }

    /// Made here and freed there, by threads that end in between, again and again: no two have the same place.
    #[test]
    fn blocks_cross_threads_and_outlive_them() {
        for _ in 0..20 {
            let mine = take_marked(200);
            let theirs = std::thread::spawn(|| take_marked(250)).join().unwrap();
            give_marked(take_marked(90));
            std::thread::spawn(move || give_marked(mine)).join().unwrap();
            give_marked(theirs);
        }
    }

    /// In the destructors of a thread's last locals, when it keeps nothing any more.
    #[test]
    fn a_thread_that_is_being_torn_down_takes_and_gives() {
        struct Late(Option<Vec<(Block, Layout, u8)>>);
        impl Drop for Late {
            fn drop(&mut self) {
                give_marked(take_marked(3));
                give_marked(self.0.take().unwrap_or_default());
            }
        }
        thread_local! {
            static LATE: RefCell<Late> = const { RefCell::new(Late(None)) };
        }
        std::thread::spawn(|| {
            LATE.with(|late| late.borrow_mut().0 = Some(take_marked(100))); // destroyed after what the store keeps
        })
        .join()
        .unwrap();
    }
}
