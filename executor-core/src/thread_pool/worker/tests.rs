//! What only a worker made by hand can show: moments that a real one passes through in a few nanoseconds.

use crossbeam_utils::sync::Parker;

use super::super::registry::Settings;
use super::super::sleep::Wake;
use super::*;
use crate::executor::Shutdown;
use crate::task;

fn registry(max_workers: usize) -> Arc<Registry> {
    let settings = Settings {
        max_workers,
        prefix: "by-hand".to_owned(),
        stack_size: 2 * 1024 * 1024,
        keep_alive: None,
        capacity: None,
        initializer: None,
        on_worker_exit: None,
        panic_handler: None,
    };
    Arc::new(Registry::new(PoolId::next(), settings))
}

/// A worker on this thread, counted as live, at a task of its own.
fn worker(registry: &Arc<Registry>) -> Worker {
    assert_eq!(registry.sleep.published(1), Wake::Start);
    let local = registry.queue.join();
    let desk = Arc::new(Desk::new(local.index, format!("by-hand-{}", local.index)));
    let worker = Worker::new(Arc::clone(registry), local, desk);
    worker.stop_search();
    worker
}

/// Another worker looks for the last time just while a task is not in the deque: it must be told to look again.
#[test]
fn a_task_put_back_is_published_again() {
    let registry = registry(2);
    let worker = worker(&registry);
    assert_eq!(registry.sleep.published(1), Wake::Start, "one more may be active");
    let other = registry.queue.join();
    let parker = Parker::new();
    registry.sleep.lie_down(other.index, parker.unparker().clone());
    let (first, _keeps_first) = task::new(registry.id, None, || ());
    let (second, _keeps_second) = task::new(registry.id, None, || ());
    // Without a wake, as if the other one had slept through it.
    registry.queue.push_local(&worker.local, first.clone());
    registry.queue.push_local(&worker.local, second);
    assert!(worker.take_back(first.id()).is_none(), "it is not on top");
    assert!(!registry.sleep.is_lying(other.index), "nobody was woken for the task that was put back");
    assert!(registry.queue.has_work(&other, 0), "it is there");
}

/// What a submit refused late leaves in the queue starts no worker after the shutdown, and neither does a late wake.
#[test]
fn nothing_starts_a_worker_after_the_shutdown() {
    let registry = registry(2);
    assert!(registry.shutdown(Shutdown::Finish).is_complete());
    registry.wake();
    let (task, future) = task::new(registry.id, None, || ());
    registry.queue.push(task);
    assert!(future.refuse(crate::error::TaskError::ShutDown));
    assert!(registry.shutdown(Shutdown::Finish).is_complete());
    let (task, future) = task::new(registry.id, None, || ());
    registry.queue.push(task);
    registry.wake();
    assert!(future.is_finished(), "refused by whoever comes to it first");
    assert!(registry.workers().is_empty() && registry.queue.is_empty());
    assert_eq!((registry.sleep.counts().live(), registry.started_threads()), (0, 0));
}

/// In a pool that is ending, a worker does not go on looking for what cannot come.
#[test]
fn a_worker_of_an_ending_pool_looks_once() {
    let registry = registry(1);
    let worker = worker(&registry);
    worker.start_search();
    registry.break_down("by hand".into());
    let before = worker.random.get();
    assert!(worker.look_around().is_none());
    let after = worker.random.replace(before);
    worker.next_random();
    assert_eq!(worker.random.get(), after, "it drew one number for one look");
}
