//! The fork server with real processes. Its workers run [`run_if_asked`] instead of the crate's own worker.
//!
//! What can only be seen from outside (descriptors and children of a whole process, a parent that is killed) runs in
//! an execution of its own of this test binary, see [`apart`]. Every wait ends at [`LIMIT`].

use super::*;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::memory::SharedPage;
use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::{env, fs, thread};

/// The same on every Linux.
const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;
const LIMIT: Duration = Duration::from_secs(20);
/// In the environment of a fork server whose workers are to be those of these tests.
const WORKER_VARIABLE: &str = "EXECUTOR_PROCESS_TEST_WORKER";
/// In the environment of a test that runs in an execution of its own.
const APART_VARIABLE: &str = "EXECUTOR_PROCESS_TEST_APART";

// The worker's side.

/// Serves one-byte commands until the socket is closed, if the fork server was started by these tests.
pub(super) fn run_if_asked(socket: OwnedFd, page: SharedPage) -> (OwnedFd, SharedPage) {
    if env::var_os(WORKER_VARIABLE).is_none() {
        return (socket, page);
    }
    let mut command = [0];
    while let Ok(1) = socket::receive_blocking(socket.as_fd(), &mut command) {
        let answer = match command[0] {
            b'x' => process::exit_now(3),
            b'+' => u64::from(process::id()) + page.word(1).fetch_add(1, Ordering::SeqCst),
            b'g' => start_grandchild(|| ()),
            b'd' => start_grandchild(|| process::lead_own_session().unwrap()),
            b'f' => open_fds().into_iter().fold(0, |set, fd| set | 1 << fd),
            b's' => signal_state(),
            b'v' => env::vars_os().filter(|(name, _)| name.to_string_lossy().contains("FORK_SERVER")).count()
                as u64,
            b'n' => use_nested_pool(),
            b'm' => marker().load(Ordering::Relaxed) as u64,
            b'c' => burn(),
            b'k' => {
                CONSTRUCTED.iter().fold(0, |all, count| all * 10 + u64::from(count.load(Ordering::Relaxed)))
            }
            b'l' => limits::Limit::OpenFiles.current().unwrap().0,
            b'o' => (1..=2).filter(|fd| leads_to_null(*fd)).sum(),
            other => u64::from(other),
        };
        socket::send_all(socket.as_fd(), &answer.to_ne_bytes()).unwrap();
    }
    process::exit_now(0)
}

fn start_grandchild(prepare: fn()) -> u64 {
    // SAFETY: a worker of these tests has one thread.
    if let Some(pid) = unsafe { process::fork() }.unwrap() {
        return pid.into();
    }
    prepare();
    loop {
        thread::sleep(LIMIT);
    }
}

/// Nothing blocked, and only SIGPIPE ignored: then 0. Two signals belong to the C library, which lets nobody touch them.
fn signal_state() -> u64 {
    const LIBRARYS_OWN: u64 = 1 << 31 | 1 << 32;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    set("SigBlk:") | (set("SigIgn:") & !LIBRARYS_OWN ^ 1 << (SIGPIPE - 1))
}

fn use_nested_pool() -> u64 {
    let zygote = Zygote::start(&config()).unwrap();
    let worker = Worker::start(&zygote, 0);
    worker.ask(b'!')
}

fn burn() -> u64 {
    let mut held = vec![1_u8; 32 << 20];
    let start = Instant::now();
    let mut sum = 0_u64;
    while start.elapsed() < Duration::from_millis(30) {
        for byte in held.iter_mut().step_by(4096) {
            *byte = byte.wrapping_add(1);
            sum += u64::from(*byte);
        }
    }
    std::hint::black_box(&held);
    std::hint::black_box(sum).min(1)
}

fn leads_to_null(fd: u64) -> bool {
    fs::read_link(format!("/proc/self/fd/{fd}")).unwrap() == Path::new("/dev/null")
}

/// How often each of these constructors has run. Some linkers put them before the hook, some after.
static CONSTRUCTED: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTORS: [extern "C" fn(); 2] = {
    extern "C" fn first() {
        CONSTRUCTED[0].fetch_add(1, Ordering::Relaxed);
    }
    extern "C" fn second() {
        CONSTRUCTED[1].fetch_add(1, Ordering::Relaxed);
    }
    [first, second]
};

