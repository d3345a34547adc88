//! The orders of magnitude of both pools, in one table: `cargo bench --bench pools`.
//!
//! Rows T1 to T8 and P1 to P4 are those of the design's goals. Every figure is the median of several repetitions with a
//! fresh pool each, its results checked; the fastest one stands beside it. Machines differ: the figures say only how much
//! a task costs here. An argument chooses the rows whose names hold it: `cargo bench --bench pools -- P1`.

use std::time::{Duration, Instant};

use concurrent_futures::{Executor, ThreadPoolExecutor};

fn main() {
    // `cargo test --benches` calls this with `--test`: once through, small.
    let is_test = std::env::args().any(|argument| argument == "--test");
    let (scale, repetitions) = if is_test { (100, 1) } else { (1, 7) };
    println!("{:<62} {:>12} {:>12}", "", "median", "fastest");
    threads(scale, repetitions);
    #[cfg(all(feature = "process", target_os = "linux"))]
    processes(scale, repetitions);
}

fn threads(scale: u32, repetitions: usize) {
    let workers = 2;
    let n = 1_000_000 / scale;
    row("T1 threads: submit, results read in order, per task", repetitions, || {
        let pool = pool_of(workers);
        let start = Instant::now();
        let futures: Vec<_> = (0..n).map(|i| pool.submit(increment, i)).collect();
        let sum: u64 = futures.into_iter().map(|future| u64::from(future.result().unwrap_or(0))).sum();
        check(sum, n);
        start.elapsed() / n
    });
    row("T2 threads: spawn, nothing kept, per task", repetitions, || {
        let pool = pool_of(workers);
        let start = Instant::now();
        for i in 0..n {
            pool.spawn(move || std::hint::black_box(increment(i)));
        }
        pool.shutdown();
        start.elapsed() / n
    });
    row("T3 threads: round trip on an idle pool", repetitions, || {
        let (pool, rounds) = (pool_of(workers), 20_000 / scale);
        let start = Instant::now();
        let sum: u64 = (0..rounds).map(|i| u64::from(pool.submit(increment, i).result().unwrap_or(0))).sum();
        check(sum, rounds);
        start.elapsed() / rounds
    });
    row("T5 threads: map, in order, per item", repetitions, || map(&pool_of(workers), n));
    row("T8 threads: tasks that sleep 50 ms, one worker each", repetitions.min(3), || {
        sleep_on_all(&pool_of(4_000 / scale as usize), 4_000 / scale)
    });
}

#[cfg(all(feature = "process", target_os = "linux"))]
fn processes(scale: u32, repetitions: usize) {
    use concurrent_futures::ProcessPoolExecutor;

    let pool_of = |workers| match ProcessPoolExecutor::new(workers) {
        Ok(pool) => pool,
        Err(error) => panic!("{error}"),
    };
    let n = 200_000 / scale;
    row("P1 processes: submit, results read in order, per task", repetitions, || {
        let pool = pool_of(2);
        let start = Instant::now();
        let futures: Vec<_> = (0..n).map(|i| pool.submit(increment, i)).collect();
        let sum: u64 = futures.into_iter().map(|future| u64::from(future.result().unwrap_or(0))).sum();
        check(sum, n);
        start.elapsed() / n
    });
    row("P1 processes: map, in order, per item", repetitions, || map(&pool_of(2), 1_000_000 / scale));
    row("P2 processes: round trip, back to back", repetitions, || {
        let (pool, rounds) = (pool_of(2), 2_000 / scale);
        let start = Instant::now();
        let sum: u64 = (0..rounds).map(|i| u64::from(pool.submit(increment, i).result().unwrap_or(0))).sum();
        check(sum, rounds);
        start.elapsed() / rounds
    });
    for workers in [2, 400] {
        row(
            &format!("P4 processes: until {workers} workers have slept 50 ms each"),
            repetitions.min(3),
            || {
                let start = Instant::now();
                sleep_on_all(&pool_of(workers), u32::try_from(workers).unwrap_or(0));
                start.elapsed()
            },
        );
    }
}

fn map(pool: &impl Executor, n: u32) -> Duration {
    let start = Instant::now();
    let sum: u64 = pool.map(increment, 0..n).map(|result| u64::from(result.unwrap_or(0))).sum();
    check(sum, n);
    start.elapsed() / n
}

fn sleep_on_all(pool: &impl Executor, tasks: u32) -> Duration {
    let start = Instant::now();
    let futures: Vec<_> = (0..tasks).map(|_| pool.submit(sleep, 50)).collect();
    let slept = futures.into_iter().filter_map(|future| future.result().ok()).count();
    assert_eq!(slept, tasks as usize);
    start.elapsed()
}

fn increment(n: u32) -> u32 {
    n + 1
}

fn sleep(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn check(sum: u64, n: u32) {
    assert_eq!(sum, u64::from(n) * (u64::from(n) + 1) / 2);
}

fn pool_of(workers: usize) -> ThreadPoolExecutor {
    match ThreadPoolExecutor::new(workers) {
        Ok(pool) => pool,
        Err(error) => panic!("{error}"),
    }
}

fn row(name: &str, repetitions: usize, mut measure: impl FnMut() -> Duration) {
    let mut chosen = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).peekable();
    if chosen.peek().is_some() && !chosen.any(|part| name.contains(&part)) {
        return;
    }
    let mut times: Vec<Duration> = (0..repetitions).map(|_| measure()).collect();
    times.sort();
    println!("{name:<62} {:>12.1?} {:>12.1?}", times[times.len() / 2], times[0]);
}
