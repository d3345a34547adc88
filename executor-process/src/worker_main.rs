//! What runs in a worker process: a freshly forked, single-threaded copy of the fork server.
//!
//! It reads frames from its one socket, in order, and runs tasks one at a time: begin (see [`gate`](crate::gate)),
//! decode, call, encode, and out: a small result by the [`ring`](crate::ring), anything else through the socket. An
//! answer has left this process before the next task begins, so it cannot die with this process. The worker ends when
//! the parent closes its side: by `exit`, so that exit handlers run and coverage is written.
//!
//! # When the parent is told of what is in the ring
//!
//! Before the worker waits for more to do; once the oldest such result is [`LONGEST_SILENCE`] old, as seen between two
//! calls, or [`SILENCE_WITHIN`], as seen between two tasks of one call, whose results nobody gets but together; and when
//! the ring fills. So a batch of quick tasks wakes the parent once. Should the next task be long, the parent, which looks
//! after workers that hold more than one task, finds the results by itself.
//!
//! The fork server has one thread, so everything may be called here: the user's functions may allocate, print, and start
//! threads and pools of their own.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use executor_core::fork::PoolId;
use executor_core::{CallLimits, codec};

use crate::attach::{self, Attachments};
use crate::bell::Told;
use crate::bulk::{self, TAKEN_BULK};
use crate::call::{self, Descriptor, Name, Once, Turns};
use crate::gate::Gate;
use crate::ring::{self, BELL, Ring, Writer};
use crate::share::Segment;
use crate::sync::{Arc, Ordering};
use crate::sys::limits::{Applied, Limit, Memory, cpu_time};
use crate::sys::memory::{self, Bulk, SharedPage};
use crate::sys::process;
use crate::sys::socket::{self, Blocking};
use crate::wire::{CallHead, HEADER, Header, Kind, Setup, Status, decode_limits, take_sized, take_word};

/// Does in the fork server, once, what every worker would otherwise do first of all.
pub(crate) fn warm_up() {
    let _ = PoolId::next();
    let _ = executor_core::panic_report::catch(|| ());
    let _ = Stopwatch::default().lap(1);
    let _ = io::stdout().flush();
}

/// Runs tasks until the parent closes the socket.
pub(crate) fn run(socket: OwnedFd, page: SharedPage) -> ! {
    // ORDERING: release; pairs with the acquire in the parent's `Worker::pid`, though nothing is read through it.
    page.word(PID).store(u64::from(std::process::id()), Ordering::Release);
    let mut worker = Worker {
        socket,
        page,
        mark: PoolId::next(),
        contexts: BTreeMap::new(),
        out: Vec::new(),
        results: Writer::default(),
        silent_since: None,
        arrived: VecDeque::new(),
        descriptors: BTreeMap::new(),
        inbound: None,
        outbound: None,
        outbound_results: 0,
        segments: BTreeMap::new(),
        watch: Stopwatch::default(),
        message_limit: u64::MAX,
        limits: CallLimits::default(),
        growth: None,
    };
    let code = match worker.serve() {
        Ok(()) => 0,
        Err(Broken) => BROKEN,
    };
    std::process::exit(code)
}

/// The index of the gate in the shared page.
pub(crate) const GATE: usize = 0;

/// The index, in the shared page, of the worker's process id, which it writes first of all: the fork server may be gone
/// before it has told.
pub(crate) const PID: usize = 1;

/// The index, in the shared page, of the processor time the worker had used before the last task with a limit on that, in
/// nanoseconds.
pub(crate) const CPU_TIME: usize = 2;

/// The `count` of a reply by which a worker asks to be replaced.
pub(crate) const WORN: u32 = 1;

/// Between two looks at the worker's memory: a look costs some microseconds.
const MEMORY_PAUSE: Duration = Duration::from_millis(10);

/// The exit code of a worker whose parent sent what it should not.
const BROKEN: i32 = 239;

