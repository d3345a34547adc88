//! The counters behind `stats()`: they only grow, so reading them in the right order makes them add up.
//!
//! A worker counts in a shard of its own, without a read-modify-write; other threads share a few. A task is counted as submitted before it can start, and as started
//! before it can finish; a reader sums *finished* first, then *started* (and *withdrawn*), then *submitted*, so at the instant of the last
//! read `finished <= started <= submitted` holds, whatever the others do meanwhile, and the differences are what is
//! running and what is queued. (A task cancelled before its start counts as cancelled only.)

use crossbeam_utils::CachePadded;

use crate::os::ThreadSlot;
use crate::stats::PoolStats;
use crate::sync::{AtomicU64, Ordering};

/// How the function of a task came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a function returns or it does not")]
pub enum Ending {
    /// It returned.
    Returned,
    /// It panicked.
    Panicked,
}

/// More shards spread threads better; each costs a cache line and a read in `stats`. A model has one, since the numbers of
/// threads are not the same in every run of it.
const SHARDS: usize = if cfg!(loom) { 1 } else { 16 };

/// The counters of one pool that anybody may count in.
#[derive(Debug, Default)]
pub struct Counters {
    shards: [CachePadded<Shard>; SHARDS],
}

/// The counters of one worker, in which no other thread counts.
#[derive(Debug, Default)]
pub struct OwnCounters(CachePadded<Shard>);

#[derive(Debug, Default)]
struct Shard {
    submitted: AtomicU64,
    withdrawn: AtomicU64,
    started: AtomicU64,
    finished: AtomicU64,
    panicked: AtomicU64,
    cancelled: AtomicU64,
}

impl Counters {
    #[cfg_attr(loom, expect(clippy::modulo_one, reason = "a model has one shard"))]
    fn mine(&self) -> &Shard {
        &self.shards[ThreadSlot::current().index() % SHARDS]
    }

    /// A task was accepted.
    pub fn submitted(&self) {
        // ORDERING: release, here and below: a reader that sees a later count of this task, by an acquire, also sees this.
        self.mine().submitted.fetch_add(1, Ordering::Release);
    }

    /// A task counted as submitted was not accepted after all.
    pub fn withdrawn(&self) {
        self.mine().withdrawn.fetch_add(1, Ordering::Release);
    }

    /// A task runs.
    pub fn started(&self) {
        self.mine().started.fetch_add(1, Ordering::Release);
    }

    /// A task that ran is over.
    pub fn finished(&self, ending: Ending) {
        let shard = self.mine();
        if ending == Ending::Panicked {
            shard.panicked.fetch_add(1, Ordering::Release);
        }
        shard.finished.fetch_add(1, Ordering::Release);
    }

    /// A task is over without having run.
    pub fn cancelled(&self) {
        self.mine().cancelled.fetch_add(1, Ordering::Release);
    }

    /// The counts of tasks; those of workers are left at 0.
    #[must_use]
    pub fn read(&self) -> PoolStats {
        self.read_with(std::iter::empty)
    }

    /// The counts of tasks, those in the workers' own counters included.
    #[must_use]
    pub fn read_with<'a, I: Iterator<Item = &'a OwnCounters>>(&'a self, own: impl Fn() -> I) -> PoolStats {
        let sum = |counter: fn(&Shard) -> &AtomicU64| -> u64 {
            let shared = self.shards.iter().map(|shard| &**shard);
            shared.chain(own().map(|own| &*own.0)).map(|shard| counter(shard).load(Ordering::Acquire)).sum()
        };
        let panicked = sum(|shard| &shard.panicked);
        let finished = sum(|shard| &shard.finished);
        let cancelled = sum(|shard| &shard.cancelled);
        let started = sum(|shard| &shard.started);
        let withdrawn = sum(|shard| &shard.withdrawn);
        let submitted = sum(|shard| &shard.submitted) - withdrawn;
        PoolStats {
            submitted,
            queued: submitted.saturating_sub(started + cancelled),
            running: started.saturating_sub(finished),
            finished: finished + cancelled,
            cancelled,
            panicked,
            ..PoolStats::default()
        }
    }
}

impl OwnCounters {
    /// A task was accepted.
    pub fn submitted(&self) {
        Self::count(&self.0.submitted);
    }

    /// A task runs.
    pub fn started(&self) {
        Self::count(&self.0.started);
    }

    /// A task that ran is over.
    pub fn finished(&self, ending: Ending) {
        if ending == Ending::Panicked {
            Self::count(&self.0.panicked);
        }
        Self::count(&self.0.finished);
    }

    fn count(counter: &AtomicU64) {
        // ORDERING: relaxed: this thread alone writes it.
        let before = counter.load(Ordering::Relaxed);
        // ORDERING: release, as in `Counters::submitted`.
        counter.store(before + 1, Ordering::Release);
    }
}
