//! The figures of a run: the table and the JSON.

use std::error::Error;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::suite::{Better, Failure, Goal, Kind, Row, Setting};

/// Wide enough for the names of a dozen peers in two or three lines.
const WIDTH: u16 = 170;

/// A whole run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) name: &'static str,
    pub(crate) setting: Setting,
    pub(crate) repetitions: usize,
    pub(crate) machine: Machine,
    pub(crate) load_after: f64,
    pub(crate) seconds: f64,
    pub(crate) lines: Vec<Line>,
}

/// A row with everybody's figures.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) row: Row,
    pub(crate) measured: Vec<Measured>,
}

/// One contender's samples of one row.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) contender: &'static str,
    pub(crate) kind: Kind,
    pub(crate) samples: Vec<f64>,
    pub(crate) failure: Option<Failure>,
}

impl Measured {
    /// The one in the middle; with an even number, the lower of the two.
    pub(crate) fn median(&self) -> Option<f64> {
        if matches!(self.failure, Some(Failure::Failed(_) | Failure::Hangs(_))) {
            return None; // some of its samples went well, but it is not to be trusted
        }
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }

    fn least(&self) -> Option<f64> {
        self.samples.iter().copied().min_by(f64::total_cmp)
    }

    fn most(&self) -> Option<f64> {
        self.samples.iter().copied().max_by(f64::total_cmp)
    }

    fn is_missing(&self) -> bool {
        self.samples.is_empty() && matches!(self.failure, None | Some(Failure::Missing(_)))
    }

    fn shown(&self) -> String {
        match (&self.failure, self.median()) {
            (Some(Failure::Hangs(limit)), _) => format!("hangs (> {} s)", limit.as_secs()),
            (Some(Failure::Failed(_)), _) => "fails".to_owned(),
            (_, Some(figure)) => number(figure),
            _ => "-".to_owned(),
        }
    }
}

impl Line {
    pub(crate) fn new(row: Row, measured: Vec<Measured>) -> Self {
        Self { row, measured }
    }

    pub(crate) fn ours(&self) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.kind == Kind::Ours)
    }

    /// The best of a kind.
    pub(crate) fn best(&self, kind: Kind) -> Option<(&'static str, f64)> {
        let of_kind = self.measured.iter().filter(|measured| measured.kind == kind);
        let figures = of_kind.filter_map(|measured| Some((measured.contender, measured.median()?)));
        match self.row.better {
            Better::Lower => figures.min_by(|a, b| a.1.total_cmp(&b.1)),
            Better::Higher => figures.max_by(|a, b| a.1.total_cmp(&b.1)),
        }
    }

    /// Ours, as a multiple of the best peer's.
    pub(crate) fn ratio(&self) -> Option<f64> {
        Some(self.ours()?.median()? / self.best(Kind::Peer)?.1)
    }

    fn ratio_to_limit(&self) -> Option<f64> {
        Some(self.ours()?.median()? / self.best(Kind::Limit)?.1)
    }

    /// `None` where something is missing to tell.
    pub(crate) fn is_met(&self) -> Option<bool> {
        let Goal { of_best, of_limit, bound } = self.row.goal;
        let ours = self.ours()?.median()?;
        let is_reached = |figure: f64, goal: f64| match self.row.better {
            Better::Lower => figure <= goal,
            Better::Higher => figure >= goal,
        };
        let parts = [
            of_best.map(|goal| self.ratio().map(|ratio| is_reached(ratio, goal))),
            of_limit.map(|goal| self.ratio_to_limit().map(|ratio| is_reached(ratio, goal))),
            bound.map(|goal| Some(is_reached(ours, goal))),
        ];
        let parts: Vec<Option<bool>> = parts.into_iter().flatten().collect();
        if parts.contains(&Some(false)) {
            return Some(false);
        }
        let is_told = !parts.is_empty() && parts.iter().all(Option::is_some);
        is_told.then_some(true)
    }

    fn goal(&self) -> String {
        let Goal { of_best, of_limit, bound } = self.row.goal;
        let sign = if self.row.better == Better::Lower { "≤" } else { "≥" };
        let parts = [
            of_best.map(|goal| format!("{sign} {goal} × best")),
            of_limit.map(|goal| format!("{sign} {goal} × limit")),
            bound.map(|goal| format!("{sign} {} {}", number(goal), self.row.unit)),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Everybody but ours, the best first.
    fn others(&self) -> String {
        let mut others: Vec<_> = self
            .measured
            .iter()
            .filter(|measured| measured.kind != Kind::Ours && !measured.is_missing())
            .collect();
        let sign = if self.row.better == Better::Lower { 1.0 } else { -1.0 };
        others.sort_by(|a, b| {
            let key = |measured: &Measured| measured.median().map_or(f64::INFINITY, |median| median * sign);
            key(a).total_cmp(&key(b))
        });
        let named = others.into_iter().map(|measured| {
            let name = match measured.kind {
                Kind::Aside => format!("({})", measured.contender),
                Kind::Limit => format!("[{}]", measured.contender),
                Kind::Ours | Kind::Peer => measured.contender.to_owned(),
            };
            // One word, so that a line breaks between contenders.
            format!("{name} {}", measured.shown()).replace(' ', "\u{a0}")
        });
        named.collect::<Vec<_>>().join(", ")
    }
}

impl Report {
    /// Whether one of ours hung or gave a wrong result.
    pub(crate) fn ours_failed(&self) -> bool {
        let ours = self.lines.iter().filter_map(Line::ours);
        ours.filter_map(|measured| measured.failure.as_ref())
            .any(|failure| matches!(failure, Failure::Failed(_) | Failure::Hangs(_)))
    }

    /// The table and what there is to say about it.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        table.set_header(["row", "", "unit", "ours", "best peer", "", "ratio", "goal", "", "all others"]);
        for line in &self.lines {
            let best = line.best(Kind::Peer);
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            table.add_row([
                Cell::new(&line.row.id),
                Cell::new(&line.row.what),
                Cell::new(line.row.unit),
                right(line.ours().map_or_else(|| "-".to_owned(), Measured::shown)),
                Cell::new(best.map_or("-", |(name, _)| name)),
                right(best.map_or_else(|| "-".to_owned(), |(_, figure)| number(figure))),
                right(line.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))),
                Cell::new(line.goal()),
                Cell::new(line.is_met().map_or("?", |is_met| if is_met { "met" } else { "MISSED" })),
                Cell::new(line.others()),
            ]);
        }
        let mut text = format!("{}\n{table}\n", self.heading());
        text.push_str("Medians. In brackets: (not compared with), [what the bare machine allows].\n");
        for line in &self.lines {
            for measured in &line.measured {
                if let Some(Failure::Failed(why)) = &measured.failure {
                    text.push_str(&format!("{} {}: {why}\n", line.row.id, measured.contender));
                }
            }
        }
        if self.setting.quick {
            text.push_str("Quick form: the figures mean nothing.\n");
        }
        text
    }

    pub(crate) fn heading(&self) -> String {
        let Machine { cores, kernel, rustc, .. } = &self.machine;
        let rustc = rustc.split(' ').nth(1).unwrap_or("?");
        format!(
            "{}: {} workers, {cores} cores, Linux {kernel}, rustc {rustc}, {} repetitions, load {} to {}",
            self.name, self.setting.workers, self.repetitions, self.machine.load_before, self.load_after
        )
    }
}

