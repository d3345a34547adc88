//! `Fd`: descriptors go to workers and come back, and none is left anywhere.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use concurrent_futures::{Executor, Fd, ProcessPoolExecutor, Shared, TaskError, ThreadPoolExecutor};

use crate::scene::{Runs, assert_full, death, isolated, note};
use crate::support::{Turnstile, descriptors, eventually, pass};

fn pair() -> (UnixStream, Fd<UnixStream>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, Fd::new(theirs))
}

/// What comes until nobody holds the other side any more.
fn all_of(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn greet(mut stream: Fd<UnixStream>) -> u32 {
    stream.write_all(b"hello").unwrap();
    std::process::id()
}

fn open_there(_: ()) -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_stream_goes_there_and_a_file_comes_back() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let (before, there) = (descriptors(), pool.submit(open_there, ()).result().unwrap());
        let opened = descriptors();
        for _ in 0..50 {
            let (ours, theirs) = pair();
            assert_ne!(pool.submit(greet, theirs).result().unwrap(), std::process::id());
            assert_eq!(all_of(ours), "hello");
            let files = pool.submit(
                |text: String| -> Vec<Fd<File>> {
                    (0..3)
                        .map(|n| {
                            let (mut ours, theirs) = UnixStream::pair().unwrap();
                            write!(ours, "{text} {n}").unwrap();
                            Fd::new(File::from(OwnedFd::from(theirs)))
                        })
                        .collect()
                },
                "number".to_owned(),
            );
            for (n, file) in files.result().unwrap().into_iter().enumerate() {
                assert_eq!(std::io::read_to_string(file.into_inner()).unwrap(), format!("number {n}"));
            }
        }
        assert!(before <= opened);
        eventually(|| descriptors() == opened);
        assert_eq!(pool.submit(open_there, ()).result().unwrap(), there);
        assert_full(&pool, 1);
    });
}

#[test]
fn each_item_of_a_map_gets_its_own() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        for chunk_size in [1, 3, 50] {
            let (ours, theirs): (Vec<_>, Vec<_>) = (0..100).map(|_| pair()).unzip();
            let items = theirs.into_iter().enumerate();
            let mut done = pool
                .options()
                .chunk_size(chunk_size)
                .map(|(n, mut stream): (usize, Fd<UnixStream>)| write!(stream, "{n}").is_ok(), items);
            assert!(done.all(Result::unwrap));
            for (n, ours) in ours.into_iter().enumerate() {
                assert_eq!(all_of(ours), n.to_string());
            }
        }
        assert_full(&pool, 2);
    });
}

/// Cancelled, refused, lost with its worker before it was received or after, not decoded: it is closed everywhere, which
/// the other side of each stream sees.
#[test]
fn none_is_left_whatever_happens() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        assert_full(&pool, 1);
        let before = descriptors();
        let mut turnstile = Turnstile::new();
        let busy = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        let (cancelled, theirs) = pair();
        let future = pool.submit(greet, theirs);
        assert!(future.cancel());
        turnstile.open();
        busy.result().unwrap();
        drop(turnstile);
        assert_eq!(all_of(cancelled), "");

        let (ours, theirs) = pair();
        let died = pool.submit(|_: Fd<UnixStream>| -> u8 { std::process::abort() }, theirs);
        assert_eq!(death(died.result()).signal, Some(6));
        assert_eq!(all_of(ours), "");

        let (ours, theirs) = pair();
        let refused = pool.submit(|_: (Fd<UnixStream>, Picky)| (), (theirs, Picky));
        assert!(matches!(refused.result(), Err(TaskError::Decode(_))));
        assert_eq!(all_of(ours), "");

        let (ours, theirs) = pair();
        let not_sent = pool.submit(|_: (Fd<UnixStream>, Mute)| (), (theirs, Mute));
        assert!(matches!(not_sent.result(), Err(TaskError::Encode(_))));
        assert_eq!(all_of(ours), "");

        assert_full(&pool, 1);
        eventually(|| descriptors() == before);
        pool.shutdown();
        let (ours, theirs) = pair();
        assert!(matches!(pool.submit(greet, theirs).result(), Err(TaskError::ShutDown)));
        assert_eq!(all_of(ours), "");
    });
}

