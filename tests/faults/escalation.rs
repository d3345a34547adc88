//! How a running task is ended: asked first, then without mercy, with whatever it has started.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use concurrent_futures::{Executor, ProcessPoolExecutor, TaskError};
use nix::libc;
use nix::sys::signal::Signal;

use crate::procfs::{fork_server, state_of};
use crate::scene::{
    Runs, assert_cancelled, assert_full, assert_timed_out, death, forever, isolated, kill, leave_running,
    note,
};
use crate::support::{TempDir, Turnstile, arrive, eventually};

const SHORT: Duration = Duration::from_millis(100);

static TOLD: AtomicBool = AtomicBool::new(false);

/// Lets SIGTERM set [`TOLD`] and do nothing else.
fn listen() {
    extern "C" fn hear(_: libc::c_int) {
        TOLD.store(true, Ordering::SeqCst);
    }
    let handler: extern "C" fn(libc::c_int) = hear;
    // SAFETY: the handler stores to an atomic.
    unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
}

fn ignore() {
    // SAFETY: ignores a signal in this process.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}

fn until_told() {
    while !TOLD.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// It cleans up and returns; its time was up all the same.
fn tidy((runs, ticket): (String, String)) -> u32 {
    listen();
    note(&runs, 1);
    arrive(&ticket);
    until_told();
    note(&runs, 2);
    7
}

#[test]
fn a_task_that_handles_sigterm_may_clean_up_at_a_timeout_a_deadline_and_an_abort() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .termination_grace(Duration::from_secs(30))
            .build()
            .unwrap();
        for way in 0..3 {
            let (runs, turnstile) = (Runs::new(), Turnstile::new());
            let argument = (runs.ticket(), turnstile.ticket());
            match way {
                0 => assert_timed_out(pool.options().timeout(SHORT).submit(tidy, argument).result()),
                1 => {
                    assert_full(&pool, 1);
                    let deadline = Instant::now() + Duration::from_millis(300);
                    let future = pool.options().deadline(deadline).submit(tidy, argument);
                    turnstile.wait_for_arrivals(1);
                    assert_timed_out(future.result());
                }
                _ => {
                    let future = pool.submit(tidy, argument);
                    turnstile.wait_for_arrivals(1);
                    assert!(future.abort());
                    assert_cancelled(future.result());
                }
            }
            runs.assert_once([1, 2]);
            let worker = runs.of(1)[0];
            eventually(|| state_of(worker).is_none());
            assert_full(&pool, 1);
        }
    });
}

/// The future ends with the worker: who sees it may rely on that nothing runs on.
#[test]
fn a_task_that_ignores_sigterm_is_killed_after_the_grace() {
    isolated(|| {
        let grace = Duration::from_millis(200);
        let pool = ProcessPoolExecutor::builder().max_workers(2).termination_grace(grace).build().unwrap();
        assert_full(&pool, 2);
        let runs = Runs::new();
        let stubborn: fn(String) = |runs| {
            ignore();
            note(&runs, 1);
            forever::<()>();
        };
        let start = Instant::now();
        let timed = pool.options().timeout(SHORT).submit(stubborn, runs.ticket());
        let dated = pool.options().deadline(start + SHORT).submit(stubborn, runs.ticket());
        assert_timed_out(timed.result());
        assert_timed_out(dated.result());
        assert!(start.elapsed() >= SHORT + grace);
        for pid in runs.of(1) {
            assert!(state_of(pid).is_none_or(|state| state == 'Z'), "it goes on");
        }
        assert_full(&pool, 2);
    });
}

#[test]
fn without_a_grace_nobody_is_asked() {
    isolated(|| {
        let pool =
            ProcessPoolExecutor::builder().max_workers(1).termination_grace(Duration::ZERO).build().unwrap();
        let (runs, turnstile) = (Runs::new(), Turnstile::new());
        assert_timed_out(
            pool.options().timeout(SHORT).submit(tidy, (runs.ticket(), turnstile.ticket())).result(),
        );
        assert_eq!(runs.counts(), [(1, 1)].into());
        assert_full(&pool, 1);
    });
}

