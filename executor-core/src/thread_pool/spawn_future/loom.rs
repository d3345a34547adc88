//! Wakes against polls, on the real pool: a wake is never lost, and no two polls happen at once.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::task::Waker;

use super::*;
use crate::sync::{Access, AtomicBool, model, thread};

/// What a future waits for: a flag, and the waker to tell.
#[derive(Default)]
struct Event {
    happened: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Event {
    fn happen(&self) {
        self.happened.store(true, Ordering::Release);
        let waker = self.waker.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Ready when the event has happened; polls are watched, so two at once fail the model.
struct Waiting {
    event: Arc<Event>,
    polled: Access,
}

impl Future for Waiting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.polled.writes();
        *self.event.waker.lock() = Some(context.waker().clone());
        if self.event.happened.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[test]
fn wake_against_poll() {
    model(1, || {
        let pool = ThreadPoolExecutor::builder().max_workers(1).build().unwrap();
        let event = Arc::new(Event::default());
        let future = pool.spawn_future(Waiting { event: Arc::clone(&event), polled: Access::new() });
        event.happen();
        assert!(future.result().is_ok());
    });
}

/// Wakes that come twice, from two threads, at any moment of a poll.
#[test]
fn wake_against_wake_against_poll() {
    model(1, || {
        let pool = ThreadPoolExecutor::builder().max_workers(1).build().unwrap();
        let event = Arc::new(Event::default());
        let future = pool.spawn_future(Waiting { event: Arc::clone(&event), polled: Access::new() });
        let there = Arc::clone(&event);
        thread::Builder::new()
            .spawn(move || {
                // For nothing: it must poll again, and wait again.
                let waker = there.waker.lock().clone();
                if let Some(waker) = waker {
                    waker.wake();
                }
            })
            .unwrap();
        event.happen();
        assert!(future.result().is_ok());
    });
}

/// A wake that comes when the pool has ended: the future ends in an error, and is dropped.
#[test]
fn wake_against_shutdown() {
    model(1, || {
        let pool = ThreadPoolExecutor::builder().max_workers(1).build().unwrap();
        let event = Arc::new(Event::default());
        let future = pool.spawn_future(Waiting { event: Arc::clone(&event), polled: Access::new() });
        let there = Arc::clone(&event);
        let waking = thread::Builder::new().spawn(move || there.happen()).unwrap();
        assert!(pool.shutdown().is_complete());
        waking.join().unwrap();
        assert!(matches!(future.result(), Ok(()) | Err(TaskError::ShutDown)));
    });
}
