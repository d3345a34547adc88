//! What happens to the parent reaches its workers as it should (S12).

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use concurrent_futures::{ProcessPoolExecutor, ThreadPoolExecutor};
use nix::libc;
use nix::sys::signal::Signal;

use crate::procfs::{children_of, state_of};
use crate::scene::{Stage, assert_full, isolated, kill, leave_running, spin};
use crate::support::{Turnstile, arrive, eventually, pass};

const TURNSTILE: &str = "FAULTS_TURNSTILE";

fn ticket() -> String {
    std::env::var(TURNSTILE).unwrap()
}

/// Two in a task that never ends, one idle, one started and never used, and what the tasks have started themselves.
fn fill_the_house(pool: &ProcessPoolExecutor) {
    assert_full(pool, 4);
    let busy = pool.submit(
        |ticket: String| {
            // SAFETY: ignores signals in this process.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            leave_running("sleep", &["1000"]);
            arrive(&ticket);
            spin(Duration::from_secs(3600));
        },
        ticket(),
    );
    let asleep = pool.submit(
        |ticket: String| {
            leave_running("setsid", &["sleep", "1000"]);
            std::thread::spawn(crate::scene::forever::<()>);
            arrive(&ticket);
            crate::scene::forever::<()>();
        },
        ticket(),
    );
    drop((busy, asleep));
}

/// Stages the test that calls it with a full house, has `end` end it, and sees that nobody is left.
fn nobody_survives<F: FnOnce()>(body: F, end: impl FnOnce(&Stage)) {
    let turnstile = Turnstile::new();
    let prepare = |command: &mut std::process::Command| {
        command.env(TURNSTILE, turnstile.ticket());
    };
    let Some(mut stage) = Stage::of(prepare, body) else { return };
    turnstile.wait_for_arrivals(2);
    end(&stage);
    stage.child.wait().unwrap();
    let took = stage.assert_gone();
    println!("gone after {took:?}");
    // Promised is one second; this machine has other things to do.
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn a_parent_killed_leaves_nobody() {
    nobody_survives(
        || {
            let pool = ProcessPoolExecutor::new(4).unwrap();
            fill_the_house(&pool);
            crate::scene::forever::<()>();
        },
        |stage| kill(stage.child.id(), Signal::SIGKILL),
    );
}

#[test]
fn a_parent_that_aborts_leaves_nobody() {
    nobody_survives(
        || {
            let pool = ProcessPoolExecutor::new(4).unwrap();
            fill_the_house(&pool);
            crate::scene::forever::<()>();
        },
        |stage| kill(stage.child.id(), Signal::SIGABRT),
    );
}

#[test]
fn a_parent_that_exits_without_a_shutdown_leaves_nobody() {
    nobody_survives(
        || {
            let pool = ProcessPoolExecutor::new(4).unwrap();
            fill_the_house(&pool);
            let own = Turnstile::new();
            let third = pool.submit(|ticket: String| arrive(&ticket), own.ticket());
            third.wait();
            std::mem::forget(pool);
            // Not before the outside has seen them: `wait` in the task's order is theirs.
            while children_of(std::process::id()).is_empty() {}
            std::thread::sleep(Duration::from_millis(100));
            std::process::exit(0);
        },
        |_| (),
    );
}

/// The fork server is stopped and cannot see its parent's end: the kernel must do without it. It is killed here, as the
/// out-of-memory killer might, and takes its workers with it.
#[test]
fn a_parent_and_its_fork_server_killed_together_leave_no_worker() {
    let turnstile = Turnstile::new();
    let prepare = |command: &mut std::process::Command| {
        command.env(TURNSTILE, turnstile.ticket());
    };
    let stage = Stage::of(prepare, || {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let tasks = [(); 2].map(|()| {
            pool.submit(
                |ticket: String| {
                    arrive(&ticket);
                    crate::scene::forever::<()>();
                },
                ticket(),
            )
        });
        drop(tasks);
        crate::scene::forever::<()>();
    });
    let Some(mut stage) = stage else { return };
    turnstile.wait_for_arrivals(2);
    let servers = children_of(stage.child.id());
    assert_eq!(servers.len(), 1);
    kill(stage.child.id(), Signal::SIGKILL);
    kill(servers[0], Signal::SIGKILL);
    stage.child.wait().unwrap();
    stage.assert_gone();
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ctrl-C goes to every process of the terminal's foreground group. The program may handle it; workers never see it.
#[test]
fn an_interrupt_reaches_the_program_and_no_worker() {
    extern "C" fn interrupted(_: i32) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let turnstile = Turnstile::new();
    let prepare = |command: &mut std::process::Command| {
        command.process_group(0).env(TURNSTILE, turnstile.ticket());
    };
    let stage = Stage::of(prepare, || {
        let handler: extern "C" fn(i32) = interrupted;
        // SAFETY: the handler stores to an atomic.
        unsafe { libc::signal(libc::SIGINT, handler as libc::sighandler_t) };
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let mut gate = Turnstile::new();
        let tasks = [1, 2].map(|n| {
            pool.submit(
                |(outside, gate, n): (String, String, u32)| {
                    arrive(&outside);
                    pass(&gate);
                    n
                },
                (ticket(), gate.ticket(), n),
            )
        });
        eventually(|| INTERRUPTED.load(Ordering::Relaxed));
        gate.open();
        assert_eq!(tasks.map(|task| task.result().unwrap()), [1, 2]);
        assert_full(&pool, 2);
    });
    let Some(stage) = stage else { return };
    turnstile.wait_for_arrivals(2);
    let group = nix::unistd::Pid::from_raw(i32::try_from(stage.child.id()).unwrap());
    nix::sys::signal::killpg(group, Signal::SIGINT).unwrap();
    stage.end();
}

/// An interrupt that ends the program ends its workers.
#[test]
fn an_interrupt_that_ends_the_program_leaves_nobody() {
    nobody_survives(
        || {
            // Ignored, if a shell has put the tests into the background.
            // SAFETY: sets no handler.
            unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
            let pool = ProcessPoolExecutor::new(4).unwrap();
            fill_the_house(&pool);
            crate::scene::forever::<()>();
        },
        |stage| kill(stage.child.id(), Signal::SIGINT),
    );
}

/// Descriptors 0, 1 and 2 are free, so whatever is opened next gets their numbers.
#[test]
fn closed_standard_streams_in_the_parent() {
    isolated(|| {
        let keep = [0, 1, 2].map(|fd| {
            // SAFETY: duplicates a descriptor of this process.
            unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 100) }
        });
        for closed in [&[0][..], &[1], &[0, 1], &[1, 2], &[0, 1, 2]] {
            for fd in closed {
                // SAFETY: closes what nobody uses meanwhile: this process has one thread that prints, this one.
                unsafe { libc::close(*fd) };
            }
            let outcome = std::panic::catch_unwind(|| {
                let pool = ProcessPoolExecutor::new(2).unwrap();
                let printed = pool.submit(
                    |n: u32| {
                        println!("printed by a task");
                        eprintln!("and this");
                        let _ = std::io::stdin().read(&mut [0; 16]);
                        std::io::stdout().flush().is_ok().then_some(n)
                    },
                    7,
                );
                assert!(matches!(printed.result(), Ok(Some(7) | None)));
                let child = pool.submit(
                    |()| {
                        std::process::Command::new("cat")
                            .status()
                            .map(|status| status.success())
                            .unwrap_or(false)
                    },
                    (),
                );
                assert!(child.result().unwrap());
                assert_eq!(pool.map(|n: u32| n, 0..100).map(Result::unwrap).sum::<u32>(), 4950);
                assert_full(&pool, 2);
            });
            for fd in closed {
                // SAFETY: gives the number back to what it was.
                unsafe { libc::dup2(keep[usize::try_from(*fd).unwrap()], *fd) };
            }
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        }
        for fd in keep {
            // SAFETY: made above.
            unsafe { libc::close(fd) };
        }
    });
}

