//! What the workers of one pool share, and the life of the pool.
//!
//! # Phases
//!
//! ```text
//!   RUNNING ──shutdown──► DRAINING ──last worker ends, nothing queued──► (over: `wait_until_over` returns)
//!      └─────initializer or thread start fails──► BROKEN
//! ```
//!
//! # Submit against shutdown
//!
//! A submit reads the phase, pushes, fences, and reads the phase again. If it is not RUNNING any more, the submit takes
//! the task back: it refuses it unless a worker was faster. A worker ends only after it has seen the new phase, fenced,
//! and found nothing. Of the two fences one comes first: either the submit sees the new phase, or a worker sees the
//! task. So a task is accepted and runs before the shutdown returns, or its future says that it was refused.

#[cfg(all(test, loom))]
mod loom;

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::admission::{Capacity, Refusal};
use crate::counters::Counters;
use crate::error::TaskError;
use crate::executor::Shutdown;
use crate::fork::PoolId;
use crate::future::TaskFuture;
use crate::host;
use crate::owner::Owner;
use crate::panic_report::{self, PanicReport};
use crate::stats::{PoolStats, ShutdownReport, WorkerInfo};
use crate::sync::thread::{self, JoinHandle, ThreadId};
use crate::sync::{Arc, AtomicBool, AtomicU32, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, fence};
use crate::task::{self, Task};

use super::queue::Queue;
use super::sleep::{Sleep, Wake};
use super::spawn_future::Futures;
use super::timer::Timer;
use super::worker::{self, Desk};

pub(super) type Hook = Box<dyn Fn() -> Result<(), String> + Send + Sync>;
pub(super) type PanicHandler = Box<dyn Fn(&PanicReport) + Send + Sync>;

/// What the builder asked for.
pub(super) struct Settings {
    pub(super) max_workers: usize,
    pub(super) prefix: String,
    pub(super) stack_size: usize,
    pub(super) keep_alive: Option<Duration>,
    pub(super) capacity: Option<usize>,
    pub(super) initializer: Option<Hook>,
    pub(super) on_worker_exit: Option<Hook>,
    pub(super) panic_handler: Option<PanicHandler>,
}

pub(super) struct Registry {
    pub(super) id: PoolId,
    pub(super) settings: Settings,
    pub(super) queue: Queue,
    pub(super) sleep: Sleep,
    pub(super) counters: Counters,
    pub(super) timer: Timer,
    capacity: Capacity,
    phase: AtomicU32,
    /// Whether a shutdown cancels what has not started.
    is_cancelling: AtomicBool,
    /// Workers in their initializer.
    initializing: AtomicUsize,
    /// How often `max_workers` was changed.
    resizes: AtomicUsize,
    /// The futures that the pool polls, from the first one on.
    futures: OnceLock<Arc<Futures>>,
    life: Mutex<Life>,
    /// Told whenever a worker ends.
    ended: Condvar,
    desks: Mutex<Vec<Arc<Desk>>>,
}

#[derive(Default)]
struct Life {
    broken: Option<Box<str>>,
    threads: Vec<JoinHandle<()>>,
    /// Threads that a shutdown, or a worker that has ended itself, is joining.
    joining: Vec<ThreadId>,
    /// A shutdown has seen the last worker end and the queue empty: no worker starts any more, and nothing that is
    /// accepted can come (see [`Registry::wait_until_over`]).
    is_over: bool,
}

const RUNNING: u32 = 0;
const DRAINING: u32 = 1;
const BROKEN: u32 = 2;

/// What a submit does when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenFull {
    Wait,
    Refuse,
    /// Takes a place that is not there: for whoever must neither wait nor be refused.
    Exceed,
}

/// The proof that a task may be accepted, with its place in a bounded queue.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Admission {
    Queue,
    /// The queue is full and this is one of the pool's own workers, which must not wait for itself.
    RunHere,
}

impl Registry {
    pub(super) fn new(id: PoolId, settings: Settings) -> Self {
        Self {
            id,
            queue: Queue::new(),
            sleep: Sleep::new(settings.max_workers),
            counters: Counters::default(),
            timer: Timer::default(),
            capacity: Capacity::new(settings.capacity),
            phase: AtomicU32::new(RUNNING),
            is_cancelling: AtomicBool::new(false),
            initializing: AtomicUsize::new(0),
            resizes: AtomicUsize::new(0),
            futures: OnceLock::new(),
            life: Mutex::new(Life::default()),
            ended: Condvar::new(),
            desks: Mutex::new(Vec::new()),
            settings,
        }
    }

