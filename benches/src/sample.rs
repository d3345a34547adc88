//! One sample: a process of its own, and what it says.
//!
//! The child prints `figures: <number> ...` or `missing: <why>` as the last line of its output. It leads a process group,
//! so that everything it started can be killed with it.

use std::io::Read;
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
            println!("figures: {}", figures.join(" "));
        }
        Ok(Err(Failure::Missing(why))) => println!("missing: {why}"),
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

fn listen(mut child: Child, limit: Duration) -> Outcome {
    let id = child.id();
    let (said, hear) = mpsc::channel();
    let mut output = child.stdout.take();
    let errors = child.stderr.take().map(|mut pipe| thread::spawn(move || read(&mut pipe)));
    // Reads and waits without a clock tick: the sample has the machine for itself.
    let listener = thread::spawn(move || {
        let text = output.as_mut().map(read).unwrap_or_default();
        let status = child.wait();
        let _ = said.send((text, status));
    });
    let answer = hear.recv_timeout(limit);
    let group = i32::try_from(id).map(Pid::from_raw);
    if let Ok(group) = group {
        // What is left of it, or all of it: it hangs. No such group is the usual answer.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let _ = listener.join();
    let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let Ok((text, status)) = answer else { return Err(Failure::Hangs(limit)) };
    let last = text.lines().last().unwrap_or_default();
    if let Some(figures) = last.strip_prefix("figures: ") {
        let figures: Result<Vec<f64>, _> = figures.split(' ').map(str::parse).collect();
        return figures.map_err(|error| Failure::Failed(error.to_string()));
    }
    if let Some(why) = last.strip_prefix("missing: ") {
        return Err(Failure::Missing(why.to_owned()));
    }
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    let about = errors.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let about = errors
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("note:"))
        .find(|line| line.len() > 3 && !line.starts_with("thread '"))
        .unwrap_or(about);
    Err(Failure::Failed(format!("{status}: {about}")))
}

fn read(pipe: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
