//! A worker process as the dispatcher sees it: its connection, what was handed to it, and how it ends.
//!
//! ```text
//!   requested ──Forked──► alive ──Ready──► ready ──closed (retire)──► ending ──Ended──► gone
//!                          └──────────────── dies ────────────────────────────Ended──► gone
//! ```
//!
//! Tasks may be handed over from the first moment: the socket keeps them until the process is there.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use executor_core::{CallLimits, TaskError, WorkerInfo};

use crate::attach;
use crate::bulk::{self, Channel, Outbound};
use crate::gate::Gate;
use crate::job::{EncodedContext, Job, Part};
use crate::ring::{BELL, Reader, Ring, TurnedBell};
use crate::share::Segment;
use crate::sync::{Arc, Ordering};
use crate::sys::memory::SharedPage;
use crate::sys::socket;
use crate::wire::{self, CallHead, Garbage, HEADER, Header, Kind};
use crate::worker_main::{CPU_TIME, GATE, PID};

/// The most contexts a worker keeps. More spare sending one again; each is held in the worker's memory.
const CONTEXTS: usize = 8;

/// How much is read at once, in bytes: at first, and at most. It grows where reads are filled.
const FIRST_READ: usize = 4 * 1024;
const READ: usize = 64 * 1024;

pub(crate) struct Worker {
    /// Never given twice: how the fork server and the poll know it.
    pub(crate) number: u64,
    /// Its place among the pool's workers, given again after it.
    pub(crate) index: usize,
    pub(crate) name: String,
    socket: OwnedFd,
    page: Arc<SharedPage>,
    pub(crate) process: Option<Process>,
    /// Whether it has said that it is set up.
    pub(crate) is_ready: bool,
    /// Whether its connection is closed on our side, or it is dying: it gets nothing more.
    pub(crate) is_ending: bool,
    /// Whether it said that it should be replaced: it gets nothing more.
    pub(crate) is_worn: bool,
    /// Whether its connection has been read to its end.
    pub(crate) is_drained: bool,
    /// What it was handed and has not answered, in order.
    pub(crate) legs: VecDeque<Leg>,
    /// The id of the task in `legs`, if it was handed over directly.
    pub(crate) direct: Option<usize>,
    /// How many tasks are in `legs`.
    pub(crate) load: usize,
    next_number: u64,
    /// Tasks handed to it in its life.
    pub(crate) handed: u64,
    /// Since when it has been at the first of its tasks, as far as is known here.
    pub(crate) busy_since: Option<Instant>,
    pub(crate) idle_since: Instant,
    /// When the task it is at must have ended.
    pub(crate) time_out: Option<Instant>,
    /// Whether a timer looks after what waits behind the task it is at.
    pub(crate) is_watched: bool,
    /// Whether a timer looks whether it has been idle for long enough.
    pub(crate) is_watched_idle: bool,
    /// Whether a timer looks whether it still needs its bulk memory.
    pub(crate) is_watched_bulk: bool,
    /// Whether it is time to see whether that memory is larger than it need be.
    pub(crate) may_shrink_bulk: bool,
    /// Whether nobody will tell how it ended: its fork server is gone.
    pub(crate) is_orphan: bool,
    /// Whether its process was seen to have ended.
    pub(crate) is_dead: bool,
    /// Why it was killed, for the task it was at.
    pub(crate) verdict: Option<(u64, TaskError)>,
    /// The limits that hold for the calls it is sent next.
    limits: CallLimits,
    /// Whether a `Lift` must go before anything else.
    owes_lift: bool,
    /// Whether large messages may go through memory.
    may_use_bulk: bool,
    inbound: Channel,
    outbound: Channel,
    contexts: VecDeque<u64>,
    out: Vec<u8>,
    sent: usize,
    /// What goes along with the byte at that place in `out`, in order.
    riders: VecDeque<(usize, Rider)>,
    /// The shared memory it was told of.
    segments: BTreeSet<u64>,
    /// Whether the poll waits for room in the socket.
    pub(crate) waits_to_write: bool,
    input: Vec<u8>,
    filled: usize,
    read: usize,
    /// Descriptors that came in, each part of a frame that is still to be read.
    arrived: VecDeque<Option<OwnedFd>>,
    /// Descriptors that are part of the next reply.
    pub(crate) attached: attach::Arrived,
    results: Reader,
    /// Whether the worker will say by a `Bell` that there are results in the ring.
    pub(crate) is_armed: bool,
}

pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// A descriptor on its way to the worker.
enum Rider {
    Segment(Arc<Segment>),
    Descriptor(Arc<OwnedFd>),
    Bulk(OwnedFd),
}

impl Rider {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Segment(segment) => segment.file(),
            Self::Descriptor(descriptor) => descriptor.as_fd(),
            Self::Bulk(file) => file.as_fd(),
        }
    }
}

/// Tasks handed to a worker in one message.
pub(crate) struct Leg {
    /// The number of the first one.
    pub(crate) first: u64,
    pub(crate) part: Part,
    /// Whether their arguments are in the inbound memory.
    is_bulk: bool,
}

/// What a worker has left behind.
pub(crate) struct Remains {
    /// What it had begun and not answered, one item each, with the reason it was killed for it: the task it was at, and
    /// more only if its answers were not to be trusted.
    pub(crate) victims: Vec<(Part, Option<TaskError>)>,
    /// What had not begun.
    pub(crate) unbegun: Vec<Part>,
}

impl Worker {
    pub(crate) fn new(
        number: u64,
        index: usize,
        name: String,
        socket: OwnedFd,
        page: SharedPage,
        may_use_bulk: bool,
    ) -> Self {
        Self {
            number,
            index,
            name,
            socket,
            page: Arc::new(page),
            process: None,
            is_ready: false,
            is_ending: false,
            is_worn: false,
            is_drained: false,
            legs: VecDeque::new(),
            direct: None,
            load: 0,
            next_number: 1,
            handed: 0,
            busy_since: None,
            idle_since: Instant::now(),
            time_out: None,
            is_watched: false,
            is_watched_idle: false,
            is_watched_bulk: false,
            may_shrink_bulk: false,
            is_orphan: false,
            is_dead: false,
            verdict: None,
            limits: CallLimits::default(),
            owes_lift: false,
            may_use_bulk,
            inbound: Channel::default(),
            outbound: Channel::default(),
            contexts: VecDeque::new(),
            out: Vec::new(),
            sent: 0,
            riders: VecDeque::new(),
            segments: BTreeSet::new(),
            arrived: VecDeque::new(),
            attached: Vec::new(),
            waits_to_write: false,
            input: Vec::new(),
            filled: 0,
            read: FIRST_READ,
            results: Reader::default(),
            is_armed: false,
        }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    fn gate(&self) -> Gate<'_> {
        Gate::new(self.page.word(GATE))
    }

    pub(crate) fn pid(&self) -> u32 {
        let told = || u32::try_from(self.page.word(PID).load(Ordering::Acquire)).unwrap_or(0);
        self.process.as_ref().map_or_else(told, |process| process.pid)
    }

    /// How much processor time it had used when it began its last task with a limit on that.
    pub(crate) fn cpu_time_before(&self) -> Duration {
        Duration::from_nanos(self.page.word(CPU_TIME).load(Ordering::Acquire))
    }

    // --- to the worker ---

    /// Appends a frame without a context.
    pub(crate) fn write_frame(&mut self, kind: Kind, number: u64, body: &[u8]) {
        self.out.extend_from_slice(&Header::new(kind, number, body.len() as u64).encode());
        self.out.extend_from_slice(body);
    }

