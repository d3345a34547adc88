//! Where tasks from outside wait: first in, first out, for any number of threads on both ends.
//!
//! ```text
//!   head ─► block ──next──► block ──next──► block ◄─ tail          a block: CAPACITY slots, and how many were read
//!           ··████          ██████          ███···
//! ```
//!
//! Both ends are a count of slots and the block it leads to. Who pushes moves the tail by one and then fills the slot it
//! passed; who takes moves the head by as many as it wants and then empties those, waiting for one that is passed and not
//! filled yet. (The algorithm of crossbeam's `Injector`, which this stands in for.) What is different is where blocks
//! come from: who has read a block to its end keeps it for whoever pushes next. With an allocator in between, the workers
//! would free what the submitting thread allocates, block by block, and both would wait for the lock of its heap: that
//! cost more than the queue itself. And a slot is one word, since a task is a pointer.
//!
//! * **Q1** A count leads to its block: the block is changed while the count stands between two blocks, at `CAPACITY`, where nobody
//!   else moves it. So whoever moves the count by a compare-and-swap from the value it read before the block has the
//!   right one.
//! * **Q2** Who moved a count over a slot, and nobody else, writes (tail) or reads (head) that slot, once.
//! * **Q3** A block is used again, or freed, by whoever counts its last slot as read. By then nobody will touch it: those
//!   who filled its slots did so last of all, and those who read them have counted.

#[cfg(all(test, loom))]
mod loom;

use std::hint::spin_loop;
use std::ptr::{self, NonNull};

use crossbeam_utils::{Backoff, CachePadded};

use crate::sync::deque::{Steal, Worker};
use crate::sync::system::Mutex as SystemMutex;
use crate::sync::{Access, AtomicPtr, AtomicUsize, Ordering, thread};
use crate::task::Task;

/// Slots in a block. More makes fewer blocks change hands; fewer keeps less memory.
const CAPACITY: usize = if cfg!(loom) { 2 } else { 63 };

/// Counts for a block: one more than it has slots, for the moment between two blocks.
const LAP: usize = CAPACITY + 1;

/// Blocks kept for those who push: 32 KiB. In a model every block is a new one.
const MOST_KEPT: usize = 64;

/// A queue for all.
#[derive(Debug)]
pub(super) struct Injector {
    head: CachePadded<End>,
    tail: CachePadded<End>,
    /// Blocks to be used again, empty. Nobody waits for this lock.
    kept: SystemMutex<Vec<Empty>>,
}

#[derive(Debug)]
struct End {
    count: AtomicUsize,
    block: AtomicPtr<Block>,
}

struct Block {
    next: AtomicPtr<Self>,
    read: AtomicUsize,
    slots: [AtomicPtr<()>; CAPACITY],
    /// Tells a model checker who uses the block, and who has it for itself (Q3).
    access: Access,
}

#[derive(Debug)]
struct Empty(Box<Block>);

impl Injector {
    pub(super) fn new() -> Self {
        let first = Box::into_raw(Block::new());
        let end = || CachePadded::new(End { count: AtomicUsize::new(0), block: AtomicPtr::new(first) });
        Self { head: end(), tail: end(), kept: SystemMutex::new(Vec::new()) }
    }

    /// Adds a task.
    pub(super) fn push(&self, task: Task) {
        let mut next = None;
        let backoff = Backoff::new();
        // ORDERING: acquire, here and below: who sees a count sees the block it leads to (Q1).
        let mut count = self.tail.count.load(Ordering::Acquire);
        loop {
            let offset = count % LAP;
            if offset == CAPACITY {
                wait(&backoff); // somebody is between two blocks
                count = self.tail.count.load(Ordering::Acquire);
                continue;
            }
            let block = self.tail.block.load(Ordering::Acquire);
            let is_last = offset + 1 == CAPACITY;
            if is_last && next.is_none() {
                next = Some(self.empty_block());
            }
            // ORDERING: seq-cst: part of the push that P's fence follows (see `sleep`).
            let moved =
                self.tail.count.compare_exchange_weak(count, count + 1, Ordering::SeqCst, Ordering::Acquire);
            if let Err(now) = moved {
                count = now;
                spin_loop();
                continue;
            }
            // SAFETY: Q1 and Q3: the block the count led to, and its slot is not even filled.
            let block = unsafe { &*block };
            block.access.reads();
            if let Some(next) = next.take_if(|_| is_last) {
                let next = Box::into_raw(next);
                // ORDERING: release, thrice: who follows sees an empty block (Q1).
                self.tail.block.store(next, Ordering::Release);
                self.tail.count.store(count + 2, Ordering::Release);
                block.next.store(next, Ordering::Release);
            }
            // ORDERING: release, publishes the task; pairs with the acquire in `take`.
            block.slots[offset].store(task.into_raw().as_ptr(), Ordering::Release);
            if let Some(unused) = next {
                self.keep(unused);
            }
            return;
        }
    }

    /// Takes the oldest.
    pub(super) fn steal(&self) -> Steal<Task> {
        self.take(1, |_| ())
    }

    /// Takes up to `limit` of the oldest, which lie side by side: returns the first, and puts the others into `deque`.
    pub(super) fn steal_batch_with_limit_and_pop(&self, deque: &Worker<Task>, limit: usize) -> Steal<Task> {
        self.take(limit, |task| deque.push(task))
    }

