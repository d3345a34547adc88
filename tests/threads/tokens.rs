//! `current_task().is_cancelled()`: how a task on a thread learns that it should stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use concurrent_futures::{TaskError, ThreadPoolExecutor, current_task};

use crate::support::{Gate, Probe, Tally, Watchdog, eventually, in_own_process};

const LIMIT: Duration = Duration::from_secs(40);

fn is_cancelled() -> bool {
    current_task().unwrap().is_cancelled()
}

/// Runs until it is asked to stop.
fn until_cancelled(started: &Gate) -> &'static str {
    assert!(!is_cancelled());
    started.open();
    while !is_cancelled() {
        std::thread::yield_now();
    }
    "stopped"
}

#[test]
fn a_time_out_sets_the_token_and_ends_the_task() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let limit = Duration::from_millis(30);
    let (start, started) = (Instant::now(), Gate::new());
    let outcome = pool.options().timeout(limit).submit(move |()| until_cancelled(&started), ()).result();
    assert!(matches!(outcome, Err(TaskError::TimedOut)), "{outcome:?}");
    assert!(start.elapsed() >= limit);
    assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1, "the worker is free again");
}

/// The outcome comes at the limit, whether the task listens or not.
#[test]
fn a_time_out_does_not_wait_for_a_task_that_does_not_listen() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate;
    let outcome = pool
        .options()
        .timeout(Duration::from_millis(5))
        .submit(
            move |()| {
                passes.pass();
                is_cancelled()
            },
            (),
        )
        .result();
    assert!(matches!(outcome, Err(TaskError::TimedOut)), "{outcome:?}");
    let stats = pool.stats();
    assert_eq!((stats.running, stats.finished), (1, 0), "it runs on: {stats:?}");
}

#[test]
fn a_deadline_sets_the_token_of_a_running_task() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let started = Gate::new();
    let starts = started;
    let deadline = Instant::now() + Duration::from_millis(100);
    let future = pool.options().deadline(deadline).submit(move |()| until_cancelled(&starts), ());
    let outcome = future.result();
    assert!(matches!(outcome, Err(TaskError::TimedOut)), "{outcome:?}");
    assert!(Instant::now() >= deadline);
}

/// A deadline counts the time in the queue; a time-out does not.
#[test]
fn a_deadline_ends_a_queued_task_and_a_time_out_does_not() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let limit = Duration::from_millis(300);
    let patient = pool.options().timeout(limit).submit(|()| "ran", ());
    let late = pool.options().deadline(Instant::now() + Duration::from_millis(10)).submit(|()| (), ());
    assert!(matches!(late.result(), Err(TaskError::TimedOut)));
    assert!(!patient.wait_timeout(2 * limit), "it is still in the queue");
    gate.open();
    assert_eq!(patient.result().unwrap(), "ran");
    first.result().unwrap();
}

#[test]
fn an_abort_sets_the_token_and_leaves_the_outcome_to_the_task() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let started = Gate::new();
    let starts = started.clone();
    let future = pool.spawn(move || until_cancelled(&starts));
    started.pass();
    assert!(!future.cancel(), "too late for that");
    assert!(future.abort());
    assert!(!future.is_cancelled());
    assert_eq!(future.result().unwrap(), "stopped");
}

#[test]
fn an_abort_of_a_queued_task_cancels_it() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let future = pool.spawn(|| ());
    assert!(future.abort());
    assert!(matches!(future.result(), Err(TaskError::Cancelled)));
    gate.open();
    first.wait();
    assert!(!first.abort(), "over");
}

/// Each task has a token of its own, one that is run in place too.
#[test]
fn a_task_run_in_place_has_its_own_token() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let (inside, started, aborted) = (pool.clone(), Gate::new(), Gate::new());
    let (starts, is_aborted) = (started.clone(), aborted.clone());
    let outer = pool.options().label("outer").submit(
        move |()| {
            starts.open();
            is_aborted.pass();
            let inner = inside.options().label("inner").submit(
                |()| {
                    let me = current_task().unwrap();
                    (me.is_cancelled(), me.label().map(str::to_owned))
                },
                (),
            );
            (inner.result().unwrap(), is_cancelled(), current_task().unwrap().label().map(str::to_owned))
        },
        (),
    );
    started.pass();
    assert!(outer.abort());
    aborted.open();
    let inner = (false, Some("inner".to_owned()));
    assert_eq!(outer.result().unwrap(), (inner, true, Some("outer".to_owned())));
}

/// A token may be given away, and outlives the task.
#[test]
fn a_token_may_be_asked_elsewhere() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let token = pool.spawn(|| current_task().unwrap()).result().unwrap();
    assert!(!token.is_cancelled());
    let (sender, receiver) = mpsc::channel();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let future = pool.spawn(move || {
        sender.send(current_task().unwrap()).unwrap();
        passes.pass();
    });
    let token = receiver.recv().unwrap();
    assert!(!token.is_cancelled());
    future.abort();
    assert!(token.is_cancelled());
    gate.open();
    future.result().unwrap();
    pool.shutdown();
    assert!(token.is_cancelled());
}

