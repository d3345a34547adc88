//! Work for the processor: the tutorials' multiply loops.

use std::hint::black_box;

use crate::report::{Row, Table, Tutorial, grouped};
use crate::verdict;
use crate::workload::{Answer, Batch, Mode, RunError, run};

/// One row group of the table: so many tasks of so many multiplications, and the tutorials' seconds for it.
struct Loops {
    tasks: usize,
    iterations: u64,
    threads: f64,
    processes: f64,
}

/// The tutorials' sizes, and their figures: CPython on 8 cores, a worker per task.
const TUTORIAL: [Loops; 2] = [
    Loops {
        tasks: 4,
        iterations: 100_000_000,
        threads: 21.265_116_930_007_935,
        processes: 6.448_570_728_302_002,
    },
    Loops {
        tasks: 12,
        iterations: 10_000_000,
        threads: 5.698_534_250_259_399,
        processes: 1.467_994_928_359_985_4,
    },
];

/// What `--quick` divides the loops by.
const QUICK: u64 = 50;

/// Measures the whole table.
pub(crate) fn table(workers: usize, is_quick: bool) -> Result<Table, RunError> {
    let mut table = Table::new("cpu", "CPU-bound: res = 0; for i in 0..n { res *= i }");
    for Loops { tasks, iterations, threads, processes } in TUTORIAL {
        let asked = iterations / if is_quick { QUICK } else { 1 };
        let batch = Batch {
            name: format!("{tasks} x {}", grouped(asked)),
            task: multiply,
            arguments: vec![asked; tasks],
            check: |_, product| match product {
                0 => Ok(()),
                _ => Err(format!("0 times anything is 0, got {product}")),
            },
        };
        let tutorial =
            Tutorial { workload: format!("{tasks} x {}", grouped(iterations)), threads, processes };
        for mode in Mode::ALL {
            let outcome = run(&batch, mode, workers)?;
            table.push(Row::measured(&batch.name, mode, &outcome).with_tutorial(&tutorial));
        }
    }
    table.verdict = verdict::cpu(&table);
    table.remarks.push("tutorial s: CPython on 8 cores, a worker per task, loops of full length");
    Ok(table)
}

/// The tutorials' loop. Starting from 0 the product stays 0, which an optimiser knows; `black_box` keeps it from acting
/// on that, so that every multiplication is carried out.
fn multiply((index, iterations): (usize, u64)) -> Answer<u64> {
    let mut product = 0_u64;
    for i in 0..iterations {
        product = black_box(product).wrapping_mul(i);
    }
    Answer::new(index, product)
}
