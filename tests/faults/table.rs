//! Every fault of the list in one table: what was expected, what was seen, and what it cost.
//!
//! `cargo test --test faults fault_table -- --nocapture` prints it. Each fault happens among honest tasks, half of them
//! submitted before it and half after it; afterwards the pool runs as many tasks at the same time as it has places. The
//! corner cases of each fault have tests of their own in the files beside this one.

use std::fmt::{Debug, Write};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use concurrent_futures::{
    Executor, Payload, ProcessPoolBuilder, ProcessPoolExecutor, TaskError, TaskFuture, ThreadPoolExecutor,
};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::procfs::{Footprint, fork_server, sockets, state_of, workers};
use crate::scene::{Runs, Stage, assert_full, forever, kill, looked_over, note};
use crate::support::{TempDir, Turnstile, arrive, eventually, in_fork, pass};

const TABLE: &str = "FAULTS_TABLE";

const SHORT: Duration = Duration::from_millis(100);

/// What a fault has come to.
struct Row {
    fault: &'static str,
    expected: &'static str,
    seen: String,
    lost: usize,
    doubled: usize,
    afterwards: String,
    left: String,
}

impl Row {
    fn is_right(&self) -> bool {
        let is_well = self.afterwards == "full" || self.afterwards.starts_with("ended");
        self.seen.contains(self.expected)
            && self.lost == 0
            && self.doubled == 0
            && is_well
            && self.left == "nothing"
    }
}

/// What this process, and this machine, hold that a pool could have left.
fn holdings() -> (Footprint, Vec<String>) {
    let shared = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let mut shared: Vec<String> =
        shared.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    shared.retain(|name| name.contains("concurrent") || name.starts_with("cf-"));
    shared.sort();
    (Footprint::take(), shared)
}

fn look_after<R>(act: impl FnOnce() -> R) -> (R, String) {
    let before = holdings();
    let outcome = act();
    let deadline = Instant::now() + Duration::from_secs(5);
    while holdings() != before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let after = holdings();
    let left = if after == before { "nothing".to_owned() } else { format!("{before:?} → {after:?}") };
    (outcome, left)
}

fn honest<E: Executor>(
    executor: &E,
    runs: &Runs,
    tasks: std::ops::Range<u64>,
) -> Vec<(u64, TaskFuture<u64>)> {
    let run = |(runs, task): (String, u64)| {
        note(&runs, task);
        task
    };
    tasks.map(|task| (task, executor.submit(run, (runs.ticket(), task)))).collect()
}

/// Lost, and doubled.
fn cost(honest: Vec<(u64, TaskFuture<u64>)>, runs: &Runs) -> (usize, usize) {
    let lost = honest
        .into_iter()
        .map(|(task, future)| future.result().is_ok_and(|value| value == task))
        .filter(|is_right| !is_right)
        .count();
    (lost, runs.counts().values().filter(|count| **count > 1).count())
}

/// A fault in a pool of two worker processes.
fn among_processes(
    fault: &'static str,
    expected: &'static str,
    build: impl FnOnce(ProcessPoolBuilder) -> ProcessPoolBuilder,
    act: impl FnOnce(&ProcessPoolExecutor) -> String,
) -> Row {
    let ((seen, lost, doubled, afterwards), left) = look_after(|| {
        let pool = build(ProcessPoolExecutor::builder().max_workers(2)).build().unwrap();
        let runs = Runs::new();
        let mut futures = honest(&pool, &runs, 0..20);
        let seen = act(&pool);
        if pool.submit(|n: u32| n, 1).result().is_err() {
            let (lost, doubled) = cost(futures, &runs);
            return (seen, lost, doubled, "ended by the test".to_owned());
        }
        futures.extend(honest(&pool, &runs, 20..40));
        let (lost, doubled) = cost(futures, &runs);
        assert_full(&pool, 2);
        (seen, lost, doubled, "full".to_owned())
    });
    Row { fault, expected, seen, lost, doubled, afterwards, left }
}

