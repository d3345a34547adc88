//! A future polled: by a `block_on` written here, and by wakers that do as they like.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use concurrent_futures::{Promise, TaskError, TaskFuture, ThreadPoolExecutor};

use crate::support::{Gate, Tally, Watchdog};

/// Polls a future on this thread until it is ready.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Mutex<bool>, Condvar);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() = true;
            self.1.notify_all();
        }
    }
    let unpark = Arc::new(Unpark(Mutex::new(false), Condvar::new()));
    let waker = Waker::from(Arc::clone(&unpark));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        let mut woken = unpark.0.lock().unwrap();
        while !*woken {
            woken = unpark.1.wait(woken).unwrap();
        }
        *woken = false;
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    fn waker() -> (Arc<Self>, Waker) {
        let count = Arc::new(Self::default());
        (Arc::clone(&count), Waker::from(count))
    }

    fn woken(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn poll<T>(future: &mut TaskFuture<T>, waker: &Waker) -> Poll<Result<T, TaskError>> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

#[test]
fn awaiting_yields_the_outcome() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let inside = pool.clone();
    let sum = block_on(async move {
        let mut sum = 0;
        for n in 0..2_000_u64 {
            sum += inside.submit(|n: u64| n, n).await.unwrap();
        }
        let futures: Vec<_> = (0..1_000).map(|n| inside.submit(|n: u64| n, n)).collect();
        for future in futures {
            sum += future.await.unwrap();
        }
        sum
    });
    assert_eq!(sum, 1_999_000 + 499_500);
    assert!(block_on(pool.spawn(|| -> () { panic!("on the worker") })).unwrap_err().is_panic());
    pool.shutdown();
    assert!(matches!(block_on(pool.spawn(|| ())), Err(TaskError::ShutDown)));
}

#[test]
fn a_future_that_is_ready_is_not_woken() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let mut future = pool.submit(|n: u32| n, 3);
    future.wait();
    let (count, waker) = Count::waker();
    assert!(matches!(poll(&mut future, &waker), Poll::Ready(Ok(3))));
    assert_eq!((count.woken(), Arc::strong_count(&count)), (0, 2), "neither woken nor kept");
}

/// Only the waker of the last poll is woken, once, and the others are let go at once.
#[test]
fn a_waker_replaced_between_polls_is_not_woken() {
    let _watchdog = Watchdog::start();
    let (promise, mut future) = Promise::new();
    let counts: Vec<_> = (0..5)
        .map(|_| {
            let (count, waker) = Count::waker();
            assert!(poll(&mut future, &waker).is_pending());
            count
        })
        .collect();
    for count in &counts[..4] {
        assert_eq!(Arc::strong_count(count), 1, "a replaced waker is dropped");
    }
    promise.complete(Ok(9));
    let woken: Vec<_> = counts.iter().map(|count| count.woken()).collect();
    assert_eq!(woken, [0, 0, 0, 0, 1]);
    assert!(matches!(poll(&mut future, Waker::noop()), Poll::Ready(Ok(9))));
}

/// Wakers replaced while the task ends: the future is ready, or the last one is woken.
#[test]
fn a_waker_replaced_while_the_task_ends_is_woken_or_not_needed() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    for round in 0..2_000_u32 {
        let mut future = pool.spawn(move || {
            for _ in 0..round % 500 {
                std::hint::spin_loop();
            }
            round
        });
        let value = loop {
            let (sender, receiver) = mpsc::sync_channel(1);
            struct Send(mpsc::SyncSender<()>);
            impl Wake for Send {
                fn wake(self: Arc<Self>) {
                    let _ = self.0.try_send(());
                }
            }
            let last = Waker::from(Arc::new(Send(sender)));
            let pending =
                poll(&mut future, Waker::noop()).is_pending() && poll(&mut future, &last).is_pending();
            if !pending {
                break None;
            }
            drop(last); // the future has the other one
            receiver.recv().unwrap();
            if let Poll::Ready(outcome) = poll(&mut future, Waker::noop()) {
                break Some(outcome.unwrap());
            }
        };
        assert!(value.is_none_or(|value| value == round));
    }
}

