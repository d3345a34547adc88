//! `test_process_pool.py`. Where CPython's pool breaks when a worker dies, ours loses one task and goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use concurrent_futures::{
    Executor, ProcessPoolExecutor, ShutdownReport, TaskError, TaskFuture, WorkerDeath, WorkerStdio,
};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Journal, Probe, Tally, Turnstile, Watchdog, eventually, in_own_process, note};
use crate::{is_shut_down, occupy, pass, refusal, square};

fn pool(workers: usize) -> ProcessPoolExecutor {
    ProcessPoolExecutor::builder().max_workers(workers).stderr(WorkerStdio::Null).build().unwrap()
}

fn pid((): ()) -> u32 {
    std::process::id()
}

fn pid_after(ticket: String) -> u32 {
    pass(ticket);
    std::process::id()
}

fn send(pid: u64, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

fn is_alive(pid: u64) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[track_caller]
fn death<T: std::fmt::Debug>(outcome: Result<T, TaskError>) -> WorkerDeath {
    match outcome {
        Err(TaskError::WorkerDied(death)) => death,
        other => panic!("{other:?}"),
    }
}

/// The pool takes tasks, on as many workers as it may have.
#[track_caller]
fn assert_full_size(pool: &ProcessPoolExecutor) {
    let mut turnstile = Turnstile::new();
    let workers = pool.max_workers();
    let futures: Vec<_> = (0..workers).map(|_| pool.submit(pid_after, turnstile.ticket())).collect();
    turnstile.wait_for_arrivals(workers);
    turnstile.open();
    let pids: BTreeSet<u32> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    assert_eq!(pids.len(), workers);
}

/// test_sysconf_permission_error: a limit that cannot be raised does not hinder.
#[test]
fn a_pool_works_where_a_system_limit_cannot_be_changed() {
    in_own_process(Duration::from_secs(30), || {
        setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
        let pool = pool(4);
        assert_eq!(pool.map(square, 0..20).map(Result::unwrap).sum::<u64>(), 2470);
    });
}

/// test_killed_child: ours loses the task that ran, and only that.
#[test]
fn a_killed_worker_costs_the_task_it_ran() {
    let _watchdog = Watchdog::start();
    let pool = pool(2);
    let mut turnstile = Turnstile::new();
    let running: Vec<_> = (0..2).map(|_| pool.submit(pid_after, turnstile.ticket())).collect();
    turnstile.wait_for_arrivals(2);
    let queued: Vec<_> = (0..10).map(|n| pool.submit(square, n)).collect();
    let victim = pool.workers()[0].id;
    send(victim, Signal::SIGKILL);
    for (n, future) in (0..).zip(queued) {
        assert_eq!(future.result().unwrap(), n * n);
    }
    turnstile.open();
    let (died, lived): (Vec<_>, Vec<_>) =
        running.into_iter().map(TaskFuture::result).partition(Result::is_err);
    assert_eq!((died.len(), lived.len()), (1, 1));
    let death = death(died.into_iter().next().unwrap());
    assert_eq!((u64::from(death.pid), death.signal, death.exit_code), (victim, Some(9), None));
    assert_full_size(&pool);
}

/// test_killed_child: an idle worker that is killed costs nothing.
#[test]
fn a_killed_idle_worker_costs_nothing() {
    let _watchdog = Watchdog::start();
    let pool = pool(1);
    for _ in 0..5 {
        let old = pool.submit(pid, ()).result().unwrap();
        send(old.into(), Signal::SIGKILL);
        eventually(|| !is_alive(old.into()));
        assert_ne!(pool.submit(pid, ()).result().unwrap(), old);
    }
}

/// test_broken_process_pool_traceback
#[test]
fn each_death_has_an_error_of_its_own() {
    let _watchdog = Watchdog::start();
    let pool = pool(3);
    let turnstile = Turnstile::new();
    let futures: Vec<_> = (0..3)
        .map(|n| pool.options().label(format!("victim-{n}")).submit(pid_after, turnstile.ticket()))
        .collect();
    turnstile.wait_for_arrivals(3);
    let workers = pool.workers();
    workers.iter().for_each(|worker| send(worker.id, Signal::SIGKILL));
    let mut pids = BTreeSet::new();
    for (n, future) in futures.into_iter().enumerate() {
        let death = death(future.result());
        assert_eq!(death.label, Some(format!("victim-{n}")));
        assert_eq!(death.signal, Some(9));
        pids.insert(u64::from(death.pid));
    }
    assert_eq!(pids, workers.iter().map(|worker| worker.id).collect());
    drop(turnstile);
    assert_full_size(&pool);
}

/// test_map_chunksize
#[test]
fn chunks_of_any_size_change_no_result() {
    let _watchdog = Watchdog::start();
    let pool = pool(2);
    let expected: Vec<u64> = (0..40).map(square).collect();
    for size in [6, 40, 50] {
        let mapped: Result<Vec<u64>, _> = pool.options().chunk_size(size).map(square, 0..40).collect();
        assert_eq!(mapped.unwrap(), expected, "chunks of {size}");
    }
    assert_eq!(refusal(|| pool.options().chunk_size(0)), "chunk_size must be at least 1, got 0");
}

fn raise(message: String) -> u64 {
    panic!("{message}") // some comment
}

/// The line of the panic in `raise`.
const RAISED_AT: u32 = line!() - 4;

/// test_traceback, test_interpreter_pool.test_submit_exception_in_func
#[test]
fn a_panic_tells_its_place_in_the_worker() {
    let _watchdog = Watchdog::start();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .name_prefix("press")
        .env("RUST_BACKTRACE", "1")
        .stderr(WorkerStdio::Null)
        .build()
        .unwrap();
    let error = pool.options().label("print").submit(raise, "out of ink".to_owned()).result().unwrap_err();
    let TaskError::Panicked(report) = &error else { panic!("{error:?}") };
    assert_eq!((report.message.as_str(), report.line), ("out of ink", RAISED_AT));
    assert!(report.file.ends_with("process_pool.rs"), "{}", report.file);
    assert_eq!((report.worker.as_str(), report.label.as_deref()), ("press-0", Some("print")));
    assert!(report.backtrace.as_ref().is_some_and(|text| text.contains("raise")), "{:?}", report.backtrace);
    let place = format!("process_pool.rs:{RAISED_AT}");
    assert!(error.to_string().contains("out of ink") && error.to_string().contains(&place), "{error}");
}

fn exit(code: i32) {
    std::process::exit(code)
}

/// test_traceback_when_child_process_terminates_abruptly
#[test]
fn the_error_tells_the_exit_code() {
    let _watchdog = Watchdog::start();
    let pool = pool(1);
    let death = death(pool.submit(exit, 99).result());
    assert_eq!((death.exit_code, death.signal), (Some(99), None));
    assert!(death.to_string().contains("exited with code 99"), "{death}");
}

/// test_ressources_gced_in_workers
#[test]
fn arguments_are_dropped_in_the_worker_with_their_task() {
    let _watchdog = Watchdog::start();
    let (pool, tally) = (pool(1), Tally::shared());
    let future = pool.submit(|probe: Probe| probe.number, tally.carrying(3));
    future.wait();
    assert_eq!(tally.counts(), (2, 2), "one here, one there");
    assert_eq!(future.result().unwrap(), 3);
    // Also where the task never comes to own it.
    pool.submit(|_: (Probe, Refuses)| 0, (tally.probe(), Refuses)).result().unwrap_err();
    tally.assert_balanced();
}

/// Cannot be decoded.
struct Refuses;

impl serde::Serialize for Refuses {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> serde::Deserialize<'de> for Refuses {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("not here"))
    }
}

