//! The `compare` example, seen from outside: what it prints, what it exits with, what it makes of bad input.

#![cfg(feature = "process")]
#![allow(clippy::unwrap_used, reason = "what should not fail here is a failed test")]

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No run may take longer, on however busy a machine.
const WATCHDOG: Duration = Duration::from_secs(300);

#[test]
fn json_holds_three_tables_with_every_row() {
    let run = compare("json", &["--quick", "--json"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let report = run.json();
    assert_eq!(report["quick"], true);
    let tables = report["tables"].as_array().unwrap();
    let names: Vec<_> = tables.iter().map(|table| table["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cpu", "io", "urls"]);
    let rows: Vec<_> = tables.iter().map(|table| table["rows"].as_array().unwrap()).collect();
    assert_eq!(
        rows.iter().map(|rows| modes(rows)).collect::<Vec<_>>(),
        [
            ["serial", "threads", "processes"].repeat(2),
            ["serial", "threads", "processes"].repeat(2),
            vec!["serial", "threads", "processes"]
        ]
    );
    let tasks =
        |rows: &[Value]| -> Vec<_> { rows.iter().map(|row| row["tasks"].as_u64().unwrap()).collect() };
    assert_eq!(tasks(rows[0]), [4, 4, 4, 12, 12, 12]);
    assert_eq!(tasks(rows[1]), [40, 40, 40, 400, 400, 400]);
    assert_eq!(tasks(rows[2]), [10, 10, 10]);
    for row in rows.iter().flat_map(|rows| rows.iter()) {
        assert!(row["wall_s"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["speed_up"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["note"], Value::Null, "{row}");
    }
    for table in tables {
        assert!(!table["verdict"].as_str().unwrap().is_empty(), "{}", table["name"]);
    }
}

/// A worker's time is read only after its fork server is gone; a reading taken too early shows next to nothing.
#[test]
fn processor_time_of_workers_is_counted() {
    let report = compare("cpu-time", &["--quick", "--json", "--only", "cpu"]).json();
    let rows = report["tables"][0]["rows"].as_array().unwrap();
    for group in rows.chunks(3) {
        let cpu = |index: usize| group[index]["cpu_s"].as_f64().unwrap();
        let (serial, processes) = (cpu(0), cpu(2));
        assert!(processes > serial * 0.5, "serial {serial} s, processes {processes} s");
    }
}

#[test]
fn sleeps_overlap_on_both_pools() {
    let report = compare("overlap", &["--quick", "--json", "--only", "io"]).json();
    for row in report["tables"][0]["rows"].as_array().unwrap() {
        if row["mode"] != "serial" {
            let workers = row["workers"].as_u64().unwrap();
            assert!(workers > 1 && workers <= row["tasks"].as_u64().unwrap(), "{row}");
            assert!(row["wall_s"].as_f64().unwrap() >= 0.05, "{row}");
        }
    }
}

#[test]
fn built_in_list_shows_its_failures() {
    let report = compare("built-in", &["--quick", "--json", "--only", "urls"]).json();
    let urls = report["tables"][0]["urls"].as_array().unwrap();
    for (index, url) in urls.iter().enumerate() {
        let expected = match index {
            1 => "bad-line",
            5 => "refused",
            7 => "timed-out",
            _ => "answered",
        };
        for run in url["runs"].as_array().unwrap() {
            assert_eq!(run["fate"], expected, "{url}");
        }
    }
    assert_eq!(urls[3]["runs"][0]["status"], 404);
    assert!(report["tables"][0]["verdict"].as_str().unwrap().starts_with("6 fetched, 4 failed"), "{report}");
}

#[test]
fn piped_text_is_plain_and_fits_the_page() {
    let run = compare("text", &["--quick"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(!run.stdout.contains('\u{1b}'), "{run:?}");
    assert_eq!(run.stderr, "");
    for line in run.stdout.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    assert_eq!(run.stdout.matches(" => ").count(), 3, "{run:?}");
}

#[test]
fn missing_url_file_is_an_error_that_names_it() {
    let run = compare("missing", &["--quick", "--urls", "/no/such/list.txt"]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("/no/such/list.txt"), "{run:?}");
    assert_eq!(run.stdout, "");
}

#[test]
fn url_file_without_urls_is_an_error_that_names_it() {
    let folder = folder("empty");
    for (name, content) in [("empty.txt", ""), ("comments.txt", "# nothing\n\n  \r\n   # more of it\n")] {
        let list = folder.join(name);
        fs::write(&list, content).unwrap();
        let run = compare("empty-run", &["--quick", "--urls", list.to_str().unwrap()]);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(run.stderr.contains(name), "{run:?}");
    }
}

#[test]
fn url_list_is_reported_line_by_line_in_order() {
    let server = serve();
    let list = folder("list").join("urls.txt");
    let mut file = File::create(&list).unwrap();
    // A byte order mark, both kinds of line end, comments, a line that is no UTF-8, a terminal's escape sequence.
    write!(file, "\u{feff}http://{server}/ok/500\r\n# comment\r\n\r\n  http://{server}/ok/70000  \n")
        .unwrap();
    file.write_all(b"http://\xff\xfe\n").unwrap();
    write!(file, "no \u{1b}[31mURL\nftp://{server}/\nhttp://127.0.0.1:99999/\nhttp://127.0.0.1:1/\nhttp://{server}/gone\n").unwrap();
    write!(file, "http://{server}/stuck\nhttp://{server}/garbage\nhttp://{server}/ok/3").unwrap();
    drop(file);
    let arguments = ["--only", "urls", "--timeout", "0.7", "--urls", list.to_str().unwrap()];

    let run = compare("list-json", &[&arguments[..], &["--json"]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    let report = run.json();
    let urls = report["tables"][0]["urls"].as_array().unwrap();
    let expected = [
        ("answered", Some(200), 500),
        ("answered", Some(200), 70_000),
        ("bad-line", None, 0),
        ("bad-line", None, 0),
        ("bad-line", None, 0),
        ("bad-line", None, 0),
        ("refused", None, 0),
        ("answered", Some(404), 4),
        ("timed-out", None, 0),
        ("failed", None, 0),
        ("answered", Some(200), 3),
    ];
    assert_eq!(urls.len(), expected.len(), "{report}");
    for (url, (fate, status, bytes)) in urls.iter().zip(expected) {
        assert_eq!(modes(url["runs"].as_array().unwrap()), ["serial", "threads", "processes"]);
        for run in url["runs"].as_array().unwrap() {
            assert_eq!(run["fate"], fate, "{url}");
            assert_eq!(run["status"].as_u64(), status, "{url}");
            assert_eq!(run["bytes"].as_u64(), Some(bytes), "{url}");
            assert_eq!(run["problem"].is_null(), fate == "answered", "{url}");
        }
    }
    assert!(urls[10]["line"].as_str().unwrap().ends_with("/ok/3"), "{report}");

    let run = compare("list-text", &arguments);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(!run.stdout.contains('\u{1b}'), "an escape sequence of the list reached the output: {run:?}");
    assert!(run.stdout.contains("3 fetched, 8 failed"), "{run:?}");
}

#[test]
fn zero_workers_are_refused() {
    let run = compare("zero", &["--quick", "--workers", "0"]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("--workers"), "{run:?}");
    assert!(run.stderr.contains("at least 1"), "{run:?}");
}

#[test]
fn chart_names_every_row() {
    let path = folder("chart").join("times.svg");
    let run = compare("chart-run", &["--quick", "--json", "--svg", path.to_str().unwrap()]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let chart = fs::read_to_string(&path).unwrap();
    assert!(chart.starts_with("<svg") && chart.trim_end().ends_with("</svg>"), "{chart}");
    for table in run.json()["tables"].as_array().unwrap() {
        for row in table["rows"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            assert!(chart.contains(name), "{name} is not in the chart");
        }
    }
}

#[test]
fn chart_that_cannot_be_written_is_an_error() {
    let run = compare("no-chart", &["--quick", "--only", "cpu", "--svg", "/no/such/folder/times.svg"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("/no/such/folder/times.svg"), "{run:?}");
}

/// What a run left behind.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    /// Standard output, which must be one JSON document and nothing else.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs the example to its end. `name` is the folder its output goes to: files, for a full pipe would stop it.
fn compare(name: &str, arguments: &[&str]) -> Run {
    let folder = folder(name);
    let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
    let mut child = Command::new(&*EXAMPLE)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + WATCHDOG;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("compare {arguments:?} did not end");
        }
        thread::sleep(Duration::from_millis(10));
    };
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    Run { code: status.code(), stdout: read(&stdout), stderr: read(&stderr) }
}

/// The example beside this test: `target/<profile>/deps/compare-<hash>` is ours, `target/<profile>/examples/compare` the
/// other. `cargo test` builds both; `cargo test --test compare` only the first, so that the other, if it is absent or
/// older than its sources, is built here.
static EXAMPLE: LazyLock<PathBuf> = LazyLock::new(|| {
    let own = env::current_exe().unwrap();
    let profile = own.parent().and_then(Path::parent).unwrap();
    let example = profile.join("examples").join("compare");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let written = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let sources = fs::read_dir(root.join("examples/compare")).unwrap();
    let newest = sources.map(|source| written(&source.unwrap().path()).unwrap()).max().unwrap();
    if written(&example).map_or(true, |built| built < newest) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--example", "compare", "--manifest-path"]);
        cargo.arg(root.join("Cargo.toml"));
        cargo.arg("--target-dir").arg(profile.parent().unwrap());
        // The folder of the `dev` profile is called `debug`.
        let profile = profile.file_name().and_then(|name| name.to_str()).unwrap();
        cargo.args(["--profile", if profile == "debug" { "dev" } else { profile }]);
        assert!(cargo.status().unwrap().success(), "{cargo:?}");
    }
    example
});

/// An empty folder of this test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare").join(name);
    let _absent = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn modes(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["mode"].as_str().unwrap()).collect()
}

/// A server of `/ok/<bytes>`, `/stuck` (headers and no body), `/garbage` (no HTTP) and otherwise 404.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            thread::spawn(move || answer(&connection.unwrap()));
        }
    });
    address
}

fn answer(mut connection: &TcpStream) -> Option<()> {
    let lines: Vec<_> = BufReader::new(connection)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let path = lines.first()?.split(' ').nth(1)?;
    let head = |status: &str, length| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
    };
    let answer = if let Some(bytes) = path.strip_prefix("/ok/") {
        let bytes = bytes.parse().ok()?;
        head("200 OK", bytes) + &"b".repeat(bytes)
    } else if path == "/stuck" {
        head("200 OK", 10)
    } else if path == "/garbage" {
        "this is not HTTP\r\n\r\n".to_owned()
    } else {
        head("404 Not Found", 4) + "gone"
    };
    connection.write_all(answer.as_bytes()).ok()?;
    if path == "/stuck" {
        // Open until the client hangs up.
        let _end = BufReader::new(connection).lines().count();
    }
    Some(())
}
