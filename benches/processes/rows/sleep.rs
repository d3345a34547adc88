//! P6: tasks that sleep 2 s, a worker each, the pool's life included.

use std::time::{Duration, Instant};

use cf_benches::{Failure, Goal, Kind, Outcome, Setting, Workload};

use super::with_python;
use crate::farm::{Farm, stay};
use crate::peers::{OurThreads, Ours, Procspawn, Zygotes};

pub(crate) fn workloads() -> Vec<Workload> {
    let workload = |id, tasks: usize, quick, goal| {
        Workload::row(
            id,
            format!("{tasks} tasks that sleep 2 s, a worker each, start and end included"),
            "s",
            goal,
        )
        .workers(tasks, quick)
        .limit(Duration::from_secs(60))
        .ours(sleep::<Ours>)
        .by(Kind::Aside, "our threads", sleep::<OurThreads>)
        .peer("zygote", sleep_zygotes)
    };
    let few = workload("P6a", 400, 8, Goal::bound(2.1))
        .peer("procspawn", sleep::<Procspawn>)
        .peer("python-futures", |setting| with_python(setting, "P6a", "futures"))
        .peer("python-pool", |setting| with_python(setting, "P6a", "pool"));
    vec![few, workload("P6b", 4_000, 16, Goal::bound(3.5))]
}

fn nap(setting: &Setting) -> u64 {
    setting.of(2_000, 100)
}

fn sleep<F: Farm>(setting: &Setting) -> Outcome {
    let start = Instant::now();
    let pool = F::build(setting.workers);
    let handles: Vec<_> = (0..setting.workers).map(|_| pool.submit(stay, nap(setting))).collect();
    let stays: Result<Vec<_>, String> = handles.into_iter().map(F::wait).collect();
    drop(pool);
    let elapsed = start.elapsed();
    assert_eq!(stays.map_err(Failure::Failed)?.len(), setting.workers, "wrong result");
    Ok(vec![elapsed.as_secs_f64()])
}

fn sleep_zygotes(setting: &Setting) -> Outcome {
    let start = Instant::now();
    let processes = Zygotes::start(setting.workers);
    let stays = processes.all(stay, &nap(setting));
    drop(processes);
    let elapsed = start.elapsed();
    assert_eq!(stays.len(), setting.workers, "wrong result");
    Ok(vec![elapsed.as_secs_f64()])
}