    /// Hands over tasks whose job is reserved.
    pub(crate) fn hand_over(&mut self, part: Part) {
        if std::mem::take(&mut self.owes_lift) {
            self.write_frame(Kind::Lift, 0, &[]);
        }
        let limits = part.job.limits();
        if limits != std::mem::replace(&mut self.limits, limits) {
            self.write_frame(Kind::Limits, 0, &wire::encode_limits(&limits));
        }
        let head = part.job.head;
        if let Some(context) = part.job.context() {
            self.send_context(head.context, context);
        }
        for segment in part.job.segments() {
            if self.segments.insert(segment.id) {
                self.riders.push_back((self.out.len(), Rider::Segment(Arc::clone(segment))));
                self.write_frame(Kind::Segment, segment.id, &[]);
            }
        }
        let first = self.next_number;
        for (item, descriptor) in part.job.descriptors() {
            if let Some(at) = item.checked_sub(part.items.start).filter(|at| *at < part.items.len()) {
                self.riders.push_back((self.out.len(), Rider::Descriptor(Arc::clone(descriptor))));
                self.write_frame(Kind::Descriptor, first + at as u64, &[]);
            }
        }
        let arguments = part.job.arguments(&part.items);
        let count = part.items.len();
        let is_bulk = (limits.memory, limits.open_files) == (None, None) && self.put_inbound(arguments);
        let in_body = if is_bulk { &[] } else { arguments };
        let mut header = Header::new(Kind::Call, first, (CallHead::BYTES + in_body.len()) as u64);
        header.count = u32::try_from(count).unwrap_or(u32::MAX);
        header.time = if is_bulk { arguments.len() as u64 } else { 0 };
        self.out.extend_from_slice(&header.encode());
        head.encode(&mut self.out);
        self.out.extend_from_slice(in_body);
        self.next_number += count as u64;
        self.handed += count as u64;
        self.load += count;
        self.legs.push_back(Leg { first, part, is_bulk });
    }

    /// Puts arguments into the inbound memory; false if they are not for it, or it is not free.
    fn put_inbound(&mut self, arguments: &[u8]) -> bool {
        if !self.may_use_bulk || !Channel::takes(arguments.len()) || self.legs.iter().any(|leg| leg.is_bulk) {
            return false;
        }
        match self.inbound.make_room(arguments.len()) {
            Ok(None) => {}
            Ok(Some(file)) => self.send_bulk(bulk::INBOUND, file),
            Err(_) => return false, // no memory, or no descriptor: the socket needs neither
        }
        self.inbound.get().is_some_and(|bulk| bulk.write(arguments))
    }

    /// The worker has sent a result of so many bytes by the socket, and has nothing to do: the next one may go through memory.
    /// Says whether there is something to send.
    pub(crate) fn make_outbound(&mut self, length: usize) -> bool {
        if !self.may_use_bulk || !Channel::takes(length) || !self.legs.is_empty() || self.is_ending {
            return false;
        }
        let file = self.outbound.make_room(length).ok().flatten();
        file.is_some_and(|file| {
            self.send_bulk(bulk::OUTBOUND, file);
            true
        })
    }

    fn send_bulk(&mut self, way: u64, file: OwnedFd) {
        self.riders.push_back((self.out.len(), Rider::Bulk(file)));
        let header = Header { count: 1, ..Header::new(Kind::Bulk, way, 0) };
        self.out.extend_from_slice(&header.encode());
    }

    /// Whether it has memory for large messages.
    pub(crate) const fn has_bulk(&self) -> bool {
        self.inbound.get().is_some() || self.outbound.get().is_some()
    }

    /// Gives that memory up, of a worker that has nothing to do. Says whether there is something to send.
    pub(crate) fn drop_bulk(&mut self) -> bool {
        self.give_up_bulk(Channel::clear)
    }

    /// The same for what is larger than it need be.
    pub(crate) fn shrink_bulk(&mut self) -> bool {
        self.give_up_bulk(Channel::shrink)
    }

