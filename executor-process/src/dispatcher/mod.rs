//! The dispatcher: everything a process pool knows, and the thread that keeps it.
//!
//! ```text
//!   inbox ──► queue ──hand over──► worker ──reply──► job ──► future
//!               ▲                    │
//!               └──── taken back ────┘   when it dies, is stuck behind a long task, or the pool shuts down
//! ```
//!
//! The thread waits in one poll for the inbox's doorbell, the fork server, the workers' sockets and their pidfds, with the
//! next time limit as time-out. Between two waits it holds the lock of it all ([`Front`]). While it waits, a thread that
//! submits may hand its task to an idle worker, and one that waits for that task may take the result, without it: see
//! [`direct`]. Every other result is decoded, and its callbacks run, on this thread (S3); a wait on it for a task of its own
//! pool is an error (see [`host::serve`]). The inbox's lock is taken inside this one, never the other way round.
//!
//! | file | what it does |
//! |---|---|
//! | this one | the loop, what handles ask for, the end |
//! | [`direct`] | the way past its thread |
//! | [`queue`] | the parts that wait |
//! | [`assign`] | who gets what |
//! | [`replies`] | what workers say |
//! | [`starts`] | starting workers, what the fork server says |
//! | [`deaths`] | taking tasks back, killing, settling what dead workers leave |
//! | [`time`] | time limits |
//! | [`stderr`] | what workers print to standard error |

mod assign;
mod deaths;
mod direct;
mod queue;
mod replies;
mod starts;
mod stderr;
mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use executor_core::admission::Refusal;
use executor_core::{TaskError, host, panic_report};

use self::queue::Queue;
use self::stderr::Stderr;
use self::time::Timer;
use crate::job::{Job, Part};
use crate::shared::{Command, Mail, Means, Shared};
use crate::sync::{Arc, Mutex, Ordering};
use crate::sys::oom::MemoryKills;
use crate::sys::poll::{Epoll, Event, EventBuffer, Interest};
use crate::sys::process;
use crate::worker::Worker;
use crate::zygote::Zygote;

const DOORBELL: u64 = 0;
const CONTROL: u64 = 1;
/// No worker's: there are not so many.
const STDERR: u64 = u64::MAX;

/// The descriptors of the worker with this number in the poll: its socket, and its pidfd.
const fn tokens(worker: u64) -> [u64; 2] {
    [2 * worker + 2, 2 * worker + 3]
}

/// The dispatcher, for everybody who may come to it; nothing once the pool is over.
pub(crate) struct Front {
    pub(crate) shared: Arc<Shared>,
    dispatcher: Mutex<Option<Dispatcher>>,
}

struct Dispatcher {
    shared: Arc<Shared>,
    epoll: Arc<Epoll>,
    zygote: Option<Zygote>,
    workers: BTreeMap<u64, Worker>,
    /// How many of them are dead, and wait for the fork server to tell what of.
    dead: usize,
    stderr: Stderr,
    memory_kills: MemoryKills,
    queue: Queue,
    /// Items whose worker died, and which are tried again later, by their job's order: with what it died of.
    delayed: BTreeMap<(u64, usize), (Part, TaskError)>,
    /// Workers with nothing to do, the one that was busy last on top.
    idle: Vec<u64>,
    /// The workers that were handed a task directly, by its id.
    direct: BTreeMap<usize, u64>,
    /// Workers with something to send.
    unsent: BTreeSet<u64>,
    /// Workers whose rings are looked at without their ringing.
    polled: Vec<u64>,
    /// Where what is in a ring is copied to.
    copies: Vec<u64>,
    /// Workers the fork server was asked for and has not answered.
    requested: BTreeSet<u64>,
    /// A descriptor kept free for the pidfd of each of them: one that cannot be received is a worker that cannot be
    /// watched.
    spare_fds: Vec<OwnedFd>,
    /// Workers in a row that could not be started.
    failed_starts: u32,
    /// Fork servers in a row that were lost, or could not be started, before a worker was set up.
    lost_servers: u32,
    /// No worker is started before, after several failures.
    start_after: Option<Instant>,
    next_worker: u64,
    next_order: u64,
    /// Indices of workers that are gone.
    free_indices: BTreeSet<usize>,
    next_index: usize,
    timers: BTreeSet<(Instant, Timer)>,
    /// Jobs with a deadline, by their order.
    deadlines: BTreeMap<u64, Arc<Job>>,
    /// Whether the pool was made smaller, and there may be more workers than it now has places for.
    may_be_too_many: bool,
    /// How long a task of each function takes, by a moving mean, in nanoseconds.
    means: BTreeMap<u64, u64>,
    /// Where to look for the next busy worker to give more to.
    prefetch_from: u64,
    ending: Option<Ending>,
    /// By what means workers are ended, if they are.
    stopping: Option<Means>,
}

