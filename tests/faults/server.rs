//! The fork server is killed, and another takes its place.

use concurrent_futures::{Executor, ProcessPoolExecutor};
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use crate::procfs::{fork_server, state_of};
use crate::scene::{Runs, assert_full, breakage, death, isolated, kill, note};
use crate::support::{Turnstile, eventually, pass};

#[test]
fn the_fork_server_killed_while_tasks_run_costs_only_those() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(3).unwrap();
        let server = pool.submit(|()| getppid().as_raw(), ()).result().unwrap();
        let server = u32::try_from(server).unwrap();
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let futures: Vec<_> = (0..9)
            .map(|task| {
                pool.submit(
                    |(turnstile, runs, task): (String, String, u64)| {
                        note(&runs, task);
                        pass(&turnstile);
                        (task, getppid().as_raw())
                    },
                    (turnstile.ticket(), runs.ticket(), task),
                )
            })
            .collect();
        turnstile.wait_for_arrivals(3);
        let running = runs.all();
        kill(server, Signal::SIGKILL);
        turnstile.wait_for_arrivals(3);
        turnstile.open();
        for (task, future) in (0..).zip(futures) {
            if let Some((_, pid)) = running.iter().find(|(running, _)| *running == task) {
                let death = death(future.result());
                assert_eq!(death.pid, *pid);
                // Nobody was left who could have told.
                assert_eq!(death.exit_code, None);
                assert!(matches!(death.signal, None | Some(9)), "{death:?}");
            } else {
                let (value, parent) = future.result().unwrap();
                assert_eq!(value, task);
                assert_ne!(u32::try_from(parent).unwrap(), server);
            }
        }
        runs.assert_once(0..9);
        assert_eq!(state_of(server), None, "a zombie");
        assert!(running.iter().all(|(_, pid)| state_of(*pid).is_none_or(|state| state == 'Z')));
        assert_full(&pool, 3);
    });
}

#[test]
fn the_fork_server_killed_while_the_pool_is_idle_costs_nothing() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        for _ in 0..10 {
            assert_full(&pool, 2);
            let server = fork_server();
            kill(server, Signal::SIGKILL);
            eventually(|| state_of(server).is_none());
        }
        assert_full(&pool, 2);
    });
}

/// Before it has forked anything, known to the pool already or not yet: nothing is lost.
#[test]
fn the_fork_server_killed_before_its_first_worker() {
    isolated(|| {
        for round in 0..20 {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            let server = fork_server();
            kill(server, Signal::SIGKILL);
            if round % 2 == 0 {
                eventually(|| state_of(server).is_none());
            }
            assert_full(&pool, 2);
        }
    });
}

#[test]
fn the_fork_server_killed_during_a_shutdown_holds_up_nothing() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let turnstile = Turnstile::new();
        let task = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        let server = fork_server();
        pool.shutdown_background();
        kill(server, Signal::SIGKILL);
        drop(death(task.result()));
        assert!(pool.shutdown().is_complete());
        assert_eq!(state_of(server), None);
    });
}

/// A stopped fork server answers nobody; what its workers have they finish, and the shutdown ends it all the same.
#[test]
fn a_stopped_fork_server_does_not_stop_the_workers() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        assert_full(&pool, 2);
        let server = fork_server();
        kill(server, Signal::SIGSTOP);
        eventually(|| state_of(server) == Some('T'));
        let values: Vec<u32> =
            (0..100).map(|n| pool.submit(|n: u32| n, n)).map(|f| f.result().unwrap()).collect();
        assert_eq!(values, (0..100).collect::<Vec<_>>());
        kill(server, Signal::SIGCONT);
        assert_full(&pool, 2);
    });
}

/// The pool's workers kill the fork server while they are set up, this many of them.
fn killers(kills: usize) -> (ProcessPoolExecutor, Runs) {
    let runs = Runs::new();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(2)
        .env("SERVER_RUNS", runs.ticket())
        .env("SERVER_KILLS", kills.to_string())
        .initializer(|| {
            let variable = |name| std::env::var(name).unwrap();
            note(&variable("SERVER_RUNS"), 0);
            let starts = std::fs::read(variable("SERVER_RUNS")).unwrap().len() / 16;
            if starts <= variable("SERVER_KILLS").parse().unwrap() {
                kill(u32::try_from(getppid().as_raw()).unwrap(), Signal::SIGKILL);
                crate::scene::forever::<()>();
            }
        })
        .build()
        .unwrap();
    (pool, runs)
}

/// What is lost together with its fork server says nothing about workers, of which fewer in a row would break the pool.
#[test]
fn workers_that_go_with_their_fork_server_are_no_failed_starts() {
    isolated(|| {
        let (pool, runs) = killers(14);
        // One worker may be at a task when the other one kills the server of both.
        let patient = pool.options().retries(14);
        let values: Vec<u32> = patient.map(|n: u32| n, 0..10).map(Result::unwrap).collect();
        assert_eq!(values, (0..10).collect::<Vec<_>>());
        assert!(runs.all().len() > 14);
        assert_full(&pool, 2);
    });
}

#[test]
fn fork_servers_that_are_always_lost_break_the_pool() {
    isolated(|| {
        let (pool, _runs) = killers(usize::MAX);
        let reason = breakage(pool.submit(|n: u32| n, 1).result());
        assert!(reason.contains("fork servers in a row"), "{reason}");
    });
}