/// test_saturation
#[test]
fn blocked_tasks_run_on_as_many_processes_as_allowed() {
    let _watchdog = Watchdog::start();
    let (pool, mut turnstile) = (pool(4), Turnstile::new());
    let futures: Vec<_> = (0..60).map(|_| pool.submit(pid_after, turnstile.ticket())).collect();
    turnstile.wait_for_arrivals(4);
    let workers: BTreeSet<u64> = pool.workers().iter().map(|worker| worker.id).collect();
    assert_eq!(workers.len(), 4);
    turnstile.open();
    let pids: BTreeSet<u64> = futures.into_iter().map(|future| future.result().unwrap().into()).collect();
    assert_eq!(pids, workers);
}

/// test_idle_process_reuse_one
#[test]
fn an_idle_process_is_used_again() {
    let _watchdog = Watchdog::start();
    let pool = pool(4);
    let pids: BTreeSet<u32> = (0..3).map(|_| pool.submit(pid, ()).result().unwrap()).collect();
    assert_eq!(pids.len(), 1);
}

/// test_idle_process_reuse_multiple
#[test]
fn interleaved_tasks_use_no_more_processes_than_needed() {
    let _watchdog = Watchdog::start();
    let pool = pool(4);
    let [first, second] = [pool.submit(square, 12), pool.submit(square, 33)];
    first.result().unwrap();
    drop(pool.submit(square, 5));
    second.result().unwrap();
    pool.submit(square, 700).result().unwrap();
    assert!(pool.workers().len() <= 3, "{:?}", pool.workers());
}

