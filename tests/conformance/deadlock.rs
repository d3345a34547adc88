//! `test_deadlock.py`: whatever goes wrong between two processes, it costs one task and hangs nobody.

use std::process::abort;

use concurrent_futures::{ProcessPoolExecutor, TaskError, TaskFuture, WorkerDeath, WorkerStdio};
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::support::{Gate, Turnstile, Watchdog, eventually};
use crate::{is_shut_down, pass, square};

fn pool() -> ProcessPoolExecutor {
    ProcessPoolExecutor::builder().max_workers(2).stderr(WorkerStdio::Null).build().unwrap()
}

fn crash() -> ! {
    loop {
        // Twice, since a handler of the program's may take the first one to itself.
        raise(Signal::SIGSEGV).unwrap();
    }
}

#[track_caller]
fn death<T: std::fmt::Debug>(outcome: Result<T, TaskError>) -> WorkerDeath {
    match outcome {
        Err(TaskError::WorkerDied(death)) => death,
        other => panic!("{other:?}"),
    }
}

fn exit(code: i32) {
    std::process::exit(code)
}

/// What happens when a value is encoded or decoded. It goes wrong only in the processes it is meant for, and the value
/// travels all the same elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Accident {
    Error,
    Panic,
    Exit,
    Crash,
}

impl Accident {
    fn happen(self) -> String {
        match self {
            Self::Error => "an error on purpose".to_owned(),
            Self::Panic => panic!("a panic on purpose"),
            Self::Exit => std::process::exit(1),
            Self::Crash => crash(),
        }
    }
}

/// Goes wrong when it is encoded.
#[derive(Debug, Deserialize)]
struct AtEncode(Accident);

impl Serialize for AtEncode {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom(self.0.happen()))
    }
}

/// Goes wrong when it is decoded.
#[derive(Debug, Serialize)]
struct AtDecode(Accident);

impl<'de> Deserialize<'de> for AtDecode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(Accident::deserialize(deserializer)?.happen()))
    }
}

/// Has one task go wrong among others; checks that the others do not notice and that the pool goes on.
#[track_caller]
fn check<A, R>(task: fn(A) -> R, argument: A, expect: impl FnOnce(Result<R, TaskError>))
where
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    let _watchdog = Watchdog::start();
    let pool = pool();
    let before: Vec<_> = (0..5).map(|n| pool.submit(square, n)).collect();
    let accident = pool.submit(task, argument);
    let after: Vec<_> = (5..10).map(|n| pool.submit(square, n)).collect();
    expect(accident.result());
    for (n, future) in (0..).zip(before.into_iter().chain(after)) {
        assert_eq!(future.result().unwrap(), n * n);
    }
    let mapped: Result<Vec<_>, _> = pool.map(square, 0..10).collect();
    assert_eq!(mapped.unwrap(), (0..10).map(square).collect::<Vec<_>>());
    let report = pool.shutdown();
    assert!(report.is_complete(), "{report}");
}

/// test_error_at_task_pickle
#[test]
fn an_argument_that_cannot_be_encoded_fails_its_task() {
    for (accident, text) in
        [(Accident::Error, "an error on purpose"), (Accident::Panic, "a panic on purpose")]
    {
        check(drop::<AtEncode>, AtEncode(accident), |outcome| {
            assert!(
                matches!(&outcome, Err(TaskError::Encode(reason)) if reason.contains(text)),
                "{outcome:?}"
            );
        });
    }
}

/// test_exit_at_task_unpickle
#[test]
fn an_exit_while_an_argument_is_decoded_costs_one_task() {
    check(drop::<AtDecode>, AtDecode(Accident::Exit), |outcome| {
        assert_eq!(death(outcome).exit_code, Some(1));
    });
}

/// test_error_at_task_unpickle, test_interpreter_pool.test_pickle_errors_propagate
#[test]
fn an_argument_that_cannot_be_decoded_fails_its_task() {
    for (accident, text) in
        [(Accident::Error, "an error on purpose"), (Accident::Panic, "a panic on purpose")]
    {
        check(drop::<AtDecode>, AtDecode(accident), |outcome| {
            assert!(
                matches!(&outcome, Err(TaskError::Decode(reason)) if reason.contains(text)),
                "{outcome:?}"
            );
        });
    }
}

