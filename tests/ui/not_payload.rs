//! The bounds are checked where the task is defined, on the type that does not meet them.

use concurrent_futures::{ThreadPoolExecutor, task};
use serde::{Deserialize, Serialize};

struct Pixels(Vec<u8>);

#[derive(Serialize, Deserialize)]
struct Size(u32);

#[task]
fn resize(image: Pixels, size: Size) -> Vec<u8> {
    let _ = size;
    image.0
}

#[derive(Serialize)]
struct Report(u32);

#[task]
fn report(size: Size) -> Report {
    Report(size.0)
}

fn main() {
    // Not refused a second time where it is used.
    let pool = ThreadPoolExecutor::new(1).unwrap();
    resize::submit(&pool, Pixels(Vec::new()), Size(1));
    report::submit(&pool, Size(1));
}