fn mortal(workers: usize, tasks: u64) -> ProcessPoolExecutor {
    ProcessPoolExecutor::builder()
        .max_workers(workers)
        .max_tasks_per_worker(tasks)
        .stderr(WorkerStdio::Null)
        .build()
        .unwrap()
}

/// test_max_tasks_per_child
#[test]
fn a_worker_is_replaced_after_its_last_task() {
    let _watchdog = Watchdog::start();
    let pool = mortal(1, 3);
    let pids: Vec<u32> = (0..4).map(|_| pool.submit(pid, ()).result().unwrap()).collect();
    assert!(pids[0] == pids[1] && pids[1] == pids[2] && pids[2] != pids[3], "{pids:?}");
    eventually(|| !is_alive(pids[0].into()));
    let error = ProcessPoolExecutor::builder().max_tasks_per_worker(0).build().unwrap_err();
    assert_eq!(error.to_string(), "max_tasks_per_worker must be at least 1, got 0");
}

/// test_max_tasks_per_child_defaults_to_spawn_context: replacements are forked by a process with one thread, not by this.
#[test]
fn replacements_are_not_forked_by_a_process_with_threads() {
    let _watchdog = Watchdog::start();
    let pool = mortal(1, 1);
    let parents: BTreeSet<u32> =
        (0..3).map(|_| pool.submit(|()| std::os::unix::process::parent_id(), ()).result().unwrap()).collect();
    assert_eq!(parents.len(), 1, "one fork server for all");
    assert!(!parents.contains(&std::process::id()));
}

/// test_max_tasks_per_child_pending_tasks_gh115634
#[test]
fn more_tasks_than_a_generation_of_workers_can_run_all_end() {
    let _watchdog = Watchdog::start();
    for (workers, tasks) in [(1, 1), (2, 2), (4, 1)] {
        let pool = mortal(workers, tasks);
        let futures: Vec<_> = (0..20).map(|_| pool.submit(pid, ())).collect();
        let mut runs = std::collections::BTreeMap::<u32, u64>::new();
        for future in futures {
            *runs.entry(future.result().unwrap()).or_default() += 1;
        }
        assert!(runs.values().all(|&count| count <= tasks), "{runs:?}");
    }
}

/// test_shutdown_no_wait_max_tasks_gh119592
#[test]
fn workers_are_replaced_after_a_shutdown_nobody_waits_for() {
    let _watchdog = Watchdog::start();
    let pool = mortal(1, 1);
    let futures: Vec<_> = (0..5).map(|n| pool.submit(square, n)).collect();
    pool.shutdown_background();
    for (n, future) in (0..).zip(futures) {
        assert_eq!(future.result().unwrap(), n * n);
    }
}

