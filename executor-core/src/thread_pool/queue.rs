//! Where tasks wait: what came from outside, what was ranked, and what the workers hold themselves.
//!
//! ```text
//!   submit outside ──► injector ──batches──► fifo ┐
//!   submit on a worker ────────────────────► lifo ┼──► the worker, and thieves from the other end
//!   with a priority ──► urgent (> 0), later (< 0) ┘
//! ```
//!
//! A worker takes from *urgent*, its own *lifo*, its own *fifo*, the *injector*, other workers, and *later*, in that
//! order. Of the tasks it takes, every [`FAIRNESS`]th is one that has waited longest instead: in turn, of what came from
//! outside, of the urgent, of the later, and of the worker's own. So no stream of work, however urgent, starves anything
//! else, and a task that is the oldest of its kind is taken within `FAIRNESS * TURNS` tasks.
//!
//! Only the first [`MOST_VICTIMS`] workers have deques, and thieves look at all of those. In a pool with more workers than
//! that, tasks stay in the injector, so that none lies where nobody looks for long. Before a worker blocks, or lies down as
//! one too many, it puts its deques back into the injector, and while it is blocked it pushes there.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

use crate::counters::OwnCounters;
use crate::sync::deque::{Steal, Stealer, Worker};
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering};
use crate::task::Task;

use super::injector::Injector;

/// Of so many tasks in a row, one is taken by age. Smaller costs cache misses; larger lets them wait longer. Told in the
/// docs of `Options::priority`.
const FAIRNESS: u32 = 61;

/// The kinds of tasks whose oldest is taken in turn.
const TURNS: u32 = 4;

/// The most tasks taken from the injector at once. More makes fewer trips; fewer keeps the order of starts closer to
/// the order of submits.
const LARGEST_BATCH: usize = 32;

/// A worker's batch is at most this part of the injector per worker: with few tasks waiting, they are taken one by one,
/// in order.
const BATCH_SHARE: usize = 4;

/// How many workers have deques, at which a thief looks. More would make a look expensive for pools of thousands, which
/// are for waiting, and cost 2 KiB a worker; fewer would give up stealing on large machines.
const MOST_VICTIMS: usize = 64;

#[derive(Debug)]
pub(super) struct Queue {
    injector: Injector,
    urgent: Ranked,
    later: Ranked,
    slots: Slots,
    /// Deques of workers that have ended, to be used again: the lowest index first.
    free: Mutex<Vec<Local>>,
}

/// A worker's own deques, and where it counts its tasks.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) index: usize,
    pub(super) counters: Arc<OwnCounters>,
    deques: Option<Deques>,
}

#[derive(Debug)]
struct Deques {
    lifo: Worker<Task>,
    fifo: Worker<Task>,
}

#[derive(Debug)]
struct Slot {
    counters: Arc<OwnCounters>,
    ends: Option<Ends>,
}

/// The other ends of a worker's deques.
#[derive(Debug)]
struct Ends {
    lifo: Stealer<Task>,
    fifo: Stealer<Task>,
}

impl Deques {
    fn new() -> (Self, Ends) {
        let own = Self { lifo: Worker::new_lifo(), fifo: Worker::new_fifo() };
        let ends = Ends { lifo: own.lifo.stealer(), fifo: own.fifo.stealer() };
        (own, ends)
    }
}

impl Local {
    /// How many tasks thieves can take of what was submitted here.
    #[inline]
    pub(super) fn forks(&self) -> usize {
        self.deques.as_ref().map_or(0, |own| own.lifo.len())
    }

    #[inline]
    fn pop_lifo(&self) -> Option<Task> {
        self.deques.as_ref()?.lifo.pop()
    }

    #[inline]
    fn pop_fifo(&self) -> Option<Task> {
        self.deques.as_ref()?.fifo.pop()
    }
}

impl Queue {
    pub(super) fn new() -> Self {
        // The deques' memory reclamation sets itself up at the first steal. Here and not on a worker, so that a `fork` of
        // the program cannot catch it half-way, which a pool built in the child would wait for in vain.
        let _ = Worker::<()>::new_fifo().stealer().steal();
        Self {
            injector: Injector::new(),
            urgent: Ranked::default(),
            later: Ranked::default(),
            slots: Slots::default(),
            free: Mutex::new(Vec::new()),
        }
    }

    /// The deques of a new worker.
    pub(super) fn join(&self) -> Local {
        let mut free = self.free.lock();
        let lowest =
            free.iter().enumerate().min_by_key(|(_, local)| local.index).map(|(position, _)| position);
        if let Some(position) = lowest {
            return free.swap_remove(position);
        }
        let counters = Arc::default();
        let (deques, ends) = (self.slots.len() < MOST_VICTIMS).then(Deques::new).unzip();
        let index = self.slots.push(Slot { counters: Arc::clone(&counters), ends });
        Local { index, counters, deques }
    }

    /// Gives the deques of a worker that ends back. They are empty.
    pub(super) fn leave(&self, local: Local) {
        self.free.lock().push(local);
    }