/// The same in a pool of two threads.
fn among_threads(
    fault: &'static str,
    expected: &'static str,
    act: impl FnOnce(&ThreadPoolExecutor) -> String,
) -> Row {
    let ((seen, lost, doubled, afterwards), left) = look_after(|| {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let mut futures = honest(&pool, &runs, 0..20);
        let seen = act(&pool);
        if pool.submit(|n: u32| n, 1).result().is_err() {
            let (lost, doubled) = cost(futures, &runs);
            return (seen, lost, doubled, "ended by the test".to_owned());
        }
        futures.extend(honest(&pool, &runs, 20..40));
        let (lost, doubled) = cost(futures, &runs);
        let both = std::sync::Arc::new(std::sync::Barrier::new(2));
        let meet = [(); 2].map(|()| {
            let both = std::sync::Arc::clone(&both);
            pool.spawn(move || both.wait().is_leader())
        });
        meet.into_iter().for_each(|future| assert!(future.result().is_ok()));
        (seen, lost, doubled, "full".to_owned())
    });
    Row { fault, expected, seen, lost, doubled, afterwards, left }
}

fn same(builder: ProcessPoolBuilder) -> ProcessPoolBuilder {
    builder
}

fn told<T: Debug>(outcome: Result<T, TaskError>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(error) => error.to_string(),
    }
}

/// One task whose outcome is all there is to see.
fn task<A: Payload, R: Payload + Debug>(
    fault: &'static str,
    expected: &'static str,
    f: fn(A) -> R,
    argument: A,
) -> Row {
    among_processes(fault, expected, same, |pool| told(pool.submit(f, argument).result()))
}

/// Fails where its number says: 1 in decoding, 2 in encoding on the way back, 3 in its destructor.
struct Brittle(u32, bool);

impl Serialize for Brittle {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0 == 2 && self.1 {
            return Err(serde::ser::Error::custom("brittle when it is encoded"));
        }
        self.0.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Brittle {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u32::deserialize(from)? {
            1 => Err(serde::de::Error::custom("brittle when it is decoded")),
            number => Ok(Self(number, true)),
        }
    }
}

impl Drop for Brittle {
    fn drop(&mut self) {
        assert!(self.0 != 3 || !self.1, "brittle when it is dropped");
    }
}

impl Debug for Brittle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Brittle")
    }
}

fn recurse(n: u64) -> u64 {
    let frame = std::hint::black_box([n; 512]);
    if n == u64::MAX { 0 } else { recurse(n + 1) + frame[usize::try_from(n % 512).unwrap_or(0)] }
}

fn crashes() -> Vec<Row> {
    vec![
        task("panic in a task, process", "the task panicked: oh", |()| -> u8 { panic!("oh") }, ()),
        among_threads("panic in a task, thread", "the task panicked: oh", |pool| {
            told(pool.submit(|()| -> u8 { panic!("oh") }, ()).result())
        }),
        task(
            "panic in an argument's decode",
            "brittle when it is decoded",
            |_: Brittle| (),
            Brittle(1, false),
        ),
        task(
            "failure in a result's encode",
            "brittle when it is encoded",
            |it: Brittle| it,
            Brittle(2, false),
        ),
        task("panic in a destructor", "brittle when it is dropped", drop::<Brittle>, Brittle(3, false)),
        task("abort", "died of SIGABRT", |()| -> u8 { std::process::abort() }, ()),
        task(
            "_exit(3)",
            "exited with code 3",
            // SAFETY: ends the process.
            |()| -> u8 { unsafe { libc::_exit(3) } },
            (),
        ),
        task(
            "segmentation fault",
            "died of SIGSEGV",
            // SAFETY: none: it is the fault.
            |()| unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(1) },
            (),
        ),
        task("stack overflow", "died of SIG", recurse, 1),
        among_processes("SIGKILL at 200 random instants", ", 0 twice", same, |pool| {
            assert_full(pool, 2); // the honest tasks are done: a kill that hit one would be no loss
            let mut random = crate::support::Random::seeded("table");
            let runs = Runs::new();
            let mut futures = Vec::new();
            for round in 0..200 {
                futures.extend(honest(pool, &runs, round * 5..(round + 1) * 5));
                std::thread::sleep(Duration::from_micros(random.below(2000)));
                if let Some(victim) = workers().first() {
                    kill(*victim, Signal::SIGKILL);
                }
            }
            let total = futures.len();
            let (died, twice) = cost(futures, &runs);
            // A task that died is told of, and was run once at most.
            format!("all answered: {} of {total} done, {died} died, {twice} twice", total - died)
        }),
        task(
            "last words of a dying worker",
            "stderr: the reason",
            |()| -> u8 {
                eprintln!("the reason");
                std::process::abort()
            },
            (),
        ),
    ]
}

