//! The way past the dispatcher's thread, for a task that meets an idle worker.
//!
//! By way of that thread a round trip takes four wake-ups: of the dispatcher, the worker, the dispatcher, and whoever waits;
//! each costs more than everything else. So while the thread waits and nothing is queued,
//!
//! * a thread that **submits** one task without a time limit hands it to an idle worker itself, and
//! * a thread that **waits** for that very task takes its result out of the worker's ring itself,
//!
//! each under the lock of the [`Front`], by what the thread would do. The task's leg is with its worker as any other: a
//! death, a revocation, a shutdown find it there, and the dispatcher's thread can go on with it at any time.
//!
//! # Who is told of the result
//!
//! The worker's [`bell`](crate::bell) says how the parent is to be told: as a rule by a frame that wakes the
//! dispatcher. Who waits takes the result if it is there already: the worker lets others run before it rings, and does not
//! ring for what was taken. If it is not, he turns the bell, by a compare-and-swap, to a wake-up of his own, and sleeps on
//! it:
//!
//! * he is woken, or finds the bell taken: he sets the bell again, whatever has become of the task, since nobody else knows
//!   that it was taken; takes the result, if that is still there; and completes the future, after he has let go of the lock.
//!   If somebody else has the lock, he leaves a note for the dispatcher's thread instead, and waits as everybody does;
//! * he has slept for [`PATIENCE`]: he turns the bell back, and waits as everybody does. Who sees to the task in another way
//!   wakes him, but need not: it costs him that long at most.
//!
//! No user's code runs under the lock on these threads: what may call a callback is left to the dispatcher's thread.

use std::time::Duration;

use executor_core::PanicReport;
use executor_core::counters::Ending;
use executor_core::owner::Owner;

use super::{Dispatcher, Front};
use crate::bulk::{Body, Outbound};
use crate::job::{Job, Part};
use crate::ring::{Record, TurnedBell, low};
use crate::shared::Command;
use crate::sync::Arc;
use crate::wire::Garbage;

/// How long a thread waits for its task's result itself. Much longer than the wake-ups it saves; much shorter than anybody
/// minds to learn late of a worker's death.
const PATIENCE: Duration = Duration::from_millis(1);

/// A result taken out of a worker's ring.
struct Taken {
    job: Arc<Job>,
    body: TakenBody,
    run_time: Duration,
}

enum TakenBody {
    Copied(Vec<u8>),
    Outbound(Outbound),
}

/// It is for the dispatcher's thread.
struct ForThread;

/// What there is of a task that is waited for.
enum Found {
    Result(Taken),
    /// Something, of the worker with this number.
    ForThread(u64),
    /// Its worker's, and the worker's number.
    Bell(u64, TurnedBell),
}

impl Front {
    /// Takes a job that was admitted: to an idle worker if there is one and nobody else is at it, or else to the inbox.
    pub(crate) fn submit(&self, job: Arc<Job>) {
        if job.is_simple()
            && let Some(mut guard) = self.dispatcher.try_lock()
            && let Some(dispatcher) = guard.as_mut()
            && dispatcher.has_idle_worker()
            && self.shared.accept_directly()
        {
            return dispatcher.hand_over_directly(job);
        }
        self.shared.submit(job);
    }

    /// Sees to a task that was handed over directly, for a thread that waits for it. Comes back when it is over, when it is
    /// for the dispatcher's thread after all, or after [`PATIENCE`] or `limit`.
    fn attend_to(&self, task: usize, limit: Option<Duration>) {
        let found = self.dispatcher.try_lock().and_then(|mut guard| guard.as_mut()?.find(task));
        let (number, bell) = match found {
            None => return,
            Some(Found::Result(taken)) => return self.complete(taken),
            Some(Found::ForThread(number)) => return self.leave_note(number),
            Some(Found::Bell(number, bell)) => (number, bell),
        };
        let patience = limit.map_or(PATIENCE, |limit| limit.min(PATIENCE));
        if !bell.wait(patience) {
            return; // turned back
        }
        let taken = match self.dispatcher.try_lock() {
            None => Err(ForThread),
            Some(mut guard) => {
                guard.as_mut().map_or(Ok(None), |dispatcher| dispatcher.hear_bell(task, number))
            }
        };
        match taken {
            Ok(None) => {}
            Ok(Some(taken)) => self.complete(taken),
            Err(ForThread) => self.leave_note(number),
        }
    }

    /// For the dispatcher's thread: there are results of this worker that nobody will ring for.
    fn leave_note(&self, number: u64) {
        self.shared.command(Command::Look(number)); // a pool that is over has no results
    }

    /// Decodes a result and tells everybody who wants to know.
    fn complete(&self, Taken { job, body, run_time }: Taken) {
        let body = match body {
            TakenBody::Copied(ref bytes) => Body::Here(bytes),
            TakenBody::Outbound(result) => Body::Outbound(result),
        };
        if let Some(finished) = job.answer(0, Ok(body), run_time) {
            self.shared.counters.finished(Ending::Returned);
            finished.publish();
        }
    }
}

