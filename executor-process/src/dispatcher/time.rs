//! Time limits, and looking after things later.

use std::time::{Duration, Instant};

use executor_core::TaskError;

use super::Dispatcher;
use crate::bulk::KEPT_FOR;

/// How long a worker may take to end when there is nothing left for it, before it is killed.
pub(super) const GRACE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The worker's task with this number has run for as long as it may.
    TimeOut { worker: u64, number: u64 },
    /// Time to see whether the worker is still at the task with this number.
    Stuck { worker: u64, number: u64 },
    /// The deadline of the job with this order.
    Deadline { order: u64 },
    /// Time to see whether the worker has been idle for long enough.
    KeepAlive { worker: u64 },
    /// Time to see whether the worker has had nothing to do for so long that it gives its bulk memory up.
    Bulk { worker: u64 },
    /// The worker should have ended by now.
    Grace { worker: u64 },
    /// The worker was killed, and should be dead by now.
    Unkillable { worker: u64 },
    /// Time to try an item of the job with this order again.
    Retry { order: u64, item: usize },
    /// Workers may be started again.
    Start,
    /// Time to see whether standard error takes something again.
    Stderr,
}

impl Dispatcher {
    pub(super) fn fire_timers(&mut self) {
        while let Some((at, timer)) = self.timers.first().copied() {
            if at > Instant::now() {
                return;
            }
            self.timers.remove(&(at, timer));
            self.fire(timer);
        }
    }

    pub(super) fn fire(&mut self, timer: Timer) {
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
                self.read(number);
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
                    self.end_parts(&job, &TaskError::TimedOut);
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
            Timer::Bulk { worker: number } => {
                let Some(worker) = self.workers.get_mut(&number) else { return };
                worker.is_watched_bulk = false;
                if worker.legs.is_empty() && worker.idle_since.elapsed() >= KEPT_FOR {
                    if worker.drop_bulk() {
                        self.unsent.insert(number);
                    }
                } else {
                    worker.may_shrink_bulk = true;
                    self.watch_bulk(number);
                }
            }
            Timer::Grace { worker } => self.kill(worker),
            Timer::Unkillable { worker } => self.give_up(worker),
            Timer::Retry { order, item } => self.try_again(order, item),
            Timer::Start => self.start_after = None,
            Timer::Stderr => self.try_stderr_again(),
        }
    }
}
