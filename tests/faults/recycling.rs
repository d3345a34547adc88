//! Workers that are replaced in time, pools that change their size, and limits of one call that hold for no other.

use std::collections::BTreeSet;
use std::time::Duration;

use concurrent_futures::{Executor, Limit, ProcessPoolExecutor, TaskError};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};

use crate::procfs::workers;
use crate::scene::{Runs, assert_full, death, isolated, note, spin};
use crate::support::{Turnstile, eventually, pass};

/// All of them, soft and hard.
fn limits(_: ()) -> Vec<(u64, u64)> {
    [Resource::RLIMIT_AS, Resource::RLIMIT_CPU, Resource::RLIMIT_NOFILE]
        .map(|resource| getrlimit(resource).unwrap())
        .to_vec()
}

#[test]
fn a_limit_of_one_call_holds_for_no_other() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let (pid, free) = (
            pool.submit(|()| std::process::id(), ()).result().unwrap(),
            pool.submit(limits, ()).result().unwrap(),
        );
        let limited = pool
            .options()
            .memory_limit(256 << 20)
            .cpu_time_limit(Duration::from_secs(50))
            .open_files_limit(40);
        for _ in 0..20 {
            let inside = limited.submit(limits, ()).result().unwrap();
            assert!(inside[0].0 < free[0].0 && inside[2].0 == 40, "{inside:?}");
            assert_eq!([inside[0].1, inside[1].1, inside[2].1], [free[0].1, free[1].1, free[2].1]);
            assert_eq!(pool.submit(limits, ()).result().unwrap(), free);
        }
        // In a panic, too.
        assert!(
            limited.submit(|()| -> u8 { panic!("while it is limited") }, ()).result().unwrap_err().is_panic()
        );
        assert_eq!(pool.submit(limits, ()).result().unwrap(), free);
        assert_eq!(pool.submit(|()| std::process::id(), ()).result().unwrap(), pid, "the same worker");
    });
}

#[test]
fn memory_beyond_the_limit_of_a_call_costs_that_call() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let hungry: fn(()) -> usize = |()| std::hint::black_box(vec![1_u8; 128 << 20]).len();
        let modest = pool.options().memory_limit(64 << 20);
        let outcome = modest.submit(hungry, ()).result();
        assert!(
            matches!(outcome, Err(TaskError::LimitExceeded(Limit::Memory(n))) if n == 64 << 20),
            "{outcome:?}"
        );
        // Asked politely, it is told and lives.
        let polite = modest.submit(|()| Vec::<u8>::new().try_reserve(128 << 20).is_err(), ());
        assert!(polite.result().unwrap());
        assert_eq!(pool.submit(hungry, ()).result().unwrap(), 128 << 20);
        assert_full(&pool, 1);
    });
}

#[test]
fn processor_time_beyond_the_limit_of_a_call_costs_that_call() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let limit = Duration::from_millis(100);
        let busy: fn(()) = |()| spin(Duration::from_secs(600));
        let stubborn: fn(()) = |()| {
            // SAFETY: ignores a signal in this process.
            unsafe { libc::signal(libc::SIGXCPU, libc::SIG_IGN) };
            spin(Duration::from_secs(600));
        };
        // What the worker has used before does not count.
        pool.submit(|()| spin(Duration::from_millis(150)), ()).result().unwrap();
        let outcome =
            pool.options().cpu_time_limit(limit).submit(|()| spin(Duration::from_millis(1)), ()).result();
        outcome.unwrap();
        pool.submit(|()| spin(Duration::from_millis(150)), ()).result().unwrap();
        for task in [busy, stubborn] {
            let outcome = pool.options().cpu_time_limit(limit).submit(task, ()).result();
            assert!(
                matches!(outcome, Err(TaskError::LimitExceeded(Limit::CpuTime(time))) if time == limit),
                "{outcome:?}"
            );
        }
        // A kill from elsewhere is none of it.
        let killed = pool.options().cpu_time_limit(Duration::from_secs(100)).submit(
            |()| {
                // SAFETY: ends this process.
                unsafe { libc::raise(libc::SIGKILL) };
            },
            (),
        );
        assert_eq!(death(killed.result()).signal, Some(libc::SIGKILL));
        assert_full(&pool, 1);
    });
}

#[test]
fn open_files_beyond_the_limit_of_a_call_are_its_own_error() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let open: fn(()) -> usize = |()| {
            let files: Vec<_> = (0..100).map_while(|_| std::fs::File::open("/dev/null").ok()).collect();
            files.len()
        };
        let opened = pool.options().open_files_limit(32).submit(open, ()).result().unwrap();
        assert!((16..32).contains(&opened), "{opened}");
        assert_eq!(pool.submit(open, ()).result().unwrap(), 100);
    });
}

/// A task that lowers a hard limit cannot be undone: its worker goes.
#[test]
fn a_limit_that_cannot_be_taken_off_goes_with_its_worker() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let free = pool.submit(limits, ()).result().unwrap();
        let lowered = pool
            .options()
            .open_files_limit(40)
            .submit(|()| nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, 30, 30).is_ok(), ());
        assert!(lowered.result().unwrap());
        for _ in 0..10 {
            assert_eq!(pool.submit(limits, ()).result().unwrap(), free);
        }
        assert_full(&pool, 1);
    });
}

