//! A closure that captures has no address another process could call.

use concurrent_futures::ProcessPoolExecutor;

fn main() {
    let pool = ProcessPoolExecutor::new(1).unwrap();
    let factor = 3;
    let future = pool.submit(|n: u32| n * factor, 4);
    drop(future);
}
