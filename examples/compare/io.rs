//! Work that waits: as many sleeps as workers.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::report::{Row, Table, Tutorial, cell, grouped};
use crate::verdict;
use crate::workload::{Answer, Batch, Mode, RunError, run};

/// The tutorials' sleep.
const TUTORIAL_SLEEP: Duration = Duration::from_secs(2);

/// One row group of the table: so many sleeps on as many workers, and the tutorials' seconds for it.
struct Sleeps {
    count: usize,
    threads: f64,
    processes: f64,
}

/// The tutorials' sizes, and their figures.
const TUTORIAL: [Sleeps; 2] = [
    Sleeps { count: 400, threads: 2.039_461_612_701_416, processes: 9.083_257_913_589_478 },
    Sleeps { count: 4_000, threads: 3.007_986_068_725_586, processes: 21.149_890_184_402_466 },
];

/// How much of the tutorials' programs is run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scale {
    /// A tenth of the sleeps, of a fortieth of the time.
    Quick,
    /// All sleeps, of a tenth of the time.
    Default,
    /// What the tutorials ran.
    Full,
}

/// Measures the whole table. A pool that cannot be had costs its row, not the table.
pub(crate) fn table(scale: Scale) -> Result<Table, RunError> {
    let (divisor, sleep) = match scale {
        Scale::Quick => (10, TUTORIAL_SLEEP / 40),
        Scale::Default => (1, TUTORIAL_SLEEP / 10),
        Scale::Full => (1, TUTORIAL_SLEEP),
    };
    let files = raised_file_limit();
    let mut table = Table::new("io", format!("IO-bound: sleeps of {} s, a worker each", sleep.as_secs_f64()));
    for Sleeps { count, threads, processes } in TUTORIAL {
        let sleeps = count / divisor;
        let batch = Batch {
            name: format!("{} x {} s", grouped(sleeps), sleep.as_secs_f64()),
            task: nap,
            arguments: vec![sleep; sleeps],
            check: |asked, slept| match slept {
                slept if slept < asked => Err(format!("slept {slept:?} instead of {asked:?}")),
                _ => Ok(()),
            },
        };
        let tutorial = Tutorial { workload: format!("{} x 2 s", grouped(count)), threads, processes };
        let factor = u32::try_from(sleeps).unwrap_or(u32::MAX);
        table.push(Row::computed(&batch.name, sleeps, sleep * factor));
        for mode in [Mode::Threads, Mode::Processes] {
            let row = match run(&batch, mode, sleeps) {
                Ok(outcome) => Row::measured(&batch.name, mode, &outcome),
                Err(refused @ (RunError::Pool(_) | RunError::Task(_))) => {
                    let reason = format!("{refused} (limit on open files: {})", cell(files, grouped));
                    Row::refused(&batch.name, mode, sleeps, &reason)
                }
                Err(error) => return Err(error),
            };
            table.push(row.with_tutorial(&tutorial));
        }
    }
    table.verdict = verdict::io(&table, sleep);
    table.remarks.push("serial: computed (sleeps x time), not run");
    if table.rows.iter().any(|row| row.workers.is_some_and(|workers| workers < row.tasks)) {
        table
            .remarks
            .push("fewer workers than tasks: one that was done took another, or the system gave no more");
    }
    table.remarks.push("tutorial s: CPython, 400 and 4,000 sleeps of 2 s");
    Ok(table)
}

fn nap((index, sleep): (usize, Duration)) -> Answer<Duration> {
    let started = std::time::Instant::now();
    std::thread::sleep(sleep);
    Answer::new(index, started.elapsed())
}

/// 4,000 worker processes need more descriptors than the usual soft limit of 1,024 allows; the hard limit is ours to
/// use. If even that is too low, the row says so.
fn raised_file_limit() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Some(hard),
        Err(_) => Some(soft),
    }
}
