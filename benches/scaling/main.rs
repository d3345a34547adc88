//! How ours and rayon grow with the number of workers: `cargo bench --bench scaling`, `-- --help` for the options.
//!
//! Rows T1, T4a (`join`) and T6 of `threads` on 1, 2, 4, … workers, up to the machine's cores. `--rows T1` measures one
//! of them, and `--rows T1x4` that on 4 workers.

#[path = "../threads/peers/mod.rs"]
mod peers;
#[path = "../threads/pool.rs"]
mod pool;
#[path = "../threads/rows/mod.rs"]
mod rows;

use std::iter;
use std::num::NonZero;
use std::process::ExitCode;
use std::thread;

use cf_benches::{Counting, Suite, Workload};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let powers =
        iter::successors(Some(1), |workers| Some(workers * 2)).take_while(|workers| *workers < cores);
    let counts: Vec<usize> = powers.chain([cores]).collect();
    let on = |row: &'static str| counts.iter().filter_map(move |workers| one(row, *workers));
    Suite { name: "scaling", workloads: ["T1", "T4a", "T6a", "T6b"].into_iter().flat_map(on).collect() }
        .main()
}

/// A row of `threads` with rayon as the only peer.
fn one(row: &str, workers: usize) -> Option<Workload> {
    let workload = rows::all().into_iter().find(|workload| workload.id == row)?;
    Some(workload.only(&["rayon", "rayon par_iter"]).on(workers))
}