/// A task that waits for a program: both are asked, so the program may end as it likes to.
#[test]
fn the_children_of_a_task_are_asked_too_and_then_killed() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .termination_grace(Duration::from_secs(20))
            .build()
            .unwrap();
        let (dir, runs) = (TempDir::new(), Runs::new());
        let (ready, told) = (dir.path("ready"), dir.path("told"));
        let script =
            format!("trap 'echo > {told}; exit 0' TERM; echo > {ready}; while :; do sleep 0.01; done");
        let waiting = pool.submit(
            |(runs, script): (String, String)| {
                listen(); // a signal that is ignored stays so in programs, one that is handled does not
                let stubborn = leave_running("sh", &["-c", "trap '' TERM; sleep 1000"]);
                note(&runs, u64::from(stubborn));
                std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success()
            },
            (runs.ticket(), script),
        );
        eventually(|| std::fs::exists(&ready).unwrap());
        assert!(waiting.abort());
        assert_cancelled(waiting.result());
        assert!(std::fs::exists(&told).unwrap(), "the program was not asked");
        let stubborn = u32::try_from(runs.all()[0].0).unwrap();
        eventually(|| state_of(stubborn).is_none_or(|state| state == 'Z'));
        assert_full(&pool, 1);
    });
}

/// What is done of a chunk stays done.
#[test]
fn a_deadline_in_the_middle_of_a_map_keeps_what_is_done() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        assert_full(&pool, 1);
        let runs = Runs::new();
        let results: Vec<Result<u64, TaskError>> = pool
            .options()
            .deadline(Instant::now() + Duration::from_millis(500))
            .chunk_size(10)
            .map(
                |(runs, task): (String, u64)| {
                    note(&runs, task);
                    if task == 3 {
                        forever::<()>();
                    }
                    task
                },
                (0..20).map(|task| (runs.ticket(), task)),
            )
            .collect();
        for (task, result) in (0..).zip(results) {
            if task < 3 {
                assert_eq!(result.unwrap(), task);
            } else {
                assert_timed_out(result);
            }
        }
        runs.assert_once(0..=3);
        assert_eq!(runs.all().len(), 4);
        assert_full(&pool, 1);
    });
}

/// Frozen, if this machine lets us freeze: not even SIGKILL gets through then.
#[test]
fn a_task_the_kernel_does_not_let_go_is_given_up() {
    isolated(|| {
        let group = format!("/sys/fs/cgroup/freezer/concurrent-futures-test-{}", std::process::id());
        if std::fs::create_dir(&group).is_err() {
            eprintln!("no control group can be made here: nothing tested");
            return;
        }
        let write = |file: &str, text: &str| std::fs::write(format!("{group}/{file}"), text).unwrap();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .termination_grace(Duration::from_millis(50))
            .build()
            .unwrap();
        let turnstile = Turnstile::new();
        let stuck = pool.submit(
            |ticket: String| {
                arrive(&ticket);
                forever::<()>();
            },
            turnstile.ticket(),
        );
        turnstile.wait_for_arrivals(1);
        let pid = u32::try_from(pool.workers()[0].id).unwrap();
        write("cgroup.procs", &pid.to_string());
        write("freezer.state", "FROZEN");
        assert!(stuck.abort());
        assert_cancelled(stuck.result());
        assert_full(&pool, 1);
        assert!(state_of(pid).is_some());
        write("freezer.state", "THAWED");
        eventually(|| state_of(pid).is_none());
        assert_full(&pool, 1);
        eventually(|| std::fs::remove_dir(&group).is_ok());
    });
}

/// A fork server that tells nothing any more keeps no answer from anybody.
#[test]
fn a_death_nobody_tells_of_is_a_death() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let turnstile = Turnstile::new();
        let doomed = pool.submit(
            |ticket: String| {
                arrive(&ticket);
                forever::<()>();
            },
            turnstile.ticket(),
        );
        turnstile.wait_for_arrivals(1);
        let (server, worker) = (fork_server(), u32::try_from(pool.workers()[0].id).unwrap());
        kill(server, Signal::SIGSTOP);
        eventually(|| state_of(server) == Some('T'));
        kill(worker, Signal::SIGKILL);
        let death = death(doomed.result());
        assert_eq!((death.pid, death.signal, death.exit_code), (worker, None, None));
        kill(server, Signal::SIGCONT);
        assert_full(&pool, 1);
    });
}
