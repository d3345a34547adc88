//! What runs in a worker process: a freshly forked, single-threaded copy of the fork server.
//!
//! It reads frames from its one socket, in order, and runs tasks one at a time: begin (see [`gate`](crate::gate)),
//! decode, call, encode, send. An answer has left this process before the next task begins, so it cannot die with this
//! process. The worker ends when the parent closes its side: by `exit`, so that exit handlers run and coverage is
//! written.
//!
//! The fork server has one thread, so everything may be called here: the user's functions may allocate, print, and start
//! threads and pools of their own.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use executor_core::CallLimits;

use crate::call::{self, Name};
use crate::gate::Gate;
use crate::sync::Ordering;
use crate::sys::limits::{Applied, Limit, Memory, cpu_time};
use crate::sys::memory::SharedPage;
use crate::sys::socket;
use crate::wire::{CallHead, HEADER, Header, Kind, Setup, Status, decode_limits, take_sized, take_word};
use executor_core::codec;

/// Runs tasks until the parent closes the socket.
pub(crate) fn run(socket: OwnedFd, page: SharedPage) -> ! {
    // ORDERING: release; pairs with the acquire in the parent's `Worker::pid`, though nothing is read through it.
    page.word(PID).store(u64::from(std::process::id()), Ordering::Release);
    let mut worker = Worker {
        socket,
        page,
        contexts: BTreeMap::new(),
        out: Vec::new(),
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

/// How much is read at once, in bytes: a batch of small tasks, or a good piece of a large one.
const READ: usize = 64 * 1024;

/// The connection is of no use any more.
struct Broken;

struct Worker {
    socket: OwnedFd,
    page: SharedPage,
    contexts: BTreeMap<u64, Context>,
    /// The frame that is being written, header first.
    out: Vec<u8>,
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

/// A context, decoded when the first task asks for it: a task that cannot decode it is that task's failure.
enum Context {
    Encoded { descriptor: u64, bytes: Vec<u8> },
    Decoded(Result<Box<dyn Any>, Box<str>>),
}

impl Worker {
    fn serve(&mut self) -> Result<(), Broken> {
        let mut input = Vec::new();
        let mut filled = 0;
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
            let room = missing.max(filled + READ);
            if input.len() < room || input.len() > 4 * room {
                input.resize(room, 0);
                input.shrink_to(room);
            }
            match socket::receive_blocking(self.socket.as_fd(), &mut input[filled..]) {
                Ok(0) | Err(_) => return Ok(()), // the parent has closed its side, or is gone
                Ok(read) => filled += read,
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
            Kind::Ready | Kind::Reply => Err(Broken),
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
            status = unsafe { descriptor.call(function, None, &[], &mut self.out) };
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
        for number in (header.number..).take(header.count as usize) {
            let (argument, behind) = take_sized(rest).ok_or(Broken)?;
            rest = behind;
            if !Gate::new(self.page.word(GATE)).begin(number) {
                continue; // revoked: somebody else runs it
            }
            let start = Instant::now();
            self.begin_frame();
            let (status, mut is_worn) = match self.apply_limits() {
                None => (self.run_task(head, argument), false),
                Some(Ok(applied)) => {
                    let status = self.run_task(head, argument);
                    (status, !applied.take_off())
                }
                Some(Err(error)) => {
                    self.out.extend_from_slice(format!("could not limit the call: {error}").as_bytes());
                    (Status::DecodeFailed, true)
                }
            };
            let end = Instant::now();
            let time = u64::try_from(end.duration_since(start).as_nanos()).unwrap_or(u64::MAX);
            if let Some(growth) = &mut self.growth {
                is_worn |= growth.is_too_much(end);
            }
            // What the task printed is seen even if the next one kills this process.
            let _ = io::stdout().flush();
            let count = if is_worn { WORN } else { 0 };
            self.send_frame(Header { status, time, count, ..Header::new(Kind::Reply, number, 0) })?;
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

    fn run_task(&mut self, head: CallHead, argument: &[u8]) -> Status {
        let name = Name { descriptor: head.descriptor, function: head.function };
        let found = call::find(name).and_then(|found| Ok((found, self.context(head.context)?)));
        match found {
            Ok(((descriptor, function), _)) => {
                let context = match self.contexts.get(&head.context) {
                    Some(Context::Decoded(Ok(context))) => Some(&**context),
                    _ => None,
                };
                // SAFETY: I2 of `call`: the parent named them together.
                let status = unsafe { descriptor.call(function, context, argument, &mut self.out) };
                let size = (self.out.len() - HEADER) as u64;
                if size > self.message_limit {
                    self.out.truncate(HEADER);
                    self.out.extend_from_slice(&size.to_ne_bytes());
                    return Status::TooLarge;
                }
                status
            }
            Err(problem) => {
                self.out.extend_from_slice(problem.as_bytes());
                Status::DecodeFailed
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
        self.out.clear();
        self.out.shrink_to(4 * READ); // a large result does not stay
        self.out.resize(HEADER, 0);
    }

    fn send_frame(&mut self, header: Header) -> Result<(), Broken> {
        let header = Header { length: (self.out.len() - HEADER) as u64, ..header };
        self.out[..HEADER].copy_from_slice(&header.encode());
        socket::send_all(self.socket.as_fd(), &self.out).map_err(|_| Broken)
    }
}
