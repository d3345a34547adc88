//! Kills from outside at random instants. `CONCURRENT_FUTURES_TEST_KILLS` asks for another number of them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use concurrent_futures::{Executor, ProcessPoolExecutor, TaskError};
use nix::sys::signal::Signal;

use crate::procfs::{fork_servers, workers};
use crate::scene::{Runs, assert_full, isolated, kill, note, spin};
use crate::support::Random;
use crate::tally::{self, Tally};

fn kills() -> usize {
    std::env::var("CONCURRENT_FUTURES_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

/// Notes itself, computes for up to 150 µs, and answers something to be checked.
fn work((ticket, task): (String, u64)) -> u64 {
    note(&ticket, task);
    spin(Duration::from_micros(task * 7919 % 150));
    answer(task)
}

fn answer(task: u64) -> u64 {
    task * 3 + 1
}

/// Kills `victims()`, one at a time, while `act` runs; `act` gets what tells whether it may stop.
fn storm<R>(
    kills: usize,
    pause: u64,
    random: &mut Random,
    victims: fn() -> Vec<u32>,
    act: impl FnOnce(&dyn Fn() -> bool) -> R,
) -> (R, BTreeSet<u32>) {
    let (is_over, is_done) = (AtomicBool::new(false), AtomicBool::new(false));
    let killed = Mutex::new(BTreeSet::new());
    let mut random = random.fork();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut left = kills;
            while left > 0 && !is_done.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_micros(random.below(pause)));
                let victims = victims();
                if victims.is_empty() {
                    continue;
                }
                let victim = victims[usize::try_from(random.below(victims.len() as u64)).unwrap()];
                killed.lock().unwrap().insert(victim);
                kill(victim, Signal::SIGKILL);
                left -= 1;
            }
            is_over.store(true, Ordering::Release);
        });
        let _done = Done(&is_done); // also when `act` fails
        act(&|| is_over.load(Ordering::Acquire))
    });
    (result, killed.into_inner().unwrap())
}

/// Sets its flag when it goes.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What became of the tasks, by number.
struct Outcomes(Vec<Result<u64, TaskError>>);

impl Outcomes {
    /// Right or a death by one of these kills; what was right has run once, what died at most once.
    #[track_caller]
    fn check(self, runs: &Runs, killed: &BTreeSet<u32>) {
        let total = self.0.len();
        let counts = runs.counts();
        let mut deaths = 0;
        for (task, outcome) in (0..).zip(self.0) {
            let count = counts.get(&task).copied().unwrap_or(0);
            match outcome {
                Ok(value) => assert_eq!((value, count), (answer(task), 1), "task {task}"),
                Err(TaskError::WorkerDied(death)) => {
                    deaths += 1;
                    assert_eq!(death.signal, Some(9), "{death}");
                    assert!(killed.contains(&death.pid), "{death}");
                    assert!(count <= 1, "task {task} ran {count} times");
                }
                Err(other) => panic!("task {task}: {other}"),
            }
        }
        println!("{total} tasks, {} killed, {deaths} died", killed.len());
        assert!(deaths <= killed.len());
        assert!(total > kills());
        runs.assert_none_twice();
    }
}

fn submit_until(pool: &impl Executor, runs: &Runs, is_over: &dyn Fn() -> bool) -> Outcomes {
    let ticket = runs.ticket();
    let mut window = VecDeque::new();
    let mut outcomes = Vec::new();
    let mut task = 0;
    while !is_over() || outcomes.len() <= kills() {
        while window.len() < 64 {
            window.push_back(pool.submit(work, (ticket.clone(), task)));
            task += 1;
        }
        outcomes.push(window.pop_front().unwrap().result());
        if matches!(outcomes.last(), Some(Err(TaskError::Broken(_)))) {
            break; // a failure, as the check will say
        }
    }
    outcomes.extend(window.into_iter().map(|future| future.result()));
    Outcomes(outcomes)
}

#[test]
fn kills_at_random_lose_no_submitted_task_and_run_none_twice() {
    isolated(|| {
        let mut random = Random::seeded("kills");
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let (outcomes, killed) =
            storm(kills(), 3000, &mut random, workers, |is_over| submit_until(&pool, &runs, is_over));
        outcomes.check(&runs, &killed);
        assert_full(&pool, 2);
    });
}