/// Three significant digits.
pub(crate) fn number(figure: f64) -> String {
    let size = figure.abs();
    match size {
        _ if size >= 100.0 => format!("{figure:.0}"),
        _ if size >= 10.0 => format!("{figure:.1}"),
        _ if size >= 0.01 || size == 0.0 => format!("{figure:.2}"),
        _ => format!("{figure:.1e}"),
    }
}

/// Everything that was seen.
pub(crate) fn json(report: &Report) -> Result<String, Box<dyn Error>> {
    let lines: Vec<Value> = report.lines.iter().map(line_json).collect();
    let machine = &report.machine;
    let value = json!({
        "suite": report.name,
        "machine": {
            "cores": machine.cores,
            "processor": machine.processor,
            "memory_mib": machine.memory_mib,
            "kernel": machine.kernel,
            "rustc": machine.rustc,
            "load_before": machine.load_before,
            "load_after": report.load_after,
        },
        "workers": report.setting.workers,
        "quick": report.setting.quick,
        "repetitions": report.repetitions,
        "seconds": report.seconds,
        "rows": lines,
    });
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

fn line_json(line: &Line) -> Value {
    let results: Vec<Value> =
        line.measured.iter().filter(|measured| !measured.is_missing()).map(result_json).collect();
    let goal = line.row.goal;
    json!({
        "id": line.row.id,
        "what": line.row.what,
        "unit": line.row.unit,
        "better": if line.row.better == Better::Lower { "lower" } else { "higher" },
        "goal": { "of_best": goal.of_best, "of_limit": goal.of_limit, "bound": goal.bound },
        "ours": line.ours().and_then(Measured::median),
        "best_peer": line.best(Kind::Peer).map(|(name, _)| name),
        "ratio_to_best": line.ratio(),
        "ratio_to_limit": line.ratio_to_limit(),
        "met": line.is_met(),
        "results": results,
    })
}

fn result_json(measured: &Measured) -> Value {
    let kind = match measured.kind {
        Kind::Ours => "ours",
        Kind::Peer => "peer",
        Kind::Aside => "aside",
        Kind::Limit => "limit",
    };
    let failure = measured.failure.as_ref().map(|failure| match failure {
        Failure::Missing(why) | Failure::Failed(why) => why.clone(),
        Failure::Hangs(limit) => format!("still running after {} s", limit.as_secs()),
    });
    json!({
        "name": measured.contender,
        "kind": kind,
        "median": measured.median(),
        "min": measured.least(),
        "max": measured.most(),
        "samples": measured.samples,
        "failure": failure,
    })
}