    // --- submitting ---

    #[inline]
    fn check(&self) -> Result<(), Refusal> {
        if self.id.is_inherited() {
            return Err(Refusal::ForkedChild);
        }
        // ORDERING: seq-cst: the second read of a submit follows its fence.
        match self.phase.load(Ordering::SeqCst) {
            RUNNING => Ok(()),
            DRAINING => Err(Refusal::ShutDown),
            _ => Err(Refusal::Broken(self.life.lock().broken.clone().unwrap_or_default())),
        }
    }

    #[inline]
    pub(super) fn admit(&self, when_full: WhenFull) -> Result<Admission, Refusal> {
        self.check()?;
        if !self.capacity.is_bounded() || self.capacity.try_take() {
            return Ok(Admission::Queue);
        }
        match when_full {
            WhenFull::Refuse => return Err(Refusal::Full),
            WhenFull::Exceed => {
                self.capacity.take_anyway();
                return Ok(Admission::Queue);
            }
            WhenFull::Wait => {}
        }
        if let Some(has_room) = host::with_worker_of(self.id, |host| host.has_room()) {
            if has_room {
                return Ok(Admission::RunHere);
            }
            // Neither waiting nor running it here would do: the bound gives way, by as much as stacks are deep.
            self.capacity.take_anyway();
            return Ok(Admission::Queue);
        }
        host::block_any(|| self.capacity.take(|| self.check()))?;
        Ok(Admission::Queue)
    }

    /// Queues a task that was admitted, or runs it here.
    ///
    /// # Errors
    ///
    /// The pool is ending: the caller refuses the task if it can, and says so by [`withdrawn`](Self::withdrawn).
    pub(super) fn accept(self: &Arc<Self>, task: Task, admission: Admission) -> Result<(), Refusal> {
        let is_inside = host::with_worker_of(self.id, |host| host.submitted()).is_some();
        if !is_inside {
            self.counters.submitted();
        }
        if let Some(deadline) = task.details().and_then(|details| details.deadline) {
            self.timer.enter(deadline, &task, &self.settings.prefix);
        }
        if admission == Admission::RunHere {
            // Not pending any more if its deadline has passed.
            if let Some(started) = task.start() {
                host::with_worker_of(self.id, |host| host.run(started)).unwrap_or_default();
            }
            return Ok(());
        }
        if is_inside {
            host::with_worker_of(self.id, |host| host.push(task));
        } else {
            self.queue.push(task);
        }
        // The fence of P, and of the submit against a shutdown.
        fence(Ordering::SeqCst);
        if self.is_ending() {
            return self.check();
        }
        self.wake_fenced(1);
        Ok(())
    }

    /// Queues `work`, whose outcome nobody asks for. If it is refused, it is dropped unrun.
    pub(super) fn enqueue(self: &Arc<Self>, when_full: WhenFull, work: impl FnOnce() + Send + 'static) {
        let admission = self.admit(when_full);
        let (task, future) = task::new(self.id, None, work);
        let future = TaskFuture::new(future);
        match admission {
            Err(refusal) => {
                task.refuse(refusal.into());
            }
            Ok(admission) => {
                if let Err(refusal) = self.accept(task, admission)
                    && future.cell().refuse(refusal.into())
                {
                    self.withdrawn();
                }
            }
        }
    }

    /// Why a task would be refused now.
    pub(super) fn refusal(&self) -> Option<TaskError> {
        self.check().err().map(TaskError::from)
    }

    /// The futures that the pool polls.
    pub(super) fn futures(&self) -> &Arc<Futures> {
        self.futures.get_or_init(Futures::new)
    }

    /// Wakes all futures that the pool polls: they find that it is over.
    fn end_futures(&self) {
        if let Some(futures) = self.futures.get() {
            futures.wake_all();
        }
    }

    /// A task that was counted as submitted was refused after all. What is left of it in the queue must not keep a
    /// shutdown waiting.
    pub(super) fn withdrawn(&self) {
        self.counters.withdrawn();
        drop(self.life.lock());
        self.ended.notify_all();
    }

    /// A task left the queue: its place is free.
    #[inline]
    pub(super) fn left_queue(&self) {
        self.capacity.give_back();
    }

