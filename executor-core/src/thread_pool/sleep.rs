//! Who sleeps, who looks for work, and when a worker is woken or started.
//!
//! One word counts the workers by what they do:
//!
//! ```text
//!   { live, blocked, sleeping, searching }        16 bits each;  active = live - blocked - sleeping
//! ```
//!
//! A worker is *active* while it runs a task or looks for one; *searching* while it looks; *sleeping* while it is
//! parked or about to be; *blocked* while its task waits for another one (S4). `active` is kept at or below the pool's
//! `max_workers`, except for moments after a blocked worker has gone on.
//!
//! # The protocol
//!
//! * Whoever publishes a task (**P**): push it, fence, read the word. If somebody is searching, do nothing: that worker
//!   will find it, or will look once more. Else, if one more may be active: take a sleeper off the list and wake it, or
//!   start a worker if there is none.
//! * A worker that found nothing (**W**): enter the list and move from *searching* to *sleeping*, fence, look at the
//!   queues once more. If there is something now, take itself off the list again. Else park.
//! * A woken or started worker counts as *searching* from the moment it is chosen, so at most one is on its way for a
//!   burst of tasks. When the last searcher finds something, it wakes the next one if more is queued (**L**): leave
//!   *searching*, fence, look at the queues. With more than [`WIDE`] active, up to [`ON_THEIR_WAY`] may search at the same
//!   time, and each of those that finds something wakes two: a chain of thousands is no faster than its links, each of which
//!   waits for a thread to get a core, and is as slow as that is on a busy machine. The last one always looks, as ever.
//! * A worker whose task is about to wait (**B**): count as *blocked*, fence, look at the queues, and if there is something,
//!   do as P does. Whoever pushed before that may have found the pool full.
//!
//! # The race feared: a task is pushed while the last worker falls asleep
//!
//! The fences of P and W (and of P and L, and of P and B) are sequentially consistent, so one of them comes first. If
//! P's does, the worker's second look comes after the push and sees the task. If W's does, P's read of the word comes
//! after the worker has left *searching* and sees a sleeper. Either way the task is found. (The same argument as in
//! rayon's sleep module and in Dekker's algorithm.)
//!
//! The list and the *sleeping* count change together under one lock; the other counts change by themselves.

#[cfg(all(test, loom))]
mod loom;

use std::collections::VecDeque;

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, Unparker, fence};

/// With more active workers than this there is no core for one more, so tasks seem to wait for something, and what counts is
/// how soon all of them do. Fewer would wake workers that a short task does not need.
const WIDE: usize = if cfg!(loom) { 2 } else { 16 };

/// How many may be on their way at the same time then. More get into each other's way, at the kernel's lock on the memory
/// map for the most part; fewer make chains again.
const ON_THEIR_WAY: usize = if cfg!(loom) { 2 } else { 4 };

const SEARCHING: u64 = 1;
const SLEEPING: u64 = 1 << 16;
const BLOCKED: u64 = 1 << 32;
const LIVE: u64 = 1 << 48;

/// The most workers the word can count, spare ones included.
pub(super) const MOST_WORKERS: usize = 0xffff;

/// The word, decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts(u64);

impl Counts {
    const fn field(self, unit: u64) -> usize {
        ((self.0 / unit) & 0xffff) as usize
    }

    pub(super) const fn live(self) -> usize {
        self.field(LIVE)
    }

    pub(super) const fn blocked(self) -> usize {
        self.field(BLOCKED)
    }

    pub(super) const fn sleeping(self) -> usize {
        self.field(SLEEPING)
    }

    const fn searching(self) -> usize {
        self.field(SEARCHING)
    }

    /// How many may be on their way at the same time.
    const fn breadth(self) -> usize {
        if self.active() > WIDE { ON_THEIR_WAY } else { 1 }
    }

    /// Saturating: the fields are read together but a wake moves through two of them.
    pub(super) const fn active(self) -> usize {
        self.live().saturating_sub(self.blocked() + self.sleeping())
    }
}

/// What is left to do after a task was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Wake {
    /// Nothing.
    Enough,
    /// A worker has been counted as live and searching: start its thread.
    Start,
}

#[derive(Debug)]
pub(super) struct Sleep {
    counts: CachePadded<AtomicU64>,
    sleepers: Mutex<Sleepers>,
    /// How many may be active. Changed by `set_max_workers`.
    max_active: CachePadded<AtomicUsize>,
}