#[test]
fn kills_at_random_lose_no_mapped_item_and_run_none_twice() {
    isolated(|| {
        let mut random = Random::seeded("kills");
        for chunk_size in [Some(16), None] {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            let runs = Runs::new();
            let ticket = runs.ticket();
            let (outcomes, killed) = storm(kills(), 3000, &mut random, workers, |is_over| {
                let items = (0..).map(|task| (ticket.clone(), task));
                let options = pool.options();
                let options = match chunk_size {
                    Some(size) => options.chunk_size(size),
                    None => options,
                };
                let mut mapped = options.map(work, items);
                let mut outcomes = Vec::new();
                while !is_over() || outcomes.len() <= kills() {
                    outcomes.push(mapped.next().unwrap());
                }
                Outcomes(outcomes)
            });
            outcomes.check(&runs, &killed);
            assert_full(&pool, 2);
            // What the map had ahead was cancelled, or ran.
            pool.shutdown();
            runs.assert_none_twice();
        }
    });
}

/// Items so quick that many are run between two looks of the worker at anything else: millions of them.
#[test]
fn kills_at_random_lose_no_quick_item_and_run_none_twice() {
    isolated(|| {
        let mut random = Random::seeded("kills");
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let tally = Tally::new();
        let (mut total, mut died) = (0, Vec::new());
        let ((), killed) = storm(kills(), 3000, &mut random, workers, |is_over| {
            let count = |ticket: &String, task| {
                tally::count(ticket, task);
                answer(task)
            };
            let mapped = pool.map_with(tally.ticket(), count, 0..Tally::TASKS);
            for (task, outcome) in (0..).zip(mapped) {
                match outcome {
                    Ok(value) => assert_eq!((value, tally.of(task)), (answer(task), 1), "task {task}"),
                    Err(TaskError::WorkerDied(death)) => died.push((task, death)),
                    Err(other) => panic!("task {task}: {other}"),
                }
                total = task + 1;
                if total.is_multiple_of(1000) && is_over() {
                    break;
                }
            }
        });
        println!("{total} quick tasks, {} killed, {} died", killed.len(), died.len());
        for (task, death) in &died {
            assert!(killed.contains(&death.pid), "task {task}: {death}");
        }
        assert!(died.len() <= killed.len());
        assert_full(&pool, 2);
        pool.shutdown();
        // What the map had ahead was cancelled, or ran.
        assert!((0..Tally::TASKS).all(|task| tally.of(task) <= 1));
    });
}

#[test]
fn kills_at_random_with_workers_that_retire_lose_nothing() {
    isolated(|| {
        let mut random = Random::seeded("kills");
        let pool = ProcessPoolExecutor::builder().max_workers(3).max_tasks_per_worker(7).build().unwrap();
        let runs = Runs::new();
        let (outcomes, killed) =
            storm(kills(), 3000, &mut random, workers, |is_over| submit_until(&pool, &runs, is_over));
        outcomes.check(&runs, &killed);
        assert_full(&pool, 3);
    });
}

/// Every task gets there in the end, and no kill costs more than one run.
#[test]
fn kills_at_random_are_made_good_by_retries() {
    isolated(|| {
        let mut random = Random::seeded("kills");
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let (outcomes, killed) = storm(kills(), 3000, &mut random, workers, |is_over| {
            submit_until(&pool.options().retries(1000), &runs, is_over)
        });
        let total = outcomes.0.len();
        for (task, outcome) in (0..).zip(outcomes.0) {
            assert_eq!(outcome.unwrap(), answer(task));
        }
        let ran = runs.all().len();
        assert!((total..=total + killed.len()).contains(&ran), "{total} tasks, {ran} runs");
        assert_full(&pool, 2);
    });
}