    /// Sees to it that somebody looks at the queue.
    pub(super) fn wake(self: &Arc<Self>) {
        fence(Ordering::SeqCst);
        self.wake_fenced(1);
    }

    /// L: the same, where somebody has found something and leaves more behind.
    pub(super) fn wake_next(self: &Arc<Self>) {
        fence(Ordering::SeqCst);
        let breadth = self.sleep.breadth(self.queue.waiting());
        for _ in 0..breadth.min(2) {
            self.wake_fenced(breadth);
        }
    }

    /// The same, behind the fence of P.
    fn wake_fenced(self: &Arc<Self>, breadth: usize) {
        // Workers that initialize themselves come and look when they are through: one for a task will do. (They say that
        // they are through before they look, and what is queued was pushed before this: the argument of P.)
        let initializing = self.initializing.load(Ordering::SeqCst);
        if initializing > 0 && self.sleep.counts().sleeping() == 0 && self.queue.waiting() <= initializing {
            return;
        }
        if self.sleep.published(breadth) == Wake::Start {
            self.start_worker();
        }
    }

    /// A worker is in its initializer.
    pub(super) fn initialization_begins(&self) {
        self.initializing.fetch_add(1, Ordering::SeqCst);
    }

    /// It is through, and looks at the queue next.
    pub(super) fn initialization_ends(&self) {
        self.initializing.fetch_sub(1, Ordering::SeqCst);
    }

    #[cold]
    fn start_worker(self: &Arc<Self>) {
        if let Err(error) = worker::start(self) {
            self.sleep.end();
            if self.life.lock().is_over {
                // Woken late, or for what a late submit left behind: nobody needs a worker, and that goes here.
                let reason = self.check().err().unwrap_or(Refusal::ShutDown);
                self.refuse_all(&|task| {
                    if task.refuse(reason.clone().into()) {
                        self.counters.withdrawn();
                    }
                });
                drop(self.life.lock());
                self.ended.notify_all(); // who saw a worker counted may be waiting for its end
                return;
            }
            // The fence of L: others counted on the worker that did not come.
            fence(Ordering::SeqCst);
            let counts = self.sleep.counts();
            if counts.sleeping() > 0 {
                if self.queue.has_anything() {
                    self.wake();
                }
            } else if counts.active() == 0 {
                // With others at work the pool goes on. With none, or all of them waiting for what nobody will run, it cannot.
                self.break_down(format!("could not start a worker thread: {error}").into());
            }
        }
    }

    /// Starts a thread of this pool by `spawn`. Under the lock, so that it is entered before it can end.
    pub(super) fn start_thread(
        &self,
        desk: &Arc<Desk>,
        spawn: impl FnOnce() -> io::Result<JoinHandle<()>>,
    ) -> io::Result<()> {
        let mut life = self.life.lock();
        if life.is_over {
            return Err(io::Error::other("the pool has been shut down"));
        }
        let thread = spawn()?;
        self.desks.lock().push(Arc::clone(desk));
        life.threads.push(thread);
        Ok(())
    }

    /// How many threads were started and not joined.
    #[cfg(all(test, not(loom)))]
    pub(super) fn started_threads(&self) -> usize {
        self.life.lock().threads.len()
    }

    /// Joins threads that have ended, spare ones for the most part, when there are many. Called by a thread that is no
    /// worker any more: one that has ended may be in the destructors of its thread-locals for as long as they like, and
    /// this thread then waits for it, and a shutdown for this one.
    pub(super) fn join_ended(&self) {
        let mut life = self.life.lock();
        if life.threads.len() <= 2 * self.sleep.counts().live() + 16 {
            return;
        }
        let ended: Vec<_> = life.threads.extract_if(.., |thread| thread.is_finished()).collect();
        self.join_all(life, ended);
    }

    /// Joins `threads`, which were taken from `life`; shows them as being joined meanwhile.
    fn join_all(&self, mut life: MutexGuard<'_, Life>, threads: Vec<JoinHandle<()>>) {
        let ids: Vec<ThreadId> = threads.iter().map(|thread| thread.thread().id()).collect();
        life.joining.extend(&ids);
        drop(life);
        for thread in threads {
            // It catches every panic of the user's code.
            let _ = thread.join();
        }
        self.life.lock().joining.retain(|id| !ids.contains(id));
        self.ended.notify_all();
    }