#[derive(Debug)]
struct Sleeper {
    index: usize,
    unparker: Unparker,
}

/// Those that sleep, in the order they fell asleep.
#[derive(Debug, Default)]
struct Sleepers {
    queue: VecDeque<Sleeper>,
    /// By index, whether the worker is in it: every worker asks that when it wakes up, in pools of thousands too.
    is_lying: Vec<bool>,
}

impl Sleepers {
    fn push(&mut self, sleeper: Sleeper) {
        if self.is_lying.len() <= sleeper.index {
            self.is_lying.resize(sleeper.index + 1, false);
        }
        self.is_lying[sleeper.index] = true;
        self.queue.push_back(sleeper);
    }

    /// The one that fell asleep last, whose caches are the warmest, and so that those not needed sleep on; or the first
    /// one. Where thousands sleep, the kernel finds that one at once: it looks through those that wait in the same bucket
    /// of its table in the order they came.
    fn pop(&mut self, first: bool) -> Option<Sleeper> {
        let sleeper = if first { self.queue.pop_front() } else { self.queue.pop_back() }?;
        self.is_lying[sleeper.index] = false;
        Some(sleeper)
    }

    fn take_from(&mut self, index: usize) -> VecDeque<Sleeper> {
        let (taken, left): (VecDeque<_>, _) =
            self.queue.drain(..).partition(|sleeper| sleeper.index >= index);
        self.queue = left;
        for sleeper in &taken {
            self.is_lying[sleeper.index] = false;
        }
        taken
    }

    fn is_lying(&self, index: usize) -> bool {
        self.is_lying.get(index).is_some_and(|is_lying| *is_lying)
    }

    fn remove(&mut self, index: usize) -> bool {
        let is_lying = self.is_lying(index);
        // From the back: it has mostly just lain down.
        if is_lying && let Some(position) = self.queue.iter().rposition(|sleeper| sleeper.index == index) {
            self.queue.remove(position);
            self.is_lying[index] = false;
        }
        is_lying
    }
}

impl Sleep {
    pub(super) fn new(max_active: usize) -> Self {
        Self {
            counts: CachePadded::new(AtomicU64::new(0)),
            sleepers: Mutex::default(),
            max_active: CachePadded::new(AtomicUsize::new(max_active)),
        }
    }

    /// How many may be active.
    pub(super) fn max_active(&self) -> usize {
        // ORDERING: seq-cst: P's read follows its fence; see `set_max_active`.
        self.max_active.load(Ordering::SeqCst)
    }

    /// Changes how many may be active. The caller fences and looks at the queues: whoever publishes a task then either
    /// reads the new number after its own fence, or has pushed before the look.
    pub(super) fn set_max_active(&self, max_active: usize) {
        // ORDERING: seq-cst, as above.
        self.max_active.store(max_active, Ordering::SeqCst);
    }

    /// Wakes the sleepers with this index or a higher one: they end, or sleep again.
    pub(super) fn wake_from(&self, index: usize) {
        let mut sleepers = self.sleepers.lock();
        let woken = sleepers.take_from(index);
        for _ in &woken {
            self.add(SEARCHING.wrapping_sub(SLEEPING));
        }
        drop(sleepers);
        for sleeper in woken {
            sleeper.unparker.unpark();
        }
    }

    pub(super) fn counts(&self) -> Counts {
        // ORDERING: seq-cst, so that it stays behind the fences of P, W and L.
        Counts(self.counts.load(Ordering::SeqCst))
    }

    fn add(&self, units: u64) -> Counts {
        // ORDERING: seq-cst: pairs with the loads in `counts` through the fences of P, W and L.
        Counts(self.counts.fetch_add(units, Ordering::SeqCst))
    }

    fn sub(&self, units: u64) -> Counts {
        // ORDERING: seq-cst, as in `add`.
        Counts(self.counts.fetch_sub(units, Ordering::SeqCst))
    }

    /// How many may be on their way to `waiting` tasks at the same time.
    pub(super) fn breadth(&self, waiting: usize) -> usize {
        self.counts().breadth().min(waiting).max(1)
    }

