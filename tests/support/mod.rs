//! What the tests share: a watchdog, probes that count drops, gates without sleeps, and re-execution of the test
//! binary for what can only be seen from outside.
//!
//! Everything here that a task needs is plain data (a path in a string), so the same task runs on threads and in worker
//! processes. Used by `#[path = "../support/mod.rs"] mod support;`.

#![allow(dead_code, reason = "no test binary uses all of it")]
#![allow(clippy::disallowed_types, reason = "tests watch the library from outside its models")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How long a test may take before its watchdog ends the process.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// --- watchdog -----------------------------------------------------------------------------------------------------

type Witness = Box<dyn Fn() -> String + Send>;

/// Ends the process with what it knows if the test that holds it has not ended within [`LIMIT`].
///
/// A hang in a test of a pool is a finding, so it must not look like a slow machine: the watchdog names the test and
/// prints what its witnesses say.
pub(crate) struct Watchdog {
    shared: Arc<WatchdogShared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct WatchdogShared {
    is_over: Mutex<bool>,
    changed: Condvar,
    witnesses: Mutex<Vec<Witness>>,
}

impl Watchdog {
    pub(crate) fn start() -> Self {
        Self::with_limit(LIMIT)
    }

    pub(crate) fn with_limit(limit: Duration) -> Self {
        let shared = Arc::new(WatchdogShared::default());
        let watched = Arc::clone(&shared);
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let thread =
            std::thread::Builder::new().name("watchdog".into()).spawn(move || watched.watch(&test, limit));
        Self { shared, thread: Some(thread.unwrap()) }
    }

    /// Has `tell` asked what it knows, should the time run out. It must not keep the pool alive that is under test,
    /// unless the test does not care.
    pub(crate) fn asks(&self, tell: impl Fn() -> String + Send + 'static) -> &Self {
        lock(&self.shared.witnesses).push(Box::new(tell));
        self
    }

