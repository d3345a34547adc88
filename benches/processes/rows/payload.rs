//! P3: bytes there and back, one task at a time.

use std::time::{Duration, Instant};

use cf_benches::{Goal, Kind, Outcome, Row, Setting, Workload};
use serde_bytes::ByteBuf;
use zygote::Zygote;

use super::{float, with_python};
use crate::farm::{Farm, echo};
use crate::limits;
use crate::peers::{Ours, Procspawn};

/// Row, name, bytes, rounds, goal in GB/s.
const SIZES: [(&str, &str, usize, usize, f64); 3] = [
    ("P3a", "64 KiB", 64 << 10, 2_000, 5.0),
    ("P3b", "1 MiB", 1 << 20, 200, 4.0),
    ("P3c", "64 MiB", 64 << 20, 5, 2.0),
];

pub(crate) fn workloads() -> Vec<Workload> {
    let workload = |(id, name, bytes, rounds, goal)| {
        let row = Row::new(
            id,
            format!("echo of {name}, one at a time: payload by the round trip"),
            "GB/s",
            Goal::bound(goal),
        );
        Workload::new(id, [row.more_is_better()])
            .ours(move |setting| {
                let pool = Ours::build(setting.workers);
                measure(setting, bytes, rounds, |payload| pool.call(echo, payload))
            })
            .peer("procspawn", move |setting| {
                let pool = Procspawn::build(setting.workers);
                measure(setting, bytes, rounds, |payload| pool.call(echo, payload))
            })
            .peer("zygote", move |setting| {
                let process = Zygote::new();
                measure(setting, bytes, rounds, |payload| process.run(echo, payload))
            })
            .peer("python-futures", move |setting| with_python(setting, id, "futures"))
            .peer("python-pool", move |setting| with_python(setting, id, "pool"))
            .by(Kind::Limit, "memcpy", move |setting| {
                let fastest = limits::copy(bytes, setting.of(rounds, 2));
                Ok(vec![rate(bytes, fastest)])
            })
    };
    SIZES.map(workload).into()
}

fn measure(setting: &Setting, bytes: usize, rounds: usize, call: impl Fn(ByteBuf) -> ByteBuf) -> Outcome {
    let bytes = setting.of(bytes, bytes.min(1 << 20));
    let mut payload = ByteBuf::from((0_u8..=250).cycle().take(bytes).collect::<Vec<u8>>());
    let expected = payload.clone();
    let rounds = setting.of(rounds, 2);
    for _ in 0..2 {
        payload = call(payload);
    }
    let start = Instant::now();
    for _ in 0..rounds {
        payload = call(payload);
    }
    let elapsed = start.elapsed() / u32::try_from(rounds).unwrap_or(u32::MAX);
    assert!(payload == expected, "wrong result");
    Ok(vec![rate(bytes, elapsed)])
}

fn rate(bytes: usize, time: Duration) -> f64 {
    float(u64::try_from(bytes).unwrap_or(0)) / time.as_secs_f64() / 1e9
}