fn limits() -> Vec<Row> {
    let timed =
        |pool: &ProcessPoolExecutor, f: fn(())| told(pool.options().timeout(SHORT).submit(f, ()).result());
    let quick = |builder: ProcessPoolBuilder| builder.termination_grace(SHORT);
    vec![
        among_processes("a task that never ends", "did not end in time", quick, |pool| {
            timed(pool, |()| forever())
        }),
        among_processes("a task that ignores SIGTERM", "did not end in time", quick, |pool| {
            timed(pool, |()| {
                // SAFETY: ignores a signal in this process.
                unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
                forever()
            })
        }),
        among_processes("a task that is stopped", "did not end in time", quick, |pool| {
            timed(pool, |()| {
                // SAFETY: stops this process.
                unsafe { libc::raise(libc::SIGSTOP) };
                forever()
            })
        }),
        among_processes(
            "memory limit of the workers",
            "limit on memory",
            |b| b.memory_limit(1 << 29),
            |pool| told(pool.submit(|()| std::hint::black_box(vec![1_u8; 1 << 30]).len(), ()).result()),
        ),
        among_processes("memory limit of a call", "limit on memory (67108864 bytes)", same, |pool| {
            let modest = pool.options().memory_limit(64 << 20);
            told(modest.submit(|()| std::hint::black_box(vec![1_u8; 1 << 28]).len(), ()).result())
        }),
        among_processes("processor time limit of a call", "limit on processor time (50ms)", same, |pool| {
            let modest = pool.options().cpu_time_limit(Duration::from_millis(50));
            told(modest.submit(|()| crate::scene::spin(Duration::from_secs(600)), ()).result())
        }),
        task(
            "closed stdin, stdout and stderr in a worker",
            "true",
            // SAFETY: closes numbers nobody owns.
            |()| (0..3).all(|number| unsafe { libc::close(number) } == 0),
            (),
        ),
    ]
}

