//! S4: waiting inside a task.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use concurrent_futures::{ReturnWhen, TaskError, TaskFuture, ThreadPoolExecutor, as_completed, wait};

use crate::support::{Gate, Watchdog, in_own_process};

/// S4: a panic inside `blocking` gives the worker's place back.
#[test]
fn a_panic_inside_blocking_ends_the_blocking() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let inside = pool.clone();
    let outcome = pool.spawn(move || {
        catch_unwind(AssertUnwindSafe(|| inside.blocking(|| panic!("inside")))).unwrap_err();
        inside.stats().blocked_workers
    });
    assert_eq!(outcome.result().unwrap(), 0);
}

/// S4: `max_workers` tasks run at the same time, and no more, however waits are nested.
#[test]
fn a_wait_inside_blocking_does_not_make_room_twice() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = {
        let (most, release) = (Arc::clone(&most), Gate::new());
        move || {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Long enough for a second one to start if it may.
            release.pass_within(Duration::from_millis(200));
            running.fetch_sub(1, Ordering::SeqCst);
        }
    };
    let inside = pool.clone();
    let first = pool.spawn(move || {
        let awaited = inside.spawn(count.clone());
        let second = inside.spawn(count);
        inside.blocking(|| awaited.result()).unwrap();
        second
    });
    first.result().unwrap().result().unwrap();
    assert_eq!(most.load(Ordering::SeqCst), 1, "tasks that ran at the same time");
}

/// S4: tasks that wait for each other through `wait` form a ring as well.
#[test]
fn a_ring_through_wait_for_all_does_not_hang() {
    in_own_process(Duration::from_secs(10), || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let slots: Arc<[Mutex<Option<TaskFuture<()>>>; 2]> = Arc::default();
        let go = Gate::new();
        let (sender, receiver) = mpsc::channel();
        for me in 0..2 {
            let (slots, go, sender) = (Arc::clone(&slots), go.clone(), sender.clone());
            let inside = Arc::clone(&slots);
            let future = pool.spawn(move || {
                go.pass();
                let other = inside[1 - me].lock().unwrap().take().unwrap();
                let waited = wait([&other], ReturnWhen::AllCompleted, None);
                sender.send(waited.not_done.len()).unwrap();
            });
            *slots[me].lock().unwrap() = Some(future);
        }
        go.wait_for_arrivals(2);
        go.open();
        receiver.recv().unwrap();
    });
}

fn fib(pool: &ThreadPoolExecutor, n: u32) -> u64 {
    if n < 2 {
        return n.into();
    }
    let inside = pool.clone();
    let left = pool.spawn(move || fib(&inside, n - 1));
    let right = fib(pool, n - 2);
    left.result().unwrap() + right
}

/// S4: fork and join through futures, on any number of workers.
#[test]
fn nested_submits_and_results_end() {
    let _watchdog = Watchdog::start();
    for workers in [1, 2, 8] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let inside = pool.clone();
        assert_eq!(pool.spawn(move || fib(&inside, 17)).result().unwrap(), 1597);
        let report = pool.shutdown();
        assert!(report.is_complete(), "{report}");
    }
}

/// S4: past a depth limit a wait is handed over to a spare worker, so a chain of any length fits into small stacks.
#[test]
fn a_chain_of_nested_waits_fits_into_small_stacks() {
    in_own_process(Duration::from_secs(40), || {
        fn down(pool: &ThreadPoolExecutor, left: u32) -> u32 {
            if left == 0 {
                return 0;
            }
            let inside = pool.clone();
            pool.spawn(move || down(&inside, left - 1)).result().unwrap() + 1
        }
        let pool = ThreadPoolExecutor::builder().max_workers(1).stack_size(256 * 1024).build().unwrap();
        let inside = pool.clone();
        assert_eq!(pool.spawn(move || down(&inside, 100_000)).result().unwrap(), 100_000);
        pool.shutdown();
    });
}

