//! What is borrowed cannot leave the thread, let alone the process.

use std::borrow::Cow;
use std::path::Path;

use concurrent_futures::task;

#[task]
fn length(text: &str, bytes: &[u8], path: &Path, pairs: &[(u8, u8)], value: &u32) -> usize {
    let _ = (bytes, path, pairs, value);
    text.len()
}

#[task]
fn sort(values: &mut [u32], last: &mut u32) {
    values.sort();
    *last = 0;
}

#[task]
fn longest<'a>(left: &'a str, right: &'a str) -> &'a str {
    if left.len() < right.len() { right } else { left }
}

#[task]
fn nested(first: Option<&'static str>, second: Cow<'_, str>, third: Cow<'static, str>) -> Vec<&'static str> {
    let _ = (second, third);
    Vec::from_iter(first)
}

fn main() {
    length("text", &[], Path::new(""), &[], &1);
    sort(&mut [1, 2], &mut 3);
    longest("left", "right");
    nested(None, Cow::default(), Cow::default());
}
