//! A worker: the thread that takes tasks and runs them.
//!
//! ```text
//!   started ─► initializer ─► ┌─► take from the own queues ──found──► run ─┐
//!                             │        │ nothing                           │
//!                             │   search the others' ────────found─────────┤
//!                             │        │ nothing                           │
//!                             │   lie down, look once more, park           │
//!                             └────────┴──woken──────────◄─────────────────┘
//! ```
//!
//! It ends when the pool is ending and there is nothing left, when it has slept for the pool's `keep_alive`, or, as a
//! spare worker, for [`SPARE_KEEP_ALIVE`].
//!
//! A task that waits on this thread comes back here through [`Host`]: to run the awaited task in place, or to be
//! replaced by a spare worker while it blocks.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::fork::PoolId;
use crate::host::{self, Host};
use crate::os;
use crate::panic_report;
use crate::stats::WorkerInfo;
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, Parker, Unparker, fence, thread};
use crate::task::{Started, Task};
use crate::worker_local;

use super::join;
use super::queue::Local;
use super::registry::Registry;

/// How long a spare worker sleeps before it ends. Longer keeps threads nobody may need; shorter starts them again and
/// again under work that waits a lot.
const SPARE_KEEP_ALIVE: Duration = Duration::from_millis(500);

/// How long a worker that found nothing looks on, yielding the processor between two looks, before it lies down. Going to
/// sleep and being woken cost 2 to 50 µs; longer would keep a core from whoever has work for it. By the clock and not by
/// the number of yields, each of which takes milliseconds on a machine that has more to do than it has cores.
const LOOK_TIME: Duration = if cfg!(loom) { Duration::ZERO } else { Duration::from_micros(10) };

/// The part of the stack that tasks run in place may fill; the rest is for the deepest of them.
const STACK_SHARE: usize = 2;

/// Starts a worker that is already counted as live and searching.
pub(super) fn start(registry: &Arc<Registry>) -> io::Result<()> {
    let local = registry.queue.join();
    let desk = Arc::new(Desk::new(local.index, format!("{}-{}", registry.settings.prefix, local.index)));
    let builder = thread::Builder::new().name(desk.name.clone()).stack_size(registry.settings.stack_size);
    let (registry_there, desk_there) = (Arc::clone(registry), Arc::clone(&desk));
    // In a cell that both sides hold, so that the deques come back if the thread cannot be had.
    let luggage = Arc::new(Mutex::new(Some(local)));
    let luggage_there = Arc::clone(&luggage);
    let started = registry.start_thread(&desk, || {
        builder.spawn(move || {
            let local = luggage_there.lock().take();
            if let Some(local) = local {
                live(registry_there, local, desk_there);
            }
        })
    });
    if started.is_err()
        && let Some(local) = luggage.lock().take()
    {
        registry.queue.leave(local);
    }
    started
}

/// The whole life of a worker.
fn live(registry: Arc<Registry>, local: Local, desk: Arc<Desk>) {
    desk.arrive();
    let worker = Rc::new(Worker::new(registry, local, desk));
    let entered = host::enter(Rc::<Worker>::clone(&worker));
    let forks = join::enter(&worker.registry, &worker.local);
    let is_initialized = worker.initialize();
    if is_initialized {
        while let Some(task) = worker.next_task() {
            worker.run(task);
        }
    }
    drop((forks, entered));
    let Worker { registry, local, desk, .. } =
        Rc::into_inner(worker).expect("only this thread has references, and `entered` is gone");
    registry.queue.leave(local);
    registry.worker_ended(&desk);
    // No worker any more: whatever the hook does, the pool does not count on this thread.
    if is_initialized {
        say_goodbye(&registry);
    }
    worker_local::leave();
    registry.join_ended();
}

fn say_goodbye(registry: &Registry) {
    if let Some(handler) = &registry.settings.on_worker_exit
        && let Err(report) = panic_report::catch(handler)
    {
        crate::owner::report_panic(registry.id, &report);
    }
}

