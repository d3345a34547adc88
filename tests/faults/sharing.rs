//! `Shared`: one copy for all workers, which nobody can write to, and of which nothing is left.

use std::fs;

use concurrent_futures::{Executor, ProcessPoolExecutor, Shared, TaskError, ThreadPoolExecutor};
use nix::libc;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::procfs::workers;
use crate::scene::{assert_full, death, isolated, kill};
use crate::support::{Turnstile, eventually, pass};

/// How much memory of this kind a process has, in bytes; what it shares counts by its share with `Pss_Shmem`.
fn memory(pid: u32, kind: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with(kind)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// How many descriptors and mappings of shared data a process has.
fn traces(pid: u32) -> usize {
    let is_one = |text: &str| text.contains("memfd:shared");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let files = files.filter(|file| fs::read_link(file.path()).is_ok_and(|to| is_one(&to.to_string_lossy())));
    maps.lines().filter(|line| is_one(line)).count() + files.count()
}

fn sum((ticket, table): (String, Shared<[u64]>)) -> u64 {
    let sum = table.iter().sum();
    pass(&ticket);
    sum
}

#[test]
fn four_workers_that_read_a_table_hold_it_once() {
    isolated(|| {
        const SIZE: usize = 32 << 20;
        let pool = ProcessPoolExecutor::new(4).unwrap();
        let table = Shared::from_slice(&vec![1_u64; SIZE / 8]).unwrap();
        let mut turnstile = Turnstile::new();
        let sums: Vec<_> = (0..4).map(|_| pool.submit(sum, (turnstile.ticket(), table.clone()))).collect();
        turnstile.wait_for_arrivals(4);
        let mut all = workers();
        assert!(all.iter().all(|pid| memory(*pid, "Rss") >= SIZE), "every worker has read all of it");
        assert!(all.iter().all(|pid| memory(*pid, "Private_Dirty") < SIZE / 4), "and copied none");
        all.push(std::process::id());
        let held: usize = all.iter().map(|pid| memory(*pid, "Pss_Shmem")).sum();
        assert!(held < SIZE + SIZE / 4, "{held} bytes");
        turnstile.open();
        assert!(sums.into_iter().all(|sum| sum.result().unwrap() == (SIZE / 8) as u64));
        assert_full(&pool, 4);
    });
}

#[test]
fn workers_that_come_later_have_it_too() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let words = Shared::new(vec!["a".to_owned(), "b".to_owned()]).unwrap();
        for round in 0..3 {
            let word = pool.submit(
                |(words, n): (Shared<Vec<String>>, usize)| words[n].clone(),
                (words.clone(), round % 2),
            );
            assert_eq!(word.result().unwrap(), ["a", "b"][round % 2]);
            drop(death(pool.submit(|()| -> u8 { std::process::abort() }, ()).result()));
        }
        assert_full(&pool, 1);
    });
}

/// Neither by a pointer nor after asking for the right to.
#[test]
fn an_attempt_to_write_kills_the_writer_alone() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let bytes = Shared::from_slice(&[7_u8; 10_000]).unwrap();
        let mut turnstile = Turnstile::new();
        let reader = pool.submit(
            |(ticket, bytes): (String, Shared<[u8]>)| {
                pass(&ticket);
                bytes.iter().all(|byte| *byte == 7)
            },
            (turnstile.ticket(), bytes.clone()),
        );
        turnstile.wait_for_arrivals(1);
        for asks_first in [false, true] {
            let writer = pool.submit(
                |(asks_first, bytes): (bool, Shared<[u8]>)| {
                    let place = bytes.as_ptr().cast_mut();
                    if asks_first {
                        // SAFETY: it is refused.
                        let refused =
                            unsafe { libc::mprotect(place.cast(), 4096, libc::PROT_READ | libc::PROT_WRITE) };
                        assert_eq!(refused, -1);
                    }
                    // SAFETY: none: this is the fault.
                    unsafe { place.write_volatile(8) };
                },
                (asks_first, bytes.clone()),
            );
            assert_eq!(death(writer.result()).signal, Some(libc::SIGSEGV));
        }
        turnstile.open();
        assert!(reader.result().unwrap());
        assert!(bytes.iter().all(|byte| *byte == 7));
        assert_full(&pool, 2);
    });
}

