//! What workers print to standard error: it arrives, its end is in the report of a death, and nobody waits for it who
//! does not print.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use concurrent_futures::{Executor, Limit, ProcessPoolExecutor, TaskError, WorkerStdio};
use nix::libc;

use crate::scene::{assert_full, death, forever, isolated, leave_running};
use crate::support::{TempDir, Turnstile, arrive, eventually, pass};

/// This process's standard error led elsewhere, until it is dropped.
struct Redirected(OwnedFd);

impl Redirected {
    fn to(target: &impl AsFd) -> Self {
        let old = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
        nix::unistd::dup2_stderr(target).unwrap();
        Self(old)
    }
}

impl Drop for Redirected {
    fn drop(&mut self) {
        nix::unistd::dup2_stderr(&self.0).unwrap();
    }
}

fn text_of(file: &mut File) -> String {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

fn new_file() -> (TempDir, File) {
    let dir = TempDir::new();
    let path = dir.path("stderr");
    let file = File::options().create(true).append(true).read(true).open(path).unwrap();
    (dir, file)
}

fn print(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

#[test]
fn the_last_words_are_in_the_report_also_in_the_middle_of_a_line() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let outcome = pool.submit(
            |()| -> u8 {
                print("first line\nthe last, and its end is miss");
                std::process::abort()
            },
            (),
        );
        let death = death(outcome.result());
        assert_eq!(death.stderr, "first line\nthe last, and its end is miss");
        assert_eq!(death.attempt, 1);
        assert!(!death.out_of_memory);
        assert!(
            death.to_string().ends_with("; the last line of its stderr: the last, and its end is miss"),
            "{death}"
        );
        assert_full(&pool, 2);
    });
}

#[test]
fn of_much_output_the_last_lines_are_kept_and_all_of_it_arrives_in_order() {
    isolated(|| {
        let (_dir, mut file) = new_file();
        let redirected = Redirected::to(&file);
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let talkers: Vec<_> = (0..2)
            .map(|talker| {
                pool.submit(
                    |talker: u32| -> u8 {
                        for line in 0..20_000 {
                            print(&format!("{talker} says {line}\n"));
                        }
                        std::process::abort()
                    },
                    talker,
                )
            })
            .collect();
        for (talker, future) in talkers.into_iter().enumerate() {
            let death = death(future.result());
            assert!(death.stderr.len() <= 4096, "{}", death.stderr.len());
            assert!(death.stderr.len() > 4000, "{}", death.stderr.len());
            let lines: Vec<&str> = death.stderr.lines().collect();
            let first = 20_000 - lines.len();
            for (number, line) in (first..).zip(lines) {
                assert_eq!(line, format!("{talker} says {number}"));
            }
        }
        drop((pool, redirected));
        let text = text_of(&mut file);
        for talker in 0..2 {
            // Others may come between two lines, and at most every 4 KiB into one; none is missing.
            let begin = format!("{talker} says ");
            let count = text.matches(&begin).count();
            assert!(count > 19_900, "{count} lines of {talker}");
        }
        let expected: usize = (0..20_000).map(|line: u32| 8 + line.to_string().len()).sum();
        assert_eq!(text.len(), 2 * expected);
    });
}

/// A program that prints when it has a result prints after what the task has printed.
#[test]
fn what_a_task_has_printed_is_out_before_its_result_is_known() {
    isolated(|| {
        let (_dir, mut file) = new_file();
        let redirected = Redirected::to(&file);
        let pool = ProcessPoolExecutor::new(2).unwrap();
        for n in 0..200 {
            pool.submit(|n: u32| print(&format!("task {n}\n")), n).result().unwrap();
            print(&format!("main {n}\n"));
        }
        drop((pool, redirected));
        let expected: String = (0..200).map(|n| format!("task {n}\nmain {n}\n")).collect();
        assert_eq!(text_of(&mut file), expected);
    });
}