    fn give_up_bulk(&mut self, give_up: fn(&mut Channel) -> bool) -> bool {
        let (inbound, outbound) = (give_up(&mut self.inbound), give_up(&mut self.outbound));
        for (way, is_gone) in [(bulk::INBOUND, inbound), (bulk::OUTBOUND, outbound)] {
            if is_gone {
                self.write_frame(Kind::Bulk, way, &[]);
            }
        }
        inbound || outbound
    }

    /// The result in the outbound memory, of which the worker has told the length.
    pub(crate) fn outbound(&mut self, length: u64) -> Result<Outbound, Garbage> {
        self.outbound.result(&self.page, length).ok_or(Garbage)
    }

    fn send_context(&mut self, id: u64, context: &EncodedContext) {
        if let Some(at) = self.contexts.iter().position(|known| *known == id) {
            // Used again: the last to be forgotten.
            self.contexts.remove(at);
        } else {
            if self.contexts.len() == CONTEXTS
                && let Some(oldest) = self.contexts.pop_front()
            {
                self.write_frame(Kind::Forget, oldest, &[]);
            }
            let bytes = context.bytes();
            let length = size_of::<u64>() + bytes.len();
            self.out.extend_from_slice(&Header::new(Kind::Context, id, length as u64).encode());
            self.out.extend_from_slice(&context.descriptor.to_ne_bytes());
            self.out.extend_from_slice(bytes);
        }
        self.contexts.push_back(id);
    }

    /// Sends what is written, as far as the socket takes it. Says whether something is left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.out.len() {
            let mut riders = self.riders.iter();
            let rider = self.riders.front().filter(|(at, _)| *at == self.sent);
            let end = riders.nth(usize::from(rider.is_some())).map_or(self.out.len(), |(at, _)| *at);
            let (socket, bytes) = (self.socket.as_fd(), &self.out[self.sent..end]);
            let result = match rider {
                Some((_, rider)) => socket::send_with(socket, bytes, rider.fd()),
                None => socket::send(socket, bytes),
            };
            match result {
                Ok(sent) => {
                    if rider.is_some() {
                        self.riders.pop_front();
                    }
                    self.sent += sent;
                }
                Err(error) if error.raw_os_error() == Some(socket::TOO_MANY_IN_FLIGHT) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.out.shrink_to(4 * READ); // a large argument does not stay
        self.sent = 0;
        Ok(false)
    }

    /// Closes our side: the worker ends when it has read everything.
    pub(crate) fn close(&mut self) {
        self.is_ending = true;
        socket::close_writing(self.socket.as_fd());
    }

    // --- from the worker ---

    /// Reads once; false at the end of the connection, or when there is nothing now.
    pub(crate) fn read(&mut self) -> io::Result<Read> {
        let wanted = self.wanted();
        if self.input.len() < wanted {
            self.input.resize(wanted, 0);
        }
        match socket::receive_stream(
            self.socket.as_fd(),
            &mut self.input[self.filled..],
            socket::Blocking::Never,
        ) {
            Ok(packet) if packet.length == 0 => Ok(Read::End),
            Ok(packet) => {
                self.filled += packet.length;
                self.arrived.extend(packet.fds.into_iter().map(Some));
                if packet.is_cut {
                    self.arrived.push_back(None);
                }
                if self.arrived.len() > 2 * attach::MOST_DESCRIPTORS {
                    return Err(io::ErrorKind::InvalidData.into()); // nobody has asked for them
                }
                if self.filled < self.input.len() {
                    return Ok(Read::Some);
                }
                self.read = READ.min(2 * self.read);
                Ok(Read::Full)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Read::Nothing),
            Err(error) => Err(error),
        }
    }

    /// How long the input buffer has to be: for the frame it begins with, or for a good piece of whatever comes.
    fn wanted(&self) -> usize {
        let frame = match Header::decode(&self.input[..self.filled]) {
            Ok(Some(header)) => {
                usize::try_from(header.length).map_or(0, |length| length.saturating_add(HEADER))
            }
            _ => 0,
        };
        frame.max(self.filled + self.read / 2).max(self.read)
    }

