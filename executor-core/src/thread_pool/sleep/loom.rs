//! Who sleeps and who is woken, on the real [`Sleep`], by the names of `sleep.rs`: P, W and L.
//!
//! The worker here is `Worker::next_task` and `Worker::rest` without what does not matter to sleep: no deques of its own, no
//! yielding before it lies down. The queue is the injector of `sync/loom.rs`, whose emptiness is one acquire load: all
//! order between it and the word of `Sleep` comes from the fences under test.
//!
//! A lost wake-up is a thread that waits for a task nobody runs: loom calls it a deadlock. A model ends its workers only
//! when all its tasks have run, so that the shutdown wakes nobody too early.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::sync::deque::{Injector, Steal};
use crate::sync::{Arc, AtomicBool, Parker, model, system, thread};

type Job = Box<dyn FnOnce(&Arc<Pool>) + Send>;

struct Pool {
    sleep: Sleep,
    queue: Injector<Job>,
    ending: AtomicBool,
    /// Workers end as soon as they have lain down in vain, as if `keep_alive` had passed.
    impatient: bool,
    next_index: system::AtomicUsize,
}

/// Opened once, by a task; one thread waits.
#[derive(Clone, Default)]
struct Done(Arc<(Mutex<bool>, crate::sync::Condvar)>);

impl Done {
    fn set(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let mut done = self.0.0.lock();
        while !*done {
            done = self.0.1.wait(done);
        }
    }
}

impl Pool {
    /// A pool with so many workers, who have just started and found nothing yet.
    fn new(max_active: usize, workers: usize, impatient: bool) -> Arc<Self> {
        let pool = Arc::new(Self {
            sleep: Sleep::new(max_active),
            queue: Injector::new(),
            ending: AtomicBool::new(false),
            impatient,
            next_index: system::AtomicUsize::new(0),
        });
        for _ in 0..workers {
            pool.sleep.add(LIVE + SEARCHING);
            pool.start_worker();
        }
        pool
    }

    fn start_worker(self: &Arc<Self>) {
        let index = self.next_index.fetch_add(1, Ordering::Relaxed);
        let pool = Arc::clone(self);
        thread::Builder::new().spawn(move || pool.live(index)).unwrap();
    }

    fn publish(self: &Arc<Self>, job: impl FnOnce(&Arc<Self>) + Send + 'static) {
        self.queue.push(Box::new(job));
        self.wake();
    }

    /// `Registry::wake`, with the fence of P.
    fn wake(self: &Arc<Self>) {
        fence(Ordering::SeqCst);
        self.wake_fenced(1);
    }

    /// `Registry::wake_next`.
    fn wake_next(self: &Arc<Self>) {
        fence(Ordering::SeqCst);
        let breadth = self.sleep.breadth(usize::MAX);
        for _ in 0..breadth.min(2) {
            self.wake_fenced(breadth);
        }
    }

    fn wake_fenced(self: &Arc<Self>, breadth: usize) {
        if self.sleep.published(breadth) == Wake::Start {
            self.start_worker();
        }
    }

    fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// `Registry::shutdown`.
    fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.sleep.wake_all();
    }

    /// `Worker::before_block` and `after_block`.
    fn block(self: &Arc<Self>, wait: impl FnOnce()) {
        self.sleep.block();
        if self.has_work() {
            self.wake();
        }
        wait();
        self.sleep.unblock();
    }

    fn live(self: &Arc<Self>, index: usize) {
        let parker = Parker::new();
        let mut is_searching = true;
        loop {
            if !is_searching && self.sleep.is_surplus() {
                self.sleep.start_search();
                is_searching = true;
                if !self.rest(index, &parker) {
                    break;
                }
                continue;
            }
            if let Steal::Success(job) = self.queue.steal() {
                if is_searching {
                    is_searching = false;
                    if self.sleep.found() && self.has_work() {
                        self.wake_next();
                    }
                }
                job(self);
                continue;
            }
            if !is_searching {
                self.sleep.start_search();
                is_searching = true;
                continue;
            }
            if self.ending.load(Ordering::SeqCst) {
                fence(Ordering::SeqCst);
                if !self.has_work() {
                    break;
                }
            } else if !self.rest(index, &parker) {
                break;
            }
        }
        // `Registry::worker_ended`.
        self.sleep.end();
        fence(Ordering::SeqCst);
        if self.has_work() {
            self.wake();
        }
    }

    /// `Worker::rest`; false if it has slept long enough.
    fn rest(&self, index: usize, parker: &Parker) -> bool {
        self.sleep.lie_down(index, parker.unparker().clone());
        let mut has_slept_enough = false;
        loop {
            let is_wanted = self.ending.load(Ordering::SeqCst) || (!self.sleep.is_full() && self.has_work());
            if is_wanted || has_slept_enough {
                if !self.sleep.get_up(index) {
                    parker.park();
                    return true;
                }
                return is_wanted;
            }
            if self.impatient {
                has_slept_enough = true;
            } else {
                parker.park();
            }
            if !self.sleep.is_lying(index) {
                return true;
            }
        }
    }
}