    // --- resizing ---

    /// The number of tasks that may run at the same time.
    pub(super) fn max_workers(&self) -> usize {
        self.sleep.max_active()
    }

    /// How often that was changed.
    pub(super) fn resizes(&self) -> usize {
        // ORDERING: acquire, pairs with the release in `resize`: who sees the new number of workers, read before, sees
        // this change counted.
        self.resizes.load(Ordering::Acquire)
    }

    /// Changes it. A worker whose index is too high now and that was hired before ends when it is through with its task;
    /// one that sleeps ends at once.
    pub(super) fn resize(self: &Arc<Self>, max_workers: usize) {
        let life = self.life.lock(); // one resize at a time
        // ORDERING: release, see `resizes`.
        self.resizes.fetch_add(1, Ordering::Release);
        self.sleep.set_max_active(max_workers);
        drop(life);
        self.sleep.wake_from(max_workers);
        // The fence of a publisher: what was pushed while fewer might be active is for the new ones, and the first of them
        // wakes the next (L).
        fence(Ordering::SeqCst);
        self.see_to_queue();
    }

    // --- ending ---

    /// Whether workers end when they find nothing.
    #[inline]
    pub(super) fn is_ending(&self) -> bool {
        // ORDERING: seq-cst: a worker's last look follows the fence after this.
        self.phase.load(Ordering::SeqCst) != RUNNING
    }

    /// A worker ends. Its deques are empty.
    pub(super) fn worker_ended(self: &Arc<Self>, desk: &Arc<Desk>) {
        drop(self.life.lock()); // it is entered by now
        self.desks.lock().retain(|other| !Arc::ptr_eq(other, desk));
        self.sleep.end();
        // The fence of L: somebody may have counted on this worker to look.
        fence(Ordering::SeqCst);
        self.see_to_queue();
        drop(self.life.lock());
        self.ended.notify_all();
    }

    /// Sees to it that whatever is queued is looked at: by a worker, or, if the pool is broken, here.
    fn see_to_queue(self: &Arc<Self>) {
        if !self.queue.has_anything() {
            return;
        }
        let broken = self.life.lock().broken.clone();
        match broken {
            None => self.wake(),
            Some(reason) => self.fail_queue(&reason),
        }
    }

    fn fail_queue(&self, reason: &str) {
        self.refuse_all(&|task| {
            if task.refuse(TaskError::Broken(reason.into())) {
                self.counters.withdrawn();
            }
        });
    }

    /// Breaks the pool: whatever waits, and whatever is submitted later, fails with `reason`, or with the one that broke it
    /// before.
    pub(super) fn break_down(&self, reason: Box<str>) {
        let reason = {
            let mut life = self.life.lock();
            let reason = life.broken.get_or_insert(reason).clone();
            // ORDERING: seq-cst, see `check`; under the lock, so that who reads BROKEN finds the reason.
            self.phase.store(BROKEN, Ordering::SeqCst);
            reason
        };
        fence(Ordering::SeqCst);
        self.fail_queue(&reason);
        self.capacity.wake_all();
        self.sleep.wake_all();
        self.ended.notify_all();
        self.end_futures();
    }

    fn refuse_all(&self, refuse: &dyn Fn(Task)) {
        while let Some(task) = self.queue.drain_one() {
            self.left_queue();
            refuse(task);
        }
    }

    /// Whether what is not running must not start any more: not even once more.
    pub(super) fn is_cancelling(&self) -> bool {
        // ORDERING: relaxed: it carries no data, and a run that has just begun is as good as one begun before.
        self.is_cancelling.load(Ordering::Relaxed)
    }

    fn cancel_all(&self) -> u64 {
        // ORDERING: relaxed, as above.
        self.is_cancelling.store(true, Ordering::Relaxed);
        let cancelled = std::cell::Cell::new(0);
        self.refuse_all(&|task| {
            if task.cancel() {
                cancelled.set(cancelled.get() + 1);
            }
        });
        cancelled.get()
    }

