//! `map` over a list of URLs: fetched for real, or from a server of our own.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use concurrent_futures::{Executor, TaskError};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use ureq::Agent;
use ureq::http::Uri;

use crate::report::{Fetched, Row, Table, UrlReport, grouped};
use crate::server::{Latency, NOT_FOUND, Server};
use crate::verdict;
use crate::workload::{Answer, Mode, RunError, Workload, run};

/// Unless told otherwise, no more pages than this are asked for at once.
const MOST_WORKERS: usize = 32;

/// The lines to fetch and, for the built-in list, what must come back.
#[derive(Debug)]
pub(crate) struct UrlList {
    source: String,
    requests: Vec<Request>,
    expected: Option<Vec<Page>>,
    workers: Option<usize>,
}

impl UrlList {
    /// Reads one URL per line; blank lines and comments are skipped, anything else is for [`fetch`] to judge.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or there is no URL in it.
    pub(crate) fn read(path: &Path, timeout: Duration, workers: Option<usize>) -> Result<Self, String> {
        let bytes = fs::read(path)
            .map_err(|error| format!("cannot read the URL list '{}': {error}", path.display()))?;
        // A line in another encoding is one bad line, not a bad file.
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
        let requests: Vec<_> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| Request { line: line.to_owned(), timeout })
            .collect();
        if requests.is_empty() {
            return Err(format!("the URL list '{}' holds no URL", path.display()));
        }
        Ok(Self { source: path.display().to_string(), requests, expected: None, workers })
    }

    /// Pages of a server in this program, with some failures among them so that their reporting is seen.
    ///
    /// # Errors
    ///
    /// The server cannot be started.
    pub(crate) fn built_in(
        pages: usize,
        latency: Duration,
        timeout: Duration,
        workers: Option<usize>,
    ) -> io::Result<Self> {
        // So much slower than the time-out that no load on the machine makes it the faster of the two.
        let server = Server::start(Latency { page: latency, slow: timeout * 100 })?;
        let mut lines = Vec::new();
        let mut expected = Vec::new();
        for number in 0..pages {
            let bytes = 1_000 * (number + 1);
            lines.push(server.page(bytes));
            expected.push(Page::answered(200, bytes));
        }
        // The failures in between, where they could shift or stop what follows.
        for (place, line, page) in [
            (1, "not a URL".to_owned(), Page::failed(Fate::BadLine)),
            (3, server.missing(), Page::answered(404, NOT_FOUND.len())),
            // Port 1 is reserved, nothing listens there.
            (5, "http://127.0.0.1:1/refused".to_owned(), Page::failed(Fate::Refused)),
            (7, server.slow(), Page::failed(Fate::TimedOut)),
        ] {
            lines.insert(place.min(lines.len()), line);
            expected.insert(place.min(expected.len()), page);
        }
        let requests: Vec<_> = lines.into_iter().map(|line| Request { line, timeout }).collect();
        let source = format!("own server, {} ms a page", latency.as_millis());
        Ok(Self { source, requests, expected: Some(expected), workers })
    }
}

impl Workload for UrlList {
    type Value = Page;

    fn name(&self) -> String {
        match self.requests.len() {
            1 => "1 URL".to_owned(),
            n => format!("{} URLs", grouped(n)),
        }
    }

    fn tasks(&self) -> usize {
        self.requests.len()
    }

    fn in_turn(&self, progress: &ProgressBar) -> Vec<Answer<Page>> {
        let requests = self.requests.iter().cloned().enumerate();
        requests.map(fetch).inspect(|_| progress.inc(1)).collect()
    }

    fn on<E: Executor>(&self, pool: &E, progress: &ProgressBar) -> Result<Vec<Answer<Page>>, TaskError> {
        let requests = self.requests.iter().cloned().enumerate();
        // One by one: chunks, which follow the time that the first items took, suit work that is alike, and here a line
        // that fails at once says nothing about how long the next page takes.
        pool.options().chunk_size(1).map(fetch, requests).inspect(|_| progress.inc(1)).collect()
    }

    fn check(&self, index: usize, page: &Page) -> Result<(), String> {
        match self.expected.as_ref().and_then(|expected| expected.get(index)) {
            Some(expected) if !page.is_like(expected) => Err(format!("{page} instead of {expected}")),
            _ => Ok(()),
        }
    }
}

