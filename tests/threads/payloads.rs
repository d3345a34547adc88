//! S6, S14: panics with any payload, and destructors that panic, wherever they run.

use std::cell::RefCell;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::mpsc;
use std::time::Duration;

use concurrent_futures::{TaskError, ThreadPoolExecutor};

use crate::support::{Gate, Probe, Tally, Watchdog, in_own_process, watch_own_process};

const LIMIT: Duration = Duration::from_secs(40);

/// Panics when it is dropped, and counts as dropped all the same.
struct Bomb {
    probe: Probe,
}

impl Bomb {
    fn new(tally: &Tally) -> Self {
        Self { probe: tally.probe() }
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("in the destructor of {:?}", self.probe);
    }
}

/// The pool is as it was: at full size, and at work.
#[track_caller]
fn assert_sound(pool: &ThreadPoolExecutor) {
    let workers = pool.max_workers();
    let all = std::sync::Arc::new(std::sync::Barrier::new(workers));
    let futures: Vec<_> = (0..workers)
        .map(|_| {
            let all = std::sync::Arc::clone(&all);
            pool.spawn(move || {
                all.wait();
            })
        })
        .collect();
    futures.into_iter().for_each(|future| future.result().unwrap());
    assert_eq!(pool.stats().workers, workers);
}

#[test]
fn a_payload_of_any_type_comes_back() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let tally = Tally::local();
    let report = |outcome: Result<(), TaskError>| {
        let Err(TaskError::Panicked(report)) = outcome else { panic!("{outcome:?}") };
        report
    };
    let number = report(pool.spawn(|| panic_any(7_u64)).result());
    assert_eq!(number.message, "a panic with a payload that is no string");
    assert!(number.line > 0 && number.file.ends_with("payloads.rs"), "{number}");
    assert_eq!(*number.take_payload().unwrap().downcast::<u64>().unwrap(), 7);
    assert!(number.take_payload().is_none());
    let probe = tally.carrying(3);
    let value = report(pool.spawn(move || panic_any(probe)).result());
    assert_eq!(value.take_payload().unwrap().downcast_ref::<Probe>().unwrap().number, 3);
    let text = report(pool.spawn(|| panic_any(String::from("a string"))).result());
    assert_eq!(text.message, "a string");
    let boxed = report(pool.spawn(|| panic_any(Box::new("boxed") as Box<dyn std::any::Any + Send>)).result());
    assert!(boxed.take_payload().unwrap().is::<Box<dyn std::any::Any + Send>>());
    assert_sound(&pool);
    tally.assert_balanced();
}

#[test]
fn a_payload_whose_destructor_panics_is_contained() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::builder().max_workers(2).panic_handler(|_| ()).build().unwrap();
    for _ in 0..20 {
        let bomb = Bomb::new(&tally);
        let outcome = pool.spawn(move || panic_any(bomb)).result();
        assert!(outcome.as_ref().is_err_and(TaskError::is_panic));
        drop(outcome); // on this thread
        let bomb = Bomb::new(&tally);
        drop(pool.spawn(move || panic_any(bomb))); // on the worker
    }
    assert_sound(&pool);
    pool.shutdown();
    assert_eq!(pool.stats().panicked, 40);
    tally.assert_balanced();
}

/// A result nobody asks for is dropped on the worker, which survives it.
#[test]
fn a_result_whose_destructor_panics_is_contained() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for n in 0..20 {
        let probes = tally.clone();
        let future = pool.spawn(move || Bomb::new(&probes));
        match n % 4 {
            0 => drop(future),
            1 => {
                future.wait();
                drop(future); // on this thread: the pool's business still
            }
            2 => {
                let bomb = future.result().unwrap();
                assert!(catch_unwind(AssertUnwindSafe(|| drop(bomb))).is_err(), "the caller's own");
            }
            _ => {
                // One that comes too late.
                let probes = tally.clone();
                let late = pool.options().timeout(Duration::from_millis(1)).submit(
                    move |()| {
                        while !concurrent_futures::current_task().unwrap().is_cancelled() {}
                        Bomb::new(&probes)
                    },
                    (),
                );
                assert!(matches!(late.result(), Err(TaskError::TimedOut)));
                drop(future);
            }
        }
    }
    assert_sound(&pool);
    pool.shutdown();
    tally.assert_balanced();
}

/// An argument or a closure's capture that panics when the function drops it is a panic of the task.
#[test]
fn an_argument_whose_destructor_panics_is_the_tasks_panic() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for _ in 0..10 {
        let outcome = pool.submit(|bomb: Bomb| drop(bomb), Bomb::new(&tally)).result();
        assert!(outcome.unwrap_err().is_panic());
        let bomb = Bomb::new(&tally);
        let outcome = pool
            .spawn(move || {
                let held = &bomb;
                held.probe.number
            })
            .result();
        assert!(outcome.unwrap_err().is_panic());
        // Two at once would be the end of the process in any program: one of the two here.
        let outcome =
            pool.submit(|bomb: Bomb| std::mem::forget(bomb.probe.clone()), Bomb::new(&tally)).result();
        assert!(outcome.unwrap_err().is_panic());
    }
    assert_sound(&pool);
    pool.shutdown();
    let (created, dropped) = tally.counts();
    assert_eq!(created, dropped + 10, "ten were forgotten");
}

