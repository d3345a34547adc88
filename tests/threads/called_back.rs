//! S3: when callbacks run, where, and in what order; what they may do to the pool.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread::ThreadId;
use std::time::Duration;

use concurrent_futures::{TaskError, ThreadPoolExecutor, current_task};

use crate::support::{Gate, Tally, Watchdog, eventually, in_own_process, threads};

const LIMIT: Duration = Duration::from_secs(40);

fn me() -> ThreadId {
    std::thread::current().id()
}

#[test]
fn callbacks_run_in_the_order_added_on_the_worker_and_before_the_result() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    for count in [1, 2, 50] {
        let gate = Gate::new();
        let passes = gate.clone();
        let future = pool.spawn(move || {
            passes.pass();
            me()
        });
        let calls = Arc::new(Mutex::new(Vec::new()));
        for n in 0..count {
            let calls = Arc::clone(&calls);
            future.add_done_callback(move |outcome| {
                calls.lock().unwrap().push((n, *outcome.as_ref().unwrap() == me()));
            });
        }
        gate.open();
        future.result().unwrap();
        let expected: Vec<_> = (0..count).map(|n| (n, true)).collect();
        assert_eq!(*calls.lock().unwrap(), expected);
    }
}

#[test]
fn a_callback_added_to_a_finished_task_runs_at_once_on_the_caller() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let future = pool.submit(|n: u32| n, 7);
    future.wait();
    let (sender, receiver) = mpsc::channel();
    let returned = future.add_done_callback(move |outcome| {
        sender.send((*outcome.as_ref().unwrap(), me())).unwrap();
    });
    assert_eq!(receiver.try_recv(), Ok((7, me())));
    assert!(returned.is_done());
    assert_eq!(future.result().unwrap(), 7);
}

/// Callbacks added while the task ends: each runs once, and those of one thread in its order.
#[test]
fn callbacks_added_while_the_task_ends_run_once_each() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for round in 0..1_000 {
        let barrier = Arc::new(Barrier::new(3));
        let there = Arc::clone(&barrier);
        let future = Arc::new(pool.spawn(move || {
            there.wait();
        }));
        let calls = Arc::new(Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (barrier, future, calls) = (&barrier, &future, &calls);
                scope.spawn(move || {
                    barrier.wait();
                    for n in 0..10 {
                        let calls = Arc::clone(calls);
                        future.add_done_callback(move |_| calls.lock().unwrap().push((thread, n)));
                    }
                });
            }
        });
        future.wait();
        let calls = calls.lock().unwrap();
        for thread in 0..2 {
            let own: Vec<_> = calls.iter().filter(|call| call.0 == thread).map(|call| call.1).collect();
            // One that finds the task over may overtake those of its thread that the worker still has to run.
            let mut sorted = own.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>(), "round {round}: {own:?}");
        }
    }
}

/// A callback that adds another one: it runs after those that were there.
#[test]
fn a_callback_added_by_a_callback_runs_after_the_others() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let passes = gate.clone();
    let future = Arc::new(pool.spawn(move || passes.pass()));
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (own, there) = (Arc::clone(&future), Arc::clone(&calls));
    future.add_done_callback(move |_| {
        there.lock().unwrap().push(1);
        let inner = Arc::clone(&there);
        own.add_done_callback(move |_| inner.lock().unwrap().push(3));
    });
    let there = Arc::clone(&calls);
    future.add_done_callback(move |_| there.lock().unwrap().push(2));
    gate.open();
    future.wait();
    assert_eq!(*calls.lock().unwrap(), [1, 2, 3]);
}

/// A callback that submits, to a pool with a full queue too, and one that waits for what it submitted.
#[test]
fn a_callback_may_submit_to_its_pool_and_wait() {
    for capacity in [None, Some(1)] {
        let _watchdog = Watchdog::start();
        let builder = ThreadPoolExecutor::builder().max_workers(1);
        let pool = match capacity {
            None => builder.build().unwrap(),
            Some(places) => builder.queue_capacity(places).build().unwrap(),
        };
        let gate = Gate::new();
        let passes = gate.clone();
        let future = pool.spawn(move || passes.pass());
        let inside = pool.clone();
        let (sender, receiver) = mpsc::channel();
        future.add_done_callback(move |_| {
            let futures: Vec<_> = (0..10).map(|n| inside.submit(|n: u32| n, n)).collect();
            sender.send(futures.into_iter().map(|future| future.result().unwrap()).sum::<u32>()).unwrap();
        });
        gate.open();
        assert_eq!(receiver.recv().unwrap(), 45);
        future.result().unwrap();
    }
}

/// A chain in which each task is submitted by the callback of the one before.
#[test]
fn a_long_chain_of_callbacks_that_submit_does_not_grow_the_stack() {
    fn link(pool: &ThreadPoolExecutor, left: u32, end: mpsc::Sender<()>) {
        let inside = pool.clone();
        pool.spawn(|| ()).add_done_callback(move |_| {
            if left == 0 {
                end.send(()).unwrap();
            } else {
                link(&inside, left - 1, end);
            }
        });
    }
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::builder().max_workers(2).stack_size(64 * 1024).build().unwrap();
        let (sender, receiver) = mpsc::channel();
        let inside = pool.clone();
        pool.spawn(move || link(&inside, 20_000, sender)).result().unwrap();
        receiver.recv().unwrap();
    });
}