/// Fetches the list in turn, on threads and in processes.
pub(crate) fn table(list: &UrlList) -> Result<Table, RunError> {
    let mut table = Table::new("urls", format!("map over a URL list: {}", list.source));
    let mut reports: Vec<_> = list
        .requests
        .iter()
        .map(|request| UrlReport { line: request.line.clone(), runs: Vec::new() })
        .collect();
    let workers = list.workers.unwrap_or_else(|| list.tasks().min(MOST_WORKERS));
    for mode in Mode::ALL {
        let outcome = run(list, mode, workers)?;
        table.push(Row::measured(&list.name(), mode, &outcome));
        for (report, answer) in reports.iter_mut().zip(outcome.answers) {
            report.runs.push(Fetched { mode, page: answer.value });
        }
    }
    table.urls = reports;
    table.verdict = verdict::urls(&table);
    Ok(table)
}

/// A line of the list and how long to wait for its page.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Request {
    line: String,
    timeout: Duration,
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fate {
    Answered,
    BadLine,
    Refused,
    TimedOut,
    Failed,
}

/// What a fetch brought: a failure is an ordinary value here, it stops nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Page {
    pub(crate) fate: Fate,
    pub(crate) status: Option<u16>,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// The reason, if there is no page.
    pub(crate) problem: Option<String>,
}

impl Page {
    fn answered(status: u16, bytes: usize) -> Self {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        Self { fate: Fate::Answered, status: Some(status), bytes, seconds: 0.0, problem: None }
    }

    fn failed(fate: Fate) -> Self {
        Self { fate, status: None, bytes: 0, seconds: 0.0, problem: None }
    }

    /// An answer of the server that says it is not the page asked for is a failure too.
    pub(crate) fn is_failure(&self) -> bool {
        self.fate != Fate::Answered || self.status.is_some_and(|status| status >= 400)
    }

    /// Whether both are the same but for time and wording.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.fate, self.status, self.bytes) == (other.fate, other.status, other.bytes)
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.fate, self.status) {
            (Fate::Answered, Some(status)) => return f.pad(&status.to_string()),
            (Fate::Answered, None) => "answered",
            (Fate::BadLine, _) => "bad line",
            (Fate::Refused, _) => "refused",
            (Fate::TimedOut, _) => "time-out",
            (Fate::Failed, _) => "failed",
        };
        f.pad(text)
    }
}

/// The task of this table.
fn fetch((index, request): (usize, Request)) -> Answer<Page> {
    let started = Instant::now();
    let page = match download(&request) {
        Ok((status, bytes)) => {
            Page { fate: Fate::Answered, status: Some(status), bytes, seconds: 0.0, problem: None }
        }
        Err((fate, problem)) => Page { problem: Some(problem), ..Page::failed(fate) },
    };
    Answer::new(index, Page { seconds: started.elapsed().as_secs_f64(), ..page })
}

/// One per process. Connections are not kept, or the mode that runs first would pay for those after it.
static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_idle_connections(0)
        .user_agent("concurrent-futures compare");
    config.build().into()
});

/// Status and length of the page.
fn download(request: &Request) -> Result<(u16, u64), (Fate, String)> {
    let uri = parse(&request.line).map_err(|problem| (Fate::BadLine, problem))?;
    let is_local = uri.host().is_some_and(is_loopback);
    let mut config = AGENT.get(uri).config().timeout_global(Some(request.timeout));
    if is_local {
        // A proxy named in the environment has another loopback than we do.
        config = config.proxy(None);
    }
    let mut response = config.build().call().map_err(|error| classify(&error, request.timeout))?;
    let mut body = response.body_mut().as_reader();
    let bytes =
        io::copy(&mut body, &mut io::sink()).map_err(|error| classify(&error.into(), request.timeout))?;
    Ok((response.status().as_u16(), bytes))
}

fn parse(line: &str) -> Result<Uri, String> {
    let uri: Uri = line.parse().map_err(|error| format!("not a URL: {error}"))?;
    let host = match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => host,
        (Some("http" | "https"), _) => return Err("no host".to_owned()),
        _ => return Err("neither http:// nor https://".to_owned()),
    };
    // A port above 65535 is no port to `Uri`, and the scheme's own would be asked instead.
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if uri.port().is_none() && !authority.ends_with(host) && !authority.ends_with(':') {
        return Err("no such port".to_owned());
    }
    Ok(uri)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn classify(error: &ureq::Error, timeout: Duration) -> (Fate, String) {
    let kind = match error {
        ureq::Error::Timeout(_) => io::ErrorKind::TimedOut,
        ureq::Error::Io(error) => error.kind(),
        _ => io::ErrorKind::Other,
    };
    match kind {
        io::ErrorKind::TimedOut => {
            (Fate::TimedOut, format!("no whole page within {} s", timeout.as_secs_f64()))
        }
        io::ErrorKind::ConnectionRefused => (Fate::Refused, error.to_string()),
        _ => (Fate::Failed, error.to_string()),
    }
}
