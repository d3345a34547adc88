//! What is measured, by whom, and what the goal is.

use std::process::ExitCode;
use std::time::Duration;

use crate::{chart, options, report, sample, schedule};

/// One table: its workloads in the order they are shown.
#[derive(Debug)]
pub struct Suite {
    pub name: &'static str,
    pub workloads: Vec<Workload>,
}

/// Something every contender does in its own way; one run of it may fill several rows.
pub struct Workload {
    pub id: String,
    pub rows: Vec<Row>,
    /// How long a sample may take before it counts as hanging.
    pub limit: Duration,
    /// Instead of those of the command line: full and quick.
    pub(crate) workers: Option<(usize, usize)>,
    pub(crate) cells: Vec<Cell>,
}

/// A line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    pub id: String,
    pub what: String,
    pub unit: &'static str,
    pub better: Better,
    pub goal: Goal,
}

/// Which figures are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// What ours must reach; every part that is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Goal {
    /// As a multiple of the best peer's figure.
    pub of_best: Option<f64>,
    /// As a multiple of the figure of the bare machine (the contenders of [`Kind::Limit`], the best of them).
    pub of_limit: Option<f64>,
    /// In the row's unit.
    pub bound: Option<f64>,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Peer,
    /// Shown, but not compared with: it promises less than a pool, or runs the task on the waiting thread.
    Aside,
    /// What the machine allows without any pool.
    Limit,
}

/// One contender's way through one workload.
pub(crate) struct Cell {
    pub(crate) contender: &'static str,
    pub(crate) kind: Kind,
    pub(crate) run: Box<dyn Fn(&Setting) -> Outcome>,
}

/// The figures of one sample, one for each row of the workload.
pub type Outcome = Result<Vec<f64>, Failure>;

/// Why there is no figure.
#[derive(Debug, Clone)]
pub enum Failure {
    /// It cannot be measured here, which is no fault: no interpreter, no such call yet.
    Missing(String),
    /// A wrong result, a panic, an error.
    Failed(String),
    /// It was still running at the limit.
    Hangs(Duration),
}

/// What a sample is told.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub workers: usize,
    /// Small sizes: the figures mean nothing.
    pub quick: bool,
}

impl Setting {
    /// The size for this run.
    pub fn of<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

impl Goal {
    pub fn of_best(ratio: f64) -> Self {
        Self { of_best: Some(ratio), ..Self::default() }
    }

    pub fn of_limit(ratio: f64) -> Self {
        Self { of_limit: Some(ratio), ..Self::default() }
    }

    pub fn bound(bound: f64) -> Self {
        Self { bound: Some(bound), ..Self::default() }
    }

    #[must_use]
    pub fn and_of_best(mut self, ratio: f64) -> Self {
        self.of_best = Some(ratio);
        self
    }
}

impl Row {
    pub fn new(id: impl Into<String>, what: impl Into<String>, unit: &'static str, goal: Goal) -> Self {
        Self { id: id.into(), what: what.into(), unit, better: Better::Lower, goal }
    }

    /// For rates.
    #[must_use]
    pub fn more_is_better(mut self) -> Self {
        self.better = Better::Higher;
        self
    }
}

impl Workload {
    pub fn new(id: impl Into<String>, rows: impl IntoIterator<Item = Row>) -> Self {
        let rows = rows.into_iter().collect();
        Self { id: id.into(), rows, limit: Duration::from_secs(60), workers: None, cells: Vec::new() }
    }

    /// A workload of one row.
    pub fn row(id: &str, what: impl Into<String>, unit: &'static str, goal: Goal) -> Self {
        Self::new(id, [Row::new(id, what, unit, goal)])
    }

    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Workers of every pool, in a full and in a quick run, whatever the command line says.
    #[must_use]
    pub fn workers(mut self, full: usize, quick: usize) -> Self {
        self.workers = Some((full, quick));
        self
    }

    /// The same on so many workers, under a name that says so, and without a goal.
    #[must_use]
    pub fn on(mut self, workers: usize) -> Self {
        self.id = format!("{}x{workers}", self.id);
        for row in &mut self.rows {
            row.id = format!("{}x{workers}", row.id);
            row.what = format!("{workers} workers: {}", row.what);
            row.goal = Goal::default();
        }
        self.workers(workers, workers)
    }

    /// Without the other peers.
    #[must_use]
    pub fn only(mut self, peers: &[&str]) -> Self {
        self.cells.retain(|cell| cell.kind == Kind::Ours || peers.contains(&cell.contender));
        self
    }

    pub(crate) fn setting(&self, of_run: &Setting) -> Setting {
        let workers = self.workers.map_or(of_run.workers, |(full, quick)| of_run.of(full, quick));
        Setting { workers, ..*of_run }
    }

    #[must_use]
    pub fn by(
        mut self,
        kind: Kind,
        contender: &'static str,
        run: impl Fn(&Setting) -> Outcome + 'static,
    ) -> Self {
        self.cells.push(Cell { contender, kind, run: Box::new(run) });
        self
    }

    #[must_use]
    pub fn ours(self, run: impl Fn(&Setting) -> Outcome + 'static) -> Self {
        self.by(Kind::Ours, "ours", run)
    }

    #[must_use]
    pub fn peer(self, contender: &'static str, run: impl Fn(&Setting) -> Outcome + 'static) -> Self {
        self.by(Kind::Peer, contender, run)
    }

    /// `T4` names `T4`, `T4a` and `T4ax2`, but not `T40`; a row's name names its workload.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let ids = self.rows.iter().map(|row| &row.id).chain([&self.id]);
        ids.map(|id| id.to_ascii_lowercase()).any(|id| {
            let rest = id.strip_prefix(&name);
            !name.is_empty() && rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    }
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload").field("id", &self.id).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Suite {
    /// Does what the command line says.
    pub fn main(self) -> ExitCode {
        let options = options::parse(self.name);
        if let Some(hidden) = &options.sample {
            return sample::run_here(&self, hidden, &options.setting());
        }
        if options.list {
            for workload in &self.workloads {
                let contenders: Vec<_> = workload.cells.iter().map(|cell| cell.contender).collect();
                let rows: Vec<_> = workload.rows.iter().map(|row| row.what.as_str()).collect();
                println!("{:<5} {}\n      {}", workload.id, rows.join(" · "), contenders.join(", "));
            }
            return ExitCode::SUCCESS;
        }
        let report = schedule::run(&self, &options);
        print!("{}", report.text());
        for (path, content) in [(options.json(), report::json(&report)), (options.svg(), chart::svg(&report))]
        {
            let written = content.and_then(|content| options::write(&path, &content).map_err(Into::into));
            match written {
                Ok(()) => println!("written: {}", path.display()),
                Err(error) => {
                    eprintln!("{}: {error}", path.display());
                    return ExitCode::FAILURE;
                }
            }
        }
        if report.ours_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