struct Worker {
    registry: Arc<Registry>,
    /// How often the pool had been resized when the worker started.
    hired: usize,
    local: Local,
    desk: Arc<Desk>,
    parker: Parker,
    /// Where the stack was when the worker started.
    stack_base: usize,
    /// Counts the tasks taken, from 1: the number of the next one.
    tick: Cell<u32>,
    /// The state of a small generator of pseudo-random numbers (xorshift, Marsaglia 2003), to choose victims.
    random: Cell<u32>,
    /// Whether `sleep` counts this worker as searching.
    is_searching: Cell<bool>,
    /// How many waits are on its stack, one inside the other: it counts as blocked once.
    blocks: Cell<u32>,
}

impl Worker {
    /// The worker of this thread, already counted as live and searching.
    fn new(registry: Arc<Registry>, local: Local, desk: Arc<Desk>) -> Self {
        Self {
            parker: Parker::new(),
            stack_base: stack_pointer(),
            tick: Cell::new(1),
            random: Cell::new(u32::try_from(local.index).unwrap_or(0).wrapping_mul(0x9e37_79b9) | 1),
            is_searching: Cell::new(true),
            blocks: Cell::new(0),
            hired: registry.resizes(),
            registry,
            local,
            desk,
        }
    }

    /// Runs the pool's initializer; if that fails, breaks the pool. Searching before and after; not meanwhile, since it may
    /// take long.
    fn initialize(&self) -> bool {
        let Some(initializer) = &self.registry.settings.initializer else { return true };
        self.registry.initialization_begins();
        self.stop_search();
        let initialized = panic_report::catch(initializer).unwrap_or_else(|report| Err(report.to_string()));
        if let Err(problem) = &initialized {
            let reason = format!("the initializer of {} failed: {problem}", self.desk.name);
            self.registry.break_down(reason.into());
            self.registry.queue.give_back(&self.local); // what the initializer submitted
        }
        self.registry.initialization_ends();
        self.start_search();
        initialized.is_ok()
    }

    /// The next task to run; `None` when it is time to end, and the worker counts as searching then.
    fn next_task(&self) -> Option<Started> {
        loop {
            if self.is_dismissed() {
                self.registry.queue.give_back(&self.local);
                self.start_search(); // whoever relies on that: the worker looks once more when it ends
                return None;
            }
            if !self.is_searching.get() && self.registry.sleep.is_surplus() {
                self.registry.queue.give_back(&self.local); // it may not come back to them for long
                self.start_search();
                if self.rest() == Rested::Enough {
                    return None;
                }
                continue;
            }
            if let Some(task) = self.take_own() {
                if let Some(started) = self.took(task) {
                    return Some(started);
                }
                continue;
            }
            self.start_search();
            if let Some(task) = self.look_around() {
                if let Some(started) = self.took(task) {
                    return Some(started);
                }
                continue;
            }
            if self.registry.is_ending() {
                // The worker's last look comes after it has seen the phase (see `registry`).
                fence(Ordering::SeqCst);
                if !self.registry.queue.has_work(&self.local, self.next_random()) {
                    return None;
                }
            } else if self.rest() == Rested::Enough {
                return None;
            }
        }
    }

    /// Whether the pool was made smaller than this worker's index since it started. Spare workers that came later are none
    /// of these.
    fn is_dismissed(&self) -> bool {
        self.local.index >= self.registry.max_workers() && self.hired != self.registry.resizes()
    }

    fn start_search(&self) {
        if !self.is_searching.replace(true) {
            self.registry.sleep.start_search();
        }
    }

    fn take_own(&self) -> Option<Task> {
        self.registry.queue.pop(&self.local, self.tick.get(), self.registry.max_workers())
    }

    fn look_around(&self) -> Option<Task> {
        let start = Instant::now();
        loop {
            let found =
                self.registry.queue.steal(&self.local, self.next_random()).or_else(|| self.take_own());
            if found.is_some()
                || self.registry.is_ending()
                || start.elapsed() >= LOOK_TIME
                || self.registry.sleep.has_lookers()
            {
                return found;
            }
            thread::yield_now();
        }
    }