    /// [`asks`](Self::asks) for the `Debug` of a handle, which it keeps.
    pub(crate) fn knows(&self, what: impl fmt::Debug + Send + 'static) -> &Self {
        self.asks(move || format!("{what:?}"))
    }
}

impl WatchdogShared {
    fn watch(&self, test: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut is_over = lock(&self.is_over);
        while !*is_over {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Not through `println!`: the harness may hold its lock or capture the text.
                let mut text = format!("watchdog: `{test}` has not ended after {limit:?}\n");
                for tell in lock(&self.witnesses).iter() {
                    text += &format!("  {}\n", tell());
                }
                let _ = std::io::stderr().write_all(text.as_bytes());
                std::process::abort();
            }
            is_over = self.changed.wait_timeout(is_over, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *lock(&self.shared.is_over) = true;
        self.shared.changed.notify_all();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

// --- probes -------------------------------------------------------------------------------------------------------

/// Counts [`Probe`]s. A test ends with [`assert_balanced`](Self::assert_balanced).
#[derive(Clone)]
pub(crate) struct Tally(Book);

#[derive(Clone)]
enum Book {
    /// In this process, by number: a probe that is decoded finds it again.
    Local(u64, Arc<Counts>),
    /// In a file that processes share: a byte for each birth and each death.
    Shared(Arc<str>, Option<Arc<TempDir>>),
}

#[derive(Default)]
struct Counts {
    created: AtomicU64,
    dropped: AtomicU64,
}

static TALLIES: LazyLock<Mutex<BTreeMap<u64, Arc<Counts>>>> = LazyLock::new(Mutex::default);

impl Tally {
    /// Counts in this process: fast, for threads.
    pub(crate) fn local() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let counts = Arc::new(Counts::default());
        lock(&TALLIES).insert(id, Arc::clone(&counts));
        Self(Book::Local(id, counts))
    }

    /// Counts in a file, for probes that travel to other processes.
    pub(crate) fn shared() -> Self {
        let dir = Arc::new(TempDir::new());
        let path = dir.path("tally");
        File::create(&path).unwrap();
        Self(Book::Shared(path.into(), Some(dir)))
    }

    pub(crate) fn probe(&self) -> Probe {
        self.carrying(0)
    }

    /// A probe that can be told from others by its number.
    pub(crate) fn carrying(&self, number: u64) -> Probe {
        self.0.write(true);
        Probe { book: self.0.clone(), number }
    }

    /// How many were created and dropped so far, decoded copies included.
    pub(crate) fn counts(&self) -> (u64, u64) {
        match &self.0 {
            Book::Local(_, counts) => {
                // The later event first, so that a probe seen dropped is seen created.
                let dropped = counts.dropped.load(Ordering::Acquire);
                (counts.created.load(Ordering::Acquire), dropped)
            }
            Book::Shared(path, _) => {
                let marks = fs::read(&**path).unwrap();
                let created = marks.iter().filter(|&&mark| mark == b'+').count();
                (created as u64, (marks.len() - created) as u64)
            }
        }
    }

    pub(crate) fn alive(&self) -> u64 {
        let (created, dropped) = self.counts();
        created - dropped
    }

    /// Every probe that was created was dropped, once, and there were some.
    #[track_caller]
    pub(crate) fn assert_balanced(&self) {
        let (created, dropped) = self.counts();
        assert!(created > 0, "the test created no probe");
        assert_eq!(created, dropped, "probes created and dropped");
    }
}

impl Book {
    fn write(&self, is_birth: bool) {
        match self {
            Self::Local(_, counts) => {
                let count = if is_birth { &counts.created } else { &counts.dropped };
                count.fetch_add(1, Ordering::AcqRel);
            }
            Self::Shared(path, _) => {
                // One byte in append mode: whole, wherever it comes from. Gone at the very end of a test: then nobody
                // counts any more.
                if let Ok(mut file) = OpenOptions::new().append(true).open(&**path) {
                    let _ = file.write_all(if is_birth { b"+" } else { b"-" });
                }
            }
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if let Book::Local(id, counts) = &self.0
            && Arc::strong_count(counts) == 2
        {
            lock(&TALLIES).remove(id);
        }
    }
}

/// A value whose births and deaths are counted, in whatever process they happen.
pub(crate) struct Probe {
    book: Book,
    pub(crate) number: u64,
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        self.book.write(true);
        Self { book: self.book.clone(), number: self.number }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.book.write(false);
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Probe({})", self.number)
    }
}

#[derive(Serialize, Deserialize)]
struct ProbeOnTheWire {
    tally: Result<u64, String>,
    number: u64,
}

impl Serialize for Probe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tally = match &self.book {
            Book::Local(id, _) => Ok(*id),
            Book::Shared(path, _) => Err(path.to_string()),
        };
        ProbeOnTheWire { tally, number: self.number }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Probe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ProbeOnTheWire { tally, number } = ProbeOnTheWire::deserialize(deserializer)?;
        let book = match tally {
            Ok(id) => Book::Local(id, lock(&TALLIES).entry(id).or_default().clone()),
            Err(path) => Book::Shared(path.into(), None),
        };
        book.write(true);
        Ok(Self { book, number })
    }
}

// --- gates --------------------------------------------------------------------------------------------------------

/// A gate inside this process: closed until it is opened, then open for good.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    is_open: bool,
    arrived: usize,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn open(&self) {
        lock(&self.0.0).is_open = true;
        self.0.1.notify_all();
    }

    pub(crate) fn is_open(&self) -> bool {
        lock(&self.0.0).is_open
    }