/// How the pool ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ending {
    Finish,
    /// What comes into the queue is cancelled.
    Cancel,
    /// What comes into the queue fails with this reason.
    Broken(Box<str>),
}

impl Front {
    pub(crate) fn new(shared: Arc<Shared>, zygote: Zygote) -> io::Result<Self> {
        let dispatcher = Mutex::new(Some(Dispatcher::new(Arc::clone(&shared), zygote)?));
        Ok(Self { shared, dispatcher })
    }

    /// Runs until the pool is over. The dispatcher's thread.
    pub(crate) fn run(&self) {
        host::serve(self.shared.id);
        // Whatever goes wrong in here, nobody shall wait for ever.
        let served = panic_report::catch(|| self.serve());
        let dispatcher = self.dispatcher.lock().take();
        if let Some(mut dispatcher) = dispatcher {
            if let Err(report) = served {
                let reason: Box<str> = format!("the dispatcher failed: {report}").into();
                self.shared.refuse_from_now_on(Refusal::Broken(reason.clone()));
                panic_report::swallow(|| dispatcher.fail_everything(&TaskError::Broken(reason)));
            }
            dispatcher.workers.clear();
            dispatcher.dead = 0;
            dispatcher.idle.clear();
            panic_report::swallow(|| dispatcher.stderr.end());
            dispatcher.publish_numbers();
            panic_report::swallow(|| drop(dispatcher));
        }
        self.shared.abandon();
    }

    fn serve(&self) {
        let mut buffer = EventBuffer::with_capacity(256);
        let mut ready: Vec<Event> = Vec::new();
        loop {
            let mut guard = self.dispatcher.lock();
            let Some(dispatcher) = guard.as_mut() else { return };
            let ControlFlow::Continue(time_out) = dispatcher.turn(&ready) else { return };
            let epoll = Arc::clone(&dispatcher.epoll);
            drop(guard);
            ready.clear();
            match epoll.wait(&mut buffer, time_out) {
                Ok(events) => ready.extend(events),
                Err(error) => {
                    if let Some(dispatcher) = &mut *self.dispatcher.lock() {
                        dispatcher.break_down(format!("could not wait for events: {error}").into());
                    }
                    return;
                }
            }
        }
    }
}