/// How much is read at once, in bytes: at first a few small tasks, and at most a batch of them, or a good piece of a large
/// one. It grows where reads are filled: of many workers, most never need more, and each page of it takes time to start.
const FIRST_READ: usize = 4 * 1024;
const READ: usize = 64 * 1024;

/// How large the memory is that is kept for encoding results, in bytes. More spares page faults; less keeps less.
const KEPT: usize = 4 << 20;

/// How long results may lie in the ring while the worker goes on, before it tells the parent. Shorter wakes the parent
/// more often; longer leaves it less time to send more before the worker has nothing left.
const LONGEST_SILENCE: Duration = Duration::from_micros(20);

/// The same while more tasks of the same call are to come. Shorter wakes the parent for what nobody can have yet; longer
/// leaves it ignorant of how far the worker has got.
const SILENCE_WITHIN: Duration = Duration::from_millis(1);

/// How often a worker whose ring is full lets others run, of which its parent may be one, before it goes by the socket.
const PATIENCE: u32 = 32;

/// The connection is of no use any more.
struct Broken;

struct Worker {
    socket: OwnedFd,
    page: SharedPage,
    /// Tells the worker from a twin that a task made of it by `fork`.
    mark: PoolId,
    contexts: BTreeMap<u64, Context>,
    /// The frame that is being written, header first.
    out: Vec<u8>,
    results: Writer,
    /// Since when the parent was not told of results.
    silent_since: Option<Instant>,
    /// Descriptors that came in, each part of a frame that is still to be read.
    arrived: VecDeque<Option<OwnedFd>>,
    /// Descriptors that are part of the arguments of tasks to come.
    descriptors: BTreeMap<u64, attach::Arrived>,
    /// Where large arguments come from, and large results go.
    inbound: Option<Bulk>,
    outbound: Option<Bulk>,
    /// Results put into `outbound`, ever.
    outbound_results: u64,
    /// Shared memory, until the parent needs it no more.
    segments: BTreeMap<u64, Arc<Segment>>,
    watch: Stopwatch,
    message_limit: u64,
    /// What holds for the calls that come.
    limits: CallLimits,
    growth: Option<Growth>,
}

/// How much the memory of the worker may grow.
struct Growth {
    /// Beyond this it asks to be replaced.
    most: u64,
    looked: Instant,
}

impl Growth {
    /// Whether it is time to look, and there is too much.
    fn is_too_much(&mut self, now: Instant) -> bool {
        if now.duration_since(self.looked) < MEMORY_PAUSE {
            return false;
        }
        self.looked = now;
        Memory::now().is_some_and(|memory| memory.own > self.most)
    }
}

/// What the tasks of one call have in common, looked up.
type Found = Result<(&'static Descriptor, usize), Box<str>>;

/// What a task came to, beside its result.
#[derive(Clone, Copy)]
struct Outcome {
    number: u64,
    status: Status,
    lap: Lap,
    /// Whether this process asks to be replaced.
    is_worn: bool,
    /// Whether it is the last one of its call.
    is_last: bool,
}

/// A call, as far as it has got.
struct Course<'a> {
    /// The task that has begun, and its argument.
    number: u64,
    argument: &'a [u8],
    /// The arguments behind it.
    rest: &'a [u8],
    /// How many more may run before the worker looks at the clock.
    left: u64,
    /// Whether the task has not begun, but was revoked.
    is_revoked: bool,
}

/// The loop around the tasks of a call: what must be done for every one of them, and nothing else.
struct Loop<'a, 'b> {
    course: &'a mut Course<'b>,
    gate: Gate<'a>,
    ring: Ring<'a>,
    results: &'a mut Writer,
    mark: PoolId,
    /// The longest result it takes, in bytes.
    longest: usize,
}

impl Turns for Loop<'_, '_> {
    fn argument(&self) -> &[u8] {
        self.course.argument
    }

