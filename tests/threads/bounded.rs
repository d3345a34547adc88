//! S13: a bounded queue holds no more than it may, and nobody waits in vain for a place in it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use concurrent_futures::{SubmitError, TaskError, TaskFuture, ThreadPoolExecutor};

use crate::support::{Gate, Probe, Tally, Watchdog};

/// A pool of `workers` workers, each in a task that waits for the gate, and `capacity` tasks in its queue: full.
fn full(workers: usize, capacity: usize) -> (ThreadPoolExecutor, Gate, Vec<TaskFuture<()>>) {
    let pool = ThreadPoolExecutor::builder().max_workers(workers).queue_capacity(capacity).build().unwrap();
    let gate = Gate::new();
    let mut futures = Vec::new();
    for n in 0..workers {
        let passes = gate.clone();
        futures.push(pool.spawn(move || passes.pass()));
        gate.wait_for_arrivals(n + 1);
    }
    futures.extend((0..capacity).map(|_| pool.spawn(|| ())));
    (pool, gate, futures)
}

#[test]
fn a_submit_waits_while_the_queue_is_full() {
    let _watchdog = Watchdog::start();
    for workers in [1, 3] {
        let (pool, gate, futures) = full(workers, 2);
        let _opens = gate.opens_at_the_end();
        let (sender, receiver) = mpsc::channel();
        let inside = pool.clone();
        let submitter = std::thread::spawn(move || {
            let future = inside.submit(|n: u32| n, 5);
            sender.send(()).unwrap();
            future.result().unwrap()
        });
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "the queue was full");
        gate.open();
        receiver.recv().unwrap();
        assert_eq!(submitter.join().unwrap(), 5);
        futures.into_iter().for_each(|future| future.result().unwrap());
    }
}

#[test]
fn a_refused_task_gives_function_and_argument_back() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let (pool, gate, futures) = full(1, 1);
    let _opens = gate.opens_at_the_end();
    let in_function = tally.carrying(1);
    let number = |probe: &Probe| probe.number;
    let function = move |argument: Probe| (number(&in_function), argument.number);
    let refused = pool.try_submit(function, tally.carrying(2)).unwrap_err();
    assert!(matches!(refused, SubmitError::Full { .. }), "{refused}");
    let (function, argument) = refused.into_parts();
    assert_eq!(tally.counts(), (2, 0), "neither copied nor dropped");
    gate.open();
    for future in futures {
        future.result().unwrap();
    }
    assert_eq!(pool.submit(function, argument).result().unwrap(), (1, 2));
    pool.shutdown();
    let refused = pool.try_submit(|probe: Probe| probe.number, tally.carrying(3)).unwrap_err();
    assert!(matches!(refused, SubmitError::ShutDown { .. }), "{refused}");
    drop(refused);
    tally.assert_balanced();
}

/// `try_submit` on the pool's own worker refuses as anywhere else: it never runs anything in place.
#[test]
fn a_try_submit_on_a_worker_is_refused_when_the_queue_is_full() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::builder().max_workers(1).queue_capacity(1).build().unwrap();
    let inside = pool.clone();
    let outcome = pool.spawn(move || {
        let queued = inside.try_submit(|n: u32| n, 1).unwrap();
        let is_refused = matches!(inside.try_submit(|n: u32| n, 2), Err(SubmitError::Full { .. }));
        (is_refused, queued)
    });
    let (is_refused, queued) = outcome.result().unwrap();
    assert!(is_refused);
    assert_eq!(queued.result().unwrap(), 1);
}

#[test]
fn a_submit_on_the_pools_own_worker_runs_in_place_when_the_queue_is_full() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::builder().max_workers(1).queue_capacity(2).build().unwrap();
    let inside = pool.clone();
    let places = pool.spawn(move || {
        let me = std::thread::current().id();
        let futures: Vec<_> = (0..10)
            .map(|n: u32| {
                let future = inside.submit(|n: u32| (n, std::thread::current().id()), n);
                (future.is_done(), future)
            })
            .collect();
        let queued = futures.iter().filter(|(was_done, _)| !was_done).count();
        let results: Vec<_> = futures.into_iter().map(|(_, future)| future.result().unwrap()).collect();
        (queued, results.iter().enumerate().all(|(index, &(n, id))| index == n as usize && id == me))
    });
    assert_eq!(places.result().unwrap(), (2, true), "queued, and all of them on the only worker");
}