/// A future polled here by one runtime, there by another, and finished by a third.
#[test]
fn a_future_may_move_between_runtimes() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for round in 0..500_u32 {
        let gate = Gate::new();
        let _opens = gate.opens_at_the_end();
        let passes = gate.clone();
        let mut future = pool.spawn(move || {
            passes.pass();
            round
        });
        let (here, waker) = Count::waker();
        assert!(poll(&mut future, &waker).is_pending());
        let mut future = std::thread::spawn(move || {
            let (_, waker) = Count::waker();
            assert!(poll(&mut future, &waker).is_pending());
            future
        })
        .join()
        .unwrap();
        assert!(poll(&mut future, Waker::noop()).is_pending());
        let last = std::thread::spawn(move || block_on(future));
        if round % 2 == 0 {
            std::thread::yield_now();
        }
        gate.open();
        assert_eq!(last.join().unwrap().unwrap(), round);
        assert_eq!(here.woken(), 0, "a runtime it has left");
    }
}

/// Dropped half-way: the task runs all the same, its value is dropped once, nobody is woken for nothing.
#[test]
fn a_future_dropped_half_way_detaches_its_task() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    for dropped_first in [true, false] {
        let gate = Gate::new();
        let _opens = gate.opens_at_the_end();
        let (passes, probe) = (gate.clone(), tally.probe());
        let mut future = pool.spawn(move || {
            passes.pass();
            probe
        });
        gate.wait_for_arrivals(1);
        assert!(poll(&mut future, Waker::noop()).is_pending());
        if dropped_first {
            drop(future);
            gate.open();
        } else {
            let other = std::thread::spawn(move || drop(future));
            gate.open();
            other.join().unwrap();
        }
    }
    // One that cancels when it is dropped.
    let gate = Gate::new();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let probe = tally.probe();
    let mut future = pool.spawn(move || drop(probe)).cancel_on_drop();
    assert!(poll(&mut future, Waker::noop()).is_pending());
    drop(future);
    assert_eq!(tally.alive(), 0, "its closure is gone");
    gate.open();
    first.result().unwrap();
    pool.shutdown();
    assert_eq!(pool.stats().cancelled, 1);
    tally.assert_balanced();
}

/// The waker of a future that was dropped half-way is of no use to anybody: it does not outlive the task.
#[test]
fn a_waker_goes_with_the_task_at_the_latest() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let passes = gate.clone();
    let mut future = pool.spawn(move || passes.pass());
    let (count, waker) = Count::waker();
    assert!(poll(&mut future, &waker).is_pending());
    drop((waker, future));
    gate.open();
    pool.shutdown();
    assert_eq!(Arc::strong_count(&count), 1);
}

#[test]
fn a_future_polled_after_its_outcome_panics() {
    let _watchdog = Watchdog::start();
    let (promise, mut future) = Promise::new();
    promise.complete(Ok(1));
    assert!(matches!(poll(&mut future, Waker::noop()), Poll::Ready(Ok(1))));
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll(&mut future, Waker::noop())));
    assert!(again.is_err());
}

/// A waker that panics, and one that waits for the very task: the worker survives both.
#[test]
fn a_waker_that_panics_does_not_kill_the_worker() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("in the waker");
        }
    }
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let passes = gate.clone();
    let mut future = pool.spawn(move || passes.pass());
    assert!(poll(&mut future, &Waker::from(Arc::new(Panics))).is_pending());
    gate.open();
    future.wait();
    assert!(matches!(poll(&mut future, Waker::noop()), Poll::Ready(Ok(()))));
    assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1);
    assert_eq!(pool.stats().workers, 1);
}

/// A waker, a callback, a waiting thread and a group at the same task: all are told.
#[test]
fn everybody_who_waits_is_told() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for _ in 0..500 {
        let gate = Gate::new();
        let passes = gate.clone();
        let mut future = pool.spawn(move || passes.pass());
        let (sender, receiver) = mpsc::channel();
        let (count, waker) = Count::waker();
        assert!(poll(&mut future, &waker).is_pending());
        let called = sender.clone();
        future.add_done_callback(move |_| called.send(()).unwrap());
        let future = Arc::new(future);
        let threads = [0, 1].map(|_| {
            let (future, sender) = (Arc::clone(&future), sender.clone());
            std::thread::spawn(move || {
                future.wait();
                sender.send(()).unwrap();
            })
        });
        let group = [Arc::clone(&future)];
        drop(sender);
        gate.open();
        let waited = concurrent_futures::wait(
            group.iter().map(|future| &**future),
            concurrent_futures::ReturnWhen::AllCompleted,
            None,
        );
        assert_eq!(waited.done.len(), 1);
        assert_eq!(receiver.iter().count(), 3);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        crate::support::eventually(|| count.woken() == 1);
    }
}
