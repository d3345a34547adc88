//! The counters add up at every instant: `submitted == queued + running + finished`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use concurrent_futures::{PoolStats, ThreadPoolExecutor};

use crate::support::{Gate, Watchdog};

#[track_caller]
fn assert_sum(stats: &PoolStats) {
    assert_eq!(stats.submitted, stats.queued + stats.running + stats.finished, "{stats:?}");
    assert!(stats.cancelled + stats.panicked <= stats.finished, "{stats:?}");
    assert!(stats.idle_workers + stats.blocked_workers <= stats.workers, "{stats:?}");
}

/// Sampled from a thread of its own, under every kind of load there is.
#[test]
fn the_counters_add_up_at_every_instant() {
    let _watchdog = Watchdog::start();
    for (workers, capacity) in [(1, None), (2, None), (8, None), (2, Some(4))] {
        let builder = ThreadPoolExecutor::builder().max_workers(workers);
        let pool = match capacity {
            None => builder,
            Some(places) => builder.queue_capacity(places),
        };
        let pool = pool.keep_alive(Duration::from_millis(1)).panic_handler(|_| ()).build().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stops) = (pool.clone(), Arc::clone(&stop));
        let looker = std::thread::spawn(move || {
            let mut samples = 0_u64;
            let mut last = (0, 0);
            while !stops.load(Ordering::Relaxed) {
                let stats = seen.stats();
                assert_sum(&stats);
                assert!(stats.submitted >= last.0 && stats.finished >= last.1, "{last:?}, then {stats:?}");
                last = (stats.submitted, stats.finished);
                samples += 1;
            }
            samples
        });
        let until = Instant::now() + Duration::from_millis(700);
        std::thread::scope(|scope| {
            for thread in 0..3_u32 {
                let (pool, looker) = (&pool, &looker);
                scope.spawn(move || {
                    let mut n = thread;
                    while Instant::now() < until && !looker.is_finished() {
                        n = n.wrapping_add(1);
                        let inside = pool.clone();
                        match n % 12 {
                            0 => drop(pool.spawn(panic_quietly)),
                            1 => {
                                pool.spawn(|| ()).cancel();
                            }
                            2 => pool.spawn(move || inside.submit(|n: u32| n, 1).result()).wait(),
                            3 => pool.spawn(move || inside.map(|n: u32| n, 0..20).count()).wait(),
                            4 => drop(pool.options().timeout(Duration::from_micros(50)).submit(|()| (), ())),
                            5 => drop(pool.try_submit(|n: u32| n, 2)),
                            6 => drop(pool.options().priority(1).submit(|()| (), ())),
                            7 => drop(pool.options().retries(2).submit(|()| panic_quietly(), ())),
                            8 => drop(pool.spawn_future(std::future::pending::<()>()).abort()),
                            9 => pool.scope(|s| drop(s.spawn(|| inside.join(|| (), || ())))),
                            10 => pool.set_max_workers(workers + n as usize % 3).unwrap(),
                            _ => drop(pool.spawn(move || inside.blocking(|| ()))),
                        }
                    }
                });
            }
        });
        pool.set_max_workers(workers).unwrap();
        stop.store(true, Ordering::Relaxed);
        let samples = looker.join().unwrap();
        assert!(pool.shutdown().is_complete());
        let stats = pool.stats();
        assert_sum(&stats);
        assert_eq!((stats.queued, stats.running, stats.workers), (0, 0, 0), "{stats:?}");
        println!("{workers} workers, capacity {capacity:?}: {samples} samples, {stats:?}");
    }
}

/// A panic without the hook's output.
fn panic_quietly() {
    std::panic::resume_unwind(Box::new("quiet"));
}

/// Each count, one by one.
#[test]
fn each_counter_counts_what_it_says() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let at_first = pool.stats();
    assert_eq!(at_first, PoolStats::default());
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let running: Vec<_> = (0..2)
        .map(|_| {
            let passes = gate.clone();
            pool.spawn(move || passes.pass())
        })
        .collect();
    gate.wait_for_arrivals(2);
    let queued: Vec<_> = (0..3).map(|n| pool.submit(|n: u32| 1 / n, n)).collect();
    let stats = pool.stats();
    assert_eq!((stats.submitted, stats.queued, stats.running, stats.finished), (5, 3, 2, 0));
    assert_eq!((stats.workers, stats.idle_workers, stats.blocked_workers), (2, 0, 0));
    queued[1].cancel();
    let stats = pool.stats();
    assert_eq!((stats.submitted, stats.queued, stats.finished, stats.cancelled), (5, 2, 1, 1));
    gate.open();
    running.into_iter().for_each(|future| future.result().unwrap());
    assert!(
        queued[0].wait_timeout(Duration::from_secs(30)) && queued[2].wait_timeout(Duration::from_secs(30))
    );
    let stats = pool.stats();
    assert_eq!((stats.submitted, stats.finished, stats.cancelled, stats.panicked), (5, 5, 1, 1));
    pool.shutdown();
    let refused = pool.submit(|n: u32| n, 1);
    assert!(refused.result().is_err());
    assert_eq!(pool.stats().submitted, 5, "a refused task is none");
}