/// Cannot be decoded.
#[derive(serde::Serialize)]
struct Picky;

impl<'de> serde::Deserialize<'de> for Picky {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("not today"))
    }
}

/// Cannot be encoded.
#[derive(serde::Deserialize)]
struct Mute;

impl serde::Serialize for Mute {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("says nothing"))
    }
}

#[test]
fn a_second_attempt_has_it_again() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let runs = Runs::new();
        let (ours, theirs) = pair();
        let task = pool.options().retries(2).submit(
            |(runs, mut stream): (String, Fd<UnixStream>)| {
                note(&runs, 1);
                let attempt = std::fs::read(&runs).unwrap().len() / 16;
                write!(stream, "{attempt} ").unwrap();
                if attempt < 3 {
                    std::process::abort();
                }
            },
            (runs.ticket(), theirs),
        );
        task.result().unwrap();
        assert_eq!(all_of(ours), "1 2 3 ");
        assert_full(&pool, 2);
    });
}

/// A worker that may not have so many: the task fails, and what comes after it gets its own.
#[test]
fn a_worker_short_of_descriptors_fails_that_task() {
    isolated(|| {
        let pool = ProcessPoolExecutor::builder().max_workers(1).open_files_limit(12).build().unwrap();
        for _ in 0..3 {
            let (ours, theirs): (Vec<_>, Vec<_>) = (0..30).map(|_| pair()).unzip();
            let too_many = pool.submit(|streams: Vec<Fd<UnixStream>>| streams.len(), theirs).result();
            assert!(matches!(too_many, Err(TaskError::Decode(_))), "{too_many:?}");
            assert!(ours.into_iter().all(|ours| all_of(ours).is_empty()));
            let (ours, theirs) = pair();
            pool.submit(greet, theirs).result().unwrap();
            assert_eq!(all_of(ours), "hello");
        }
        assert_full(&pool, 1);
    });
}

#[test]
fn where_it_cannot_go_is_an_error() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let problem = serde_json::to_string(&pair().1).unwrap_err().to_string();
        assert!(problem.contains("worker process"), "{problem}");
        serde_json::from_str::<Fd<UnixStream>>("0").unwrap_err();
        let in_context = pool.submit_with(pair().1, |_, ()| (), ()).result();
        assert!(matches!(in_context, Err(TaskError::Encode(_))), "{in_context:?}");
        let many = (0..65).map(|_| pair().1).collect::<Vec<_>>();
        let too_many = pool.submit(|all: Vec<Fd<UnixStream>>| all.len(), many).result();
        assert!(matches!(too_many, Err(TaskError::Encode(_))), "{too_many:?}");
        let (ours, theirs) = pair();
        let threads = ThreadPoolExecutor::new(1).unwrap();
        assert_eq!(Executor::submit(&threads, greet, theirs).result().unwrap(), std::process::id());
        assert_eq!(all_of(ours), "hello");
        assert_full(&pool, 1);
    });
}

/// Quick ones are run many in a row: what one attaches is its own all the same.
#[test]
fn a_result_with_a_file_among_many_quick_ones_without() {
    fn now_and_then(n: u32) -> Option<Fd<File>> {
        (n % 500 == 499).then(|| Fd::new(File::open("/dev/null").unwrap()))
    }
    fn worker_made(n: u32) -> Option<Shared<[u8]>> {
        (n % 500 == 499).then(|| Shared::from_slice(&[1_u8]).unwrap())
    }
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        for (n, file) in (0..20_000).zip(pool.map(now_and_then, 0..20_000)) {
            let file = file.unwrap();
            assert_eq!(file.is_some(), n % 500 == 499, "{n}");
            assert!(file.is_none_or(|file| file.metadata().is_ok()), "{n}");
        }
        for (n, made) in (0..20_000).zip(pool.map(worker_made, 0..20_000)) {
            match made {
                Ok(None) => assert_ne!(n % 500, 499, "{n}"),
                Err(TaskError::Encode(_)) => assert_eq!(n % 500, 499, "{n}"),
                other => panic!("{n}: {other:?}"),
            }
        }
        assert_full(&pool, 2);
    });
}