/// A callback is no task, on whatever thread it runs.
#[test]
fn a_callback_has_no_token() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let future = pool.spawn(move || passes.pass());
    let (sender, receiver) = mpsc::channel();
    future.add_done_callback(move |_| sender.send(current_task().is_none()).unwrap());
    gate.open();
    assert!(receiver.recv().unwrap());
}

/// Whichever comes first of the end of the task and the end of its time decides, once.
#[test]
fn a_task_that_ends_at_its_limit_ends_once() {
    // In a process of its own: when it failed, it wrote over the closure of a task that was being started.
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let (mut ended, mut late) = (0, 0);
        for round in 0..2_000_u64 {
            let limit = Duration::from_micros(round % 100);
            let tally = Tally::local();
            let options = pool.options();
            let options = match round % 3 {
                0 => options.deadline(Instant::now() + limit),
                1 => options.timeout(limit),
                _ => options.deadline(Instant::now() + 2 * limit).timeout(limit),
            };
            let future = options.submit(
                move |probe: Probe| {
                    (0..round % 64).for_each(|_| std::hint::spin_loop());
                    probe
                },
                tally.probe(),
            );
            let (sender, receiver) = mpsc::channel();
            future.add_done_callback(move |outcome| sender.send(outcome.is_ok()).unwrap());
            let outcome = future.result();
            let is_ok = outcome.is_ok();
            assert!(matches!(outcome, Ok(_) | Err(TaskError::TimedOut)), "{outcome:?}");
            assert_eq!(receiver.iter().collect::<Vec<_>>(), [is_ok]);
            if is_ok {
                ended += 1
            } else {
                late += 1
            };
            drop(outcome);
            eventually(|| tally.alive() == 0);
            assert_eq!(tally.counts(), (1, 1));
        }
        println!("{ended} ended in time, {late} late");
        let report = pool.shutdown();
        assert!(report.is_complete(), "{report}");
    });
}

/// Both limits of one task, about to pass while it is being started: one of them ends it, once.
#[test]
fn a_task_with_two_limits_ends_once() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let tally = Tally::local();
        let until = Instant::now() + Duration::from_secs(2);
        let mut round = 0;
        while Instant::now() < until {
            round += 1;
            let limit = Duration::from_micros(round % 40);
            let later = Duration::from_nanos(round % 7_000);
            let options = pool.options().deadline(Instant::now() + limit + later).timeout(later);
            let future = options.submit(|probe: Probe| probe, tally.probe());
            let (sender, receiver) = mpsc::channel();
            let probe = tally.probe();
            future.add_done_callback(move |outcome| {
                drop(probe);
                sender.send(outcome.is_ok()).unwrap();
            });
            let outcome = future.result();
            assert!(matches!(outcome, Ok(_) | Err(TaskError::TimedOut)), "{outcome:?}");
            assert_eq!(receiver.iter().collect::<Vec<_>>(), [outcome.is_ok()]);
        }
        println!("{round} rounds");
        assert!(pool.shutdown().is_complete());
        tally.assert_balanced();
    });
}

/// S14: where the outcome is there, a closure that was never called is gone: nobody else ends a task meanwhile, not even
/// for another limit.
#[test]
fn a_late_closure_is_gone_before_its_outcome_comes() {
    struct Slow {
        deadline: Instant,
        called: Arc<AtomicBool>,
        dropped: Arc<AtomicBool>,
    }
    impl Drop for Slow {
        fn drop(&mut self) {
            // Until the other limit has passed, too.
            while !self.called.load(Ordering::SeqCst)
                && Instant::now() < self.deadline + Duration::from_millis(1)
            {
                std::thread::yield_now();
            }
            self.dropped.store(true, Ordering::SeqCst);
        }
    }
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let (called, dropped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let deadline = Instant::now() + Duration::from_millis(1);
            let slow = Slow { deadline, called: Arc::clone(&called), dropped: Arc::clone(&dropped) };
            let calls = Arc::clone(&called);
            // Its time is up as it starts: before its closure is called, if the timer is fast.
            let future = pool.options().deadline(deadline).timeout(Duration::ZERO).submit(
                move |()| {
                    calls.store(true, Ordering::SeqCst);
                    drop(slow);
                },
                (),
            );
            future.wait();
            let was_dropped = dropped.load(Ordering::SeqCst);
            eventually(|| dropped.load(Ordering::SeqCst));
            assert!(was_dropped || called.load(Ordering::SeqCst), "{future:?} while its closure is there");
        }
        assert!(pool.shutdown().is_complete());
    });
}
