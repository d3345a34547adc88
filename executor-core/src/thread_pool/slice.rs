//! `Scope::map`: a function over a borrowed slice, each result written where it belongs.
//!
//! The indices are a range. The worker that calls has all of it at first and takes *grains* from its front, small ones until
//! it knows what an item costs. A map that is over by then never asked anybody for help. Then other workers join in: each has a share of its own,
//! empty at first, and takes the back half of the largest share there is when its own is empty. (Range stealing, as in the
//! loop schedulers since affinity scheduling; Markatos and LeBlanc 1994.) So nothing is allocated, queued or waited for per
//! item, and the end is as balanced as the items allow.
//!
//! * **M1** Every index is in exactly one share, or was taken by exactly one worker: a share changes by a compare-and-swap that
//!   takes from its front or its back, and it grows only when its owner puts what it stole into the empty share. (A value of
//!   that word never comes back: its first index would have to be untaken again.)
//! * **M2** Who took an index writes its place in the output, once; nobody else touches it. Which places are written is in
//!   `written` when a worker has left.
//! * **M3** The call returns, or unwinds, after every worker has left, by `finish` of [`join`](super::join).

use std::any::Any;
use std::mem::{MaybeUninit, needs_drop};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::slice;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use crate::host::{self, Host};
use crate::panic_report;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::task::{self, Handle};
use crate::trace::Here;

use super::join::finish;
use super::pool::ThreadPoolExecutor;
use super::registry::WhenFull;

/// How long one grain should take. Longer balances worse at the end; shorter pays more for taking it, which costs about 50 ns.
const GRAIN_TIME: Duration = Duration::from_micros(5);

/// How long the caller works alone. Help costs about as much to wake.
const ALONE: Duration = Duration::from_micros(20);

/// The most items in a grain, for those too cheap to measure.
const LARGEST_GRAIN: u64 = 1 << 20;

/// The most items a share can count.
const LONGEST: usize = u32::MAX as usize;

impl ThreadPoolExecutor {
    /// See `Scope::map`.
    pub(super) fn map_slice<'a, T, R, F>(&self, items: &'a [T], f: &F) -> Vec<R>
    where
        T: Sync,
        R: Send,
        F: Fn(&'a T) -> R + Sync,
    {
        if items.len() > LONGEST {
            return items.chunks(LONGEST).flat_map(|part| self.map_slice(part, f)).collect();
        }
        match host::current().filter(|host| self.owns(&**host)) {
            Some(host) => self.map_here(&*host, items, f),
            None => self.run_borrowed(|| self.map_slice(items, f)),
        }
    }

    fn map_here<'a, T, R, F>(&self, host: &dyn Host, items: &'a [T], f: &F) -> Vec<R>
    where
        T: Sync,
        R: Send,
        F: Fn(&'a T) -> R + Sync,
    {
        let workers = self.max_workers().min(items.len()).max(1);
        let mut output = Vec::with_capacity(items.len());
        let map = SliceMap {
            items,
            f,
            output: Output(output.as_mut_ptr()),
            shares: (0..workers).map(|_| CachePadded::default()).collect(),
            written: Mutex::new(Vec::new()),
            is_stopped: AtomicBool::new(false),
            panic: Mutex::new(None),
        };
        map.shares[0].put(0..items.len());
        let mut helpers = Helpers { host, handles: Vec::new() };
        map.work(0, || {
            if workers > 1 && helpers.handles.is_empty() {
                self.call_helpers(&map, &mut helpers.handles);
            }
        });
        drop(helpers);
        let SliceMap { written, panic, .. } = map;
        if let Some(payload) = panic.into_inner() {
            for range in written.into_inner().into_iter().filter(|_| needs_drop::<R>()) {
                for place in &mut output.spare_capacity_mut()[range] {
                    // SAFETY: M2: it is written, and nobody else knows of it any more (M3).
                    panic_report::swallow(|| unsafe { place.assume_init_drop() });
                }
            }
            resume_unwind(payload);
        }
        // SAFETY: M1 and M3: without a panic every index was taken and written.
        unsafe { output.set_len(items.len()) };
        output
    }

    fn call_helpers<'a, T, R, F>(&self, map: &SliceMap<'a, '_, T, R, F>, helpers: &mut Vec<Handle<()>>)
    where
        T: Sync,
        R: Send,
        F: Fn(&'a T) -> R + Sync,
    {
        let registry = self.registry();
        for share in 1..map.shares.len() {
            let Ok(admission) = registry.admit(WhenFull::Refuse) else { return };
            let here = Here::now();
            // SAFETY: M3: it is waited for by `Helpers`, which goes before `map`.
            let (queued, helper) = unsafe {
                task::new_borrowed(registry.id, false, move || here.within(|| map.work(share, || ())))
            };
            if let Err(refusal) = registry.accept(queued, admission)
                && helper.refuse(refusal.into())
            {
                registry.withdrawn();
            }
            helpers.push(helper);
        }
    }
}

/// Tasks that borrow the map, until it is dropped (M3): by unwinding, too.
struct Helpers<'h> {
    host: &'h dyn Host,
    handles: Vec<Handle<()>>,
}

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        // One that has not started runs here, and finds nothing; one that a shutdown cancelled had nothing.
        for helper in self.handles.drain(..) {
            let _ = finish(self.host, helper);
        }
    }
}

