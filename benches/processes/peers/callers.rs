//! For peers whose call blocks: one process and whoever may call it.

/// A process that runs one task at a time.
pub(crate) trait Caller: Send + Sized {
    fn start() -> Self;

    fn increment(&mut self, i: u64) -> u64;
}
