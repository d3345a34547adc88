//! The fork server's own side: it forks workers, and buries them.
//!
//! One thread, one loop over three descriptors: the control socket, a pidfd of the application, and a signal
//! descriptor for SIGCHLD. It never blocks anywhere else, prints nothing, starts no thread, and touches nothing whose
//! state must differ between workers (no `HashMap`: its keys are random *once*, and would be the same in all of them).
//!
//! # Steps
//!
//! * S1 `Fork` request → `fork` → a pidfd is opened for the child → `Forked`. A request that fails is answered by
//!   `ForkFailed` and leaves no child that is reported.
//! * S2 SIGCHLD → for every child that has ended, while it is still a zombie: the process group it led is killed, so
//!   the children of a task go with the worker. *Then* it is reaped, and `Ended` is reported. The order matters: the
//!   number of a group is free for others once its leader is reaped and its last member gone.
//! * S3 What a task started and moved to a group of its own is adopted by the fork server when its parent ends. After
//!   the end of a worker all adopted processes are killed, but those still in the group of a living worker. A daemon
//!   that a task made therefore lives at most until the next worker ends. Who is adopted is found among all children, so
//!   there is a pause between two looks: thousands of workers that end at once must not take time by their square.
//! * S4 Reports that do not fit into the socket wait in a queue, in order; no request is read meanwhile, so the queue
//!   is bounded by the number of workers, and nobody waits for anybody.
//! * S5 The control socket is closed *or* the application has ended → every worker and its group gets SIGKILL, they are
//!   reaped for a short while, so that no zombie goes to a careless init process, and the fork server exits. Both are
//!   watched because a child forked by the application's user may hold a copy of the socket.
//!
//! # Who dies when
//!
//! A worker has SIGKILL set for the death of the fork server's only thread, so it cannot outlive the fork server; the
//! fork server ends by S5, so it cannot outlive the application. It does not use the same means, because that signal
//! follows the *thread* that started it.
//!
//! # After fork
//!
//! The fork server has one thread, so its child may call anything. The child goes up the stack to `run`, gives up the
//! server's descriptors, and never comes back; the table of workers is forgotten rather than freed, which would copy
//! its pages into every worker.
//!
//! * I1: the process that runs a `Server` has one thread: it was executed for this, or forked by a process of one
//!   thread.

use super::message::{self, Report, Request};
use crate::call::{self, Name, Once};
use crate::image::Image;
use crate::sys::fd::Standard;
use crate::sys::limits;
use crate::sys::memory::SharedPage;
use crate::sys::poll::{Interest, poll};
use crate::sys::process::{self, Exit};
use crate::sys::signal::{self, ChildSignals};
use crate::sys::socket::{self, Blocking};
use crate::wire::Status;
use crate::worker_main;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks for adopted processes. Longer lets them live longer; shorter costs more where many workers end.
const HUNT_PAUSE: Duration = Duration::from_millis(10);

/// How long the fork server may reap its workers at the end. Less than the parent's patience (`zygote::STOP_LIMIT`),
/// enough for some thousand SIGKILLed workers.
const END_LIMIT: Duration = Duration::from_millis(800);
/// Between two tries to send when the kernel is short of memory or of descriptors in flight.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(1);
/// How long threads of a preloaded function may take to go.
const THREADS_LIMIT: Duration = Duration::from_millis(500);
/// The exit code of a worker that could not be set up.
const WORKER_SETUP_FAILED: i32 = 239;

/// Makes a fork server of the calling process, as far as nothing of it is seen outside: its own session, so that
/// Ctrl-C does not reach it, signals in order and blocked, standard descriptors open, orphans adopted. Gives what is to be
/// called before the first fork.
pub(crate) fn settle(control: &OwnedFd) -> io::Result<Option<Name>> {
    let mut buffer = [0; message::BYTES];
    let packet = socket::receive_packet(control.as_fd(), &mut buffer, Blocking::Wait)?;
    let Some(Request::Setup { open_files, depth, preload }) = Request::decode(&buffer[..packet.length])
    else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no set-up message"));
    };
    process::lead_own_session()?;
    signal::reset_dispositions();
    signal::block_all()?;
    process::adopt_orphans()?;
    process::set_name("cf-forkserver");
    Standard::Input.set_null()?;
    if let Some(open_files) = open_files {
        limits::lower_open_files(open_files)?;
    }
    super::set_depth(depth);
    Ok(preload.map(|(descriptor, function)| Name { descriptor, function }))
}

/// Says hello and serves, until the application is gone or closes the socket. Comes back only if it cannot begin.
///
/// # Safety
///
/// I1: the calling process has one thread, and [`settle`] has prepared it.
pub(crate) unsafe fn serve(
    control: OwnedFd,
    application: u32,
    preload: Option<Name>,
) -> io::Result<Infallible> {
    // If the application ends before its pidfd is open, this process has another parent afterwards.
    let watched = process::open_pidfd(application)?;
    if process::parent_id() != application {
        return Err(process::no_such_process());
    }
    let server = Server {
        pid: process::id(),
        control,
        application: watched,
        signals: ChildSignals::new()?,
        workers: BTreeMap::new(),
        outgoing: VecDeque::new(),
        hunt: Hunt::Over,
        looked: None,
    };
    worker_main::warm_up();
    server.run(preload)
}

