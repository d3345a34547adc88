//! An allocator that counts live bytes, in the one sample that asks for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

static IS_ON: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);

/// The system's allocator; a benchmark makes it the global one.
#[derive(Debug)]
pub struct Counting;

impl Counting {
    /// Counts from now on; what was allocated before and is freed later counts as negative.
    pub fn start() {
        IS_ON.store(true, Ordering::SeqCst);
    }

    /// Bytes allocated since and not freed.
    pub fn live() -> i64 {
        LIVE.load(Ordering::SeqCst)
    }

    // ORDERING: a statistic; every sample reads it when its threads stand still.
    fn count(size: usize, sign: i64) {
        if IS_ON.load(Ordering::Relaxed) {
            LIVE.fetch_add(i64::try_from(size).unwrap_or(0) * sign, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call goes to `System` unchanged; the counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 1);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 1);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Self::count(layout.size(), -1);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count(layout.size(), -1);
        Self::count(size, 1);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(block, layout, size) }
    }
}
