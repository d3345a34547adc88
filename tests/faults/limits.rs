//! Limits of time and of what a worker may use.

use std::time::{Duration, Instant};

use concurrent_futures::{Executor, Limit, ProcessPoolExecutor, TaskError, ThreadPoolExecutor, current_task};
use nix::libc;

use crate::procfs::state_of;
use crate::scene::{Runs, assert_full, assert_timed_out, forever, isolated, leave_running, note, spin};
use crate::support::{Turnstile, arrive, eventually, pass};

const SHORT: Duration = Duration::from_millis(100);

/// The neighbour runs before, during and after; the child goes with its worker.
#[test]
fn a_task_that_never_ends_is_ended_with_its_own_child() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let mut turnstile = Turnstile::new();
        let neighbour = pool.submit(
            |ticket: String| {
                pass(&ticket);
                std::process::id()
            },
            turnstile.ticket(),
        );
        turnstile.wait_for_arrivals(1);
        let start = Instant::now();
        let endless = pool.options().timeout(SHORT).submit(
            |runs: String| {
                // SAFETY: ignores a signal in this process; no handler of anybody is replaced by another.
                unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
                let child = leave_running("sleep", &["1000"]);
                note(&runs, u64::from(child));
                spin(Duration::from_secs(600));
            },
            runs.ticket(),
        );
        assert_timed_out(endless.result());
        assert!(start.elapsed() >= SHORT);
        let (child, worker) = runs.all()[0];
        eventually(|| state_of(u32::try_from(child).unwrap()).is_none());
        eventually(|| state_of(worker).is_none());
        turnstile.open();
        assert_ne!(neighbour.result().unwrap(), worker);
        assert_full(&pool, 2);
    });
}

/// A stopped process takes no signal but SIGKILL.
#[test]
fn a_task_that_is_stopped_is_ended() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let stopped = pool.options().timeout(SHORT).submit(
            |()| {
                // SAFETY: stops this process.
                unsafe { libc::raise(libc::SIGSTOP) };
            },
            (),
        );
        assert_timed_out(stopped.result());
        assert_full(&pool, 1);
    });
}

/// The time runs from the start of the task, not from its submission.
#[test]
fn time_in_the_queue_does_not_count_for_a_timeout() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let first = pool.submit(|()| std::thread::sleep(Duration::from_millis(400)), ());
        let patient = pool.options().timeout(Duration::from_millis(300)).submit(|n: u32| n, 5);
        assert_eq!(patient.result().unwrap(), 5);
        first.result().unwrap();
    });
}

/// Nor does the time a worker takes to start.
#[test]
fn the_start_of_a_worker_does_not_count_for_a_timeout() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .initializer(|| std::thread::sleep(Duration::from_millis(400)))
            .build()
            .unwrap();
        let patient = pool.options().timeout(Duration::from_millis(300)).submit(|n: u32| n, 5);
        assert_eq!(patient.result().unwrap(), 5);
    });
}

/// Behind it in the same worker, and run once.
#[test]
fn what_waits_behind_a_task_that_times_out_runs_once() {
    isolated(|| {
        fn quick((runs, task): (String, u64)) -> u64 {
            note(&runs, task);
            if task == 500 {
                forever::<()>();
            }
            task
        }
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        let mut futures: Vec<_> = (0..500).map(|task| pool.submit(quick, (runs.ticket(), task))).collect();
        futures.push(pool.options().timeout(SHORT).submit(quick, (runs.ticket(), 500)));
        futures.extend((501..600).map(|task| pool.submit(quick, (runs.ticket(), task))));
        for (task, future) in (0..).zip(futures) {
            if task == 500 {
                assert_timed_out(future.result());
            } else {
                assert_eq!(future.result().unwrap(), task);
            }
        }
        runs.assert_once(0..600);
        assert_full(&pool, 1);
    });
}

#[test]
fn a_timeout_in_a_map_costs_its_own_item() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        for chunk_size in [1, 5] {
            let runs = Runs::new();
            let results = pool.options().timeout(SHORT).chunk_size(chunk_size).map(
                |(runs, task): (String, u64)| {
                    note(&runs, task);
                    if task == 7 {
                        forever::<()>();
                    }
                    task
                },
                (0..20).map(|task| (runs.ticket(), task)),
            );
            for (task, result) in (0..).zip(results) {
                if task == 7 {
                    assert_timed_out(result);
                } else {
                    assert_eq!(result.unwrap(), task);
                }
            }
            runs.assert_once(0..20);
        }
        assert_full(&pool, 2);
    });
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        // A worker that is there already: the first task is most likely running at the deadline.
        assert_full(&pool, 1);
        let runs = Runs::new();
        let turnstile = Turnstile::new();
        let deadline = Instant::now() + SHORT;
        let running =
            pool.options().deadline(deadline).submit(|ticket: String| pass(&ticket), turnstile.ticket());
        let waiting = pool.options().deadline(deadline).submit(|runs: String| note(&runs, 1), runs.ticket());
        let later = pool
            .options()
            .deadline(deadline + Duration::from_secs(3600))
            .submit(|runs: String| note(&runs, 2), runs.ticket());
        let passed =
            pool.options().deadline(Instant::now()).submit(|runs: String| note(&runs, 3), runs.ticket());
        assert_timed_out(running.result());
        assert_timed_out(waiting.result());
        assert_timed_out(passed.result());
        assert!(Instant::now() >= deadline);
        later.result().unwrap();
        assert_eq!(runs.counts(), [(2, 1)].into());
        assert_full(&pool, 1);
    });
}

