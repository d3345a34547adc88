//! What may stand in front of `fn`. All complaints about one function come at once.

use concurrent_futures::task;

#[task]
async fn fetch(url: String) -> String {
    url
}

#[task]
unsafe fn read(address: usize) -> u8 {
    let _ = address;
    0
}

#[task]
extern "C" fn callback(code: i32) -> i32 {
    code
}

#[task]
unsafe extern "C" fn print(format: &str, arguments: ...) -> ! {
    let _ = (format, arguments);
    std::process::exit(0)
}

#[task]
const fn square(n: u64) -> u64 {
    n * n
}

fn main() {
    const NINE: u64 = square(3);
    let _ = (fetch(String::new()), callback(1), square::NAME, NINE);
}
