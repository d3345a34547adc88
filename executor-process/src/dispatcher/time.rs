//! Time limits, and looking after things later.

use std::rc::Rc;
use std::time::{Duration, Instant};

use executor_core::TaskError;

use super::Dispatcher;
use crate::job::Job;

/// How long a worker may take to end after it was told to, before it is killed.
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
    /// The worker should have ended by now.
    Grace { worker: u64 },
    /// Workers may be started again.
    Start,
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

    pub(super) fn miss_deadline(&mut self, job: &Rc<Job>) {
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
}
