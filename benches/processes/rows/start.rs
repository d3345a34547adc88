//! P4: from nothing until every worker has given its first result, and what a worker weighs.
//!
//! Every first task keeps its worker busy until all of them can have started, so a pool that would give two tasks to one
//! worker is found out by its process ids. The time is that from before the pool to the beginning of the last task, on a
//! clock both sides share.

use std::collections::BTreeSet;
use std::time::Duration;

use cf_benches::{Failure, Goal, Outcome, Row, Setting, Workload, now_ns, pss_kib};

use super::{float, with_python};
use crate::farm::{Farm, Stay, stay};
use crate::peers::{Ours, Procspawn, Zygotes};

/// Row, workers, in a quick run, milliseconds of the first task, goals in milliseconds and KiB.
const SIZES: [(&str, usize, usize, u64, f64, f64); 3] = [
    ("P4a", 2, 2, 200, 2.5, f64::NAN),
    ("P4b", 400, 8, 2_000, 80.0, 150.0),
    ("P4c", 4_000, 16, 8_000, 1_500.0, 150.0),
];

pub(crate) fn workloads() -> Vec<Workload> {
    let workload =
        |(id, workers, quick, ms, goal_ms, goal_kib): (&'static str, usize, usize, u64, f64, f64)| {
            let weight = if goal_kib.is_nan() { Goal::default() } else { Goal::bound(goal_kib) };
            let rows = [
                Row::new(
                    id,
                    format!("until {workers} workers have begun their first task"),
                    "ms",
                    Goal::bound(goal_ms),
                ),
                Row::new(
                    format!("{id}m"),
                    format!("memory of each of {workers} workers (PSS)"),
                    "KiB",
                    weight,
                ),
            ];
            let all = Workload::new(id, rows)
                .workers(workers, quick)
                .limit(Duration::from_secs(60))
                .ours(move |setting| start::<Ours>(setting, ms))
                .peer("zygote", move |setting| start_zygotes(setting, ms));
            if workers > 1_000 {
                return all; // the others need minutes or a thread for each
            }
            all.peer("procspawn", move |setting| start::<Procspawn>(setting, ms))
                .peer("python-futures", move |setting| with_python(setting, id, "futures"))
                .peer("python-pool", move |setting| with_python(setting, id, "pool"))
                .peer("python-forkserver", move |setting| with_python(setting, id, "forkserver"))
        };
    SIZES.map(workload).into()
}

fn start<F: Farm>(setting: &Setting, ms: u64) -> Outcome {
    let ms = setting.of(ms, 200);
    let began = now_ns();
    let pool = F::build(setting.workers);
    let handles: Vec<_> = (0..setting.workers).map(|_| pool.submit(stay, ms)).collect();
    let stays: Result<Vec<Stay>, String> = handles.into_iter().map(F::wait).collect();
    figures(began, setting.workers, &stays.map_err(Failure::Failed)?)
}

fn start_zygotes(setting: &Setting, ms: u64) -> Outcome {
    let ms = setting.of(ms, 200);
    let began = now_ns();
    let processes = Zygotes::start(setting.workers);
    let stays = processes.all(stay, &ms);
    figures(began, setting.workers, &stays)
}

fn figures(began_ns: u64, workers: usize, stays: &[Stay]) -> Outcome {
    let processes: BTreeSet<u32> = stays.iter().map(|stay| stay.process).collect();
    if processes.len() != workers {
        return Err(Failure::Failed(format!("{} workers took the first {workers} tasks", processes.len())));
    }
    let last = stays.iter().map(|stay| stay.began_ns).max().unwrap_or(0);
    // Reading a map costs about as much as forking: some stand for all.
    let step = processes.len().div_ceil(40);
    let weights: Vec<f64> = processes.iter().step_by(step).map(|process| pss_kib(*process)).collect();
    let weight = weights.iter().sum::<f64>() / float(u64::try_from(weights.len()).unwrap_or(1));
    Ok(vec![float(last.saturating_sub(began_ns)) / 1e6, weight])
}