#[test]
fn a_time_out_on_a_thread_sets_the_token_and_the_pool_goes_on() {
    isolated(|| {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let endless: fn(()) = |()| {
            while !current_task().unwrap().is_cancelled() {
                std::thread::yield_now();
            }
        };
        assert_timed_out(pool.options().timeout(SHORT).submit(endless, ()).result());
        let deadline = Instant::now() + SHORT;
        assert_timed_out(pool.options().deadline(deadline).submit(endless, ()).result());
        assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1);
    });
}

#[test]
fn a_time_out_of_nothing_and_of_eternity() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        assert_timed_out(pool.options().timeout(Duration::ZERO).submit(|()| forever::<()>(), ()).result());
        assert_eq!(pool.options().timeout(Duration::MAX).submit(|n: u32| n, 1).result().unwrap(), 1);
        assert_full(&pool, 1);
    });
}

#[test]
fn memory_beyond_the_limit_ends_the_worker_and_costs_one_task() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(2).memory_limit(512 << 20).build().unwrap();
        let greedy = pool.submit(
            |()| {
                let hoard: Vec<_> = (0..100).map(|_| vec![0_u8; 64 << 20]).collect();
                std::hint::black_box(hoard).len()
            },
            (),
        );
        let modest: Vec<_> =
            (0..10).map(|n| pool.submit(|n: u32| vec![0_u8; 1 << 20].len() + n as usize, n)).collect();
        match greedy.result() {
            Err(TaskError::LimitExceeded(limit)) => assert_eq!(limit, Limit::Memory(512 << 20)),
            outcome => panic!("{outcome:?}"),
        }
        for (n, future) in modest.into_iter().enumerate() {
            assert_eq!(future.result().unwrap(), (1 << 20) + n);
        }
        // A task that asks politely is told, and lives.
        let told = pool.submit(|()| Vec::<u8>::new().try_reserve(1 << 30).is_err(), ());
        assert!(told.result().unwrap());
        assert_full(&pool, 2);
    });
}

/// Too little to work with: every task has an end, and workers are not forked for ever.
#[test]
fn a_memory_limit_nothing_can_work_with_is_no_hang() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(2).memory_limit(1 << 20).build().unwrap();
        let futures: Vec<_> = (0..20).map(|n| pool.submit(|n: Vec<u8>| n, vec![n; 1 << 20])).collect();
        for future in futures {
            match future.result() {
                Err(TaskError::Broken(_) | TaskError::WorkerDied(_) | TaskError::LimitExceeded(_)) => {}
                other => panic!("{:?}", other.map(|bytes| bytes.len())),
            }
        }
    });
}

#[test]
fn processor_time_beyond_the_limit_is_told_as_that() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder()
            .max_workers(2)
            .cpu_time_limit(Duration::from_secs(1))
            .build()
            .unwrap();
        let default = pool.submit(|()| spin(Duration::from_secs(600)), ());
        // One that ignores the first warning is killed a second later, for the same reason.
        let stubborn = pool.submit(
            |()| {
                // SAFETY: ignores a signal in this process.
                unsafe { libc::signal(libc::SIGXCPU, libc::SIG_IGN) };
                spin(Duration::from_secs(600));
            },
            (),
        );
        let outcome = default.result();
        assert!(matches!(outcome, Err(TaskError::LimitExceeded(Limit::CpuTime(_)))), "{outcome:?}");
        let outcome = stubborn.result();
        assert!(matches!(outcome, Err(TaskError::LimitExceeded(Limit::CpuTime(_)))), "{outcome:?}");
        assert_full(&pool, 2);
    });
}

#[test]
fn an_open_files_limit_is_the_tasks_own_error() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(1).open_files_limit(32).build().unwrap();
        let opened = pool.submit(
            |()| {
                let mut files = Vec::new();
                while let Ok(file) = std::fs::File::open("/dev/null") {
                    files.push(file);
                }
                files.len()
            },
            (),
        );
        let opened = opened.result().unwrap();
        assert!((16..32).contains(&opened), "{opened}");
        assert_full(&pool, 1);
    });
}

#[test]
fn aborting_ends_a_running_task_and_its_worker_alone() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let mut turnstile = Turnstile::new();
        let neighbour = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        let running = pool.submit(
            |ticket: String| {
                arrive(&ticket);
                forever::<()>();
            },
            turnstile.ticket(),
        );
        turnstile.wait_for_arrivals(2);
        let waiting = pool.submit(|n: u32| n, 1);
        assert!(running.abort());
        crate::scene::assert_cancelled(running.result());
        assert_eq!(waiting.result().unwrap(), 1);
        turnstile.open();
        neighbour.result().unwrap();
        assert_full(&pool, 2);
    });
}
