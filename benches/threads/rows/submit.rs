//! T1, T2, T3: tasks from one thread outside the pool.

use std::hint::black_box;
use std::time::{Duration, Instant};

use cf_benches::{Goal, Kind, Outcome, Row, Setting, Tally, Workload};

use super::{peers, with_python};
use crate::peers::{Micropool, Ours};
use crate::pool::{Pool, check, per_task};

pub(crate) fn workloads() -> Vec<Workload> {
    let many = Workload::row(
        "T1",
        "1,000,000 tiny tasks from outside, each with its future, read in order; a task",
        "ns",
        Goal::of_best(0.35),
    )
    .ours(with_futures::<Ours>);
    let many = peers!(many, with_futures: Rayon, RayonChannel, Threadpool, Hyper, ExecutorsChannel, ExecutorsStealing,
        TokioSpawn, TokioBlocking, SmolBlocking, Micropool, RustyPool, StdThreads);

    let unkept = Workload::row("T2", "the same with nothing kept; a task", "ns", Goal::of_best(0.9))
        .ours(nothing_kept::<Ours>);
    let unkept = peers!(unkept, nothing_kept: Rayon, Threadpool, Hyper, ExecutorsChannel, ExecutorsStealing,
        TokioSpawn, TokioBlocking, SmolBlocking, Micropool, RustyPool, StdThreads);

    let latency = Workload::new(
        "T3",
        [
            Row::new("T3a", "round trip on an idle pool, back to back, p50", "µs", Goal::of_best(1.0)),
            Row::new("T3b", "the same after the caller was busy for 200 µs, p50", "µs", Goal::of_best(1.0)),
        ],
    )
    .ours(round_trip::<Ours>)
    // Here the caller runs its task itself: nothing is handed over.
    .by(Kind::Aside, "micropool", round_trip::<Micropool>);
    let latency = peers!(latency, round_trip: Rayon, RayonChannel, Threadpool, Hyper, ExecutorsChannel,
        ExecutorsStealing, TokioSpawn, TokioBlocking, SmolBlocking, RustyPool, StdThreads);

    vec![with_python(many, "T1"), with_python(unkept, "T2"), with_python(latency, "T3")]
}

fn size<P: Pool>(setting: &Setting) -> u64 {
    setting.of(1_000_000, 5_000) / P::SCALE
}

pub(crate) fn with_futures<P: Pool>(setting: &Setting) -> Outcome {
    let (pool, n) = (P::warmed(setting.workers), size::<P>(setting));
    let start = Instant::now();
    let handles: Vec<_> = (0..n).map(|i| pool.submit(move || black_box(i + 1))).collect();
    let sum = pool.wait_all(handles);
    let elapsed = start.elapsed();
    check(sum, n * (n + 1) / 2);
    Ok(vec![per_task(elapsed, n)])
}

fn nothing_kept<P: Pool>(setting: &Setting) -> Outcome {
    let (pool, n) = (P::warmed(setting.workers), size::<P>(setting));
    let start = Instant::now();
    for i in 0..n {
        pool.spawn(move || {
            black_box(i);
            Tally::bump();
        });
    }
    Tally::wait_for(n);
    let elapsed = start.elapsed();
    check(Tally::total(), n);
    Ok(vec![per_task(elapsed, n)])
}

fn round_trip<P: Pool>(setting: &Setting) -> Outcome {
    let pool = P::warmed(setting.workers);
    let back_to_back = rounds(&pool, setting.of(20_000, 200) / P::SCALE.min(10), Duration::ZERO);
    let after_pause = rounds(&pool, setting.of(1_500, 50), Duration::from_micros(200));
    Ok(vec![back_to_back, after_pause])
}

/// The median round trip in microseconds.
fn rounds<P: Pool>(pool: &P, n: u64, pause: Duration) -> f64 {
    let mut times: Vec<Duration> = (0..n)
        .map(|i| {
            let pause_start = Instant::now();
            while pause_start.elapsed() < pause {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            let value = pool.wait(pool.submit(move || black_box(i)));
            let elapsed = start.elapsed();
            check(value, i);
            elapsed
        })
        .collect();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}
