//! How workers are made: from what is preloaded, from which file, on which processor, and how deep inside each other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use concurrent_futures::{BuildError, ProcessPoolExecutor, StartMethod};
use nix::sys::signal::Signal;

use crate::procfs::fork_server;
use crate::scene::{Runs, assert_full, breakage, isolated, kill, note};
use crate::support::{TempDir, eventually};

static LOADED: AtomicU64 = AtomicU64::new(0);

const TICKET: &str = "FAULTS_RUNS";

#[test]
fn what_is_preloaded_is_loaded_once_and_is_in_every_worker() {
    isolated(|| {
        let runs = Runs::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(3)
            .env(TICKET, runs.ticket())
            .preload(|| {
                note(&std::env::var(TICKET).unwrap(), 1);
                // Threads that end are no harm.
                std::thread::spawn(|| LOADED.store(42, Ordering::SeqCst)).join().unwrap();
                print!("half a line, printed once");
            })
            .build()
            .unwrap();
        assert_full(&pool, 3);
        for _ in 0..20 {
            assert_eq!(pool.submit(|()| LOADED.load(Ordering::SeqCst), ()).result().unwrap(), 42);
        }
        assert_eq!(LOADED.load(Ordering::SeqCst), 0);
        let server = fork_server();
        assert_eq!(runs.of(1), [server]);
        // Another fork server loads it again.
        kill(server, Signal::SIGKILL);
        eventually(|| crate::procfs::state_of(server).is_none());
        assert_full(&pool, 3);
        assert_eq!(runs.of(1).len(), 2);
        assert_eq!(pool.submit(|()| LOADED.load(Ordering::SeqCst), ()).result().unwrap(), 42);
    });
}

fn preloading<O: concurrent_futures::InitOutcome>(f: fn() -> O) -> String {
    let pool = ProcessPoolExecutor::builder().max_workers(2).preload(f).build().unwrap();
    let futures: Vec<_> = (0..5).map(|n| pool.submit(|n: u32| n, n)).collect();
    let mut reasons: BTreeSet<String> = futures.into_iter().map(|future| breakage(future.result())).collect();
    reasons.insert(breakage(pool.submit(|n: u32| n, 1).result()));
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    reasons.pop_first().unwrap()
}

#[test]
fn what_fails_to_preload_breaks_the_pool_with_the_reason() {
    isolated(|| {
        let reason = preloading(|| -> () { panic!("no model here") });
        assert!(reason.contains("preload") && reason.contains("no model here"), "{reason}");
        let reason = preloading(|| Err::<(), String>("no such table".to_owned()));
        assert!(reason.contains("preload") && reason.contains("no such table"), "{reason}");
        let long = preloading(|| Err::<(), String>("ü".repeat(10_000)));
        assert!(long.contains("preload") && long.contains("üüü"), "{long}");
        let reason = preloading(|| {
            std::thread::spawn(crate::scene::forever::<()>);
        });
        assert!(reason.contains("1 thread(s) running"), "{reason}");
        let reason = preloading(|| -> () { std::process::abort() });
        assert!(reason.contains("the preload function ended the fork server"), "{reason}");
    });
}

#[test]
fn another_file_of_the_same_build_makes_workers_and_no_other_program_is_executed() {
    isolated(|| {
        let dir = TempDir::new();
        let (copy, marker) = (dir.path("copy"), dir.path("marker"));
        std::fs::copy("/proc/self/exe", &copy).unwrap();
        let with = |file: &str| ProcessPoolExecutor::builder().max_workers(2).worker_executable(file).build();
        let pool = with(&copy).unwrap();
        assert_full(&pool, 2);
        let executed = pool.submit(|()| std::fs::read_link("/proc/self/exe").unwrap(), ()).result().unwrap();
        assert_eq!(executed.to_str().unwrap(), copy);
        drop(pool);
        let error = with("/bin/sh").unwrap_err().to_string();
        assert!(error.contains("/bin/sh is another program") && error.contains("build id"), "{error}");
        // A script would run: it is never executed.
        let script = dir.path("script");
        std::fs::write(&script, format!("#!/bin/sh\necho > {marker}\n")).unwrap();
        std::process::Command::new("chmod").args(["+x", &script]).status().unwrap();
        let error = with(&script).unwrap_err().to_string();
        assert!(error.contains("is no program"), "{error}");
        let error = with(&dir.path("missing")).unwrap_err();
        assert!(matches!(error, BuildError::Startup(_)), "{error:?}");
        assert!(!std::fs::exists(&marker).unwrap());
        let error = ProcessPoolExecutor::builder()
            .worker_executable(&copy)
            .start_method(StartMethod::Fork)
            .build()
            .unwrap_err();
        assert!(matches!(error, BuildError::InvalidOption { option: "worker_executable", .. }), "{error:?}");
    });
}

/// The processors a process may use.
fn processors_of(pid: u64) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    list.split(',')
        .flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            first.parse::<u32>().unwrap()..=last.parse().unwrap()
        })
        .collect()
}

fn processors(_: ()) -> Vec<u32> {
    processors_of(u64::from(std::process::id()))
}

#[test]
fn workers_run_where_they_are_pinned_to() {
    isolated(|| {
        let usable = processors(());
        let list: Vec<u32> = usable.iter().copied().take(2).collect();
        let pool = ProcessPoolExecutor::builder().max_workers(4).affinity(list.clone()).build().unwrap();
        for _ in 0..2 {
            assert_full(&pool, 4);
            for worker in pool.workers() {
                let index: usize = worker.name.rsplit('-').next().unwrap().parse().unwrap();
                assert_eq!(processors_of(worker.id), [list[index % list.len()]], "{}", worker.name);
            }
            crate::scene::replace_workers(&pool);
        }
        // Children too; this process is as it was.
        assert_eq!(pool.submit(processors, ()).result().unwrap().len(), 1);
        assert_eq!(processors(()), usable);
        let free = ProcessPoolExecutor::new(1).unwrap();
        assert_eq!(free.submit(processors, ()).result().unwrap(), usable);
        for (wrong, text) in [(vec![], "at least one"), (vec![list[0], 900], "names processor 900")] {
            let error = ProcessPoolExecutor::builder().affinity(wrong).build().unwrap_err();
            assert!(matches!(error, BuildError::InvalidOption { option: "affinity", .. }));
            assert!(error.to_string().contains(text), "{error}");
        }
    });
}

/// A pool in a task of a pool, and so on: how deep it went, and why it went no deeper.
fn deeper(level: u32) -> (u32, String) {
    match ProcessPoolExecutor::new(1) {
        Ok(pool) => pool.submit(deeper, level + 1).result().unwrap(),
        Err(error) => (level, error.to_string()),
    }
}

#[test]
fn pools_inside_pools_come_to_a_clear_end() {
    isolated(|| {
        let (depth, reason) = deeper(0);
        assert_eq!(depth, 8);
        assert!(reason.contains("nested 8 deep"), "{reason}");
    });
}