/// test_gc_during_max_tasks_worker_exit_gh152967: ours finishes them.
#[test]
fn dropping_the_pool_while_its_last_worker_retires_finishes_every_future() {
    let _watchdog = Watchdog::start();
    for _ in 0..5 {
        let pool = mortal(1, 1);
        let futures: Vec<_> = (0..4).map(|n| pool.submit(square, n)).collect();
        futures[0].wait();
        drop(pool);
        for (n, future) in (0..).zip(futures) {
            assert_eq!(future.result().unwrap(), n * n);
        }
    }
}

/// test_force_shutdown_during_max_tasks_worker_exit
#[test]
fn a_forced_shutdown_replaces_no_retiring_worker() {
    let _watchdog = Watchdog::start();
    for stop in [ProcessPoolExecutor::terminate_workers, ProcessPoolExecutor::kill_workers] {
        let (pool, journal) = (mortal(1, 1), Journal::new());
        let futures: Vec<_> =
            (0..5).map(|_| pool.submit(|ticket: String| note(&ticket, "ran"), journal.ticket())).collect();
        futures[0].wait();
        assert!(stop(&pool).is_complete());
        assert!(futures.iter().all(|future| future.is_done()));
        assert!(pool.workers().is_empty());
        let ended = futures.into_iter().map(TaskFuture::result);
        let ran = ended
            .map(|outcome| match outcome {
                Ok(()) => true,
                Err(TaskError::Cancelled | TaskError::WorkerDied(_)) => false,
                Err(error) => panic!("{error:?}"),
            })
            .filter(|&ran| ran)
            .count();
        assert!(ran >= 1 && journal.lines().len() >= ran);
    }
}

/// test_failed_worker_replacement_breaks_pool
#[test]
fn a_pool_whose_workers_cannot_be_replaced_is_broken() {
    fn once() -> Result<(), &'static str> {
        let marker = std::env::var("MARKER").map_err(|_| "no marker")?;
        std::fs::create_dir(marker).map_err(|_| "could not be started again")
    }
    let _watchdog = Watchdog::start();
    let dir = crate::support::TempDir::new();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .max_tasks_per_worker(1)
        .env("MARKER", dir.path("marker"))
        .initializer(once)
        .build()
        .unwrap();
    let futures: Vec<_> = (0..4).map(|n| pool.submit(square, n)).collect();
    let mut outcomes = futures.into_iter().map(TaskFuture::result);
    assert_eq!(outcomes.next().unwrap().unwrap(), 0);
    for outcome in outcomes.chain([pool.submit(square, 1).result()]) {
        let Err(TaskError::Broken(reason)) = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("could not be started again"), "{reason}");
    }
}

/// test_max_tasks_early_shutdown
#[test]
fn a_shutdown_with_workers_of_one_task_gives_every_result() {
    let _watchdog = Watchdog::start();
    let pool = mortal(3, 1);
    let futures: Vec<_> = (0..6).map(|n| pool.submit(square, n)).collect();
    assert!(pool.shutdown().is_complete());
    for (n, future) in (0..).zip(futures) {
        assert_eq!(future.result().unwrap(), n * n);
    }
}

/// test_python_finalization_error: what the system refuses is an error, not a hang.
#[test]
fn a_pool_that_cannot_start_its_thread_is_not_built() {
    in_own_process(Duration::from_secs(30), || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = text.split(' ').next().unwrap().parse().unwrap();
        // Enough for the fork server's start, too little for the stack of a thread.
        let (_, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_AS).unwrap();
        setrlimit(Resource::RLIMIT_AS, pages * 4096 + 512 * 1024, hard).unwrap();
        let built = ProcessPoolExecutor::new(1);
        setrlimit(Resource::RLIMIT_AS, hard, hard).unwrap();
        assert!(built.is_err(), "{built:?}");
        assert_eq!(pool(1).submit(square, 3).result().unwrap(), 9, "the next one is");
    });
}

