//! T7: several threads submit at once.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use cf_benches::{Goal, Outcome, Setting, Tally, Workload};

use super::peers;
use crate::peers::Ours;
use crate::pool::{Pool, check, per_task};

const PRODUCERS: u64 = 4;

pub(crate) fn workloads() -> Vec<Workload> {
    let workload = Workload::row(
        "T7",
        "4 producers, 250,000 tasks each, nothing kept; a task",
        "ns",
        Goal::of_best(1.0),
    )
    .ours(produce::<Ours>);
    vec![peers!(workload, produce: Rayon, Threadpool, Hyper, ExecutorsChannel, ExecutorsStealing, TokioSpawn,
        TokioBlocking, SmolBlocking, Micropool, RustyPool)]
}

fn produce<P: Pool>(setting: &Setting) -> Outcome {
    let (pool, each) = (P::warmed(setting.workers), setting.of(250_000, 2_000));
    let gate = Barrier::new(usize::try_from(PRODUCERS).unwrap_or(0) + 1);
    let elapsed = thread::scope(|s| {
        for _ in 0..PRODUCERS {
            s.spawn(|| {
                gate.wait();
                for i in 0..each {
                    pool.spawn(move || {
                        black_box(i);
                        Tally::bump();
                    });
                }
            });
        }
        gate.wait();
        let start = Instant::now();
        Tally::wait_for(PRODUCERS * each);
        start.elapsed()
    });
    check(Tally::total(), PRODUCERS * each);
    Ok(vec![per_task(elapsed, PRODUCERS * each)])
}
