//! S13, S14: nothing is kept longer than somebody can ask for it, and counts are right by the time anybody can look.

use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use concurrent_futures::{TaskError, ThreadPoolExecutor, current_task};

use crate::support::{Gate, Tally, Watchdog, in_own_process};

const LIMIT: Duration = Duration::from_secs(30);

/// S14: the outcome of a task that was run in place goes with its future, not when the worker comes back to its queue.
#[test]
fn the_outcome_of_a_task_run_in_place_goes_with_its_future() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let (inside, probes) = (pool.clone(), tally.clone());
    let alive = pool.spawn(move || {
        let there = probes.clone();
        let future = inside.spawn(move || there.probe());
        future.wait();
        drop(future);
        probes.alive()
    });
    assert_eq!(alive.result().unwrap(), 0);
    tally.assert_balanced();
}

/// S14, S13: a task that submits and waits again and again needs the memory of one task, not of all of them.
#[test]
fn tasks_run_in_place_leave_no_memory_behind() {
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let inside = pool.clone();
        let before = peak();
        pool.spawn(move || {
            for _ in 0..2_000 {
                let large = [1_u8; 64 * 1024];
                assert_eq!(inside.submit(move |n: usize| large[n], 5).result().unwrap(), 1);
            }
        })
        .result()
        .unwrap();
        let more = peak() - before;
        assert!(more < 32 * 1024, "2,000 tasks of 64 KiB, one after the other, took {more} KiB");
    });
}

/// S2: a cancelled task is counted before anybody can learn that it is cancelled.
#[test]
fn a_cancelled_task_is_counted_when_its_callbacks_run() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let mut seen = Vec::new();
    for deadline in [false, true] {
        let (sender, receiver) = mpsc::channel();
        let future = if deadline {
            let soon = Instant::now() + Duration::from_millis(20);
            pool.options().deadline(soon).submit(|()| (), ())
        } else {
            pool.spawn(|| ())
        };
        let inside = pool.clone();
        future.add_done_callback(move |_| sender.send(inside.stats()).unwrap());
        if !deadline {
            assert!(future.cancel());
        }
        let stats = receiver.recv().unwrap();
        seen.push((stats.queued, stats.cancelled));
    }
    gate.open();
    first.result().unwrap();
    assert_eq!(seen, [(0, 1), (0, 2)], "queued and cancelled");
}

/// S10: a shutdown that has waited for everything reports that nothing is left, whoever refused or cancelled tasks
/// meanwhile.
#[test]
fn a_shutdown_that_waited_reports_nothing_left() {
    let _watchdog = Watchdog::start();
    let until = Instant::now() + Duration::from_secs(2);
    let mut round = 0_u32;
    while Instant::now() < until {
        round += 1;
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let start = Arc::new(Barrier::new(2));
        let (there, inside) = (Arc::clone(&start), pool.clone());
        let submitter = std::thread::spawn(move || {
            there.wait();
            for n in 0..4 {
                let future = inside.submit(|n: u32| n, n);
                if n % 2 == 1 {
                    future.cancel();
                }
            }
        });
        start.wait();
        for _ in 0..round % 64 {
            std::hint::spin_loop();
        }
        let report = pool.shutdown();
        let stats = pool.stats();
        assert!(report.is_complete(), "round {round}: {report}");
        assert_eq!(stats.workers, 0, "round {round}: {stats:?}");
        submitter.join().unwrap();
    }
}

/// S10: shutting down from the callback of a late task, which runs on the timer's thread, while others shut down.
#[test]
fn a_callback_of_a_late_task_may_shut_down_at_the_same_time_as_others() {
    in_own_process(LIMIT, || {
        let until = Instant::now() + Duration::from_secs(1);
        let mut round = 0;
        while Instant::now() < until {
            round += 1;
            let pool = ThreadPoolExecutor::new(1).unwrap();
            let gate = Gate::new();
            let passes = gate.clone();
            let first = pool.spawn(move || passes.pass());
            let late = pool
                .options()
                .timeout(Duration::from_millis(1))
                .submit(|()| while !current_task().unwrap().is_cancelled() {}, ());
            let inside = pool.clone();
            let called = Gate::new();
            let calls = called.clone();
            late.add_done_callback(move |_| {
                calls.open();
                // The other shutdown has begun, and has nothing left to wait for but this callback.
                while inside.stats().workers > 0 {
                    std::thread::yield_now();
                }
                for _ in 0..100 * (round % 200) {
                    std::hint::spin_loop();
                }
                inside.shutdown();
            });
            gate.open(); // not before it has its callback
            first.result().unwrap();
            called.pass();
            pool.shutdown();
        }
    });
}

/// S13: the destructor of a late task's closure holds up no other time limit.
#[test]
fn a_destructor_of_a_late_task_holds_up_no_other_limit() {
    struct Slow(Gate);
    impl Drop for Slow {
        fn drop(&mut self) {
            self.0.pass();
        }
    }
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let (busy, slow) = (Gate::new(), Gate::new());
        let passes = busy.clone();
        let first = pool.options().timeout(Duration::from_millis(60)).submit(move |()| passes.pass(), ());
        busy.wait_for_arrivals(1);
        let holds = Slow(slow.clone());
        let soon = Instant::now() + Duration::from_millis(5);
        let second = pool.options().deadline(soon).submit(move |()| drop(holds), ());
        slow.wait_for_arrivals(1); // its closure is being dropped
        let outcome = first.result();
        assert!(matches!(outcome, Err(TaskError::TimedOut)), "{outcome:?}");
        slow.open();
        busy.open();
        second.wait();
    });
}

/// S6: a detached task that gave its token away has no future all the same.
#[test]
fn a_panic_of_a_detached_task_that_gave_its_token_away_reaches_the_handler() {
    let _watchdog = Watchdog::start();
    let (sender, receiver) = mpsc::channel();
    let pool = ThreadPoolExecutor::builder()
        .max_workers(1)
        .panic_handler(move |report| sender.send(report.message.clone()).unwrap())
        .build()
        .unwrap();
    let (tokens, held) = mpsc::channel();
    let gate = Gate::new();
    let passes = gate.clone();
    drop(pool.spawn(move || {
        passes.pass();
        tokens.send(current_task().unwrap()).unwrap();
        panic!("nobody asks");
    }));
    gate.open();
    pool.shutdown();
    assert!(held.recv().is_ok());
    assert_eq!(receiver.try_recv().as_deref(), Ok("nobody asks"));
}