/// S4: no unrelated task runs on a stack that waits: a thread-local borrowed across the wait is never seen borrowed.
#[test]
fn a_thread_local_borrowed_across_a_wait_is_not_seen_borrowed() {
    thread_local! {
        static HELD: RefCell<u32> = const { RefCell::new(0) };
    }
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let gate = Gate::new();
    let gates = gate.clone();
    let slow = Arc::new(Mutex::new(Some(pool.spawn(move || gates.pass()))));
    gate.wait_for_arrivals(1);
    let waiting = {
        let slow = Arc::clone(&slow);
        pool.spawn(move || {
            HELD.with(|held| {
                let _held = held.borrow_mut();
                let slow = slow.lock().unwrap().take().unwrap();
                slow.result().unwrap();
            });
        })
    };
    let others: Vec<_> = (0..500)
        .map(|_| pool.spawn(|| HELD.with(|held| held.try_borrow_mut().map(|mut held| *held += 1).is_ok())))
        .collect();
    for other in others {
        assert!(other.result().unwrap(), "ran on a stack that waits");
    }
    gate.open();
    waiting.result().unwrap();
}

/// Starts tasks of which each waits for the next one around, and returns what they ended in.
fn ring(pools: &[ThreadPoolExecutor], label: &str) -> Vec<Result<(), TaskError>> {
    let count = pools.len();
    let slots: Arc<Vec<Mutex<Option<TaskFuture<()>>>>> =
        Arc::new((0..count).map(|_| Mutex::new(None)).collect());
    let go = Gate::new();
    let (sender, receiver) = mpsc::channel();
    for (me, pool) in pools.iter().enumerate() {
        let (inside, go, sender) = (Arc::clone(&slots), go.clone(), sender.clone());
        let future = pool.options().label(format!("{label}-{me}")).submit(
            move |()| {
                go.pass();
                let next = inside[(me + 1) % inside.len()].lock().unwrap().take().unwrap();
                sender.send(next.result()).unwrap();
            },
            (),
        );
        *slots[me].lock().unwrap() = Some(future);
    }
    drop(sender);
    go.wait_for_arrivals(count);
    go.open();
    receiver.into_iter().collect()
}

/// S4: two tasks that wait for each other: one is told so, with both names, and the other goes on.
#[test]
fn two_tasks_that_wait_for_each_other_end_in_deadlock() {
    let _watchdog = Watchdog::start();
    for round in 0..200 {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let outcomes = ring(&[pool.clone(), pool], &format!("r{round}"));
        let told: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        let [TaskError::Deadlock(text)] = told[..] else { panic!("{outcomes:?}") };
        assert!(text.contains(&format!("r{round}-0")) && text.contains(&format!("r{round}-1")), "{text}");
    }
}

/// S4: a ring of three over two pools.
#[test]
fn a_ring_over_two_pools_ends_in_deadlock() {
    let _watchdog = Watchdog::start();
    for round in 0..200 {
        let (left, right) = (ThreadPoolExecutor::new(2).unwrap(), ThreadPoolExecutor::new(1).unwrap());
        let outcomes = ring(&[left.clone(), right, left], &format!("r{round}"));
        let told: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        let [TaskError::Deadlock(text)] = told[..] else { panic!("{outcomes:?}") };
        for me in 0..3 {
            assert!(text.contains(&format!("r{round}-{me}")), "{text}");
        }
    }
}

/// S4: every way to wait works on the only worker.
#[test]
fn the_only_worker_may_wait_in_every_way() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let inside = pool.clone();
    let sums = pool.spawn(move || {
        let submit = || (0..20_u32).map(|n| inside.submit(|n: u32| n, n)).collect::<Vec<_>>();
        let all = submit();
        let waited = wait(&all, ReturnWhen::AllCompleted, None).done.len();
        let first = submit();
        let some = wait(&first, ReturnWhen::FirstCompleted, None).done.len();
        let completed: u32 = as_completed(submit()).map(|future| future.result().unwrap()).sum();
        let mapped: u32 = inside.map(|n: u32| n, 0..20).map(Result::unwrap).sum();
        let unordered: u32 = inside.options().unordered().map(|n: u32| n, 0..20).map(Result::unwrap).sum();
        let timed = inside.submit(|n: u32| n, 1).wait_timeout(Duration::from_secs(30));
        (waited, some >= 1, completed, mapped, unordered, timed)
    });
    assert_eq!(sums.result().unwrap(), (20, true, 190, 190, 190, true));
}