    /// P: call after a task was pushed, and after P's fence. `breadth` is 1 but for L.
    #[inline]
    pub(super) fn published(&self, breadth: usize) -> Wake {
        let counts = self.counts();
        if counts.searching() >= breadth || counts.active() >= self.max_active() {
            Wake::Enough
        } else {
            self.wake_cold(breadth)
        }
    }

    #[cold]
    fn wake_cold(&self, breadth: usize) -> Wake {
        if self.counts().sleeping() > 0 {
            let sleeper = {
                let mut sleepers = self.sleepers.lock();
                let counts = self.counts();
                if counts.searching() >= breadth || counts.active() >= self.max_active() {
                    return Wake::Enough;
                }
                let sleeper = sleepers.pop(breadth > 1);
                if sleeper.is_some() {
                    self.add(SEARCHING.wrapping_sub(SLEEPING));
                }
                sleeper
            };
            if let Some(sleeper) = sleeper {
                sleeper.unparker.unpark(); // a system call, so after the lock
                return Wake::Enough;
            }
        }
        let mut counts = self.counts();
        loop {
            let may_start = counts.searching() < breadth
                && counts.active() < self.max_active()
                && counts.sleeping() == 0
                && counts.live() < MOST_WORKERS;
            if !may_start {
                return Wake::Enough;
            }
            let next = counts.0 + LIVE + SEARCHING;
            // ORDERING: seq-cst, as in `add`.
            match self.counts.compare_exchange(counts.0, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Wake::Start,
                Err(now) => counts = Counts(now),
            }
        }
    }

    /// A worker with nothing in its own queue starts to look elsewhere.
    pub(super) fn start_search(&self) {
        self.add(SEARCHING);
    }

    /// L: a searching worker found a task. Says whether few search now, or it was the last one, and so must look whether to
    /// wake the next.
    #[must_use]
    pub(super) fn found(&self) -> bool {
        let before = self.sub(SEARCHING);
        // ORDERING: the fence of L.
        fence(Ordering::SeqCst);
        before.searching() <= before.breadth()
    }

    /// Whether a worker between two tasks is one too many: blocked ones have gone on.
    pub(super) fn is_surplus(&self) -> bool {
        self.counts().active() > self.max_active()
    }

    /// Whether enough others look, so that one more had better lie down: thousands that come to their ends together.
    pub(super) fn has_lookers(&self) -> bool {
        let counts = self.counts();
        counts.active() > WIDE && counts.searching() > ON_THEIR_WAY
    }

    /// Whether no other worker may become active.
    pub(super) fn is_full(&self) -> bool {
        self.counts().active() >= self.max_active()
    }

    /// Whether a worker that lay down has not been woken.
    pub(super) fn is_lying(&self, index: usize) -> bool {
        self.sleepers.lock().is_lying(index)
    }

    /// W, first half: a searching worker lies down. It must look at the queues once more before it parks.
    pub(super) fn lie_down(&self, index: usize, unparker: Unparker) {
        let mut sleepers = self.sleepers.lock();
        sleepers.push(Sleeper { index, unparker });
        self.add(SLEEPING.wrapping_sub(SEARCHING));
        drop(sleepers);
        // ORDERING: the fence of W.
        fence(Ordering::SeqCst);
    }

    /// W, second half: there was something after all, or the worker has slept long enough. False if somebody has just
    /// woken it: then it counts as searching, and a token is on its way to its parker.
    #[must_use]
    pub(super) fn get_up(&self, index: usize) -> bool {
        let mut sleepers = self.sleepers.lock();
        if !sleepers.remove(index) {
            return false;
        }
        self.add(SEARCHING.wrapping_sub(SLEEPING));
        true
    }

    /// Wakes everybody, for a shutdown.
    pub(super) fn wake_all(&self) {
        self.wake_from(0);
    }

    /// A searching worker ends, or its thread could not be started. Says whether it was the last one alive.
    pub(super) fn end(&self) -> bool {
        self.sub(LIVE + SEARCHING).live() == 1
    }

    /// B: the task of an active worker is about to wait for another one. The worker must look at the queues once more.
    pub(super) fn block(&self) {
        self.add(BLOCKED);
        // ORDERING: the fence of B.
        fence(Ordering::SeqCst);
    }

    /// It goes on.
    pub(super) fn unblock(&self) {
        self.sub(BLOCKED);
    }
}