/// The two forced shutdowns, with their signals.
type Stop = fn(&ProcessPoolExecutor) -> ShutdownReport;
const STOPS: [(Stop, i32); 2] =
    [(ProcessPoolExecutor::terminate_workers, 15), (ProcessPoolExecutor::kill_workers, 9)];

fn block_between((ticket, journal): (String, String)) {
    note(&journal, "began");
    pass(ticket);
    note(&journal, "ended");
}

/// test_terminate_workers, test_kill_workers, test_force_shutdown_workers
#[test]
fn a_forced_shutdown_ends_what_runs_by_its_signal() {
    let _watchdog = Watchdog::start();
    for (stop, signal) in STOPS {
        let (pool, mut turnstile, journal) = (pool(1), Turnstile::new(), Journal::new());
        let running = pool.submit(block_between, (turnstile.ticket(), journal.ticket()));
        let queued = pool.submit(block_between, (turnstile.ticket(), journal.ticket()));
        turnstile.wait_for_arrivals(1);
        assert!(stop(&pool).is_complete());
        turnstile.open();
        assert_eq!(death(running.result()).signal, Some(signal));
        assert!(matches!(queued.result(), Err(TaskError::Cancelled)));
        assert_eq!(journal.lines(), ["began"]);
    }
}

/// test_force_shutdown_workers_dead_workers
#[test]
fn a_forced_shutdown_works_when_the_workers_are_dead() {
    let _watchdog = Watchdog::start();
    for (stop, _) in STOPS {
        let (pool, turnstile) = (pool(1), Turnstile::new());
        let running = pool.submit(pid_after, turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        send(pool.workers()[0].id, Signal::SIGKILL);
        assert_eq!(death(running.result()).signal, Some(9));
        assert!(stop(&pool).is_complete());
    }
}

/// test_force_shutdown_workers_not_started_yet
#[test]
fn a_forced_shutdown_works_when_nothing_was_started() {
    let _watchdog = Watchdog::start();
    for (stop, _) in STOPS {
        let pool = pool(1);
        let report = stop(&pool);
        assert_eq!((report.finished, report.cancelled, report.unfinished), (0, 0, 0));
    }
}

/// test_force_shutdown_workers_stops_pool
#[test]
fn after_a_forced_shutdown_nothing_is_accepted_and_nobody_is_left() {
    let _watchdog = Watchdog::start();
    for (stop, _) in STOPS {
        let (pool, turnstile) = (pool(2), Turnstile::new());
        occupy(&pool, 2, &turnstile);
        let workers = pool.workers();
        assert!(stop(&pool).is_complete());
        assert!(is_shut_down(&pool));
        assert!(!workers.iter().any(|worker| is_alive(worker.id)));
    }
}

/// test_process_pool.test_killed_child and test_deadlock.test_crash_races: a worker is killed again and again.
#[test]
fn a_pool_outlives_any_number_of_deaths() {
    let _watchdog = Watchdog::start();
    let pool = pool(2);
    let futures: Vec<_> = (0..40)
        .map(|n| pool.submit(|n: u64| if n.is_multiple_of(2) { std::process::abort() } else { square(n) }, n))
        .collect();
    for (n, future) in (0..).zip(futures) {
        match (n % 2, future.result()) {
            (0, outcome) => assert_eq!(death(outcome).signal, Some(6)),
            (_, outcome) => assert_eq!(outcome.unwrap(), n * n),
        }
    }
    assert_full_size(&pool);
}

/// test_interpreter_pool: test_submit_func_globals, test_init_with___main___global
#[test]
fn a_worker_has_globals_of_its_own() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static GLOBAL: AtomicU32 = AtomicU32::new(0);
    let _watchdog = Watchdog::start();
    GLOBAL.store(5, Ordering::Relaxed);
    let pool = pool(1);
    let add = || pool.submit(|()| GLOBAL.fetch_add(1, Ordering::Relaxed), ()).result().unwrap();
    assert_eq!([add(), add()], [0, 1], "as they are at the start of the program");
    assert_eq!(GLOBAL.load(Ordering::Relaxed), 5);
}