    pub(super) fn shutdown(self: &Arc<Self>, how: Shutdown) -> ShutdownReport {
        if self.id.is_inherited() {
            return ShutdownReport::default();
        }
        let before = self.count();
        // ORDERING: seq-cst, see `check`. A broken pool stays broken.
        let _ = self.phase.compare_exchange(RUNNING, DRAINING, Ordering::SeqCst, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.capacity.wake_all();
        let mut cancelled = if how == Shutdown::Cancel { self.cancel_all() } else { 0 };
        self.sleep.wake_all();
        self.see_to_queue(); // all workers may have ended
        self.end_futures();
        let waits = how != Shutdown::Background && !self.is_own_thread();
        let mut is_over = false;
        if waits {
            let deadline = match how {
                Shutdown::Within(limit) => Instant::now().checked_add(limit),
                _ => None,
            };
            is_over = host::block_any(|| self.wait_until_over(deadline));
            if !is_over {
                cancelled += self.cancel_all();
                is_over = self.wait_until_over(Some(Instant::now()));
            }
            if is_over {
                self.join();
            }
        }
        let after = self.count();
        let finished = (after.finished - after.cancelled) - (before.finished - before.cancelled);
        // Whoever took a task back last may not have counted it yet.
        let unfinished = if is_over { 0 } else { after.queued + after.running };
        ShutdownReport::new(finished, cancelled, unfinished)
    }

    /// Whether this is a thread of the pool: at work, or ending, in the destructors of its thread-locals.
    fn is_own_thread(&self) -> bool {
        let me = thread::current().id();
        let life = self.life.lock();
        host::is_worker_of(self.id)
            || life.threads.iter().any(|thread| thread.thread().id() == me)
            || life.joining.contains(&me)
    }

    /// Waits until no worker is alive and nothing is queued; false at the deadline.
    ///
    /// From then on no worker starts. Nothing is left for one: the phase changed before this looked, so a task that this
    /// did not see in the queue is one whose submit sees the phase (the two fences at the head of this file), and refuses
    /// it.
    fn wait_until_over(self: &Arc<Self>, deadline: Option<Instant>) -> bool {
        loop {
            // A submit that was refused leaves its empty cell in the queue, maybe after the last worker has ended.
            self.see_to_queue();
            let mut life = self.life.lock();
            if self.sleep.counts().live() == 0 {
                if self.queue.is_empty() {
                    life.is_over = true;
                    return true;
                }
                continue;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match left {
                None => drop(self.ended.wait(life)),
                Some(left) if left.is_zero() => return false,
                Some(left) => drop(self.ended.wait_timeout(life, left)),
            }
        }
    }

    /// Joins the threads, so that their thread-locals are gone too, and ends the timer. Everybody who comes here returns
    /// when that is done, whoever does it.
    fn join(&self) {
        let mut life = self.life.lock();
        let threads = std::mem::take(&mut life.threads);
        self.join_all(life, threads);
        life = self.life.lock();
        while !life.joining.is_empty() {
            life = self.ended.wait(life);
        }
        drop(life);
        // Last: a callback on one of the timer's threads may be in here too.
        self.timer.stop();
    }

    // --- looking ---

    pub(super) fn stats(&self) -> PoolStats {
        let counts = self.sleep.counts();
        PoolStats {
            workers: counts.live(),
            idle_workers: counts.sleeping(),
            blocked_workers: counts.blocked(),
            ..self.count()
        }
    }

    fn count(&self) -> PoolStats {
        self.counters.read_with(|| self.queue.counters())
    }

    pub(super) fn workers(&self) -> Vec<WorkerInfo> {
        if self.id.is_inherited() {
            return Vec::new();
        }
        let mut workers: Vec<_> = self.desks.lock().iter().map(|desk| (desk.index, desk.info())).collect();
        workers.sort_by_key(|(index, _)| *index);
        workers.into_iter().map(|(_, info)| info).collect()
    }
}

impl Owner for Registry {
    fn cancelled(&self) {
        self.counters.cancelled();
    }

    fn abort(&self, _: usize) -> bool {
        true // the token is set; a thread cannot be stopped
    }

    fn report_panic(&self, report: &PanicReport) {
        if let Some(handler) = &self.settings.panic_handler {
            panic_report::swallow(|| handler(report));
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        crate::owner::unregister(self.id);
        if let Some(futures) = self.futures.get() {
            futures.strike_out();
        }
        self.timer.stop();
        // Nothing can be queued here: a submit needs a handle, and the last handle has shut the pool down. Should it be
        // so all the same, nobody shall wait for ever.
        self.refuse_all(&|task| {
            task.refuse(TaskError::Abandoned);
        });
    }
}
