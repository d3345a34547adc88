//! The first program of the design, as written, on both executors: the swap is one line.

/// On threads.
#[test]
fn the_first_program_on_threads() -> Result<(), Box<dyn std::error::Error>> {
    use concurrent_futures::{Executor, ThreadPoolExecutor};

    let pool = ThreadPoolExecutor::new(4)?;
    first_program(&pool)?;
    assert!(Executor::shutdown(&pool).is_complete());
    Ok(())
}

/// In worker processes.
#[cfg(all(feature = "process", target_os = "linux"))]
#[test]
fn the_first_program_in_processes() -> Result<(), Box<dyn std::error::Error>> {
    use concurrent_futures::{Executor, ProcessPoolExecutor};

    let pool = ProcessPoolExecutor::new(4)?;
    first_program(&pool)?;
    assert!(Executor::shutdown(&pool).is_complete());
    Ok(())
}

/// The body, generic over the executor.
fn first_program(pool: &impl concurrent_futures::Executor) -> Result<(), Box<dyn std::error::Error>> {
    let answer = pool.submit(power, 12);
    let (told, heard) = std::sync::mpsc::channel();
    answer.add_done_callback(move |outcome| assert!(told.send(outcome.as_ref().ok().copied()).is_ok()));
    let mut values = Vec::new();
    for value in pool.map(power, 0..20) {
        values.push(value?);
    }
    assert_eq!(values[16], 1 << 64, "16 to the 16th is exactly 2 to the 64th");
    assert_eq!(values[19], 1_978_419_655_660_313_589_123_979);
    assert_eq!(answer.result()?, 8_916_100_448_256);
    assert_eq!(heard.recv()?, Some(8_916_100_448_256), "the callback came before the result");
    Ok(())
}

fn power(n: u32) -> u128 {
    u128::from(n).pow(n)
}
