//! S5, S9, S13: how workers start, are called, sleep and end; what is left of pools, and what they cost at rest.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use concurrent_futures::{TaskError, ThreadPoolExecutor};
use nix::sys::resource::{UsageWho, getrusage};

use crate::support::{Gate, Watchdog, descriptors, eventually, in_own_process, threads};

const LIMIT: Duration = Duration::from_secs(40);

/// As many tasks at the same time as there are workers.
fn all_at_once(pool: &ThreadPoolExecutor, count: usize) -> BTreeSet<String> {
    let all = Arc::new(Barrier::new(count));
    let futures: Vec<_> = (0..count)
        .map(|_| {
            let all = Arc::clone(&all);
            pool.spawn(move || {
                all.wait();
                std::thread::current().name().unwrap().to_owned()
            })
        })
        .collect();
    futures.into_iter().map(|future| future.result().unwrap()).collect()
}

#[test]
fn workers_are_called_by_prefix_and_index() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::builder().max_workers(4).name_prefix("press").build().unwrap();
    assert!(pool.workers().is_empty(), "they start when they are needed");
    let expected: BTreeSet<_> = (0..4).map(|n| format!("press-{n}")).collect();
    assert_eq!(all_at_once(&pool, 4), expected);
    assert_eq!(
        pool.workers().iter().map(|worker| worker.name.clone()).collect::<Vec<_>>(),
        Vec::from_iter(expected)
    );
    // Without a prefix: the pool's own number in it.
    let names = all_at_once(&ThreadPoolExecutor::new(2).unwrap(), 2);
    let prefix: BTreeSet<_> = names.iter().map(|name| name.rsplit_once('-').unwrap().0).collect();
    assert_eq!(prefix.len(), 1, "{names:?}");
    let number = prefix.first().unwrap().strip_prefix("ThreadPoolExecutor-").unwrap();
    assert!(number.parse::<u32>().is_ok(), "{names:?}");
    assert!(names.iter().any(|name| name.ends_with("-0")) && names.iter().any(|name| name.ends_with("-1")));
}

#[test]
fn workers_tell_what_they_run_and_for_how_long() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::builder().max_workers(2).name_prefix("w").build().unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let (passes, inside) = (gate.clone(), pool.clone());
    let labelled = pool.options().label("deep").submit(move |()| passes.pass(), ());
    gate.wait_for_arrivals(1);
    let start = Instant::now();
    let passes = gate.clone();
    let nested = pool.spawn(move || {
        let inner = inside.clone();
        let awaited = inside.options().label("inner").submit(
            move |()| {
                passes.pass();
                inner.workers()
            },
            (),
        );
        let during = awaited.result().unwrap(); // in place
        (during, inside.workers())
    });
    gate.wait_for_arrivals(2);
    while start.elapsed() < Duration::from_millis(5) {
        std::hint::spin_loop();
    }
    let workers = pool.workers();
    assert_eq!(workers.len(), 2, "{workers:?}");
    let deep = workers.iter().find(|worker| worker.label.as_deref() == Some("deep")).unwrap();
    assert!(deep.is_busy && deep.busy_for.unwrap() >= Duration::from_millis(5), "{deep:?}");
    let ids: BTreeSet<_> = workers.iter().map(|worker| worker.id).collect();
    let all: BTreeSet<_> = threads().into_iter().collect();
    assert!(ids.len() == 2 && ids.is_subset(&all), "{ids:?} of {all:?}");
    gate.open();
    labelled.result().unwrap();
    let (during, after) = nested.result().unwrap();
    assert!(during.iter().any(|worker| worker.label.as_deref() == Some("inner")), "{during:?}");
    assert!(after.iter().all(|worker| worker.label.as_deref() != Some("inner")), "{after:?}");
    eventually(|| pool.workers().iter().all(|worker| !worker.is_busy && worker.label.is_none()));
}

/// S5: an idle worker is used before a new one is started.
#[test]
fn an_idle_worker_is_used_before_a_new_one_is_started() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(8).unwrap();
    for _ in 0..200 {
        pool.spawn(|| ()).result().unwrap();
        let workers = pool.stats().workers;
        eventually(|| pool.stats().idle_workers == workers);
    }
    assert_eq!(pool.stats().workers, 1);
}