fn system() -> Vec<Row> {
    vec![
        among_processes("parent SIGKILLed", "all gone", same, |pool| {
            // A worker is a process like any other: it is the parent of a pool of its own here.
            let (runs, turnstile) = (Runs::new(), Turnstile::new());
            let parent = pool.submit(
                |(runs, ticket): (String, String)| {
                    let inner = ProcessPoolExecutor::new(2).unwrap();
                    let server = inner.submit(|()| nix::unistd::getppid().as_raw(), ()).result().unwrap();
                    note(&runs, u64::try_from(server).unwrap());
                    let futures = [(); 2].map(|()| {
                        inner.submit(
                            |(runs, ticket): (String, String)| {
                                note(&runs, u64::from(std::process::id()));
                                arrive(&ticket);
                                forever::<()>();
                            },
                            (runs.clone(), ticket.clone()),
                        )
                    });
                    futures.into_iter().for_each(|future| drop(future.result()));
                },
                (runs.ticket(), turnstile.ticket()),
            );
            turnstile.wait_for_arrivals(2);
            let parent_pid = runs.all()[0].1;
            kill(parent_pid, Signal::SIGKILL);
            eventually(|| runs.all().iter().all(|(pid, _)| state_of(u32::try_from(*pid).unwrap()).is_none()));
            format!("all gone; {}", told(parent.result()))
        }),
        among_processes("parent SIGINT", "the workers went on", same, |pool| {
            let outcome = pool.submit(
                |()| {
                    let inner = ProcessPoolExecutor::new(1).unwrap();
                    let before = inner.submit(|()| std::process::id(), ()).result().unwrap();
                    // SAFETY: the signal is ignored here first.
                    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
                    // SAFETY: as Ctrl-C does: to everybody in the group.
                    unsafe { libc::kill(0, libc::SIGINT) };
                    inner.submit(|()| std::process::id(), ()).result().unwrap() == before
                },
                (),
            );
            format!("the workers went on: {}", told(outcome.result()))
        }),
        among_processes("fork server SIGKILLed", "another", same, |pool| {
            assert_full(pool, 2);
            let server = fork_server();
            kill(server, Signal::SIGKILL);
            eventually(|| state_of(server).is_none());
            assert_full(pool, 2);
            format!("another: {}", fork_server() != server)
        }),
        task(
            "garbage on a worker's socket",
            "died of SIGKILL",
            |()| {
                for socket in sockets() {
                    // SAFETY: the bytes are there.
                    unsafe { libc::write(socket, b"no frame at all, and long enough".as_ptr().cast(), 32) };
                }
                forever::<()>();
            },
            (),
        ),
        among_processes("descriptors exhausted", "7", same, |pool| {
            assert_full(pool, 2);
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 200, hard).unwrap();
            let all: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            drop(pool.submit(|()| -> u8 { std::process::abort() }, ()).result());
            let seen = told(pool.submit(|n: u32| n, 7).result());
            drop(all);
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            seen
        }),
        {
            let (seen, left) = look_after(|| {
                let pool = ThreadPoolExecutor::builder().max_workers(2).stack_size(1 << 46).build().unwrap();
                told(pool.submit(|n: u32| n, 1).result())
            });
            Row {
                fault: "thread creation refused",
                expected: "the pool is broken: could not start a worker thread",
                seen,
                lost: 0,
                doubled: 0,
                afterwards: "ended with that reason".to_owned(),
                left,
            }
        },
        {
            let (seen, left) = look_after(|| {
                for _ in 0..1000 {
                    assert_eq!(
                        ThreadPoolExecutor::new(2).unwrap().submit(|n: u32| n, 1).result().unwrap(),
                        1
                    );
                }
                for _ in 0..100 {
                    assert_eq!(
                        ProcessPoolExecutor::new(2).unwrap().submit(|n: u32| n, 1).result().unwrap(),
                        1
                    );
                }
                "made, used and dropped".to_owned()
            });
            Row {
                fault: "100 thread pools, 50 process pools",
                expected: "dropped",
                seen,
                lost: 0,
                doubled: 0,
                afterwards: "ended".to_owned(),
                left,
            }
        },
        among_processes("user's own fork", "refused at once: true", same, |pool| {
            pool.submit(|()| (), ()).wait();
            let code = in_fork(|| matches!(pool.submit(|n: u32| n, 1).result(), Err(TaskError::ForkedChild)));
            format!("refused at once: {}", code == Some(0))
        }),
    ]
}

