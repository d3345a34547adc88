//! Who gets what: the queue, and the workers it is handed to.
//!
//! An idle worker is used first, the one that was busy last; then a new one is started, up to `max_workers`; then busy
//! workers get more than they are at, but only of functions known to be quick: about [`PREFETCH`] of predicted work,
//! counted in time and not in tasks, since what waits behind a long task waits for nothing. If a task turns out longer
//! than [`STUCK`] all the same, what was handed over behind it is revoked and goes elsewhere.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use executor_core::TaskError;

use super::time::{GRACE, Timer};
use super::{Dispatcher, Ending, tokens};
use crate::bulk::KEPT_FOR;
use crate::job::{Ended, Job, Part, Reserved};
use crate::share::Keeper;
use crate::sync::Arc;
use crate::sys::poll::Interest;
use crate::worker::Worker;

/// How much predicted work a worker may hold beyond the task it is at. More hides the way to the parent and back, two
/// wake-ups of some 25 µs each; less waits less behind a task that is longer than predicted.
const PREFETCH: Duration = Duration::from_micros(100);

/// The most tasks a worker may hold, for functions too quick to measure.
const LARGEST_LOAD: usize = 8192;

/// Busy workers looked at for one more part, each time.
const PREFETCH_CANDIDATES: usize = 64;

/// After this long in one task, what was handed over behind it is revoked. Shorter revokes work that was about to run;
/// longer keeps it from idle workers.
pub(super) const STUCK: Duration = Duration::from_millis(1);

impl Dispatcher {
    // --- the queue ---

    pub(super) fn enqueue(&mut self, part: Part) {
        let doom = match part.job.wanted() {
            Ok(()) => None,
            Err(None) => return self.leave_queue(&part.job),
            Err(doom) => doom,
        };
        let error = match &self.ending {
            Some(Ending::Cancel) => Some(TaskError::Cancelled),
            Some(Ending::Broken(reason)) => Some(TaskError::Broken(reason.clone())),
            Some(Ending::Finish) | None => doom,
        };
        match error {
            Some(error) => self.drop_part(&part, &error),
            None => self.queue.insert(part),
        }
    }

    /// Takes back parts that have not begun.
    pub(super) fn requeue(&mut self, parts: Vec<Part>) {
        for part in parts {
            part.job.unreserve();
            self.enqueue(part);
        }
    }

    pub(super) fn leave_queue(&self, job: &Job) {
        if job.leave_queue() {
            self.shared.capacity.give_back();
        }
    }

    /// Ends what was never begun: the whole job if none of it was, or else these items alone, since others are with
    /// workers and will be answered.
    pub(super) fn drop_part(&mut self, part: &Part, error: &TaskError) {
        if !part.job.has_started() {
            return self.end_job(&part.job, error.clone());
        }
        for item in part.items.clone() {
            let item = Part { job: Arc::clone(&part.job), items: item..item + 1 };
            self.answer(&item, Err(error.clone()), Duration::ZERO);
        }
    }

    /// Ends a whole job: cancels it if it has not started and that is what is asked for.
    pub(super) fn end_job(&self, job: &Job, error: TaskError) {
        if job.has_started() || !matches!(error, TaskError::Cancelled) {
            return self.fail(job, error);
        }
        self.leave_queue(job);
        job.cancel(); // counted by its future
    }

    pub(super) fn fail(&self, job: &Job, error: TaskError) {
        self.leave_queue(job);
        let ended = job.fail(error);
        self.count_end(ended);
    }

    pub(super) fn count_end(&self, ended: Ended) {
        match ended {
            Ended::Before => {}
            Ended::Unstarted => self.shared.counters.cancelled(),
            Ended::Running => self.shared.counters.finished(executor_core::counters::Ending::Returned),
        }
    }

    // --- handing over ---

    pub(super) fn assign(&mut self) {
        while !self.queue.is_empty() {
            if let Some(worker) = self.idle.pop().or_else(|| self.start_worker()) {
                self.hand_over(worker);
            } else if !self.prefetch() {
                break;
            }
        }
    }

    /// Hands a busy worker some of what waits, on top of what it has; false if that is for nobody.
    fn prefetch(&mut self) -> bool {
        let Some((number, most)) = self.quick_worker() else { return false };
        let Some(function) = self.queue.first().map(|part| part.job.head.function) else { return false };
        // A fair share, so that the last ones reach every worker.
        for _ in 0..(self.queue.rank_len() / self.workers.len()).max(1) {
            self.hand_over(number);
            let is_next = self.queue.first().is_some_and(|part| part.job.head.function == function);
            if !is_next || !self.workers.get(&number).is_some_and(|worker| self.has_room(worker, most)) {
                break;
            }
        }
        true
    }

