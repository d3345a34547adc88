//! procspawn: a real pool, with a thread for each worker and two channels for each task.

use procspawn::{JoinHandle, Pool};

use crate::farm::{Data, Farm};

pub(crate) struct Procspawn(Pool);

impl Farm for Procspawn {
    type Handle<R: Data> = JoinHandle<R>;

    /// Three open files each.
    const WINDOW: usize = 256;

    fn build(workers: usize) -> Self {
        Self(Pool::new(workers).unwrap_or_else(|error| panic!("{error}")))
    }

    fn submit<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> Self::Handle<R> {
        self.0.spawn(arg, f)
    }

    fn wait<R: Data>(handle: Self::Handle<R>) -> Result<R, String> {
        handle.join().map_err(|error| error.to_string())
    }
}
