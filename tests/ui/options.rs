//! What may stand in the parentheses. The function gets its companion all the same.

use concurrent_futures::{ThreadPoolExecutor, task};

#[task(label = "images.double")]
fn unknown(n: u32) -> u32 {
    n * 2
}

#[task(name = 5)]
fn not_a_string(n: u32) -> u32 {
    n * 2
}

#[task(5, name)]
fn neither_a_string(n: u32) -> u32 {
    n * 2
}

#[task("first", name = "second", crate = "a", crate = "b")]
fn twice(n: u32) -> u32 {
    n * 2
}

#[task("")]
fn empty(n: u32) -> u32 {
    n * 2
}

#[task(crate = "not a path")]
fn wrong_path(n: u32) -> u32 {
    n * 2
}

#[task(name = "a" "b")]
fn no_comma(n: u32) -> u32 {
    n * 2
}

#[task]
#[task]
fn two_attributes(n: u32) -> u32 {
    n * 2
}

fn main() {
    let pool = ThreadPoolExecutor::new(1).unwrap();
    unknown::submit(&pool, 1);
    not_a_string::submit(&pool, 1);
    neither_a_string::submit(&pool, 1);
    empty::submit(&pool, 1);
    wrong_path::submit(&pool, 1);
    no_comma::submit(&pool, 1);
}
