//! Memory for cells, kept for the next ones.
//!
//! A task is often made by one thread and freed by another, and that is what general allocators do worst: the freeing
//! thread takes the lock of the other one's heap, once for each task, and the two get into each other's way. So a thread
//! keeps what it frees in *magazines* of [`ROUNDS`], and takes from there what it needs; full and empty magazines change
//! hands in the *depot*, under a lock that is taken once for a magazine. (The magazine layer of Bonwick and Adams 2001.)
//!
//! Nobody waits for the lock of the depot: who does not get it goes to the allocator. So a forked child, which may have
//! inherited it locked, is none the worse. What does not fit into a class goes to the allocator, too. What is kept is bounded:
//! two magazines a thread, which go when it ends, and [`MOST_KEPT`] in the depot.
//!
//! * **K1** A block in a magazine is an allocation of its class's layout that nobody uses.
//! * **K2** A cell's memory comes from `take` and goes back by `give` with the same layout, so it is of the same class.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

use crate::sync::system::Mutex;

/// Blocks in a magazine. More makes fewer trips to the depot; fewer keeps less.
const ROUNDS: usize = 64;

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
    /// How many blocks to allocate when there is none: doubled each time, up to a magazine.
    refill: usize,
}

thread_local! {
    static KEPT: RefCell<[Pair; CLASSES.len()]> = const { RefCell::new([Pair::new(0), Pair::new(1)]) };
}

/// Memory of this layout.
#[inline]
pub(super) fn take(layout: Layout) -> NonNull<u8> {
    let kept = class_of(layout)
        .and_then(|class| KEPT.try_with(|kept| kept.try_borrow_mut().ok()?[class].take()).ok().flatten());
    let memory = kept.map(|block| block.0).or_else(|| {
        // SAFETY: a cell's layout is never empty, nor is a class.
        NonNull::new(unsafe { alloc(whole(layout)) })
    });
    memory.unwrap_or_else(|| handle_alloc_error(layout))
}

/// Gives memory back.
///
/// # Safety
///
/// It came from [`take`] with this layout, and nobody uses it any more.
#[inline]
pub(super) unsafe fn give(memory: NonNull<u8>, layout: Layout) {
    let mut block = Some(Block(memory));
    if let Some(class) = class_of(layout) {
        // Not while the thread is being torn down.
        let _ = KEPT.try_with(|kept| {
            if let Ok(mut kept) = kept.try_borrow_mut() {
                block.take().into_iter().for_each(|block| kept[class].give(block));
            }
        });
    }
    if let Some(Block(memory)) = block {
        // SAFETY: K2.
        unsafe { dealloc(memory.as_ptr(), whole(layout)) };
    }
}

#[inline]
fn class_of(layout: Layout) -> Option<usize> {
    let fits = IS_ON && layout.align() <= ALIGNMENT;
    CLASSES.iter().position(|size| fits && layout.size() <= *size)
}

/// What is really allocated for a layout: all of its class.
#[inline]
fn whole(layout: Layout) -> Layout {
    class_of(layout).map_or(layout, layout_of)
}

#[inline]
fn layout_of(class: usize) -> Layout {
    Layout::from_size_align(CLASSES[class], ALIGNMENT).expect("the classes are small powers of two")
}

impl Pair {
    const fn new(class: usize) -> Self {
        Self { class, current: Vec::new(), other: Vec::new(), refill: 1 }
    }

    #[inline]
    fn take(&mut self) -> Option<Block> {
        self.current.pop().or_else(|| self.take_from_other())
    }

    #[cold]
    fn take_from_other(&mut self) -> Option<Block> {
        std::mem::swap(&mut self.current, &mut self.other);
        if self.current.is_empty() {
            let full = DEPOTS[self.class].try_lock().and_then(|mut depot| {
                let full = depot.full.pop()?;
                depot.empty.push(std::mem::take(&mut self.current));
                Some(full)
            });
            match full {
                Some(full) => self.current = full,
                None => self.allocate(),
            }
        }
        self.current.pop()
    }

    /// Fills the empty magazine from the allocator: who needs many gets them side by side, and comes here seldom.
    fn allocate(&mut self) {
        self.current.reserve_exact(ROUNDS);
        for _ in 0..self.refill {
            // SAFETY: a class is not empty.
            let memory = unsafe { alloc(layout_of(self.class)) };
            self.current.extend(NonNull::new(memory).map(Block));
        }
        self.refill = ROUNDS.min(2 * self.refill);
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
                _ => free_all(self.class, &mut self.current),
            }
        }
        if self.current.capacity() == 0 {
            self.current.reserve_exact(ROUNDS);
        }
    }
}

fn free_all(class: usize, magazine: &mut Magazine) {
    for Block(memory) in magazine.drain(..) {
        // SAFETY: K1.
        unsafe { dealloc(memory.as_ptr(), layout_of(class)) };
    }
}

/// A thread ends: what it kept goes.
impl Drop for Pair {
    fn drop(&mut self) {
        free_all(self.class, &mut self.current);
        free_all(self.class, &mut self.other);
    }
}