    fn go_on(&mut self, out: &mut Vec<u8>) -> bool {
        let course = &mut *self.course;
        // A task that has forked returns twice; see `run_tasks`.
        if course.left == 0 || out.len() > HEADER + self.longest || self.mark.is_inherited() {
            return false;
        }
        let Some((argument, rest)) = take_sized(course.rest) else { return false };
        if !self.results.commit(self.ring, course.number, None, &out[HEADER..]) {
            return false;
        }
        out.truncate(HEADER);
        course.number += 1;
        course.left -= 1;
        course.is_revoked = !self.gate.begin(course.number);
        (course.argument, course.rest) = (argument, rest);
        !course.is_revoked
    }
}

/// A context, decoded when the first task asks for it: a task that cannot decode it is that task's failure.
enum Context {
    Encoded { descriptor: u64, bytes: Vec<u8> },
    Decoded(Result<Box<dyn Any>, Box<str>>),
}

impl Worker {
    fn serve(&mut self) -> Result<(), Broken> {
        let mut input = Vec::new();
        let (mut filled, mut read) = (0, FIRST_READ);
        loop {
            let mut used = 0;
            let missing = loop {
                let rest = &input[used..filled];
                match Header::decode(rest).map_err(|_| Broken)? {
                    None => break HEADER,
                    Some(header) => {
                        let length = usize::try_from(header.length).map_err(|_| Broken)?;
                        let whole = HEADER.checked_add(length).ok_or(Broken)?;
                        if rest.len() < whole {
                            break whole;
                        }
                        self.handle(header, &rest[HEADER..whole])?;
                        used += whole;
                    }
                }
            };
            input.copy_within(used..filled, 0);
            filled -= used;
            let room = missing.max(filled + read);
            if input.len() < room || input.len() > 4 * room.max(READ) {
                input.resize(room, 0);
                input.shrink_to(room);
            }
            if self.results.is_early(Ring::of(&self.page)) {
                // Whoever has sent the last task may be about to wait for it, on this very core.
                std::thread::yield_now();
            }
            self.announce()?;
            self.watch.stop();
            let (socket, room) = (self.socket.as_fd(), &mut input[filled..]);
            match socket::receive_stream(socket, room, Blocking::Wait) {
                Ok(packet) if packet.length > 0 => {
                    if packet.length == room.len() {
                        read = READ.min(2 * read);
                    }
                    filled += packet.length;
                    self.arrived.extend(packet.fds.into_iter().map(Some));
                    if packet.is_cut {
                        self.arrived.push_back(None);
                    }
                }
                _ => return Ok(()), // the parent has closed its side, or is gone
            }
        }
    }

    fn handle(&mut self, header: Header, body: &[u8]) -> Result<(), Broken> {
        match header.kind {
            Kind::Setup => self.set_up(&codec::decode(body).map_err(|_| Broken)?),
            Kind::Context => {
                let (descriptor, bytes) = take_word(body).ok_or(Broken)?;
                self.contexts.insert(header.number, Context::Encoded { descriptor, bytes: bytes.to_vec() });
                Ok(())
            }
            Kind::Forget => {
                if let Some(context) = self.contexts.remove(&header.number) {
                    executor_core::panic_report::swallow(|| drop(context));
                }
                Ok(())
            }
            Kind::Call => self.run_tasks(header, body),
            Kind::Limits => {
                self.limits = decode_limits(body).ok_or(Broken)?;
                Ok(())
            }
            Kind::Lift => {
                Gate::new(self.page.word(GATE)).lift();
                Ok(())
            }
            Kind::Segment => {
                // One that cannot be mapped fails the tasks that ask for it.
                if let Some(file) = self.arrived.pop_front().ok_or(Broken)?
                    && let Ok(segment) = Segment::open(header.number, file)
                {
                    self.segments.insert(header.number, segment);
                }
                Ok(())
            }
            Kind::Release => {
                if let Some(segment) = self.segments.remove(&header.number) {
                    executor_core::panic_report::swallow(|| drop(segment));
                }
                Ok(())
            }
            Kind::Descriptor => {
                let descriptor = self.arrived.pop_front().ok_or(Broken)?;
                self.descriptors.entry(header.number).or_default().push(descriptor);
                Ok(())
            }
            Kind::Bulk => {
                let way = if header.number == bulk::INBOUND { &mut self.inbound } else { &mut self.outbound };
                *way = None;
                if header.count > 0 {
                    // One that cannot be mapped fails the tasks that come by it.
                    let file = self.arrived.pop_front().ok_or(Broken)?;
                    *way = file.and_then(|file| Bulk::open(file.as_fd()).ok());
                    if self.growth.is_none() {
                        memory::keep_freed_memory();
                    }
                } else if self.inbound.is_none() && self.outbound.is_none() {
                    self.out = Vec::new();
                    memory::give_freed_memory_back();
                }
                Ok(())
            }
            Kind::Ready | Kind::Reply | Kind::Bell => Err(Broken),
        }
    }

