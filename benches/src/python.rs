//! Samples of programs in Python, where there is one.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::suite::{Failure, Outcome};

/// Runs a script of `benches/python/`, which prints its figures on one line.
pub fn run(script: &str, arguments: &[&str]) -> Outcome {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
    let output = Command::new("python3")
        .arg(path)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = output.map_err(|error| Failure::Missing(format!("python3: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Result<Vec<f64>, _> = text.split_whitespace().map(str::parse).collect();
    match figures {
        Ok(figures) if output.status.success() => Ok(figures),
        _ => Err(Failure::Failed(format!("{}: {}", output.status, text.trim()))),
    }
}