fn marker() -> &'static AtomicU32 {
    static MARKER: AtomicU32 = AtomicU32::new(0);
    &MARKER
}

// The parent's side.

fn config() -> ZygoteConfig {
    ZygoteConfig { env: vec![(WORKER_VARIABLE.into(), "1".into())], ..ZygoteConfig::default() }
}

#[derive(Debug)]
struct Worker {
    number: u64,
    pid: u32,
    pidfd: OwnedFd,
    socket: OwnedFd,
    page: SharedPage,
}

impl Worker {
    fn start(zygote: &Zygote, number: u64) -> Self {
        let (socket, page) = request(zygote, number);
        Self::forked(next(zygote), number, socket, page)
    }

    fn forked(notice: Notice, number: u64, socket: OwnedFd, page: SharedPage) -> Self {
        let Notice::Forked { worker, pid, pidfd } = notice else { panic!("{notice:?}") };
        assert_eq!(worker, number);
        Self { number, pid, pidfd, socket, page }
    }

    fn ask(&self, command: u8) -> u64 {
        socket::send_all(self.socket.as_fd(), &[command]).unwrap();
        let mut answer = [0; 8];
        let mut have = 0;
        while have < answer.len() {
            until_readable(self.socket.as_fd());
            let received = socket::receive(self.socket.as_fd(), &mut answer[have..]).unwrap();
            assert_ne!(received, 0, "worker {} hung up", self.number);
            have += received;
        }
        u64::from_ne_bytes(answer)
    }
}

