//! Worker processes for a shared object in a foreign program: an extension module of an interpreter, a plug-in.
//!
//! ```console
//! cargo build --release --example extension
//! python3 -c "import ctypes; print(ctypes.CDLL('target/release/examples/libextension.so').sum_of_squares(1000))"
//! ```
//!
//! The workers are started by executing the foreign program again, which is taken over before its `main`: they have the
//! functions of this shared object, and no interpreter.

use concurrent_futures::{ProcessPoolExecutor, TaskError};

/// The sum of the squares of all numbers below `n`, computed in two worker processes; -1 if something went wrong, of which
/// standard error tells.
#[unsafe(no_mangle)]
pub extern "C" fn sum_of_squares(n: u32) -> i64 {
    match compute(n) {
        Ok(sum) => sum,
        Err(error) => {
            eprintln!("{error}");
            -1
        }
    }
}

fn compute(n: u32) -> Result<i64, Box<dyn std::error::Error>> {
    let pool = ProcessPoolExecutor::new(2)?;
    let squares: Result<i64, TaskError> = pool.map(|n: u32| i64::from(n) * i64::from(n), 0..n).sum();
    Ok(squares?)
}
