//! A call with the wrong arguments is refused at the caller's line, in the terms of the function.

use concurrent_futures::{ThreadPoolExecutor, task};

#[task]
fn resize(image: Vec<u8>, width: u32) -> Vec<u8> {
    let _ = width;
    image
}

fn main() {
    let pool = ThreadPoolExecutor::new(1).unwrap();
    resize::submit(&pool, vec![1, 2], "wide");
    resize::submit(&pool, vec![1, 2]);
    resize::map(&pool, [vec![1, 2]]);
}