#[test]
fn limits_hold_for_every_item_of_a_map() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let results = pool.options().memory_limit(64 << 20).chunk_size(5).map(
            |n: usize| std::hint::black_box(vec![1_u8; if n == 7 { 128 << 20 } else { 16 << 20 }]).len(),
            0..20,
        );
        for (n, result) in results.enumerate() {
            if n == 7 {
                assert!(matches!(result, Err(TaskError::LimitExceeded(Limit::Memory(_)))), "{result:?}");
            } else {
                assert_eq!(result.unwrap(), 16 << 20);
            }
        }
        assert_full(&pool, 2);
    });
}

/// What a task leaks goes with its worker; one that leaks nothing stays.
#[test]
fn a_worker_that_has_grown_is_replaced_between_tasks() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .max_memory_growth(64 << 20)
            .initializer(|| std::mem::forget(std::hint::black_box(vec![1_u8; 96 << 20])))
            .build()
            .unwrap();
        let runs = Runs::new();
        let leak: fn((String, u64, usize)) -> u32 = |(runs, task, bytes)| {
            note(&runs, task);
            std::mem::forget(std::hint::black_box(vec![1_u8; bytes]));
            std::thread::sleep(Duration::from_millis(12)); // longer than between two looks
            std::process::id()
        };
        let modest: Vec<_> = (0..10).map(|task| pool.submit(leak, (runs.ticket(), task, 1 << 20))).collect();
        let pids: BTreeSet<u32> = modest.into_iter().map(|future| future.result().unwrap()).collect();
        assert_eq!(pids.len(), 1, "what the initializer has loaded counts");
        let greedy: Vec<_> =
            (10..15).map(|task| pool.submit(leak, (runs.ticket(), task, 80 << 20))).collect();
        let pids: BTreeSet<u32> = greedy.into_iter().map(|future| future.result().unwrap()).collect();
        assert_eq!(pids.len(), 5);
        runs.assert_once(0..15);
        assert_full(&pool, 1);
        assert_eq!(pool.stats().submitted, pool.stats().finished);
    });
}

#[test]
fn an_idle_worker_goes_and_comes_back() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder()
            .max_workers(3)
            .keep_alive(Duration::from_millis(100))
            .build()
            .unwrap();
        for _ in 0..3 {
            assert_full(&pool, 3);
            eventually(|| workers().is_empty());
            eventually(|| pool.stats().workers == 0);
        }
        // One whose time is not up stays.
        let patient = ProcessPoolExecutor::builder()
            .max_workers(1)
            .keep_alive(Duration::from_secs(3600))
            .build()
            .unwrap();
        let pids: BTreeSet<u32> =
            (0..20).map(|_| patient.submit(|()| std::process::id(), ()).result().unwrap()).collect();
        assert_eq!(pids.len(), 1);
    });
}

#[test]
fn a_pool_grows_and_shrinks_while_it_works() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let futures: Vec<_> = (0..40)
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
        turnstile.wait_for_arrivals(1);
        pool.set_max_workers(4).unwrap();
        turnstile.wait_for_arrivals(3); // three more, at the same time
        assert_eq!(pool.max_workers(), 4);
        pool.set_max_workers(2).unwrap();
        assert_eq!(workers().len(), 4, "what runs goes on");
        turnstile.open();
        for (task, future) in (0..).zip(futures) {
            assert_eq!(future.result().unwrap(), task);
        }
        runs.assert_once(0..40);
        eventually(|| pool.workers().len() == 2);
        assert_full(&pool, 2);
        // Idle ones go at once.
        pool.set_max_workers(1).unwrap();
        eventually(|| pool.workers().len() == 1);
        assert_full(&pool, 1);
        pool.set_max_workers(3).unwrap();
        assert_full(&pool, 3);
        assert_eq!(pool.set_max_workers(0).unwrap_err().to_string(), "max_workers must be at least 1, got 0");
        assert!(pool.set_max_workers(1_000_000).unwrap_err().to_string().contains("got 1000000"));
        assert_full(&pool, 3);
        pool.shutdown();
        pool.set_max_workers(5).unwrap();
    });
}

/// Sizes, deaths and tasks at once: nothing is lost, nothing runs twice.
#[test]
fn sizes_change_under_load_and_deaths() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let mut futures = Vec::new();
        for round in 0..60_u64 {
            pool.set_max_workers(usize::try_from(round * 7 % 5 + 1).unwrap()).unwrap();
            futures.extend((round * 10..(round + 1) * 10).map(|task| {
                let future = pool.submit(
                    |(runs, task): (String, u64)| {
                        note(&runs, task);
                        if task % 50 == 3 {
                            std::process::abort();
                        }
                        task
                    },
                    (runs.ticket(), task),
                );
                (task, future)
            }));
        }
        for (task, future) in futures {
            match future.result() {
                Ok(value) => assert_eq!(value, task),
                outcome => {
                    assert_eq!(task % 50, 3);
                    drop(death(outcome));
                }
            }
        }
        runs.assert_once(0..600);
        pool.set_max_workers(3).unwrap();
        eventually(|| pool.workers().len() <= 3); // one that is dismissed is there until it has ended
        assert_full(&pool, 3);
    });
}