struct Server {
    pid: u32,
    control: OwnedFd,
    application: OwnedFd,
    signals: ChildSignals,
    /// Living workers: the process and the parent's number for it.
    workers: BTreeMap<u32, u64>,
    /// Reports the socket had no room for, with the descriptor that belongs to each.
    outgoing: VecDeque<(Report, Option<OwnedFd>)>,
    hunt: Hunt,
    /// The last look for adopted processes.
    looked: Option<Instant>,
}

/// Whether adopted processes may be left from a worker that has ended (S3).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hunt {
    /// Somebody was buried since the last look.
    Due,
    /// What was found is killed, and to be buried.
    On,
    Over,
}

enum Turn {
    Next,
    End,
    /// This is the forked child.
    Worker(Job),
}

/// What a worker is given.
struct Job {
    worker: u64,
    socket: OwnedFd,
    page: OwnedFd,
    /// What its standard error becomes, if not the fork server's.
    stderr: Option<OwnedFd>,
    /// The one processor it is to run on.
    processor: Option<u32>,
}

impl Server {
    fn run(mut self, preload: Option<Name>) -> ! {
        self.report(Report::Hello { pid: self.pid, identity: Image::current().identity().clone() }, None);
        if let Some(name) = preload {
            let outcome = call_preload(name);
            let has_failed = outcome.is_err();
            self.report(Report::Preloaded(outcome), None);
            if has_failed {
                self.end();
            }
        }
        let job = loop {
            match self.turn() {
                Turn::Next => {}
                Turn::End => self.end(),
                Turn::Worker(job) => break job,
            }
        };
        let Self { pid, control, application, signals, workers, outgoing, .. } = self;
        mem::forget(workers);
        drop((control, application, signals, outgoing));
        become_worker(job, pid)
    }

    fn turn(&mut self) -> Turn {
        let interest = if self.outgoing.is_empty() { Interest::Read } else { Interest::Write };
        let watched = [
            (self.control.as_fd(), interest),
            (self.application.as_fd(), Interest::Read),
            (self.signals.as_fd(), Interest::Read),
        ];
        let next_look = self.looked.filter(|_| self.hunt == Hunt::Due).map(|looked| looked + HUNT_PAUSE);
        let Ok([control, application, signals]) = poll(watched, next_look) else { return Turn::End };
        if control.closed || application.readable || application.closed {
            return Turn::End;
        }
        if signals.readable {
            self.signals.clear();
            self.bury();
        }
        self.hunt();
        if control.writable {
            self.flush();
        }
        if control.readable { self.take_request() } else { Turn::Next }
    }

    fn take_request(&mut self) -> Turn {
        let mut buffer = [0; message::BYTES];
        let mut packet = match socket::receive_packet(self.control.as_fd(), &mut buffer, Blocking::Never) {
            Ok(packet) if packet.length == 0 => return Turn::End,
            Ok(packet) => packet,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Next,
            Err(_) => return Turn::End,
        };
        let Some(Request::Fork { worker, has_stderr, processor }) = Request::decode(&buffer[..packet.length])
        else {
            return Turn::End;
        };
        let stderr = if has_stderr && packet.fds.len() == 3 { packet.fds.pop() } else { None };
        let (Some(page), Some(socket)) = (packet.fds.pop(), packet.fds.pop()) else {
            return self.refuse_for_want_of_descriptors(worker);
        };
        if stderr.is_some() != has_stderr {
            return self.refuse_for_want_of_descriptors(worker);
        }
        self.fork(Job { worker, socket, page, stderr, processor })
    }

    /// This process may not have so many.
    fn refuse_for_want_of_descriptors(&mut self, worker: u64) -> Turn {
        self.report(Report::ForkFailed { worker, errno: process::TOO_MANY_FILES }, None);
        Turn::Next
    }

    /// S1. What is left of `job` in the fork server is closed on return, so no later worker has it.
    fn fork(&mut self, job: Job) -> Turn {
        let worker = job.worker;
        // SAFETY: I1.
        let forked = match unsafe { process::fork() } {
            Ok(None) => return Turn::Worker(job),
            Ok(Some(pid)) => process::open_pidfd(pid).map(|pidfd| (pid, pidfd)).inspect_err(|_| {
                // Not in the table, so nothing but reaping happens at its end.
                process::kill_with_group(pid);
            }),
            Err(error) => Err(error),
        };
        match forked {
            Ok((pid, pidfd)) => {
                self.workers.insert(pid, worker);
                self.report(Report::Forked { worker, pid }, Some(pidfd));
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or_default();
                self.report(Report::ForkFailed { worker, errno }, None);
            }
        }
        Turn::Next
    }

    /// S2 and S3.
    fn bury(&mut self) {
        let mut buried = false;
        while let Ok(Some((pid, exit))) = process::next_ended() {
            self.bury_one(pid, exit);
            buried = true;
        }
        if buried && self.hunt == Hunt::On {
            self.hunt = Hunt::Due;
        }
    }