    /// A task from outside, or with a priority.
    pub(super) fn push(&self, task: Task) {
        match task.details().map_or(0, |details| details.priority) {
            0 => self.injector.push(task),
            1.. => self.urgent.push(task),
            ..=-1 => self.later.push(task),
        }
    }

    /// A task from a worker.
    pub(super) fn push_local(&self, local: &Local, task: Task) {
        let is_ranked = task.details().is_some_and(|details| details.priority != 0);
        match &local.deques {
            Some(own) if !is_ranked && !self.is_too_wide() => own.lifo.push(task),
            _ => self.push(task),
        }
    }

    /// Takes the task on top of the worker's own deque.
    pub(super) fn pop_top(&self, local: &Local) -> Option<Task> {
        local.pop_lifo()
    }

    /// Puts it back.
    pub(super) fn push_top(&self, local: &Local, task: Task) {
        match &local.deques {
            Some(own) => own.lifo.push(task),
            None => self.push(task),
        }
    }

    /// What the workers have counted, those that have ended included.
    pub(super) fn counters(&self) -> impl Iterator<Item = &OwnCounters> {
        (0..self.slots.len()).filter_map(|index| self.slots.get(index)).map(|slot| &*slot.counters)
    }

    /// What a worker takes next without looking at others.
    pub(super) fn pop(&self, local: &Local, tick: u32, max_workers: usize) -> Option<Task> {
        if tick.is_multiple_of(FAIRNESS)
            && let Some(task) = self.pop_oldest(local, tick / FAIRNESS)
        {
            return Some(task);
        }
        self.urgent
            .pop()
            .or_else(|| local.pop_lifo())
            .or_else(|| local.pop_fifo())
            .or_else(|| self.inject_batch(local, max_workers))
    }

    /// A task that has waited longest of its kind; the kinds take turns.
    #[cold]
    fn pop_oldest(&self, local: &Local, turn: u32) -> Option<Task> {
        (0..TURNS).find_map(|step| match (turn + step) % TURNS {
            0 => local.pop_fifo().or_else(|| self.inject_one()), // the fifo was filled from the injector
            1 => self.urgent.pop_oldest(),
            2 => self.later.pop_oldest(),
            _ => self.ends(local.index).and_then(|ends| until_settled(|| ends.lifo.steal())),
        })
    }

    /// What a worker takes from others.
    pub(super) fn steal(&self, local: &Local, random: u32) -> Option<Task> {
        self.victims(local.index, random).find_map(Ends::steal).or_else(|| self.later.pop())
    }

    /// Whether a worker that looked would find something.
    pub(super) fn has_work(&self, local: &Local, random: u32) -> bool {
        !self.injector.is_empty()
            || !self.urgent.is_empty()
            || !self.later.is_empty()
            || self.victims(local.index, random).any(Ends::has_any)
    }

    /// Whether there is more for other workers after this one took a task: where that came from, there may be another.
    pub(super) fn has_work_for_others(&self, local: &Local, random: u32) -> bool {
        local.deques.as_ref().is_some_and(|own| !own.fifo.is_empty() || !own.lifo.is_empty())
            || self.has_work(local, random)
    }

    /// Whether anything waits outside the workers' own deques.
    pub(super) fn is_empty(&self) -> bool {
        self.injector.is_empty() && self.urgent.is_empty() && self.later.is_empty()
    }

    /// About how many tasks wait outside the workers' own deques.
    pub(super) fn waiting(&self) -> usize {
        self.injector.len() + self.urgent.len() + self.later.len()
    }

    /// Whether anything waits anywhere, as far as a worker would look.
    pub(super) fn has_anything(&self) -> bool {
        !self.is_empty() || self.victims(usize::MAX, 0).any(Ends::has_any)
    }

    /// Anything that waits, from anywhere, for a shutdown.
    pub(super) fn drain_one(&self) -> Option<Task> {
        self.urgent
            .pop()
            .or_else(|| self.inject_one())
            .or_else(|| self.victims(usize::MAX, 0).find_map(Ends::steal))
            .or_else(|| self.later.pop())
    }

    /// Puts a worker's own tasks where everybody looks.
    pub(super) fn give_back(&self, local: &Local) {
        while let Some(task) = local.pop_fifo().or_else(|| local.pop_lifo()) {
            self.injector.push(task);
        }
    }

    /// Whether there are more workers than a thief looks at: then tasks stay where everybody looks.
    fn is_too_wide(&self) -> bool {
        self.slots.len() > MOST_VICTIMS
    }

    fn inject_one(&self) -> Option<Task> {
        until_settled(|| self.injector.steal())
    }

    fn inject_batch(&self, local: &Local, max_workers: usize) -> Option<Task> {
        if self.injector.is_empty() {
            return None;
        }
        let batch = (self.injector.len() / (BATCH_SHARE * max_workers)).min(LARGEST_BATCH);
        match &local.deques {
            Some(own) if batch > 1 && !self.is_too_wide() => {
                until_settled(|| self.injector.steal_batch_with_limit_and_pop(&own.fifo, batch))
            }
            _ => self.inject_one(),
        }
    }

