//! Callbacks on the futures of processes: they run on the pool's own thread, so they must not be able to stop it.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use concurrent_futures::{Executor, ProcessPoolExecutor, TaskError};

use crate::scene::{assert_full, isolated};
use crate::support::{Turnstile, pass};

#[test]
fn callbacks_run_in_order_before_the_result_and_panics_stop_nothing() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut turnstile = Turnstile::new();
        let future = pool.submit(
            |ticket: String| {
                pass(&ticket);
                7
            },
            turnstile.ticket(),
        );
        for n in 0..10 {
            let said = Arc::clone(&said);
            future.add_done_callback(move |outcome| {
                said.lock().unwrap().push((n, *outcome.as_ref().unwrap()));
                assert_ne!(n % 3, 1, "a callback panics");
            });
        }
        turnstile.wait_for_arrivals(1);
        turnstile.open();
        assert_eq!(future.result().unwrap(), 7);
        assert_eq!(*said.lock().unwrap(), (0..10).map(|n| (n, 7)).collect::<Vec<_>>());
        assert_full(&pool, 2);
    });
}

/// Errors reach callbacks as they reach everybody.
#[test]
fn callbacks_see_deaths_time_outs_and_cancellations() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let (say, said) = mpsc::channel();
        let mut turnstile = Turnstile::new();
        let tell = |name: &'static str| {
            let say = say.clone();
            move |outcome: &Result<(), TaskError>| {
                let what = match outcome {
                    Err(TaskError::WorkerDied(death)) => death.signal.unwrap().to_string(),
                    Err(TaskError::TimedOut) => "time".to_owned(),
                    Err(TaskError::Cancelled) => "cancelled".to_owned(),
                    other => format!("{other:?}"),
                };
                say.send((name, what)).unwrap();
            }
        };
        let holding = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        let dies = pool.submit(
            |_: u8| {
                std::process::abort();
            },
            1,
        );
        dies.add_done_callback(tell("dies"));
        let late =
            pool.options().timeout(Duration::from_millis(20)).submit(|()| crate::scene::forever::<()>(), ());
        late.add_done_callback(tell("late"));
        let cancelled = pool.submit(|()| (), ());
        cancelled.add_done_callback(tell("cancelled"));
        assert!(cancelled.cancel());
        turnstile.open();
        holding.wait();
        dies.wait();
        late.wait();
        drop((dies, late, cancelled));
        drop(say);
        pool.shutdown();
        let mut said: Vec<_> = said.try_iter().collect();
        said.sort_unstable();
        assert_eq!(said, [("cancelled", "cancelled".into()), ("dies", "6".into()), ("late", "time".into())]);
    });
}

/// Each callback submits the next task: the pool's thread hands it to itself.
#[test]
fn a_callback_may_submit_and_try_and_cancel() {
    fn next(pool: &ProcessPoolExecutor, n: u32, done: mpsc::Sender<u32>) {
        let again = pool.clone();
        pool.submit(|n: u32| n + 1, n).add_done_callback(move |outcome| {
            let n = *outcome.as_ref().unwrap();
            if n == 200 {
                done.send(n).unwrap();
            } else {
                let cancelled = again.submit(|n: u32| n, n);
                cancelled.cancel();
                next(&again, n, done);
            }
        });
    }
    isolated(|| {
        // The queue has one place, which the callback's own thread would have to free.
        let pool = ProcessPoolExecutor::builder().max_workers(2).queue_capacity(1).build().unwrap();
        let (done, end) = mpsc::channel();
        next(&pool, 0, done);
        assert_eq!(end.recv().unwrap(), 200);
        pool.shutdown();
    });
}

/// It would wait for itself.
#[test]
fn a_callback_that_waits_for_its_own_pool_is_told() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let (say, said) = mpsc::channel();
        let (inside, later) = (pool.clone(), say.clone());
        // Not finished before it has its callback, which would then run here, where it may wait.
        let mut gate = Turnstile::new();
        pool.submit(|gate: String| pass(&gate), gate.ticket()).add_done_callback(move |_| {
            let mut own = inside.submit(|n: u32| n, 2);
            own.wait();
            own.wait_timeout(Duration::from_secs(100));
            let first = own.result_timeout(Duration::from_secs(100)).map(drop);
            let second = own.result().map(drop);
            let mapped = inside.map(|n: u32| n, 0..3).next().unwrap().map(drop);
            say.send([first, second, mapped]).unwrap();
        });
        gate.open();
        for outcome in said.recv().unwrap() {
            assert!(matches!(outcome, Err(TaskError::Deadlock(_))), "{outcome:?}");
        }
        let other = ProcessPoolExecutor::new(1).unwrap();
        pool.submit(|n: u32| n, 1).add_done_callback(move |_| {
            // Another pool's task is another matter.
            let value = other.submit(|n: u32| n, 3).result().map(drop);
            later.send([value.clone(), value.clone(), value]).unwrap();
        });
        assert!(said.recv().unwrap().iter().all(Result::is_ok));
        assert_full(&pool, 2);
    });
}

#[test]
fn a_callback_may_shut_its_pool_down_in_every_way() {
    isolated(|| {
        for way in 0..6 {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            let (say, said) = mpsc::channel();
            let mut turnstile = Turnstile::new();
            let first = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
            let inside = pool.clone();
            first.add_done_callback(move |_| {
                match way {
                    0 => drop(inside.shutdown()),
                    1 => drop(inside.shutdown_now()),
                    2 => drop(inside.shutdown_timeout(Duration::from_secs(100))),
                    3 => inside.shutdown_background(),
                    4 => drop(inside.kill_workers()),
                    _ => drop(inside.terminate_workers()),
                }
                assert!(inside.workers().is_empty());
                say.send(()).unwrap();
            });
            let second = pool.submit(|n: u32| n, 5);
            turnstile.wait_for_arrivals(1);
            turnstile.open();
            said.recv().unwrap();
            match second.result() {
                Ok(value) => assert_eq!(value, 5),
                Err(TaskError::Cancelled | TaskError::WorkerDied(_)) if way != 0 && way != 3 => {}
                Err(other) => panic!("way {way}: {other}"),
            }
            assert!(pool.shutdown().is_complete(), "way {way}");
        }
    });
}

/// The last handle goes on the pool's own thread, which cannot join itself.
#[test]
fn the_last_handle_may_go_in_a_callback() {
    isolated(|| {
        for _ in 0..10 {
            let pool = ProcessPoolExecutor::new(1).unwrap();
            let mut turnstile = Turnstile::new();
            let (say, said) = mpsc::channel();
            let future = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
            let last = pool.clone();
            future.add_done_callback(move |_| {
                drop(last);
                say.send(()).unwrap();
            });
            turnstile.wait_for_arrivals(1);
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    let next = pool.submit(|n: u32| n, 1);
                    next.add_done_callback(move |_| drop(pool));
                });
                turnstile.open();
            });
            said.recv().unwrap();
        }
    });
}

/// Slow callbacks delay the answers, and lose none.
#[test]
fn slow_callbacks_lose_nothing() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let (say, said) = mpsc::channel();
        for n in 0..50 {
            let say = say.clone();
            pool.submit(|n: u32| n, n).add_done_callback(move |outcome| {
                std::thread::sleep(Duration::from_millis(2));
                say.send(*outcome.as_ref().unwrap()).unwrap();
            });
        }
        drop(say);
        let mut said: Vec<u32> = said.iter().collect();
        said.sort_unstable();
        assert_eq!(said, (0..50).collect::<Vec<_>>());
        assert_full(&pool, 2);
    });
}
