//! How many tasks have run, counted without one worker getting into another's way: a cache line for each thread.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const LINES: usize = 256;

#[repr(align(128))]
struct Count(AtomicU64);

static COUNTS: [Count; LINES] = [const { Count(AtomicU64::new(0)) }; LINES];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The tasks of this process.
#[derive(Debug)]
pub struct Tally;

impl Tally {
    /// One more.
    pub fn bump() {
        let mut mine = MINE.get();
        if mine == usize::MAX {
            mine = NEXT.fetch_add(1, Ordering::Relaxed) % LINES;
            MINE.set(mine);
        }
        // ORDERING: Release, to `total`: who has seen the count has seen the task.
        COUNTS[mine].0.fetch_add(1, Ordering::Release);
    }

    pub fn total() -> u64 {
        COUNTS.iter().map(|count| count.0.load(Ordering::Acquire)).sum()
    }

    /// Sleeps until there are so many. It looks every 50 µs, which no row that uses it can tell.
    pub fn wait_for(total: u64) {
        while Self::total() < total {
            thread::sleep(Duration::from_micros(50));
        }
    }
}
