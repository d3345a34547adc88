//! P2 and P5: how long one task takes, and a worker's replacement.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use cf_benches::{Failure, Goal, Kind, Outcome, Row, Setting, Workload};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zygote::Zygote;

use super::{median_us, with_python};
use crate::farm::{Farm, check, increment, stay};
use crate::limits::{PingPong, fork_and_wait};
use crate::peers::{Ask, Caller, Ours, Procspawn, Tarnish};

pub(crate) fn workloads() -> Vec<Workload> {
    let goal = Goal { of_limit: Some(1.3), of_best: Some(1.0), bound: None };
    let round_trip = Workload::new(
        "P2",
        [
            Row::new("P2a", "round trip of one no-op after 2 ms of rest, p50", "µs", goal),
            Row::new("P2b", "the same back to back, p50", "µs", goal),
        ],
    )
    .ours(pooled::<Ours>)
    .peer("procspawn", pooled::<Procspawn>)
    .peer("python-futures", |setting| with_python(setting, "P2", "futures"))
    .peer("python-pool", |setting| with_python(setting, "P2", "pool"))
    .by(Kind::Aside, "zygote", called::<Zygote>)
    .by(Kind::Aside, "tarnish", called::<Tarnish>)
    .by(Kind::Limit, "socket pair", |setting| {
        let mut pair = PingPong::start().map_err(failed)?;
        rounds(setting, |_| pair.round().map_err(failed))
    });
    let replaced = Workload::row(
        "P5",
        "an idle worker is killed: until its replacement's first result",
        "ms",
        Goal::bound(1.0),
    )
    .ours(replacement::<Ours>)
    .peer("procspawn", replacement::<Procspawn>)
    .peer("tarnish", tarnish_replacement)
    .by(Kind::Limit, "fork+wait", |setting| {
        let times: nix::Result<Vec<_>> = (0..setting.of(50, 5)).map(|_| fork_and_wait()).collect();
        Ok(vec![median_us(times.map_err(|error| failed(error.into()))?) / 1e3])
    });
    vec![round_trip, replaced]
}

fn failed(error: io::Error) -> Failure {
    Failure::Failed(error.to_string())
}

fn pooled<F: Farm>(setting: &Setting) -> Outcome {
    let pool = F::build(setting.workers);
    pool.each(increment, 0..1_000);
    rounds(setting, |i| {
        check(pool.call(increment, i), i + 1);
        Ok(())
    })
}

fn called<C: Caller>(setting: &Setting) -> Outcome {
    let mut process = C::start();
    rounds(setting, |i| {
        check(process.increment(i), i + 1);
        Ok(())
    })
}

/// The medians after a rest and without.
fn rounds(setting: &Setting, mut round: impl FnMut(u64) -> Result<(), Failure>) -> Outcome {
    for i in 0..500 {
        round(i)?;
    }
    let mut timed = |n: u64, rest: Duration| -> Result<f64, Failure> {
        let mut times = Vec::new();
        for i in 0..n {
            if !rest.is_zero() {
                thread::sleep(rest);
            }
            let start = Instant::now();
            round(i)?;
            times.push(start.elapsed());
        }
        Ok(median_us(times))
    };
    let rested = timed(setting.of(500, 20), Duration::from_millis(2))?;
    let back_to_back = timed(setting.of(10_000, 200), Duration::ZERO)?;
    Ok(vec![rested, back_to_back])
}

/// Failed tasks on the way are the pool's way to notice; the time runs on.
fn replacement<F: Farm>(setting: &Setting) -> Outcome {
    let pool = F::build(1);
    let mut process = pool.call(stay, 0).process;
    let mut times = Vec::new();
    for _ in 0..setting.of(20, 3) {
        thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        kill_worker(process)?;
        process = loop {
            match F::wait(pool.submit(stay, 0)) {
                Ok(answer) if answer.process != process => break answer.process,
                _ => {}
            }
        };
        times.push(start.elapsed());
    }
    Ok(vec![median_us(times) / 1e3])
}

fn tarnish_replacement(setting: &Setting) -> Outcome {
    let mut worker = Tarnish::start();
    let mut process = worker.ask(Ask::Process);
    let mut times = Vec::new();
    for _ in 0..setting.of(20, 3) {
        thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        kill_worker(u32::try_from(process).unwrap_or(0))?;
        process = loop {
            match worker.try_ask(Ask::Process) {
                Ok(answer) if answer != process => break answer,
                _ => {}
            }
        };
        times.push(start.elapsed());
    }
    Ok(vec![median_us(times) / 1e3])
}

fn kill_worker(process: u32) -> Result<(), Failure> {
    let process = i32::try_from(process).map_or_else(|_| Pid::this(), Pid::from_raw);
    kill(process, Signal::SIGKILL).map_err(|error| failed(error.into()))
}
