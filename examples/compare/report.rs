//! What was measured, as aligned text and as JSON.

use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, LineStyle};
use serde::Serialize;

use crate::urls::Page;
use crate::workload::{Mode, Outcome};

/// The widest line printed.
const WIDTH: usize = 100;

/// The whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) build: &'static str,
    pub(crate) cores: usize,
    /// Workers of the CPU-bound table.
    pub(crate) workers: usize,
    pub(crate) quick: bool,
    pub(crate) tables: Vec<Table>,
    pub(crate) seconds: f64,
}

impl Report {
    /// The lines above the first table.
    pub(crate) fn header(&self) -> String {
        let Self { version, build, cores, workers, .. } = self;
        let mut text = format!(
            "Threads or processes? concurrent-futures {version}, {build} build, {cores} cores, \
             {workers} workers for CPU-bound work\n\
             Each time is that of a pool's whole life. CPU s: user + system, workers included.\n"
        );
        if self.quick {
            text.push_str("Quick form: smaller loops and shorter sleeps than the tutorials'.\n");
        }
        if *build == "debug" {
            text.push_str(
                "WARNING: debug build, its loops say nothing about your work: use cargo run --release\n",
            );
        }
        text
    }
}

/// One question and its rows.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) verdict: String,
    pub(crate) remarks: Vec<&'static str>,
    /// What became of each line of a URL list, in its order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) urls: Vec<UrlReport>,
}

impl Table {
    pub(crate) fn new(name: &'static str, title: impl Into<String>) -> Self {
        let (title, verdict) = (title.into(), String::new());
        Self { name, title, rows: Vec::new(), verdict, remarks: Vec::new(), urls: Vec::new() }
    }

    /// Adds a row and compares it with the serial row of its workload, which has to come first.
    pub(crate) fn push(&mut self, mut row: Row) {
        let serial_s = match row.mode {
            Mode::Serial => row.wall_s,
            Mode::Threads | Mode::Processes => self.wall_s(&row.workload, Mode::Serial),
        };
        row.speed_up = serial_s.zip(row.wall_s).map(|(serial, wall)| serial / wall);
        self.rows.push(row);
    }

    /// The names of the workloads, each once, in order.
    pub(crate) fn workloads(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.rows.iter().map(|row| row.workload.as_str()).collect();
        names.dedup();
        names
    }

    pub(crate) fn row(&self, workload: &str, mode: Mode) -> Option<&Row> {
        self.rows.iter().find(|row| row.workload == workload && row.mode == mode)
    }

    pub(crate) fn wall_s(&self, workload: &str, mode: Mode) -> Option<f64> {
        self.row(workload, mode)?.wall_s
    }

    /// The table for a reader.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("\n{}\n{}", clean(&self.title, WIDTH), self.grid());
        for Row { workload, mode, note, .. } in &self.rows {
            if let Some(note) = note {
                text.push_str(&wrapped(&format!("{workload} {mode}: {note}")));
            }
        }
        for remark in &self.remarks {
            text.push_str(&wrapped(remark));
        }
        if !self.urls.is_empty() {
            text.push('\n');
            text.push_str(&url_text(&self.urls));
        }
        text.push_str(&wrapped(&format!("=> {}", self.verdict)));
        text
    }

    fn grid(&self) -> String {
        let has_tutorial = self.rows.iter().any(|row| row.tutorial_s.is_some());
        let mut header =
            vec!["workload", "run", "workers", "wall s", "CPU s", "tasks/s", "vs serial", "tutorial s"];
        header.truncate(if has_tutorial { 8 } else { 7 });
        let mut grid = grid(&header, 2);
        let mut above = "";
        for row in &self.rows {
            let workload = if row.workload == above { "" } else { &row.workload };
            above = &row.workload;
            let mut cells = vec![
                workload.to_owned(),
                row.mode.to_string(),
                cell(row.workers, grouped),
                cell(row.wall_s, |seconds| format!("{seconds:.3}")),
                cell(row.cpu_s, |seconds| format!("{seconds:.3}")),
                cell(row.tasks_per_s, rate),
                cell(row.speed_up, |factor| format!("{factor:.2}x")),
                cell(row.tutorial_s, |seconds| format!("{seconds:.2}")),
            ];
            cells.truncate(header.len());
            grid.add_row(cells);
        }
        format!("{}\n", grid.trim_fmt())
    }
}

/// One measurement.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) workload: String,
    pub(crate) mode: Mode,
    pub(crate) tasks: usize,
    /// Workers that did run a task.
    pub(crate) workers: Option<usize>,
    pub(crate) wall_s: Option<f64>,
    pub(crate) cpu_s: Option<f64>,
    pub(crate) tasks_per_s: Option<f64>,
    pub(crate) speed_up: Option<f64>,
    pub(crate) tutorial_s: Option<f64>,
    /// What the tutorials ran for that figure.
    pub(crate) tutorial_workload: Option<String>,
    /// Calculated, not run.
    pub(crate) computed: bool,
    pub(crate) note: Option<String>,
}

impl Row {
    fn new(workload: &str, mode: Mode, tasks: usize) -> Self {
        Self {
            name: format!("{workload} {mode}"),
            workload: workload.to_owned(),
            mode,
            tasks,
            workers: None,
            wall_s: None,
            cpu_s: None,
            tasks_per_s: None,
            speed_up: None,
            tutorial_s: None,
            tutorial_workload: None,
            computed: false,
            note: None,
        }
    }

