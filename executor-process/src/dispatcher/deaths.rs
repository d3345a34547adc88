//! Taking tasks back, ending workers, and settling what dead ones have left.
//!
//! A worker's end is known by its pidfd and told by the fork server with its cause. First the socket is read to its end;
//! what was answered is done. Then the [`gate`](crate::gate) tells what it had begun: that has failed, or is tried again
//! if asked for. The rest has not begun and goes back to its place in the queue.
//!
//! # What it died of
//!
//! The fork server tells exit code or signal, the worker's pipe its last words. Two causes are read from these: SIGKILL
//! together with a new kill counted by the kernel is want of memory; an abort after a runtime has said that memory was
//! refused, in a worker whose memory is limited, is that limit.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use executor_core::{Limit, TaskError, WorkerDeath};

use super::assign::STUCK;
use super::stderr::LastWords;
use super::time::Timer;
use super::{Dispatcher, Ending};
use crate::job::{Job, Part};
use crate::shared::Means;
use crate::sync::Arc;
use crate::sys::process;
use crate::worker::{Read, Worker};
use crate::zygote::Exit;

/// After this long a killed process is taken for one the kernel does not let go. Nothing but its task's answer waits for
/// that, so it is longer than the death of a process with a lot of memory takes.
const UNKILLABLE: Duration = Duration::from_secs(5);