    /// Takes the descriptor that belongs to the frame being read.
    pub(crate) fn take_descriptor(&mut self) -> Result<(), Garbage> {
        let descriptor = self.arrived.pop_front().ok_or(Garbage)?;
        self.attached.push(descriptor);
        Ok(())
    }

    /// Whether it was not yet told of this shared memory.
    pub(crate) fn lacks(&self, segment: u64) -> bool {
        !self.segments.contains(&segment)
    }

    /// Lets it drop shared memory; says whether it had it.
    pub(crate) fn release(&mut self, segment: u64) -> bool {
        let had = self.segments.remove(&segment);
        if had {
            self.write_frame(Kind::Release, segment, &[]);
        }
        had
    }

    /// The frames that have arrived, and the buffer they are in. Give it back by [`consumed`](Self::consumed).
    pub(crate) fn take_input(&mut self) -> (Vec<u8>, usize) {
        (std::mem::take(&mut self.input), self.filled)
    }

    /// `used` bytes of the input are dealt with.
    pub(crate) fn consumed(&mut self, mut input: Vec<u8>, used: usize) {
        input.copy_within(used..self.filled, 0);
        self.filled -= used;
        if input.len() > 4 * READ && self.filled < READ {
            input.truncate(READ);
            input.shrink_to_fit(); // a large result does not stay
        }
        self.input = input;
    }

    /// Copies out what the worker has committed to its ring, into memory given for that; says whether there is anything to
    /// deal with.
    pub(crate) fn take_results(
        &mut self,
        memory: &mut Vec<u64>,
    ) -> Result<Option<(Vec<u64>, usize)>, Garbage> {
        self.results.fill(Ring::of(&self.page), memory)?;
        Ok(if self.results.is_empty() { None } else { Some(self.results.take()) })
    }

    /// The copy is dealt with up to `used`. Gives its memory if that is all.
    pub(crate) fn put_results_back(&mut self, words: Vec<u64>, used: usize) -> Option<Vec<u64>> {
        self.results.put_back(words, used)
    }

    /// Whether there is something in the ring.
    pub(crate) fn has_results(&self) -> bool {
        self.results.has_more(Ring::of(&self.page))
    }

    /// Lets the worker ring when there is something in the ring; says whether there is something already.
    pub(crate) fn arm(&mut self) -> bool {
        self.is_armed = true;
        self.results.arm(Ring::of(&self.page))
    }

    /// The task it was handed directly has ended by another way than its bell: gives its id, and wakes who waits for that.
    pub(crate) fn end_direct(&mut self) -> Option<usize> {
        let task = self.direct.take();
        if task.is_some() && Ring::of(&self.page).bell.turn_back() {
            self.page.wake(BELL);
        }
        task
    }

    /// Turns the bell that is set to a thread that waits for the task; none if it has rung.
    pub(crate) fn turn_bell(&self) -> Option<TurnedBell> {
        TurnedBell::new(&self.page)
    }

    /// The first of its tasks that is not answered, and how many from there on may be by now; none if it has begun none.
    pub(crate) fn answerable(&self) -> Option<(u64, u64)> {
        let first = self.legs.front()?.first;
        Some((first, (self.gate().begun() + 1).checked_sub(first).filter(|most| *most > 0)?))
    }

    /// Takes the next `count` items off the first leg.
    pub(crate) fn advance(&mut self, count: usize) {
        let Some(leg) = self.legs.front_mut() else { return };
        leg.first += count as u64;
        leg.part.items.start += count;
        self.load -= count;
        if leg.part.items.is_empty() {
            self.legs.pop_front();
        }
    }

