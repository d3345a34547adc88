//! Workers that say on their socket what no worker says: it costs them alone.

use std::time::Duration;

use concurrent_futures::{Executor, ProcessPoolExecutor};
use nix::libc;

use crate::procfs::{sockets, state_of, workers};
use crate::scene::{
    Runs, assert_full, assert_timed_out, death, forever, isolated, note, replace_workers, spin,
};
use crate::support::eventually;

/// The header of a frame, as `wire.rs` has it.
fn header(kind: u8, status: u8, number: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![kind, status, 0, 0, 0, 0, 0, 0];
    for word in [number, length, 0] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes
}

const REPLY: u8 = 7;

/// Writes to what should be the worker's connection.
fn say(bytes: &[u8]) {
    for socket in sockets() {
        // SAFETY: the bytes are there.
        let written = unsafe { libc::write(socket, bytes.as_ptr().cast(), bytes.len()) };
        assert!(written > 0);
    }
}

/// Runs `liar` among honest tasks of the same pool. Those its worker has begun meanwhile may be lost with it; nothing
/// runs twice, nothing else is lost, and the worker is replaced even if the lie was answered.
fn among_others<R: concurrent_futures::Payload>(
    liar: fn(u64) -> R,
) -> Result<R, concurrent_futures::TaskError> {
    let pool = ProcessPoolExecutor::new(2).unwrap();
    assert_full(&pool, 2);
    let before = workers();
    let runs = Runs::new();
    let honest = |task: u64| {
        pool.submit(
            |(ticket, task): (String, u64)| {
                note(&ticket, task);
                spin(Duration::from_micros(20));
                task
            },
            (runs.ticket(), task),
        )
    };
    let mut futures: Vec<_> = (0..30).map(honest).collect();
    let lie = pool.submit(liar, 0);
    futures.extend((30..60).map(honest));
    let outcome = lie.result();
    let mut lost = 0;
    for (task, future) in (0..).zip(futures) {
        match future.result() {
            Ok(value) => assert_eq!((value, runs.of(task).len()), (task, 1)),
            // It had begun in the same worker, which nobody believes any more.
            outcome => {
                assert_eq!(death(outcome).signal, Some(libc::SIGKILL));
                lost += 1;
            }
        }
    }
    // What a worker holds beyond the task it is at is about 100 µs of work.
    assert!(lost <= 10, "{lost} neighbours lost");
    runs.assert_none_twice();
    assert_full(&pool, 2);
    assert_eq!(before.len(), 2);
    eventually(|| before.iter().any(|pid| state_of(*pid).is_none()));
    outcome
}

/// What came of a task that lied and returned: its answer may have been taken out of the shared memory before the lie was
/// read from the socket, or else its worker was killed for it.
#[track_caller]
fn assert_found_out<R: std::fmt::Debug>(outcome: Result<R, concurrent_futures::TaskError>) {
    if outcome.is_err() {
        assert_eq!(death(outcome).signal, Some(libc::SIGKILL));
    }
}

#[test]
fn text_on_the_socket() {
    isolated(|| {
        let outcome = among_others(|_| say(b"hello, is this the standard output? it is not, is it?"));
        assert_found_out(outcome);
    });
}

/// Shorter than a header: what is wrong shows when more has come.
#[test]
fn a_few_bytes_on_the_socket() {
    isolated(|| {
        let outcome = among_others(|_| say(b"hi"));
        assert_found_out(outcome);
    });
}

#[test]
fn a_frame_longer_than_anything_allowed() {
    isolated(|| {
        let outcome = among_others(|_| say(&header(REPLY, 0, 1, u64::MAX - 31)));
        assert_found_out(outcome);
    });
}

#[test]
fn a_frame_only_the_parent_sends() {
    isolated(|| {
        for kind in [1, 2, 3, 4, 5, 6, 8, 10, 11, 13] {
            let outcome = match kind {
                1 => among_others(|_| say(&header(1, 0, 1, 0))),
                2 => among_others(|_| say(&header(2, 0, 1, 0))),
                3 => among_others(|_| say(&header(3, 0, 1, 0))),
                4 => among_others(|_| say(&header(4, 0, 1, 0))),
                5 => among_others(|_| say(&header(5, 0, 1, 0))),
                6 => among_others(|_| say(&header(6, 0, 1, 0))),
                8 => among_others(|_| say(&header(8, 0, 1, 0))),
                10 => among_others(|_| say(&header(10, 0, 1, 0))),
                11 => among_others(|_| say(&header(11, 0, 1, 0))),
                _ => among_others(|_| say(&header(13, 0, 1, 0))),
            };
            assert_found_out(outcome);
        }
    });
}

#[test]
fn a_reply_for_a_task_that_was_never_handed_out() {
    isolated(|| {
        let outcome = among_others(|_| say(&header(REPLY, 0, 1 << 40, 0)));
        assert_found_out(outcome);
    });
}

/// The beginning of a long reply to another task. It can be known for what it is without the rest, which never comes.
#[test]
fn the_beginning_of_a_reply_for_another_task() {
    isolated(|| {
        let outcome = among_others(|_| {
            say(&header(REPLY, 0, 1 << 40, 1_000_000));
            forever::<()>()
        });
        assert_eq!(death(outcome).signal, Some(libc::SIGKILL));
    });
}