/// test_crash_at_task_unpickle
#[test]
fn a_crash_while_an_argument_is_decoded_costs_one_task() {
    check(drop::<AtDecode>, AtDecode(Accident::Crash), |outcome| {
        assert_eq!(death(outcome).signal, Some(Signal::SIGSEGV as i32));
    });
}

/// test_crash_during_func_exec_on_worker
#[test]
fn a_crash_in_a_task_costs_that_task() {
    check(
        |()| crash(),
        (),
        |outcome: Result<(), _>| {
            assert_eq!(death(outcome).signal, Some(Signal::SIGSEGV as i32));
        },
    );
    check(
        |()| abort(),
        (),
        |outcome: Result<(), _>| {
            assert_eq!(death(outcome).signal, Some(Signal::SIGABRT as i32));
        },
    );
}

/// test_exit_during_func_exec_on_worker: an exit is a death, and tells its code.
#[test]
fn an_exit_in_a_task_costs_that_task() {
    check(exit, 3, |outcome| {
        assert_eq!(death(outcome).exit_code, Some(3));
    });
    check(exit, 0, |outcome| {
        assert_eq!(death(outcome).exit_code, Some(0));
    });
}

/// test_error_during_func_exec_on_worker
#[test]
fn an_error_in_a_task_is_its_outcome() {
    check(
        |()| Err::<(), _>("ordinary".to_owned()),
        (),
        |outcome| {
            assert_eq!(outcome.unwrap(), Err("ordinary".to_owned()));
        },
    );
    check(
        |()| -> u8 { panic!("in the task") },
        (),
        |outcome| {
            assert_eq!(crate::panic_message(&outcome), "in the task");
        },
    );
}

/// test_crash_during_result_pickle_on_worker
#[test]
fn a_crash_while_a_result_is_encoded_costs_one_task() {
    check(AtEncode, Accident::Crash, |outcome| {
        assert_eq!(death(outcome).signal, Some(Signal::SIGSEGV as i32));
    });
}

/// test_exit_during_result_pickle_on_worker
#[test]
fn an_exit_while_a_result_is_encoded_costs_one_task() {
    check(AtEncode, Accident::Exit, |outcome| {
        assert_eq!(death(outcome).exit_code, Some(1));
    });
}

/// test_error_during_result_pickle_on_worker
#[test]
fn a_result_that_cannot_be_encoded_fails_its_task() {
    for (accident, text) in
        [(Accident::Error, "an error on purpose"), (Accident::Panic, "a panic on purpose")]
    {
        check(AtEncode, accident, |outcome| {
            assert!(
                matches!(&outcome, Err(TaskError::Encode(reason)) if reason.contains(text)),
                "{outcome:?}"
            );
        });
    }
}

/// test_error_during_result_unpickle_in_result_handler
#[test]
fn a_result_that_cannot_be_decoded_here_fails_its_task() {
    check(AtDecode, Accident::Error, |outcome| {
        let text = "an error on purpose";
        assert!(matches!(&outcome, Err(TaskError::Decode(reason)) if reason.contains(text)), "{outcome:?}");
    });
}

/// test_exit_during_result_unpickle_in_result_handler: the nearest thing is a panic on the dispatcher's thread.
#[test]
fn a_panic_while_a_result_is_decoded_here_fails_its_task() {
    check(AtDecode, Accident::Panic, |outcome| {
        let text = "a panic on purpose";
        assert!(matches!(&outcome, Err(TaskError::Decode(reason)) if reason.contains(text)), "{outcome:?}");
    });
}

fn crash_after(ticket: String) {
    pass(ticket);
    crash();
}

/// test_shutdown_deadlock
#[test]
fn a_crash_after_the_shutdown_began_does_not_hang_it() {
    let _watchdog = Watchdog::start();
    let (pool, mut turnstile) = (pool(), Turnstile::new());
    let future = pool.submit(crash_after, turnstile.ticket());
    turnstile.wait_for_arrivals(1);
    let queued: Vec<_> = (0..10).map(|n| pool.submit(square, n)).collect();
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| pool.shutdown());
        eventually(|| is_shut_down(&pool));
        turnstile.open();
        assert!(shutdown.join().unwrap().is_complete());
    });
    assert_eq!(death(future.result()).signal, Some(Signal::SIGSEGV as i32));
    for (n, future) in (0..).zip(queued) {
        assert_eq!(future.result().unwrap(), n * n);
    }
}

