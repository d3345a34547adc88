//! The system refuses: no descriptors, no processes, no threads.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use concurrent_futures::{BuildError, ProcessPoolExecutor, TaskError};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::procfs::{fork_server, state_of_thread, workers};
use crate::scene::{Runs, assert_full, breakage, isolated, isolated_with, note};
use crate::support::{Turnstile, descriptors, eventually, pass, threads};

fn limit_descriptors(most: usize) {
    setrlimit(Resource::RLIMIT_NOFILE, most as u64, most as u64).unwrap();
}

/// Takes every descriptor there is.
fn take_all() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// Fewer workers than asked for: those there are do all the work.
#[test]
fn descriptors_for_a_few_workers_only() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(64).unwrap();
        assert_full(&pool, 1);
        limit_descriptors(descriptors() + 12);
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let futures: Vec<_> = (0..200)
            .map(|task| {
                pool.submit(
                    |(ticket, runs, task): (String, String, u64)| {
                        note(&runs, task);
                        pass(&ticket);
                        task
                    },
                    (turnstile.ticket(), runs.ticket(), task),
                )
            })
            .collect();
        turnstile.wait_for_arrivals(2);
        turnstile.open();
        for (task, future) in (0..).zip(futures) {
            assert_eq!(future.result().unwrap(), task);
        }
        runs.assert_once(0..200);
        assert!(workers().len() < 64);
    });
}

#[test]
fn no_descriptors_for_a_pool_is_an_error() {
    isolated(|| {
        limit_descriptors(descriptors() + 20);
        let mut taken = take_all();
        // From none at all to enough, one by one: an error that says what was refused, or a pool that works.
        let mut errors = 0;
        loop {
            match ProcessPoolExecutor::new(1) {
                Ok(pool) => match pool.submit(|n: u32| n, 7).result() {
                    Ok(value) => {
                        assert_eq!(value, 7);
                        break;
                    }
                    outcome => {
                        let reason = breakage(outcome);
                        assert!(reason.contains("could not"), "{reason}");
                    }
                },
                Err(BuildError::System { .. } | BuildError::Startup(_)) => errors += 1,
                Err(other) => panic!("{other:?}"),
            }
            assert!(taken.pop().is_some());
        }
        assert!(errors > 0);
        drop(taken);
    });
}

/// Gone for good: broken with the reason. Gone for a moment: nothing happens.
#[test]
fn descriptors_exhausted_after_the_pool_was_built() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        limit_descriptors(descriptors() + 20);
        let taken = take_all();
        let waiting = pool.submit(|n: u32| n, 7);
        assert!(!waiting.wait_timeout(Duration::from_millis(20)));
        drop(taken);
        assert_eq!(waiting.result().unwrap(), 7);
        assert_full(&pool, 1);

        let broken = ProcessPoolExecutor::new(2).unwrap();
        let taken = take_all();
        let reason = breakage(broken.submit(|n: u32| n, 7).result());
        assert!(reason.contains("could not ask for a worker process"), "{reason}");
        drop(taken);
        assert_eq!(breakage(broken.submit(|n: u32| n, 7).result()), reason);
        assert_eq!(pool.submit(|n: u32| n, 8).result().unwrap(), 8);
    });
}

/// Somebody takes all descriptors again and again, also between the request for a worker and the answer with its pidfd.
#[test]
fn descriptors_exhausted_again_and_again() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(4).max_tasks_per_worker(5).build().unwrap();
        assert_full(&pool, 4);
        limit_descriptors(descriptors() + 40);
        let runs = Runs::new();
        let ticket = runs.ticket();
        let stop = AtomicBool::new(false);
        let outcomes = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(take_all());
                    std::thread::yield_now();
                }
            });
            let outcomes: Vec<_> = (0..300)
                .map(|task| {
                    pool.submit(
                        |(ticket, task): (String, u64)| {
                            note(&ticket, task);
                            task
                        },
                        (ticket.clone(), task),
                    )
                })
                .map(|future| future.result())
                .collect();
            stop.store(true, Ordering::Relaxed);
            outcomes
        });
        let (mut right, mut lost) = (0, 0);
        for (task, outcome) in (0..).zip(outcomes) {
            match outcome {
                Ok(value) => {
                    right += 1;
                    assert_eq!((value, runs.of(task).len()), (task, 1));
                }
                Err(TaskError::WorkerDied(death)) => {
                    lost += 1;
                    assert!(death.pid > 0, "{death:?}");
                }
                Err(TaskError::Broken(reason)) => assert!(reason.contains("could not"), "{reason}"),
                Err(other) => panic!("task {task}: {other}"),
            }
        }
        println!("{right} right, {lost} died");
        runs.assert_none_twice();
    });
}

/// A user that may have no more processes. Not root, for whom there is no such limit.
#[test]
fn forks_refused_for_a_while_and_for_good() {
    if !nix::unistd::geteuid().is_root() && std::env::var_os("FAULTS_USER").is_none() {
        return; // it takes root to become a user nobody else is
    }
    let user = 61_000 + std::process::id() % 4_000;
    isolated_with(
        |command| {
            command.env("FAULTS_USER", "1").env("TMPDIR", std::env::temp_dir()).uid(user).gid(user);
        },
        || {
            let pool = ProcessPoolExecutor::new(4).unwrap();
            assert_full(&pool, 1);
            let server = fork_server();
            allow_processes(server, 0);
            // The one there is does the work.
            let futures: Vec<_> = (0..50).map(|n| pool.submit(|n: u32| n, n)).collect();
            for (n, future) in (0..).zip(futures) {
                assert_eq!(future.result().unwrap(), n);
            }
            allow_processes(server, 1000);
            assert_full(&pool, 4);

            let broken = ProcessPoolExecutor::new(4).unwrap();
            let servers = crate::procfs::fork_servers();
            let other = *servers.iter().find(|pid| **pid != server).unwrap();
            allow_processes(other, 0);
            let reason = breakage(broken.submit(|n: u32| n, 1).result());
            assert!(reason.contains("could not fork a worker process"), "{reason}");
            broken.shutdown();
            assert_full(&pool, 4);
        },
    );
}

/// For the fork server alone.
fn allow_processes(pid: u32, most: u64) {
    let limit = nix::libc::rlimit { rlim_cur: most, rlim_max: 1000 };
    let pid = nix::libc::pid_t::try_from(pid).unwrap();
    // SAFETY: reads the limit, and writes nothing.
    let set =
        unsafe { nix::libc::prlimit(pid, nix::libc::RLIMIT_NPROC, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// No memory for the stack of the pool's thread, or for the program that is to be the fork server.
#[test]
fn no_memory_for_a_pool_is_an_error() {
    isolated(|| {
        // Every thread there is has its memory already: the standard library ends the program if it gets none.
        eventually(|| threads().iter().filter(|thread| state_of_thread(**thread) != Some('S')).count() <= 1);
        let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        let size = pages.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096;
        for spare in [0, 1 << 18, 1 << 20] {
            setrlimit(Resource::RLIMIT_AS, size + spare, hard).unwrap();
            let built = ProcessPoolExecutor::new(1);
            setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
            match built {
                Err(BuildError::System { .. } | BuildError::Startup(_)) => {}
                Err(other) => panic!("{other:?}"),
                Ok(pool) => drop(pool.submit(|n: u32| n, 1).result()),
            }
        }
        assert_full(&ProcessPoolExecutor::new(2).unwrap(), 2);
    });
}