/// Results of many tasks come together, and some while the dispatcher is at others.
#[test]
fn what_many_tasks_have_printed_is_out_before_each_result_is_known() {
    isolated(|| {
        let (_dir, mut file) = new_file();
        let redirected = Redirected::to(&file);
        let pool = ProcessPoolExecutor::new(2).unwrap();
        for round in 0..5 {
            let tasks = round * 200..(round + 1) * 200;
            let print_task = |n: u32| print(&format!("task {n}\n"));
            let futures: Vec<_> = tasks.clone().map(|n| pool.submit(print_task, n)).collect();
            for (n, future) in tasks.zip(futures) {
                future.result().unwrap();
                print(&format!("main {n}\n"));
            }
        }
        drop((pool, redirected));
        let text = text_of(&mut file);
        let lines: Vec<&str> = text.lines().collect();
        for n in 0..1_000 {
            let place = |line: &str| lines.iter().position(|other| *other == line).unwrap();
            assert!(place(&format!("task {n}")) < place(&format!("main {n}")), "task {n}");
        }
    });
}

#[test]
fn where_it_goes_is_what_the_builder_says() {
    isolated(|| {
        for kind in [WorkerStdio::Inherit, WorkerStdio::Null, WorkerStdio::Direct] {
            let (_dir, mut file) = new_file();
            let redirected = Redirected::to(&file);
            let pool = ProcessPoolExecutor::builder().max_workers(1).stderr(kind).build().unwrap();
            let outcome = pool.submit(
                |()| -> u8 {
                    print("word\n");
                    std::process::abort()
                },
                (),
            );
            let death = death(outcome.result());
            drop((pool, redirected));
            assert_eq!(death.stderr, if kind == WorkerStdio::Direct { "" } else { "word\n" }, "{kind:?}");
            assert_eq!(text_of(&mut file), if kind == WorkerStdio::Null { "" } else { "word\n" }, "{kind:?}");
        }
    });
}

/// The one who prints waits, as he would anyway. Everybody else goes on, deaths are told, and all arrives in the end.
#[test]
fn a_standard_error_nobody_reads_holds_up_only_who_prints() {
    isolated(|| {
        const LENGTH: usize = 300_000;
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let redirected = Redirected::to(&writer);
        drop(writer);
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let turnstile = Turnstile::new();
        let printer = pool.submit(
            |ticket: String| {
                arrive(&ticket);
                print(&"x".repeat(LENGTH));
            },
            turnstile.ticket(),
        );
        turnstile.wait_for_arrivals(1);
        for n in 0..200 {
            assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n);
        }
        let talker = pool.submit(
            |()| -> u8 {
                print("last words\n");
                std::process::abort()
            },
            (),
        );
        let death = death(talker.result());
        assert!(death.stderr.ends_with("last words\n"), "{:?}", death.stderr);
        assert!(!printer.is_done());
        let collector = std::thread::spawn(move || {
            let mut all = Vec::new();
            File::from(reader).read_to_end(&mut all).unwrap();
            all
        });
        printer.result().unwrap();
        drop((pool, redirected));
        let all = collector.join().unwrap();
        assert_eq!(all.iter().filter(|byte| **byte == b'x').count(), LENGTH);
        assert!(String::from_utf8_lossy(&all).contains("last words"));
    });
}

/// A standard error that is closed, or leads to a pipe without a reader, is nobody's problem.
#[test]
fn a_standard_error_that_is_gone_costs_nothing() {
    isolated(|| {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let redirected = Redirected::to(&writer);
        drop(writer);
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let outcome = pool.submit(
            |()| -> u8 {
                print(&"y".repeat(1 << 20));
                print("\nheard\n");
                std::process::abort()
            },
            (),
        );
        assert_eq!(death(outcome.result()).stderr.lines().last(), Some("heard"));
        assert_full(&pool, 1);
        drop((pool, redirected));
    });
}

/// A child that has the worker's standard error too is not waited for.
#[test]
fn a_child_that_keeps_standard_error_open_holds_up_no_death() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let outcome = pool.submit(
            |()| -> u8 {
                leave_running("setsid", &["sleep", "1000"]);
                leave_running("yes", &["1>&2"]);
                print("gone\n");
                std::process::abort()
            },
            (),
        );
        assert!(death(outcome.result()).stderr.contains("gone"));
        assert_full(&pool, 1);
    });
}

/// A task that closes its standard error, and one that leads it elsewhere, are as before.
#[test]
fn a_task_may_close_its_standard_error() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let closed = pool.submit(
            |()| {
                // SAFETY: closes a number nobody owns.
                unsafe { libc::close(2) }
            },
            (),
        );
        assert_eq!(closed.result().unwrap(), 0);
        for n in 0..100 {
            assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n);
        }
        drop(death(pool.submit(|()| -> u8 { std::process::abort() }, ()).result()));
        assert_full(&pool, 1);
    });
}