/// A task that only says that it has run.
fn saying(done: &Done) -> impl FnOnce(&Arc<Pool>) + Send + 'static {
    let done = done.clone();
    move |_| done.set()
}

#[test]
fn publish_against_the_last_worker_lying_down() {
    model(4, || {
        let pool = Pool::new(1, 1, false);
        let done = Done::default();
        pool.publish(saying(&done));
        done.wait();
        pool.end();
    });
}

#[test]
fn publish_into_an_empty_pool_starts_one_worker() {
    model(3, || {
        let pool = Pool::new(1, 0, false);
        let done = [Done::default(), Done::default()];
        let (there, first) = (Arc::clone(&pool), saying(&done[0]));
        thread::Builder::new().spawn(move || there.publish(first)).unwrap();
        pool.publish(saying(&done[1]));
        done.iter().for_each(Done::wait);
        assert_eq!(pool.next_index.load(Ordering::Relaxed), 1);
        pool.end();
    });
}

#[test]
fn two_publishers_against_the_last_worker_lying_down() {
    model(3, || {
        let pool = Pool::new(1, 1, false);
        let done = [Done::default(), Done::default()];
        let (there, first) = (Arc::clone(&pool), saying(&done[0]));
        thread::Builder::new().spawn(move || there.publish(first)).unwrap();
        pool.publish(saying(&done[1]));
        done.iter().for_each(Done::wait);
        pool.end();
    });
}

/// Both tasks of a burst run at the same time, though its second publisher may rely on a searcher: that one wakes the next
/// (L).
#[test]
fn a_burst_of_two_against_two_workers_lying_down() {
    model(2, || {
        let pool = Pool::new(2, 2, false);
        let (first, second) = (Done::default(), Done::default());
        let (said, awaited) = (first.clone(), second.clone());
        pool.publish(move |_| {
            awaited.wait();
            said.set();
        });
        pool.publish(saying(&second));
        first.wait();
        pool.end();
    });
}

/// With three active, two may be on their way: whoever is woken beside another, none of the three tasks stays alone.
#[test]
fn a_burst_of_three_against_three_workers_lying_down() {
    model(1, || {
        let pool = Pool::new(3, 3, false);
        let done = [Done::default(), Done::default(), Done::default()];
        for (task, next) in [(0, 1), (1, 2)] {
            let (said, awaited) = (done[task].clone(), done[next].clone());
            pool.publish(move |_| {
                awaited.wait();
                said.set();
            });
        }
        pool.publish(saying(&done[2]));
        done[0].wait();
        pool.end();
    });
}

/// A task pushed by a task: the other worker comes for it.
#[test]
fn publish_on_a_worker_against_the_other_lying_down() {
    model(2, || {
        let pool = Pool::new(2, 2, false);
        let done = Done::default();
        let said = done.clone();
        pool.publish(move |pool| {
            let inner = Done::default();
            pool.publish(saying(&inner));
            inner.wait();
            said.set();
        });
        done.wait();
        pool.end();
    });
}

#[test]
fn publish_against_a_worker_that_gives_up() {
    model(4, || {
        let pool = Pool::new(1, 1, true);
        let done = Done::default();
        pool.publish(saying(&done));
        done.wait();
        pool.end();
    });
}

/// The worker's task is about to wait for another, which comes at that moment: a spare worker runs it.
#[test]
fn publish_against_a_worker_that_blocks() {
    model(2, || {
        let pool = Pool::new(1, 1, false);
        let (first, second) = (Done::default(), Done::default());
        let (said, awaited) = (first.clone(), second.clone());
        pool.publish(move |pool| {
            pool.block(|| awaited.wait());
            said.set();
        });
        pool.publish(saying(&second));
        first.wait();
        pool.end();
    });
}

/// A worker that was blocked goes on beside its spare, while one more task comes: one of the two is too many, but not both.
#[test]
fn publish_against_a_worker_that_goes_on() {
    model(1, || {
        let pool = Pool::new(1, 1, false);
        let (second, third) = (Done::default(), Done::default());
        let awaited = second.clone();
        pool.publish(move |pool| pool.block(|| awaited.wait()));
        pool.publish(saying(&second));
        second.wait();
        pool.publish(saying(&third));
        third.wait();
        pool.end();
    });
}

/// A shutdown wakes the worker that was about to park.
#[test]
fn wake_all_against_lying_down() {
    model(4, || {
        let pool = Pool::new(2, 2, false);
        pool.end();
    });
}