    fn set_up(&mut self, setup: &Setup) -> Result<(), Broken> {
        self.message_limit = setup.message_limit;
        let limits = [
            (Limit::AddressSpace, setup.memory_limit),
            (Limit::CpuTime, setup.cpu_time_limit),
            (Limit::OpenFiles, setup.open_files_limit),
        ];
        let mut problem = None;
        for (limit, value) in limits {
            // SIGXCPU comes at the soft limit; a second later the hard one kills.
            let slack = u64::from(limit == Limit::CpuTime);
            if let Some(value) = value
                && let Err(error) = limit.set(value, value.saturating_add(slack))
            {
                problem = Some(format!("could not limit {limit:?} to {value}: {error}"));
            }
        }
        self.begin_frame();
        let mut status = Status::Returned;
        if let Some(problem) = problem {
            self.out.extend_from_slice(problem.as_bytes());
            status = Status::Failed;
        } else if let Some((descriptor, function)) = setup.initializer {
            let (descriptor, function) = call::find(Name { descriptor, function }).map_err(|_| Broken)?;
            // SAFETY: I2 of `call`: the parent named them together.
            status = unsafe { descriptor.call(function, None, &mut Once(&[]), &mut self.out) };
        }
        // From here on, what the initializer has loaded included.
        if let (Some(growth), Some(now)) = (setup.max_memory_growth, Memory::now()) {
            self.growth = Some(Growth { most: now.own.saturating_add(growth), looked: Instant::now() });
        }
        self.send_frame(Header { status, ..Header::new(Kind::Ready, 0, 0) })?;
        // A worker that is not set up runs nothing.
        if status == Status::Returned { Ok(()) } else { Err(Broken) }
    }