/// S5: never more tasks at the same time than workers, however they come. A task that has waited and goes on is one more
/// for the moment.
#[test]
fn no_more_tasks_run_at_once_than_there_are_workers() {
    let _watchdog = Watchdog::start();
    for workers in [1, 3] {
        let pool = ThreadPoolExecutor::new(workers).unwrap();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = {
            let most = Arc::clone(&most);
            move |_: u32| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                (0..20).for_each(|_| std::thread::yield_now());
                now.fetch_sub(1, Ordering::SeqCst);
            }
        };
        let futures: Vec<_> = (0..300).map(|n| pool.submit(work.clone(), n)).collect();
        pool.options().chunk_size(1).map(work.clone(), 0..300).for_each(|result| result.unwrap());
        let (inside, works) = (pool.clone(), work.clone());
        let inner = pool.spawn(move || (0..100).map(|n| inside.submit(works.clone(), n)).collect::<Vec<_>>());
        inner.result().unwrap().into_iter().for_each(|future| future.result().unwrap());
        futures.into_iter().for_each(|future| future.result().unwrap());
        assert_eq!(most.load(Ordering::SeqCst), workers);
        let inside = pool.clone();
        pool.spawn(move || {
            let futures: Vec<_> = (0..100).map(|n| inside.submit(work.clone(), n)).collect();
            futures.into_iter().for_each(|future| future.result().unwrap());
        })
        .result()
        .unwrap();
        assert!(most.load(Ordering::SeqCst) <= workers + 1);
    }
}

/// A worker that has nothing to do ends after its time, and a later task starts one under the same name.
#[test]
fn idle_workers_end_after_keep_alive() {
    let _watchdog = Watchdog::start();
    let limit = Duration::from_millis(50);
    let (started, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (starts, ends) = (Arc::clone(&started), Arc::clone(&ended));
    let pool = ThreadPoolExecutor::builder()
        .max_workers(3)
        .name_prefix("k")
        .keep_alive(limit)
        .initializer(move || {
            starts.fetch_add(1, Ordering::SeqCst);
        })
        .on_worker_exit(move || {
            ends.fetch_add(1, Ordering::SeqCst);
        })
        .build()
        .unwrap();
    for round in 1..=2 {
        let start = Instant::now();
        let names = all_at_once(&pool, 3);
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), ["k-0", "k-1", "k-2"]);
        eventually(|| pool.stats().workers == 0);
        assert!(start.elapsed() >= limit);
        assert!(pool.workers().is_empty());
        assert_eq!(started.load(Ordering::SeqCst), 3 * round);
        eventually(|| ended.load(Ordering::SeqCst) == 3 * round);
    }
    pool.shutdown();
    assert_eq!(ended.load(Ordering::SeqCst), 6);
}

/// Without `keep_alive` workers stay; spare ones go all the same.
#[test]
fn spare_workers_end_and_the_others_stay() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let (inside, passes) = (pool.clone(), gate.clone());
            pool.spawn(move || inside.blocking(|| passes.pass()))
        })
        .collect();
    gate.wait_for_arrivals(10);
    let stats = pool.stats();
    assert!(stats.workers >= 10 && stats.blocked_workers == 10, "{stats:?}");
    gate.open();
    waiting.into_iter().for_each(|future| future.result().unwrap());
    eventually(|| pool.stats().workers <= 2);
    let names: Vec<_> = pool.workers().into_iter().map(|worker| worker.name).collect();
    assert!(names.iter().all(|name| name.ends_with("-0") || name.ends_with("-1")), "{names:?}");
    assert_eq!(all_at_once(&pool, 2).len(), 2);
}

