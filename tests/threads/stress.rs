//! Everything at once, for a few seconds: submitters, cancellers, waiters, maps, waits inside tasks, time limits and
//! shutdown storms, on 1 to 64 workers, bounded and not.
//!
//! Every future resolves, every probe that was made is dropped once, and the counters add up. The seed is printed;
//! `CONCURRENT_FUTURES_TEST_SEED` replays it (the choices, not the interleaving), and
//! `CONCURRENT_FUTURES_TEST_SECONDS` makes it last longer.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use concurrent_futures::{
    ReturnWhen, ShutdownReport, SubmitError, TaskError, TaskFuture, ThreadPoolExecutor, as_completed,
    as_completed_timeout, current_task, wait,
};

use crate::support::{Probe, Random, Tally, Watchdog};

/// How long each test goes on, in debug and release builds alike.
fn seconds() -> f64 {
    std::env::var("CONCURRENT_FUTURES_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0)
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    workers: usize,
    capacity: Option<usize>,
    keep_alive: Option<Duration>,
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for workers in [1, 2, 3, 8, 64] {
        for capacity in [None, Some(1), Some(16)] {
            let keep_alive = (workers % 2 == 0).then_some(Duration::from_micros(200));
            shapes.push(Shape { workers, capacity, keep_alive });
        }
    }
    shapes
}

fn build(shape: Shape) -> ThreadPoolExecutor {
    let mut builder = ThreadPoolExecutor::builder()
        .max_workers(shape.workers)
        .stack_size(256 * 1024)
        .panic_handler(|report| assert_eq!(report.message, "by intention"));
    if let Some(places) = shape.capacity {
        builder = builder.queue_capacity(places);
    }
    if let Some(limit) = shape.keep_alive {
        builder = builder.keep_alive(limit);
    }
    builder.build().unwrap()
}

/// What the outcomes were, of futures whose outcome was looked at.
#[derive(Debug, Default)]
struct Ledger {
    values: AtomicU64,
    panics: AtomicU64,
    cancelled: AtomicU64,
    late: AtomicU64,
    refused: AtomicU64,
    deadlocks: AtomicU64,
}

impl Ledger {
    fn enter<T>(&self, outcome: &Result<T, TaskError>) {
        let count = match outcome {
            Ok(_) => &self.values,
            Err(TaskError::Panicked(report)) => {
                assert_eq!(report.message, "by intention");
                &self.panics
            }
            Err(TaskError::Cancelled) => &self.cancelled,
            Err(TaskError::TimedOut) => &self.late,
            Err(TaskError::ShutDown) => &self.refused,
            Err(TaskError::Deadlock(_)) => &self.deadlocks,
            Err(error) => panic!("{error}"),
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a scene's threads and tasks share.
struct Scene {
    pool: ThreadPoolExecutor,
    tally: Tally,
    ledger: Ledger,
    /// Futures for others to cancel, wait for, or drop.
    exchange: Mutex<Vec<Arc<TaskFuture<Probe>>>>,
    accepted: AtomicU64,
    called: AtomicU64,
    callbacks: AtomicU64,
    stop: AtomicBool,
}

/// Panics without the hook's output.
fn panic_quietly() -> ! {
    resume_unwind(Box::new("by intention"))
}

impl Scene {
    fn new(shape: Shape) -> Arc<Self> {
        Arc::new(Self {
            pool: build(shape),
            tally: Tally::local(),
            ledger: Ledger::default(),
            exchange: Mutex::new(Vec::new()),
            accepted: AtomicU64::new(0),
            called: AtomicU64::new(0),
            callbacks: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Some task, by some way.
    fn submit(self: &Arc<Self>, random: &mut Random, depth: u32) -> TaskFuture<Probe> {
        let probe = self.tally.carrying(random.below(1_000));
        let (scene, mut inner) = (Arc::clone(self), random.fork());
        let work = move |probe: Probe| scene.work(&mut inner, depth, probe);
        let future = match random.below(8) {
            0 => {
                self.pool.options().priority(i32::try_from(random.below(5)).unwrap() - 2).submit(work, probe)
            }
            1 => {
                let limit = Duration::from_micros(random.below(300));
                self.pool.options().timeout(limit).submit(work, probe)
            }
            2 => {
                let limit = Instant::now() + Duration::from_micros(random.below(2_000));
                self.pool.options().deadline(limit).timeout(Duration::from_millis(1)).submit(work, probe)
            }
            3 => match self.pool.try_submit(work, probe) {
                Ok(future) => future,
                Err(
                    SubmitError::Full { function, argument } | SubmitError::ShutDown { function, argument },
                ) => self.pool.submit(function, argument),
                Err(error) => panic!("{error}"),
            },
            _ => self.pool.submit(work, probe),
        };
        self.accepted.fetch_add(1, Ordering::Relaxed);
        if random.below(3) == 0 {
            self.callbacks.fetch_add(1, Ordering::Relaxed);
            let (scene, probe) = (Arc::clone(self), self.tally.probe());
            let is_bad = random.below(10) == 0;
            future.add_done_callback(move |_| {
                drop(probe);
                scene.called.fetch_add(1, Ordering::Relaxed);
                if is_bad {
                    panic_quietly();
                }
            });
        }
        future
    }

    /// What a task does.
    fn work(self: &Arc<Self>, random: &mut Random, depth: u32, probe: Probe) -> Probe {
        for _ in 0..random.below(50) {
            std::hint::spin_loop();
        }
        match random.below(if depth == 0 { 6 } else { 16 }) {
            0 => panic_quietly(),
            1 => (0..random.below(20)).for_each(|_| std::thread::yield_now()),
            2 => {
                let token = current_task().unwrap();
                for _ in 0..random.below(200) {
                    if token.is_cancelled() {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
            3..6 => {}
            6 => drop(self.submit(random, depth - 1)),
            7 | 8 => {
                let futures: Vec<_> = (0..random.below(4)).map(|_| self.submit(random, depth - 1)).collect();
                for future in futures {
                    self.ledger.enter(&future.result());
                }
            }
            9 => {
                let futures: Vec<_> = (0..random.below(4)).map(|_| self.submit(random, depth - 1)).collect();
                for future in as_completed(futures) {
                    self.ledger.enter(&future.result());
                }
            }
            10 => {
                let futures: Vec<_> = (0..random.below(4)).map(|_| self.submit(random, depth - 1)).collect();
                let when = [ReturnWhen::FirstCompleted, ReturnWhen::FirstError, ReturnWhen::AllCompleted];
                wait(&futures, when[usize::try_from(random.below(3)).unwrap()], None);
            }
            11 => {
                let mut future = self.submit(random, depth - 1);
                let limit = Duration::from_micros(random.below(500));
                self.ledger.enter(&future.result_timeout(limit));
            }
            12 => self.pool.blocking(std::thread::yield_now),
            13 => self.map(random),
            14 => self.others(random),
            _ => {
                let future = self.submit(random, depth - 1).cancel_on_drop();
                std::thread::yield_now();
                drop(future);
            }
        }
        probe
    }

    fn map(self: &Arc<Self>, random: &mut Random) {
        let tally = self.tally.clone();
        let items = (0..random.below(30)).map(move |n| tally.carrying(n));
        let mut options = self.pool.options();
        if random.below(2) == 0 {
            options = options.chunk_size(1 + usize::try_from(random.below(5)).unwrap());
        }
        if random.below(2) == 0 {
            options = options.buffer_size(1 + usize::try_from(random.below(9)).unwrap());
        }
        if random.below(2) == 0 {
            options = options.unordered();
        }
        let map = options.map(
            |probe: Probe| {
                if probe.number == 13 {
                    panic_quietly();
                }
                probe
            },
            items,
        );
        let some = usize::try_from(random.below(40)).unwrap();
        for outcome in map.take(some) {
            self.ledger.enter(&outcome);
        }
    }

    /// Something with the futures of others.
    fn others(self: &Arc<Self>, random: &mut Random) {
        let other = {
            let mut exchange = self.exchange.lock().unwrap();
            if exchange.is_empty() {
                return;
            }
            let index = usize::try_from(random.below(exchange.len() as u64)).unwrap();
            if random.below(2) == 0 { exchange.swap_remove(index) } else { Arc::clone(&exchange[index]) }
        };
        match random.below(5) {
            0 => drop(other.cancel()),
            1 => drop(other.abort()),
            2 => drop(other.wait_timeout(Duration::from_micros(random.below(300)))),
            3 => {
                self.callbacks.fetch_add(1, Ordering::Relaxed);
                let scene = Arc::clone(self);
                other.add_done_callback(move |_| {
                    scene.called.fetch_add(1, Ordering::Relaxed);
                });
            }
            _ => drop(format!("{other:?}")),
        }
    }

    /// What a thread outside does.
    fn act(self: &Arc<Self>, random: &mut Random) {
        match random.below(12) {
            0..3 => {
                let future = Arc::new(self.submit(random, 3));
                let mut exchange = self.exchange.lock().unwrap();
                exchange.push(future);
                let oldest = (exchange.len() > 32).then(|| exchange.swap_remove(0));
                drop(exchange);
                drop(oldest);
            }
            3..6 => self.others(random),
            6 => self.ledger.enter(&self.submit(random, 3).result()),
            7 => {
                let futures: Vec<_> = (0..random.below(10)).map(|_| self.submit(random, 2)).collect();
                for future in &futures {
                    if random.below(3) == 0 {
                        future.cancel();
                    }
                }
                for future in as_completed(futures) {
                    assert!(future.is_done());
                    self.ledger.enter(&future.result());
                }
            }
            8 => {
                let futures: Vec<_> = (0..random.below(10)).map(|_| self.submit(random, 2)).collect();
                let limit = Duration::from_micros(random.below(1_000));
                for future in as_completed_timeout(futures, limit).flatten() {
                    self.ledger.enter(&future.result());
                }
            }
            9 => self.map(random),
            10 => {
                let stats = self.pool.stats();
                assert_eq!(stats.submitted, stats.queued + stats.running + stats.finished, "{stats:?}");
                assert!(self.pool.workers().len() < 10_000);
            }
            _ => {
                let futures: Vec<_> = (0..random.below(6)).map(|_| self.submit(random, 2)).collect();
                let waited = wait(&futures, ReturnWhen::AllCompleted, None);
                assert!(waited.not_done.is_empty());
                for future in futures {
                    self.ledger.enter(&future.result());
                }
            }
        }
    }

    /// After a shutdown that waited: nothing is left, whoever looks.
    fn check(self: Arc<Self>, report: ShutdownReport, what: &str) -> String {
        assert!(report.is_complete(), "{what}: {report}");
        let futures = std::mem::take(&mut *self.exchange.lock().unwrap());
        for future in futures {
            assert!(future.is_done(), "{what}: {future:?}");
        }
        let stats = self.pool.stats();
        assert_eq!((stats.queued, stats.running, stats.workers), (0, 0, 0), "{what}: {stats:?}");
        assert_eq!(stats.submitted, stats.finished, "{what}: {stats:?}");
        assert!(self.pool.workers().is_empty(), "{what}");
        let (called, callbacks) = (&self.called, &self.callbacks);
        assert_eq!(called.load(Ordering::Relaxed), callbacks.load(Ordering::Relaxed), "{what}: callbacks");
        let summary = format!("{stats:?} {:?}", self.ledger);
        let Ok(Self { pool, tally, .. }) = Arc::try_unwrap(self).map_err(|scene| Arc::strong_count(&scene))
        else {
            panic!("{what}: somebody still has the scene");
        };
        drop(pool);
        let (created, dropped) = tally.counts();
        assert_eq!(created, dropped, "{what}: probes created and dropped");
        summary
    }
}

/// A few hundred milliseconds of everything on one long-lived pool of each shape, then a shutdown.
#[test]
fn everything_at_once_on_long_lived_pools() {
    let watchdog = Watchdog::with_limit(Duration::from_secs_f64(60.0 + 4.0 * seconds()));
    let mut random = Random::seeded("everything_at_once_on_long_lived_pools");
    let shapes = shapes();
    let each = Duration::from_secs_f64(2.0 * seconds() / shapes.len() as f64);
    for shape in shapes {
        let scene = Scene::new(shape);
        let there = Arc::downgrade(&scene);
        watchdog.asks(move || {
            there.upgrade().map_or_else(String::new, |scene| {
                format!("{shape:?}: {:?} {:?} {:?}", scene.pool.stats(), scene.pool.workers(), scene.ledger)
            })
        });
        let until = Instant::now() + each;
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (scene, mut random) = (Arc::clone(&scene), random.fork());
                std::thread::spawn(move || {
                    while Instant::now() < until && !scene.stop.load(Ordering::Relaxed) {
                        scene.act(&mut random);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let report = scene.pool.shutdown();
        let summary = scene.check(report, &format!("{shape:?}"));
        println!("{shape:?}: {summary}");
    }
}

/// Short-lived pools, ended in the middle of it all, by several threads and in every manner at once.
#[test]
fn shutdown_storms() {
    let watchdog = Watchdog::with_limit(Duration::from_secs_f64(60.0 + 4.0 * seconds()));
    let mut random = Random::seeded("shutdown_storms");
    let (shapes, until) = (shapes(), Instant::now() + Duration::from_secs_f64(2.0 * seconds()));
    let current: Arc<Mutex<std::sync::Weak<Scene>>> = Arc::default();
    let there = Arc::clone(&current);
    watchdog.asks(move || {
        let scene = there.lock().unwrap().upgrade();
        scene.map_or_else(String::new, |scene| {
            format!("{:?} {:?} {:?}", scene.pool.stats(), scene.pool.workers(), scene.ledger)
        })
    });
    let mut storms = 0;
    while Instant::now() < until {
        let shape = shapes[usize::try_from(random.below(shapes.len() as u64)).unwrap()];
        let scene = Scene::new(shape);
        *current.lock().unwrap() = Arc::downgrade(&scene);
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (scene, mut random) = (Arc::clone(&scene), random.fork());
                std::thread::spawn(move || {
                    while !scene.stop.load(Ordering::Relaxed) {
                        scene.act(&mut random);
                    }
                })
            })
            .collect();
        let enders: Vec<_> = (0..1 + random.below(3))
            .map(|_| {
                let (scene, mut random) = (Arc::clone(&scene), random.fork());
                std::thread::spawn(move || {
                    (0..random.below(2_000)).for_each(|_| std::hint::spin_loop());
                    match random.below(6) {
                        0 => drop(scene.pool.shutdown_now()),
                        1 => drop(scene.pool.shutdown_timeout(Duration::from_micros(random.below(500)))),
                        2 => scene.pool.shutdown_background(),
                        3 => {
                            let inside = scene.pool.clone();
                            drop(scene.pool.spawn(move || inside.shutdown()));
                        }
                        4 => {
                            let inside = scene.pool.clone();
                            scene.pool.spawn(|| ()).add_done_callback(move |_| {
                                inside.shutdown();
                            });
                        }
                        _ => drop(scene.pool.shutdown()),
                    }
                })
            })
            .collect();
        for ender in enders {
            ender.join().unwrap();
        }
        let report = scene.pool.shutdown();
        assert_eq!(scene.pool.stats().workers, 0, "{shape:?}: {report}");
        scene.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
        scene.check(report, &format!("storm {storms} on {shape:?}"));
        storms += 1;
    }
    println!("{storms} storms");
}

/// Waits on each other's tasks across pools, from threads and tasks alike: every wait ends, in a value or in `Deadlock`.
#[test]
fn waits_across_pools_end() {
    let _watchdog = Watchdog::with_limit(Duration::from_secs_f64(60.0 + 2.0 * seconds()));
    let mut random = Random::seeded("waits_across_pools_end");
    let until = Instant::now() + Duration::from_secs_f64(seconds());
    let (mut rounds, mut rings) = (0, 0);
    while Instant::now() < until {
        let pools: Vec<_> = (0..1 + random.below(3))
            .map(|_| ThreadPoolExecutor::new(1 + usize::try_from(random.below(3)).unwrap()).unwrap())
            .collect();
        let count = 2 + usize::try_from(random.below(6)).unwrap();
        // Each task takes the future of one other, perhaps in a ring, and waits for it.
        let slots: Arc<Vec<Mutex<Option<TaskFuture<u32>>>>> =
            Arc::new((0..count).map(|_| Mutex::new(None)).collect());
        let deadlocks = Arc::new(AtomicU64::new(0));
        let start = crate::support::Gate::new();
        for me in 0..count {
            let target = usize::try_from(random.below(count as u64)).unwrap();
            let (slots_there, start, deadlocks, way) =
                (Arc::clone(&slots), start.clone(), Arc::clone(&deadlocks), random.below(3));
            let pool = &pools[usize::try_from(random.below(pools.len() as u64)).unwrap()];
            let inside = pool.clone();
            let future = pool.spawn(move || {
                inside.blocking(|| start.pass()); // all of them are there, on workers and spares
                let Some(other) = slots_there[target].lock().unwrap().take() else { return 1 };
                let outcome = match way {
                    0 => other.result(),
                    1 => {
                        wait([&other], ReturnWhen::AllCompleted, None);
                        other.result()
                    }
                    _ => as_completed([other]).next().map_or(Ok(0), |other| other.result()),
                };
                match outcome {
                    Ok(value) => value + 1,
                    Err(TaskError::Deadlock(_)) => {
                        deadlocks.fetch_add(1, Ordering::Relaxed);
                        1
                    }
                    Err(error) => panic!("{error}"),
                }
            });
            *slots[me].lock().unwrap() = Some(future);
        }
        start.open();
        for slot in &*slots {
            let left = slot.lock().unwrap().take();
            if let Some(future) = left {
                assert!(future.result().unwrap() >= 1);
            }
        }
        for pool in pools {
            assert!(pool.shutdown().is_complete());
        }
        rounds += 1;
        rings += deadlocks.load(Ordering::Relaxed);
    }
    println!("{rounds} rounds, {rings} rings");
}