    fn run_tasks(&mut self, header: Header, body: &[u8]) -> Result<(), Broken> {
        let (head, mut rest) = CallHead::decode(body).ok_or(Broken)?;
        // Taken for as long as the call lasts, which borrows from it.
        let inbound = if header.time > 0 { self.inbound.take() } else { None };
        let mut found = None;
        if header.time > 0 {
            let length = usize::try_from(header.time).map_err(|_| Broken)?;
            // SAFETY: the parent writes there only when no call that came by it is with this worker (see `bulk`).
            match inbound.as_ref().and_then(|bulk| unsafe { bulk.bytes(length) }) {
                Some(bytes) => rest = bytes,
                None => found = Some(Err("the memory of its arguments could not be mapped".into())),
            }
        }
        let is_lost = found.is_some();
        // Where something is done before or after each task, each is run by itself.
        let is_looked_after = is_lost || self.limits != CallLimits::default() || self.growth.is_some();
        self.watch.start();
        let end = header.number.checked_add(u64::from(header.count)).ok_or(Broken)?;
        let mut course = Course { number: header.number, argument: &[], rest, left: 0, is_revoked: false };
        while course.number < end {
            let first = course.number;
            if !Gate::new(self.page.word(GATE)).begin(first) {
                break;
            }
            if !is_lost {
                (course.argument, course.rest) = take_sized(course.rest).ok_or(Broken)?;
            }
            let is_alone = is_looked_after || !self.descriptors.is_empty();
            course.left = if is_alone { 0 } else { self.watch.stride(end - first) - 1 };
            if let Some(descriptors) = self.descriptors.remove(&first) {
                attach::stage(descriptors);
            }
            self.begin_frame();
            let (status, mut is_worn) = match self.apply_limits() {
                None => (self.run_task(&mut found, head, &mut course), false),
                Some(Ok(applied)) => {
                    let status = self.run_task(&mut found, head, &mut course);
                    (status, !applied.take_off())
                }
                Some(Err(error)) => {
                    attach::unstage();
                    self.out.extend_from_slice(format!("could not limit the call: {error}").as_bytes());
                    (Status::DecodeFailed, true)
                }
            };
            // What was printed is seen before anybody gets a result of this call, and even if the next task kills this process.
            let _ = io::stdout().flush();
            if self.mark.is_inherited() {
                process::exit_now(0); // the task has forked, and this is not the worker
            }
            if course.is_revoked {
                self.watch.stop(); // the time of those before it is not for the next call
                break;
            }
            let number = course.number;
            let lap = self.watch.lap(number + 1 - first);
            is_worn |= self.growth.as_mut().is_some_and(|growth| growth.is_too_much(lap.end));
            let outcome = Outcome { number, status, lap, is_worn, is_last: number + 1 == end };
            match attach::take_reply() {
                None => self.answer(outcome)?,
                Some(attachments) => self.answer_with(outcome, &attachments)?,
            }
            course.number += 1;
        }
        if course.number < end {
            // Revoked, and with it all that follow: somebody else runs them. Their arguments may be gone by now.
            self.descriptors.retain(|of, _| !(course.number..end).contains(of));
        }
        if inbound.is_some() {
            self.inbound = inbound;
        }
        Ok(())
    }

    /// Limits this process for the next task; `None` if there is nothing to limit.
    fn apply_limits(&self) -> Option<io::Result<Applied>> {
        let limits = self.limits;
        if limits == CallLimits::default() {
            return None;
        }
        let mut applied = Applied::default();
        let mut apply = || {
            if let Some(bytes) = limits.memory {
                let mapped = Memory::now().ok_or(io::ErrorKind::Unsupported)?.mapped;
                applied.lower(Limit::AddressSpace, mapped.saturating_add(bytes))?;
            }
            if let Some(files) = limits.open_files {
                applied.lower(Limit::OpenFiles, files)?;
            }
            if let Some(time) = limits.cpu_time {
                let used = u64::try_from(cpu_time().as_nanos()).unwrap_or(u64::MAX);
                // ORDERING: release; pairs with the acquire in the parent, though nothing is read through it.
                self.page.word(CPU_TIME).store(used, Ordering::Release);
                applied.limit_cpu_time(time)?;
            }
            Ok(())
        };
        Some(apply().map(|()| applied))
    }

    /// Runs a task that has begun, and as many of those behind it as may go on: the status is that of the last one. What
    /// they need is looked up, and their context decoded, by the first of the call that gets here: if that goes wrong, or
    /// is the end of this process, it is that task's failure.
    fn run_task(&mut self, found: &mut Option<Found>, head: CallHead, course: &mut Course<'_>) -> Status {
        let found = found.get_or_insert_with(|| {
            let name = Name { descriptor: head.descriptor, function: head.function };
            call::find(name).and_then(|found| self.context(head.context).map(|()| found))
        });
        match found {
            Ok((descriptor, function)) => {
                let Self { page, contexts, results, out, .. } = self;
                let context = match contexts.get(&head.context) {
                    Some(Context::Decoded(Ok(context))) => Some(&**context),
                    _ => None,
                };
                let limit = usize::try_from(self.message_limit).unwrap_or(usize::MAX);
                let (gate, ring) = (Gate::new(page.word(GATE)), Ring::of(page));
                let longest = limit.min(ring::LONGEST);
                let mut turns = Loop { course, gate, ring, results, mark: self.mark, longest };
                // SAFETY: I2 of `call`: the parent named them together.
                let status = unsafe { descriptor.call(*function, context, &mut turns, out) };
                let size = (self.out.len() - HEADER) as u64;
                if size > self.message_limit {
                    self.out.truncate(HEADER);
                    self.out.extend_from_slice(&size.to_ne_bytes());
                    return Status::TooLarge;
                }
                status
            }
            Err(problem) => {
                attach::unstage(); // the argument, which nobody decodes, may have come with descriptors
                self.out.extend_from_slice(problem.as_bytes());
                Status::DecodeFailed
            }
        }
    }