/// What a pool is told through its futures.
impl Owner for Front {
    fn cancelled(&self) {
        self.shared.counters.cancelled();
        if self.shared.capacity.is_bounded() {
            self.shared.command(Command::Sweep); // a pool that is over has no queue
        }
    }

    fn abort(&self, task: usize) -> bool {
        self.shared.command(Command::Abort(task))
    }

    fn report_panic(&self, _: &PanicReport) {}

    fn attend(&self, task: usize, limit: Option<Duration>) {
        self.attend_to(task, limit);
    }
}

impl Dispatcher {
    /// Whether nothing is in the way of a task but an idle worker.
    fn has_idle_worker(&self) -> bool {
        let is_quiet = self.ending.is_none()
            && self.stopping.is_none()
            && self.queue.is_empty()
            && self.polled.is_empty()
            && self.unsent.is_empty();
        let idle = self.idle.last().and_then(|number| self.workers.get(number));
        is_quiet && idle.is_some_and(|worker| worker.is_ready && worker.is_armed && !worker.waits_to_write)
    }

    fn hand_over_directly(&mut self, job: Arc<Job>) {
        self.act_for_the_thread(|dispatcher| {
            job.set_order(dispatcher.next_order);
            dispatcher.next_order += 1;
            job.attend();
            let task = job.id();
            dispatcher.queue.insert(Part::whole(job));
            if let Some(number) = dispatcher.idle.pop() {
                dispatcher.hand_over(number);
                if let Some(worker) = dispatcher.workers.get_mut(&number) {
                    worker.direct = Some(task);
                    dispatcher.direct.insert(task, number);
                }
            }
            dispatcher.send();
        });
    }

    /// Finds a task that was handed over directly; nothing if it was seen to, or is for the dispatcher's thread.
    fn find(&mut self, task: usize) -> Option<Found> {
        let number = *self.direct.get(&task)?;
        let worker = self.workers.get(&number)?;
        if worker.is_ending || worker.legs.len() != 1 {
            return None;
        }
        if worker.has_results() {
            return Some(self.take_directly(task, number).map_or(Found::ForThread(number), Found::Result));
        }
        Some(Found::Bell(number, worker.is_armed.then(|| worker.turn_bell())??))
    }

    /// A bell that was turned has rung: sets it again. The task's result, if it is there and nobody has seen to it. An error
    /// if there is something for the dispatcher's thread.
    fn hear_bell(&mut self, task: usize, number: u64) -> Result<Option<Taken>, ForThread> {
        let Some(worker) = self.workers.get_mut(&number) else { return Ok(None) };
        let (has_results, is_ending) = (worker.arm(), worker.is_ending);
        match self.direct.get(&task) {
            _ if !has_results => Ok(None),
            Some(at) if *at == number && !is_ending => self.take_directly(task, number).map(Some),
            _ => Err(ForThread),
        }
    }

    /// Takes the result of the task the worker was handed, and lets it go on.
    fn take_directly(&mut self, task: usize, number: u64) -> Result<Taken, ForThread> {
        self.copy_stderr_of(number);
        if !self.stderr.takes_more() {
            return Err(ForThread);
        }
        let worker = self.workers.get_mut(&number).ok_or(ForThread)?;
        let job = worker.legs.front().map(|leg| Arc::clone(&leg.part.job));
        // Another one's is for the thread that runs other's callbacks.
        let job = job.filter(|job| job.id() == task).ok_or(ForThread)?;
        let taken = worker.take_results(&mut self.copies).map_err(|Garbage| ForThread)?;
        let (words, used) = taken.ok_or(ForThread)?;
        let record = match (Record::read(&words[used..]), worker.answerable()) {
            (Ok(Some(record)), Some((first, _))) if record.is_all(low(first), words.len() - used) => record,
            _ => {
                worker.put_results_back(words, used);
                return Err(ForThread);
            }
        };
        let body = match record.bulk_length().map(|length| worker.outbound(length)) {
            None => TakenBody::Copied(record.body.to_vec()),
            Some(Ok(result)) => TakenBody::Outbound(result),
            Some(Err(Garbage)) => {
                worker.put_results_back(words, used);
                return Err(ForThread);
            }
        };
        let (time, all) = (record.time.unwrap_or(0), words.len());
        if let Some(memory) = worker.put_results_back(words, all) {
            self.copies = memory;
        }
        worker.advance(1);
        self.learn(job.head.function, time);
        self.act_for_the_thread(|dispatcher| dispatcher.go_on(number));
        Ok(Taken { job, body, run_time: Duration::from_nanos(time) })
    }

    /// Does what the dispatcher's thread would do, on another one: wakes it if there is something for it now, or if it must
    /// wait less long.
    fn act_for_the_thread(&mut self, act: impl FnOnce(&mut Self)) {
        let before = self.timers.first().copied();
        act(self);
        self.publish_numbers();
        let is_sooner = match (before, self.timers.first()) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(before), Some(now)) => *now < before,
        };
        let has_work = !self.queue.is_empty() || !self.unsent.is_empty() || self.ending.is_some();
        if is_sooner || has_work {
            self.shared.doorbell.ring();
        }
    }
}
