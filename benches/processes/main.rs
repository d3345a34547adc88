//! The process pool beside its peers: `cargo bench --bench processes`, `-- --help` for the options.
//!
//! The rows are those of the design's goals:
//!
//! * P1 no-op tasks, one by one and by `map` · P2 round trips · P3 echo of big payloads
//! * P4 start of 2, 400 and 4,000 workers, and their memory · P5 a killed worker's replacement
//! * P6 thousands of tasks that sleep · P7 the tutorials' CPU-bound tables, against the ideal
//!
//! The peers and what they promise less:
//!
//! * procspawn is the one other pool for Rust. Every queued task of it holds three open files, so it gets a window.
//! * zygote has no pool: a call blocks until its process answers. Two callers for each process stand for one.
//! * tarnish has a process that runs one task type, and a call blocks, too. Its answers end at 1,024 bytes, so it takes
//!   no part in P3; there is no way to run many kinds of functions, so all its rows send one enumeration.
//! * Python's pools, where there is a `python3`: `concurrent.futures` and `multiprocessing.Pool`.
//!
//! A single blocking caller to a single process (zygote, tarnish) has no queue and no future: in P2 it stands aside.
//!
//! All of them build and run with the versions in Cargo.toml. Bulk data is `ByteBuf` for everybody: a plain `Vec<u8>`
//! is written byte after byte by serde.
//!
//! A sample's program starts itself again as a worker of tarnish, of procspawn and of ours, so `main` first asks whether
//! it is one. Ours needs nothing of the kind.

mod farm;
mod limits;
mod peers;
mod rows;

use std::process::ExitCode;

use cf_benches::Suite;

fn main() -> ExitCode {
    if let Some(code) = tarnish::worker_main::<peers::Everything>() {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    procspawn::init();
    if limits::is_echo() {
        return limits::echo();
    }
    let workloads = [
        rows::throughput::workloads(),
        rows::latency::workloads(),
        rows::payload::workloads(),
        rows::start::workloads(),
        rows::sleep::workloads(),
        rows::cpu::workloads(),
    ];
    let mut workloads: Vec<_> = workloads.into_iter().flatten().collect();
    workloads.sort_by(|a, b| a.id.cmp(&b.id));
    Suite { name: "processes", workloads }.main()
}