    /// Sends a result with what it attaches.
    fn answer_with(&mut self, outcome: Outcome, attachments: &Attachments) -> Result<(), Broken> {
        let is_own = |segment: &Arc<Segment>| !self.segments.contains_key(&segment.id);
        if attachments.segments.iter().any(is_own) {
            self.begin_frame();
            self.out.extend_from_slice(b"a `Shared` made in a worker cannot be returned");
            return self.answer(Outcome { status: Status::EncodeFailed, ..outcome });
        }
        // A result too large, or one that could not be encoded, is not there to go with them.
        if attachments.descriptors.is_empty() || outcome.status != Status::Returned {
            return self.answer(outcome);
        }
        let frame = Header::new(Kind::Descriptor, outcome.number, 0).encode();
        for descriptor in &attachments.descriptors {
            let sent = socket::send_all_with(self.socket.as_fd(), &frame, descriptor.as_fd());
            sent.map_err(|_| Broken)?;
        }
        self.send_reply(outcome)
    }

    /// Sends what a task came to: from here on it cannot be lost. By the ring, unless it is more than a small result.
    fn answer(&mut self, outcome: Outcome) -> Result<(), Broken> {
        let Outcome { status, lap: Lap { end, .. }, is_worn, is_last, .. } = outcome;
        let is_plain = status == Status::Returned && !is_worn;
        if !is_plain || !(self.commit(outcome) || self.wait_for_room()? && self.commit(outcome)) {
            return self.send_reply(outcome);
        }
        let longest = if is_last { LONGEST_SILENCE } else { SILENCE_WITHIN };
        let is_late = end.duration_since(*self.silent_since.get_or_insert(end)) >= longest;
        if is_late || self.results.is_filling(Ring::of(&self.page)) { self.announce() } else { Ok(()) }
    }

    /// Puts a result into the ring, or a long one into the outbound memory; false if it must go by the socket.
    fn commit(&mut self, Outcome { number, lap, .. }: Outcome) -> bool {
        let (ring, time) = (Ring::of(&self.page), Some(lap.nanoseconds));
        let length = self.out.len() - HEADER;
        if length <= ring::LONGEST {
            return self.results.commit(ring, number, time, &self.out[HEADER..]);
        }
        let is_committed = self.put_outbound() && self.results.commit_bulk(ring, number, time, length);
        self.outbound_results += u64::from(is_committed);
        is_committed
    }