/// The initializer runs once on each worker before its first task; the exit hook once after its last.
#[test]
fn hooks_run_once_on_each_worker() {
    thread_local! {
        static INITIALIZED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    let _watchdog = Watchdog::start();
    for workers in [1, 2, 8] {
        let (started, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (starts, ends) = (Arc::clone(&started), Arc::clone(&ended));
        let pool = ThreadPoolExecutor::builder()
            .max_workers(workers)
            .initializer(move || {
                INITIALIZED.set(INITIALIZED.get() + 1);
                starts.fetch_add(1, Ordering::SeqCst);
            })
            .on_worker_exit(move || {
                assert_eq!(INITIALIZED.get(), 1);
                ends.fetch_add(1, Ordering::SeqCst);
            })
            .build()
            .unwrap();
        let counts: Vec<_> = (0..200).map(|_| pool.spawn(|| INITIALIZED.get())).collect();
        assert!(counts.into_iter().all(|count| count.result().unwrap() == 1));
        all_at_once(&pool, workers);
        assert_eq!(started.load(Ordering::SeqCst), workers);
        assert_eq!(ended.load(Ordering::SeqCst), 0);
        pool.shutdown();
        assert_eq!((started.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)), (workers, workers));
    }
}

/// S5: on demand: one task starts one worker, however long that takes to initialize itself.
#[test]
fn one_task_starts_one_worker() {
    let _watchdog = Watchdog::start();
    for _ in 0..20 {
        let count = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&count);
        let pool = ThreadPoolExecutor::builder()
            .max_workers(8)
            .initializer(move || {
                counts.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5)); // the work itself
            })
            .build()
            .unwrap();
        pool.spawn(|| ()).result().unwrap();
        pool.shutdown();
        assert_eq!(count.load(Ordering::SeqCst), 1, "initializers for one task");
    }
}

/// S9: an initializer that fails on the third worker: what runs ends, what waits and what comes later is told.
#[test]
fn a_later_initializer_that_fails_breaks_the_pool() {
    in_own_process(LIMIT, || {
        let count = AtomicUsize::new(0);
        let pool = ThreadPoolExecutor::builder()
            .max_workers(3)
            .initializer(move || {
                if count.fetch_add(1, Ordering::SeqCst) == 2 { Err("no third licence") } else { Ok(()) }
            })
            .build()
            .unwrap();
        let gate = Gate::new();
        let running: Vec<_> = (0..2)
            .map(|n| {
                let passes = gate.clone();
                let future = pool.spawn(move || passes.pass());
                gate.wait_for_arrivals(n + 1);
                future
            })
            .collect();
        let waiting: Vec<_> = (0..5).map(|n| pool.submit(|n: u32| n, n)).collect();
        for future in waiting {
            let outcome = future.result();
            let Err(TaskError::Broken(reason)) = outcome else { panic!("{outcome:?}") };
            assert!(reason.contains("no third licence"), "{reason}");
        }
        let later = pool.try_submit(|n: u32| n, 1).unwrap_err();
        assert!(later.to_string().contains("no third licence"), "{later}");
        gate.open();
        running.into_iter().for_each(|future| future.result().unwrap());
        assert!(pool.shutdown().is_complete());
    });
}

/// S13: nothing is left of pools that are gone.
#[test]
fn a_thousand_pools_leave_nothing_behind() {
    in_own_process(LIMIT, || {
        let make = |n: u64| {
            let builder = ThreadPoolExecutor::builder().max_workers(2);
            let pool = if n.is_multiple_of(2) { builder } else { builder.keep_alive(Duration::ZERO) }
                .build()
                .unwrap();
            assert_eq!(pool.submit(|n: u64| n, n).result().unwrap(), n);
            match n % 5 {
                0 => drop(pool.options().timeout(Duration::from_secs(60)).submit(|()| (), ())),
                1 => {
                    let inside = pool.clone();
                    drop(pool.spawn(move || inside.map(|n: u32| n, 0..10).count()));
                }
                2 => drop(pool.map(|n: u64| n, 0..)),
                3 => {
                    let inside = pool.clone();
                    pool.spawn(move || inside.blocking(|| ())).wait();
                }
                _ => {
                    pool.shutdown_now();
                }
            }
        };
        (0..10).for_each(make); // what is made once stays
        eventually(|| threads().len() <= 2);
        let (threads_before, descriptors_before) = (threads().len(), descriptors());
        (0..1_000).for_each(make);
        // A pool whose last handle went inside a task ends a moment later.
        eventually(|| threads().len() <= threads_before);
        assert_eq!(descriptors(), descriptors_before);
    });
}

