//! Time limits of tasks on threads: a thread, started with the first limit, that ends what is late.
//!
//! A task with a deadline enters when it is submitted, one with a time-out when it starts; it leaves when it is over,
//! so that the timer keeps nothing alive.
//!
//! One thread *watches*, and ends the task that is late: its callbacks and destructors run there. They may block, so
//! before it does that it hands the watch to another thread, one that is back from that or, if there is none, a new one.

#[cfg(all(test, loom))]
mod loom;

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Arc, Condvar, Mutex};
use crate::task::Task;

#[derive(Debug, Default)]
pub(super) struct Timer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The watcher's: a limit was entered.
    changed: Condvar,
    /// The others': the watch is free.
    free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    limits: BTreeMap<(Instant, usize), Task>,
    /// The thread that watches, and those that do not.
    threads: Vec<JoinHandle<()>>,
    is_watched: bool,
    /// Threads that wait for the watch.
    spare: usize,
    is_stopped: bool,
    name: String,
}

impl Timer {
    /// Enters a task that must be over by `limit`. If no thread can be had, the task's time is up at once.
    pub(super) fn enter(&self, limit: Instant, task: &Task, name: &str) {
        let mut state = self.shared.state.lock();
        if state.threads.is_empty() && !state.is_stopped {
            state.name = format!("{name}-timer");
            if self.shared.start(&mut state).is_err() {
                drop(state);
                return task.expire();
            }
        }
        state.limits.insert((limit, task.id()), task.clone());
        drop(state);
        self.shared.changed.notify_one();
    }

    /// A task is over, or one of its runs. Says whether it was in time.
    pub(super) fn leave(&self, limit: Instant, task: &Task) -> bool {
        let left = self.shared.state.lock().limits.remove(&(limit, task.id()));
        left.is_some() // dropped outside the lock: it may be the last reference
    }

    /// Ends the threads. One that is calling, from a callback, is let go.
    pub(super) fn stop(&self) {
        let (threads, limits) = {
            let mut state = self.shared.state.lock();
            state.is_stopped = true;
            (std::mem::take(&mut state.threads), std::mem::take(&mut state.limits))
        };
        self.shared.changed.notify_all();
        self.shared.free.notify_all();
        drop(limits);
        for thread in threads {
            if thread.thread().id() != thread::current().id() {
                // It catches every panic, so there is none to hear of.
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    /// Starts a thread, for the watch.
    fn start(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name(state.name.clone()).spawn(move || shared.run())?;
        state.threads.push(thread);
        Ok(())
    }

    fn run(self: &Arc<Self>) {
        let mut state = self.state.lock();
        loop {
            while state.is_watched && !state.is_stopped {
                state.spare += 1;
                state = self.free.wait(state);
                state.spare -= 1;
            }
            state.is_watched = true;
            let late = loop {
                if state.is_stopped {
                    return;
                }
                let now = Instant::now();
                state = match state.limits.first_entry() {
                    None => self.changed.wait(state),
                    Some(entry) if entry.key().0 > now => {
                        let left = entry.key().0 - now;
                        self.changed.wait_timeout(state, left)
                    }
                    Some(entry) => break entry.remove(),
                };
            };
            state.is_watched = false;
            if state.spare > 0 {
                self.free.notify_one();
            } else {
                // Without another thread, other limits wait for this one to come back.
                let _ = self.start(&mut state);
            }
            drop(state);
            late.expire();
            drop(late);
            state = self.state.lock();
        }
    }
}
