//! The outside queue, on the real code with blocks of two slots: pushes against takes, over the seams between blocks.

use super::*;
use crate::fork::PoolId;
use crate::sync::{Arc, model};
use crate::task::{self, Handle};

/// A task, and its number in the order of pushes by one thread.
fn task() -> (Task, Handle<()>) {
    task::new(PoolId::NONE, None, || ())
}

/// Takes until it has seen `wanted` tasks: their ids, in the order it got them.
fn take(queue: &Injector, wanted: usize, limit: usize) -> Vec<usize> {
    let mut ids = Vec::new();
    while ids.len() < wanted {
        let mut others = Vec::new();
        match queue.take(limit, |task| others.push(task.id())) {
            Steal::Success(first) => {
                ids.push(first.id());
                ids.append(&mut others);
            }
            _ => thread::yield_now(),
        }
    }
    ids
}

#[test]
fn one_pushes_over_a_seam_against_one_who_takes() {
    for limit in [1, 2] {
        model(3, move || {
            let queue = Arc::new(Injector::new());
            let (tasks, handles): (Vec<_>, Vec<_>) = (0..3).map(|_| task()).unzip();
            let ids: Vec<_> = tasks.iter().map(Task::id).collect();
            let there = Arc::clone(&queue);
            let pusher = thread::Builder::new()
                .spawn(move || tasks.into_iter().for_each(|task| there.push(task)))
                .unwrap();
            assert_eq!(take(&queue, 3, limit), ids);
            pusher.join().unwrap();
            assert!(queue.is_empty());
            drop(handles);
        });
    }
}

#[test]
fn two_push_over_a_seam() {
    model(4, || {
        let queue = Arc::new(Injector::new());
        let (tasks, handles): (Vec<_>, Vec<_>) = (0..4).map(|_| task()).unzip();
        let mut ids: Vec<_> = tasks.iter().map(Task::id).collect();
        let mut tasks = tasks.into_iter();
        let (first, second) = (tasks.next().unwrap(), tasks.next().unwrap());
        let there = Arc::clone(&queue);
        let pusher = thread::Builder::new()
            .spawn(move || {
                there.push(first);
                there.push(second);
            })
            .unwrap();
        tasks.for_each(|task| queue.push(task));
        pusher.join().unwrap();
        assert_eq!(queue.len(), 4);
        let mut taken = take(&queue, 4, 2);
        let place = |id: usize| taken.iter().position(|taken| *taken == id);
        assert!(place(ids[0]) < place(ids[1]) && place(ids[2]) < place(ids[3]), "each in its order");
        taken.sort_unstable();
        ids.sort_unstable();
        assert_eq!(taken, ids);
        drop(handles);
    });
}

#[test]
fn two_take_over_a_seam() {
    model(4, || {
        let queue = Arc::new(Injector::new());
        let (tasks, handles): (Vec<_>, Vec<_>) = (0..3).map(|_| task()).unzip();
        let mut ids: Vec<_> = tasks.iter().map(Task::id).collect();
        tasks.into_iter().for_each(|task| queue.push(task));
        let there = Arc::clone(&queue);
        let thief = thread::Builder::new().spawn(move || take(&there, 1, 1)).unwrap();
        let mut taken = take(&queue, 2, 1);
        taken.append(&mut thief.join().unwrap());
        taken.sort_unstable();
        ids.sort_unstable();
        assert_eq!(taken, ids);
        drop(handles);
    });
}

/// What is never taken goes with the queue.
#[test]
fn a_queue_takes_its_tasks_along() {
    model(4, || {
        let token = Arc::new(());
        let queue = Injector::new();
        for _ in 0..3 {
            let held = Arc::clone(&token);
            queue.push(task::new(PoolId::NONE, None, move || drop(held)).0);
        }
        drop(queue);
        assert_eq!(Arc::strong_count(&token), 1);
    });
}
