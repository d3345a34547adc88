//! Threads or processes for my workload? Measures both, beside plain serial code, on three kinds of work.
//!
//! ```text
//! cargo run --release --example compare                       # everything, in a few seconds
//! cargo run --release --example compare -- --urls list.txt    # your own pages, one URL a line
//! cargo run --release --example compare -- --json --svg times.svg
//! ```
//!
//! Every workload is written once, over [`Executor`](concurrent_futures::Executor), and run on both pools; every result
//! is checked. Exit code 1: a result was wrong or a pool failed; 2: the arguments or the URL list are no good.

mod chart;
mod cpu;
mod io;
mod measure;
mod report;
mod server;
mod urls;
mod verdict;
mod workload;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use concurrent_futures::ThreadPoolExecutor;

use crate::io::Scale;
use crate::report::Report;
use crate::urls::UrlList;

/// Threads or processes for my workload? Measures both beside serial code.
#[derive(Debug, Parser)]
#[command(name = "compare", max_term_width = 100)]
struct Arguments {
    /// Fetch the URLs in FILE, one a line, instead of pages from a server of our own
    #[arg(long, value_name = "FILE")]
    urls: Option<PathBuf>,

    /// Give up on a URL of FILE after so long
    #[arg(long, value_name = "SECONDS", default_value = "10", requires = "urls", value_parser = parse_timeout)]
    timeout: Duration,

    /// Workers for CPU-bound work and URLs [default: the cores, and a worker per URL up to 32]
    #[arg(long, value_name = "N", value_parser = parse_workers)]
    workers: Option<usize>,

    /// Smaller loops and shorter sleeps: a few seconds in all
    #[arg(long, conflicts_with = "full")]
    quick: bool,

    /// Sleep for 2 s as the tutorials do, not for a tenth of it
    #[arg(long)]
    full: bool,

    /// Only these tables
    #[arg(long, value_name = "TABLE", value_delimiter = ',')]
    only: Vec<Kind>,

    /// Print the numbers as JSON and nothing else
    #[arg(long)]
    json: bool,

    /// Draw the times as a bar chart
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// How long to wait for a page of our own server: long for a page, short for the one that never comes.
const OWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Work for the processor
    Cpu,
    /// Work that waits
    Io,
    /// A URL list
    Urls,
}

impl Arguments {
    fn wants(&self, kind: Kind) -> bool {
        self.only.is_empty() || self.only.contains(&kind)
    }

    fn scale(&self) -> Scale {
        match (self.quick, self.full) {
            (true, _) => Scale::Quick,
            (_, true) => Scale::Full,
            _ => Scale::Default,
        }
    }
}

/// Why the program ends early.
enum Failure {
    /// What was asked for cannot be done: exit code 2.
    Usage(String),
    /// What was done came out wrong: exit code 1.
    Run(String),
}

fn main() -> ExitCode {
    let (code, problem) = match compare(&Arguments::parse()) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Run(problem)) => (1, problem),
        Err(Failure::Usage(problem)) => (2, problem),
    };
    eprintln!("error: {problem}");
    ExitCode::from(code)
}

fn compare(arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    // Before anything is measured: a list that cannot be read should not cost the user the other tables' time.
    let list = match arguments.wants(Kind::Urls) {
        true => Some(url_list(arguments)?),
        false => None,
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = arguments.workers.unwrap_or(cores);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        cores,
        workers,
        quick: arguments.quick,
        tables: Vec::new(),
        seconds: 0.0,
    };
    let show = |text: &str| if arguments.json { Ok(()) } else { print(text) };
    show(&report.header())?;
    for kind in [Kind::Cpu, Kind::Io, Kind::Urls] {
        let table = match (kind, &list) {
            _ if !arguments.wants(kind) => continue,
            (Kind::Cpu, _) => cpu::table(workers, arguments.quick),
            (Kind::Io, _) => io::table(arguments.scale()),
            (Kind::Urls, Some(list)) => urls::table(list),
            (Kind::Urls, None) => continue,
        };
        let table = table.map_err(|error| Failure::Run(error.to_string()))?;
        show(&table.text())?;
        report.tables.push(table);
    }
    report.seconds = started.elapsed().as_secs_f64();
    show(&format!("\n{:.1} s in all\n", report.seconds))?;
    if arguments.json {
        let json = serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::Run(format!("cannot write JSON: {error}")))?;
        print(&format!("{json}\n"))?;
    }
    if let Some(path) = &arguments.svg {
        let drawn =
            chart::svg(&report).map_err(|error| Failure::Run(format!("cannot draw the chart: {error}")))?;
        fs::write(path, drawn)
            .map_err(|error| Failure::Run(format!("cannot write '{}': {error}", path.display())))?;
    }
    Ok(())
}

fn url_list(arguments: &Arguments) -> Result<UrlList, Failure> {
    let Some(path) = &arguments.urls else {
        let (pages, latency) = match arguments.quick {
            true => (6, Duration::from_millis(20)),
            false => (24, Duration::from_millis(100)),
        };
        return UrlList::built_in(pages, latency, OWN_TIMEOUT, arguments.workers)
            .map_err(|error| Failure::Run(format!("cannot start a server on the loopback: {error}")));
    };
    UrlList::read(path, arguments.timeout, arguments.workers).map_err(Failure::Usage)
}

/// Writes to standard output; a reader that has seen enough is no error.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Run(format!("cannot write the report: {error}")))
        }
        _ => Ok(()),
    }
}

/// The library knows what it accepts; a pool starts no worker before its first task, so asking it is free.
fn parse_workers(text: &str) -> Result<usize, String> {
    let workers = text.parse().map_err(|error| format!("{error}"))?;
    match ThreadPoolExecutor::new(workers) {
        Ok(_) => Ok(workers),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(timeout) if !timeout.is_zero() => Ok(timeout),
        _ => Err("a time-out is longer than nothing, and finite".to_owned()),
    }
}