/// A producer that is far faster than the workers holds the memory of the queue, of what runs, and of one task more.
#[test]
fn a_fast_producer_keeps_few_tasks_alive() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let (workers, capacity, count) = (2, 16, 3_000_u64);
    let pool = ThreadPoolExecutor::builder().max_workers(workers).queue_capacity(capacity).build().unwrap();
    let most = Arc::new(AtomicU64::new(0));
    let mut futures = Vec::new();
    for n in 0..count {
        let (probes, most) = (tally.clone(), Arc::clone(&most));
        futures.push(pool.submit(
            move |probe: Probe| {
                most.fetch_max(probes.alive(), Ordering::Relaxed);
                let start = Instant::now();
                while start.elapsed() < Duration::from_micros(20) {} // far slower than a submit
                probe.number
            },
            tally.carrying(n),
        ));
        most_of(&tally, workers + capacity + 1);
    }
    for (n, future) in futures.into_iter().enumerate() {
        assert_eq!(future.result().unwrap(), n as u64);
    }
    assert!(most.load(Ordering::Relaxed) <= (workers + capacity + 1) as u64);
    assert_eq!(tally.counts().0, count);
    tally.assert_balanced();
}

#[track_caller]
fn most_of(tally: &Tally, most: usize) {
    let alive = tally.alive();
    assert!(alive <= most as u64, "{alive} tasks are alive");
}

#[test]
fn blocked_submitters_are_woken_by_a_shutdown() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    for round in 0..200 {
        let (pool, gate, futures) = full(1, 1);
        let _opens = gate.opens_at_the_end();
        let start = Arc::new(Barrier::new(5));
        let submitters: Vec<_> = (0..4)
            .map(|n| {
                let (inside, start, probe) = (pool.clone(), Arc::clone(&start), tally.carrying(n));
                std::thread::spawn(move || {
                    start.wait();
                    inside.submit(|probe: Probe| probe.number, probe).result()
                })
            })
            .collect();
        start.wait();
        for _ in 0..round * 50 {
            std::hint::spin_loop();
        }
        pool.shutdown_background();
        for submitter in submitters {
            let outcome = submitter.join().unwrap();
            assert!(matches!(outcome, Err(TaskError::ShutDown)), "round {round}: {outcome:?}");
        }
        gate.open();
        futures.into_iter().for_each(|future| future.result().unwrap());
        assert!(pool.shutdown().is_complete());
    }
    tally.assert_balanced();
}

/// S9: the same for a pool that breaks down.
#[test]
fn blocked_submitters_are_woken_by_a_broken_pool() {
    let _watchdog = Watchdog::start();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let pool = ThreadPoolExecutor::builder()
        .max_workers(1)
        .queue_capacity(1)
        .initializer(move || {
            passes.pass();
            Err::<(), _>("no licence")
        })
        .build()
        .unwrap();
    let first = pool.spawn(|| ());
    gate.wait_for_arrivals(1);
    let start = Arc::new(Barrier::new(5));
    let submitters: Vec<_> = (0..4)
        .map(|n| {
            let (inside, start) = (pool.clone(), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                inside.submit(|n: u32| n, n).result()
            })
        })
        .collect();
    start.wait();
    gate.open();
    for outcome in
        submitters.into_iter().map(|submitter| submitter.join().unwrap()).chain([first.result().map(|()| 0)])
    {
        let Err(TaskError::Broken(reason)) = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("no licence"), "{reason}");
    }
}

/// A worker of another pool that waits for a place is replaced meanwhile, as for any other wait (S4).
#[test]
fn a_worker_of_another_pool_waits_for_a_place_and_is_replaced() {
    let _watchdog = Watchdog::start();
    let (bounded, gate, futures) = full(1, 1);
    let _opens = gate.opens_at_the_end();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let (target, started) = (bounded, Gate::new());
    let starts = started.clone();
    let waiting = pool.spawn(move || {
        starts.open();
        target.submit(|n: u32| n, 3).result()
    });
    started.pass();
    let opens = gate;
    pool.spawn(move || opens.open()).result().unwrap(); // on the only worker's spare
    assert_eq!(waiting.result().unwrap().unwrap(), 3);
    futures.into_iter().for_each(|future| future.result().unwrap());
}

/// A cancelled task gives its place back, at the latest when the workers come by.
#[test]
fn places_of_cancelled_tasks_come_back() {
    let _watchdog = Watchdog::start();
    let (pool, gate, futures) = full(1, 8);
    let _opens = gate.opens_at_the_end();
    assert_eq!(futures.iter().filter(|future| future.cancel()).count(), 8);
    gate.open();
    for n in 0..100 {
        assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n);
    }
    let report = pool.shutdown();
    assert!(report.is_complete(), "{report}");
}

/// Many submitters on a queue of one place: everybody gets through.
#[test]
fn many_submitters_share_one_place() {
    let _watchdog = Watchdog::start();
    for workers in [1, 4] {
        let pool = ThreadPoolExecutor::builder().max_workers(workers).queue_capacity(1).build().unwrap();
        let sum: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8_u64)
                .map(|thread| {
                    let pool = &pool;
                    scope.spawn(move || {
                        let futures: Vec<_> =
                            (0..250).map(|n| pool.submit(|n: u64| n, thread * 250 + n)).collect();
                        futures.into_iter().map(|future| future.result().unwrap()).sum::<u64>()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(sum, (0..2_000).sum());
        assert_eq!(pool.shutdown().finished, 0, "all of it was before");
        assert_eq!(pool.stats().finished, 2_000);
    }
}