    /// The ends of all deques but this worker's own.
    fn victims(&self, own: usize, random: u32) -> impl Iterator<Item = &Ends> {
        let workers = self.slots.len().min(MOST_VICTIMS);
        let start = random as usize;
        (0..workers)
            .map(move |step| start.wrapping_add(step) % workers)
            .filter(move |&index| index != own)
            .filter_map(|index| self.ends(index))
    }

    fn ends(&self, index: usize) -> Option<&Ends> {
        self.slots.get(index)?.ends.as_ref()
    }
}

impl Ends {
    fn has_any(&self) -> bool {
        !self.lifo.is_empty() || !self.fifo.is_empty()
    }

    fn steal(&self) -> Option<Task> {
        // A look costs two loads; a steal pins the memory reclamation of the deques, whose work grows with the number of
        // threads: with thousands of them looking at empty deques it takes all their time.
        let from =
            |deque: &Stealer<Task>| if deque.is_empty() { None } else { until_settled(|| deque.steal()) };
        from(&self.fifo).or_else(|| from(&self.lifo))
    }
}

/// `Retry` means that somebody else was faster at one task, not that there is none.
fn until_settled(mut steal: impl FnMut() -> Steal<Task>) -> Option<Task> {
    loop {
        match steal() {
            Steal::Success(task) => return Some(task),
            Steal::Empty => return None,
            Steal::Retry => std::hint::spin_loop(),
        }
    }
}

/// Tasks by priority, equal ones in the order they came; or by age alone.
#[derive(Debug, Default)]
struct Ranked {
    ranks: Mutex<Ranks>,
    /// How many are in it, so that nobody takes the lock for nothing.
    len: CachePadded<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Ranks {
    /// The first is the next: the highest priority, and of equal ones the oldest.
    by_rank: BTreeMap<(Reverse<i32>, u64), Task>,
    /// The priority of each, the oldest first.
    by_age: BTreeMap<u64, Reverse<i32>>,
    next: u64,
}

impl Ranked {
    fn push(&self, task: Task) {
        let priority = Reverse(task.details().map_or(0, |details| details.priority));
        let mut ranks = self.ranks.lock();
        let sequence = ranks.next;
        ranks.next += 1;
        ranks.by_rank.insert((priority, sequence), task);
        ranks.by_age.insert(sequence, priority);
        // ORDERING: seq-cst: part of the push that P's fence follows (see `sleep`).
        self.len.store(ranks.by_rank.len(), Ordering::SeqCst);
    }

    /// The one with the highest priority; of equal ones the oldest.
    #[inline]
    fn pop(&self) -> Option<Task> {
        self.take(|ranks| {
            let ((_, sequence), task) = ranks.by_rank.pop_first()?;
            ranks.by_age.remove(&sequence);
            Some(task)
        })
    }

    /// The oldest one. It is the oldest of its priority too, so equal ones stay in order.
    fn pop_oldest(&self) -> Option<Task> {
        self.take(|ranks| {
            let (sequence, priority) = ranks.by_age.pop_first()?;
            ranks.by_rank.remove(&(priority, sequence))
        })
    }

    #[inline]
    fn take(&self, take: impl FnOnce(&mut Ranks) -> Option<Task>) -> Option<Task> {
        if self.is_empty() {
            return None;
        }
        let mut ranks = self.ranks.lock();
        let task = take(&mut ranks);
        // ORDERING: seq-cst, as in `push`.
        self.len.store(ranks.by_rank.len(), Ordering::SeqCst);
        task
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        // ORDERING: seq-cst: part of the second look that W's fence precedes.
        self.len.load(Ordering::SeqCst)
    }
}

/// A list that only grows and is read without a lock: block `b` holds `2^b` slots.
#[derive(Debug, Default)]
struct Slots {
    blocks: [OnceLock<Box<[OnceLock<Slot>]>>; 17],
    len: AtomicUsize,
}

impl Slots {
    /// Only one caller at a time: under the lock of `free`.
    fn push(&self, slot: Slot) -> usize {
        // ORDERING: relaxed: the lock orders writers.
        let index = self.len.load(Ordering::Relaxed);
        let (block, offset) = Self::place(index);
        let block =
            self.blocks[block].get_or_init(|| (0..1_usize << block).map(|_| OnceLock::new()).collect());
        assert!(block[offset].set(slot).is_ok(), "slots are filled in order, once");
        // ORDERING: release, publishes the slot; pairs with the acquire in `len`.
        self.len.store(index + 1, Ordering::Release);
        index
    }

    fn len(&self) -> usize {
        // ORDERING: acquire, pairs with the release in `push`.
        self.len.load(Ordering::Acquire)
    }

    fn get(&self, index: usize) -> Option<&Slot> {
        let (block, offset) = Self::place(index);
        self.blocks.get(block)?.get()?.get(offset)?.get()
    }

    const fn place(index: usize) -> (usize, usize) {
        let block = (index + 1).ilog2() as usize;
        (block, index + 1 - (1 << block))
    }
}
