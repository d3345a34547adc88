//! Starting workers, and what the fork server says of them.

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::deaths::Cause;
use super::time::Timer;
use super::{CONTROL, Dispatcher, tokens};
use crate::shared::Means;
use crate::sync::Ordering;
use crate::sys::memory::SharedPage;
use crate::sys::poll::Interest;
use crate::sys::{process, socket};
use crate::wire::Kind;
use crate::worker::{Process, Worker};
use crate::zygote::{Notice, Zygote};

/// Workers being forked at the same time: their descriptors are in flight, and the system bounds those.
const MOST_REQUESTED: usize = 64;

/// So many workers in a row that die before they are set up break the pool.
const MOST_FAILED_STARTS: u32 = 16;

/// So many fork servers in a row that are lost before one worker is set up break the pool. More than of workers: with
/// each, whatever was being started is lost, too, and who kills processes at random hits it as well as them. With the
/// pauses in between that takes some seconds.
const MOST_LOST_SERVERS: u32 = 24;

/// So many failed starts in a row are followed by another at once.
const PATIENCE: u32 = 4;

/// The pause after the next one; doubled after each.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);

impl Dispatcher {
    /// Starts a worker if there may be one more; it can be handed tasks at once.
    pub(super) fn start_worker(&mut self) -> Option<u64> {
        let may_start = self.workers.len() - self.dead < self.max_workers()
            && self.requested.len() < MOST_REQUESTED
            && self.start_after.is_none_or(|after| Instant::now() >= after);
        if !may_start {
            return None;
        }
        if let Err(error) = self.see_to_fork_server() {
            self.count_lost_server(&error.to_string());
            return None;
        }
        let number = self.next_worker;
        match self.request_worker(number) {
            Ok(()) => Some(number),
            Err(error) => {
                // The fork server may just be busy: what it says next tells when to ask again.
                if error.kind() != io::ErrorKind::WouldBlock || self.requested.is_empty() {
                    self.count_failed_start(&format!("could not ask for a worker process: {error}"));
                }
                None
            }
        }
    }

    fn max_workers(&self) -> usize {
        // ORDERING: relaxed: whoever changes it sends a command afterwards.
        self.shared.max_workers.load(Ordering::Relaxed)
    }

    /// The pool has another size.
    pub(super) fn resize(&mut self) {
        self.may_be_too_many = true;
        while !self.idle.is_empty() && self.has_too_many() {
            self.retire(self.idle[0]); // the one that has been idle for longest
        }
    }

    /// Whether there are more workers than there may be, those that are about to end not counted.
    pub(super) fn has_too_many(&mut self) -> bool {
        if self.may_be_too_many {
            let going_on = self.workers.values().filter(|worker| !worker.is_ending).count();
            self.may_be_too_many = going_on > self.max_workers();
        }
        self.may_be_too_many
    }

    pub(super) fn request_worker(&mut self, number: u64) -> io::Result<()> {
        let zygote = self.zygote.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let (ours, theirs) = socket::stream_pair()?;
        let (page, page_file) = SharedPage::create()?;
        let spare = self.shared.doorbell.as_fd().try_clone_to_owned()?;
        self.epoll.add(ours.as_fd(), Interest::Read, tokens(number)[0])?;
        let stderr = self.stderr.open(number)?;
        let index = self.free_indices.first().copied().unwrap_or(self.next_index);
        let affinity = &self.shared.settings.affinity;
        let processor = (!affinity.is_empty()).then(|| affinity[index % affinity.len()]);
        let requested = zygote.request_worker(
            number,
            theirs.as_fd(),
            page_file.as_fd(),
            stderr.as_ref().map(AsFd::as_fd),
            processor,
        );
        if let Err(error) = requested {
            self.stderr.close(number);
            return Err(error);
        }
        self.next_worker += 1;
        if self.free_indices.pop_first().is_none() {
            self.next_index += 1;
        }
        let name = format!("{}-{index}", self.shared.settings.prefix);
        let mut worker = Worker::new(number, index, name, ours, page, self.shared.settings.uses_bulk);
        worker.arm();
        worker.write_frame(Kind::Setup, 0, &self.shared.settings.setup);
        self.workers.insert(number, worker);
        self.requested.insert(number);
        self.spare_fds.push(spare);
        self.unsent.insert(number);
        Ok(())
    }

    pub(super) fn hear_fork_server(&mut self) {
        loop {
            let Some(zygote) = &self.zygote else { return };
            // Room for one pidfd. What is not used is taken again, if it still can be.
            let had_spare = self.spare_fds.pop().is_some();
            let notice = zygote.receive();
            let is_answer = matches!(notice, Ok(Some(Notice::Forked { .. } | Notice::ForkFailed { .. })));
            if had_spare && !is_answer {
                self.spare_fds.extend(self.shared.doorbell.as_fd().try_clone_to_owned());
            }
            match notice {
                Ok(Some(notice)) => self.handle_notice(notice),
                Ok(None) => return,
                Err(_) => return self.lose_fork_server(),
            }
        }
    }

