//! What a pool's handles and its dispatcher share: the inbox, and what can be known without asking the dispatcher.
//!
//! # Submit against shutdown
//!
//! The inbox holds, under one lock, what was submitted and whether anything more is accepted. A submit that finds it
//! open is in the inbox before a shutdown can close it, and the dispatcher ends only after it has closed the inbox and
//! emptied it: so every accepted task is run or refused.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use executor_core::admission::{Capacity, Refusal};
use executor_core::counters::Counters;
use executor_core::fork::PoolId;
use executor_core::host;
use executor_core::owner::Owner;
use executor_core::{PanicReport, PoolStats, Promise, Shutdown, ShutdownReport, TaskError, WorkerInfo};

use crate::job::Job;
use crate::share::Keeper;
use crate::sync::{Arc, AtomicUsize, Condvar, Mutex, Ordering};
use crate::sys::poll::Doorbell;
use crate::zygote::ZygoteConfig;

/// What the builder asked for.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) max_workers: usize,
    pub(crate) prefix: String,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) max_tasks_per_worker: Option<u64>,
    /// How long a worker that is told to end may take before it is killed.
    pub(crate) termination_grace: Duration,
    pub(crate) message_limit: u64,
    pub(crate) zygote: ZygoteConfig,
    /// The processors workers are pinned to, by their index; none if they are not.
    pub(crate) affinity: Vec<u32>,
    /// What every worker is told first: a [`Setup`](crate::wire::Setup), encoded.
    pub(crate) setup: Vec<u8>,
    /// What that says of processor time, rounded up to seconds.
    pub(crate) cpu_time_limit: Option<Duration>,
    /// Whether large messages may go through memory that workers map: not where mappings, or the files they come by, are
    /// limited.
    pub(crate) uses_bulk: bool,
    /// What it says of memory.
    pub(crate) memory_limit: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: PoolId,
    pub(crate) settings: Settings,
    pub(crate) counters: Counters,
    pub(crate) capacity: Capacity,
    /// The most workers there may be, now.
    pub(crate) max_workers: AtomicUsize,
    inbox: Mutex<Inbox>,
    pub(crate) doorbell: Doorbell,
    /// How many workers there are, and how many of them have nothing to do.
    pub(crate) workers: AtomicUsize,
    pub(crate) idle_workers: AtomicUsize,
    life: Mutex<Life>,
    ended: Condvar,
}

#[derive(Default)]
struct Inbox {
    jobs: Vec<Arc<Job>>,
    commands: Vec<Command>,
    /// Whether the dispatcher waits, and must be woken.
    is_asleep: bool,
    /// Why nothing more is accepted.
    refusal: Option<Refusal>,
    /// Whether the dispatcher has gone.
    is_abandoned: bool,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("refusal", &self.refusal).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Life {
    dispatcher: Option<JoinHandle<()>>,
    is_over: bool,
}

/// What a handle asks of the dispatcher.
pub(crate) enum Command {
    /// Finish everything, then end.
    Finish,
    /// Cancel what has not begun, finish what runs, then end.
    Cancel,
    /// Cancel what has not begun, end the workers by this means, then end.
    Stop(Means),
    /// End the running task with this id.
    Abort(usize),
    /// There may be more workers now, or fewer.
    Resize,
    /// Tasks were cancelled that may hold places in a bounded queue.
    Sweep,
    /// Look at the results of the worker with this number: nobody has rung for them.
    Look(u64),
    /// Let the workers drop the shared memory with this id.
    Release(u64),
    /// Tell what the workers are doing.
    Workers(Promise<Vec<WorkerInfo>>),
}

/// How workers are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// SIGTERM; SIGKILL for who is still there a little later.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// What the dispatcher finds in the inbox.
pub(crate) struct Mail {
    pub(crate) jobs: Vec<Arc<Job>>,
    pub(crate) commands: Vec<Command>,
}

impl Shared {
    pub(crate) fn new(id: PoolId, settings: Settings, capacity: Option<usize>, doorbell: Doorbell) -> Self {
        Self {
            id,
            max_workers: AtomicUsize::new(settings.max_workers),
            settings,
            counters: Counters::default(),
            capacity: Capacity::new(capacity),
            inbox: Mutex::new(Inbox::default()),
            doorbell,
            workers: AtomicUsize::new(0),
            idle_workers: AtomicUsize::new(0),
            life: Mutex::new(Life::default()),
            ended: Condvar::new(),
        }
    }

