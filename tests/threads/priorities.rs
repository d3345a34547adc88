//! Priorities: higher ones start earlier, equal ones in the order they came, and nobody starves.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use concurrent_futures::ThreadPoolExecutor;

use crate::support::{Gate, Watchdog};

/// The only worker, held at a gate, runs what was queued meanwhile by priority.
#[test]
fn queued_tasks_start_by_priority() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let order = Arc::new(Mutex::new(Vec::new()));
    let priorities = [0, 5, -1, i32::MAX, 0, -7, 5, i32::MIN, 1, 0, -1, i32::MAX, 1];
    let futures: Vec<_> = priorities
        .iter()
        .enumerate()
        .map(|(index, &priority)| {
            let order = Arc::clone(&order);
            pool.options()
                .priority(priority)
                .submit(move |()| order.lock().unwrap().push((priority, index)), ())
        })
        .collect();
    gate.open();
    first.result().unwrap();
    futures.into_iter().for_each(|future| future.result().unwrap());
    let mut expected: Vec<_> = priorities.iter().copied().zip(0..).collect();
    expected.sort_by_key(|&(priority, index)| (-i64::from(priority), index));
    assert_eq!(*order.lock().unwrap(), expected);
}

/// What a task submits with a priority overtakes what it submitted before without one.
#[test]
fn an_urgent_task_of_a_worker_overtakes_its_own_others() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let (inside, there) = (pool.clone(), Arc::clone(&order));
    let futures = pool.spawn(move || {
        [0, -1, 1].map(|priority| {
            let order = Arc::clone(&there);
            inside.options().priority(priority).submit(move |()| order.lock().unwrap().push(priority), ())
        })
    });
    // From a thread outside, so that none of them is run in place.
    for future in futures.result().unwrap() {
        future.result().unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [1, 0, -1]);
}

/// A stream of urgent work that never ends starves neither ordinary nor late work.
#[test]
fn urgent_work_without_end_starves_nobody() {
    fn chain(pool: &ThreadPoolExecutor, stop: &Arc<AtomicBool>, left: &Arc<AtomicU32>) {
        if stop.load(Ordering::Relaxed) {
            left.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let (inside, stop, left) = (pool.clone(), Arc::clone(stop), Arc::clone(left));
        drop(pool.options().priority(9).submit(move |()| chain(&inside, &stop, &left), ()));
    }
    let _watchdog = Watchdog::start();
    for workers in [1, 2] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let (stop, left) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(4)));
        for _ in 0..4 {
            chain(&pool, &stop, &left);
        }
        let late: Vec<_> =
            (0..50).map(|n| pool.options().priority(-(n % 2)).submit(move |()| n, ())).collect();
        for (n, future) in late.into_iter().enumerate() {
            assert_eq!(future.result().unwrap(), i32::try_from(n).unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        pool.shutdown();
    }
}

/// What a worker submits to itself without end does not starve what comes from outside.
#[test]
fn a_worker_that_feeds_itself_does_not_starve_the_others() {
    fn feed(pool: &ThreadPoolExecutor, stop: &Arc<AtomicBool>) {
        if !stop.load(Ordering::Relaxed) {
            let (inside, stop) = (pool.clone(), Arc::clone(stop));
            drop(pool.spawn(move || feed(&inside, &stop)));
        }
    }
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    feed(&pool, &stop);
    for n in 0..50 {
        assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n);
    }
    stop.store(true, Ordering::Relaxed);
    pool.shutdown();
}

/// Streams that never end, of every kind at once: a task that is the oldest of its kind is taken within the bound that
/// `Options::priority` states, and one that has `n` before it within `n + 1` times that.
#[test]
fn no_stream_of_work_starves_anything_beyond_the_documented_bound() {
    const BOUND: u32 = 4 * 61;
    struct Stream {
        pool: ThreadPoolExecutor,
        stop: AtomicBool,
        picks: AtomicU32,
    }
    impl Stream {
        /// Runs, and submits its successor.
        fn flow(self: &Arc<Self>, priority: i32) {
            self.picks.fetch_add(1, Ordering::Relaxed);
            if !self.stop.load(Ordering::Relaxed) {
                let next = Arc::clone(self);
                let flows = move |()| next.flow(priority);
                drop(self.pool.options().priority(priority).submit(flows, ()));
            }
        }
    }
    let _watchdog = Watchdog::start();
    let streams: [&[i32]; 6] = [&[9], &[0], &[-1], &[9, 8], &[9, -1], &[9, 0, -1, 9, 0, -1]];
    for priorities in streams {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let stream =
            Arc::new(Stream { pool: pool.clone(), stop: AtomicBool::new(false), picks: AtomicU32::new(0) });
        let gate = Gate::new();
        let _opens = gate.opens_at_the_end();
        let (inside, flows, passes) = (pool.clone(), Arc::clone(&stream), gate.clone());
        let victims_of = |stream: &Arc<Stream>, pool: &ThreadPoolExecutor, priorities: &[i32]| {
            let submit = |&priority: &i32| {
                let stream = Arc::clone(stream);
                let picks = move |()| stream.picks.fetch_add(1, Ordering::Relaxed) + 1;
                (priority, pool.options().priority(priority).submit(picks, ()))
            };
            priorities.iter().map(submit).collect::<Vec<_>>()
        };
        let from_outside = victims_of(&stream, &pool, &[0]);
        drop(from_outside); // the first one is the worker's start
        let own = pool.spawn(move || {
            passes.pass();
            let own = victims_of(&flows, &inside, &[0]);
            flows.picks.store(0, Ordering::Relaxed);
            let flow = |&priority: &i32| {
                let next = Arc::clone(&flows);
                drop(inside.options().priority(priority).submit(move |()| next.flow(priority), ()));
            };
            priorities.iter().for_each(flow);
            own
        });
        gate.wait_for_arrivals(1);
        // The second of each kind has one before it.
        let mut victims = victims_of(&stream, &pool, &[1, -5, 0, 1, -5, 0]);
        gate.open();
        victims.extend(own.result().unwrap());
        let mut before = std::collections::BTreeMap::new();
        for (index, (priority, future)) in victims.into_iter().enumerate() {
            let kind = if index < 6 { priority.signum() } else { 2 };
            let older = before.entry(kind).or_insert(0_u32);
            *older += 1;
            let picks = future.result().unwrap();
            assert!(
                picks <= BOUND * *older,
                "{picks} tasks were taken before {priority}, with {older} of its kind, under streams of {priorities:?}"
            );
        }
        stream.stop.store(true, Ordering::Relaxed);
        pool.shutdown();
    }
}

/// Ageing keeps the order of equal ones.
#[test]
fn equal_priorities_stay_in_order_however_many_there_are() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let order = Arc::new(Mutex::new(Vec::new()));
    for n in 0..3_000_u32 {
        let order = Arc::clone(&order);
        let priority = [5, -5, 0, i32::MAX, -1, 3][n as usize % 6];
        let notes = move |()| order.lock().unwrap().push((priority, n));
        drop(pool.options().priority(priority).submit(notes, ()));
    }
    gate.open();
    first.result().unwrap();
    pool.shutdown();
    let order = order.lock().unwrap();
    assert_eq!(order.len(), 3_000);
    for priority in [5, -5, 0, i32::MAX, -1, 3] {
        let of_it: Vec<_> = order.iter().filter(|(p, _)| *p == priority).map(|(_, n)| n).collect();
        assert!(of_it.is_sorted(), "{priority}: {of_it:?}");
    }
}