    pub(super) fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Preloaded(Ok(())) => {}
            Notice::Preloaded(Err(problem)) => {
                self.break_down(format!("the preload function failed: {problem}").into());
            }
            Notice::Forked { worker: number, pid, pidfd } => {
                self.requested.remove(&number);
                let Some(worker) = self.workers.get_mut(&number) else { return };
                let is_watched = self.epoll.add(pidfd.as_fd(), Interest::Read, tokens(number)[1]).is_ok();
                worker.process = Some(Process { pid, pidfd });
                // A worker that cannot be watched cannot be relied upon; one that should end was not told to yet.
                if !is_watched || worker.is_ending {
                    let means = self.stopping.filter(|_| is_watched).unwrap_or(Means::Kill);
                    self.stop_worker(number, means);
                }
            }
            Notice::ForkFailed { worker: number, error } => {
                let Some(worker) = self.workers.get_mut(&number) else { return };
                worker.close();
                worker.is_ready = true; // not one that died while it started: it is counted here
                worker.is_orphan = true;
                // Short of descriptors, there may be a worker all the same: from here on it begins nothing.
                self.revoke(number);
                self.see_death(number);
                self.count_failed_start(&format!("could not fork a worker process: {error}"));
            }
            Notice::Ended { worker, pid, exit, cpu_time, peak_memory } => {
                self.see_death(worker);
                self.settle(worker, Some(Cause { pid, exit, cpu_time, peak_memory, out_of_memory: false }));
            }
        }
    }

    pub(super) fn count_failed_start(&mut self, problem: &str) {
        self.failed_starts += 1;
        if self.failed_starts >= MOST_FAILED_STARTS && !self.is_anybody_left() {
            let reason =
                format!("{MOST_FAILED_STARTS} workers in a row could not be started; the last: {problem}");
            return self.break_down(reason.into());
        }
        self.pause_starts(self.failed_starts);
    }

    /// Of the fork server, which is not the fault of the workers that went with it.
    fn count_lost_server(&mut self, problem: &str) {
        self.lost_servers += 1;
        if self.lost_servers >= MOST_LOST_SERVERS && !self.is_anybody_left() {
            let reason = format!(
                "{MOST_LOST_SERVERS} fork servers in a row ended before a worker was set up; the last: {problem}"
            );
            return self.break_down(reason.into());
        }
        self.pause_starts(self.lost_servers);
    }

    fn is_anybody_left(&self) -> bool {
        self.workers.values().any(|worker| worker.is_ready && !worker.is_ending)
    }

    /// The first failures may be bad luck; then each waits twice as long as the one before. The timer in any case: nothing
    /// else may ever come to try again for.
    fn pause_starts(&mut self, failures: u32) {
        let pause = failures
            .checked_sub(PATIENCE)
            .map_or(Duration::ZERO, |doublings| SHORTEST_PAUSE * 2_u32.pow(doublings.min(8)));
        let after = Instant::now() + pause;
        self.start_after = Some(after);
        self.timers.insert((after, Timer::Start));
    }

    /// The fork server is gone, and with it, by the kernel's hand, all workers. Their sockets still hold what they had
    /// answered. A new one takes its place.
    pub(super) fn lose_fork_server(&mut self) {
        let Some(zygote) = self.zygote.take() else { return };
        if zygote.preloads() {
            // It would do the same again.
            let pid = zygote.pid();
            self.break_down(format!("the preload function ended the fork server, process {pid}").into());
        }
        let lost = format!("the fork server, process {}, was lost", zygote.pid());
        let _ = self.epoll.remove(zygote.control());
        zygote.stop();
        let numbers: Vec<u64> = self.workers.keys().copied().collect();
        for number in numbers {
            let Some(worker) = self.workers.get_mut(&number) else { continue };
            worker.is_orphan = true;
            worker.is_ending = true;
            // One that was forked, and not reported any more, begins nothing from here on.
            self.revoke(number);
            let Some(worker) = self.workers.get_mut(&number) else { continue };
            match &worker.process {
                Some(process) if !worker.is_dead => {
                    // Its own children too. Their group keeps its number as long as one of them is there; that an empty
                    // one's were given away in these few moments would take a turn through all process ids.
                    process::kill_group(process.pid);
                    self.kill(number);
                }
                _ => self.see_death(number),
            }
        }
        self.requested.clear();
        self.spare_fds.clear();
        // A new one is started with the next worker.
        self.count_lost_server(&lost);
    }

    /// Sees to it that there is a fork server.
    fn see_to_fork_server(&mut self) -> Result<(), Box<dyn Error>> {
        if self.zygote.is_none() {
            let zygote = Zygote::start(&self.shared.settings.zygote)?;
            self.epoll.add(zygote.control(), Interest::Read, CONTROL)?;
            self.zygote = Some(zygote);
        }
        Ok(())
    }
}
