//! A method has a receiver, which an executor does not.

use concurrent_futures::task;

struct Image(Vec<u8>);

impl Image {
    #[task]
    fn width(&self) -> u32 {
        self.0.len() as u32
    }

    #[task]
    fn resize(mut self: Box<Self>, width: usize) -> Self {
        self.0.truncate(width);
        *self
    }

    #[task]
    fn wrap(pixels: Vec<u8>) -> Option<Self> {
        Some(Self(pixels))
    }
}

fn main() {
    // The methods are still there.
    let image = Image::wrap(vec![1, 2, 3]).unwrap();
    image.width();
    Box::new(image).resize(2);
}