fn from_eight<E: Executor + Sync>(pool: &E) -> String {
    let reports: Vec<bool> = std::thread::scope(|scope| {
        let threads = [(); 8].map(|()| scope.spawn(|| pool.shutdown().is_complete()));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    format!("complete: {}", reports.into_iter().all(|is_complete| is_complete))
}

fn from_callback<E: Executor + Send + 'static>(pool: &E) -> String {
    let (sender, receiver) = std::sync::mpsc::channel();
    let other = pool.clone();
    let turnstile = &mut Turnstile::new();
    let future = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
    future.add_done_callback(move |_| {
        other.shutdown();
        sender.send("it returned").unwrap();
    });
    turnstile.open();
    receiver.recv_timeout(Duration::from_secs(20)).unwrap_or("it hangs").to_owned()
}

fn while_unwinding(pool: impl Executor) -> String {
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = pool;
        std::panic::resume_unwind(Box::new("unwinding"));
    }));
    format!("unwound: {}", unwound.is_err())
}

fn endings() -> Vec<Row> {
    vec![
        among_processes("shutdown from 8 threads, processes", "complete: true", same, |pool| {
            from_eight(pool)
        }),
        among_threads("shutdown from 8 threads, threads", "complete: true", from_eight),
        among_processes("shutdown from a callback, processes", "it returned", same, |pool| {
            from_callback(pool)
        }),
        among_threads("shutdown from a callback, threads", "it returned", from_callback),
        among_threads("shutdown from a worker, threads", "it returned", |pool| {
            let other = pool.clone();
            let future = pool.spawn(move || {
                other.shutdown();
                "it returned"
            });
            told(future.result())
        }),
        among_processes("shutdown while unwinding, processes", "unwound: true", same, |_| {
            while_unwinding(ProcessPoolExecutor::new(1).unwrap())
        }),
        among_threads("shutdown while unwinding, threads", "unwound: true", |_| {
            while_unwinding(ThreadPoolExecutor::new(1).unwrap())
        }),
        among_processes("shutdown_now of a full queue", "every one answered", same, |pool| {
            // What was accepted before is finished first, so that what is counted below is not cancelled.
            eventually(|| pool.stats().finished == pool.stats().submitted);
            let futures: Vec<_> = (0..1000).map(|n| pool.submit(|n: u32| n, n)).collect();
            pool.shutdown_now();
            format!("every one answered: {}", futures.iter().all(TaskFuture::is_done))
        }),
    ]
}

fn print(rows: &[Row]) -> String {
    let cut = |text: &str, width: usize| -> String {
        let line: String = text.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).collect();
        if line.chars().count() <= width {
            line
        } else {
            line.chars().take(width - 1).chain(['…']).collect()
        }
    };
    let mut table = String::new();
    writeln!(
        table,
        "{:<44}{:<40}{:<70}{:>5}{:>8}  {:<20}{:<12}",
        "fault", "expected", "seen", "lost", "doubled", "afterwards", "left behind"
    )
    .unwrap();
    for row in rows {
        writeln!(
            table,
            "{:<44}{:<40}{:<70}{:>5}{:>8}  {:<20}{:<12}{}",
            row.fault,
            cut(row.expected, 38),
            cut(&row.seen, 68),
            row.lost,
            row.doubled,
            cut(&row.afterwards, 19),
            row.left,
            if row.is_right() { "" } else { "   ← WRONG" }
        )
        .unwrap();
    }
    table
}

#[test]
fn fault_table() {
    let dir = TempDir::new();
    let path = dir.path("table");
    let body = || {
        looked_over(|| {
            // What panics and aborts print is not what is looked at here.
            std::panic::set_hook(Box::new(|_| ()));
            let rows: Vec<Row> =
                [crashes, limits, system, endings].into_iter().flat_map(|group| group()).collect();
            drop(std::panic::take_hook());
            let table = print(&rows);
            std::fs::write(std::env::var(TABLE).unwrap(), &table).unwrap();
            assert!(rows.iter().all(Row::is_right), "\n{table}");
        });
    };
    let prepare = |command: &mut std::process::Command| {
        command.env(TABLE, &path).process_group(0);
    };
    if let Some(stage) = Stage::of(prepare, body) {
        stage.end();
        println!("{}", std::fs::read_to_string(&path).unwrap());
    }
}
