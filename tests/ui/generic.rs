//! One function per concrete type: an executor needs one address for one name.

use concurrent_futures::task;
use serde::Serialize;

#[task]
fn largest<T: Ord, const N: usize>(values: [T; N]) -> Option<T> {
    values.into_iter().max()
}

#[task]
fn print(value: impl Serialize, others: Vec<impl Serialize>) {
    let _ = (value, others);
}

#[task]
fn count(to: u32) -> impl Iterator<Item = u32> {
    0..to
}

fn main() {
    // The functions are still there.
    largest([1, 2, 3]);
    print("value", vec![1]);
    count(3);
}
