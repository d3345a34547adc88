//! One sample: a process of its own, and what it says.
//!
//! The child prints `figures: <number> ...` or `missing: <why>` as the last line of its output. It leads a process group,
//! so that everything it started can be killed with it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, io, thread};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::suite::{Failure, Outcome, Setting, Suite};
use crate::usage;

const FIGURES: &str = "figures: ";
const MISSING: &str = "missing: ";

/// In the child: measures and says so.
pub(crate) fn run_here(suite: &Suite, hidden: &[String], setting: &Setting) -> ExitCode {
    let [workload, contender] = hidden else { return ExitCode::FAILURE };
    let cell = suite
        .workloads
        .iter()
        .filter(|candidate| candidate.id == *workload)
        .flat_map(|workload| &workload.cells)
        .find(|cell| cell.contender == contender);
    let Some(cell) = cell else {
        eprintln!("no {contender} in {workload}");
        return ExitCode::FAILURE;
    };
    usage::raise_file_limit();
    match catch_unwind(AssertUnwindSafe(|| (cell.run)(setting))) {
        Ok(Ok(figures)) => {
            let figures: Vec<_> = figures.iter().map(f64::to_string).collect();
            println!("{FIGURES}{}", figures.join(" "));
        }
        Ok(Err(Failure::Missing(why))) => println!("{MISSING}{why}"),
        Ok(Err(failure)) => {
            eprintln!("{failure:?}");
            return ExitCode::FAILURE;
        }
        Err(_) => return ExitCode::FAILURE,
    }
    // A pool that does not stop is no matter here.
    std::process::exit(0)
}

/// In the parent: one child, its figures.
pub(crate) fn take(workload: &str, contender: &str, setting: &Setting, limit: Duration) -> Outcome {
    spawn(workload, contender, setting)
        .map_err(|error| Failure::Failed(error.to_string()))
        .and_then(|child| listen(child, limit))
}

fn spawn(workload: &str, contender: &str, setting: &Setting) -> io::Result<Child> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--sample", workload, contender, "--workers", &setting.workers.to_string()]);
    // Where smol's `blocking` looks for the size of its pool.
    command.env("BLOCKING_MAX_THREADS", setting.workers.to_string());
    if setting.quick {
        command.arg("--quick");
    }
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Until it has said its figures or is over. Whatever it has started may keep its pipes open, so nothing here waits for
/// their end without a limit.
fn listen(mut child: Child, limit: Duration) -> Outcome {
    let group = i32::try_from(child.id()).map(Pid::from_raw);
    let (said, hear) = mpsc::channel();
    let (complained, complaints) = mpsc::channel();
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    thread::spawn(move || complained.send(errors.map(read).unwrap_or_default()));
    // Reads and waits without a clock tick: the sample has the machine for itself.
    thread::spawn(move || {
        let lines = output.map(BufReader::new).into_iter().flat_map(BufRead::lines);
        let answer =
            lines.map_while(Result::ok).find(|line| line.starts_with(FIGURES) || line.starts_with(MISSING));
        let _ = said.send((answer, child.wait()));
    });
    let answer = hear.recv_timeout(limit);
    if let Ok(group) = group {
        // What is left of it, or all of it: it hangs. No such group is the usual answer.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let Ok((answer, status)) = answer else { return Err(Failure::Hangs(limit)) };
    if let Some(answer) = answer {
        return match answer.strip_prefix(FIGURES) {
            Some(figures) => {
                let figures: Result<Vec<f64>, _> = figures.split(' ').map(str::parse).collect();
                figures.map_err(|error| Failure::Failed(error.to_string()))
            }
            None => Err(Failure::Missing(answer.trim_start_matches(MISSING).to_owned())),
        };
    }
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    let errors = complaints.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
    Err(Failure::Failed(format!("{status}: {}", about(&errors))))
}

/// What a panic or a Python traceback says, on one line.
fn about(errors: &str) -> String {
    let is_said = |line: &&str| {
        !line.is_empty()
            && !["note:", "thread '", "stack backtrace"].iter().any(|start| line.starts_with(start))
    };
    let mut lines: Vec<&str> = errors.lines().map(str::trim).filter(is_said).collect();
    if lines.iter().any(|line| line.starts_with("Traceback")) {
        lines = lines.split_off(lines.len().saturating_sub(1));
    }
    lines.truncate(3);
    lines.join("; ")
}

fn read(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