    /// Hands the next part over; if there is none after all, the worker is idle.
    pub(super) fn hand_over(&mut self, number: u64) {
        while let Some(mut part) = self.queue.pop_first() {
            let job = Arc::clone(&part.job);
            let Reserved { is_granted, left_queue } = job.reserve();
            if left_queue {
                self.shared.capacity.give_back();
            }
            if !is_granted {
                continue;
            }
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
            for segment in job.segments() {
                if worker.lacks(segment.id) {
                    let keeper: Arc<dyn Keeper> = self.shared.clone();
                    segment.keep(Arc::downgrade(&keeper));
                }
            }
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
    pub(super) fn begin_task(&mut self, number: u64) {
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
        if let Some(end) = leg.part.job.timeout().and_then(|timeout| now.checked_add(timeout)) {
            let timer = (end, Timer::TimeOut { worker: number, number: task });
            self.timers.insert(timer);
            worker.time_out = Some(end);
        }
        self.watch_for_stuck(number);
    }

    /// Looks again later if something waits behind the task the worker is at. One such timer a worker.
    pub(super) fn watch_for_stuck(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        if worker.load > 1 && !worker.is_watched {
            let Some(leg) = worker.legs.front() else { return };
            worker.is_watched = true;
            self.timers.insert((Instant::now() + STUCK, Timer::Stuck { worker: number, number: leg.first }));
        }
    }

    /// A busy worker that may be given the next part on top of what it has, and how many tasks it may hold.
    fn quick_worker(&mut self) -> Option<(u64, usize)> {
        let part = self.queue.first()?;
        let mean = Duration::from_nanos(*self.means.get(&part.job.head.function)?);
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
                worker.load > 0
                    && self.has_room(worker, most)
                    && worker.busy_since.is_none_or(|since| since.elapsed() < STUCK)
            })
            .map(|(number, _)| *number)?;
        self.prefetch_from = found + 1;
        Some((found, most))
    }

    /// Whether a worker that may hold so many tasks beyond the one it is at takes another one.
    fn has_room(&self, worker: &Worker, most: usize) -> bool {
        worker.is_ready && worker.load <= most && self.takes_more(worker)
    }

    pub(super) fn takes_more(&self, worker: &Worker) -> bool {
        let most = self.shared.settings.max_tasks_per_worker;
        !worker.is_ending && !worker.is_worn && most.is_none_or(|most| worker.handed < most)
    }

    pub(super) fn send(&mut self) {
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

    pub(super) fn learn(&mut self, function: u64, nanoseconds: u64) {
        let mean = self.means.entry(function).or_insert(nanoseconds);
        // Quick to believe that a function is slow, slow to believe that it is quick.
        *mean =
            if nanoseconds > *mean { (*mean + nanoseconds) / 2 } else { *mean - (*mean - nanoseconds) / 8 };
    }

    /// A worker has nothing to do: it waits for more, or ends if it has done its share.
    pub(super) fn rest(&mut self, number: u64) {
        let Some(worker) = self.workers.get(&number) else { return };
        if worker.is_ending {
            return;
        }
        if !self.takes_more(worker) || self.has_too_many() {
            return self.retire(number);
        }
        self.idle.push(number);
        self.watch_for_rest(number);
        self.watch_bulk(number);
    }

    /// Looks later whether the worker still needs its bulk memory. One such timer a worker.
    pub(super) fn watch_bulk(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        let has_rest = worker.legs.is_empty() && !worker.is_ending;
        if has_rest && std::mem::take(&mut worker.may_shrink_bulk) && worker.shrink_bulk() {
            self.unsent.insert(number);
        }
        if worker.has_bulk() && !std::mem::replace(&mut worker.is_watched_bulk, true) {
            self.timers.insert((Instant::now() + KEPT_FOR, Timer::Bulk { worker: number }));
        }
    }

    /// Looks whether the worker has been idle for long enough, when it may have been. One such timer a worker.
    pub(super) fn watch_for_rest(&mut self, number: u64) {
        let Some(keep_alive) = self.shared.settings.keep_alive else { return };
        let Some(worker) = self.workers.get_mut(&number) else { return };
        if let Some(end) = worker.idle_since.checked_add(keep_alive)
            && !std::mem::replace(&mut worker.is_watched_idle, true)
        {
            self.timers.insert((end, Timer::KeepAlive { worker: number }));
        }
    }

    pub(super) fn retire(&mut self, number: u64) {
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
}