/// A worker that answers twice: the answer that is read first counts, the other is its end.
#[test]
fn two_replies_to_one_task() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        // The first task of a worker has the number 1.
        let outcome = pool
            .submit(
                |()| {
                    let mut reply = header(REPLY, 0, 1, 1);
                    reply.push(42);
                    say(&reply);
                    41_u8
                },
                (),
            )
            .result();
        assert!(matches!(outcome, Ok(41 | 42)), "{outcome:?}");
        replace_workers(&pool); // the second reply may still be on its way
        assert_full(&pool, 1);
    });
}

/// What a worker makes of the type of a result is checked, too.
#[test]
fn a_result_of_another_type() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let outcome = pool
            .submit(
                |()| {
                    let mut reply = header(REPLY, 0, 1, 3);
                    reply.extend_from_slice(&[9, 0xff, 0xff]);
                    say(&reply);
                    forever::<String>()
                },
                (),
            )
            .result();
        assert!(matches!(outcome, Err(concurrent_futures::TaskError::Decode(_))), "{outcome:?}");
        pool.kill_workers();
    });
}

/// A forged reply header swallows the true replies behind it, so several tasks have begun and are not answered when the
/// worker is found out. None of them may run again.
#[test]
fn tasks_whose_replies_were_swallowed_do_not_run_again() {
    isolated(|| {
        fn swallowed((ticket, task): (String, u64)) -> u64 {
            note(&ticket, task);
            if task == 1000 {
                // This worker's own number for it is known from how many it has had: it has kept count.
                let number = std::fs::read(&ticket).unwrap().len() as u64 / 16;
                say(&header(REPLY, 0, number, 10_000));
            }
            task
        }
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        // The pool learns that these are quick, and hands over several at once.
        for task in 0..300 {
            let _ = pool.submit(swallowed, (runs.ticket(), task)).result();
        }
        let mut futures =
            vec![pool.options().timeout(Duration::from_millis(200)).submit(swallowed, (runs.ticket(), 1000))];
        futures.extend((1001..1040).map(|task| pool.submit(swallowed, (runs.ticket(), task))));
        for future in futures {
            match future.result() {
                Ok(_)
                | Err(
                    concurrent_futures::TaskError::TimedOut | concurrent_futures::TaskError::WorkerDied(_),
                ) => {}
                Err(other) => panic!("{other}"),
            }
        }
        runs.assert_none_twice();
        assert_full(&pool, 1);
    });
}

#[test]
fn a_socket_closed_in_the_middle_of_a_task() {
    isolated(|| {
        let outcome = among_others(|_| {
            for socket in sockets() {
                // SAFETY: closes what the worker holds: that is the fault.
                unsafe { libc::close(socket) };
            }
            forever::<()>()
        });
        assert_eq!(death(outcome).signal, Some(libc::SIGKILL));
    });
}

#[test]
fn a_socket_closed_by_a_task_that_returns() {
    isolated(|| {
        assert_found_out(among_others(|_| {
            for socket in sockets() {
                // SAFETY: as above.
                unsafe { libc::close(socket) };
            }
        }));
    });
}

/// The worker answers, and takes nothing more.
#[test]
fn a_socket_shut_down_for_reading() {
    isolated(|| {
        let outcome = among_others(|_| {
            for socket in sockets() {
                // SAFETY: no memory is involved.
                unsafe { libc::shutdown(socket, libc::SHUT_RD) };
            }
        });
        if outcome.is_err() {
            drop(death(outcome));
        }
    });
}

/// A worker that stops with a large argument half read.
#[test]
fn a_worker_that_stops_reading_costs_its_own_task() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let stopped = pool.options().timeout(Duration::from_millis(300)).submit(
            |()| {
                // SAFETY: stops this process.
                unsafe { libc::raise(libc::SIGSTOP) };
            },
            (),
        );
        let large: Vec<_> =
            (0..8).map(|_| pool.submit(|bytes: Vec<u8>| bytes.len(), vec![1; 1 << 20])).collect();
        for future in large {
            assert_eq!(future.result().unwrap(), 1 << 20);
        }
        assert_timed_out(stopped.result());
        assert_full(&pool, 2);
    });
}

#[test]
fn random_bytes_on_the_socket() {
    isolated(|| {
        for _ in 0..15 {
            let outcome = among_others(|_| {
                let mut bytes = vec![0; 500];
                std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut bytes)
                    .unwrap();
                bytes[0] |= 0x80;
                say(&bytes);
            });
            assert_found_out(outcome);
        }
    });
}

/// Into its ring and its control words, which the parent reads; the worker finds them where they are mapped.
#[test]
fn random_words_in_the_shared_memory() {
    isolated(|| {
        for _ in 0..10 {
            let outcome = among_others(|_| {
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                let line = maps.lines().find(|line| line.contains("memfd:worker-page")).unwrap();
                let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
                let address = |text| usize::from_str_radix(text, 16).unwrap();
                let words = (address(start)..address(end)).step_by(8);
                let mut noise = std::fs::File::open("/dev/urandom").unwrap();
                for place in words {
                    let mut word = [0; 8];
                    std::io::Read::read_exact(&mut noise, &mut word).unwrap();
                    let place: *mut u64 = std::ptr::with_exposed_provenance_mut(place);
                    // SAFETY: mapped, writable, and nothing but words; that they are not its own is the fault.
                    unsafe { place.write_volatile(u64::from_ne_bytes(word)) };
                }
            });
            assert_found_out(outcome);
        }
    });
}
