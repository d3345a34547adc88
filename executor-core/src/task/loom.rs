//! The task cell, on the real code: every race of the head of `task.rs`, by name.
//!
//! Every access to the slot is watched ([`Access`](crate::sync::Access)): two at once fail a model by themselves. So does
//! a thread that is never woken. Drops are counted outside the model.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::sync::{AtomicUsize, Parker, model, system, thread};

/// Something that must be dropped once: held by closures, values and details.
type Token = Arc<&'static str>;

/// Who holds the token besides the test.
fn holders(token: &Token) -> usize {
    Arc::strong_count(token) - 1
}

fn labelled(token: &Token, timeout: Option<Duration>) -> Details {
    // The cell's own: gone when the cell is.
    let label: Arc<str> = Arc::from(**token);
    Details { label: Some(label), timeout, ..Details::default() }
}

/// A cell that tells when it is freed, with a closure that counts its runs and returns its token.
struct Scene {
    token: Token,
    cell: Arc<str>,
    ran: Arc<system::AtomicU32>,
}

impl Scene {
    fn new(timeout: Option<Duration>) -> (Self, Task, Handle<Token>) {
        let token: Token = Arc::new("task");
        let details = labelled(&token, timeout);
        let cell = details.label.clone().unwrap();
        let ran = Arc::new(system::AtomicU32::new(0));
        let (value, runs) = (Arc::clone(&token), Arc::clone(&ran));
        let (task, handle) = new(PoolId::NONE, Some(details), move || {
            runs.fetch_add(1, Ordering::Relaxed);
            value
        });
        (Self { token, cell, ran }, task, handle)
    }

    fn runs(&self) -> u32 {
        self.ran.load(Ordering::Relaxed)
    }

    /// Everything is gone: the closure, the value, the cell.
    fn check_gone(&self) {
        assert_eq!(holders(&self.token), 0, "closure and value");
        assert_eq!(Arc::strong_count(&self.cell), 1, "the cell");
    }
}

fn run(started: Started) {
    started.execute().publish();
}

/// Waits as `TaskFuture::result` does.
fn wait<T>(handle: &Handle<T>) {
    let parker = Parker::new();
    if handle.listen(Listener::Thread(ThreadSlot::current(), parker.unparker().clone())) {
        while !handle.is_finished() {
            parker.park();
        }
    }
}

#[test]
fn start_against_cancel_against_refuse() {
    model(3, || {
        let (scene, task, mut handle) = Scene::new(None);
        let (runner, refuser) = (task.clone(), task);
        let runner = thread::Builder::new().spawn(move || runner.start().map(run).is_some()).unwrap();
        let refuser = thread::Builder::new().spawn(move || refuser.refuse(TaskError::ShutDown)).unwrap();
        let cancelled = handle.cancel();
        let (ran, refused) = (runner.join().unwrap(), refuser.join().unwrap());
        assert_eq!(u32::from(ran) + u32::from(refused) + u32::from(cancelled), 1, "one wins");
        assert_eq!(scene.runs(), u32::from(ran));
        assert_eq!(handle.is_cancelled(), cancelled);
        match handle.take() {
            Some(Ok(_)) => assert!(ran),
            Some(Err(TaskError::ShutDown)) => assert!(refused),
            Some(Err(TaskError::Cancelled)) => assert!(cancelled),
            other => panic!("{other:?}"),
        }
        drop(handle);
        scene.check_gone();
    });
}

#[test]
fn end_against_listen() {
    model(4, || {
        let (scene, task, mut handle) = Scene::new(None);
        let runner = thread::Builder::new().spawn(move || task.start().map(run)).unwrap();
        wait(&handle);
        assert!(handle.take().unwrap().is_ok());
        runner.join().unwrap();
        drop(handle);
        scene.check_gone();
    });
}

