//! The command line.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::suite::Setting;

/// Measures ours beside its peers and prints one table.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Only these rows: T1,T4
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub(crate) rows: Vec<String>,
    /// Only these peers, beside ours: rayon,tokio ("none" for ours alone)
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) peers: Vec<String>,
    /// Samples of each cell [default: 5, with --quick 1]
    #[arg(long, value_name = "N")]
    reps: Option<usize>,
    /// Workers of every pool that a row does not size itself
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) workers: usize,
    /// Small sizes, once each: everything runs, no figure means anything
    #[arg(long, alias = "test")]
    pub(crate) quick: bool,
    /// Where the figures go [default: bench/<name>.json in the target directory]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the chart goes [default: bench/<name>.svg in the target directory]
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Name the rows and who runs them, and stop
    #[arg(long)]
    pub(crate) list: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
    /// One sample, by the process that is one: workload and contender.
    #[arg(long, hide = true, num_args = 2)]
    pub(crate) sample: Option<Vec<String>>,
    #[arg(skip)]
    name: &'static str,
}

/// Ends the program where the command line is wrong.
pub(crate) fn parse(name: &'static str) -> Options {
    let command = Options::command().name(name);
    let matches = command.get_matches();
    let mut options = Options::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    options.name = name;
    options
}

impl Options {
    pub(crate) fn repetitions(&self) -> usize {
        self.reps.unwrap_or(if self.quick { 1 } else { 5 }).max(1)
    }

    pub(crate) fn setting(&self) -> Setting {
        Setting { workers: self.workers, quick: self.quick }
    }

    pub(crate) fn wants_peer(&self, name: &str) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|peer| peer.eq_ignore_ascii_case(name))
    }

    pub(crate) fn json(&self) -> PathBuf {
        self.json.as_ref().map_or_else(|| self.default("json"), |path| from_root(path))
    }

    pub(crate) fn svg(&self) -> PathBuf {
        self.svg.as_ref().map_or_else(|| self.default("svg"), |path| from_root(path))
    }

    fn default(&self, extension: &str) -> PathBuf {
        // The program is target/release/deps/threads-<hash>.
        let target = std::env::current_exe().ok().and_then(|exe| exe.ancestors().nth(3).map(Path::to_owned));
        target.unwrap_or_default().join("bench").join(format!("{}.{extension}", self.name))
    }
}

/// `cargo bench` runs this in the package's folder, but it was called in the workspace's.
fn from_root(path: &Path) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_in_package = std::env::current_dir().is_ok_and(|here| here == package);
    match package.parent() {
        Some(root) if is_in_package => root.join(path),
        _ => path.to_owned(),
    }
}

/// Makes the folder, too.
pub(crate) fn write(path: &Path, content: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)
}
