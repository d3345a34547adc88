//! S10: shutting down, from anywhere.

use std::cell::RefCell;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use concurrent_futures::ThreadPoolExecutor;

use crate::support::{Gate, Watchdog, eventually, in_own_process, threads};

/// `shutdown` returns when the threads are gone, their thread-locals included: to whoever calls it.
#[test]
fn every_shutdown_waits_for_the_thread_locals() {
    struct Slow(Gate);
    impl Drop for Slow {
        fn drop(&mut self) {
            self.0.pass();
        }
    }
    thread_local! {
        static SLOW: RefCell<Option<Slow>> = const { RefCell::new(None) };
    }
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let slow = Slow(gate.clone());
    pool.spawn(move || SLOW.with(|slot| slot.replace(Some(slow))).is_none()).wait();
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (pool, sender) = (pool.clone(), sender.clone());
            std::thread::spawn(move || {
                pool.shutdown();
                let _ = sender.send(());
            })
        })
        .collect();
    gate.wait_for_arrivals(1);
    let early = receiver.recv_timeout(Duration::from_millis(300));
    gate.open();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(early, Err(RecvTimeoutError::Timeout), "a shutdown returned before the thread was gone");
}

/// S10: a handle in a thread-local of a worker is dropped on that worker when it retires: it must not join itself.
#[test]
fn the_last_handle_in_a_thread_local_of_a_worker_does_not_join_itself() {
    thread_local! {
        static KEPT: RefCell<Option<ThreadPoolExecutor>> = const { RefCell::new(None) };
    }
    in_own_process(Duration::from_secs(10), || {
        let pool = ThreadPoolExecutor::builder()
            .max_workers(1)
            .keep_alive(Duration::from_millis(1))
            .build()
            .unwrap();
        let inside = pool.clone();
        pool.spawn(move || KEPT.with(|kept| kept.replace(Some(inside))).is_none()).wait();
        drop(pool);
        eventually(|| threads().len() <= 2);
    });
}