struct SliceMap<'a, 'f, T, R, F> {
    items: &'a [T],
    f: &'f F,
    output: Output<R>,
    shares: Vec<CachePadded<Share>>,
    /// What those who have left have written.
    written: Mutex<Vec<Range<usize>>>,
    /// `f` has panicked: no more grains.
    is_stopped: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Where the results go.
struct Output<R>(*mut R);

// SAFETY: M2: two threads never write the same place, and each `R` moves to the caller's thread, which `R: Send` allows.
unsafe impl<R: Send> Sync for Output<R> {}

impl<'a, T, R, F: Fn(&'a T) -> R> SliceMap<'a, '_, T, R, F> {
    /// Works on the share with this index, and then on what it steals, until there is nothing. Calls `is_long` now and then
    /// once it has worked for some time.
    fn work(&self, own: usize, mut is_long: impl FnMut()) {
        let begin = Instant::now();
        let mut written: Vec<Range<usize>> = Vec::new();
        let mut grain = 1;
        // ORDERING: relaxed: it saves work, no more.
        while !self.is_stopped.load(Ordering::Relaxed) {
            let Some(range) = self.shares[own].take_front(grain) else {
                let Some(stolen) = self.steal(own) else { break };
                self.shares[own].put(stolen);
                continue;
            };
            let start = Instant::now();
            if written.last().is_none_or(|last| last.end != range.start) {
                written.push(range.start..range.start);
            }
            if let Some(last) = written.last_mut()
                && let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.run(range, &mut last.end)))
            {
                self.is_stopped.store(true, Ordering::Relaxed);
                self.panic.lock().get_or_insert(payload);
                break;
            }
            let now = Instant::now();
            if now - start < GRAIN_TIME {
                grain = (2 * grain).min(LARGEST_GRAIN);
            }
            if now - begin >= ALONE {
                is_long();
            }
        }
        self.written.lock().append(&mut written);
    }

    /// Writes the results of a range; `written` says how far it came.
    fn run(&self, range: Range<usize>, written: &mut usize) {
        /// Also while unwinding.
        struct Progress<'a>(&'a mut usize, usize);
        impl Drop for Progress<'_> {
            fn drop(&mut self) {
                *self.0 = self.1;
            }
        }
        let mut progress = Progress(written, range.start);
        // SAFETY: the output has a place for every item.
        let first = unsafe { self.output.0.add(range.start) }.cast::<MaybeUninit<R>>();
        // SAFETY: M2: these places are this worker's alone.
        let places = unsafe { slice::from_raw_parts_mut(first, range.len()) };
        for (place, item) in places.iter_mut().zip(&self.items[range]) {
            place.write((self.f)(item));
            progress.1 += 1;
        }
    }

    /// The back half of the largest share of the others.
    fn steal(&self, own: usize) -> Option<Range<usize>> {
        loop {
            let others = self.shares.iter().enumerate().filter(|(index, _)| *index != own);
            let (_, largest) = others.max_by_key(|(_, share)| share.left())?;
            if largest.left() == 0 {
                return None;
            }
            if let Some(stolen) = largest.take_back_half() {
                return Some(stolen);
            }
        }
    }
}

/// A range of indices, in one word: the first in its upper half, the end in its lower half.
#[derive(Debug, Default)]
struct Share(AtomicU64);

impl Share {
    fn read(&self) -> (u64, u64) {
        // ORDERING: relaxed: the word is all there is to it; what the indices lead to was there before the share.
        let word = self.0.load(Ordering::Relaxed);
        (word >> 32, word & u64::from(u32::MAX))
    }

    fn left(&self) -> u64 {
        let (start, end) = self.read();
        end - start
    }

    /// Fills the owner's empty share.
    fn put(&self, range: Range<usize>) {
        // ORDERING: relaxed, as in `read`. Nobody else writes an empty share.
        self.0.store((range.start as u64) << 32 | range.end as u64, Ordering::Relaxed);
    }

    /// Takes `wanted` indices, but no more than half of them, so that thieves find the rest.
    fn take_front(&self, wanted: u64) -> Option<Range<usize>> {
        self.take(|start, end| {
            let middle = start + wanted.min((end - start).div_ceil(2));
            (start..middle, middle..end)
        })
    }

    fn take_back_half(&self) -> Option<Range<usize>> {
        self.take(|start, end| {
            let middle = start + (end - start) / 2;
            (middle..end, start..middle)
        })
    }

    /// Takes the first of the ranges that `split` makes of a share with something in it, and leaves the second.
    fn take(&self, split: impl Fn(u64, u64) -> (Range<u64>, Range<u64>)) -> Option<Range<usize>> {
        loop {
            let (start, end) = self.read();
            if start == end {
                return None;
            }
            let (taken, left) = split(start, end);
            let (before, after) = (start << 32 | end, left.start << 32 | left.end);
            // ORDERING: relaxed, as in `read`.
            if self.0.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Some(index(taken.start)..index(taken.end));
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is the index of an item of a slice")]
const fn index(half: u64) -> usize {
    half as usize
}