/// test_shutdown_deadlock_pickle: arguments are encoded by the submit, so the failure is there before the shutdown.
#[test]
fn an_encode_failure_before_a_shutdown_nobody_waits_for_does_not_hang_it() {
    let _watchdog = Watchdog::start();
    let pool = pool();
    let future = pool.submit(drop::<AtEncode>, AtEncode(Accident::Error));
    assert!(future.is_done());
    pool.shutdown_background();
    assert!(matches!(future.result(), Err(TaskError::Encode(_))));
    drop(pool);
}

/// test_interpreter_pool and loky: test_queue_full_deadlock
#[test]
fn a_hundred_failures_to_encode_leave_no_place_taken() {
    let _watchdog = Watchdog::start();
    let pool = ProcessPoolExecutor::builder().max_workers(2).queue_capacity(2).build().unwrap();
    for _ in 0..100 {
        let outcome = pool.submit(drop::<AtEncode>, AtEncode(Accident::Error)).result();
        assert!(matches!(outcome, Err(TaskError::Encode(_))), "{outcome:?}");
    }
    let futures: Vec<_> = (0..100).map(|n| pool.submit(square, n)).collect();
    for (n, future) in (0..).zip(futures) {
        assert_eq!(future.result().unwrap(), n * n);
    }
}

/// Larger than what a socket holds.
fn big() -> String {
    "x".repeat(8 << 20)
}

/// test_crash_big_data
#[test]
fn a_crash_with_a_big_argument_costs_one_task() {
    check(
        |_: String| crash(),
        big(),
        |outcome: Result<(), _>| {
            assert_eq!(death(outcome).signal, Some(Signal::SIGSEGV as i32));
        },
    );
    check(
        |(_, _): (AtDecode, String)| (),
        (AtDecode(Accident::Crash), big()),
        |outcome| {
            assert_eq!(death(outcome).signal, Some(Signal::SIGSEGV as i32));
        },
    );
}

/// test_crash_big_data, while the argument is being written: the task had not begun, so it runs elsewhere.
#[test]
fn a_worker_killed_while_its_argument_is_written_costs_no_task() {
    let _watchdog = Watchdog::start();
    let pool = ProcessPoolExecutor::new(1).unwrap();
    let worker = pool.submit(|()| std::process::id(), ()).result().unwrap();
    let worker = Pid::from_raw(i32::try_from(worker).unwrap());
    kill(worker, Signal::SIGSTOP).unwrap();
    let future = pool.submit(|text: String| text.len(), big());
    let queued: Vec<TaskFuture<u64>> = (0..5).map(|n| pool.submit(square, n)).collect();
    assert!(!future.is_done());
    kill(worker, Signal::SIGKILL).unwrap();
    assert_eq!(future.result().unwrap(), 8 << 20);
    for (n, future) in (0..).zip(queued) {
        assert_eq!(future.result().unwrap(), n * n);
    }
}

/// test_gh105829_should_not_deadlock_if_wakeup_pipe_full
#[test]
fn submits_do_not_block_while_the_dispatcher_is_held_up() {
    let _watchdog = Watchdog::start();
    let (pool, gate, mut turnstile) = (pool(), Gate::new(), Turnstile::new());
    let first = pool.submit(pass, turnstile.ticket());
    turnstile.wait_for_arrivals(1);
    let hold = gate.clone();
    first.add_done_callback(move |_| hold.pass()); // on the dispatcher's thread
    turnstile.open();
    gate.wait_for_arrivals(1);
    let futures: Vec<_> = (0..10_000).map(|n| pool.submit(square, n)).collect();
    assert!(futures.iter().all(|future| !future.is_done()));
    gate.open();
    for (n, future) in (0..).zip(futures) {
        assert_eq!(future.result().unwrap(), n * n);
    }
}