    /// Matches a reply with its task: the part of one item it belongs to. Replies come in the order of the tasks.
    pub(crate) fn match_reply(&mut self, number: u64) -> Result<Part, Garbage> {
        // Never one that has not begun, and never a second time.
        if self.at_work_on() != Some(number) {
            return Err(Garbage);
        }
        let leg = self.legs.front().ok_or(Garbage)?;
        let item = leg.part.items.start;
        let part = Part { job: Arc::clone(&leg.part.job), items: item..item + 1 };
        self.advance(1);
        Ok(part)
    }

    // --- revoking and ending ---

    /// Takes back what has not begun; nothing if the last revocation is not through yet.
    pub(crate) fn revoke(&mut self) -> Vec<Part> {
        let Some(begun) = self.gate().close() else { return Vec::new() };
        self.owes_lift = true;
        self.cut_after(begun)
    }

    /// Removes everything after task `begun` from the legs.
    fn cut_after(&mut self, begun: u64) -> Vec<Part> {
        let mut unbegun = Vec::new();
        while let Some(leg) = self.legs.back_mut() {
            let keep = usize::try_from((begun + 1).saturating_sub(leg.first)).unwrap_or(usize::MAX);
            if keep >= leg.part.items.len() {
                break;
            }
            let removed =
                if keep == 0 { self.legs.pop_back().map(|leg| leg.part) } else { leg.part.split_off(keep) };
            let Some(part) = removed else { break };
            self.load -= part.items.len();
            unbegun.push(part);
        }
        unbegun.reverse();
        unbegun
    }

    /// The number of the task it is at, if it has begun one that is not answered.
    pub(crate) fn at_work_on(&self) -> Option<u64> {
        let first = self.legs.front()?.first;
        (self.gate().begun() >= first).then_some(first)
    }

    /// Why this task was to be ended, if it was.
    fn take_verdict(&mut self, task: u64) -> Option<TaskError> {
        self.verdict.take_if(|(aimed_at, _)| *aimed_at == task).map(|(_, error)| error)
    }

    /// The task has answered. Gives the answer that counts instead, if it was to be ended: the worker has let the signal pass,
    /// and has nothing more to do.
    pub(crate) fn overrule(&mut self, task: u64) -> Option<TaskError> {
        let verdict = self.take_verdict(task);
        if verdict.is_some() {
            self.close();
        }
        verdict
    }

    /// Takes back what a dead worker has not begun. Nothing begins from here on, not in a process that one of its tasks has
    /// forked either.
    pub(crate) fn rescue(&mut self) -> Vec<Part> {
        self.gate().close();
        self.cut_after(self.gate().begun())
    }

    /// Sorts what a dead worker had into what it had begun and what not. Its connection has been read to the end.
    pub(crate) fn take_remains(&mut self) -> Remains {
        let begun = self.gate().begun();
        let unbegun = self.cut_after(begun);
        let mut victims = Vec::new();
        for Leg { first, mut part, .. } in std::mem::take(&mut self.legs) {
            for number in first.. {
                let rest = part.split_off(1);
                victims.push((part, self.take_verdict(number)));
                match rest {
                    Some(rest) => part = rest,
                    None => break,
                }
            }
        }
        self.load = 0;
        Remains { victims, unbegun }
    }

    /// Whether it was handed some of this job.
    pub(crate) fn holds(&self, job: &Arc<Job>) -> bool {
        self.legs.iter().any(|leg| Arc::ptr_eq(&leg.part.job, job))
    }

    pub(crate) fn info(&self) -> WorkerInfo {
        let info = WorkerInfo::idle(self.name.clone(), u64::from(self.pid()));
        match (self.legs.front(), self.busy_since) {
            (Some(leg), Some(since)) => info.running(leg.part.job.label(), since.elapsed()),
            (Some(leg), None) => info.running(leg.part.job.label(), Duration::ZERO),
            (None, _) => info,
        }
    }
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// As much as fitted: there may be more.
    Full,
    Some,
    Nothing,
    End,
}
