//! The dispatcher: one thread that owns everything a process pool knows.
//!
//! ```text
//!   inbox ──► queue ──hand over──► worker ──reply──► job ──► future
//!               ▲                    │
//!               └──── taken back ────┘   when it dies, is stuck behind a long task, or the pool shuts down
//! ```
//!
//! It waits in one poll for the inbox's doorbell, the fork server, the workers' sockets and their pidfds, with the next
//! time limit as time-out. No other thread touches what it owns, so there is no lock here, and no order of locks.
//! Results are decoded and callbacks run on it (S3); a wait on it for a task of its own pool is an error (see
//! [`host::serve`]).
//!
//! # Who gets what
//!
//! An idle worker is used first, the one that was busy last; then a new one is started, up to `max_workers`; then busy
//! workers get more than they are at, but only of functions known to be quick: about [`PREFETCH`] of predicted work,
//! counted in time and not in tasks, since what waits behind a long task waits for nothing. If a task turns out longer
//! than [`STUCK`] all the same, what was handed over behind it is revoked and goes elsewhere.
//!
//! # Deaths
//!
//! A worker's end is known by its pidfd and told by the fork server with its cause. First the socket is read to its end;
//! what was answered is done. Then the [`gate`](crate::gate) tells the one task it was at, if any: that one has failed (or
//! is tried again if asked for). The rest has not begun and goes back to its place in the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use executor_core::admission::Refusal;
use executor_core::{Limit, TaskError, WorkerDeath, host, panic_report};

use crate::job::{Ended, Job, Part, read_answer};
use crate::shared::{Command, Mail, Means, Shared};
use crate::sync::{Arc, Ordering};
use crate::sys::memory::SharedPage;
use crate::sys::poll::{Epoll, Event, EventBuffer, Interest};
use crate::sys::{process, socket};
use crate::wire::{Garbage, HEADER, Header, Kind, Status};
use crate::worker::{Process, Read, Worker};
use crate::zygote::{Exit, Notice, Zygote};

/// How much predicted work a worker may hold beyond the task it is at. More hides the way to the parent and back, two
/// wake-ups of some 25 µs each; less waits less behind a task that is longer than predicted.
const PREFETCH: Duration = Duration::from_micros(100);

/// The most tasks a worker may hold, for functions too quick to measure.
const LARGEST_LOAD: usize = 256;

/// After this long in one task, what was handed over behind it is revoked. Shorter revokes work that was about to run;
/// longer keeps it from idle workers.
const STUCK: Duration = Duration::from_millis(1);

/// Busy workers looked at for one more part, each time.
const PREFETCH_CANDIDATES: usize = 64;

/// Workers being forked at the same time: their descriptors are in flight, and the system bounds those.
const MOST_REQUESTED: usize = 64;

/// So many workers in a row that die before they are set up break the pool.
const MOST_FAILED_STARTS: u32 = 16;

/// So many failed starts in a row are followed by another at once.
const PATIENCE: u32 = 4;

/// The pause after the next one; doubled after each.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);

/// How long a worker may take to end after it was told to, before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// Reads of one worker's socket in a row, before others get their turn.
const READS: usize = 16;

const DOORBELL: u64 = 0;
const CONTROL: u64 = 1;

/// The descriptors of the worker with this number in the poll: its socket, and its pidfd.
const fn tokens(worker: u64) -> [u64; 2] {
    [2 * worker + 2, 2 * worker + 3]
}

pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    epoll: Epoll,
    zygote: Option<Zygote>,
    workers: BTreeMap<u64, Worker>,
    /// Higher priority first, then first come first served: parts that come back take their old place.
    queue: BTreeMap<(i64, u64, usize), Part>,
    /// Workers with nothing to do, the one that was busy last on top.
    idle: Vec<u64>,
    /// Workers with something to send.
    unsent: BTreeSet<u64>,
    /// Workers the fork server was asked for and has not answered.
    requested: BTreeSet<u64>,
    /// A descriptor kept free for the pidfd of each of them: one that cannot be received is a worker that cannot be
    /// watched.
    spare_fds: Vec<OwnedFd>,
    failed_starts: u32,
    /// No worker is started before, after several failures.
    start_after: Option<Instant>,
    next_worker: u64,
    next_order: u64,
    /// Indices of workers that are gone.
    free_indices: BTreeSet<usize>,
    next_index: usize,
    timers: BTreeSet<(Instant, Timer)>,
    /// Jobs with a deadline, by their order.
    deadlines: BTreeMap<u64, Rc<Job>>,
    /// How long a task of each function takes, by a moving mean, in nanoseconds.
    means: BTreeMap<u64, u64>,
    /// Where to look for the next busy worker to give more to.
    prefetch_from: u64,
    ending: Option<Ending>,
}

