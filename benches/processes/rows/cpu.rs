//! P7: the tutorials' CPU-bound tables, by the time of an ideal pool: the serial time of the same tasks, measured just
//! before, shared by the workers. Python is measured against its own serial loop.

use std::num::NonZero;
use std::thread;
use std::time::Instant;

use cf_benches::{Goal, Kind, Outcome, Setting, Spin, Workload};

use super::{float, with_python};
use crate::farm::{Farm, burn};
use crate::peers::{OurThreads, Ours, Procspawn, Zygotes};

/// Of one task: 100 million rounds of the tutorials' loop take about as long.
const TASK_US: f64 = 100_000.0;

pub(crate) fn workloads() -> Vec<Workload> {
    [("P7a", 4), ("P7b", 12)]
        .map(|(id, tasks)| {
            let what = format!(
                "{tasks} CPU-bound tasks of 100 ms, start and end included, by the time of an ideal pool"
            );
            Workload::row(id, what, "× ideal", Goal::bound(1.0 / 0.97))
                .ours(move |setting| measure(setting, tasks, |args| pooled::<Ours>(setting, args)))
                .by(Kind::Aside, "our threads", move |setting| {
                    measure(setting, tasks, |args| pooled::<OurThreads>(setting, args))
                })
                .peer("procspawn", move |setting| {
                    measure(setting, tasks, |args| pooled::<Procspawn>(setting, args))
                })
                .peer("zygote", move |setting| {
                    measure(setting, tasks, |args| Zygotes::start(setting.workers).each(burn, args))
                })
                .peer("python-futures", move |setting| with_python(setting, id, "futures"))
                .peer("python-pool", move |setting| with_python(setting, id, "pool"))
                .by(Kind::Aside, "python-threads", move |setting| with_python(setting, id, "threads"))
        })
        .into()
}

fn pooled<F: Farm>(setting: &Setting, args: &[(u64, u64)]) -> Vec<u64> {
    F::build(setting.workers).each(burn, args.iter().copied())
}

fn measure(setting: &Setting, tasks: u64, run: impl Fn(&[(u64, u64)]) -> Vec<u64>) -> Outcome {
    let rounds = Spin::calibrate().rounds(setting.of(TASK_US, TASK_US / 50.0));
    let args: Vec<(u64, u64)> = (0..tasks).map(|seed| (seed, rounds)).collect();
    let start = Instant::now();
    let mut expected: Vec<u64> = args.iter().map(|arg| burn(*arg)).collect();
    let serial = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut values = run(&args);
    let elapsed = start.elapsed().as_secs_f64();
    expected.sort_unstable();
    values.sort_unstable(); // whoever has no pool gives them in no order
    assert!(values == expected, "wrong result");
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let workers = setting.workers.min(cores);
    Ok(vec![elapsed / (serial / float(u64::try_from(workers).unwrap_or(1)))])
}
