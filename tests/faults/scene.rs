//! A process of its own for each test, looked over before and after; and what the tasks of the tests are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use concurrent_futures::{ProcessPoolExecutor, TaskError, WorkerDeath};

use crate::procfs::{Footprint, tagged, workers};
use crate::support::{TempDir, Turnstile, Watchdog, eventually, pass, start_own_process};

/// How long a test may take in its process before its watchdog ends it.
const LIMIT: Duration = Duration::from_secs(45);

/// How long what a test has left may take to go.
const TO_GO: Duration = Duration::from_secs(10);

const TAG: &str = "CONCURRENT_FUTURES_TEST_TAG";

/// Runs `body` in a process of its own, which must end as it began: with the same descriptors, threads and children.
/// Nothing that it started may be there after it. Call it from the test function itself, with a closure.
#[track_caller]
pub(crate) fn isolated<F: FnOnce()>(body: F) {
    isolated_with(|_| (), body);
}

/// [`isolated`], with more to say about the process.
#[track_caller]
pub(crate) fn isolated_with<F: FnOnce()>(prepare: impl FnOnce(&mut Command), body: F) {
    if let Some(stage) = Stage::start::<F>(prepare, || looked_over(body)) {
        stage.end();
    }
}

/// Runs `body` and sees to it that it leaves nothing in this process.
pub(crate) fn looked_over(body: impl FnOnce()) {
    no_core_files();
    let before = Footprint::take();
    let watchdog = Watchdog::with_limit(LIMIT);
    watchdog.asks(|| format!("{} alive: {:?}", workers().len(), Footprint::take()));
    body();
    drop(watchdog);
    let deadline = Instant::now() + TO_GO;
    while Footprint::take() != before {
        let after = Footprint::take();
        assert!(Instant::now() < deadline, "left behind\n  before {before:?}\n  after  {after:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn no_core_files() {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
}

/// A test in a process of its own, seen from outside.
pub(crate) struct Stage {
    pub(crate) child: Child,
    tag: String,
    log: TempDir,
    start: Instant,
}

impl Stage {
    /// `None` inside the process, after `body`. The test is the one in which the closure `Named` was written.
    fn start<Named>(prepare: impl FnOnce(&mut Command), body: impl FnOnce()) -> Option<Self> {
        let log = TempDir::new();
        let tag = format!("{}-{:?}", log.path(""), Instant::now());
        let file = File::create(log.path("log")).unwrap();
        let prepare = |command: &mut Command| {
            // Its own temporary files go with the log, however it ends.
            command.env(TAG, &tag).env("TMPDIR", log.path("")).stdout(file.try_clone().unwrap()).stderr(file);
            prepare(command);
        };
        let child = start_own_process::<Named>(prepare, body)?;
        Some(Self { child, tag: format!("{TAG}={tag}"), log, start: Instant::now() })
    }

    /// A process for `body`, which was written in the test function; `None` inside it.
    pub(crate) fn of<F: FnOnce()>(prepare: impl FnOnce(&mut Command), body: F) -> Option<Self> {
        Self::start::<F>(prepare, body)
    }

    /// What it has printed so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log.path("log")).unwrap_or_default()).into_owned()
    }

    /// It ends by itself, successfully, and leaves nobody.
    #[track_caller]
    pub(crate) fn end(mut self) {
        let limit = LIMIT + TO_GO + Duration::from_secs(2);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.start.elapsed() > limit {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("it hangs (killed after {limit:?}):\n{}", self.output());
            }
            // Only how soon the end is seen depends on this.
            std::thread::sleep(Duration::from_millis(2));
        };
        let output = self.output();
        assert!(status.success(), "{status}:\n{output}");
        assert!(output.contains("1 passed"), "no such test:\n{output}");
        println!("{output}");
        self.assert_gone();
    }

    /// How long it took until nobody was left who was started by the process, which has ended.
    #[track_caller]
    pub(crate) fn assert_gone(&self) -> Duration {
        let start = Instant::now();
        loop {
            let left = tagged(&self.tag);
            if left.is_empty() {
                return start.elapsed();
            }
            assert!(start.elapsed() < TO_GO, "left behind: {left:?}\n{}", self.output());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Which tasks have begun to run, and in which processes; kept in a file, so a death does not lose it.
pub(crate) struct Runs(TempDir);

impl Runs {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new();
        File::create(dir.path("runs")).unwrap();
        Self(dir)
    }

    /// What a task needs in order to [`note`] itself.
    pub(crate) fn ticket(&self) -> String {
        self.0.path("runs")
    }

    /// Task and process of each run, in their order.
    pub(crate) fn all(&self) -> Vec<(u64, u32)> {
        let bytes = fs::read(self.ticket()).unwrap();
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
        bytes.chunks_exact(16).map(|run| (word(&run[..8]), u32::try_from(word(&run[8..])).unwrap())).collect()
    }

    pub(crate) fn counts(&self) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for (task, _) in self.all() {
            *counts.entry(task).or_default() += 1;
        }
        counts
    }

    pub(crate) fn of(&self, task: u64) -> Vec<u32> {
        self.all().into_iter().filter(|(id, _)| *id == task).map(|(_, pid)| pid).collect()
    }

    /// Every one of these tasks has run, once.
    #[track_caller]
    pub(crate) fn assert_once(&self, tasks: impl IntoIterator<Item = u64>) {
        let counts = self.counts();
        let wrong: Vec<_> = tasks.into_iter().filter(|task| counts.get(task) != Some(&1)).collect();
        assert!(
            wrong.is_empty(),
            "not run once: {:?}",
            wrong.iter().map(|task| (task, counts.get(task))).collect::<Vec<_>>()
        );
    }

    /// No task has run twice.
    #[track_caller]
    pub(crate) fn assert_none_twice(&self) {
        let twice: Vec<_> = self.counts().into_iter().filter(|(_, count)| *count > 1).collect();
        assert!(twice.is_empty(), "run more than once: {twice:?}");
    }
}

/// Says that a task runs. One write in append mode: whole, whatever happens to the process next.
pub(crate) fn note(ticket: &str, task: u64) {
    let mut record = [0; 16];
    record[..8].copy_from_slice(&task.to_ne_bytes());
    record[8..].copy_from_slice(&u64::from(std::process::id()).to_ne_bytes());
    OpenOptions::new().append(true).open(ticket).unwrap().write_all(&record).unwrap();
}

/// Computes for this long.
pub(crate) fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Never returns.
pub(crate) fn forever<T>() -> T {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Starts a program that nobody waits for. For use in tasks, with which it should go.
pub(crate) fn leave_running(program: &str, arguments: &[&str]) -> u32 {
    Command::new(program).args(arguments).spawn().unwrap().id()
}

/// Kills the workers of the one pool, which are idle, and waits until it knows: what they may still have in them (a
/// thread, a twin, a late answer) must not end a task of what comes next.
pub(crate) fn replace_workers(pool: &ProcessPoolExecutor) {
    let old = workers();
    old.iter().for_each(|pid| kill(*pid, nix::sys::signal::Signal::SIGKILL));
    eventually(|| pool.workers().iter().all(|worker| old.iter().all(|pid| u64::from(*pid) != worker.id)));
}

/// The pool runs `size` tasks at the same time, in as many processes, and has no more.
#[track_caller]
pub(crate) fn assert_full(pool: &ProcessPoolExecutor, size: usize) {
    let mut turnstile = Turnstile::new();
    let futures: Vec<_> = (0..size)
        .map(|_| {
            pool.submit(
                |ticket: String| {
                    pass(&ticket);
                    std::process::id()
                },
                turnstile.ticket(),
            )
        })
        .collect();
    turnstile.wait_for_arrivals(size);
    assert_eq!(pool.workers().len(), size);
    turnstile.open();
    let pids: BTreeSet<u32> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    assert_eq!(pids.len(), size);
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.running, stats.submitted), (0, 0, stats.finished), "{stats:?}");
}

#[track_caller]
pub(crate) fn death<T: std::fmt::Debug>(outcome: Result<T, TaskError>) -> WorkerDeath {
    match outcome {
        Err(TaskError::WorkerDied(death)) => death,
        other => panic!("not a death: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn assert_timed_out<T: std::fmt::Debug>(outcome: Result<T, TaskError>) {
    assert!(matches!(outcome, Err(TaskError::TimedOut)), "{outcome:?}");
}

#[track_caller]
pub(crate) fn assert_cancelled<T: std::fmt::Debug>(outcome: Result<T, TaskError>) {
    assert!(matches!(outcome, Err(TaskError::Cancelled)), "{outcome:?}");
}

/// The reason a pool is broken for.
#[track_caller]
pub(crate) fn breakage<T: std::fmt::Debug>(outcome: Result<T, TaskError>) -> String {
    match outcome {
        Err(TaskError::Broken(reason)) => reason.into(),
        other => panic!("not broken: {other:?}"),
    }
}

/// Sends a signal, as somebody from outside would.
pub(crate) fn kill(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    // One that is gone already is as good.
    let _ = nix::sys::signal::kill(pid, signal);
}