#[test]
fn killing_the_fork_server_at_random_loses_nothing_and_runs_nothing_twice() {
    isolated(|| {
        let mut random = Random::seeded("kills");
        let pool = ProcessPoolExecutor::new(4).unwrap();
        let runs = Runs::new();
        let (outcomes, killed) =
            storm(60, 20_000, &mut random, fork_servers, |is_over| submit_until(&pool, &runs, is_over));
        let counts = runs.counts();
        let mut deaths = 0;
        for (task, outcome) in (0..).zip(outcomes.0) {
            let count = counts.get(&task).copied().unwrap_or(0);
            match outcome {
                Ok(value) => assert_eq!((value, count), (answer(task), 1), "task {task}"),
                Err(TaskError::WorkerDied(death)) => {
                    deaths += 1;
                    assert!(death.pid > 0, "{death:?}");
                    assert!(count <= 1, "task {task} ran {count} times");
                }
                Err(other) => panic!("task {task}: {other}"),
            }
        }
        assert!(deaths <= 4 * killed.len(), "{deaths} deaths");
        runs.assert_none_twice();
        assert_full(&pool, 4);
    });
}

/// The moment when the fork server has forked a worker and not yet said so.
#[test]
fn killing_the_fork_server_while_it_forks_runs_nothing_twice() {
    isolated(|| {
        let mut random = Random::seeded("kills");
        for _ in 0..40 {
            let pool = ProcessPoolExecutor::new(8).unwrap();
            let server = crate::procfs::fork_server();
            let runs = Runs::new();
            let futures: Vec<_> = (0..24).map(|task| pool.submit(work, (runs.ticket(), task))).collect();
            spin(Duration::from_micros(random.below(6000)));
            kill(server, Signal::SIGKILL);
            let mut outcomes = Vec::new();
            for future in futures {
                outcomes.push(future.result());
            }
            let counts = runs.counts();
            for (task, outcome) in (0..).zip(outcomes) {
                let count = counts.get(&task).copied().unwrap_or(0);
                match outcome {
                    Ok(value) => assert_eq!((value, count), (answer(task), 1), "task {task}"),
                    Err(TaskError::WorkerDied(_)) => assert!(count <= 1, "task {task} ran {count} times"),
                    Err(other) => panic!("task {task}: {other}"),
                }
            }
            pool.shutdown();
            runs.assert_none_twice();
        }
    });
}

#[test]
fn aborts_at_random_cost_only_their_own_tasks() {
    isolated(|| {
        let mut random = Random::seeded("aborts");
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        for round in 0..60_u64 {
            let tasks = round * 20..(round + 1) * 20;
            let futures: Vec<_> =
                tasks.clone().map(|task| (task, pool.submit(work, (runs.ticket(), task)))).collect();
            spin(Duration::from_micros(random.below(1500)));
            let mut aborted = BTreeSet::new();
            for _ in 0..3 {
                let (task, future) = &futures[usize::try_from(random.below(20)).unwrap()];
                future.abort();
                aborted.insert(*task);
            }
            for (task, future) in futures {
                match future.result() {
                    Ok(value) => {
                        assert_eq!(value, answer(task));
                        assert_eq!(runs.of(task).len(), 1, "task {task}");
                    }
                    Err(TaskError::Cancelled) => assert!(aborted.contains(&task), "task {task}"),
                    Err(other) => panic!("task {task}: {other}"),
                }
            }
        }
        runs.assert_none_twice();
        assert_full(&pool, 2);
    });
}

/// Time-outs about as long as the tasks: each ends one way or the other, and its neighbours, which have none, end well.
#[test]
fn time_outs_at_the_last_moment_cost_only_their_own_tasks() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let mut timed_out = 0;
        for round in 0..40_u64 {
            let futures: Vec<_> = (round * 20..(round + 1) * 20)
                .map(|task| {
                    let argument = (runs.ticket(), task);
                    let future = if task % 5 == 0 {
                        pool.options().timeout(Duration::from_micros(task % 200)).submit(work, argument)
                    } else {
                        pool.submit(work, argument)
                    };
                    (task, future)
                })
                .collect();
            for (task, future) in futures {
                match future.result() {
                    Ok(value) => {
                        assert_eq!(value, answer(task));
                        assert_eq!(runs.of(task).len(), 1, "task {task}");
                    }
                    Err(TaskError::TimedOut) if task % 5 == 0 => timed_out += 1,
                    Err(other) => panic!("task {task}: {other}"),
                }
            }
        }
        println!("{timed_out} timed out");
        runs.assert_none_twice();
        assert_full(&pool, 2);
    });
}