    /// Waits a moment for the parent to empty the ring, if that is full: it is about to, and has no core to do it. Says
    /// whether there is room now that was not there before.
    fn wait_for_room(&mut self) -> Result<bool, Broken> {
        if !self.results.is_filling(Ring::of(&self.page)) {
            return Ok(false);
        }
        self.announce()?;
        for _ in 0..PATIENCE {
            std::thread::yield_now();
            if !self.results.is_filling(Ring::of(&self.page)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts the result into the outbound memory; false if it does not fit, or the last one is still there.
    fn put_outbound(&self) -> bool {
        let Some(outbound) = &self.outbound else { return false };
        // ORDERING: acquire: the parent's reads are over; pairs with the release in `Outbound`.
        let taken = self.page.word(TAKEN_BULK).load(Ordering::Acquire);
        taken == self.outbound_results && outbound.write(&self.out[HEADER..])
    }

    fn send_reply(&mut self, outcome: Outcome) -> Result<(), Broken> {
        // The parent looks into the ring before it looks at this.
        self.results.owes_bell = false;
        self.silent_since = None;
        if Ring::of(&self.page).bell.turn_back() {
            self.page.wake(BELL); // who waits for this in the ring waits in vain
        }
        let Outcome { number, status, lap, is_worn, .. } = outcome;
        let time = lap.nanoseconds;
        let count = if is_worn { WORN } else { 0 };
        self.send_frame(Header { status, time, count, ..Header::new(Kind::Reply, number, 0) })
    }

    /// Tells the parent of what is in the ring, if it waits for that.
    fn announce(&mut self) -> Result<(), Broken> {
        self.silent_since = None;
        match self.results.announce(Ring::of(&self.page)) {
            None => Ok(()),
            Some(Told::Waiter) => {
                self.page.wake(BELL);
                Ok(())
            }
            Some(Told::Dispatcher) => {
                let bell = Header::new(Kind::Bell, 0, 0).encode();
                socket::send_all(self.socket.as_fd(), &bell).map_err(|_| Broken)
            }
        }
    }

    /// Sees to it that a context is decoded.
    fn context(&mut self, id: u64) -> Result<(), Box<str>> {
        if id == 0 {
            return Ok(());
        }
        let context = self.contexts.get_mut(&id).ok_or("the context was never sent")?;
        if let Context::Encoded { descriptor, bytes } = context {
            let decoded = call::find_descriptor(*descriptor).and_then(|found| found.decode_context(bytes));
            *context = Context::Decoded(decoded);
        }
        match context {
            Context::Decoded(Err(problem)) => Err(format!("the context: {problem}").into()),
            _ => Ok(()),
        }
    }

    fn begin_frame(&mut self) {
        self.out.truncate(HEADER);
        if self.out.capacity() > KEPT {
            self.out.shrink_to(KEPT); // a huge result does not stay
        }
        self.out.resize(HEADER, 0);
    }

    fn send_frame(&mut self, header: Header) -> Result<(), Broken> {
        let header = Header { length: (self.out.len() - HEADER) as u64, ..header };
        self.out[..HEADER].copy_from_slice(&header.encode());
        socket::send_all(self.socket.as_fd(), &self.out).map_err(|_| Broken)
    }
}

/// Measures tasks one after the other. The end of one is the beginning of the next; and of the tasks of one call, if
/// they are so quick that looking at the clock would be a good part of their cost, several are measured together.
#[derive(Default)]
struct Stopwatch {
    last: Option<Instant>,
    stride: u64,
}

/// A look at the clock.
#[derive(Clone, Copy)]
struct Lap {
    end: Instant,
    /// Since the last one: what the tasks in between took.
    nanoseconds: u64,
}

/// The most tasks measured together.
const LONGEST_STRIDE: u64 = 64;

impl Stopwatch {
    /// The worker is about to wait.
    fn stop(&mut self) {
        self.last = None;
    }

    /// A call begins.
    fn start(&mut self) {
        self.last.get_or_insert_with(Instant::now);
        self.stride = 1;
    }

    /// How many of the next `most` tasks are to be measured together.
    fn stride(&self, most: u64) -> u64 {
        self.stride.min(most)
    }

    /// So many tasks have ended.
    fn lap(&mut self, tasks: u64) -> Lap {
        let end = Instant::now();
        let time = end.duration_since(self.last.replace(end).unwrap_or(end));
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let is_quick = nanoseconds < 300 * tasks;
        self.stride = if is_quick { LONGEST_STRIDE.min(2 * self.stride) } else { 1 };
        Lap { end, nanoseconds }
    }
}