/// S10: the last handle dropped by a callback: on the worker, on a thread that cancels, on the timer's thread.
#[test]
fn a_callback_may_drop_the_last_handle() {
    in_own_process(LIMIT, || {
        let at_first = threads().len();
        for round in 0..50 {
            let pool = ThreadPoolExecutor::new(1).unwrap();
            let gate = Gate::new();
            let passes = gate.clone();
            let first = pool.spawn(move || passes.pass());
            gate.wait_for_arrivals(1);
            let future = match round % 3 {
                0 => first,
                1 => pool.spawn(|| ()),
                _ => {
                    let limit = Duration::from_millis(1);
                    pool.options()
                        .timeout(limit)
                        .submit(|()| while !current_task().unwrap().is_cancelled() {}, ())
                }
            };
            let called = Gate::new();
            let calls = called.clone();
            let slot = Arc::new(Mutex::new(None));
            let last = Arc::clone(&slot);
            future.add_done_callback(move |_| {
                drop(last.lock().unwrap().take());
                calls.open();
            });
            *slot.lock().unwrap() = Some(pool);
            gate.open();
            if round % 3 == 1 {
                future.cancel();
            }
            called.pass();
            future.wait();
        }
        eventually(|| threads().len() <= at_first);
    });
}

/// A panic in a callback goes to the handler, and neither the next callback nor the outcome nor the worker suffers.
#[test]
fn a_panic_in_a_callback_reaches_the_handler_alone() {
    let _watchdog = Watchdog::start();
    let (sender, receiver) = mpsc::channel();
    let pool = ThreadPoolExecutor::builder()
        .max_workers(1)
        .panic_handler(move |report| {
            sender.send(report.message.clone()).unwrap();
            panic!("the handler too");
        })
        .build()
        .unwrap();
    let gate = Gate::new();
    let passes = gate.clone();
    let future = pool.spawn(move || passes.pass());
    let calls = Arc::new(AtomicUsize::new(0));
    for n in 0..3 {
        let calls = Arc::clone(&calls);
        future.add_done_callback(move |_| {
            calls.fetch_add(1, Ordering::SeqCst);
            assert_eq!(n, 1, "callback {n}");
        });
    }
    gate.open();
    future.wait();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    // And one that runs at once on the caller.
    future.add_done_callback(|_| panic!("late"));
    future.result().unwrap();
    let told: Vec<_> = receiver.try_iter().collect();
    assert_eq!(told.len(), 3);
    assert!(
        told[0].contains("callback 0") && told[1].contains("callback 2") && told[2] == "late",
        "{told:?}"
    );
    assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1);
}

/// A callback of a cancelled task runs on the thread that cancels, before `cancel` returns, and sees the reason.
#[test]
fn a_callback_of_a_cancelled_task_runs_on_the_canceller() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let future = pool.spawn(|| ());
    let (sender, receiver) = mpsc::channel();
    future.add_done_callback(move |outcome| {
        sender.send((matches!(outcome, Err(TaskError::Cancelled)), me())).unwrap();
    });
    assert!(future.cancel() && future.cancel(), "and it stays so");
    assert_eq!(receiver.try_recv(), Ok((true, me())));
    gate.open();
    first.result().unwrap();
}

/// S14: a callback is dropped once it has run, whether it was called, panicked, or came late.
#[test]
fn callbacks_are_dropped_once() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let gate = Gate::new();
    let mut futures = Vec::new();
    for n in 0..90_u32 {
        let passes = gate.clone();
        let future = pool.spawn(move || passes.pass());
        for _ in 0..2 {
            let probe = tally.probe();
            future.add_done_callback(move |_| {
                let held = &probe;
                assert!(n % 3 > 0, "{held:?}");
            });
        }
        if n % 2 == 0 {
            futures.push(future);
        }
    }
    futures.iter().skip(20).for_each(|future| {
        future.cancel();
    });
    gate.open();
    for future in &futures {
        future.wait();
        let probe = tally.probe();
        future.add_done_callback(move |_| drop(probe));
    }
    pool.shutdown();
    tally.assert_balanced();
}

/// The pool's own callback sees its result while the pool is shut down around it.
#[test]
fn callbacks_run_before_a_shutdown_returns() {
    let _watchdog = Watchdog::start();
    for _ in 0..300 {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        for n in 0..20 {
            let calls = Arc::clone(&calls);
            pool.submit(|n: u32| n, n).add_done_callback(move |_| {
                calls.fetch_add(1, Ordering::SeqCst);
            });
        }
        pool.shutdown();
        assert_eq!(calls.load(Ordering::SeqCst), 20);
    }
}