impl Dispatcher {
    fn new(shared: Arc<Shared>, zygote: Zygote) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        epoll.add(shared.doorbell.as_fd(), Interest::Read, DOORBELL)?;
        epoll.add(zygote.control(), Interest::Read, CONTROL)?;
        let stderr = Stderr::new(shared.settings.zygote.stderr)?;
        epoll.add(stderr.fd(), Interest::Read, STDERR)?;
        Ok(Self {
            shared,
            epoll,
            zygote: Some(zygote),
            workers: BTreeMap::new(),
            dead: 0,
            stderr,
            memory_kills: MemoryKills::watch(),
            queue: Queue::default(),
            delayed: BTreeMap::new(),
            idle: Vec::new(),
            direct: BTreeMap::new(),
            unsent: BTreeSet::new(),
            polled: Vec::new(),
            copies: Vec::new(),
            requested: BTreeSet::new(),
            spare_fds: Vec::new(),
            failed_starts: 0,
            lost_servers: 0,
            start_after: None,
            next_worker: 0,
            next_order: 0,
            free_indices: BTreeSet::new(),
            next_index: 0,
            timers: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            may_be_too_many: false,
            means: BTreeMap::new(),
            prefetch_from: 0,
            ending: None,
            stopping: None,
        })
    }

    /// Deals with what was waited for, and whatever else there is; then says how long to wait for more, or that all is over.
    fn turn(&mut self, ready: &[Event]) -> ControlFlow<(), Option<Duration>> {
        if ready.iter().any(|event| event.token == STDERR) {
            self.copy_stderr();
        }
        for event in ready {
            self.handle_event(*event);
        }
        self.fire_timers();
        let had_mail = self.take_mail();
        let had_results = self.poll_rings();
        self.assign();
        self.send();
        if !had_mail && !had_results && self.is_over() {
            return ControlFlow::Break(());
        }
        self.publish_numbers();
        let has_more = had_mail || had_results || !self.arm_bells();
        ControlFlow::Continue(if has_more {
            Some(Duration::ZERO) // more may have come in meanwhile, and nobody has rung
        } else {
            self.timers.first().map(|(at, _)| at.saturating_duration_since(Instant::now()))
        })
    }

    fn publish_numbers(&self) {
        // ORDERING: relaxed: numbers to look at.
        self.shared.workers.store(self.workers.len() - self.dead, Ordering::Relaxed);
        self.shared.idle_workers.store(self.idle.len(), Ordering::Relaxed);
    }

    fn handle_event(&mut self, event: Event) {
        match event.token {
            DOORBELL => self.shared.doorbell.clear(),
            CONTROL => self.hear_fork_server(),
            STDERR => {}
            token => {
                let worker = token / 2 - 1;
                if token == tokens(worker)[0] {
                    if event.ready.writable {
                        self.unsent.insert(worker);
                    }
                    if event.ready.readable || event.ready.closed {
                        self.read(worker);
                    }
                } else {
                    self.see_death(worker);
                }
            }
        }
    }

    fn copy_stderr(&mut self) {
        if !self.stderr.copy() {
            self.pause_stderr();
        }
    }

    /// Passes on what the worker has printed until now: its answers up to now may be told then.
    fn copy_stderr_of(&mut self, number: u64) {
        if self.stderr.takes_more() && !self.stderr.copy_of(number) {
            self.pause_stderr();
        }
    }

    fn pause_stderr(&mut self) {
        // It takes nothing: so nothing is read for it.
        let _ = self.epoll.remove(self.stderr.fd());
        self.timers.insert((Instant::now() + stderr::PAUSE, Timer::Stderr));
    }

    pub(super) fn try_stderr_again(&mut self) {
        if !self.stderr.flush() || self.epoll.add(self.stderr.fd(), Interest::Read, STDERR).is_err() {
            self.timers.insert((Instant::now() + stderr::PAUSE, Timer::Stderr));
        }
    }

    // --- what handles ask for ---

    /// Deals with what is in the inbox; says whether there was anything.
    fn take_mail(&mut self) -> bool {
        let Mail { jobs, commands } = self.shared.collect();
        let had_mail = !jobs.is_empty() || !commands.is_empty();
        for job in jobs {
            let order = self.next_order;
            self.next_order += 1;
            job.set_order(order);
            if let Some(deadline) = job.deadline() {
                self.timers.insert((deadline, Timer::Deadline { order }));
                self.deadlines.insert(order, Arc::clone(&job));
            }
            self.enqueue(Part::whole(job));
        }
        for command in commands {
            match command {
                Command::Finish => drop(self.ending.get_or_insert(Ending::Finish)),
                Command::Cancel => self.cancel_unbegun(),
                Command::Stop(means) => {
                    self.cancel_unbegun();
                    self.stop_workers(means);
                }
                Command::Abort(id) => self.abort(id),
                Command::Resize => self.resize(),
                Command::Sweep => {
                    for part in self.queue.take_cancelled() {
                        self.leave_queue(&part.job);
                    }
                }
                Command::Look(number) => {
                    self.polled.push(number);
                    self.read_ring(number);
                }
                Command::Release(segment) => {
                    for (number, worker) in &mut self.workers {
                        if worker.release(segment) {
                            self.unsent.insert(*number);
                        }
                    }
                }
                Command::Workers(promise) => {
                    let mut workers: Vec<_> = self.workers.values().map(|w| (w.index, w.info())).collect();
                    workers.sort_by_key(|(index, _)| *index);
                    promise.complete(Ok(workers.into_iter().map(|(_, info)| info).collect()));
                }
            }
        }
        had_mail
    }

    fn cancel_unbegun(&mut self) {
        if !matches!(self.ending, Some(Ending::Broken(_))) {
            self.ending = Some(Ending::Cancel);
        }
        for part in self.queue.take_all() {
            self.enqueue(part); // which cancels it now
        }
        self.end_retries();
        let numbers: Vec<u64> = self.workers.keys().copied().collect();
        for number in numbers {
            self.revoke(number);
        }
    }

    fn stop_workers(&mut self, means: Means) {
        self.stopping = Some(means);
        let numbers: Vec<u64> = self.workers.keys().copied().collect();
        for number in numbers {
            self.stop_worker(number, means);
        }
    }

    /// Ends a worker by this means; one that is still being forked, when the fork server has said that it is there.
    pub(super) fn stop_worker(&mut self, number: u64, means: Means) {
        if means == Means::Kill || self.shared.settings.termination_grace.is_zero() {
            return self.kill(number);
        }
        self.idle.retain(|idle| *idle != number);
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.is_ending = true;
            if let Some(process) = &worker.process {
                // One that has ended already is as good.
                let _ = process::terminate_by_pidfd(process.pidfd.as_fd());
            }
            let grace = self.shared.settings.termination_grace;
            self.timers.insert((Instant::now() + grace, Timer::Grace { worker: number }));
        }
    }

    /// Ends the running job with this id; one that waits is cancelled.
    fn abort(&mut self, id: usize) {
        let waiting = self.queue.iter().chain(self.delayed.values().map(|(part, _)| part));
        let held = self.workers.values().flat_map(|worker| worker.legs.iter().map(|leg| &leg.part));
        let job = waiting.chain(held).find(|part| part.job.id() == id).map(|part| Arc::clone(&part.job));
        if let Some(job) = job {
            self.end_parts(&job, &TaskError::Cancelled);
        }
    }

    // --- the end ---

    /// Whether everything is done that was asked for. Workers are told to end when nothing is left for them.
    fn is_over(&mut self) -> bool {
        if self.ending.is_none() || !self.queue.is_empty() || !self.delayed.is_empty() {
            return false;
        }
        let idle: Vec<u64> = self.workers.values().filter(|w| w.legs.is_empty()).map(|w| w.number).collect();
        for number in idle {
            self.retire(number);
        }
        self.workers.is_empty()
    }

    /// Breaks the pool: whatever waits, and whatever is submitted later, fails with `reason`.
    fn break_down(&mut self, reason: Box<str>) {
        self.shared.refuse_from_now_on(Refusal::Broken(reason.clone()));
        self.ending = Some(Ending::Broken(reason.clone()));
        self.fail_everything(&TaskError::Broken(reason));
    }

    fn fail_everything(&mut self, error: &TaskError) {
        let mut parts: Vec<Part> = self.queue.take_all().collect();
        // What has begun may finish.
        parts.extend(self.workers.values_mut().flat_map(Worker::revoke));
        parts.extend(std::mem::take(&mut self.delayed).into_values().map(|(part, _)| part));
        for part in parts {
            self.fail(&part.job, error.clone());
        }
    }
}
