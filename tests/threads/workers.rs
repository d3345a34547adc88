//! S5, S9: how workers come and go.

use concurrent_futures::ThreadPoolExecutor;

use crate::support::{Watchdog, eventually};

/// A worker that ends before its starter has entered it leaves no entry behind.
#[test]
fn a_worker_that_ends_at_once_is_not_listed() {
    let _watchdog = Watchdog::start();
    for _ in 0..3_000 {
        let pool = ThreadPoolExecutor::builder()
            .max_workers(1)
            .initializer(|| Err::<(), _>("never"))
            .build()
            .unwrap();
        pool.submit(|n: u32| n, 1).result().unwrap_err();
        eventually(|| pool.stats().workers == 0);
        assert!(pool.workers().is_empty(), "{:?}", pool.workers());
    }
}
