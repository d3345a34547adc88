//! A closure that captures has no address that code in another process could call.

use concurrent_futures::Executor;

fn scale(executor: &impl Executor, factor: u32) -> u32 {
    let future = executor.submit(|n: u32| n * factor, 4);
    future.result().unwrap()
}

fn main() {}