/// Before the first retry at most; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Before any.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Dispatcher {
    // --- taking back ---

    pub(super) fn revoke(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        let parts = worker.revoke();
        if parts.is_empty() {
            return;
        }
        let is_idle = worker.legs.is_empty();
        if is_idle && let Some(task) = worker.end_direct() {
            self.direct.remove(&task);
        }
        self.requeue(parts);
        if is_idle {
            self.rest(number);
        }
    }

    /// Ends a worker because of the task it is at: what waits behind it is saved first, and if the worker has gone on
    /// meanwhile, it lives. SIGTERM, and SIGKILL after the grace: the task is answered when the worker is gone, or when it
    /// has let the signal pass and answers itself, with this verdict in any case.
    pub(super) fn kill_for(&mut self, number: u64, task: u64, verdict: TaskError) {
        self.revoke(number);
        self.read(number);
        let Some(worker) = self.workers.get_mut(&number) else { return };
        if worker.at_work_on() != Some(task) || worker.verdict.is_some() {
            return;
        }
        worker.verdict = Some((task, verdict));
        let means = if worker.process.is_some() { Means::Terminate } else { Means::Kill };
        self.stop_worker(number, means);
    }

    /// Ends whatever is left of a job with this error. What waits ends at once, what runs is answered when its worker has
    /// ended: who reads `TimedOut` may rely on it that nothing goes on.
    pub(super) fn end_parts(&mut self, job: &Arc<Job>, error: &TaskError) {
        job.condemn(error);
        let holders: Vec<u64> =
            self.workers.values().filter(|worker| worker.holds(job)).map(|worker| worker.number).collect();
        for number in holders {
            // First taken back: from here on it runs or it does not.
            self.revoke(number);
            self.read(number);
            let at_work = self.workers.get(&number).and_then(|worker| {
                Arc::ptr_eq(&worker.legs.front()?.part.job, job).then(|| worker.at_work_on())?
            });
            if let Some(task) = at_work {
                self.kill_for(number, task, error.clone());
            }
        }
        for part in self.queue.take_job(job) {
            self.drop_part(&part, error);
        }
        let delayed: Vec<_> =
            self.delayed.range((job.order(), 0)..=(job.order(), usize::MAX)).map(|(item, _)| *item).collect();
        for (part, _) in delayed.into_iter().filter_map(|item| self.delayed.remove(&item)).collect::<Vec<_>>()
        {
            self.drop_part(&part, error);
        }
        if self.workers.values().any(|worker| !worker.is_ending && worker.holds(job)) {
            // Handed over while the last revocation was on its way to the worker: it can be neither taken back nor be said to
            // run. The answer does not wait for that, but the worker is looked at again.
            self.fail(job, error.clone());
            self.deadlines.insert(job.order(), Arc::clone(job));
            self.timers.insert((Instant::now() + STUCK, Timer::Deadline { order: job.order() }));
        }
    }

    // --- trying again ---

    /// Tries an item again after its worker died of `error`, later: each time later than the last, so that what they
    /// wait for has time to recover, and not all at the same time.
    fn delay(&mut self, victim: Part, attempt: u32, error: TaskError) {
        let longest = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(attempt - 1)).min(LONGEST_PAUSE);
        let pause = longest / 2 + (longest / 2).mul_f64(random());
        let item = (victim.job.order(), victim.items.start);
        self.timers.insert((Instant::now() + pause, Timer::Retry { order: item.0, item: item.1 }));
        self.delayed.insert(item, (victim, error));
    }

    pub(super) fn try_again(&mut self, order: u64, item: usize) {
        if let Some((part, _)) = self.delayed.remove(&(order, item)) {
            self.enqueue(part);
        }
    }

    /// Nothing is tried again any more: what was to be ends with what it died of.
    pub(super) fn end_retries(&mut self) {
        for (part, error) in std::mem::take(&mut self.delayed).into_values() {
            self.answer(&part, Err(error), Duration::ZERO);
        }
    }

    // --- killing ---

    pub(super) fn kill(&mut self, number: u64) {
        self.idle.retain(|idle| *idle != number);
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.is_ending = true;
            if let Some(process) = &worker.process {
                // One that has ended already is as good.
                let _ = process::kill_by_pidfd(process.pidfd.as_fd());
                self.timers.insert((Instant::now() + UNKILLABLE, Timer::Unkillable { worker: number }));
            } else {
                worker.close();
            }
        }
    }

    /// The kernel does not let the worker go, since it is stuck there or frozen; or nobody tells how it ended. It will not
    /// run another instruction of the program's, so it is settled, and the fork server sees to the rest.
    pub(super) fn give_up(&mut self, number: u64) {
        if self.workers.contains_key(&number) {
            self.drain(number);
            self.settle(number, None);
        }
    }

    /// A worker sent what no worker sends.
    pub(super) fn distrust(&mut self, number: u64) {
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
    pub(super) fn see_end(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        worker.is_drained = true;
        let _ = self.epoll.remove(worker.socket().as_fd());
        if !worker.is_ending {
            self.kill(number);
        }
    }

    /// A worker's process has ended. The cause comes from the fork server.
    pub(super) fn see_death(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        worker.is_ending = true;
        if !std::mem::replace(&mut worker.is_dead, true) {
            self.dead += 1;
            self.free_indices.insert(worker.index);
        }
        if let Some(process) = &worker.process {
            let _ = self.epoll.remove(process.pidfd.as_fd());
        }
        self.idle.retain(|idle| *idle != number);
        self.timers.insert((Instant::now() + UNKILLABLE, Timer::Unkillable { worker: number }));
        self.drain(number);
        if self.workers.get(&number).is_some_and(|worker| worker.is_orphan) {
            self.settle(number, None);
        } else {
            self.rescue(number);
        }
    }

    /// Gives what a dead worker had not begun to others, and its place to a new one, before the fork server has told what it
    /// died of. Not where that is to be told for what it had not begun: see [`settle`](Self::settle).
    fn rescue(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number).filter(|worker| worker.is_ready) else { return };
        let first = worker.legs.front().filter(|_| worker.at_work_on().is_none());
        if first.is_none_or(|leg| leg.part.job.may_fall_again()) {
            let unbegun = worker.rescue();
            self.requeue(unbegun);
        }
    }

    /// Reads what a dead worker has sent, to the end.
    pub(super) fn drain(&mut self, number: u64) {
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

    /// A worker is gone: its task has failed, what it had not begun goes back, its place is free.
    pub(super) fn settle(&mut self, number: u64, cause: Option<Cause>) {
        let Some(mut worker) = self.workers.remove(&number) else { return };
        if let Some(task) = worker.end_direct() {
            self.direct.remove(&task);
        }
        self.requested.remove(&number);
        self.unsent.remove(&number);
        if worker.is_dead {
            self.dead -= 1;
        } else {
            self.free_indices.insert(worker.index);
        }
        let last_words = self.stderr.close(number);
        let cause = cause.map(|cause| {
            let is_killed =
                matches!(cause.exit, Exit::Signal { number, .. } if number == process::KILL_SIGNAL);
            let out_of_memory = is_killed && worker.verdict.is_none() && self.memory_kills.take();
            Cause { out_of_memory, ..cause }
        });
        let run_time = worker.busy_since.map_or(Duration::ZERO, |since| since.elapsed());
        let remains = worker.take_remains();
        let has_begun = !remains.victims.is_empty();
        for (victim, verdict) in remains.victims {
            if victim.job.start() {
                self.shared.counters.started();
            }
            let attempt = victim.job.count_death(victim.items.start);
            let error = verdict.unwrap_or_else(|| {
                let mut death = death_of(&worker, &victim, cause, run_time, &last_words);
                death.attempt = attempt;
                self.error_of(death, &worker, &victim, &last_words)
            });
            let may_retry =
                matches!(self.ending, None | Some(Ending::Finish)) && attempt <= victim.job.retries();
            if matches!(error, TaskError::WorkerDied(_)) && may_retry && victim.job.doom().is_none() {
                self.delay(victim, attempt, error);
            } else {
                self.answer(&victim, Err(error), run_time);
            }
        }
        let mut unbegun = remains.unbegun;
        if worker.is_ready && !has_begun && !worker.is_orphan && !unbegun.is_empty() {
            // Nobody knows what it died of, unless it happens again and again with the same argument in its way.
            let first = unbegun.remove(0);
            if first.job.may_fall_again() {
                unbegun.insert(0, first);
            } else {
                let error = death_of(&worker, &first, cause, run_time, &last_words);
                let error = self.error_of(error, &worker, &first, &last_words);
                self.fail(&first.job, error);
            }
        }
        self.requeue(unbegun);
        // One that went with its fork server says nothing about workers.
        if !worker.is_ready && !worker.is_orphan && !has_begun && self.ending.is_none() {
            let how = cause.map_or_else(|| "unknown cause".to_owned(), |cause| cause.exit.to_string());
            self.count_failed_start(&format!("worker process {} died while it started: {how}", worker.pid()));
        }
    }

    /// What a death is told as: the limit that caused it, if one did.
    fn error_of(
        &self,
        death: WorkerDeath,
        worker: &Worker,
        victim: &Part,
        last_words: &LastWords,
    ) -> TaskError {
        let (of_workers, of_call) = (&self.shared.settings, victim.job.limits());
        let cpu_time = [
            of_call.cpu_time.map(|limit| (limit, worker.cpu_time_before().saturating_add(limit))),
            of_workers.cpu_time_limit.map(|limit| (limit, limit)),
        ];
        let cpu_time = cpu_time.into_iter().flatten();
        let limit = match death.signal {
            // One of them. Which, the time used tells only roughly: it is the one that comes first.
            Some(process::CPU_LIMIT_SIGNAL) => cpu_time.min_by_key(|(_, used)| *used),
            // What comes a second later where that is ignored.
            Some(process::KILL_SIGNAL) => cpu_time.into_iter().find(|(_, used)| death.cpu_time >= *used),
            _ => None,
        };
        if let Some((limit, _)) = limit {
            return TaskError::LimitExceeded(Limit::CpuTime(limit));
        }
        if let Some(limit) = of_call.memory.or(of_workers.memory_limit)
            && death.signal == Some(process::ABORT_SIGNAL)
            && last_words.lacked_memory
        {
            return TaskError::LimitExceeded(Limit::Memory(limit));
        }
        TaskError::WorkerDied(death)
    }
}

/// A number from 0 to 1, for what need not be secret.
fn random() -> f64 {
    let number = RandomState::new().build_hasher().finish();
    f64::from((number >> 32) as u32) / f64::from(u32::MAX)
}

fn death_of(
    worker: &Worker,
    victim: &Part,
    cause: Option<Cause>,
    run_time: Duration,
    last_words: &LastWords,
) -> WorkerDeath {
    let mut death = WorkerDeath::new(worker.pid(), run_time);
    death.label = victim.job.label().map(str::to_owned);
    last_words.text.clone_into(&mut death.stderr);
    if let Some(cause) = cause {
        death.pid = cause.pid;
        death.cpu_time = cause.cpu_time;
        death.peak_memory = cause.peak_memory;
        death.out_of_memory = cause.out_of_memory;
        match cause.exit {
            Exit::Code(code) => death.exit_code = Some(code),
            Exit::Signal { number, core } => {
                death.signal = Some(number);
                death.core_dumped = core;
            }
        }
    }
    death
}

/// What the fork server says of a worker's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cause {
    pub(super) pid: u32,
    pub(super) exit: Exit,
    pub(super) cpu_time: Duration,
    pub(super) peak_memory: u64,
    /// Found out here.
    pub(super) out_of_memory: bool,
}
