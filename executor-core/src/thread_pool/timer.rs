//! Time limits of tasks on threads: one thread a pool, started with the first limit, that ends what is late.
//!
//! A task with a deadline enters when it is submitted, one with a time-out when it starts; it leaves when it is over,
//! so that the timer keeps nothing alive.

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::sync::{Arc, Condvar, Mutex};
use crate::task::Task;

#[derive(Debug, Default)]
pub(super) struct Timer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    limits: BTreeMap<(Instant, usize), Task>,
    thread: Option<JoinHandle<()>>,
    is_stopped: bool,
}

impl Timer {
    /// Enters a task that must be over by `limit`. If no thread can be had, the task's time is up at once.
    pub(super) fn enter(&self, limit: Instant, task: &Task, name: &str) {
        let mut state = self.shared.state.lock();
        state.limits.insert((limit, task.id()), task.clone());
        if state.thread.is_none() && !state.is_stopped {
            let shared = Arc::clone(&self.shared);
            let thread =
                std::thread::Builder::new().name(format!("{name}-timer")).spawn(move || shared.run());
            match thread {
                Ok(thread) => state.thread = Some(thread),
                Err(_) => {
                    state.limits.remove(&(limit, task.id()));
                    drop(state);
                    return task.expire();
                }
            }
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    /// A task is over.
    pub(super) fn leave(&self, limit: Instant, task: &Task) {
        let left = self.shared.state.lock().limits.remove(&(limit, task.id()));
        drop(left); // outside the lock: it may be the last reference
    }

    /// Ends the thread. Not on the thread itself, which may run callbacks.
    pub(super) fn stop(&self) {
        let (thread, limits) = {
            let mut state = self.shared.state.lock();
            state.is_stopped = true;
            (state.thread.take(), std::mem::take(&mut state.limits))
        };
        self.shared.changed.notify_one();
        drop(limits);
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // It catches every panic, so there is none to hear of.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        while !state.is_stopped {
            let now = Instant::now();
            state = match state.limits.first_entry() {
                None => self.changed.wait(state),
                Some(entry) if entry.key().0 > now => {
                    let left = entry.key().0 - now;
                    self.changed.wait_timeout(state, left)
                }
                Some(entry) => {
                    let late = entry.remove();
                    drop(state);
                    late.expire();
                    drop(late);
                    self.state.lock()
                }
            };
        }
    }
}