    /// S3, if it is due and the pause is over.
    fn hunt(&mut self) {
        let now = Instant::now();
        if self.hunt == Hunt::Due && self.looked.is_none_or(|looked| now >= looked + HUNT_PAUSE) {
            self.hunt = self.kill_adopted();
            self.looked = Some(now);
        }
    }

    fn bury_one(&mut self, pid: u32, exit: Exit) {
        let worker = self.workers.remove(&pid);
        if worker.is_some() {
            process::kill_group(pid);
            self.hunt = Hunt::On;
        }
        // Nobody else reaps here; if the call fails all the same, the end is reported without figures.
        let usage = process::reap(pid).unwrap_or_default();
        if let Some(worker) = worker {
            self.report(Report::Ended { worker, pid, exit, usage }, None);
        }
    }

    /// Kills what was adopted. The killed may leave children of their own to adopt, so the hunt is on until a look
    /// after the last burial finds nobody.
    fn kill_adopted(&self) -> Hunt {
        // Without /proc, or on a kernel without this file, they are left.
        let children = process::children().unwrap_or_default();
        let mut hunt = Hunt::Over;
        for pid in children {
            let is_spared = |group: u32| self.workers.contains_key(&group);
            if self.workers.contains_key(&pid) || process::group_of(pid).is_ok_and(is_spared) {
                continue;
            }
            process::kill_with_group(pid);
            hunt = Hunt::On;
        }
        hunt
    }

    fn report(&mut self, report: Report, fd: Option<OwnedFd>) {
        self.outgoing.push_back((report, fd));
        self.flush();
    }

    /// S4.
    fn flush(&mut self) {
        while let Some((report, fd)) = self.outgoing.front() {
            let fd = fd.as_ref().map(AsFd::as_fd);
            match socket::send_packet(self.control.as_fd(), &report.encode(), fd.as_slice(), Blocking::Never)
            {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    // Nobody will read: the next poll says that the socket is closed.
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.outgoing.clear(),
                    _ => return thread::sleep(SHORTAGE_PAUSE),
                },
            }
        }
    }

    /// S5.
    fn end(&mut self) -> ! {
        for &pid in self.workers.keys() {
            process::kill_with_group(pid);
        }
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            self.signals.clear();
            loop {
                match process::next_ended() {
                    Ok(Some((pid, _))) => {
                        self.workers.remove(&pid);
                        process::kill_group(pid);
                        let _ = process::reap(pid);
                    }
                    Ok(None) => break,
                    // No child is left.
                    Err(_) => process::exit_now(0),
                }
            }
            self.kill_adopted();
            if poll([(self.signals.as_fd(), Interest::Read)], Some(deadline)).is_err() {
                break;
            }
        }
        process::exit_now(0)
    }
}

/// Calls what is to be called before the first fork. It must leave this process as it must be to be forked.
fn call_preload(name: Name) -> Result<(), Box<str>> {
    let (descriptor, function) = call::find(name)?;
    let mut text = Vec::new();
    // SAFETY: I2 of `call`: the parent named them together.
    let status = unsafe { descriptor.call(function, None, &mut Once(&[]), &mut text) };
    // Or every worker would print it again.
    let _ = io::stdout().flush();
    if status != Status::Returned {
        return Err(String::from_utf8_lossy(&text).into());
    }
    // A thread that was waited for may take a moment to go.
    let deadline = Instant::now() + THREADS_LIMIT;
    loop {
        match process::thread_count() {
            Ok(1) => return Ok(()),
            Ok(count) if Instant::now() >= deadline => {
                let left = count - 1;
                return Err(
                    format!("it has left {left} thread(s) running, which no worker would have").into()
                );
            }
            Ok(_) => thread::sleep(SHORTAGE_PAUSE),
            Err(error) => {
                return Err(format!("the threads of the fork server cannot be counted: {error}").into());
            }
        }
    }
}

/// The first steps of a forked worker.
fn become_worker(job: Job, server: u32) -> ! {
    // The session is the fork server's; the group is the worker's own, and whatever it starts is in it.
    let is_bound = process::lead_own_group().is_ok() && process::die_with_parent().is_ok();
    // Had the fork server ended before that, there would be no signal any more.
    if !is_bound || process::parent_id() != server || signal::block_none().is_err() {
        process::exit_now(WORKER_SETUP_FAILED);
    }
    process::set_name(&format!("cf-worker-{}", job.worker));
    if let Some(processor) = job.processor {
        // It was usable when the pool was built. Should it have gone since, the worker runs wherever it may.
        let _ = process::pin_to(processor);
    }
    let Ok(page) = SharedPage::open(job.page.as_fd()) else { process::exit_now(WORKER_SETUP_FAILED) };
    drop(job.page);
    if let Some(stderr) = job.stderr
        && Standard::Error.set(&stderr).is_err()
    {
        process::exit_now(WORKER_SETUP_FAILED);
    }
    #[cfg(test)]
    let (socket, page) = super::tests::run_if_asked(job.socket, page);
    #[cfg(not(test))]
    let socket = job.socket;
    worker_main::run(socket, page)
}
