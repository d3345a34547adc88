//! How many arguments, and of what form.

use concurrent_futures::task;

#[task]
fn thirteen(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8, i: u8, j: u8, k: u8, l: u8, m: u8) -> u8 {
    a + b + c + d + e + f + g + h + i + j + k + l + m
}

#[task]
fn conditional(#[cfg(unix)] mode: u32, #[allow(unused)] rest: u32) -> u32 {
    mode
}

#[task]
fn forever() -> ! {
    loop {}
}

#[task]
#[target_feature(enable = "sse2")]
fn fast(n: u32) -> u32 {
    n
}

#[task]
fn str(text: String) -> String {
    text
}

fn main() {
    // The companion of a function with the wrong name is not there, so `str` is still the type.
    let _: &str = "text";
}
