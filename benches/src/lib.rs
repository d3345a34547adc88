//! The harness of the benchmarks: what is measured stands in `threads/`, `scaling/` and `processes/`.
//!
//! A [`Suite`] is a list of [`Workload`]s, each with the contenders that can run it. The program that measures is run
//! again, with hidden arguments, for every single sample: a fresh process with a fresh, warmed pool, which checks its own
//! result and is killed when it takes too long. Contenders take turns in a new random order in every repetition, so that a
//! machine that slows down slows down all of them. The figure shown is the median; least and most stand in the JSON.
//!
//! ```text
//!  main ──► Suite::main ──► options      a normal run: schedule ──► report (table, JSON) and chart (SVG)
//!                      └──► sample       the hidden run: one workload by one contender, its figures on stdout
//! ```

mod alloc;
mod chart;
mod machine;
mod options;
pub mod python;
mod report;
mod sample;
mod schedule;
mod suite;
mod tally;
mod usage;
mod work;

pub use alloc::Counting;
pub use suite::{Better, Failure, Goal, Kind, Outcome, Row, Setting, Suite, Workload};
pub use tally::Tally;
pub use usage::{cpu_time, now_ns, peak_memory_mib, pss_kib};
pub use work::{Spin, spin};