    /// Waits until it is open.
    pub(crate) fn pass(&self) {
        let mut state = lock(&self.0.0);
        state.arrived += 1;
        self.0.1.notify_all();
        while !state.is_open {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until it is open, for at most `limit`; says whether it is.
    pub(crate) fn pass_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = lock(&self.0.0);
        while !state.is_open {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits until `count` threads have come to the gate, whether they have passed it or not.
    pub(crate) fn wait_for_arrivals(&self, count: usize) {
        let mut state = lock(&self.0.0);
        while state.arrived < count {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn arrivals(&self) -> usize {
        lock(&self.0.0).arrived
    }

    /// Opens it at the end of the scope at the latest, by unwinding too: a test that fails must not wait for its tasks.
    pub(crate) fn opens_at_the_end(&self) -> OpensAtTheEnd {
        OpensAtTheEnd(self.clone())
    }
}

pub(crate) struct OpensAtTheEnd(Gate);

impl Drop for OpensAtTheEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// A gate that tasks pass in whatever process they run, with nothing but a string. Closed until it is opened or
/// dropped, and it opens by itself when its process ends.
///
/// It is an advisory lock, held by the gate while it is closed; whoever passes asks for it shared, through a descriptor
/// of its own. Arrivals are bytes in a FIFO.
pub(crate) struct Turnstile {
    dir: TempDir,
    closed: Option<Flock<File>>,
    arrivals: File,
}

impl Turnstile {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new();
        let closed = File::create(dir.path("gate")).unwrap();
        let closed = Flock::lock(closed, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
        let fifo = dir.path("arrivals");
        nix::unistd::mkfifo(Path::new(&fifo), Mode::from_bits_truncate(0o600)).unwrap();
        // For both directions, so that opening does not wait and reading never sees an end.
        let arrivals = OpenOptions::new().read(true).write(true).open(fifo).unwrap();
        Self { dir, closed: Some(closed), arrivals }
    }

    /// What a task needs in order to pass.
    pub(crate) fn ticket(&self) -> String {
        self.dir.0.to_str().unwrap().to_owned()
    }

    pub(crate) fn open(&mut self) {
        self.closed = None;
    }

    /// Waits until `count` more tasks have arrived.
    pub(crate) fn wait_for_arrivals(&self, count: usize) {
        (&self.arrivals).read_exact(&mut vec![0; count]).unwrap();
    }
}

/// Arrives at the turnstile and waits until it is open. For use in tasks.
pub(crate) fn pass(ticket: &str) {
    // Before the arrival: who has arrived needs nothing that goes with the turnstile.
    let gate = File::open(format!("{ticket}/gate")).unwrap();
    arrive(ticket);
    drop(Flock::lock(gate, FlockArg::LockShared).map_err(|(_, error)| error).unwrap());
}

/// Arrives at the turnstile without waiting. For use in tasks.
pub(crate) fn arrive(ticket: &str) {
    OpenOptions::new().write(true).open(format!("{ticket}/arrivals")).unwrap().write_all(b".").unwrap();
}

/// A list that tasks write lines to, in whatever process they run, with nothing but a string.
pub(crate) struct Journal(TempDir);

impl Journal {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new();
        File::create(dir.path("journal")).unwrap();
        Self(dir)
    }

    /// What a task needs in order to write.
    pub(crate) fn ticket(&self) -> String {
        self.0.path("journal")
    }

    /// What was written so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.ticket()).unwrap().lines().map(str::to_owned).collect()
    }
}

/// Writes a line to the journal. For use in tasks.
pub(crate) fn note(ticket: &str, line: impl fmt::Display) {
    // One write in append mode: whole, wherever it comes from.
    OpenOptions::new().append(true).open(ticket).unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A directory that is removed with its contents.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("concurrent-futures-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path); // of an earlier process with this number
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// --- seen from outside --------------------------------------------------------------------------------------------

const CHILD: &str = "CONCURRENT_FUTURES_TEST_CHILD";

/// How a re-executed test ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` if it did not end in time and was killed.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) output: String,
    pub(crate) took: Duration,
}

impl Ended {
    /// The test ran in its process to its end, and passed.
    #[track_caller]
    pub(crate) fn assert_success(&self) {
        assert!(self.status.is_some(), "it hangs (killed after {:?}):\n{}", self.took, self.output);
        assert!(self.status.is_some_and(|status| status.success()), "{:?}:\n{}", self.status, self.output);
    }
}

/// Runs `body` alone in a process of its own: a fresh execution of this binary for the one test that calls this. A
/// hang there fails this test after `limit` and spares the others; so does a crash.
///
/// The test is found by the type of `body`, so call it from the test function itself, with a closure.
#[track_caller]
pub(crate) fn in_own_process<F: FnOnce()>(limit: Duration, body: F) {
    let test = test_of::<F>();
    match own_process(&test, limit, &[], body) {
        ControlFlow::Continue(ended) => ended.assert_success(),
        ControlFlow::Break(()) => {}
    }
}

/// [`in_own_process`] that tells how it ended; `None` inside that process.
pub(crate) fn watch_own_process<F: FnOnce()>(limit: Duration, body: F) -> Option<Ended> {
    let test = test_of::<F>();
    match own_process(&test, limit, &[], body) {
        ControlFlow::Continue(ended) => Some(ended),
        ControlFlow::Break(()) => None,
    }
}

/// Starts the test that calls this alone in a process of its own, as `prepare` says, for tests that do something to
/// that process; `None` inside it, after `body`. Whoever gets the process must wait for it. The test is the one in
/// which the closure `Named` was written.
pub(crate) fn start_own_process<Named>(
    prepare: impl FnOnce(&mut Command),
    body: impl FnOnce(),
) -> Option<Child> {
    let test = test_of::<Named>();
    if std::env::var_os(CHILD).is_some_and(|child| child == *test) {
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env(CHILD, &test)
        .stdin(Stdio::null());
    prepare(&mut command);
    Some(command.spawn().unwrap())
}

/// [`watch_own_process`] for the test with this path, where it cannot be found by itself: in a generic function.
pub(crate) fn watch_test(test: &str, limit: Duration, body: impl FnOnce()) -> Option<Ended> {
    match own_process(test, limit, &[], body) {
        ControlFlow::Continue(ended) => Some(ended),
        ControlFlow::Break(()) => None,
    }
}

/// The path of the test function in which a closure was written, as the harness knows it.
fn test_of<F>() -> String {
    let name = std::any::type_name::<F>();
    let name = name.split_once("::").map_or(name, |(_, path)| path);
    name.split("::{{closure}}").next().unwrap_or(name).to_owned()
}

fn own_process(
    test: &str,
    limit: Duration,
    environment: &[(&str, &str)],
    body: impl FnOnce(),
) -> ControlFlow<(), Ended> {
    if std::env::var_os(CHILD).is_some_and(|child| child == *test) {
        body();
        return ControlFlow::Break(());
    }
    let output = TempDir::new();
    let log = File::create(output.path("log")).unwrap();
    let start = Instant::now();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        // Only how soon the end is seen depends on this.
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = fs::read(output.path("log")).unwrap_or_default();
    let ended = Ended { status, output: String::from_utf8_lossy(&text).into_owned(), took: start.elapsed() };
    if ended.status.is_some_and(|status| status.success()) {
        assert!(ended.output.contains("1 passed"), "no test is called `{test}`:\n{}", ended.output);
    }
    ControlFlow::Continue(ended)
}

// --- numbers ------------------------------------------------------------------------------------------------------

/// Pseudo-random numbers from a printed seed (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    /// The seed of `CONCURRENT_FUTURES_TEST_SEED`, else one from the clock; printed, so that a failure shows it.
    pub(crate) fn seeded(what: &str) -> Self {
        let given = std::env::var("CONCURRENT_FUTURES_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        });
        println!("{what}: CONCURRENT_FUTURES_TEST_SEED={seed}");
        Self(seed)
    }

    /// A generator of its own for another thread.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Waits until `holds`, for states that nobody announces (a thread that has gone). The test's watchdog ends it.
pub(crate) fn eventually(mut holds: impl FnMut() -> bool) {
    while !holds() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The numbers of this process's threads.
pub(crate) fn threads() -> Vec<u64> {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// How many descriptors this process has open.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs `body` in a forked child; what it exits with, or `None` if it hangs.
pub(crate) fn in_fork(body: impl FnOnce() -> bool) -> Option<i32> {
    // SAFETY: the child calls the library, which promises to answer there, and leaves by `_exit`. Only glibc's locks
    // could be held by threads that are not there, and glibc takes care of its own in `fork`.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let code = match done {
                Ok(true) => 0,
                Ok(false) => 1,
                Err(_) => 2,
            };
            // SAFETY: ends the child without the destructors of its parent.
            unsafe { nix::libc::_exit(code) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let deadline = Instant::now() + Duration::from_secs(5);
            loop {
                match nix::sys::wait::waitpid(child, Some(nix::sys::wait::WaitPidFlag::WNOHANG)).unwrap() {
                    nix::sys::wait::WaitStatus::StillAlive if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    nix::sys::wait::WaitStatus::StillAlive => {
                        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
                        nix::sys::wait::waitpid(child, None).unwrap();
                        return None;
                    }
                    nix::sys::wait::WaitStatus::Exited(_, code) => return Some(code),
                    nix::sys::wait::WaitStatus::Signaled(_, signal, _) => return Some(128 + signal as i32),
                    _ => {}
                }
            }
        }
    }
}
