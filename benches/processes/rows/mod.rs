//! What is done with the pools, and the goals.

pub(crate) mod cpu;
pub(crate) mod latency;
pub(crate) mod payload;
pub(crate) mod sleep;
pub(crate) mod start;
pub(crate) mod throughput;

use cf_benches::{Outcome, Setting, python};

/// One of Python's pools: "futures" or "pool".
fn with_python(setting: &Setting, row: &str, pool: &str) -> Outcome {
    let size = setting.of("full", "quick");
    python::run("processes.py", &[row, pool, &setting.workers.to_string(), size])
}

/// A count as a figure.
fn float(n: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let float = n as f64;
    float
}

/// The middle one, in microseconds.
fn median_us(mut times: Vec<std::time::Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}
