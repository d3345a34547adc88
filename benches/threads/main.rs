//! The thread pool beside its peers: `cargo bench --bench threads`, `-- --help` for the options.
//!
//! The rows are those of the design's goals:
//!
//! * T1 many tiny tasks from outside, each with its future · T2 the same, nothing kept · T3 round trips on an idle pool
//! * T4 fork-join down to the last call · T5 `map` of tiny items · T6 `map` of 20 µs items, against the ideal
//! * T7 four producers · T8 thousands of sleeping tasks · T9 bytes per queued task · T10 an idle pool
//!
//! A peer is a small adapter in `peers/`; `rows/` says what is done with them. Ours is used as anybody would use it: a
//! thread outside the pool never runs a task, `max_workers` is a promise. micropool does run them there, so its round
//! trip (T3) is no hand-over and stands aside. Peers that cannot do a row are not in it: blocking inside a task hangs
//! most of them.

mod peers;
mod pool;
mod rows;

use std::process::ExitCode;

use cf_benches::{Counting, Suite};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    Suite { name: "threads", workloads: rows::all() }.main()
}