    /// A task left the queue. Claims it, and if it was searched for, lets the next worker search; `None` if the task was
    /// claimed or cancelled while it lay there.
    fn took(&self, task: Task) -> Option<Started> {
        self.tick.set(self.tick.get().wrapping_add(1));
        self.registry.left_queue();
        if let Some(deadline) = task.details().and_then(|details| details.deadline) {
            if Instant::now() >= deadline {
                self.stop_search(); // callbacks may take long
                task.expire();
            }
            if !task.is_pending() {
                self.registry.timer.leave(deadline, &task);
            }
        }
        let started = task.start()?;
        self.stop_search();
        Some(started)
    }

    /// L: leaves the search; the last one to do so wakes the next if there is more (see `sleep`).
    fn stop_search(&self) {
        if self.is_searching.replace(false)
            && self.registry.sleep.found()
            && self.registry.queue.has_work_for_others(&self.local, self.next_random())
        {
            self.registry.wake_next();
        }
    }

    /// Lies down as a searching worker; comes back as one.
    fn rest(&self) -> Rested {
        let Self { registry, parker, local, .. } = self;
        registry.sleep.lie_down(local.index, Unparker::clone(parker.unparker()));
        let mut has_slept_enough = false;
        loop {
            let is_wanted = || {
                registry.is_ending()
                    || (!registry.sleep.is_full() && registry.queue.has_work(local, self.next_random()))
            };
            if is_wanted() {
                return self.get_up();
            }
            if has_slept_enough {
                // Whoever publishes a task from here on finds this worker searching, and relies on it: so it looks once
                // more when it ends (`Registry::worker_ended`).
                return if registry.sleep.get_up(local.index) { Rested::Enough } else { self.woken() };
            }
            match self.keep_alive() {
                None => parker.park(),
                Some(limit) => {
                    let start = Instant::now();
                    parker.park_timeout(limit);
                    has_slept_enough = start.elapsed() >= limit;
                }
            }
            if !registry.sleep.is_lying(local.index) {
                return Rested::Woken;
            }
        }
    }

    fn get_up(&self) -> Rested {
        if self.registry.sleep.get_up(self.local.index) { Rested::Woken } else { self.woken() }
    }

    /// Somebody has just taken this worker off the list: a token is on its way.
    fn woken(&self) -> Rested {
        self.parker.park();
        Rested::Woken
    }

    fn keep_alive(&self) -> Option<Duration> {
        let settings = &self.registry.settings;
        if self.local.index >= self.registry.max_workers() {
            Some(SPARE_KEEP_ALIVE)
        } else {
            settings.keep_alive
        }
    }

    fn next_random(&self) -> u32 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.random.set(x);
        x
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
enum Rested {
    /// There may be work.
    Woken,
    /// Nobody needed this worker for as long as it is kept.
    Enough,
}

impl Host for Worker {
    fn pool(&self) -> PoolId {
        self.registry.id
    }

    fn has_room(&self) -> bool {
        let filled = self.stack_base.abs_diff(stack_pointer());
        // Even where this worker is one too many, having just gone on: the others may be waiting for a lock it holds.
        self.blocks.get() == 0 && filled < self.registry.settings.stack_size / STACK_SHARE
    }

    fn run(&self, task: Started) {
        let registry = &self.registry;
        self.local.counters.started();
        let details = task.task().details();
        let deadline = details.and_then(|details| details.deadline);
        let limit = details
            .and_then(|details| details.timeout)
            .and_then(|timeout| Instant::now().checked_add(timeout))
            .inspect(|limit| registry.timer.enter(*limit, task.task(), &registry.settings.prefix));
        if let Some(run_limit) = details.and_then(|details| details.run_limit.as_deref()) {
            *run_limit.lock() = limit;
        }
        let before = self.desk.begin(task.task().label());
        let executed = task.execute();
        self.desk.end(before);
        let run_limit = executed.task().details().and_then(|details| details.run_limit.as_deref());
        let limit = run_limit.map_or(limit, |last| *last.lock());
        for limit in [limit, deadline].into_iter().flatten() {
            registry.timer.leave(limit, executed.task());
        }
        // Before anybody can learn that the task is over.
        self.local.counters.finished(executed.ending());
        executed.publish();
    }