/// One waits as `wait` does, in a group, and gives up if it was told nothing; one is an `.await`.
#[test]
fn end_against_listen_against_set_waker() {
    struct Told(AtomicUsize);
    impl Notify for Told {
        fn notify(&self, index: usize) {
            self.0.fetch_add(index, Ordering::Relaxed);
        }
    }
    struct Awake(Unparker);
    impl std::task::Wake for Awake {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    model(3, || {
        let (scene, task, handle) = Scene::new(None);
        let handle = Arc::new(handle);
        let runner = thread::Builder::new().spawn(move || task.start().map(run)).unwrap();
        let awaiting = {
            let handle = Arc::clone(&handle);
            thread::Builder::new()
                .spawn(move || {
                    let parker = Parker::new();
                    let waker = Waker::from(Arc::new(Awake(parker.unparker().clone())));
                    while !handle.is_finished() && handle.set_waker(&waker) {
                        parker.park();
                    }
                    assert!(handle.peek().is_some_and(Result::is_ok));
                })
                .unwrap()
        };
        let told = Arc::new(Told(AtomicUsize::new(0)));
        let listener = || Listener::Group(Arc::<Told>::clone(&told), 1);
        let entered = handle.listen(listener());
        if !entered {
            assert!(handle.peek().is_some());
        }
        handle.unlisten(&listener());
        runner.join().unwrap();
        awaiting.join().unwrap();
        assert!(told.0.load(Ordering::Relaxed) <= usize::from(entered), "told once at most");
        assert_eq!(Arc::strong_count(&told), 1, "no listener is left");
        drop(handle);
        scene.check_gone();
    });
}

/// Accepted callbacks are called once, in order, before anybody who waits goes on, and no others.
#[test]
fn end_against_add_callback() {
    model(2, || {
        let (scene, task, handle) = Scene::new(None);
        let handle = Arc::new(handle);
        let called = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let order = Arc::new(system::Mutex::new(Vec::new()));
        let runner = thread::Builder::new().spawn(move || task.start().map(run)).unwrap();
        let waiter = {
            let handle = Arc::clone(&handle);
            thread::Builder::new()
                .spawn(move || {
                    wait(&handle);
                    assert!(handle.peek().is_some_and(Result::is_ok));
                })
                .unwrap()
        };
        let add = |number: usize| {
            let (called, order) = (Arc::clone(&called), Arc::clone(&order));
            let callback = move |outcome: &Outcome<Token>| {
                assert!(outcome.is_ok());
                let cell = if number == 1 { &called.0 } else { &called.1 };
                cell.store(1, Ordering::Relaxed);
                order.lock().push(number);
            };
            handle.add_callback(callback).is_ok()
        };
        let (first, second) = (add(1), add(2));
        assert!(first || !second, "over stays over");
        wait(&handle);
        // Relaxed: what makes them visible is the end itself.
        assert_eq!(called.0.load(Ordering::Relaxed), usize::from(first));
        assert_eq!(called.1.load(Ordering::Relaxed), usize::from(second));
        let expected: Vec<usize> = [first.then_some(1), second.then_some(2)].into_iter().flatten().collect();
        assert_eq!(*order.lock(), expected);
        runner.join().unwrap();
        waiter.join().unwrap();
        assert_eq!(Arc::strong_count(&order), 1, "the callbacks are gone");
        drop(handle);
        scene.check_gone();
    });
}

/// While callbacks run, the outcome is theirs: others see nothing of it yet, and the callback sees all of it.
#[test]
fn callbacks_against_peek() {
    model(3, || {
        let (scene, task, handle) = Scene::new(None);
        let handle = Arc::new(handle);
        let there = Arc::clone(&handle);
        let inner_calls = Arc::new(AtomicUsize::new(0));
        let calls = Arc::clone(&inner_calls);
        let added = handle.add_callback(move |_| {
            assert!(there.peek().is_some_and(Result::is_ok), "its own future is over to a callback");
            assert_eq!(there.phase(), Phase::Finished);
            let calls = Arc::clone(&calls);
            let added = there.add_callback(move |_| calls.store(1, Ordering::Relaxed));
            assert!(added.is_ok(), "and takes callbacks still");
        });
        assert!(added.is_ok());
        let runner = thread::Builder::new().spawn(move || task.start().map(run)).unwrap();
        if handle.peek().is_some() {
            assert!(handle.is_finished());
        }
        wait(&handle);
        assert_eq!(inner_calls.load(Ordering::Relaxed), 1);
        assert!(handle.peek().is_some());
        runner.join().unwrap();
        drop(handle);
        scene.check_gone();
    });
}

/// A time limit may come at any moment of a task's life: before it starts, between its start and its launch, while it
/// runs, while it ends. (This once overwrote a closure that was still to be moved out.)
fn expire_against_a_run(preemptions: usize, waits: bool) {
    model(preemptions, move || {
        let (scene, task, mut handle) = Scene::new(Some(Duration::ZERO));
        let timer = task.clone();
        let runner = thread::Builder::new().spawn(move || task.start().map(run).is_some()).unwrap();
        let timer = thread::Builder::new().spawn(move || timer.expire()).unwrap();
        if waits {
            wait(&handle);
        }
        let started = runner.join().unwrap();
        timer.join().unwrap();
        let outcome = handle.take().unwrap();
        match &outcome {
            Ok(_) => assert_eq!((started, scene.runs()), (true, 1)),
            Err(TaskError::TimedOut) => {
                assert!(scene.runs() <= u32::from(started));
                assert!(handle.task().is_aborted(), "whoever still runs is asked to stop");
            }
            Err(error) => panic!("{error}"),
        }
        drop((outcome, handle));
        scene.check_gone();
    });
}

#[test]
fn expire_against_start_launch_and_end() {
    expire_against_a_run(5, false);
}

#[test]
fn expire_against_start_launch_end_and_listen() {
    expire_against_a_run(2, true);
}

/// A deadline and a time-out, ended by two threads of the timer.
#[test]
fn expire_against_expire_against_the_run() {
    model(2, || {
        let (scene, task, mut handle) = Scene::new(Some(Duration::ZERO));
        let timers = [task.clone(), task.clone()]
            .map(|task| thread::Builder::new().spawn(move || task.expire()).unwrap());
        if let Some(started) = task.start() {
            run(started);
        }
        for timer in timers {
            timer.join().unwrap();
        }
        assert!(handle.is_finished());
        assert!(matches!(handle.take(), Some(Ok(_) | Err(TaskError::TimedOut))));
        drop(handle);
        scene.check_gone();
    });
}

#[test]
fn expire_against_cancel() {
    model(4, || {
        let (scene, task, mut handle) = Scene::new(Some(Duration::ZERO));
        let timer = thread::Builder::new().spawn(move || task.expire()).unwrap();
        let cancelled = handle.cancel();
        timer.join().unwrap();
        match handle.take() {
            Some(Err(TaskError::Cancelled)) => assert!(cancelled),
            Some(Err(TaskError::TimedOut)) => assert!(!cancelled),
            other => panic!("{other:?}"),
        }
        assert_eq!(scene.runs(), 0);
        drop(handle);
        scene.check_gone();
    });
}

/// A pool hands a task over to a worker and takes it back, then again; somebody cancels.
#[test]
fn reserve_and_unreserve_against_cancel() {
    model(4, || {
        let token: Token = Arc::new("promise");
        let (promise, future) = promise::<Token>(PoolId::NONE, None);
        let value = Arc::clone(&token);
        let pool = thread::Builder::new()
            .spawn(move || {
                if promise.reserve() {
                    assert!(!promise.is_cancelled());
                    promise.unreserve();
                }
                let runs = promise.reserve();
                if runs {
                    assert!(promise.set_running());
                    assert!(promise.complete(Ok(value)).is_ok());
                } else {
                    assert!(promise.is_cancelled());
                    assert!(!promise.set_running());
                    assert!(promise.complete(Ok(value)).is_err());
                }
                runs
            })
            .unwrap();
        let cancelled = future.cancel();
        let ran = pool.join().unwrap();
        assert_ne!(ran, cancelled);
        let mut future = future;
        wait(&future);
        assert_eq!(future.take().unwrap().is_ok(), ran);
        drop(future);
        assert_eq!(holders(&token), 0);
    });
}

/// The future is dropped, with or without taking the value, while the runner ends the task and lets go.
#[test]
fn take_and_detach_against_the_end() {
    for takes in [false, true] {
        model(4, move || {
            let (scene, task, mut handle) = Scene::new(None);
            let runner = thread::Builder::new().spawn(move || task.start().map(run)).unwrap();
            let taken = if takes { handle.take() } else { None };
            drop(handle);
            drop(taken);
            runner.join().unwrap();
            scene.check_gone();
        });
    }
}

/// Whoever lets go last frees the cell, and sees in it what the others left.
#[test]
fn the_last_of_three_references_frees() {
    model(4, || {
        let (scene, task, handle) = Scene::new(None);
        let other = task.clone();
        let runner = thread::Builder::new().spawn(move || task.start().map(run)).unwrap();
        let other = thread::Builder::new().spawn(move || drop(other)).unwrap();
        drop(handle);
        runner.join().unwrap();
        other.join().unwrap();
        assert_eq!(scene.runs(), 1);
        scene.check_gone();
    });
}

/// A task nobody runs: the closure goes with the last reference.
#[test]
fn a_task_that_never_starts_is_freed() {
    model(4, || {
        let (scene, task, handle) = Scene::new(None);
        let other = thread::Builder::new().spawn(move || drop(task)).unwrap();
        drop(handle);
        other.join().unwrap();
        assert_eq!(scene.runs(), 0);
        scene.check_gone();
    });
}

/// A new reference is made from a handle while others let go.
#[test]
fn retain_against_release() {
    model(4, || {
        let (scene, task, handle) = Scene::new(None);
        let runner = thread::Builder::new().spawn(move || task.start().map(run)).unwrap();
        let mine = handle.task();
        let other = thread::Builder::new().spawn(move || drop(handle)).unwrap();
        drop(mine);
        runner.join().unwrap();
        other.join().unwrap();
        scene.check_gone();
    });
}

/// A task that was started alone, to which a reference is made meanwhile, which goes while the task ends.
#[test]
fn the_end_of_a_task_started_alone_against_a_reference_that_goes() {
    model(4, || {
        let (scene, task, mut handle) = Scene::new(None);
        let started = handle.start_alone(task).unwrap();
        let other = started.task().clone();
        let other = thread::Builder::new().spawn(move || drop(other)).unwrap();
        run(started);
        assert!(handle.take().unwrap().is_ok());
        drop(handle);
        other.join().unwrap();
        assert_eq!(scene.runs(), 1);
        scene.check_gone();
    });
}

/// Two who want to know make the extra part at once, while the task ends.
#[test]
fn two_make_the_extra_part_at_once() {
    model(3, || {
        let token: Token = Arc::new("task");
        let value = Arc::clone(&token);
        let (task, handle) = new(PoolId::NONE, None, move || value);
        let called = Arc::new(AtomicUsize::new(0));
        let handle = Arc::new(handle);
        let call = |handle: &Handle<Token>, called: &Arc<AtomicUsize>| {
            let calls = Arc::clone(called);
            let added = handle.add_callback(move |_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            if added.is_err() {
                called.fetch_add(1, Ordering::Relaxed); // too late: the caller calls it
            }
        };
        let (there, calls) = (Arc::clone(&handle), Arc::clone(&called));
        let other = thread::Builder::new().spawn(move || call(&there, &calls)).unwrap();
        let runner = thread::Builder::new().spawn(move || task.start().map(run)).unwrap();
        call(&handle, &called);
        other.join().unwrap();
        runner.join().unwrap();
        assert_eq!(called.load(Ordering::Relaxed), 2);
        drop(handle);
        assert_eq!(holders(&token), 0);
    });
}