/// A task that never runs: its closure and argument are dropped by whoever cancels, refuses or shuts down.
#[test]
fn a_closure_that_is_never_run_may_panic_when_it_is_dropped() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let task = || {
        let bomb = Bomb::new(&tally);
        pool.submit(|bomb: Bomb| drop(bomb), bomb)
    };
    let (cancelled, late, left) = (task(), task(), [task(), task(), task()]);
    assert!(cancelled.cancel());
    assert!(matches!(cancelled.result(), Err(TaskError::Cancelled)));
    let bomb = Bomb::new(&tally);
    let soon = std::time::Instant::now() + Duration::from_millis(1);
    let timed = pool.options().deadline(soon).submit(|bomb: Bomb| drop(bomb), bomb);
    assert!(matches!(timed.result(), Err(TaskError::TimedOut)));
    drop(late.cancel_on_drop());
    let opens = gate;
    let ending = std::thread::spawn({
        let pool = pool.clone();
        move || pool.shutdown_now()
    });
    for future in left {
        assert!(matches!(future.result(), Err(TaskError::Cancelled)));
    }
    opens.open();
    let report = ending.join().unwrap();
    assert_eq!((report.cancelled, report.unfinished), (3, 0));
    first.result().unwrap();
    // Refused at the call.
    assert!(matches!(task().result(), Err(TaskError::ShutDown)));
    tally.assert_balanced();
}

/// A callback that is dropped, with what it captures, after it was called.
#[test]
fn a_callback_whose_destructor_panics_is_a_panic_of_the_callback() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let (sender, receiver) = mpsc::channel();
    let pool = ThreadPoolExecutor::builder()
        .max_workers(1)
        .panic_handler(move |report| sender.send(report.message.clone()).unwrap())
        .build()
        .unwrap();
    let gate = Gate::new();
    let passes = gate.clone();
    let future = pool.spawn(move || passes.pass());
    for _ in 0..3 {
        let bomb = Bomb::new(&tally);
        future.add_done_callback(move |_| drop(bomb));
    }
    gate.open();
    future.result().unwrap();
    assert_eq!(receiver.try_iter().count(), 3);
    assert_sound(&pool);
    tally.assert_balanced();
}

/// In a map: items, results, and the function itself.
#[test]
fn a_map_survives_destructors_that_panic() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let probes = tally.clone();
    let items = (0..40).map(move |n| (n % 4 == 0).then(|| Bomb::new(&probes)));
    let failed = pool.options().chunk_size(5).map(|item: Option<Bomb>| drop(item), items);
    assert_eq!(failed.filter(Result::is_err).count(), 10);
    assert_sound(&pool);
    pool.shutdown();
    tally.assert_balanced();
}

/// A thread-local whose destructor panics ends the process: std's rule. No hang, and it says so.
#[test]
fn a_panic_in_a_thread_locals_destructor_on_a_worker_aborts() {
    thread_local! {
        static LOCAL: RefCell<Option<Bomb>> = const { RefCell::new(None) };
    }
    let ended = watch_own_process(LIMIT, || {
        let tally = Tally::local();
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let bomb = Bomb::new(&tally);
        pool.spawn(move || LOCAL.with(|slot| slot.replace(Some(bomb))).is_none()).result().unwrap();
        pool.shutdown();
        unreachable!("the process ends with its thread-local");
    });
    let Some(ended) = ended else { return };
    let status = ended.status.expect("it hangs");
    assert_eq!(status.signal(), Some(nix::libc::SIGABRT), "{}", ended.output);
    assert!(ended.output.contains("thread local panicked on drop"), "{}", ended.output);
}

/// A thread-local that uses the pool when its worker ends gets answers, not a hang.
#[test]
fn a_thread_locals_destructor_may_use_the_pool() {
    struct Uses(ThreadPoolExecutor, mpsc::Sender<Result<u32, TaskError>>);
    impl Drop for Uses {
        fn drop(&mut self) {
            let _ = self.1.send(self.0.submit(|n: u32| n, 5).result());
            self.0.stats();
            self.0.workers();
            self.0.shutdown();
        }
    }
    thread_local! {
        static LOCAL: RefCell<Option<Uses>> = const { RefCell::new(None) };
    }
    in_own_process(LIMIT, || {
        for is_retired in [true, false] {
            let (sender, receiver) = mpsc::channel();
            let builder = ThreadPoolExecutor::builder().max_workers(1);
            let builder = if is_retired { builder.keep_alive(Duration::ZERO) } else { builder };
            let pool = builder.build().unwrap();
            let uses = Uses(pool.clone(), sender);
            pool.spawn(move || LOCAL.with(|slot| slot.replace(Some(uses))).is_none()).result().unwrap();
            if is_retired {
                assert_eq!(receiver.recv().unwrap().unwrap(), 5, "run by the worker started for it");
            } else {
                pool.shutdown();
                assert!(matches!(receiver.recv().unwrap(), Err(TaskError::ShutDown)));
            }
        }
    });
}

/// An initializer and an exit hook that panic: the first breaks the pool with its words, the second is reported.
#[test]
fn hooks_that_panic_are_told() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::builder()
        .max_workers(2)
        .initializer(|| -> Result<(), String> { panic!("no device") })
        .build()
        .unwrap();
    for outcome in [pool.spawn(|| ()).result(), pool.spawn(|| ()).result()] {
        let Err(TaskError::Broken(reason)) = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("no device"), "{reason}");
    }
    assert!(pool.shutdown().is_complete());
    let (sender, receiver) = mpsc::channel();
    let pool = ThreadPoolExecutor::builder()
        .max_workers(1)
        .on_worker_exit(|| panic!("at the exit"))
        .panic_handler(move |report| sender.send(report.message.clone()).unwrap())
        .build()
        .unwrap();
    pool.spawn(|| ()).result().unwrap();
    pool.shutdown();
    assert_eq!(receiver.try_recv().unwrap(), "at the exit");
}