    // --- the handles' side ---

    /// Whether a task would be accepted.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        // In a forked child the lock may be held by a thread that is not there.
        if self.id.is_inherited() {
            return Err(Refusal::ForkedChild);
        }
        self.inbox.lock().refusal.clone().map_or(Ok(()), Err)
    }

    /// Takes a place in a bounded queue, waiting for one; not on the dispatcher, which is the one that frees them.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        self.check()?;
        if !self.capacity.is_bounded() || self.capacity.try_take() {
            return Ok(());
        }
        if host::serves(self.id) {
            self.capacity.take_anyway();
            return Ok(());
        }
        host::block_any(|| self.capacity.take(|| self.check()))
    }

    /// Takes a place in a bounded queue if one is free.
    pub(crate) fn try_admit(&self) -> Result<(), Refusal> {
        self.check()?;
        if self.capacity.try_take() { Ok(()) } else { Err(Refusal::Full) }
    }

    /// Puts a job that was admitted into the inbox.
    pub(crate) fn submit(&self, job: Arc<Job>) {
        let refused = {
            let mut inbox = self.inbox.lock();
            match inbox.refusal.clone() {
                None => {
                    self.counters.submitted();
                    inbox.jobs.push(job);
                    self.wake(inbox);
                    None
                }
                Some(refusal) => Some((job, refusal)),
            }
        };
        if let Some((job, refusal)) = refused {
            self.capacity.give_back();
            job.refuse(refusal.into());
        }
    }

    /// Accepts a job that was admitted and will be handed to a worker at once; false if it must go by the inbox. That the
    /// dispatcher waits says that nothing is ahead of it there.
    pub(crate) fn accept_directly(&self) -> bool {
        let inbox = self.inbox.lock();
        let is_accepted = inbox.is_asleep && inbox.refusal.is_none();
        if is_accepted {
            self.counters.submitted();
        }
        is_accepted
    }

    /// Sends a command; false if the dispatcher is gone.
    pub(crate) fn command(&self, command: Command) -> bool {
        let mut inbox = self.inbox.lock();
        if inbox.is_abandoned {
            return false;
        }
        inbox.commands.push(command);
        self.wake(inbox);
        true
    }

    /// Rings only if the dispatcher waits; the system call comes after the lock.
    fn wake(&self, mut inbox: executor_core::sync::MutexGuard<'_, Inbox>) {
        let was_asleep = std::mem::take(&mut inbox.is_asleep);
        drop(inbox);
        if was_asleep {
            self.doorbell.ring();
        }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> ShutdownReport {
        let (command, limit, waits) = match how {
            Shutdown::Finish => (Command::Finish, None, true),
            Shutdown::Cancel => (Command::Cancel, None, true),
            Shutdown::Within(limit) => (Command::Finish, Some(limit), true),
            Shutdown::Background => (Command::Finish, None, false),
        };
        self.end(command, limit, waits)
    }

    pub(crate) fn stop(&self, means: Means) -> ShutdownReport {
        self.end(Command::Stop(means), None, true)
    }

    fn end(&self, command: Command, limit: Option<Duration>, waits: bool) -> ShutdownReport {
        if self.id.is_inherited() {
            return ShutdownReport::default();
        }
        let before = self.counters.read();
        self.inbox.lock().refusal.get_or_insert(Refusal::ShutDown);
        self.capacity.wake_all();
        self.command(command);
        let is_over = waits && !host::serves(self.id);
        if is_over {
            let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
            if !host::block_any(|| self.wait_until_over(deadline)) {
                self.command(Command::Stop(Means::Kill));
                host::block_any(|| self.wait_until_over(None));
            }
            let dispatcher = self.life.lock().dispatcher.take();
            if let Some(dispatcher) = dispatcher {
                // It catches every panic of the user's code.
                let _ = dispatcher.join();
            }
        }
        let after = self.counters.read();
        ShutdownReport::new(
            (after.finished - after.cancelled) - (before.finished - before.cancelled),
            after.cancelled - before.cancelled,
            if is_over { 0 } else { after.queued + after.running },
        )
    }

    fn wait_until_over(&self, deadline: Option<Instant>) -> bool {
        let mut life = self.life.lock();
        while !life.is_over {
            life = match deadline {
                None => self.ended.wait(life),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.ended.wait_timeout(life, left)
                }
            };
        }
        true
    }

    pub(crate) fn keep_dispatcher(&self, dispatcher: JoinHandle<()>) {
        self.life.lock().dispatcher = Some(dispatcher);
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let mut stats = self.counters.read();
        // ORDERING: relaxed: numbers to look at.
        stats.workers = self.workers.load(Ordering::Relaxed);
        stats.idle_workers = self.idle_workers.load(Ordering::Relaxed);
        stats
    }

    /// Asks the dispatcher; on the dispatcher itself, or after its end, there is nothing to tell.
    pub(crate) fn worker_infos(&self) -> Vec<WorkerInfo> {
        if self.id.is_inherited() || host::serves(self.id) {
            return Vec::new();
        }
        let (promise, future) = Promise::new();
        self.command(Command::Workers(promise));
        future.result().unwrap_or_default()
    }

    // --- the dispatcher's side ---

    /// What has come in; without any, the next one will ring.
    pub(crate) fn collect(&self) -> Mail {
        let mut inbox = self.inbox.lock();
        let mail =
            Mail { jobs: std::mem::take(&mut inbox.jobs), commands: std::mem::take(&mut inbox.commands) };
        inbox.is_asleep = mail.jobs.is_empty() && mail.commands.is_empty();
        mail
    }

    /// Accepts nothing more, for this reason.
    pub(crate) fn refuse_from_now_on(&self, refusal: Refusal) {
        let mut inbox = self.inbox.lock();
        if !matches!(inbox.refusal, Some(Refusal::Broken(_))) {
            inbox.refusal = Some(refusal); // the first reason stays
        }
        drop(inbox);
        self.capacity.wake_all();
    }

    /// The dispatcher ends: nobody looks into the inbox any more. What is still there is refused.
    pub(crate) fn abandon(&self) {
        let (mail, refusal) = {
            let mut inbox = self.inbox.lock();
            inbox.is_abandoned = true;
            let refusal = inbox.refusal.get_or_insert(Refusal::ShutDown).clone();
            let mail =
                Mail { jobs: std::mem::take(&mut inbox.jobs), commands: std::mem::take(&mut inbox.commands) };
            (mail, refusal)
        };
        for job in mail.jobs {
            self.counters.withdrawn();
            job.refuse(TaskError::from(refusal.clone()));
        }
        drop(mail.commands);
        self.capacity.wake_all();
        self.life.lock().is_over = true;
        self.ended.notify_all();
    }
}

impl Owner for Shared {
    fn cancelled(&self) {
        self.counters.cancelled();
    }

    fn abort(&self, task: usize) -> bool {
        self.command(Command::Abort(task))
    }

    fn report_panic(&self, _: &PanicReport) {}
}

impl Keeper for Shared {
    fn forget(&self, id: u64) {
        self.command(Command::Release(id));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        executor_core::owner::unregister(self.id);
    }
}
