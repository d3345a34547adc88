//! Tasks that are tried again after their worker died.

use concurrent_futures::{Executor, ProcessPoolExecutor};

use crate::scene::{Runs, assert_full, death, isolated, note};

/// Dies at its first `deaths` attempts; then tells which attempt it was: `(runs, task, deaths)`.
fn mortal((runs, task, deaths): (String, u64, usize)) -> usize {
    note(&runs, task);
    let attempts =
        std::fs::read(&runs).unwrap().chunks_exact(16).filter(|run| run[..8] == task.to_ne_bytes()).count();
    if attempts <= deaths {
        std::process::abort();
    }
    attempts
}

#[test]
fn a_task_is_tried_as_often_as_asked_and_no_more() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let futures: Vec<_> = (0..16)
            .map(|task: u64| {
                let (retries, deaths) =
                    (u32::try_from(task / 4).unwrap(), usize::try_from(task % 4).unwrap());
                let future = pool.options().retries(retries).submit(mortal, (runs.ticket(), task, deaths));
                (task, retries as usize, deaths, future)
            })
            .collect();
        for (task, retries, deaths, future) in futures {
            let outcome = future.result();
            if deaths <= retries {
                assert_eq!(outcome.unwrap(), deaths + 1);
                assert_eq!(runs.of(task).len(), deaths + 1);
            } else {
                assert_eq!(death(outcome).signal, Some(6));
                assert_eq!(runs.of(task).len(), retries + 1);
            }
            let mut pids = runs.of(task);
            let attempts = pids.len();
            pids.sort_unstable();
            pids.dedup();
            assert_eq!(pids.len(), attempts, "each in a worker of its own");
        }
        assert_full(&pool, 2);
    });
}

/// Panics, errors and time-outs are outcomes, not deaths.
#[test]
fn only_deaths_are_tried_again() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        let stubborn = pool.options().retries(5);
        let panicked = stubborn
            .submit(
                |runs: String| -> u8 {
                    note(&runs, 1);
                    panic!("once")
                },
                runs.ticket(),
            )
            .result();
        assert!(panicked.unwrap_err().is_panic());
        let late = stubborn.timeout(std::time::Duration::from_millis(50)).submit(
            |runs: String| {
                note(&runs, 2);
                crate::scene::forever::<()>();
            },
            runs.ticket(),
        );
        crate::scene::assert_timed_out(late.result());
        runs.assert_once([1, 2]);
        assert_full(&pool, 1);
    });
}

#[test]
fn an_item_of_a_chunk_is_tried_again_alone() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let items = (0..20).map(|task| (runs.ticket(), task, usize::from(task == 7)));
        let results = pool.options().retries(1).chunk_size(10).map(mortal, items);
        for (task, result) in (0..).zip(results) {
            assert_eq!(result.unwrap(), if task == 7 { 2 } else { 1 });
        }
        assert_eq!(runs.of(7).len(), 2);
        runs.assert_once((0..20).filter(|task| *task != 7));
        assert_full(&pool, 2);
    });
}

/// The doc of `kill_workers`: what was running ends in `WorkerDied`. There is nobody left to try again.
#[test]
fn a_task_with_retries_ends_with_the_pool() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let turnstile = crate::support::Turnstile::new();
        let task = pool
            .options()
            .retries(1000)
            .submit(|ticket: String| crate::support::pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        pool.kill_workers();
        assert_eq!(death(task.result()).signal, Some(9));
    });
}

/// Each item of a chunk has its own attempts.
#[test]
fn every_item_of_a_chunk_has_its_own_attempts() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let items = (0..10).map(|task| (runs.ticket(), task, 1));
        let results: Vec<_> = pool.options().retries(1).chunk_size(5).map(mortal, items).collect();
        assert!(results.iter().all(|result| matches!(result, Ok(2))), "{results:?}");
        assert!((0..10).all(|task| runs.of(task).len() == 2));
        assert_full(&pool, 2);
    });
}

/// The pauses grow: 300 ms hold no more attempts than those after 10, 20, 40, 80 and 160 ms at the least.
#[test]
fn retries_come_later_and_later_and_end_at_the_deadline() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(300);
        let stubborn = pool.options().retries(1_000_000).deadline(deadline);
        crate::scene::assert_timed_out(stubborn.submit(mortal, (runs.ticket(), 1, usize::MAX)).result());
        assert!(std::time::Instant::now() >= deadline);
        let attempts = runs.of(1).len();
        assert!(attempts <= 6, "{attempts}");
        assert_full(&pool, 2);
        assert_eq!(runs.of(1).len(), attempts, "tried again after its deadline");
    });
}

#[test]
fn retries_end_with_shutdown_now_and_with_abort() {
    isolated(|| {
        for aborts in [false, true] {
            let pool = ProcessPoolExecutor::new(1).unwrap();
            let runs = Runs::new();
            let task = pool.options().retries(1_000_000).submit(mortal, (runs.ticket(), 1, usize::MAX));
            crate::support::eventually(|| runs.of(1).len() >= 3);
            if aborts {
                assert!(task.abort());
                crate::scene::assert_cancelled(task.result());
            } else {
                assert!(pool.shutdown_now().is_complete());
                let death = death(task.result());
                assert!(death.attempt >= 3, "{death}");
            }
            let attempts = runs.of(1).len();
            drop(pool);
            assert_eq!(runs.of(1).len(), attempts);
        }
    });
}

/// `shutdown` finishes everything that was accepted, retries included.
#[test]
fn a_shutdown_waits_for_the_retries() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        let task = pool.options().retries(3).submit(mortal, (runs.ticket(), 1, 3));
        assert!(pool.shutdown().is_complete());
        assert_eq!(task.result().unwrap(), 4);
    });
}