    pub(crate) fn measured<T>(workload: &str, mode: Mode, outcome: &Outcome<T>) -> Self {
        let tasks = outcome.answers.len();
        Self {
            workers: Some(outcome.workers),
            cpu_s: Some(outcome.cost.cpu.as_secs_f64()),
            ..Self::new(workload, mode, tasks).taking(outcome.cost.wall)
        }
    }

    /// The serial row of tasks that only wait: there is nothing to find out by running it.
    pub(crate) fn computed(workload: &str, tasks: usize, wall: Duration) -> Self {
        Self { computed: true, ..Self::new(workload, Mode::Serial, tasks).taking(wall) }
    }

    /// A row that could not be had.
    pub(crate) fn refused(workload: &str, mode: Mode, tasks: usize, reason: &str) -> Self {
        Self { note: Some(format!("not measured: {reason}")), ..Self::new(workload, mode, tasks) }
    }

    fn taking(self, wall: Duration) -> Self {
        let wall_s = wall.as_secs_f64();
        Self { wall_s: Some(wall_s), tasks_per_s: Some(count(self.tasks) / wall_s), ..self }
    }

    pub(crate) fn with_tutorial(self, tutorial: &Tutorial) -> Self {
        let tutorial_s = match self.mode {
            Mode::Serial => return self,
            Mode::Threads => tutorial.threads,
            Mode::Processes => tutorial.processes,
        };
        Self { tutorial_s: Some(tutorial_s), tutorial_workload: Some(tutorial.workload.clone()), ..self }
    }
}

/// The tutorials' seconds for one workload.
#[derive(Debug)]
pub(crate) struct Tutorial {
    pub(crate) workload: String,
    pub(crate) threads: f64,
    pub(crate) processes: f64,
}

/// A line of a URL list and what each run made of it.
#[derive(Debug, Serialize)]
pub(crate) struct UrlReport {
    pub(crate) line: String,
    pub(crate) runs: Vec<Fetched>,
}

/// What one run made of a line.
#[derive(Debug, Serialize)]
pub(crate) struct Fetched {
    pub(crate) mode: Mode,
    #[serde(flatten)]
    pub(crate) page: Page,
}

impl UrlReport {
    pub(crate) fn is_failure(&self) -> bool {
        self.runs.iter().any(|run| run.page.is_failure())
    }
}

/// The list's lines, and below them why some failed.
fn url_text(urls: &[UrlReport]) -> String {
    let mut grid = grid(&["#", "status", "bytes", "serial ms", "threads ms", "processes ms", "URL"], 0);
    for column in [1, 6] {
        if let Some(column) = grid.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    let mut notes = String::new();
    for (index, url) in urls.iter().enumerate() {
        let Some(first) = url.runs.first() else { continue };
        let number = index + 1;
        let millis = |mode| {
            let run = url.runs.iter().find(|run| run.mode == mode);
            cell(run, |run| format!("{:.1}", run.page.seconds * 1e3))
        };
        grid.add_row([
            number.to_string(),
            first.page.to_string(),
            grouped(first.page.bytes),
            millis(Mode::Serial),
            millis(Mode::Threads),
            millis(Mode::Processes),
            clean(&url.line, 37),
        ]);
        if let Some(problem) = &first.page.problem {
            notes.push_str(&wrapped(&format!("#{number}: {problem}")));
        }
        for other in url.runs.iter().filter(|other| !other.page.is_like(&first.page)) {
            let (page, mode) = (&other.page, other.mode);
            notes.push_str(&wrapped(&format!("#{number} {mode}: {page}, {} bytes", grouped(page.bytes))));
        }
    }
    format!("{}\n{notes}", grid.trim_fmt())
}

/// A grid with the first columns on the left and numbers on the right.
fn grid(header: &[&str], left: usize) -> comfy_table::Table {
    let mut grid = comfy_table::Table::new();
    grid.load_style(NOTHING.header_separator(LineStyle::none().fill('-').junction('-')));
    grid.set_header(header);
    for column in grid.column_iter_mut().skip(left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    grid
}

/// What stands in a column, or that there is nothing.
pub(crate) fn cell<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate >= 100.0 => format!("{rate:.0}"),
        rate => format!("{rate:.2}"),
    }
}

/// Any count we have is far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
pub(crate) fn count(n: usize) -> f64 {
    n as f64
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: impl ToString) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Foreign text on one line, without control characters and not too long for its place.
fn clean(text: &str, most: usize) -> String {
    let visible: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if visible.chars().count() <= most {
        return visible;
    }
    visible.chars().take(most - 1).chain(['…']).collect()
}

/// An indented paragraph no wider than the page.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut used = 0;
    for word in clean(text, usize::MAX).split_whitespace() {
        let length = word.chars().count();
        if used == 0 {
            lines.push(' ');
        } else if used + 1 + length > WIDTH {
            lines.push_str("\n    ");
            used = 4;
        } else {
            lines.push(' ');
        }
        lines.push_str(word);
        used += 1 + length;
    }
    lines.push('\n');
    lines
}