/// Asks for a worker, unless there is no room for the request.
fn try_request(zygote: &Zygote, number: u64) -> Option<(OwnedFd, SharedPage)> {
    let (ours, theirs) = socket::stream_pair().unwrap();
    let (page, file) = SharedPage::create().unwrap();
    match zygote.request_worker(number, theirs.as_fd(), file.as_fd(), None, None) {
        Ok(()) => Some((ours, page)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn request(zygote: &Zygote, number: u64) -> (OwnedFd, SharedPage) {
    try_request(zygote, number).unwrap()
}

/// Workers asked for as fast as there is room for requests.
fn start_many(zygote: &Zygote, count: u64) -> Vec<Worker> {
    let mut requested = VecDeque::new();
    let mut workers = Vec::new();
    for number in 0..count {
        let worker = loop {
            if let Some((socket, page)) = try_request(zygote, number) {
                break (number, socket, page);
            }
            let (number, socket, page) = requested.pop_front().unwrap();
            workers.push(Worker::forked(next(zygote), number, socket, page));
        };
        requested.push_back(worker);
    }
    let forked = |(number, socket, page)| Worker::forked(next(zygote), number, socket, page);
    workers.extend(requested.into_iter().map(forked));
    workers
}

fn until_readable(fd: BorrowedFd<'_>) {
    let [ready] = poll([(fd, Interest::Read)], Some(Instant::now() + LIMIT)).unwrap();
    assert!(ready.readable || ready.closed, "nothing came within {LIMIT:?}");
}

fn receive(zygote: &Zygote) -> io::Result<Notice> {
    loop {
        if let Some(notice) = zygote.receive()? {
            return Ok(notice);
        }
        until_readable(zygote.control());
    }
}

fn next(zygote: &Zygote) -> Notice {
    receive(zygote).unwrap()
}

fn next_end(zygote: &Zygote, worker: &Worker) -> Exit {
    match next(zygote) {
        Notice::Ended { worker: number, pid, exit, .. } => {
            assert_eq!((number, pid), (worker.number, worker.pid));
            exit
        }
        other => panic!("{other:?}"),
    }
}

/// Whether the process has ended, or does within the time.
fn ends_within(pidfd: &OwnedFd, time: Duration) -> bool {
    poll([(pidfd.as_fd(), Interest::Read)], Some(Instant::now() + time)).unwrap()[0].readable
}

fn pidfd_of(pid: u64) -> OwnedFd {
    process::open_pidfd(u32::try_from(pid).unwrap()).unwrap()
}

/// The numbers of the open descriptors, without that of the folder read for it.
fn open_fds() -> BTreeSet<i32> {
    let numbers: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    numbers.into_iter().filter(|fd| fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()).collect()
}

/// Children of any thread of this process, zombies included.
fn all_children() -> BTreeSet<u32> {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let lists =
        threads.map(|entry| fs::read_to_string(entry.unwrap().path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>())
        .collect()
}

/// Runs this test again, alone in its own process, and checks that it has passed there. False in that process: go on.
fn apart(test: &str) -> bool {
    if env::var_os(APART_VARIABLE).is_some() {
        return false;
    }
    let (mut child, _stdin) = start_apart(test);
    let mut output = String::new();
    let mut stdout = child.stdout.take().unwrap();
    let deadline = Some(Instant::now() + 3 * LIMIT);
    let pidfd = pidfd_of(child.id().into());
    if !poll([(pidfd.as_fd(), Interest::Read)], deadline).unwrap()[0].readable {
        child.kill().unwrap();
    }
    stdout.read_to_string(&mut output).unwrap();
    assert!(child.wait().unwrap().success(), "{output}");
    assert_eq!(output.matches("running 1 test").count(), 1, "main has run more than once: {output}");
    assert!(output.contains("1 passed"), "{output}");
    true
}

fn start_apart(test: &str) -> (Child, std::process::ChildStdin) {
    let mut child = Command::new("/proc/self/exe")
        .args(["--exact", "--nocapture", "--test-threads=1", &format!("zygote::tests::{test}")])
        .env(APART_VARIABLE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take().unwrap();
    (child, stdin)
}

#[test]
fn a_worker_answers_on_its_socket_and_in_its_page() {
    let zygote = Zygote::start(&config()).unwrap();
    let worker = Worker::start(&zygote, 17);
    assert_eq!(worker.ask(b'!'), u64::from(b'!'));
    assert_eq!(worker.ask(b'+'), worker.pid.into());
    assert_eq!(worker.ask(b'+'), u64::from(worker.pid) + 1);
    assert_eq!(worker.page.word(1).load(Ordering::SeqCst), 2);
    assert!(zygote.receive().unwrap().is_none());
    zygote.stop();
    assert!(ends_within(&worker.pidfd, LIMIT));
}

#[test]
fn fifty_workers_are_fifty_processes() {
    let zygote = Zygote::start(&config()).unwrap();
    let workers = start_many(&zygote, 50);
    for worker in &workers {
        assert_eq!(worker.ask(b'+'), worker.pid.into());
    }
    let pids: BTreeSet<u32> = workers.iter().map(|worker| worker.pid).collect();
    assert_eq!(pids.len(), 50);
    assert!(!pids.contains(&zygote.pid()));
}

#[test]
fn a_worker_starts_clean() {
    marker().store(1, Ordering::Relaxed);
    let zygote = Zygote::start(&config()).unwrap();
    let first = Worker::start(&zygote, 1);
    let second = Worker::start(&zygote, 2);
    for worker in [&first, &second] {
        assert_eq!(
            worker.ask(b'f').count_ones(),
            4,
            "the standard three and its socket: {:#b}",
            worker.ask(b'f')
        );
        assert_eq!(worker.ask(b's'), 0, "signals");
        assert_eq!(worker.ask(b'v'), 0, "the private variable");
        assert_eq!(worker.ask(b'm'), 0, "memory of the parent");
    }
    assert_eq!(process::group_of(first.pid).unwrap(), first.pid);
    assert_eq!(fs::read_to_string(format!("/proc/{}/comm", first.pid)).unwrap(), "cf-worker-1\n");
    assert_eq!(fs::read_to_string(format!("/proc/{}/comm", zygote.pid())).unwrap(), "cf-forkserver\n");
}

#[test]
fn every_constructor_has_run_once_in_a_worker() {
    let zygote = Zygote::start(&config()).unwrap();
    assert_eq!(Worker::start(&zygote, 1).ask(b'k'), 11);
}

#[test]
fn output_can_go_nowhere() {
    let ask = |stdout, stderr| {
        let zygote = Zygote::start(&ZygoteConfig { stdout, stderr, ..config() }).unwrap();
        Worker::start(&zygote, 1).ask(b'o')
    };
    assert_eq!(ask(WorkerStdio::Null, WorkerStdio::Null), 3);
    let inherited = (1..=2).filter(|fd| leads_to_null(*fd)).sum();
    assert_eq!(ask(WorkerStdio::Inherit, WorkerStdio::Inherit), inherited);
}

#[test]
fn a_task_sees_the_limit_of_open_files_the_program_was_given() {
    if apart("a_task_sees_the_limit_of_open_files_the_program_was_given") {
        return;
    }
    limits::lower_open_files(100).unwrap();
    limits::raise_open_files().unwrap();
    limits::raise_open_files().unwrap();
    let (soft, hard) = limits::Limit::OpenFiles.current().unwrap();
    assert_eq!(soft, hard);
    let zygote = Zygote::start(&config()).unwrap();
    assert_eq!(Worker::start(&zygote, 1).ask(b'l'), 100);
}

#[test]
fn a_parent_without_a_free_descriptor_gets_no_worker_and_loses_none() {
    if apart("a_parent_without_a_free_descriptor_gets_no_worker_and_loses_none") {
        return;
    }
    let zygote = Zygote::start(&config()).unwrap();
    let (soft, _) = limits::Limit::OpenFiles.current().unwrap();
    let (socket, _page) = request(&zygote, 1);
    // Every number below the first free one is taken.
    let first_free = (0..).find(|fd| !open_fds().contains(fd)).unwrap();
    limits::lower_open_files(u64::try_from(first_free).unwrap()).unwrap();
    let failed = next(&zygote);
    limits::lower_open_files(soft).unwrap();
    let Notice::ForkFailed { worker: 1, error } = failed else { panic!("{failed:?}") };
    assert_eq!(error.raw_os_error(), Some(process::TOO_MANY_FILES));
    drop(socket);
    assert!(matches!(next(&zygote), Notice::Ended { worker: 1, exit: Exit::Code(0), .. }));
    assert_eq!(Worker::start(&zygote, 2).ask(b'!'), u64::from(b'!'));
}

#[test]
fn a_killed_worker_is_reported_with_its_signal() {
    let zygote = Zygote::start(&config()).unwrap();
    let worker = Worker::start(&zygote, 1);
    worker.ask(b'!');
    process::kill_by_pidfd(worker.pidfd.as_fd()).unwrap();
    assert_eq!(next_end(&zygote, &worker), Exit::Signal { number: SIGKILL, core: false });
    assert!(ends_within(&worker.pidfd, Duration::ZERO));
    // It having ended is no error.
    process::kill_by_pidfd(worker.pidfd.as_fd()).unwrap();
    assert_eq!(Worker::start(&zygote, 2).ask(b'!'), u64::from(b'!'));
}

#[test]
fn a_worker_that_exits_is_reported_with_its_code() {
    let zygote = Zygote::start(&config()).unwrap();
    let worker = Worker::start(&zygote, 1);
    socket::send_all(worker.socket.as_fd(), b"x").unwrap();
    assert_eq!(next_end(&zygote, &worker), Exit::Code(3));
    let mut worker = Worker::start(&zygote, 2);
    worker.socket = socket::stream_pair().unwrap().0;
    assert_eq!(next_end(&zygote, &worker), Exit::Code(0), "its socket is closed");
}

#[test]
fn the_end_of_a_worker_says_what_it_used() {
    let zygote = Zygote::start(&config()).unwrap();
    let worker = Worker::start(&zygote, 1);
    worker.ask(b'c');
    drop(worker.socket);
    let Notice::Ended { cpu_time, peak_memory, .. } = next(&zygote) else { panic!("not the end") };
    assert!(cpu_time >= Duration::from_millis(1) && cpu_time < LIMIT, "{cpu_time:?}");
    assert!((32 << 20..1 << 30).contains(&peak_memory), "{peak_memory}");
}

#[test]
fn forked_comes_before_ended_even_if_the_worker_dies_at_once() {
    let zygote = Zygote::start(&config()).unwrap();
    for number in 0..100 {
        // Nobody at the other end: the worker ends by itself.
        drop(request(&zygote, number));
    }
    let (mut forked, mut ended) = (BTreeSet::new(), BTreeSet::new());
    while ended.len() < 100 {
        match next(&zygote) {
            Notice::Forked { worker, .. } => assert!(forked.insert(worker)),
            Notice::Ended { worker, .. } => assert!(forked.contains(&worker) && ended.insert(worker)),
            other => panic!("{other:?}"),
        }
    }
    assert!(zygote.receive().unwrap().is_none());
}

#[test]
fn the_children_of_a_worker_end_with_it() {
    let zygote = Zygote::start(&config()).unwrap();
    let worker = Worker::start(&zygote, 1);
    let other = Worker::start(&zygote, 2);
    let in_group = pidfd_of(worker.ask(b'g'));
    let daemon = pidfd_of(worker.ask(b'd'));
    let child_of_other = pidfd_of(other.ask(b'g'));
    let daemon_of_other = pidfd_of(other.ask(b'd'));
    process::kill_by_pidfd(worker.pidfd.as_fd()).unwrap();
    next_end(&zygote, &worker);
    assert!(ends_within(&in_group, LIMIT));
    assert!(ends_within(&daemon, LIMIT));
    assert!(!ends_within(&child_of_other, Duration::ZERO));
    assert!(!ends_within(&daemon_of_other, Duration::ZERO));
    assert_eq!(other.ask(b'!'), u64::from(b'!'));
    zygote.stop();
    assert!(ends_within(&child_of_other, LIMIT));
    assert!(ends_within(&daemon_of_other, LIMIT));
}

#[test]
fn a_dead_fork_server_takes_its_workers_along() {
    let zygote = Zygote::start(&config()).unwrap();
    let workers = start_many(&zygote, 10);
    process::kill_by_pidfd(zygote.sentinel.as_fd()).unwrap();
    assert_eq!(receive(&zygote).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(zygote.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "again");
    let deadline = Instant::now() + Duration::from_secs(1);
    for worker in &workers {
        assert!(ends_within(&worker.pidfd, deadline.saturating_duration_since(Instant::now())));
    }
    let (socket, _other) = socket::stream_pair().unwrap();
    let error = zygote.request_worker(1, socket.as_fd(), socket.as_fd(), None, None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn reports_sent_before_the_end_of_the_fork_server_still_arrive() {
    let zygote = Zygote::start(&config()).unwrap();
    let worker = Worker::start(&zygote, 1);
    socket::send_all(worker.socket.as_fd(), b"x").unwrap();
    until_readable(zygote.control());
    process::kill_by_pidfd(zygote.sentinel.as_fd()).unwrap();
    assert!(ends_within(&zygote.sentinel, LIMIT));
    assert_eq!(next_end(&zygote, &worker), Exit::Code(3));
    assert_eq!(receive(&zygote).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_worker_that_cannot_be_set_up_ends() {
    let zygote = Zygote::start(&config()).unwrap();
    let (socket, theirs) = socket::stream_pair().unwrap();
    zygote.request_worker(5, theirs.as_fd(), theirs.as_fd(), None, None).unwrap();
    let worker = Worker::forked(next(&zygote), 5, socket, SharedPage::create().unwrap().0);
    assert!(matches!(next_end(&zygote, &worker), Exit::Code(code) if code != 0));
}

#[test]
fn a_thread_that_started_it_may_end() {
    let (zygote, worker) = thread::spawn(|| {
        let zygote = Zygote::start(&config()).unwrap();
        let worker = Worker::start(&zygote, 1);
        (zygote, worker)
    })
    .join()
    .unwrap();
    assert_eq!(worker.ask(b'!'), u64::from(b'!'));
    assert_eq!(Worker::start(&zygote, 2).ask(b'!'), u64::from(b'!'));
}

#[test]
fn stop_leaves_nothing() {
    if apart("stop_leaves_nothing") {
        return;
    }
    let before = (open_fds(), all_children());
    for _ in 0..3 {
        let zygote = Zygote::start(&config()).unwrap();
        let workers = start_many(&zygote, 20);
        workers.iter().for_each(|worker| assert_eq!(worker.ask(b'!'), u64::from(b'!')));
        let mut pids: Vec<u32> = workers.iter().map(|worker| worker.pid).collect();
        pids.push(zygote.pid());
        drop(workers);
        zygote.stop();
        for pid in pids {
            assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "process {pid} is left");
        }
    }
    assert_eq!((open_fds(), all_children()), before);
}

#[test]
fn a_pool_inside_a_worker_never_runs_main_again() {
    if apart("a_pool_inside_a_worker_never_runs_main_again") {
        return;
    }
    let zygote = Zygote::start(&config()).unwrap();
    let worker = Worker::start(&zygote, 1);
    assert_eq!(worker.ask(b'n'), u64::from(b'!'));
    assert_eq!(worker.ask(b'!'), u64::from(b'!'));
}

#[test]
fn a_forked_fork_server_needs_a_single_thread() {
    let config = ZygoteConfig { method: StartMethod::Fork, ..config() };
    let error = Zygote::start(&config).unwrap_err();
    let StartError::Threads { count } = error else { panic!("{error}") };
    assert!(count > 1 && error.to_string().contains(&format!("this one has {count};")), "{error}");
}

#[test]
fn a_forked_fork_server_inherits_memory() {
    if apart("a_forked_fork_server_inherits_memory") {
        return;
    }
    // The harness has two threads; a forked child has one, and they hold no lock it needs: one waits for the other.
    // SAFETY: as just said.
    let forked = unsafe { process::fork() };
    let Some(child) = forked.unwrap() else {
        let outcome = catch_unwind(|| {
            marker().store(4711, Ordering::Relaxed);
            let config = ZygoteConfig { method: StartMethod::Fork, ..config() };
            let zygote = Zygote::start(&config).unwrap();
            let worker = Worker::start(&zygote, 1);
            assert_eq!(worker.ask(b'm'), 4711);
            assert_eq!(worker.ask(b's'), 0);
            drop(Worker::start(&zygote, 2).socket);
            assert!(matches!(next(&zygote), Notice::Ended { worker: 2, exit: Exit::Code(0), .. }));
            zygote.stop();
            assert!(ends_within(&worker.pidfd, Duration::ZERO));
        });
        process::exit_now(if outcome.is_ok() { 42 } else { 1 })
    };
    let pidfd = pidfd_of(child.into());
    assert!(ends_within(&pidfd, LIMIT));
    assert_eq!(process::reap_by_pidfd(pidfd.as_fd()).unwrap(), Some(Exit::Code(42)));
}

/// Both the fork server and the workers must go when the application has no chance to say so.
#[test]
fn all_ends_when_the_parent_is_killed() {
    const TEST: &str = "all_ends_when_the_parent_is_killed";
    if env::var_os(APART_VARIABLE).is_some() {
        let zygote = Zygote::start(&config()).unwrap();
        let workers = start_many(&zygote, 20);
        let mut pids: Vec<u64> = workers.iter().map(|worker| worker.pid.into()).collect();
        pids.extend([workers[0].ask(b'g'), workers[0].ask(b'd'), zygote.pid().into()]);
        println!("\nprocesses {}", pids.iter().map(u64::to_string).collect::<Vec<_>>().join(" "));
        // The test that started this one holds the other end, and kills this process.
        let _ = io::stdin().read(&mut [0]);
        return;
    }
    let (mut child, _stdin) = start_apart(TEST);
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let line = stdout.lines().map(Result::unwrap).find(|line| line.starts_with("processes ")).unwrap();
    let pidfds: Vec<OwnedFd> = line.split(' ').skip(1).map(|pid| pidfd_of(pid.parse().unwrap())).collect();
    assert_eq!(pidfds.len(), 23);
    child.kill().unwrap();
    let deadline = Instant::now() + Duration::from_secs(1);
    child.wait().unwrap();
    for pidfd in &pidfds {
        assert!(ends_within(pidfd, deadline.saturating_duration_since(Instant::now())));
    }
}

/// A copy of the control socket in a forked child of the application must not keep the workers alive.
#[test]
fn all_ends_when_the_parent_is_killed_and_a_child_of_it_holds_the_socket() {
    const TEST: &str = "all_ends_when_the_parent_is_killed_and_a_child_of_it_holds_the_socket";
    if env::var_os(APART_VARIABLE).is_some() {
        let zygote = Zygote::start(&config()).unwrap();
        let worker = Worker::start(&zygote, 1);
        let holder = start_grandchild(|| ());
        println!("\nprocesses {} {} {holder}", worker.pid, zygote.pid());
        let _ = io::stdin().read(&mut [0]);
        return;
    }
    let (mut child, _stdin) = start_apart(TEST);
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let line = stdout.lines().map(Result::unwrap).find(|line| line.starts_with("processes ")).unwrap();
    let pidfds: Vec<OwnedFd> = line.split(' ').skip(1).map(|pid| pidfd_of(pid.parse().unwrap())).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let [worker, zygote, holder] = &pidfds[..] else { panic!("{line}") };
    assert!(ends_within(worker, Duration::from_secs(1)));
    assert!(ends_within(zygote, Duration::from_secs(1)));
    assert!(!ends_within(holder, Duration::ZERO));
    process::kill_by_pidfd(holder.as_fd()).unwrap();
}
