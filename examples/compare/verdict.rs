//! The one line under each table: what its numbers say.

use std::time::Duration;

use crate::report::{Table, count, grouped};
use crate::workload::Mode;

/// Times closer than this are called equal: repeated runs of the same thing differ by as much.
const TIE: f64 = 0.05;

/// A pool's start-up and a busy machine hide anything in runs shorter than this many seconds.
const TOO_SHORT: f64 = 0.02;

/// For work that computes: the sums over all workloads, and the price of a worker process.
pub(crate) fn cpu(table: &Table) -> String {
    let sum = |mode| -> Option<f64> {
        table.workloads().into_iter().map(|workload| table.wall_s(workload, mode)).sum()
    };
    let (Some(serial), Some(threads), Some(processes)) =
        (sum(Mode::Serial), sum(Mode::Threads), sum(Mode::Processes))
    else {
        return String::new();
    };
    let started: usize =
        table.rows.iter().filter(|row| row.mode == Mode::Processes).filter_map(|row| row.workers).sum();
    format!(
        "threads {:.2}x, processes {:.2}x serial: {}; {}",
        serial / threads,
        serial / processes,
        contest(threads, processes),
        isolation((processes - threads) / count(started.max(1))),
    )
}

/// For work that waits: what the largest pool of each kind took beyond the sleep itself.
pub(crate) fn io(table: &Table, sleep: Duration) -> String {
    let beyond = |mode| {
        let rows = table.rows.iter().filter(|row| row.mode == mode);
        let (row, wall, workers) = rows.rev().find_map(|row| Some((row, row.wall_s?, row.workers?)))?;
        let extra = wall - sleep.as_secs_f64();
        Some(format!("{} tasks on {} {mode} {extra:.2} s", grouped(row.tasks), grouped(workers)))
    };
    let parts: Vec<_> = [Mode::Threads, Mode::Processes].into_iter().filter_map(beyond).collect();
    match parts.is_empty() {
        true => "no pool could be had".to_owned(),
        false => format!("beyond one sleep: {}", parts.join(", ")),
    }
}

/// For the URL list: how many failed, and which pool was first.
pub(crate) fn urls(table: &Table) -> String {
    let failed = table.urls.iter().filter(|url| url.is_failure()).count();
    let fetched = table.urls.len() - failed;
    let mut text = format!("{fetched} fetched, {failed} failed");
    let Some(workload) = table.workloads().first().copied() else { return text };
    let wall = |mode| table.wall_s(workload, mode);
    if let (Some(serial), Some(threads), Some(processes)) =
        (wall(Mode::Serial), wall(Mode::Threads), wall(Mode::Processes))
    {
        let (t, p) = (serial / threads, serial / processes);
        text.push_str(&format!(
            "; threads {t:.1}x, processes {p:.1}x serial: {}",
            contest(threads, processes)
        ));
    }
    text
}

fn contest(threads: f64, processes: f64) -> String {
    let ratio = processes / threads;
    if threads.max(processes) < TOO_SHORT {
        "too short to tell apart".to_owned()
    } else if (1.0 - TIE..=1.0 + TIE).contains(&ratio) {
        "they tie".to_owned()
    } else if ratio > 1.0 {
        format!("threads are {ratio:.2}x faster")
    } else {
        format!("processes are {:.2}x faster", 1.0 / ratio)
    }
}

/// What a worker process costs over a thread, in time.
fn isolation(seconds: f64) -> String {
    if seconds <= 0.0 {
        return "isolation costs nothing".to_owned();
    }
    format!("isolation costs {:.1} ms a worker", seconds * 1e3)
}