#[test]
fn nothing_is_left_after_the_last_handle() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        for _ in 0..20 {
            let bytes = Shared::from_slice(&[1_u8; 5_000]).unwrap();
            let copy = bytes.clone();
            let sizes: Vec<_> =
                (0..10).map(|_| pool.submit(|bytes: Shared<[u8]>| bytes.len(), bytes.clone())).collect();
            drop(bytes);
            assert!(sizes.into_iter().all(|size| size.result().unwrap() == 5_000));
            assert_eq!(copy.len(), 5_000);
        }
        eventually(|| traces(std::process::id()) == 0);
        eventually(|| workers().into_iter().all(|pid| traces(pid) == 0));
        // Of one that was never read, and of one whose worker is gone.
        let bytes = Shared::from_slice(&[1_u8; 5_000]).unwrap();
        let size = pool.submit(|bytes: Shared<[u8]>| bytes.len(), bytes.clone());
        workers().into_iter().for_each(|pid| kill(pid, Signal::SIGKILL));
        drop(bytes);
        let _ = size.result();
        eventually(|| traces(std::process::id()) == 0);
        assert_full(&pool, 2);
    });
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Query {
    table: Shared<[u32]>,
    also: Option<Box<Shared<[u32]>>>,
    place: usize,
}

fn both(query: Query) -> u32 {
    query.table[query.place] + query.also.map_or(0, |also| also[query.place])
}

fn answers(pool: &impl Executor) {
    let table = Shared::from_slice(&(0..1_000).collect::<Vec<u32>>()).unwrap();
    let also = Some(Box::new(Shared::from_slice(&vec![1_u32; 1_000]).unwrap()));
    let queries = (0..1_000).map(|place| Query { table: table.clone(), also: also.clone(), place });
    let found: Result<Vec<u32>, _> = pool.map(both, queries).collect();
    assert_eq!(found.unwrap(), (1..=1_000).collect::<Vec<_>>());
    let context = Query { table, also, place: 0 };
    let found =
        pool.map_with(context, |query, place: usize| both(Query { place, ..query.clone() }), 0..1_000);
    assert_eq!(found.sum::<Result<u32, _>>().unwrap(), 500_500);
    let empty = Shared::from_slice(&[0_u8; 0]).unwrap();
    assert_eq!(pool.submit(|empty: Shared<[u8]>| empty.len(), empty).result().unwrap(), 0);
}

#[test]
fn in_structures_and_contexts_on_both_executors() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        answers(&pool);
        assert_full(&pool, 2);
        answers(&ThreadPoolExecutor::new(2).unwrap());
    });
}

#[test]
fn a_value_is_decoded_once_in_each_worker() {
    static DECODED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

    #[derive(Serialize)]
    struct Counted(u8);

    impl<'de> Deserialize<'de> for Counted {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            DECODED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            u8::deserialize(deserializer).map(Counted)
        }
    }

    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let value = Shared::new(Counted(5)).unwrap();
        let counts = pool.map(
            |value: Shared<Counted>| (value.0, DECODED.load(std::sync::atomic::Ordering::Relaxed)),
            (0..200).map(|_| value.clone()),
        );
        assert!(counts.map(Result::unwrap).all(|count| count == (5, 1)));
        assert_eq!(DECODED.load(std::sync::atomic::Ordering::Relaxed), 0, "not here");
    });
}

#[test]
fn where_it_cannot_go_is_an_error() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let bytes = Shared::from_slice(&[1_u8, 2]).unwrap();
        let problem = serde_json::to_string(&bytes).unwrap_err().to_string();
        assert!(problem.contains("worker process"), "{problem}");
        serde_json::from_str::<Shared<[u8]>>("17").unwrap_err();
        let made_there = pool.submit(|()| Shared::from_slice(&[3_u8]).unwrap(), ()).result();
        assert!(matches!(made_there, Err(TaskError::Encode(_))), "{made_there:?}");
        let nested = Shared::new(bytes.clone()).unwrap_err().to_string();
        assert!(nested.contains("data alone"), "{nested}");
        // One that came from here may come back.
        assert_eq!(*pool.submit(|bytes: Shared<[u8]>| bytes, bytes).result().unwrap(), [1, 2]);
        assert_full(&pool, 1);
    });
}