    fn take_back(&self, id: usize) -> Option<Task> {
        let top = self.registry.queue.pop_top(&self.local)?;
        if top.id() == id {
            self.registry.left_queue();
            return Some(top);
        }
        self.registry.queue.push_top(&self.local, top);
        // Somebody may have looked just then and lain down.
        self.registry.wake();
        None
    }

    fn submitted(&self) {
        self.local.counters.submitted();
    }

    fn push(&self, task: Task) {
        if self.blocks.get() == 0 {
            self.registry.queue.push_local(&self.local, task);
        } else {
            self.registry.queue.push(task); // this worker does not come back to its own soon
        }
    }

    fn before_block(&self) {
        let blocks = self.blocks.get();
        self.blocks.set(blocks + 1);
        if blocks == 0 {
            self.registry.queue.give_back(&self.local);
            self.registry.sleep.block();
            // P: what this worker would have run is for others now, and one more may be active.
            if self.registry.queue.has_anything() {
                self.registry.wake();
            }
        }
    }

    fn after_block(&self) {
        let blocks = self.blocks.get() - 1;
        self.blocks.set(blocks);
        if blocks == 0 {
            self.registry.sleep.unblock();
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// About where the stack is now.
fn stack_pointer() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

#[cfg(all(test, not(loom)))]
mod tests;

/// What a worker shows of itself to `workers()`.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) index: usize,
    name: String,
    thread: AtomicU64,
    /// When the running task started, in nanoseconds by the coarse clock; 0 if none runs.
    since: AtomicU64,
    is_labelled: AtomicBool,
    label: Mutex<Option<String>>,
}

/// What was on a desk before the task that was run in place.
pub(super) struct Before {
    since: u64,
    label: Option<Option<String>>,
}

impl Desk {
    fn new(index: usize, name: String) -> Self {
        Self {
            index,
            name,
            thread: AtomicU64::new(0),
            since: AtomicU64::new(0),
            is_labelled: AtomicBool::new(false),
            label: Mutex::new(None),
        }
    }

    fn arrive(&self) {
        // ORDERING: relaxed, here and below: a desk is only looked at, and each word tells its own part.
        self.thread.store(os::thread_id(), Ordering::Relaxed);
    }

    fn begin(&self, label: Option<&str>) -> Before {
        let since = self.since.load(Ordering::Relaxed);
        let is_labelled = self.is_labelled.load(Ordering::Relaxed);
        if since != 0 && label.is_none() && !is_labelled {
            // One task without a label in place of another: nobody can tell them apart.
            return Before { since, label: None };
        }
        self.since.store(nanoseconds(os::coarse_clock()).max(1), Ordering::Relaxed);
        let label = (label.is_some() || is_labelled).then(|| {
            self.is_labelled.store(label.is_some(), Ordering::Relaxed);
            std::mem::replace(&mut *self.label.lock(), label.map(str::to_owned))
        });
        Before { since, label }
    }

    fn end(&self, before: Before) {
        self.since.store(before.since, Ordering::Relaxed);
        if let Some(label) = before.label {
            self.is_labelled.store(label.is_some(), Ordering::Relaxed);
            *self.label.lock() = label;
        }
    }

    pub(super) fn info(&self) -> WorkerInfo {
        let info = WorkerInfo::idle(self.name.clone(), self.thread.load(Ordering::Relaxed));
        match self.since.load(Ordering::Relaxed) {
            0 => info,
            since => {
                let busy_for = Duration::from_nanos(nanoseconds(os::fine_clock()).saturating_sub(since));
                info.running(self.label.lock().as_deref(), busy_for)
            }
        }
    }
}
