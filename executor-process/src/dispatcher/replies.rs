//! What workers say: frames are read, checked, matched with their tasks, and answered.
//!
//! Nothing is taken on trust: a frame that is unknown, too long, or out of turn costs its worker.

use std::time::{Duration, Instant};

use executor_core::TaskError;

use super::Dispatcher;
use super::time::Timer;
use crate::job::{Part, read_answer};
use crate::wire::{Garbage, HEADER, Header, Kind, Status};
use crate::worker::Read;
use crate::worker_main::WORN;

/// Reads of one worker's socket in a row, before others get their turn.
const READS: usize = 16;

impl Dispatcher {
    pub(super) fn read(&mut self, number: u64) {
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

    pub(super) fn handle_frames(&mut self, number: u64) -> Result<(), Garbage> {
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
    pub(super) fn next_frame<'a>(
        &self,
        worker: u64,
        bytes: &'a [u8],
    ) -> Result<Option<(Header, &'a [u8])>, Garbage> {
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
                self.begin_task(number);
                Ok(())
            }
            Kind::Reply => {
                let part = worker.match_reply(header.number)?;
                let verdict = worker.take_verdict(header.number);
                if verdict.is_some() {
                    worker.close(); // it has let the signal pass, and has nothing more to do
                }
                let limit = self.shared.settings.message_limit;
                let answer = read_answer(header.status, body, &worker.name, part.job.label(), limit);
                if header.count == WORN {
                    worker.is_worn = true;
                }
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
                } else if header.count == WORN {
                    self.revoke(number);
                } else {
                    self.begin_task(number);
                }
                // Its time was up before it answered.
                let answer = verdict.map_or(answer, Err);
                self.answer(&part, answer, Duration::from_nanos(header.time));
                Ok(())
            }
            _ => Err(Garbage),
        }
    }

    /// An item is answered.
    pub(super) fn answer(&mut self, part: &Part, answer: Result<&[u8], TaskError>, took: Duration) {
        // Counted before anybody can learn of it.
        if let Some(finished) = part.job.answer(part.items.start, answer, took) {
            self.shared.counters.finished(finished.ending);
            self.deadlines.remove(&part.job.order);
            finished.publish();
        }
    }
}