/// A standard output that nobody reads any more must not end anybody.
#[test]
fn a_standard_output_nobody_reads() {
    isolated(|| {
        let mut ends = [0; 2];
        // SAFETY: writes two descriptors.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: duplicates the standard output, to be put back below.
        let kept = unsafe { libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 100) };
        // SAFETY: makes the pipe the standard output.
        unsafe { libc::dup2(ends[1], 1) };
        for end in ends {
            // SAFETY: made above.
            unsafe { libc::close(end) };
        }
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let outcome = pool.submit(
            |n: u32| {
                let written =
                    std::io::stdout().write_all(&[b'x'; 100_000]).and_then(|()| std::io::stdout().flush());
                (n, written.is_err())
            },
            7,
        );
        let outcome = outcome.result();
        // SAFETY: puts the standard output back.
        unsafe { libc::dup2(kept, 1) };
        // SAFETY: made above.
        unsafe { libc::close(kept) };
        assert_eq!(outcome.unwrap(), (7, true));
        assert_full(&pool, 1);
    });
}

/// The program waits for all its children, as programs do that know of no pool.
#[test]
fn an_application_that_reaps_every_child() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        assert_full(&pool, 2);
        let reaper = std::thread::spawn(|| {
            loop {
                let mut status = 0;
                // SAFETY: writes a number.
                let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
                if pid < 0 {
                    return;
                }
            }
        });
        for _ in 0..5 {
            let outcome = pool.submit(|()| -> u8 { std::process::abort() }, ()).result();
            assert_eq!(crate::scene::death(outcome).signal, Some(libc::SIGABRT));
        }
        let server = crate::procfs::fork_server();
        kill(server, Signal::SIGKILL);
        eventually(|| state_of(server).is_none());
        assert_full(&pool, 2);
        drop(pool);
        reaper.join().unwrap();
    });
}

/// The thread that made the pool, and first used it, is gone: the workers are not bound to it.
#[test]
fn the_thread_that_made_the_pool_may_end() {
    isolated(|| {
        let pool = std::thread::spawn(|| {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            pool.submit(|n: u32| n, 1).wait();
            pool
        })
        .join()
        .unwrap();
        let pid = pool.workers()[0].id;
        for n in 0..20 {
            assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n);
        }
        assert_eq!(pool.workers()[0].id, pid);
        assert_full(&pool, 2);
        let threads = ThreadPoolExecutor::new(1).unwrap();
        let from_a_task = threads.spawn(|| ProcessPoolExecutor::new(1).unwrap()).result().unwrap();
        drop(threads);
        assert_full(&from_a_task, 1);
    });
}