/// Processor time this process has used.
fn used() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| {
            let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
            Duration::from_micros(u64::try_from(micros).unwrap())
        })
        .sum()
}

/// S13: idle pools use no processor time, whatever they did before.
#[test]
fn idle_pools_use_no_processor_time() {
    in_own_process(LIMIT, || {
        let plain = ThreadPoolExecutor::new(32).unwrap();
        all_at_once(&plain, 32);
        let limited = ThreadPoolExecutor::builder()
            .max_workers(4)
            .keep_alive(Duration::from_secs(3_600))
            .queue_capacity(8)
            .build()
            .unwrap();
        all_at_once(&limited, 4);
        limited.options().timeout(Duration::from_secs(3_600)).submit(|()| (), ()).result().unwrap();
        let stuck = ThreadPoolExecutor::new(1).unwrap();
        let gate = Gate::new();
        let (passes, inside) = (gate.clone(), stuck.clone());
        let running = stuck.spawn(move || inside.blocking(|| passes.pass()));
        let waiting = std::thread::spawn(move || running.result());
        gate.wait_for_arrivals(1);
        eventually(|| plain.stats().idle_workers == 32 && limited.stats().idle_workers == 4);
        let (start, before) = (Instant::now(), used());
        while start.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(250)); // the second that is measured
        }
        let spent = used() - before;
        gate.open();
        waiting.join().unwrap().unwrap();
        assert!(spent < Duration::from_millis(50), "{spent:?} in a second of rest");
    });
}

/// A thousand workers that sleep at the same time, twice: as many threads, and no more time than a few sleeps.
#[test]
fn a_thousand_workers_sleep_at_the_same_time() {
    in_own_process(LIMIT, || {
        const WORKERS: usize = 1_000;
        let nap = Duration::from_millis(50);
        let pool = ThreadPoolExecutor::builder().max_workers(WORKERS).stack_size(64 * 1024).build().unwrap();
        for round in ["first", "second"] {
            let start = Instant::now();
            let gate = Gate::new();
            let futures: Vec<_> = (0..WORKERS)
                .map(|_| {
                    let passes = gate.clone();
                    pool.spawn(move || {
                        passes.pass();
                        std::thread::sleep(nap); // the work itself
                    })
                })
                .collect();
            gate.wait_for_arrivals(WORKERS); // all of them, before any has ended
            gate.open();
            futures.into_iter().for_each(|future| future.result().unwrap());
            assert!(start.elapsed() >= nap);
            println!("{round} burst: {:?}", start.elapsed());
            assert_eq!(pool.stats().workers, WORKERS);
        }
        let start = Instant::now();
        assert!(pool.shutdown().is_complete());
        println!("shutdown: {:?}", start.elapsed());
        eventually(|| threads().len() <= 2);
    });
}

/// A worker that has ended may still be in the destructors of its thread-locals: a shutdown waits for these too, however
/// many have ended since.
#[test]
fn a_shutdown_waits_for_the_thread_locals_of_workers_that_ended_long_ago() {
    struct Lingers(Gate);
    impl Drop for Lingers {
        fn drop(&mut self) {
            self.0.pass();
        }
    }
    thread_local! {
        static LINGERS: std::cell::RefCell<Option<Lingers>> = const { std::cell::RefCell::new(None) };
    }
    let _watchdog = Watchdog::start();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let pool =
        ThreadPoolExecutor::builder().max_workers(1).keep_alive(Duration::from_micros(1)).build().unwrap();
    let lingers = Lingers(gate.clone());
    pool.spawn(move || LINGERS.with(|slot| slot.replace(Some(lingers)))).result().unwrap();
    gate.wait_for_arrivals(1);
    for _ in 0..60 {
        pool.spawn(|| ()).result().unwrap();
        eventually(|| pool.stats().workers == 0);
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let ending = std::thread::spawn(move || {
        let report = pool.shutdown();
        sender.send(()).unwrap();
        report
    });
    assert!(receiver.recv_timeout(Duration::from_millis(200)).is_err(), "a thread of the pool is not gone");
    gate.open();
    assert!(ending.join().unwrap().is_complete());
}
