//! The attribute goes on free functions only.

use concurrent_futures::task;

#[task]
struct Image {
    pixels: Vec<u8>,
}

#[task]
impl Image {
    fn width(&self) -> u32 {
        0
    }
}

#[task]
const fn_like: u32 = 4;

#[task]
mod images {}

trait Resize {
    #[task]
    fn resize(image: Vec<u8>) -> Vec<u8>;
}

fn main() {}