    fn take(&self, limit: usize, mut others: impl FnMut(Task)) -> Steal<Task> {
        let backoff = Backoff::new();
        // ORDERING: acquire, as in `push`.
        let mut count = self.head.count.load(Ordering::Acquire);
        let (block, offset, taken) = loop {
            let offset = count % LAP;
            if offset == CAPACITY {
                wait(&backoff);
                count = self.head.count.load(Ordering::Acquire);
                continue;
            }
            let block = self.head.block.load(Ordering::Acquire);
            // ORDERING: seq-cst: part of the second look that W's fence precedes. Never behind the head: whoever moved that
            // had seen it.
            let tail = self.tail.count.load(Ordering::SeqCst);
            let end = if tail / LAP == count / LAP { tail % LAP } else { CAPACITY };
            if end <= offset {
                return Steal::Empty;
            }
            let taken = limit.min(end - offset);
            // ORDERING: seq-cst on success, for `is_empty`; acquire on failure, as above.
            let moved = self.head.count.compare_exchange_weak(
                count,
                count + taken,
                Ordering::SeqCst,
                Ordering::Acquire,
            );
            match moved {
                Ok(_) => break (block, offset, taken),
                Err(now) => count = now,
            }
            spin_loop();
        };
        // SAFETY: Q1 and Q3: the block the count led to, in which slots are yet to be read.
        let shared = unsafe { &*block };
        shared.access.reads();
        if offset + taken == CAPACITY {
            let backoff = Backoff::new();
            let next = loop {
                // ORDERING: acquire, pairs with the release in `push`.
                let next = shared.next.load(Ordering::Acquire);
                if !next.is_null() {
                    break next;
                }
                wait(&backoff); // whoever filled the last slot is just about to
            };
            // ORDERING: release, twice: as in `push`.
            self.head.block.store(next, Ordering::Release);
            self.head.count.store(count + taken + 1, Ordering::Release);
        }
        let mut first = None;
        for slot in &shared.slots[offset..offset + taken] {
            let backoff = Backoff::new();
            let task = loop {
                // ORDERING: acquire, pairs with the release in `push`.
                if let Some(task) = NonNull::new(slot.load(Ordering::Acquire)) {
                    break task;
                }
                wait(&backoff);
            };
            // SAFETY: Q2: `push` put it there by `into_raw`, and this is the one time it is read.
            let task = unsafe { Task::from_raw(task) };
            match first {
                None => first = Some(task),
                Some(_) => others(task),
            }
        }
        // ORDERING: release, ends the use of the block; acquire: who counts last sees that the others' has ended (Q3).
        if shared.read.fetch_add(taken, Ordering::AcqRel) + taken == CAPACITY {
            // SAFETY: Q3: this is the last use, and every block came out of a box.
            let block = unsafe { Box::from_raw(block) };
            block.access.writes();
            self.keep(block);
        }
        first.map_or(Steal::Empty, Steal::Success)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how many tasks are in it: exact while nobody pushes or takes.
    pub(super) fn len(&self) -> usize {
        // ORDERING: seq-cst: part of the second look that W's fence precedes.
        let (head, tail) = (self.head.count.load(Ordering::SeqCst), self.tail.count.load(Ordering::SeqCst));
        let slots = |count: usize| count / LAP * CAPACITY + (count % LAP);
        slots(tail).saturating_sub(slots(head))
    }

    fn empty_block(&self) -> Box<Block> {
        let kept = self.kept.try_lock().and_then(|mut kept| kept.pop());
        kept.map_or_else(Block::new, |Empty(block)| block)
    }

    /// Keeps a block to be used again, or frees it.
    fn keep(&self, block: Box<Block>) {
        if let Some(mut kept) = self.kept.try_lock()
            && !cfg!(loom)
            && kept.len() < MOST_KEPT
        {
            block.clear();
            kept.push(Empty(block));
        }
    }
}

/// Waits for somebody who is between two steps: not for long, unless the system has taken the core away there.
fn wait(backoff: &Backoff) {
    if cfg!(loom) {
        thread::yield_now();
    } else {
        backoff.snooze();
    }
}

impl Block {
    fn new() -> Box<Self> {
        Box::new(Self {
            next: AtomicPtr::new(ptr::null_mut()),
            read: AtomicUsize::new(0),
            slots: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            access: Access::new(),
        })
    }

    /// Makes it as good as new. It is in nobody's hands, so the order is that of whatever hands it on.
    fn clear(&self) {
        // ORDERING: relaxed, as said.
        self.next.store(ptr::null_mut(), Ordering::Relaxed);
        self.read.store(0, Ordering::Relaxed);
        for slot in &self.slots {
            slot.store(ptr::null_mut(), Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").finish_non_exhaustive()
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        while let Steal::Success(task) = self.steal() {
            drop(task);
        }
        // ORDERING: relaxed: nobody else is here.
        let last = self.head.block.load(Ordering::Relaxed);
        // SAFETY: all that was pushed was taken, so head and tail lead to this one block, which came out of a box.
        drop(unsafe { Box::from_raw(last) });
    }
}
