//! What workers say: frames and records of their rings are read, checked, matched with their tasks, and answered.
//!
//! Answers come in the order of the tasks, each by one of two ways (see [`ring`](crate::ring)). Before each frame the
//! ring is looked at; a record that is not next in turn waits for what is still in the socket.
//!
//! While the dispatcher has anything to do it looks at the rings of those workers that have rung last, without being
//! told; before it waits it sets their bells again.
//!
//! What a worker has printed before its answers is passed on before anybody is told of one (see [`stderr`](super::stderr)).
//!
//! Nothing is taken on trust: a frame that is unknown, too long, or out of turn costs its worker.

use std::time::{Duration, Instant};

use executor_core::TaskError;

use super::Dispatcher;
use super::time::Timer;
use crate::attach;
use crate::bulk::{Body, Outbound};
use crate::job::{Answered, Finished, Part, read_answer};
use crate::ring::{Record, Records, low};
use crate::sync::Arc;
use crate::wire::{Garbage, HEADER, Header, Kind, Status};
use crate::worker::Read;
use crate::worker_main::WORN;

/// Reads of one worker's socket in a row, before others get their turn.
const READS: usize = 16;

/// How far the records of a ring were dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// All of them.
    Clear,
    /// Up to one that is not in turn.
    Blocked,
}

impl Dispatcher {
    pub(super) fn read(&mut self, number: u64) {
        for _ in 0..READS {
            let Some(worker) = self.workers.get_mut(&number) else { return };
            if worker.is_drained {
                return;
            }
            let read = worker.read();
            let Ok(state) = self.handle_frames(number) else { return self.distrust(number) };
            match (read, state) {
                (Ok(Read::Nothing), Ring::Blocked) => return self.distrust(number), // nothing comes in between
                (Ok(Read::Full), _) | (Ok(Read::Some), Ring::Blocked) => {}
                (Ok(Read::Some | Read::Nothing), _) => return,
                (Ok(Read::End) | Err(_), _) => return self.see_end(number),
            }
        }
        self.polled.push(number);
    }

    /// Looks at the rings of the workers that rang last; says whether there was anything.
    pub(super) fn poll_rings(&mut self) -> bool {
        let mut has_found = false;
        for index in (0..self.polled.len()).rev() {
            let Some(&number) = self.polled.get(index) else { continue };
            if self.workers.get(&number).is_some_and(|worker| !worker.is_drained && worker.has_results()) {
                has_found = true;
                self.read_ring(number);
            }
        }
        has_found
    }

    /// Lets the workers ring again, before the dispatcher waits; false if there is something to do instead.
    pub(super) fn arm_bells(&mut self) -> bool {
        let mut may_wait = true;
        for number in std::mem::take(&mut self.polled) {
            if self.workers.get_mut(&number).is_some_and(|worker| !worker.is_drained && worker.arm()) {
                may_wait = false;
                self.read_ring(number);
            }
        }
        may_wait && self.polled.is_empty()
    }

    pub(super) fn read_ring(&mut self, number: u64) {
        match self.take_results(number) {
            Ok(Ring::Clear) => {}
            Ok(Ring::Blocked) => self.read(number),
            Err(Garbage) => self.distrust(number),
        }
    }

