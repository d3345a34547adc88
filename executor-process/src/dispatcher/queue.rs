//! The parts that wait for a worker: higher priority first, then first come first served. A part that comes back takes its
//! old place, so what is kept is an order and not a time.
//!
//! New parts come at the end and are taken from the front, which is all that happens to most: a ring for each priority, and
//! a search only where a part comes back, or leaves, from in between.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use crate::job::{Job, Part};
use crate::sync::Arc;

#[derive(Default)]
pub(super) struct Queue {
    /// None of them is empty.
    ranks: BTreeMap<Reverse<i32>, VecDeque<Part>>,
}

/// Where a part stands among those of its priority.
fn place(part: &Part) -> (u64, usize) {
    (part.job.order(), part.items.start)
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// How many parts of the priority that is next wait.
    pub(super) fn rank_len(&self) -> usize {
        self.ranks.first_key_value().map_or(0, |(_, rank)| rank.len())
    }

    pub(super) fn insert(&mut self, part: Part) {
        let rank = self.ranks.entry(Reverse(part.job.priority())).or_default();
        if rank.back().is_none_or(|last| place(last) < place(&part)) {
            rank.push_back(part);
        } else {
            let at = rank.partition_point(|other| place(other) < place(&part));
            rank.insert(at, part);
        }
    }

    pub(super) fn first(&self) -> Option<&Part> {
        self.ranks.first_key_value()?.1.front()
    }

    pub(super) fn pop_first(&mut self) -> Option<Part> {
        let mut rank = self.ranks.first_entry()?;
        let part = rank.get_mut().pop_front();
        if rank.get().is_empty() {
            rank.remove();
        }
        part
    }

    /// Takes out what waits of a job.
    pub(super) fn take_job(&mut self, job: &Arc<Job>) -> Vec<Part> {
        let priority = Reverse(job.priority());
        let Some(rank) = self.ranks.get_mut(&priority) else { return Vec::new() };
        let start = rank.partition_point(|other| place(other) < (job.order(), 0));
        let end = rank.partition_point(|other| place(other) <= (job.order(), usize::MAX));
        let parts = rank.drain(start..end).collect();
        if rank.is_empty() {
            self.ranks.remove(&priority);
        }
        parts
    }

    /// Takes out what nobody wants any more.
    pub(super) fn take_cancelled(&mut self) -> Vec<Part> {
        let is_cancelled = |part: &Part| matches!(part.job.wanted(), Err(None));
        let mut cancelled = Vec::new();
        for rank in self.ranks.values_mut() {
            if rank.iter().any(is_cancelled) {
                let (gone, kept) = std::mem::take(rank).into_iter().partition(is_cancelled);
                *rank = kept;
                cancelled.extend::<VecDeque<Part>>(gone);
            }
        }
        self.ranks.retain(|_, rank| !rank.is_empty());
        cancelled
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Part> {
        self.ranks.values().flatten()
    }

    /// Takes out all of it.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Part> + use<> {
        std::mem::take(&mut self.ranks).into_values().flatten()
    }
}
