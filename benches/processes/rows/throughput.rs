//! P1: no-op tasks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use cf_benches::{Failure, Goal, Outcome, Row, Setting, Workload};
use zygote::Zygote;

use super::{float, with_python};
use crate::farm::{Farm, check, increment};
use crate::peers::{Caller, Ours, Procspawn, Tarnish};

pub(crate) fn workloads() -> Vec<Workload> {
    let submit = Row::new(
        "P1a",
        "no-op tasks, submit each, collect in order",
        "M/s",
        Goal::bound(1.5).and_of_best(1.5),
    );
    let map = Row::new("P1b", "no-op items by map, chunks chosen by the pool", "M/s", Goal::bound(50.0));
    vec![
        Workload::new("P1a", [submit.more_is_better()])
            .ours(|setting| submit_each::<Ours>(setting, 200_000))
            .peer("procspawn", |setting| submit_each::<Procspawn>(setting, 20_000))
            .peer("zygote", |setting| call_each::<Zygote>(setting, 50_000))
            .peer("tarnish", |setting| call_each::<Tarnish>(setting, 200_000))
            .peer("python-futures", |setting| with_python(setting, "P1a", "futures"))
            .peer("python-pool", |setting| with_python(setting, "P1a", "pool")),
        Workload::new("P1b", [map.more_is_better()])
            .ours(our_map)
            .peer("python-futures", |setting| with_python(setting, "P1b", "futures"))
            .peer("python-pool", |setting| with_python(setting, "P1b", "pool")),
    ]
}

fn submit_each<F: Farm>(setting: &Setting, tasks: u64) -> Outcome {
    let n = setting.of(tasks, 2_000);
    let pool = F::build(setting.workers);
    pool.each(increment, 0..1_000);
    let start = Instant::now();
    let results = pool.each(increment, 0..n);
    let elapsed = start.elapsed();
    check(results.into_iter().sum(), n * (n + 1) / 2);
    Ok(vec![float(n) / elapsed.as_secs_f64() / 1e6])
}

/// Two threads for each process, so that one request waits at the process while another is answered. A call locks its
/// process as a pool would have to.
fn call_each<C: Caller + 'static>(setting: &Setting, tasks: u64) -> Outcome {
    use std::sync::Mutex;
    let n = setting.of(tasks, 2_000);
    let callers: Vec<_> = (0..setting.workers).map(|_| Mutex::new(C::start())).collect();
    let sum = AtomicU64::new(0);
    let next = AtomicU64::new(0);
    let lock = |caller: &Mutex<C>, i| caller.lock().map(|mut caller| caller.increment(i)).unwrap_or_default();
    for caller in &callers {
        check(lock(caller, 1), 2);
    }
    let start = Instant::now();
    thread::scope(|s| {
        for caller in callers.iter().chain(&callers) {
            s.spawn(|| {
                let mut part = 0;
                loop {
                    // ORDERING: Relaxed, a number each; the scope's end orders the sums.
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        break;
                    }
                    part += lock(caller, i);
                }
                sum.fetch_add(part, Ordering::Relaxed);
            });
        }
    });
    let elapsed = start.elapsed();
    check(sum.load(Ordering::Relaxed), n * (n + 1) / 2);
    Ok(vec![float(n) / elapsed.as_secs_f64() / 1e6])
}

fn our_map(setting: &Setting) -> Outcome {
    let n = setting.of(1_000_000, 20_000);
    let pool = Ours::build(setting.workers).0;
    let run = |n: u64| -> Result<u64, Failure> {
        pool.map(increment, 0..n)
            .try_fold(0, |sum, result| result.map(|value| sum + value))
            .map_err(|error| Failure::Failed(error.to_string()))
    };
    run(n / 10)?;
    let start = Instant::now();
    let sum = run(n)?;
    let elapsed = start.elapsed();
    check(sum, n * (n + 1) / 2);
    Ok(vec![float(n) / elapsed.as_secs_f64() / 1e6])
}