/// How the pool ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Finish,
    /// What comes back into the queue is cancelled.
    Cancel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The worker's task with this number has run for as long as it may.
    TimeOut { worker: u64, number: u64 },
    /// Time to see whether the worker is still at the task with this number.
    Stuck { worker: u64, number: u64 },
    /// The deadline of the job with this order.
    Deadline { order: u64 },
    /// Time to see whether the worker has been idle for long enough.
    KeepAlive { worker: u64 },
    /// The worker should have ended by now.
    Grace { worker: u64 },
    /// Workers may be started again.
    Start,
}

impl Dispatcher {
    pub(crate) fn new(shared: Arc<Shared>, zygote: Zygote) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(shared.doorbell.as_fd(), Interest::Read, DOORBELL)?;
        epoll.add(zygote.control(), Interest::Read, CONTROL)?;
        Ok(Self {
            shared,
            epoll,
            zygote: Some(zygote),
            workers: BTreeMap::new(),
            queue: BTreeMap::new(),
            idle: Vec::new(),
            unsent: BTreeSet::new(),
            requested: BTreeSet::new(),
            spare_fds: Vec::new(),
            failed_starts: 0,
            start_after: None,
            next_worker: 0,
            next_order: 0,
            free_indices: BTreeSet::new(),
            next_index: 0,
            timers: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            means: BTreeMap::new(),
            prefetch_from: 0,
            ending: None,
        })
    }

    /// Runs until the pool is over. The dispatcher's thread.
    pub(crate) fn run(mut self) {
        host::serve(self.shared.id);
        let shared = Arc::clone(&self.shared);
        // Whatever goes wrong in here, nobody shall wait for ever.
        if let Err(report) = panic_report::catch(|| self.serve()) {
            let reason: Box<str> = format!("the dispatcher failed: {report}").into();
            shared.refuse_from_now_on(Refusal::Broken(reason.clone()));
            panic_report::swallow(|| self.fail_everything(&TaskError::Broken(reason)));
        }
        self.workers.clear();
        self.idle.clear();
        self.publish_numbers();
        panic_report::swallow(|| drop(self));
        shared.abandon();
    }

    fn serve(&mut self) {
        let mut events = EventBuffer::with_capacity(256);
        loop {
            let had_mail = self.take_mail();
            self.assign();
            self.send();
            if !had_mail && self.is_over() {
                return;
            }
            self.publish_numbers();
            let time_out = if had_mail {
                Some(Duration::ZERO) // more may have come in meanwhile, and nobody has rung
            } else {
                self.timers.first().map(|(at, _)| at.saturating_duration_since(Instant::now()))
            };
            let ready: Vec<Event> = match self.epoll.wait(&mut events, time_out) {
                Ok(ready) => ready.collect(),
                Err(error) => return self.break_down(format!("could not wait for events: {error}").into()),
            };
            for event in ready {
                self.handle_event(event);
            }
            self.fire_timers();
        }
    }

    fn publish_numbers(&self) {
        // ORDERING: relaxed: numbers to look at.
        self.shared.workers.store(self.workers.len(), Ordering::Relaxed);
        self.shared.idle_workers.store(self.idle.len(), Ordering::Relaxed);
    }

    fn handle_event(&mut self, event: Event) {
        match event.token {
            DOORBELL => self.shared.doorbell.clear(),
            CONTROL => self.hear_fork_server(),
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

    // --- what handles ask for ---

    /// Deals with what is in the inbox; says whether there was anything.
    fn take_mail(&mut self) -> bool {
        let Mail { submissions, commands } = self.shared.collect();
        let had_mail = !submissions.is_empty() || !commands.is_empty();
        for submission in submissions {
            let order = self.next_order;
            self.next_order += 1;
            let job = Job::new(submission, order);
            if let Some(deadline) = job.submission.deadline {
                self.timers.insert((deadline, Timer::Deadline { order }));
                self.deadlines.insert(order, Rc::clone(&job));
            }
            self.enqueue(Part::whole(job));
        }
        for command in commands {
            match command {
                Command::Finish => self.ending = self.ending.or(Some(Ending::Finish)),
                Command::Cancel => self.cancel_unbegun(),
                Command::Stop(means) => {
                    self.cancel_unbegun();
                    self.stop_workers(means);
                }
                Command::Abort(id) => self.abort(id),
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
        self.ending = Some(Ending::Cancel);
        for part in std::mem::take(&mut self.queue).into_values() {
            self.cancel(&part.job);
        }
        let numbers: Vec<u64> = self.workers.keys().copied().collect();
        for number in numbers {
            self.revoke(number);
        }
    }

    fn stop_workers(&mut self, means: Means) {
        for (number, worker) in &mut self.workers {
            worker.is_ending = true;
            if let Some(process) = &worker.process {
                // One that has ended already is as good.
                let _ = match means {
                    Means::Terminate => process::terminate_by_pidfd(process.pidfd.as_fd()),
                    Means::Kill => process::kill_by_pidfd(process.pidfd.as_fd()),
                };
            } else {
                worker.close();
            }
            if means == Means::Terminate {
                self.timers.insert((Instant::now() + GRACE, Timer::Grace { worker: *number }));
            }
        }
        self.idle.clear();
    }

    /// Ends the running job with this id; one that waits is cancelled.
    fn abort(&mut self, id: usize) {
        if let Some((key, part)) = self.queue.iter().find(|(_, part)| part.job.id() == id) {
            let (key, job) = (*key, Rc::clone(&part.job));
            self.queue.remove(&key);
            self.cancel(&job);
        }
        let holders: Vec<u64> = self
            .workers
            .values()
            .filter(|worker| worker.legs.iter().any(|leg| leg.part.job.id() == id))
            .map(|worker| worker.number)
            .collect();
        for number in holders {
            self.read(number);
            let at_work = self.workers.get(&number).and_then(|worker| {
                let task = worker.at_work_on()?;
                (worker.legs.front()?.part.job.id() == id).then_some(task)
            });
            match at_work {
                Some(task) => self.kill_for(number, task, TaskError::Cancelled),
                None => self.revoke(number),
            }
        }
        // Taken back above, if it had not begun.
        if let Some(job) =
            self.queue.values().find(|part| part.job.id() == id).map(|part| Rc::clone(&part.job))
        {
            self.cancel(&job);
        }
    }

    // --- the queue ---

    fn enqueue(&mut self, part: Part) {
        let job = &part.job;
        if job.is_over() {
            return self.leave_queue(job);
        }
        if self.ending == Some(Ending::Cancel) {
            let job = Rc::clone(job);
            return self.cancel(&job);
        }
        let key = (-i64::from(job.submission.priority), job.order, part.items.start);
        self.queue.insert(key, part);
    }

    /// Takes back parts that have not begun.
    fn requeue(&mut self, parts: Vec<Part>) {
        for part in parts {
            part.job.unreserve();
            self.enqueue(part);
        }
    }

    fn leave_queue(&self, job: &Job) {
        if job.leave_queue() {
            self.shared.capacity.give_back();
        }
    }

    fn cancel(&self, job: &Job) {
        self.leave_queue(job);
        let ended = job.cancel();
        self.count_end(ended);
    }

    fn fail(&self, job: &Job, error: TaskError) {
        self.leave_queue(job);
        let ended = job.fail(error);
        self.count_end(ended);
    }

    fn count_end(&self, ended: Ended) {
        match ended {
            Ended::Before => {}
            Ended::Unstarted => self.shared.counters.cancelled(),
            Ended::Running => self.shared.counters.finished(executor_core::counters::Ending::Returned),
        }
    }

    /// An item is answered.
    fn answer(&mut self, part: &Part, answer: Result<&[u8], TaskError>, took: Duration) {
        // Counted before anybody can learn of it.
        if let Some(finished) = part.job.answer(part.items.start, answer, took) {
            self.shared.counters.finished(finished.ending);
            self.deadlines.remove(&part.job.order);
            finished.publish();
        }
    }

    // --- handing over ---

    fn assign(&mut self) {
        while !self.queue.is_empty() {
            let worker = self.idle.pop().or_else(|| self.start_worker()).or_else(|| self.quick_worker());
            let Some(worker) = worker else { break };
            self.hand_over(worker);
        }
    }

    /// Hands the next part over; if there is none after all, the worker is idle.
    fn hand_over(&mut self, number: u64) {
        while let Some((_, mut part)) = self.queue.pop_first() {
            let job = Rc::clone(&part.job);
            if job.is_over() || !job.reserve() {
                self.leave_queue(&job);
                continue;
            }
            self.leave_queue(&job);
            let Some(worker) = self.workers.get_mut(&number) else {
                return self.requeue(vec![part]);
            };
            if let Some(most) = self.shared.settings.max_tasks_per_worker {
                let left = most.saturating_sub(worker.handed);
                if let Some(rest) = part.split_off(usize::try_from(left).unwrap_or(usize::MAX)) {
                    self.enqueue(rest);
                }
            }
            let Some(worker) = self.workers.get_mut(&number) else { return };
            let was_idle = worker.legs.is_empty();
            worker.hand_over(part);
            if was_idle {
                worker.busy_since = None;
            }
            self.unsent.insert(number);
            if was_idle {
                self.begin_task(number);
            } else {
                self.watch_for_stuck(number);
            }
            return;
        }
        if let Some(worker) = self.workers.get(&number)
            && worker.legs.is_empty()
            && !worker.is_ending
            && !self.idle.contains(&number)
        {
            self.idle.push(number);
        }
    }

    /// The worker is at the first of its tasks now, as far as is known here.
    fn begin_task(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        let Some(leg) = worker.legs.front() else { return };
        if leg.part.job.start() {
            self.shared.counters.started();
        }
        if !worker.is_ready {
            return; // its time starts when it is set up
        }
        let now = Instant::now();
        worker.busy_since = Some(now);
        let task = leg.first;
        if let Some(end) = leg.part.job.submission.timeout.and_then(|timeout| now.checked_add(timeout)) {
            let timer = (end, Timer::TimeOut { worker: number, number: task });
            self.timers.insert(timer);
            worker.time_out = Some(end);
        }
        self.watch_for_stuck(number);
    }

    /// Looks again later if something waits behind the task the worker is at. One such timer a worker.
    fn watch_for_stuck(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        if worker.load > 1 && !worker.is_watched {
            let Some(leg) = worker.legs.front() else { return };
            worker.is_watched = true;
            self.timers.insert((Instant::now() + STUCK, Timer::Stuck { worker: number, number: leg.first }));
        }
    }

    /// Starts a worker if there may be one more; it can be handed tasks at once.
    fn start_worker(&mut self) -> Option<u64> {
        let may_start = self.workers.len() < self.shared.settings.max_workers
            && self.requested.len() < MOST_REQUESTED
            && self.start_after.is_none_or(|after| Instant::now() >= after);
        if !may_start {
            return None;
        }
        let number = self.next_worker;
        match self.request_worker(number) {
            Ok(()) => Some(number),
            Err(error) => {
                // The fork server may just be busy: what it says next tells when to ask again.
                if error.kind() != io::ErrorKind::WouldBlock || self.requested.is_empty() {
                    self.count_failed_start(&format!("could not ask for a worker process: {error}"));
                }
                None
            }
        }
    }

    fn request_worker(&mut self, number: u64) -> io::Result<()> {
        let zygote = self.zygote.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let (ours, theirs) = socket::stream_pair()?;
        let (page, page_file) = SharedPage::create()?;
        let spare = self.shared.doorbell.as_fd().try_clone_to_owned()?;
        self.epoll.add(ours.as_fd(), Interest::Read, tokens(number)[0])?;
        zygote.request_worker(number, theirs.as_fd(), page_file.as_fd())?;
        self.next_worker += 1;
        let index = self.free_indices.pop_first().unwrap_or_else(|| {
            self.next_index += 1;
            self.next_index - 1
        });
        let name = format!("{}-{index}", self.shared.settings.prefix);
        let mut worker = Worker::new(number, index, name, ours, page);
        worker.write_frame(Kind::Setup, 0, &self.shared.settings.setup);
        self.workers.insert(number, worker);
        self.requested.insert(number);
        self.spare_fds.push(spare);
        self.unsent.insert(number);
        Ok(())
    }

    /// A busy worker that may be given the next part on top of what it has.
    fn quick_worker(&mut self) -> Option<u64> {
        let (_, part) = self.queue.first_key_value()?;
        let mean = Duration::from_nanos(*self.means.get(&part.job.submission.head.function)?);
        let most = PREFETCH.as_nanos() / mean.as_nanos().max(1);
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(LARGEST_LOAD);
        if most == 0 {
            return None;
        }
        let from = self.prefetch_from;
        let found = self
            .workers
            .range(from..)
            .chain(self.workers.range(..from))
            .take(PREFETCH_CANDIDATES)
            .find(|(_, worker)| {
                worker.is_ready
                    && worker.load > 0
                    && worker.load <= most
                    && worker.busy_since.is_none_or(|since| since.elapsed() < STUCK)
                    && self.takes_more(worker)
            })
            .map(|(number, _)| *number)?;
        self.prefetch_from = found + 1;
        Some(found)
    }

    fn takes_more(&self, worker: &Worker) -> bool {
        let most = self.shared.settings.max_tasks_per_worker;
        !worker.is_ending && most.is_none_or(|most| worker.handed < most)
    }

    fn send(&mut self) {
        for number in std::mem::take(&mut self.unsent) {
            let Some(worker) = self.workers.get_mut(&number) else { continue };
            // A worker that does not listen any more is about to be seen dead.
            let Ok(is_left) = worker.flush() else { continue };
            if is_left != worker.waits_to_write {
                let interest = if is_left { Interest::ReadWrite } else { Interest::Read };
                if self.epoll.modify(worker.socket().as_fd(), interest, tokens(number)[0]).is_ok() {
                    worker.waits_to_write = is_left;
                }
            }
        }
    }

    // --- replies ---

    fn read(&mut self, number: u64) {
        for _ in 0..READS {
            let Some(worker) = self.workers.get_mut(&number) else { return };
            if worker.is_drained {
                return;
            }
            let read = worker.read();
            if self.handle_frames(number) == Err(Garbage) {
                return self.distrust(number);
            }
            match read {
                Ok(Read::Full) => {}
                Ok(Read::Some | Read::Nothing) => return,
                Ok(Read::End) | Err(_) => return self.see_end(number),
            }
        }
    }

    fn handle_frames(&mut self, number: u64) -> Result<(), Garbage> {
        let Some(worker) = self.workers.get_mut(&number) else { return Ok(()) };
        let (input, filled) = worker.take_input();
        let mut used = 0;
        let mut outcome = Ok(());
        while let Ok(Some((header, body))) =
            self.next_frame(number, &input[used..filled]).inspect_err(|_| outcome = Err(Garbage))
        {
            used += HEADER + body.len();
            outcome = self.handle_frame(number, header, body);
            if outcome.is_err() {
                break;
            }
        }
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.consumed(input, used);
        }
        outcome
    }

    /// The frame at the beginning of `bytes`, if it is there as a whole; refused as soon as its header is, if it is out of
    /// turn.
    fn next_frame<'a>(&self, worker: u64, bytes: &'a [u8]) -> Result<Option<(Header, &'a [u8])>, Garbage> {
        let Some(header) = Header::decode(bytes)? else { return Ok(None) };
        let is_expected = self.workers.get(&worker).is_some_and(|worker| match header.kind {
            Kind::Ready => !worker.is_ready,
            Kind::Reply => worker.at_work_on() == Some(header.number),
            _ => false,
        });
        if !is_expected {
            return Err(Garbage);
        }
        // An error's text may be a little longer than the longest result.
        if header.length > self.shared.settings.message_limit.saturating_add(64 * 1024) {
            return Err(Garbage);
        }
        let length = usize::try_from(header.length).map_err(|_| Garbage)?;
        Ok(bytes.get(HEADER..HEADER + length).map(|body| (header, body)))
    }

    fn handle_frame(&mut self, number: u64, header: Header, body: &[u8]) -> Result<(), Garbage> {
        let Some(worker) = self.workers.get_mut(&number) else { return Ok(()) };
        match header.kind {
            Kind::Ready => {
                if header.status == Status::Failed {
                    let problem = String::from_utf8_lossy(body);
                    let reason = format!("the initializer of {} failed: {problem}", worker.name);
                    self.break_down(reason.into());
                    return Ok(());
                }
                worker.is_ready = true;
                self.failed_starts = 0;
                self.begin_task(number);
                Ok(())
            }
            Kind::Reply => {
                let part = worker.match_reply(header.number)?;
                let limit = self.shared.settings.message_limit;
                let answer = read_answer(header.status, body, &worker.name, part.job.label(), limit);
                let is_idle = worker.legs.is_empty();
                worker.busy_since = None;
                if is_idle {
                    worker.idle_since = Instant::now();
                }
                if let Some(end) = worker.time_out.take() {
                    self.timers.remove(&(end, Timer::TimeOut { worker: number, number: header.number }));
                }
                self.learn(part.job.submission.head.function, header.time);
                if is_idle {
                    self.rest(number);
                } else {
                    self.begin_task(number);
                }
                self.answer(&part, answer, Duration::from_nanos(header.time));
                Ok(())
            }
            _ => Err(Garbage),
        }
    }

    fn learn(&mut self, function: u64, nanoseconds: u64) {
        let mean = self.means.entry(function).or_insert(nanoseconds);
        // Quick to believe that a function is slow, slow to believe that it is quick.
        *mean =
            if nanoseconds > *mean { (*mean + nanoseconds) / 2 } else { *mean - (*mean - nanoseconds) / 8 };
    }

    /// A worker has nothing to do: it waits for more, or ends if it has done its share.
    fn rest(&mut self, number: u64) {
        let Some(worker) = self.workers.get(&number) else { return };
        if worker.is_ending {
            return;
        }
        if !self.takes_more(worker) {
            return self.retire(number);
        }
        self.idle.push(number);
        self.watch_for_rest(number);
    }

    /// Looks whether the worker has been idle for long enough, when it may have been. One such timer a worker.
    fn watch_for_rest(&mut self, number: u64) {
        let Some(keep_alive) = self.shared.settings.keep_alive else { return };
        let Some(worker) = self.workers.get_mut(&number) else { return };
        if let Some(end) = worker.idle_since.checked_add(keep_alive)
            && !std::mem::replace(&mut worker.is_watched_idle, true)
        {
            self.timers.insert((end, Timer::KeepAlive { worker: number }));
        }
    }

    fn retire(&mut self, number: u64) {
        self.idle.retain(|idle| *idle != number);
        if let Some(worker) = self.workers.get_mut(&number)
            && !worker.is_ending
        {
            // What is still unsent goes first, if the socket takes it; the worker needs none of it.
            let _ = worker.flush();
            worker.close();
            self.timers.insert((Instant::now() + GRACE, Timer::Grace { worker: number }));
        }
    }

    // --- taking back ---

    fn revoke(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        let parts = worker.revoke();
        if parts.is_empty() {
            return;
        }
        let is_idle = worker.legs.is_empty();
        self.requeue(parts);
        if is_idle {
            self.rest(number);
        }
    }

    /// Kills a worker because of the task it is at: what waits behind it is saved first, and if the worker has gone on
    /// meanwhile, it lives.
    fn kill_for(&mut self, number: u64, task: u64, verdict: TaskError) {
        self.revoke(number);
        self.read(number);
        let Some(worker) = self.workers.get_mut(&number) else { return };
        if worker.at_work_on() != Some(task) {
            return;
        }
        worker.verdict = Some((task, verdict));
        self.kill(number);
    }

    fn kill(&mut self, number: u64) {
        self.idle.retain(|idle| *idle != number);
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.is_ending = true;
            if let Some(process) = &worker.process {
                // One that has ended already is as good.
                let _ = process::kill_by_pidfd(process.pidfd.as_fd());
            } else {
                worker.close();
            }
        }
    }

    /// A worker sent what no worker sends.
    fn distrust(&mut self, number: u64) {
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.is_ending = true;
            worker.is_drained = true; // nothing of what it says counts any more
            let _ = self.epoll.remove(worker.socket().as_fd());
        }
        self.revoke(number); // it goes on until the signal comes
        self.kill(number);
    }

    // --- deaths ---

    /// A worker's connection is at its end: it is dead, or as good as dead.
    fn see_end(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        worker.is_drained = true;
        let _ = self.epoll.remove(worker.socket().as_fd());
        if !worker.is_ending {
            self.kill(number);
        }
    }

    /// A worker's process has ended. The cause comes from the fork server.
    fn see_death(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        worker.is_ending = true;
        worker.is_dead = true;
        if let Some(process) = &worker.process {
            let _ = self.epoll.remove(process.pidfd.as_fd());
        }
        self.idle.retain(|idle| *idle != number);
        self.drain(number);
        if self.workers.get(&number).is_some_and(|worker| worker.is_orphan) {
            self.settle(number, None);
        }
    }

    /// Reads what a dead worker has sent, to the end.
    fn drain(&mut self, number: u64) {
        loop {
            let Some(worker) = self.workers.get_mut(&number) else { return };
            if worker.is_drained {
                return;
            }
            let read = worker.read();
            if self.handle_frames(number).is_err() || !matches!(read, Ok(Read::Full | Read::Some)) {
                break;
            }
        }
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.is_drained = true;
            let _ = self.epoll.remove(worker.socket().as_fd());
        }
    }

    fn hear_fork_server(&mut self) {
        loop {
            let Some(zygote) = &self.zygote else { return };
            // Room for one pidfd. What is not used is taken again, if it still can be.
            let had_spare = self.spare_fds.pop().is_some();
            let notice = zygote.receive();
            let is_answer = matches!(notice, Ok(Some(Notice::Forked { .. } | Notice::ForkFailed { .. })));
            if had_spare && !is_answer {
                self.spare_fds.extend(self.shared.doorbell.as_fd().try_clone_to_owned());
            }
            match notice {
                Ok(Some(notice)) => self.handle_notice(notice),
                Ok(None) => return,
                Err(_) => return self.lose_fork_server(),
            }
        }
    }

    fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Forked { worker: number, pid, pidfd } => {
                self.requested.remove(&number);
                let Some(worker) = self.workers.get_mut(&number) else { return };
                let is_watched = self.epoll.add(pidfd.as_fd(), Interest::Read, tokens(number)[1]).is_ok();
                worker.process = Some(Process { pid, pidfd });
                // A worker that cannot be watched cannot be relied upon; one that should end was not told to yet.
                if !is_watched || worker.is_ending {
                    self.kill(number);
                }
            }
            Notice::ForkFailed { worker: number, error } => {
                let Some(worker) = self.workers.get_mut(&number) else { return };
                worker.close();
                worker.is_ready = true; // not one that died while it started: it is counted here
                worker.is_orphan = true;
                // Short of descriptors, there may be a worker all the same: from here on it begins nothing.
                self.revoke(number);
                self.see_death(number);
                self.count_failed_start(&format!("could not fork a worker process: {error}"));
            }
            Notice::Ended { worker, pid, exit, cpu_time, peak_memory } => {
                self.see_death(worker);
                self.settle(worker, Some(Cause { pid, exit, cpu_time, peak_memory }));
            }
        }
    }

    /// A worker is gone: its task has failed, what it had not begun goes back, its place is free.
    fn settle(&mut self, number: u64, cause: Option<Cause>) {
        let Some(mut worker) = self.workers.remove(&number) else { return };
        self.requested.remove(&number);
        self.unsent.remove(&number);
        self.free_indices.insert(worker.index);
        let run_time = worker.busy_since.map_or(Duration::ZERO, |since| since.elapsed());
        let remains = worker.take_remains();
        let has_begun = !remains.victims.is_empty();
        for (victim, verdict) in remains.victims {
            let error = verdict.unwrap_or_else(|| self.death_of(&worker, &victim, cause, run_time));
            if matches!(error, TaskError::WorkerDied(_)) && victim.job.may_retry() {
                self.enqueue(victim);
            } else {
                self.answer(&victim, Err(error), run_time);
            }
        }
        self.requeue(remains.unbegun);
        if !worker.is_ready && !has_begun && self.ending.is_none() {
            let how =
                cause.map_or_else(|| "for an unknown reason".to_owned(), |cause| format!("{:?}", cause.exit));
            self.count_failed_start(&format!("worker process {} died while it started: {how}", worker.pid()));
        }
    }

    fn death_of(
        &self,
        worker: &Worker,
        victim: &Part,
        cause: Option<Cause>,
        run_time: Duration,
    ) -> TaskError {
        let mut death = WorkerDeath::new(worker.pid(), run_time);
        death.label = victim.job.label().map(str::to_owned);
        if let Some(cause) = cause {
            death.pid = cause.pid;
            death.cpu_time = cause.cpu_time;
            death.peak_memory = cause.peak_memory;
            match cause.exit {
                Exit::Code(code) => death.exit_code = Some(code),
                Exit::Signal { number, core } => {
                    death.signal = Some(number);
                    death.core_dumped = core;
                }
            }
        }
        let has_cpu_limit = self.shared.settings.has_cpu_time_limit;
        if has_cpu_limit && death.signal == Some(process::CPU_LIMIT_SIGNAL) {
            return TaskError::LimitExceeded(Limit::CpuTime);
        }
        TaskError::WorkerDied(death)
    }

    fn count_failed_start(&mut self, problem: &str) {
        self.failed_starts += 1;
        let is_anybody_left = self.workers.values().any(|worker| worker.is_ready && !worker.is_ending);
        if self.failed_starts >= MOST_FAILED_STARTS && !is_anybody_left {
            let reason =
                format!("{MOST_FAILED_STARTS} workers in a row could not be started; the last: {problem}");
            return self.break_down(reason.into());
        }
        // The first ones may be bad luck; then each waits twice as long as the one before.
        if let Some(doublings) = self.failed_starts.checked_sub(PATIENCE) {
            let after = Instant::now() + SHORTEST_PAUSE * 2_u32.pow(doublings.min(8));
            self.start_after = Some(after);
            self.timers.insert((after, Timer::Start));
        }
    }

    /// The fork server is gone, and with it, by the kernel's hand, all workers. Their sockets still hold what they had
    /// answered. A new one takes its place.
    fn lose_fork_server(&mut self) {
        let Some(zygote) = self.zygote.take() else { return };
        let lost = format!("the fork server, process {}, was lost", zygote.pid());
        let _ = self.epoll.remove(zygote.control());
        zygote.stop();
        let numbers: Vec<u64> = self.workers.keys().copied().collect();
        for number in numbers {
            let Some(worker) = self.workers.get_mut(&number) else { continue };
            worker.is_orphan = true;
            worker.is_ending = true;
            // One that was forked, and not reported any more, begins nothing from here on.
            self.revoke(number);
            let Some(worker) = self.workers.get_mut(&number) else { continue };
            match &worker.process {
                Some(process) if !worker.is_dead => {
                    // Its own children too. Their group keeps its number as long as one of them is there; that an empty
                    // one's were given away in these few moments would take a turn through all process ids.
                    process::kill_group(process.pid);
                    self.kill(number);
                }
                _ => self.see_death(number),
            }
        }
        self.requested.clear();
        self.spare_fds.clear();
        if self.ending.is_some() && self.queue.is_empty() {
            return;
        }
        match Zygote::start(&self.shared.settings.zygote) {
            Ok(zygote) => {
                if let Err(error) = self.epoll.add(zygote.control(), Interest::Read, CONTROL) {
                    return self.break_down(format!("could not watch the fork server: {error}").into());
                }
                self.zygote = Some(zygote);
                self.count_failed_start(&lost);
            }
            Err(error) => self.break_down(format!("{lost}, and then: {error}").into()),
        }
    }

    // --- time ---

    fn fire_timers(&mut self) {
        while let Some((at, timer)) = self.timers.first().copied() {
            if at > Instant::now() {
                return;
            }
            self.timers.remove(&(at, timer));
            self.fire(timer);
        }
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::TimeOut { worker: number, number: task } => {
                self.read(number);
                let Some(worker) = self.workers.get(&number) else { return };
                if worker.at_work_on() == Some(task) {
                    self.kill_for(number, task, TaskError::TimedOut);
                } else if worker.legs.front().is_some_and(|leg| leg.first == task) {
                    // It has not even begun: its time has not either.
                    self.begin_task(number);
                }
            }
            Timer::Stuck { worker: number, number: task } => {
                let Some(worker) = self.workers.get_mut(&number) else { return };
                worker.is_watched = false;
                let is_at_it = worker.legs.front().is_some_and(|leg| leg.first == task);
                if is_at_it && worker.at_work_on() == Some(task) {
                    self.revoke(number);
                } else {
                    self.watch_for_stuck(number);
                }
            }
            Timer::Deadline { order } => {
                if let Some(job) = self.deadlines.remove(&order) {
                    self.miss_deadline(&job);
                }
            }
            Timer::KeepAlive { worker: number } => {
                let keep_alive = self.shared.settings.keep_alive.unwrap_or(Duration::MAX);
                let Some(worker) = self.workers.get_mut(&number) else { return };
                worker.is_watched_idle = false;
                if !worker.legs.is_empty() {
                    return; // it comes here again when it rests
                }
                if worker.idle_since.elapsed() >= keep_alive {
                    self.retire(number);
                } else {
                    self.watch_for_rest(number);
                }
            }
            Timer::Grace { worker } => self.kill(worker),
            Timer::Start => self.start_after = None,
        }
    }

    fn miss_deadline(&mut self, job: &Rc<Job>) {
        let at_work: Vec<(u64, u64)> = self
            .workers
            .values()
            .filter(|worker| worker.legs.front().is_some_and(|leg| Rc::ptr_eq(&leg.part.job, job)))
            .filter_map(|worker| Some((worker.number, worker.at_work_on()?)))
            .collect();
        // First the future: from here on, answers to it count for nothing.
        self.fail(job, TaskError::TimedOut);
        for (number, task) in at_work {
            self.kill_for(number, task, TaskError::TimedOut);
        }
    }

    // --- the end ---

    /// Whether everything is done that was asked for. Workers are told to end when nothing is left for them.
    fn is_over(&mut self) -> bool {
        if self.ending.is_none() || !self.queue.is_empty() {
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
        self.ending = Some(Ending::Cancel);
        self.fail_everything(&TaskError::Broken(reason));
    }

    fn fail_everything(&mut self, error: &TaskError) {
        let mut parts: Vec<Part> = std::mem::take(&mut self.queue).into_values().collect();
        // What has begun may finish.
        parts.extend(self.workers.values_mut().flat_map(Worker::revoke));
        for part in parts {
            self.fail(&part.job, error.clone());
        }
    }
}

/// What the fork server says of a worker's end.
#[derive(Clone, Copy, Debug)]
struct Cause {
    pid: u32,
    exit: Exit,
    cpu_time: Duration,
    peak_memory: u64,
}
