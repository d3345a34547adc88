//! Time limits, and the counters while they pass (S2, S13).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use concurrent_futures::ThreadPoolExecutor;

use crate::support::Watchdog;

/// The counters add up at every instant, also where deadlines pass while tasks are being submitted.
#[test]
fn the_counters_add_up_while_deadlines_pass() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let looker = {
        let (pool, stop) = (pool.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut wrong = Vec::new();
            while !stop.load(Ordering::Relaxed) && wrong.is_empty() {
                let stats = pool.stats();
                if stats.submitted != stats.queued + stats.running + stats.finished {
                    wrong.push(stats);
                }
            }
            wrong
        })
    };
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until && !looker.is_finished() {
        drop(pool.options().deadline(Instant::now()).submit(|()| (), ()));
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(looker.join().unwrap(), []);
    pool.shutdown();
    let stats = pool.stats();
    assert_eq!(stats.submitted, stats.finished, "{stats:?}");
}