    pub(super) fn handle_frames(&mut self, number: u64) -> Result<Ring, Garbage> {
        let mut state = self.take_results(number)?;
        let Some(worker) = self.workers.get_mut(&number) else { return Ok(state) };
        let (input, filled) = worker.take_input();
        let mut used = 0;
        let mut outcome = Ok(());
        while let Ok(Some((header, body))) =
            self.next_frame(number, &input[used..filled]).inspect_err(|_| outcome = Err(Garbage))
        {
            used += HEADER + body.len();
            if header.kind == Kind::Reply {
                self.copy_stderr_of(number);
            }
            outcome = self.handle_frame(number, header, body);
            // What was committed since comes before the next frame.
            match outcome.and_then(|()| self.take_results(number)) {
                Ok(now) => state = now,
                Err(Garbage) => {
                    outcome = Err(Garbage);
                    break;
                }
            }
        }
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.consumed(input, used);
        }
        outcome.map(|()| state)
    }

    /// Deals with what is in the ring, as far as it is in turn.
    fn take_results(&mut self, number: u64) -> Result<Ring, Garbage> {
        let Some(worker) = self.workers.get_mut(&number) else { return Ok(Ring::Clear) };
        if worker.is_drained {
            return Ok(Ring::Clear);
        }
        let Some((words, mut used)) = worker.take_results(&mut self.copies)? else { return Ok(Ring::Clear) };
        let before = used;
        let outcome = self.handle_records(number, &words, &mut used);
        if used > before {
            self.go_on(number);
        }
        let state = if used == words.len() { Ring::Clear } else { Ring::Blocked };
        if let Some(worker) = self.workers.get_mut(&number)
            && let Some(memory) = worker.put_results_back(words, used)
        {
            self.copies = memory;
        }
        outcome.map(|()| state)
    }

    fn handle_records(&mut self, number: u64, words: &[u64], used: &mut usize) -> Result<(), Garbage> {
        let mut is_stderr_copied = false;
        while let Some(record) = Record::read(&words[*used..])? {
            let Some(worker) = self.workers.get_mut(&number) else { return Ok(()) };
            let Some((first, begun)) = worker.answerable() else { return Ok(()) };
            let Some(leg) = worker.legs.front() else { return Ok(()) };
            if low(first) != record.number {
                return Ok(());
            }
            let (job, items) = (Arc::clone(&leg.part.job), leg.part.items.clone());
            if let Some(length) = record.bulk_length() {
                // Before anything else: from here on it is taken, whatever becomes of it.
                let (result, time) = (worker.outbound(length)?, record.time.unwrap_or(0));
                *used += record.size();
                self.handle_outbound(number, result, time)?;
                continue;
            }
            let verdict = worker.overrule(first);
            let most = if verdict.is_some() { 1 } else { begun.min(items.len() as u64) };
            let mut records = Records::new(&words[*used..], first, most);
            let Answered { has_started, finished } = match verdict {
                None => job.answer_all(items.start, &mut records),
                // Its time was up before it answered.
                Some(error) => {
                    records.by_ref().for_each(drop);
                    let took = Duration::from_nanos(records.time);
                    Answered { has_started: job.start(), finished: job.answer(items.start, Err(error), took) }
                }
            };
            if has_started {
                self.shared.counters.started();
            }
            let Records { count, time, is_garbage, used: read, .. } = records;
            *used += read;
            worker.advance(usize::try_from(count).unwrap_or(usize::MAX));
            if let Some(end) = worker.time_out.take() {
                self.timers.remove(&(end, Timer::TimeOut { worker: number, number: first }));
            }
            if time > 0 {
                self.learn(job.head.function, time / count.max(1));
            }
            if let Some(finished) = finished {
                if !std::mem::replace(&mut is_stderr_copied, true) {
                    self.copy_stderr_of(number);
                }
                self.finish(finished);
            }
            if is_garbage || count == 0 {
                return Err(Garbage);
            }
        }
        Ok(())
    }

    /// The result of the task the worker is at is in its outbound memory.
    fn handle_outbound(&mut self, number: u64, result: Outbound, time: u64) -> Result<(), Garbage> {
        let Some(worker) = self.workers.get_mut(&number) else { return Ok(()) };
        let task = worker.at_work_on().ok_or(Garbage)?;
        let part = worker.match_reply(task)?;
        let verdict = worker.overrule(task);
        if let Some(end) = worker.time_out.take() {
            self.timers.remove(&(end, Timer::TimeOut { worker: number, number: task }));
        }
        if part.job.start() {
            self.shared.counters.started();
        }
        self.learn(part.job.head.function, time);
        self.copy_stderr_of(number);
        let answer = verdict.map_or(Ok(Body::Outbound(result)), Err);
        self.answer(&part, answer, Duration::from_nanos(time));
        Ok(())
    }

    /// A worker has answered something: it is at the next task, or has nothing to do.
    pub(super) fn go_on(&mut self, number: u64) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        worker.busy_since = None;
        if let Some(task) = worker.end_direct() {
            self.direct.remove(&task);
        }
        if worker.legs.is_empty() {
            worker.idle_since = Instant::now();
            return self.rest(number);
        }
        if worker.is_worn {
            self.revoke(number); // what it has not begun is for others
        }
        self.begin_task(number);
    }

    /// The frame at the beginning of `bytes`, if it is there as a whole; refused as soon as its header is, if it is out of
    /// turn.
    pub(super) fn next_frame<'a>(
        &self,
        worker: u64,
        bytes: &'a [u8],
    ) -> Result<Option<(Header, &'a [u8])>, Garbage> {
        let Some(header) = Header::decode(bytes)? else { return Ok(None) };
        let is_expected = self.workers.get(&worker).is_some_and(|worker| match header.kind {
            Kind::Ready => !worker.is_ready,
            Kind::Reply => worker.at_work_on() == Some(header.number),
            Kind::Descriptor => {
                worker.at_work_on() == Some(header.number)
                    && header.length == 0
                    && worker.attached.len() < attach::MOST_DESCRIPTORS
            }
            Kind::Bell => worker.is_armed && header.length == 0,
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

    pub(super) fn handle_frame(&mut self, number: u64, header: Header, body: &[u8]) -> Result<(), Garbage> {
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
                self.lost_servers = 0;
                self.begin_task(number);
                Ok(())
            }
            Kind::Reply => {
                let part = worker.match_reply(header.number)?;
                let verdict = worker.overrule(header.number);
                let attached = std::mem::take(&mut worker.attached);
                let limit = self.shared.settings.message_limit;
                let answer = read_answer(header.status, body, &worker.name, part.job.label(), limit);
                if header.count == WORN {
                    worker.is_worn = true;
                }
                if let Some(end) = worker.time_out.take() {
                    self.timers.remove(&(end, Timer::TimeOut { worker: number, number: header.number }));
                }
                if header.time > 0 {
                    self.learn(part.job.head.function, header.time);
                }
                let time = Duration::from_nanos(header.time);
                self.go_on(number);
                if let Some(worker) = self.workers.get_mut(&number)
                    && worker.make_outbound(body.len())
                {
                    self.unsent.insert(number);
                    self.watch_bulk(number);
                }
                // Its time was up before it answered.
                let answer = verdict.map_or_else(|| answer.map(Body::Here), Err);
                if attached.is_empty() {
                    self.answer(&part, answer, time);
                } else {
                    attach::provide(attached, || self.answer(&part, answer, time));
                }
                Ok(())
            }
            Kind::Descriptor => worker.take_descriptor(),
            Kind::Bell => {
                worker.is_armed = false;
                self.polled.push(number);
                Ok(())
            }
            _ => Err(Garbage),
        }
    }

    /// An item is answered.
    pub(super) fn answer(&mut self, part: &Part, answer: Result<Body<'_>, TaskError>, took: Duration) {
        // Counted before anybody can learn of it.
        if let Some(finished) = part.job.answer(part.items.start, answer, took) {
            self.finish(finished);
        }
    }

    fn finish(&mut self, finished: Finished<'_>) {
        self.shared.counters.finished(finished.ending);
        if !self.deadlines.is_empty() {
            self.deadlines.remove(&finished.order());
        }
        finished.publish();
    }
}
