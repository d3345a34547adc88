//! Which sample when: workload after workload, in each the contenders in a new random order every repetition.

use std::io::{IsTerminal, Write};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::machine::Machine;
use crate::options::Options;
use crate::report::{Line, Measured, Report};
use crate::sample;
use crate::suite::{Failure, Kind, Suite};

pub(crate) fn run(suite: &Suite, options: &Options) -> Report {
    let (start, setting) = (Instant::now(), options.setting());
    let mut random = Random::new();
    let machine = Machine::here();
    let mut lines = Vec::new();
    for workload in &suite.workloads {
        if !options.rows.is_empty() && !options.rows.iter().any(|name| workload.is_named(name)) {
            continue;
        }
        let mut cells: Vec<_> = workload
            .cells
            .iter()
            .filter(|cell| {
                matches!(cell.kind, Kind::Ours | Kind::Limit) || options.wants_peer(cell.contender)
            })
            .map(|cell| (cell, Vec::new(), None::<Failure>))
            .collect();
        for repetition in 1..=options.repetitions() {
            random.shuffle(&mut cells);
            for (cell, samples, failure) in &mut cells {
                if failure.is_some() {
                    continue; // it would fail again, and take its time
                }
                progress(&format!("{} {repetition}: {}", workload.id, cell.contender));
                match sample::take(&workload.id, cell.contender, &workload.setting(&setting), workload.limit)
                {
                    Ok(figures) => samples.push(figures),
                    Err(why) => *failure = Some(why),
                }
            }
        }
        progress("");
        cells.sort_by_key(|(cell, ..)| (cell.kind as u8, cell.contender));
        for (index, row) in workload.rows.iter().enumerate() {
            let measured = cells.iter().map(|(cell, samples, failure)| Measured {
                contender: cell.contender,
                kind: cell.kind,
                samples: samples
                    .iter()
                    .filter_map(|figures| figures.get(index).copied())
                    .filter(|f| f.is_finite())
                    .collect(),
                failure: failure.clone(),
            });
            lines.push(Line::new(row.clone(), measured.collect()));
        }
    }
    Report {
        name: suite.name,
        setting,
        repetitions: options.repetitions(),
        machine,
        load_after: Machine::load(),
        seconds: start.elapsed().as_secs_f64(),
        lines,
    }
}

/// On a terminal only: what is being measured.
fn progress(what: &str) {
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        let _ = write!(terminal, "\r\x1b[K{what}");
        let _ = terminal.flush();
    }
}

/// Enough to shuffle ten names: xorshift.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| since.as_secs() ^ u64::from(since.subsec_nanos()));
        Self(now | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
