//! The counters behind `stats()`: they only grow, so reading them in the right order makes them add up.
//!
//! Every thread counts in one of a few shards. A task is counted as submitted before it can start, and as started
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

/// The counters of one pool.
#[derive(Debug, Default)]
pub struct Counters {
    shards: [CachePadded<Shard>; SHARDS],
}

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

    fn sum(&self, counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| counter(shard).load(Ordering::Acquire)).sum()
    }

    /// The counts of tasks; those of workers are left at 0.
    #[must_use]
    pub fn read(&self) -> PoolStats {
        let panicked = self.sum(|shard| &shard.panicked);
        let finished = self.sum(|shard| &shard.finished);
        let cancelled = self.sum(|shard| &shard.cancelled);
        let started = self.sum(|shard| &shard.started);
        let withdrawn = self.sum(|shard| &shard.withdrawn);
        let submitted = self.sum(|shard| &shard.submitted) - withdrawn;
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
