//! Work that runs unchanged in turn, on threads and in processes, and the check of what comes back.

use std::collections::HashSet;
use std::error::Error;
use std::fmt;

use concurrent_futures::{
    BuildError, Executor, Payload, ProcessPoolExecutor, TaskError, TaskFuture, ThreadPoolExecutor,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::measure::{Cost, measure};

/// Where the tasks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Serial,
    Threads,
    Processes,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Serial, Self::Threads, Self::Processes];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Serial => "serial",
            Self::Threads => "threads",
            Self::Processes => "processes",
        })
    }
}

/// What every task of this program returns: its value, which task it was, and who ran it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answer<T> {
    pub(crate) index: usize,
    pub(crate) value: T,
    worker: Worker,
}

impl<T> Answer<T> {
    /// The answer of task `index`, signed by the worker this is called on.
    pub(crate) fn new(index: usize, value: T) -> Self {
        Self { index, value, worker: Worker::current() }
    }
}

/// Who ran a task: enough to tell that "in processes" did mean other processes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Worker {
    pid: u32,
    thread: String,
}

impl Worker {
    fn current() -> Self {
        Self { pid: std::process::id(), thread: format!("{:?}", std::thread::current().id()) }
    }
}

/// A list of tasks. [`on`](Self::on) is written once and compiled for both pools; nothing in it knows which one it has.
pub(crate) trait Workload {
    type Value: Payload;

    fn name(&self) -> String;

    /// How many answers there must be.
    fn tasks(&self) -> usize;

    fn in_turn(&self, progress: &ProgressBar) -> Vec<Answer<Self::Value>>;

    fn on<E: Executor>(
        &self,
        pool: &E,
        progress: &ProgressBar,
    ) -> Result<Vec<Answer<Self::Value>>, TaskError>;

    /// Says what is wrong with the value of task `index`, if anything is.
    fn check(&self, index: usize, value: &Self::Value) -> Result<(), String>;
}

/// The same function for every argument, each submitted on its own.
pub(crate) struct Batch<A, V> {
    pub(crate) name: String,
    pub(crate) task: fn((usize, A)) -> Answer<V>,
    pub(crate) arguments: Vec<A>,
    pub(crate) check: fn(&A, &V) -> Result<(), String>,
}

impl<A: Payload + Clone, V: Payload> Workload for Batch<A, V> {
    type Value = V;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn tasks(&self) -> usize {
        self.arguments.len()
    }

    fn in_turn(&self, progress: &ProgressBar) -> Vec<Answer<V>> {
        let arguments = self.arguments.iter().cloned().enumerate();
        arguments.map(|argument| (self.task)(argument)).inspect(|_| progress.inc(1)).collect()
    }

    fn on<E: Executor>(&self, pool: &E, progress: &ProgressBar) -> Result<Vec<Answer<V>>, TaskError> {
        let arguments = self.arguments.iter().cloned().enumerate();
        let futures: Vec<_> = arguments
            .map(|argument| {
                let future = pool.submit(self.task, argument);
                let progress = progress.clone();
                future.add_done_callback(move |_| progress.inc(1));
                future
            })
            .collect();
        futures.into_iter().map(TaskFuture::result).collect()
    }

    fn check(&self, index: usize, value: &V) -> Result<(), String> {
        match self.arguments.get(index) {
            Some(argument) => (self.check)(argument, value),
            None => Err("it was never asked for".to_owned()),
        }
    }
}

/// A run that was carried out and whose answers are right.
pub(crate) struct Outcome<T> {
    pub(crate) answers: Vec<Answer<T>>,
    pub(crate) cost: Cost,
    /// How many different workers the answers came from.
    pub(crate) workers: usize,
}

/// Runs a workload from the making of the pool to the end of its last worker, and checks the answers.
///
/// # Errors
///
/// [`RunError`]: the pool could not be had, a task failed, or an answer is wrong.
pub(crate) fn run<W: Workload>(
    workload: &W,
    mode: Mode,
    max_workers: usize,
) -> Result<Outcome<W::Value>, RunError> {
    let progress = progress_bar(workload, mode);
    let (answers, cost) = measure(|| match mode {
        Mode::Serial => Ok(workload.in_turn(&progress)),
        Mode::Threads => life_of_pool(ThreadPoolExecutor::new(max_workers), workload, &progress),
        Mode::Processes => life_of_pool(ProcessPoolExecutor::new(max_workers), workload, &progress),
    })
    .map_err(RunError::Clock)?;
    progress.finish_and_clear();
    let answers = answers?;
    let workers = verify(workload, mode, &answers).map_err(RunError::Wrong)?;
    Ok(Outcome { answers, cost, workers })
}

fn life_of_pool<E: Executor, W: Workload>(
    pool: Result<E, BuildError>,
    workload: &W,
    progress: &ProgressBar,
) -> Result<Vec<Answer<W::Value>>, RunError> {
    let pool = pool.map_err(RunError::Pool)?;
    let answers = workload.on(&pool, progress);
    match answers {
        Ok(_) => pool.shutdown(),
        // The row is lost: what has not started need not start.
        Err(_) => pool.shutdown_now(),
    };
    answers.map_err(RunError::Task)
}

/// Checks number, order, values and place of the answers; returns how many workers gave them.
fn verify<W: Workload>(workload: &W, mode: Mode, answers: &[Answer<W::Value>]) -> Result<usize, String> {
    let (name, tasks) = (workload.name(), workload.tasks());
    if answers.len() != tasks {
        return Err(format!("{name} {mode}: {} answers for {tasks} tasks", answers.len()));
    }
    let own_pid = std::process::id();
    let mut workers = HashSet::new();
    for (index, answer) in answers.iter().enumerate() {
        if answer.index != index {
            return Err(format!("{name} {mode}: answer {index} is that of task {}", answer.index));
        }
        if (answer.worker.pid == own_pid) == (mode == Mode::Processes) {
            return Err(format!("{name} {mode}: task {index} ran in process {}", answer.worker.pid));
        }
        workload
            .check(index, &answer.value)
            .map_err(|problem| format!("{name} {mode}: task {index}: {problem}"))?;
        workers.insert(&answer.worker);
    }
    Ok(workers.len())
}

/// A bar on standard error, which draws nothing when that is not a terminal.
fn progress_bar<W: Workload>(workload: &W, mode: Mode) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(workload.tasks()).unwrap_or(u64::MAX));
    let style = ProgressStyle::with_template("{msg:34} {wide_bar} {pos}/{len} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_message(format!("{} {mode}", workload.name()));
    bar.tick();
    bar
}

/// Why a run gave no row.
#[derive(Debug)]
pub(crate) enum RunError {
    Pool(BuildError),
    Task(TaskError),
    Clock(nix::Error),
    Wrong(String),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(error) => write!(f, "the pool could not be built: {}", chain(error)),
            Self::Task(error) => write!(f, "a task failed: {error}"),
            Self::Clock(error) => write!(f, "the processor time could not be read: {error}"),
            Self::Wrong(problem) => write!(f, "wrong result: {problem}"),
        }
    }
}

/// An error's text with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