#[test]
fn the_attempt_is_in_the_report() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let outcome = pool.options().retries(2).submit(|()| -> u8 { std::process::abort() }, ());
        let death = death(outcome.result());
        assert_eq!(death.attempt, 3);
        assert!(death.to_string().contains("at attempt 3"), "{death}");
    });
}

/// The limit, its value, and who is at fault, are read from what the runtime says.
#[test]
fn memory_beyond_the_limit_is_told_as_that() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(1).memory_limit(1 << 29).build().unwrap();
        let outcome = pool.submit(|()| std::hint::black_box(vec![1_u8; 1 << 30]).len(), ());
        match outcome.result() {
            Err(error @ TaskError::LimitExceeded(limit)) => {
                assert_eq!(limit, Limit::Memory(1 << 29));
                assert!(error.to_string().contains("536870912"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        // Another abort is a death all the same.
        drop(death(pool.submit(|()| -> u8 { std::process::abort() }, ()).result()));
        assert_full(&pool, 1);
    });
}

/// A control group with little memory, if this machine lets us make one; gone when it is dropped.
struct SmallGroup {
    path: std::path::PathBuf,
    home: std::path::PathBuf,
}

impl SmallGroup {
    /// Moves this process into it.
    fn enter(bytes: u64) -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let line = groups.lines().find(|line| line.contains(":memory:") || line.starts_with("0::/"))?;
        let (root, limit) = if line.contains(":memory:") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            ("/sys/fs/cgroup", "memory.max")
        };
        let home = std::path::Path::new(root).join(line.rsplit(':').next()?.trim_start_matches('/'));
        let path = home.join(format!("concurrent-futures-test-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        let group = Self { path, home };
        std::fs::write(group.path.join(limit), bytes.to_string()).ok()?;
        std::fs::write(group.path.join("cgroup.procs"), std::process::id().to_string()).ok()?;
        Some(group)
    }
}

impl Drop for SmallGroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.home.join("cgroup.procs"), std::process::id().to_string());
        eventually(|| std::fs::remove_dir(&self.path).is_ok() || !self.path.exists());
    }
}

#[test]
fn a_worker_killed_by_the_kernel_for_want_of_memory_is_told_from_one_killed_by_hand() {
    isolated(|| {
        let Some(group) = SmallGroup::enter(192 << 20) else {
            eprintln!("no control group can be made here: nothing tested");
            return;
        };
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let greedy = || {
            pool.submit(
                |()| {
                    let mut hoard = Vec::new();
                    for _ in 0..64 {
                        hoard.push(vec![1_u8; 16 << 20]);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    std::hint::black_box(hoard).len()
                },
                (),
            )
        };
        for _ in 0..2 {
            let killed = death(greedy().result());
            assert_eq!(killed.signal, Some(libc::SIGKILL));
            assert!(killed.out_of_memory, "{killed:?}");
            assert!(killed.peak_memory > 64 << 20, "{killed:?}");
            assert!(killed.to_string().contains("out of memory"), "{killed}");
            let by_hand = pool.submit(
                |()| {
                    // SAFETY: ends this process.
                    unsafe { libc::raise(libc::SIGKILL) };
                    forever::<()>();
                },
                (),
            );
            assert!(!death(by_hand.result()).out_of_memory);
        }
        assert_full(&pool, 2);
        drop(pool);
        drop(group);
    });
}

/// While a worker waits for room, it can be ended like any other.
#[test]
fn a_task_stuck_in_printing_can_be_ended() {
    isolated(|| {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let redirected = Redirected::to(&writer);
        drop(writer);
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let outcome = pool.options().timeout(Duration::from_millis(100)).submit(
            |()| loop {
                print(&"z".repeat(10_000));
            },
            (),
        );
        let outcome: Result<(), TaskError> = outcome.result();
        assert!(matches!(outcome, Err(TaskError::TimedOut)), "{outcome:?}");
        let mut turnstile = Turnstile::new();
        let next = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        turnstile.open();
        next.result().unwrap();
        assert!(reader.as_raw_fd() > 2);
        drop(pool);
        drop((redirected, reader));
    });
}
